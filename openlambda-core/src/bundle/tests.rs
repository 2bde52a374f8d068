use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use proptest::prelude::*;
use tar::EntryType;

use super::write::header;
use super::*;

/// An archive as a stranger could make it: names and targets go in as they are.
#[derive(Default)]
struct Hostile(Vec<u8>);

impl Hostile {
    fn entry(mut self, kind: EntryType, path: &str, target: &str, content: &[u8]) -> Self {
        let mut header = header(kind, content.len() as u64, 0o644);
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path.as_bytes());
        old.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, path, "", content.as_bytes())
    }

    fn link(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, b"")
    }

    fn bytes(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

fn publish(archive: &[u8]) -> Result<(Packed, Vec<u8>), BundleError> {
    let mut out = Vec::new();
    let packed = canonicalise(archive, Limits::default(), &mut out)?;
    Ok((packed, out))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    plain
}

fn sample() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::write(root.join("f.py"), "def f(event): return event\n").unwrap();
    fs::write(root.join("ol.toml"), "memory_mb = 64\n").unwrap();
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("a.txt"), "x").unwrap();
    fs::write(root.join("a/run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(root.join("a/run"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::write(root.join("a/b").join("n".repeat(120)), vec![7; 100_000]).unwrap();
    symlink("../a.txt", root.join("a/link")).unwrap();
    fs::create_dir(root.join("__pycache__")).unwrap();
    fs::write(root.join("__pycache__/f.pyc"), "left out").unwrap();
    dir
}

/// A change of this value moves every bundle to another digest: bundles that registries hold would be
/// found no more.
const SAMPLE_DIGEST: &str =
    "sha256:ff2e2028f3939c48e0eec56b25169521c00d407b8575477cbc617e1354522e02";

#[test]
fn the_canonical_form_is_pinned_and_does_not_depend_on_who_packs() {
    let (dir, again) = (sample(), sample());
    let (mut tar, mut other) = (Vec::new(), Vec::new());
    let packed = pack_dir(dir.path(), &mut tar).unwrap();
    assert_eq!(packed, pack_dir(again.path(), &mut other).unwrap());
    assert_eq!(tar, other);
    assert_eq!(packed.digest.to_string(), SAMPLE_DIGEST);
    assert_eq!((packed.bytes, packed.manifest.memory_mb), (tar.len() as u64, 64));

    // Another program's archive of the same folder: other order, times, owners, headers.
    let made = std::process::Command::new("tar")
        .args(["--create", "--sort=none", "--format=pax", "--exclude=__pycache__", "."])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(made.status.success());
    assert_ne!(made.stdout, tar);
    for archive in [made.stdout.clone(), gzip(&made.stdout), tar.clone(), gzip(&tar)] {
        let (same, canonical) = publish(&archive).unwrap();
        assert_eq!((same.digest, canonical == tar), (packed.digest, true));
        assert_eq!(same.manifest, packed.manifest);
    }
}

#[test]
fn a_bundle_unpacks_to_what_was_packed() {
    let dir = sample();
    let mut tar = Vec::new();
    let packed = pack_dir(dir.path(), &mut tar).unwrap();
    let into = tempfile::tempdir().unwrap();
    unpack(&*tar, &packed.digest, into.path()).unwrap();
    assert_eq!(fs::read_link(into.path().join("a/link")).unwrap().to_str(), Some("../a.txt"));
    assert_eq!(fs::read_to_string(into.path().join("a/link")).unwrap(), "x");
    let mode = fs::metadata(into.path().join("a/run")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7111, 0o111, "executable, and the setuid bit is gone");
    assert!(!into.path().join("__pycache__").exists());
    let mut again = Vec::new();
    assert_eq!(pack_dir(into.path(), &mut again).unwrap().digest, packed.digest);
}

#[test]
fn damage_is_noticed() {
    let dir = sample();
    let mut tar = Vec::new();
    let packed = pack_dir(dir.path(), &mut tar).unwrap();
    for at in [600, tar.len() / 2, tar.len() - 1] {
        let mut damaged = tar.clone();
        damaged[at] ^= 1;
        let into = tempfile::tempdir().unwrap();
        assert!(unpack(&*damaged, &packed.digest, into.path()).is_err(), "byte {at}");
    }
    let into = tempfile::tempdir().unwrap();
    let error = unpack(&tar[..tar.len() - 512], &packed.digest, into.path()).unwrap_err();
    assert!(matches!(error, BundleError::Damaged { .. }), "{error}");
}

#[test]
fn what_could_harm_is_refused_with_the_entry_and_the_reason() {
    let f = || Hostile::default().file("f.py", "x");
    let fifo = f().entry(EntryType::Fifo, "p", "", b"");
    let device = f().entry(EntryType::Char, "d", "", b"");
    let hard = f().entry(EntryType::Link, "h", "../../etc/passwd", b"");
    let later = f().entry(EntryType::Link, "h", "g", b"").file("g", "");
    let by_link = f().entry(EntryType::Link, "ol.toml", "f.py", b"");
    for (archive, path, why) in [
        (f().file("/etc/cron.d/x", ""), "/etc/cron.d/x", "absolute path"),
        (f().file("../x", ""), "../x", "leads out"),
        (f().file("a/../../x", ""), "a/../../x", "leads out"),
        (f().link("l", "/etc/passwd"), "l", "leads out of the bundle, to \"/etc/passwd\""),
        (f().link("l", "../x"), "l", "leads out"),
        (f().link("a/l", "../../x"), "a/l", "leads out"),
        (f().link("a/l", "b/../../../x"), "a/l", "\"..\" after a name"),
        (f().link("l", "."), "l/x", "is no folder"),
        (f().link("l", ""), "l", "without a valid target"),
        (f().file("f.py", "y"), "f.py", "named twice"),
        (f().file("f.py/x", "y"), "f.py/x", "no folder"),
        (f().file("a/b", "y").file("a", "z"), "a", "named twice"),
        (f().link("ol.toml", "f.py"), "ol.toml", "no regular file"),
        (f().entry(EntryType::Directory, "ol.toml/", "", b""), "ol.toml", "no regular file"),
        (f().file("ol.yaml/x", ""), "ol.yaml", "no regular file"),
        (by_link, "ol.toml", "hard link"),
        (fifo, "p", "neither a file"),
        (device, "d", "neither a file"),
        (hard, "..", "leads out"),
        (later, "h", "hard link"),
    ] {
        // Where a second entry is what is wrong, it is below the first.
        let archive = if path == "l/x" { archive.file("l/x", "") } else { archive };
        let mut out = Vec::new();
        let error = canonicalise(&*archive.bytes(), Limits::default(), &mut out).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(path) && text.contains(why), "{path}, {why}: {text}");
        assert!(out.is_empty(), "something was written");
    }
    // The same archives do not get past `unpack` either, whatever their digest.
    let into = tempfile::tempdir().unwrap();
    let folder = into.path().join("folder");
    fs::create_dir(&folder).unwrap();
    for archive in [
        Hostile::default().file("../out", "x"),
        Hostile::default().link("l", "..").file("l/out", "x"),
        Hostile::default().file(&format!("{}/out", into.path().display()), "x"),
    ] {
        assert!(unpack(&*archive.bytes(), &Digest::from_bytes([0; 32]), &folder).is_err());
        assert_eq!(fs::read_dir(into.path()).unwrap().count(), 1);
    }
}

