//! Stores that other releases wrote, and registries of other releases at the other end of gRPC.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use openlambda_core::bundle;
use openlambda_core::function::{FunctionName, FunctionRef, Version};
use openlambda_core::registry::{Registry, RegistryError};
use openlambda_registry::native::{NativeRegistry, RemoteRegistry, Store, StoreError};
use redb::{Database, TableDefinition};
use tempfile::TempDir;

const FACTS: TableDefinition<'_, &str, u64> = TableDefinition::new("facts");

/// The store in the data folder that the last release without `FORMAT` files wrote; see
/// `make-data-folder.sh` beside it.
fn unpacked() -> (TempDir, PathBuf) {
    let packed =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../bins/tests/fixtures/data-folder-1.tar.gz");
    let dir = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar");
    let tar = tar.arg("-C").arg(dir.path()).arg("-xzf").arg(packed).arg("data/registry");
    assert!(tar.status().unwrap().success());
    let store = dir.path().join("data/registry");
    (dir, store)
}

fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tree(&path));
            found.insert(path, Vec::new());
        } else {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

fn reference(text: &str) -> FunctionRef {
    text.parse().unwrap()
}

async fn all_is_there(store: Store) {
    let registry = NativeRegistry::new(store);
    let list = registry.list().await.unwrap();
    let names: Vec<String> = list.iter().map(|listing| listing.name.to_string()).collect();
    assert_eq!(names, ["greet", "team/notes"]);
    assert_eq!(list[0].version, Version(3));
    assert_eq!(list[0].aliases, BTreeMap::from([("live".to_owned(), Version(2))]));
    let greet: FunctionName = "greet".parse().unwrap();
    let mut versions = registry.versions(&greet).await.unwrap();
    versions.sort_by_key(|version| version.version);
    assert_eq!(versions.len(), 3);
    assert!(versions.iter().all(|version| version.bytes.is_some()));
    assert_eq!(versions[0].digest, versions[2].digest);
    let live = registry.resolve(&reference("greet:live")).await.unwrap();
    assert_eq!((live.version, live.digest), (Version(2), versions[1].digest));
    let notes = registry.resolve(&reference("team/notes")).await.unwrap();
    assert_eq!(notes.manifest.memory_mb, 96);
    assert_eq!(notes.manifest.volumes[0].name, "kept");

    // The bundles are what their digests say, and packing what is in them gives the same ones.
    for digest in [versions[0].digest, live.digest, notes.digest] {
        let folder = tempfile::tempdir().unwrap();
        let into = folder.path().join("code");
        fs::create_dir(&into).unwrap();
        registry.fetch(&digest, &into).await.unwrap();
        assert!(into.join("f.py").exists());
        assert_eq!(bundle::pack_dir(&into, std::io::sink()).unwrap().digest, digest);
    }
}

#[tokio::test]
async fn the_store_of_an_earlier_release_opens_with_all_that_is_in_it() {
    // Also after a crash at each step of marking it: before, in the middle, after.
    let (_dir, store) = unpacked();
    for left in [None, Some(""), Some("{\"kind\":\"regi")] {
        let _ = fs::remove_file(store.join("FORMAT"));
        if let Some(left) = left {
            fs::write(store.join("FORMAT.new"), left).unwrap();
        }
        all_is_there(Store::open(&store).unwrap()).await;
        let said = fs::read_to_string(store.join("FORMAT")).unwrap();
        assert!(said.starts_with(r#"{"kind":"registry store","format":2,"release":""#), "{said}");
        assert!(!store.join("FORMAT.new").exists());
        all_is_there(Store::open(&store).unwrap()).await;
    }
}

#[tokio::test]
async fn the_store_of_a_later_release_is_refused_and_left_as_it_is() {
    let (_dir, store) = unpacked();
    let said = r#"{"kind": "registry store", "format": 3, "release": "9.9.9"}"#;
    fs::write(store.join("FORMAT"), said).unwrap();
    // Nothing else is looked at: it may be kept in other files.
    fs::remove_file(store.join("meta.redb")).unwrap();
    fs::write(store.join("meta.next"), "what later releases keep their tables in").unwrap();
    let before = tree(&store);
    let error = Store::open(&store).unwrap_err();
    assert!(matches!(error, StoreError::Format(_)), "{error:?}");
    assert!(error.to_string().contains("format 3, written by release 9.9.9"), "{error}");
    assert_eq!(tree(&store), before);
}

/// A crash of a later release, between its tables and the file: or somebody removed the file.
#[tokio::test]
async fn tables_of_a_later_release_are_refused_and_keep_what_is_in_them() {
    let (_dir, store) = unpacked();
    let set = |format: u64| {
        let database = Database::open(store.join("meta.redb")).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(FACTS).unwrap().insert("format", format).unwrap();
        transaction.commit().unwrap();
    };
    set(3);
    let names = |tree: BTreeMap<PathBuf, Vec<u8>>| tree.into_keys().collect::<Vec<_>>();
    let before = names(tree(&store));
    let error = Store::open(&store).unwrap_err().to_string();
    assert!(error.contains("format 3, written by a later release"), "{error}");
    assert_eq!(names(tree(&store)), before);
    set(1);
    all_is_there(Store::open(&store).unwrap()).await;
}

/// Its bundles would be taken for what a crash has left.
#[tokio::test]
async fn a_store_that_has_lost_its_tables_keeps_its_bundles() {
    let (dir, store) = unpacked();
    drop(Store::open(&store).unwrap());
    let elsewhere = dir.path().join("meta.redb");
    fs::rename(store.join("meta.redb"), &elsewhere).unwrap();
    let before = tree(&store);
    let error = Store::open(&store).unwrap_err().to_string();
    assert!(error.contains("has lost its meta.redb"), "{error}");
    assert_eq!(tree(&store), before);
    fs::rename(&elsewhere, store.join("meta.redb")).unwrap();
    all_is_there(Store::open(&store).unwrap()).await;
}

/// It knows no request of this version of the protocol.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_another_protocol_is_told_from_one_that_is_away() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = tonic::service::Routes::default();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tonic::transport::Server::builder().add_routes(routes);
    let server = tokio::spawn(server.serve_with_incoming(incoming));
    let registry = RemoteRegistry::connect(&format!("http://{address}")).unwrap();
    let error = registry.resolve(&reference("greet")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unsupported(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("openlambda.registry.v1") && text.contains("same release"), "{text}");
    server.abort();
}
