//! What the native registry lets a namespace keep.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::fs;
use std::path::Path;

use openlambda_core::allow::{Allow, Bounds};
use openlambda_core::bundle;
use openlambda_core::function::FunctionName;
use openlambda_core::registry::{Published, RegistryError};
use openlambda_registry::native::Store;

fn open(folder: &Path, bounds: Bounds) -> Store {
    let mut allow = Allow::default();
    allow.namespace.insert("a".to_owned(), bounds);
    Store::open(folder).unwrap().allowing(allow)
}

/// Publishes a function with so many bytes, the same for the same text.
fn publish(
    store: &Store,
    name: &str,
    text: &str,
    bytes: usize,
) -> Result<Published, RegistryError> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("f.py"), format!("# {text}\n")).unwrap();
    fs::write(folder.path().join("data"), vec![0; bytes]).unwrap();
    let mut tar = Vec::new();
    bundle::pack_dir(folder.path(), &mut tar).unwrap();
    let name: FunctionName = name.parse().unwrap();
    store.publish(&name, &*tar)
}

#[track_caller]
fn refused(published: Result<Published, RegistryError>, expected: &str) {
    let error = published.unwrap_err();
    assert!(matches!(error, RegistryError::NotAllowed { .. }), "{error}");
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn a_namespace_keeps_no_more_than_its_quota_and_others_have_theirs() {
    let folder = tempfile::tempdir().unwrap();
    let bounds = Bounds { versions: Some(3), bundles: Some(2), ..Bounds::default() };
    let store = open(folder.path(), bounds.clone());
    publish(&store, "a/f", "one", 0).unwrap();
    publish(&store, "a/g", "two", 0).unwrap();
    refused(
        publish(&store, "a/h", "three", 0),
        "namespace a would have 3 bundles, and the operator",
    );
    // The code of before, as a new version; what is the newest already is none.
    publish(&store, "a/f", "two", 0).unwrap();
    assert!(!publish(&store, "a/f", "two", 0).unwrap().new);
    refused(publish(&store, "a/g", "one", 0), "4 versions, and the operator allows at most 3");
    for n in 0..5 {
        publish(&store, "f", &n.to_string(), 0).unwrap();
        publish(&store, "ab/f", &n.to_string(), 0).unwrap();
    }
    // Nothing of what was refused is there.
    drop(store);
    assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(folder.path().join("blobs")).unwrap().count(), 2 + 5);

    // What an earlier run has stored counts, and what is removed does not.
    let store = open(folder.path(), bounds);
    refused(publish(&store, "a/g", "one", 0), "4 versions, and the operator allows at most 3");
    store.delete(&"a/f".parse().unwrap()).unwrap();
    publish(&store, "a/g", "one", 0).unwrap();
    refused(publish(&store, "a/g", "three", 0), "3 bundles, and the operator allows at most 2");
}

#[test]
fn the_sizes_of_bundles_are_bounded_each_and_together() {
    const MIB: usize = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let bounds = Bounds { bundle_mb: Some(2), stored_mb: Some(3), ..Bounds::default() };
    let store = open(folder.path(), bounds);
    refused(
        publish(&store, "a/f", "large", 2 * MIB),
        "a bundle of 2.0 MiB unpacked, and the operator allows at most 2 MiB (bundle_mb in \
         [allow.namespace.a]); deploy less",
    );
    let most = 2 * MIB - 10_240;
    publish(&store, "a/f", "most", most).unwrap();
    refused(
        publish(&store, "a/g", "more", most),
        "MiB of bundles, and the operator allows at most 3",
    );
    publish(&store, "a/g", "most", most).unwrap();
    publish(&store, "a/h", "less", MIB - 10_240).unwrap();
    publish(&store, "f", "large", 4 * MIB).unwrap();
}

/// Two that publish at once do not both get the last place.
#[test]
fn a_quota_holds_whoever_publishes_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Bounds { versions: Some(5), ..Bounds::default() });
    let published = std::thread::scope(|scope| {
        let publish = |n: usize| {
            let store = &store;
            scope.spawn(move || publish(store, &format!("a/f{n}"), &n.to_string(), 0).is_ok())
        };
        let all: Vec<_> = (0..12).map(publish).collect();
        all.into_iter().map(|one| one.join().unwrap()).filter(|ok| *ok).count()
    });
    assert_eq!(published, 5);
    assert_eq!(store.list().unwrap().len(), 5);
}