/// Or a registry takes what no worker can unpack.
#[test]
fn a_bundle_is_as_large_as_its_tar_whoever_looks() {
    let mut archive = Hostile::default();
    for length in [3, 98, 99, 100] {
        archive = archive.file(&"n".repeat(length), &"c".repeat(511 + length));
        archive = archive.file(&format!("m{}/x", "m".repeat(length - 3)), "");
    }
    for length in [99, 100] {
        archive = archive.link(&"l".repeat(length), &"t".repeat(length));
    }
    for length in [101, 255, 511, 512, 513, 1023] {
        let name = [b'a'; 200];
        let long = [&name[..], b"/", &[b'b'; 200], b"/"].concat();
        let long = [long.repeat(length / 400), vec![b'c'; length % 255 + 1]].concat();
        archive = archive.entry(EntryType::GNULongName, "@", "", &long).file("x", "");
        archive = archive.entry(EntryType::GNULongName, "@", "", &[b"d", &long[..]].concat());
        archive = archive.entry(EntryType::GNULongLink, "@", "", &long).link("x", "x");
    }
    let archive = archive.file("f.py", "").bytes();
    let (packed, tar) = publish(&archive).unwrap();
    assert_eq!(packed.bytes, tar.len() as u64);
    let within = |bytes| canonicalise(&*archive, Limits { bytes, ..Limits::default() }, io::sink());
    assert_eq!(within(packed.bytes).unwrap(), packed);
    assert!(matches!(within(packed.bytes - 1), Err(BundleError::TooLarge(_))));
}

