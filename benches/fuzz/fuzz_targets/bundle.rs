//! Bundles from any source: an unpacked bundle stays in its folder, and a canonicalised archive is a bundle.
//!
//! An input whose first byte is even is an archive. Random bytes seldom have a header's checksum, so any
//! other input is a list of entries, from which the archive is made:
//!
//! ```text
//! kind, mode, length of the path, path, length of the link's target, target, length of the content (2), content
//! ```

#![no_main]

use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use openlambda_core::bundle::{Limits, canonicalise, unpack};
use openlambda_core::function::Digest;
use tar::{EntryType, Header};

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let archive = if first & 1 == 0 { rest.to_vec() } else { archive(rest) };

    // A bundle that another one made: its digest is not known, so it is refused at its end at the latest.
    into_a_folder(|folder| {
        let unpacked = unpack(&archive[..], &Digest::from_bytes([0; 32]), folder);
        assert!(unpacked.is_err(), "it has the digest of nothing");
    });

    let mut bundle = Vec::new();
    let Ok(packed) = canonicalise(&archive[..], Limits::default(), &mut bundle) else { return };
    assert_eq!(packed.bytes, bundle.len() as u64);
    into_a_folder(|folder| {
        unpack(&bundle[..], &packed.digest, folder).expect("it is canonical");
        stays_inside(folder, folder);
    });
    let mut again = Vec::new();
    let same = canonicalise(&bundle[..], Limits::default(), &mut again).expect("it is a tar");
    assert!(again == bundle && same == packed, "the canonical form of a bundle is another one");
});

/// Gives `act` an empty folder beside which nothing may appear.
fn into_a_folder(act: impl FnOnce(&Path)) {
    let around = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let around = around.expect("a temporary folder");
    let folder = around.path().join("a/b/c");
    fs::create_dir_all(&folder).expect("a folder");
    act(&folder);
    for (place, name) in [("", "a"), ("a", "b"), ("a/b", "c")] {
        let there = fs::read_dir(around.path().join(place)).expect("it is there");
        let there: Vec<_> = there.map(|entry| entry.expect("an entry").file_name()).collect();
        assert_eq!(there, [name], "something is outside of the folder");
    }
}

/// No link leads out.
fn stays_inside(top: &Path, folder: &Path) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        let kind = entry.file_type().expect("a kind");
        assert!(kind.is_dir() || kind.is_file() || kind.is_symlink(), "a strange file");
        if kind.is_dir() {
            stays_inside(top, &entry.path());
        } else if let Ok(place) = fs::canonicalize(entry.path()) {
            // A link may lead nowhere.
            let top = fs::canonicalize(top).expect("it is there");
            assert!(place.starts_with(top), "a link leads to {}", place.display());
        }
    }
}

fn archive(mut data: &[u8]) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    while let Some(entry) = entry(&mut data) {
        let (header, content) = entry;
        out.append(&header, content).expect("memory");
    }
    out.into_inner().expect("memory")
}

fn entry<'a>(data: &mut &'a [u8]) -> Option<(Header, &'a [u8])> {
    let [kind, mode] = *take(data, 2)? else { return None };
    let length = usize::from(take(data, 1)?[0]);
    let path = take(data, length)?;
    let length = usize::from(take(data, 1)?[0]);
    let target = take(data, length)?;
    let length = take(data, 2)?;
    let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
    let content = take(data, length.min(data.len()))?;

    let mut header = Header::new_gnu();
    let old = header.as_old_mut();
    old.name.iter_mut().zip(path).for_each(|(place, byte)| *place = *byte);
    old.linkname.iter_mut().zip(target).for_each(|(place, byte)| *place = *byte);
    let kinds = b"0125LKgx3";
    header.set_entry_type(EntryType::new(kinds[usize::from(kind) % kinds.len()]));
    header.set_mode(u32::from(mode) << 1);
    header.set_size(content.len() as u64);
    header.set_cksum();
    Some((header, content))
}

fn take<'a>(data: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = data.split_at_checked(count)?;
    *data = rest;
    Some(taken)
}
