//! A disk that takes nothing more for a while. In a process of its own: the limit that plays the full
//! disk is the whole process's.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::collections::BTreeMap;

use openlambda_core::failure::chain;
use openlambda_core::function::{FunctionName, FunctionRef, Version};
use openlambda_core::registry::{Registry, RegistryError};
use openlambda_registry::native::{NativeRegistry, Store};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// `SIGXFSZ` would end us where a write is refused.
const TOO_LARGE: i32 = 25;

/// A tar of one file, `f.py`, with this content.
fn tar(content: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f.py"), content).unwrap();
    let mut tar = Vec::new();
    openlambda_core::bundle::pack_dir(dir.path(), &mut tar).unwrap();
    tar
}

fn publish(store: &Store, name: &FunctionName, content: &str) -> Result<Version, RegistryError> {
    store.publish(name, &*tar(content)).map(|published| published.version)
}

#[tokio::test]
async fn a_store_takes_changes_again_as_soon_as_the_disk_does() {
    let _ignored = signal(SignalKind::from_raw(TOO_LARGE)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let name: FunctionName = "f".parse().unwrap();
    let latest = FunctionRef::latest(name.clone());
    assert_eq!(publish(&store, &name, "a").unwrap(), Version(1));
    let before = getrlimit(Resource::Fsize);
    for round in 0..3u64 {
        let (last, next) = (Version(1 + 2 * round), Version(2 + 2 * round));
        // Small files go through, and nothing behind this in the tables' file.
        setrlimit(Resource::Fsize, Rlimit { current: Some(20 << 10), ..before }).unwrap();
        for _ in 0..3 {
            let error = publish(&store, &name, &format!("full {round}")).unwrap_err();
            assert!(matches!(error, RegistryError::Storage(_)), "{error:?}");
            let text = chain(&error);
            assert!(text.contains("File too large") && !text.contains("re-open"), "{text}");
            let error = store.delete(&name).unwrap_err();
            assert!(matches!(error, RegistryError::Storage(_)), "{error:?}");
            // What is known is still read.
            assert_eq!(store.resolve(&latest).unwrap().version, last);
        }
        setrlimit(Resource::Fsize, before).unwrap();
        let changed =
            store.set_alias(&name, "live", Some(last), (round > 0).then(|| Version(last.0 - 2)));
        changed.unwrap();
        assert_eq!(publish(&store, &name, &format!("full {round}")).unwrap(), next);
        assert_eq!(publish(&store, &name, &format!("again {round}")).unwrap(), Version(next.0 + 1));
    }
    // Bundles of changes that failed are gone, and those of others are there.
    assert_eq!(std::fs::read_dir(dir.path().join("blobs")).unwrap().count(), 7);
    drop(store);
    let registry = NativeRegistry::new(Store::open(dir.path()).unwrap());
    let list = registry.list().await.unwrap();
    assert_eq!(list[0].version, Version(7));
    assert_eq!(list[0].aliases, BTreeMap::from([("live".to_owned(), Version(5))]));
    assert_eq!(registry.versions(&name).await.unwrap().len(), 7);
}