#[test]
fn harmless_links_are_kept() {
    let archive = Hostile::default()
        .file("f.py", "x")
        .link("a/b/up", "../../f.py")
        .link("self", ".")
        .link("dangling", "nowhere/at/all")
        .entry(EntryType::Link, "g.py", "./f.py", b"");
    let (packed, tar) = publish(&archive.bytes()).unwrap();
    let into = tempfile::tempdir().unwrap();
    unpack(&*tar, &packed.digest, into.path()).unwrap();
    assert_eq!(fs::read_to_string(into.path().join("a/b/up")).unwrap(), "x");
    assert_eq!(fs::read_to_string(into.path().join("g.py")).unwrap(), "x");
}

#[test]
fn a_decompression_bomb_is_refused_at_the_limit() {
    let limits = Limits { bytes: 1 << 20, entries: 10 };
    let large = Hostile::default().file("f.py", &"x".repeat(2 << 20)).bytes();
    let padding = [Hostile::default().file("f.py", "x").bytes(), vec![0; 4 << 20]].concat();
    let many = (0..20).fold(Hostile::default(), |archive, n| archive.file(&format!("f{n}"), ""));
    // A header that promises more than comes.
    let mut liar = Hostile::default().file("f.py", "").bytes();
    let mut lying = header(EntryType::Regular, 1 << 40, 0o644);
    lying.set_path("f.py").unwrap();
    lying.set_cksum();
    liar[..512].copy_from_slice(lying.as_bytes());
    for (archive, why) in
        [(gzip(&large), "over 1 MiB"), (many.bytes(), "more than 10 files"), (liar, "over 1 MiB")]
    {
        let mut out = Vec::new();
        let error = canonicalise(&*archive, limits, &mut out).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert!(out.is_empty());
    }
    // What follows the end of an archive is not unpacked.
    canonicalise(&*gzip(&padding), limits, io::sink()).unwrap();
}

/// An entry whose name a header before it tells, in the ways that there are.
fn long_name(kind: EntryType, name: &[u8]) -> Vec<u8> {
    let content = match kind {
        EntryType::XHeader => {
            let rest = " path=\n".len() + name.len();
            let mut length = rest;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            [format!("{length} path=").as_bytes(), name, b"\n"].concat()
        }
        _ => name.to_vec(),
    };
    let before = Hostile::default().entry(kind, "././@LongLink", "", &content);
    let entry = Hostile(before.0).file("short", "");
    gzip(&entry.file("f.py", "x").bytes())
}

/// A pax header with this content, before an entry.
fn pax(content: &[u8]) -> Hostile {
    Hostile::default().file("f.py", "x").entry(EntryType::XHeader, "pax", "", content)
}

/// A well-formed record.
fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n").into_bytes()
}

fn paths(archive: Hostile) -> Vec<String> {
    let (_, tar) = publish(&archive.bytes()).unwrap();
    let mut tar = tar::Archive::new(&*tar);
    let entries = tar.entries().unwrap();
    let path = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
        entry.unwrap().path().unwrap().to_str().unwrap().to_owned()
    };
    entries.map(path).filter(|path| path != "f.py").collect()
}

#[test]
fn pax_attributes_are_read_by_their_lengths_or_refused() {
    for broken in [
        &b"99999 path=a\n"[..],
        b"0 path=a\n",
        b"8 path=a\n",
        b"11 path=a\n",
        b"9 path=a ",
        b"10 pathza\n",
        b"6 =ab\n",
        b"-9 path=a\n",
        b"+9 path=a\n",
        b"9 path=a\n\0\0",
        b"\xff\xff\n\n\n = =\n",
        b"18446744073709551626 path=a\n",
        &record("size", "-1"),
        &record("size", "+1"),
        &record("size", ""),
        &record("size", "99999999999999999999999"),
        &record("path", ""),
        &record("linkpath", ""),
        // A reader by lines does not see the size.
        &[record("comment", "x\ny"), record("size", "1")].concat(),
    ] {
        let refused = publish(&pax(broken).file("x", "1234").bytes()).map(|(packed, _)| packed);
        let error = refused.expect_err(&broken.escape_ascii().to_string()).to_string();
        let why = "has broken pax attributes; pack the archive anew";
        let too_large = error.contains("over 512 MiB");
        assert!(error.contains(why) || too_large, "{}: {error}", broken.escape_ascii());
    }
    let sparse = [record("GNU.sparse.major", "1"), record("GNU.sparse.name", "y")].concat();
    let error = publish(&pax(&sparse).file("x", "1\n0\n1\n").bytes()).unwrap_err().to_string();
    assert!(error.contains("\"x\" is a sparse file in the form of pax"), "{error}");
    // Of two the last counts, as in GNU tar.
    let two = [record("path", "a"), record("path", "../b")].concat();
    let error = publish(&pax(&two).file("x", "").bytes()).unwrap_err().to_string();
    assert!(error.contains("leads out"), "{error}");
    for (attributes, path) in [
        (record("path", "a\nb"), "a\nb"),
        (record("comment", "x\n10 size=5"), "x"),
        (record("comment", "x\n9 path=y"), "x"),
        (record("path", "a\n9 path=c"), "a\n9 path=c"),
        ([record("SCHILY.xattr.user.a", "1\n2\n"), record("path", "z")].concat(), "z"),
        ([record("comment", "\n"), record("size", "2")].concat(), "x"),
    ] {
        assert_eq!(paths(pax(&attributes).file("x", "12")), [path]);
    }
    let link = pax(&record("linkpath", "a\nb")).link("l", "f.py");
    let (_, tar) = publish(&link.bytes()).unwrap();
    let mut tar = tar::Archive::new(&*tar);
    let entry = tar.entries().unwrap().nth(1).unwrap().unwrap();
    assert_eq!(&*entry.link_name_bytes().unwrap(), b"a\nb");
}

#[test]
fn what_is_cut_or_damaged_at_its_end_is_refused() {
    let whole = Hostile::default().file("f.py", "x").file("g", &"y".repeat(3000)).bytes();
    let packed = gzip(&whole);
    let without_end = &whole[..whole.len() - 1024];
    let without_last = &whole[..1024];
    let damaged = |from_end: usize| {
        let mut packed = packed.clone();
        let at = packed.len() - from_end;
        packed[at] ^= 1;
        packed
    };
    for (what, archive) in [
        ("no end", without_end.to_vec()),
        ("no last entry", without_last.to_vec()),
        ("no end, gzipped", gzip(without_end)),
        ("no last entry, gzipped", gzip(without_last)),
        ("a checksum of another content", damaged(8)),
        ("a length of another content", damaged(1)),
        ("no checksum", packed[..packed.len() - 8].to_vec()),
        ("half a checksum", packed[..packed.len() - 3].to_vec()),
        ("garbage behind", [&packed[..], b"garbage"].concat()),
        ("another archive that is broken", [&packed[..], &[0x1f, 0x8b, 8, 9]].concat()),
    ] {
        let refused = publish(&archive);
        assert!(matches!(refused, Err(BundleError::Read(_))), "{what}: {refused:?}");
    }
    let one_block = [without_end, &[0; 512]].concat();
    let several = [gzip(&whole[..700]), gzip(b""), gzip(&whole[700..])].concat();
    for archive in [one_block, several] {
        publish(&archive).unwrap();
    }
}

/// Each of these is a small file; once unpacked in memory, or walked by recursion, it ended a process.
#[test]
fn what_is_deep_or_long_is_refused_before_it_is_held_or_walked() {
    let kinds = [EntryType::GNULongName, EntryType::XHeader];
    for (name, why) in [
        ("a/".repeat(10_000), "is a path of"),
        ("a/".repeat(129), "folders deep"),
        ("/".repeat(2000), "folders deep"),
        ("a".repeat(2049), "is a path of"),
        (format!("{}/{}", "a".repeat(200), "b".repeat(256)), "no file can have"),
    ] {
        for kind in kinds {
            let error = publish(&long_name(kind, name.as_bytes())).unwrap_err().to_string();
            assert!(error.contains(why) && error.len() < 400, "{kind:?}, {why}: {error}");
        }
    }
    let most = format!("{}{}", "a/".repeat(127), "b".repeat(255));
    for kind in kinds {
        let (packed, tar) = publish(&long_name(kind, most.as_bytes())).unwrap();
        let into = tempfile::tempdir().unwrap();
        unpack(&*tar, &packed.digest, into.path()).unwrap();
        assert!(into.path().join(&most).is_file());
    }
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
        let archive = long_name(kind, &vec![b'a'; 16 << 20]);
        assert!(archive.len() < 200_000, "{}", archive.len());
        for error in [
            publish(&archive).unwrap_err(),
            unpack(&*gunzip(&archive), &Digest::from_bytes([0; 32]), std::path::Path::new("/"))
                .unwrap_err(),
        ] {
            assert!(error.to_string().contains("over 1024 KiB"), "{kind:?}: {error}");
        }
    }
    // A link's target is a name too.
    let target = Hostile::default()
        .entry(EntryType::GNULongLink, "././@LongLink", "", &b"a/".repeat(1025))
        .link("l", "x");
    let error = publish(&target.bytes()).unwrap_err().to_string();
    assert!(error.contains("without a valid target"), "{error}");
    // Attributes of all files that follow are not held.
    publish(&global(&record("comment", &"a".repeat(4 << 20))).file("f.py", "x").bytes()).unwrap();
}

/// Attributes of all entries that follow.
fn global(content: &[u8]) -> Hostile {
    Hostile::default().entry(EntryType::XGlobalHeader, "/tmp/GlobalHead.1", "", content)
}

#[test]
fn attributes_of_all_files_are_passed_over_or_refused() {
    let (plain, _) = publish(&Hostile::default().file("f.py", "x").bytes()).unwrap();
    let time = [record("mtime", "1.5"), record("comment", "a\n9 path=b\n")].concat();
    let long = record("comment", &"a".repeat(100_000));
    for harmless in [&b""[..], &time, &long, &record("SCHILY.xattr.user.path", "")] {
        for twice in [false, true] {
            let again = if twice { global(harmless).0 } else { Vec::new() };
            let archive = [again, global(harmless).file("f.py", "x").bytes()].concat();
            let (packed, _) = publish(&archive).unwrap();
            assert_eq!(packed, plain);
        }
    }
    for (key, why) in [
        ("path", "says path of all files"),
        ("linkpath", "says linkpath of all files"),
        ("size", "says size of all files"),
        ("GNU.sparse.name", "says GNU.sparse.name of all files"),
    ] {
        let attributes = [record("mtime", "1"), record(key, "1")].concat();
        let error =
            publish(&global(&attributes).file("f.py", "x").bytes()).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("/tmp/GlobalHead.1"), "{error}");
    }
    let cut = &record("comment", "abc")[..10];
    let key = record(&"k".repeat(2000), "v");
    for broken in [
        &b"aaaa"[..],
        b"0 a=b\n",
        b"3 a=b\n",
        b"5 a=b\n",
        b"6 =ab\n",
        b"9 a=bc\n",
        b"+7 a=b\n",
        b"99999999999999999999999 a=b\n",
        b"18446744073709551615 a=b\n",
        b"7 a=b\n\0\0",
        cut,
        &key,
    ] {
        let refused = publish(&global(broken).file("f.py", "x").bytes()).map(|(packed, _)| packed);
        let error = refused.expect_err(&broken.escape_ascii().to_string()).to_string();
        assert!(error.contains("has broken pax attributes"), "{}: {error}", broken.escape_ascii());
    }
    // To one reader these describe what describes all, to another the file behind it.
    for kind in [EntryType::XHeader, EntryType::GNULongName] {
        let name =
            if kind == EntryType::XHeader { record("path", "g.py") } else { b"g.py\0".to_vec() };
        let archive = Hostile::default().entry(kind, "before", "", &name);
        let archive = archive.entry(EntryType::XGlobalHeader, "g", "", &record("mtime", "1"));
        let error = publish(&archive.file("f.py", "x").bytes()).unwrap_err().to_string();
        assert!(error.contains("has broken pax attributes"), "{kind:?}: {error}");
    }
}

/// What GNU tar itself writes when it is told attributes, and what `gzip` is filled up with.
#[test]
fn archives_of_gnu_tar_and_of_blocks_are_taken() {
    let dir = sample();
    let tar = |options: &[&str]| {
        let mut tar = std::process::Command::new("tar");
        let made = tar.args(options).args(["-cf", "-", "-C"]).arg(dir.path()).arg(".").output();
        let made = made.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        made.stdout
    };
    let (plain, _) = publish(&tar(&[])).unwrap();
    for option in ["comment=hello", "mtime=1", "globexthdr.name=/tmp/any/where,uname=nobody"] {
        let archive = tar(&["--format=pax", &format!("--pax-option={option}")]);
        assert!(archive.starts_with(b"/tmp/"), "it has a global header");
        assert_eq!(publish(&archive).unwrap().0, plain, "{option}");
    }
    let refused = publish(&tar(&["--format=pax", "--pax-option=path=evil"])).unwrap_err();
    assert!(refused.to_string().contains("says path of all files"), "{refused}");
    let packed = gzip(&tar(&[]));
    for zeros in [1, 511, 100_000] {
        let filled = [&packed[..], &vec![0; zeros]].concat();
        assert_eq!(publish(&filled).unwrap().0, plain, "{zeros}");
        for behind in [&b"x"[..], &packed] {
            let error = publish(&[&filled, behind].concat()).unwrap_err();
            assert!(matches!(error, BundleError::Read(_)), "{zeros}: {error}");
        }
    }
}

#[test]
fn the_map_of_a_sparse_file_is_bounded() {
    // A file with no data: 21 empty places in each further block of its map.
    let mut first = header(EntryType::GNUSparse, 0, 0o644);
    first.set_path("sparse").unwrap();
    let gnu = first.as_gnu_mut().unwrap();
    gnu.isextended = [1];
    gnu.realsize = *b"00000000000\0";
    first.set_cksum();
    let archive = |blocks: usize| {
        let mut more = [0; 512];
        more[504] = 1;
        let mut bytes = first.as_bytes().to_vec();
        for _ in 0..blocks {
            bytes.extend_from_slice(&more);
        }
        bytes.extend_from_slice(&[0; 512]);
        [bytes, Hostile::default().file("f.py", "x").bytes()].concat()
    };
    publish(&archive(100)).unwrap();
    let error = publish(&archive(4000)).unwrap_err().to_string();
    assert!(error.contains("maps of sparse files"), "{error}");
}

#[test]
fn all_names_together_are_bounded() {
    let name = |n: usize| format!("{n:05}/{}", "a".repeat(90));
    let archive = (0..1 << 17).fold(Hostile::default(), |archive, n| match n % 2 {
        0 => archive.file(&name(n), ""),
        _ => archive.link(&name(n), &"b".repeat(99)),
    });
    let limits = Limits { entries: 1 << 20, ..Limits::default() };
    let mut out = Vec::new();
    let error = canonicalise(&*archive.bytes(), limits, &mut out).unwrap_err().to_string();
    assert!(error.contains("16 MiB together") && out.is_empty(), "{error}");
}

#[test]
fn an_archive_that_never_says_anything_ends_at_the_limit() {
    struct Endless(Vec<u8>, usize);
    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = (&self.0[self.1..]).read(buffer)?;
            self.1 = (self.1 + count) % self.0.len();
            Ok(count)
        }
    }
    let limits = Limits { bytes: 1 << 20, entries: 10 };
    let error = canonicalise(Endless(gzip(b""), 0), limits, io::sink()).unwrap_err().to_string();
    assert!(error.contains("over 1 MiB"), "{error}");
}

#[test]
fn a_manifest_is_at_most_64_kib() {
    let long = format!("colour = \"{}\"", "a".repeat(64 << 10));
    let error = publish(&Hostile::default().file("f.py", "").file("ol.toml", &long).bytes());
    assert!(error.unwrap_err().to_string().contains("over 64 KiB"));
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f.py"), "").unwrap();
    fs::write(dir.path().join("ol.yaml"), long).unwrap();
    let error = pack_dir(dir.path(), io::sink()).unwrap_err().to_string();
    assert!(error.contains("over 64 KiB"), "{error}");
}

/// Folders can be deeper than a path can be long.
#[test]
fn a_folder_without_bottom_is_not_packed() {
    let dir = tempfile::tempdir().unwrap();
    let made = std::process::Command::new("python3")
        .args(["-c", "import os\nfor _ in range(5000): os.mkdir('a'); os.chdir('a')"])
        .current_dir(dir.path())
        .status();
    assert!(made.unwrap().success());
    let error = pack_dir(dir.path(), io::sink()).unwrap_err().to_string();
    assert!(error.contains("folders deep"), "{error}");
    // The folder's own Drop would not get to the bottom.
    let removed = std::process::Command::new("rm").arg("-r").arg(dir.path().join("a")).status();
    assert!(removed.unwrap().success());
}

#[test]
fn a_folder_that_cannot_be_packed_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let error = pack_dir(dir.path(), io::sink()).unwrap_err();
    assert!(error.to_string().contains("cannot tell what to run"), "{error}");
    fs::write(dir.path().join("f.py"), "").unwrap();
    fs::write(dir.path().join("ol.toml"), "memory = 3").unwrap();
    let error = pack_dir(dir.path(), io::sink()).unwrap_err();
    assert!(error.to_string().contains("ol.toml, line 1: unknown key \"memory\""), "{error}");
    fs::remove_file(dir.path().join("ol.toml")).unwrap();
    symlink("/etc", dir.path().join("etc")).unwrap();
    let error = pack_dir(dir.path(), io::sink()).unwrap_err();
    assert!(error.to_string().contains("\"etc\" is a link that leads out"), "{error}");
    fs::remove_file(dir.path().join("etc")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let error = pack_dir(dir.path(), io::sink()).unwrap_err();
    assert!(error.to_string().contains("\"socket\" is neither"), "{error}");
}

#[test]
fn not_an_archive_is_refused() {
    for bytes in [&b""[..], b"hello", &[0x1f, 0x8b, 1, 2], &[7; 2000]] {
        assert!(publish(bytes).is_err(), "{bytes:?}");
    }
    let whole = gzip(&Hostile::default().file("f.py", &"ab".repeat(9000)).bytes());
    assert!(publish(&whole[..whole.len() / 2]).is_err(), "half of an archive");
    /// A sender that is gone.
    struct Gone;
    impl Read for Gone {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("gone"))
        }
    }
    for archive in [whole.clone(), Hostile::default().file("f.py", "").bytes()] {
        let cut = canonicalise(Read::chain(&*archive, Gone), Limits::default(), io::sink());
        assert!(matches!(cut, Err(BundleError::Read(_))), "{cut:?}");
    }
}

fn pace(patience_ms: u64, total_ms: u64) -> Pace {
    let ms = std::time::Duration::from_millis;
    Pace { patience: ms(patience_ms), rate: 1 << 20, total: ms(total_ms) }
}

#[tokio::test]
async fn a_stream_is_spooled_as_it_comes() {
    let spool = |chunks, limits| spool(Box::pin(stream::iter(chunks)), limits, Pace::default());
    let chunks = vec![Ok(Bytes::from("ab")), Ok(Bytes::new()), Ok(Bytes::from("cde"))];
    let mut text = String::new();
    spool(chunks, Limits::default()).await.unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "abcde");
    // In many small pieces, which are not held.
    let many = (0..100_000).map(|_| Ok(Bytes::from_static(b"x"))).collect();
    assert_eq!(spool(many, Limits::default()).await.unwrap().metadata().unwrap().len(), 100_000);
    let broken = vec![Ok(Bytes::from("ab")), Err(io::Error::other("gone"))];
    assert_eq!(spool(broken, Limits::default()).await.unwrap_err().to_string(), "gone");
    let limits = Limits { bytes: 1 << 20, entries: 0 };
    let large = (0..5).map(|_| Ok(Bytes::from(vec![0; 256 << 10]))).collect();
    assert!(spool(large, limits).await.unwrap_err().to_string().contains("over 1 MiB"));
}

#[tokio::test]
async fn a_stream_that_is_slow_in_any_way_is_given_up() {
    let silent = stream::pending();
    let error = spool(Box::pin(silent), Limits::default(), pace(50, 10_000)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    // A byte now and then; and all the time, but for ever.
    for (wait_ms, pace) in [(20, pace(100, 60_000)), (0, pace(60_000, 300))] {
        let drops =
            stream::repeat_with(|| Ok(Bytes::from_static(b"x"))).then(move |byte| async move {
                tokio::time::sleep(std::time::Duration::from_millis(wait_ms)).await;
                byte
            });
        let error = spool(Box::pin(drops), Limits::default(), pace).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }
}

proptest! {
    /// Whatever comes, nothing panics and nothing gets out of the folder.
    #[test]
    fn any_bytes_are_refused_or_made_canonical(
        names in proptest::collection::vec("[a-c./]{1,6}", 1..6),
        targets in proptest::collection::vec("[a-c./]{1,6}", 1..6),
        flips in proptest::collection::vec((0usize..4096, any::<u8>()), 0..3),
    ) {
        let mut archive = Hostile::default().file("f.py", "x");
        for (name, target) in names.iter().zip(&targets) {
            archive = if target.len() % 2 == 0 {
                archive.file(name, target)
            } else {
                archive.link(name, target)
            };
        }
        let mut bytes = archive.bytes();
        for (at, value) in flips {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if let Ok((packed, tar)) = publish(&bytes) {
            prop_assert_eq!(publish(&tar).unwrap().0, packed.clone());
            let outer = tempfile::tempdir().unwrap();
            let folder = outer.path().join("folder");
            fs::create_dir(&folder).unwrap();
            unpack(&*tar, &packed.digest, &folder).unwrap();
            prop_assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 1);
            prop_assert_eq!(pack_dir(&folder, io::sink()).unwrap().digest, packed.digest);
        }
    }
}

#[test]
fn what_editors_keep_beside_a_file_is_left_out() {
    for name in [".f.py.swp", ".f.py.swx", "f.py~", ".#f.py", "#f.py#", ".git", "__pycache__"] {
        assert!(is_left_out(name), "{name}");
    }
    for name in ["f.py", "~", "#", "swp", "a.swp", ".env", "a#", "#a"] {
        assert!(!is_left_out(name), "{name}");
    }
    assert!(is_left_out("lib/f.py~") && !is_left_out("lib~/f.py"));
}

#[test]
fn where_a_page_finds_its_function_is_no_part_of_a_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("static");
    fs::create_dir_all(page.join("static")).unwrap();
    fs::write(folder.path().join("f.py"), "def f(event):\n    return event\n").unwrap();
    // Other files of these names are the function's own.
    for own in ["config.json", "config.js", "static/index.html", "static/static/config.js"] {
        fs::write(folder.path().join(own), "{}").unwrap();
    }
    let mut tar = Vec::new();
    let packed = pack_dir(folder.path(), &mut tar).unwrap();
    fs::write(page.join("config.json"), r#"{"url": "http://127.0.0.1:8080/run/f"}"#).unwrap();
    fs::write(page.join("config.js"), "window.OPENLAMBDA = {};").unwrap();
    assert_eq!(pack_dir(folder.path(), io::sink()).unwrap().digest, packed.digest);
    let into = tempfile::tempdir().unwrap();
    unpack(&*tar, &packed.digest, into.path()).unwrap();
    assert!(into.path().join("config.json").exists() && into.path().join("config.js").exists());
    assert!(into.path().join("static/static/config.js").exists());
    assert!(!into.path().join("static/config.js").exists());
}

/// What these files' folder leaves out by its patterns, and what its bundle holds.
fn left_out(files: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in files {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let mut bundle = Vec::new();
    let packed = pack_dir(folder.path(), &mut bundle).unwrap();
    let mut held = Vec::new();
    for entry in tar::Archive::new(&*bundle).entries().unwrap() {
        let entry = entry.unwrap();
        if entry.header().entry_type().is_file() {
            held.push(entry.path().unwrap().display().to_string());
        }
    }
    (packed.left_out, held)
}

#[test]
fn what_is_of_the_author_s_machine_is_left_out_unless_it_is_wanted() {
    let code = ("f.py", "def f(event): pass\n");
    let mess = [
        code,
        (".venv/bin/python", ""),
        (".venv/lib/x.py", ""),
        (".env", "KEY=1"),
        (".env.local", "KEY=1"),
        ("node_modules/.cache/a", ""),
        ("node_modules/left-pad/index.js", ""),
        ("target/debug/f", ""),
        ("lib/target/kept.py", ""),
        (".vscode/settings.json", ""),
        ("sub/.idea/x", ""),
        ("environment.py", ""),
        ("__pycache__/f.pyc", ""),
    ];
    let (out, held) = left_out(&mess);
    let usual = [
        ".env",
        ".env.local",
        ".venv/",
        ".vscode/",
        "node_modules/.cache/",
        "sub/.idea/",
        "target/",
    ];
    assert_eq!(out, usual);
    assert_eq!(
        held,
        ["environment.py", "f.py", "lib/target/kept.py", "node_modules/left-pad/index.js"]
    );

    let own = "# mine\n*.log\n/data/*\n!/data/kept\n!.env\nbuild/\n\\#odd\n";
    let files = [
        code,
        (".olignore", own),
        (".env", ""),
        (".env.local", ""),
        ("a.log", ""),
        ("sub/b.log", ""),
        ("data/big", ""),
        ("data/kept", ""),
        ("sub/build/x", ""),
        ("sub/data/x", ""),
        ("build.py", ""),
        ("#odd", ""),
        (".git/x", ""),
    ];
    let (out, held) = left_out(&files);
    assert_eq!(out, ["#odd", ".env.local", "a.log", "data/big", "sub/b.log", "sub/build/"]);
    assert_eq!(held, [".env", "build.py", "data/kept", "f.py", "sub/data/x"]);
}

#[test]
fn patterns_that_are_none_are_told_with_their_line() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("f.py"), "def f(event): pass\n").unwrap();
    let file = folder.path().join(IGNORE_FILE);
    fs::write(&file, "a\n[z-a]\n").unwrap();
    let error = pack_dir(folder.path(), io::sink()).unwrap_err().to_string();
    assert!(
        error.contains(".olignore") && error.contains("line 2: \"[z-a]\" is no pattern"),
        "{error}"
    );
    fs::write(&file, b"\xff\n").unwrap();
    let error = pack_dir(folder.path(), io::sink()).unwrap_err().to_string();
    assert!(error.contains("is not UTF-8"), "{error}");
    fs::remove_file(&file).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    let error = pack_dir(folder.path(), io::sink()).unwrap_err().to_string();
    assert!(error.contains(".olignore"), "{error}");
    let ignore = Ignore::usual();
    assert!(ignore.leaves_out(".venv", true) && !ignore.leaves_out(".venv", false));
    assert!(ignore.matters(IGNORE_FILE, false) && ignore.leaves_out(IGNORE_FILE, false));
}
