//! A disk that has lost or changed what the native registry has acknowledged.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use openlambda_core::failure::{Failure, FailureKind, chain};
use openlambda_core::function::{Digest, FunctionName, FunctionRef, Version};
use openlambda_core::registry::{Published, Registry, RegistryError, RegistryEvent, Revision};
use openlambda_core::serving::Serving;
use openlambda_registry::native::{NativeRegistry, RemoteRegistry, ServeConfig, Store, serve};
use redb::{ReadableDatabase, ReadableTable};

/// A tar of one file, `f.py`, with this content.
fn tar(content: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f.py"), content).unwrap();
    let mut tar = Vec::new();
    openlambda_core::bundle::pack_dir(dir.path(), &mut tar).unwrap();
    tar
}

async fn publish(registry: &dyn Registry, name: &FunctionName, content: &str) -> Published {
    let tar: Bytes = tar(content).into();
    registry.publish(name, Box::pin(stream::once(async { Ok(tar) }))).await.unwrap()
}

/// What comes of asking for a bundle, in both ways.
async fn read(registry: &dyn Registry, digest: &Digest) -> [Result<(), RegistryError>; 2] {
    let into = tempfile::tempdir().unwrap();
    let fetched = registry.fetch(digest, into.path()).await;
    let streamed = async {
        let mut pieces = registry.get(digest).await?;
        while let Some(piece) = pieces.next().await {
            piece.map_err(RegistryError::of_stream)?;
        }
        Ok(())
    };
    [fetched, streamed.await]
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_bundle_is_told_of_and_healed_by_deploying_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let native = Arc::new(NativeRegistry::new(Store::open(folder.path()).unwrap()));
    let served = Arc::clone(&native);
    let serving = Serving::start(async move |listener, stop| {
        serve(served, listener, ServeConfig::default(), stop).await.unwrap();
    })
    .unwrap();
    let remote = RemoteRegistry::connect(serving.url()).unwrap();
    let name: FunctionName = "f".parse().unwrap();
    let code = "def f(event):\n    return 1\n";
    let first = publish(&*native, &name, code).await;
    let bundle = folder.path().join("blobs").join(format!("{}.tar", first.digest.hex()));
    let whole = fs::read(&bundle).unwrap();
    let spoil: [&dyn Fn(); 6] = [
        &|| flip(&bundle, 0),
        &|| flip(&bundle, 600),
        &|| flip(&bundle, whole.len() - 1),
        &|| fs::write(&bundle, &whole[..512]).unwrap(),
        &|| fs::write(&bundle, "").unwrap(),
        &|| fs::remove_file(&bundle).unwrap(),
    ];
    for (round, spoil) in spoil.iter().enumerate() {
        spoil();
        for registry in [&*native as &dyn Registry, &remote] {
            for answer in read(registry, &first.digest).await {
                let error = answer.unwrap_err();
                assert!(matches!(error, RegistryError::Damaged { .. }), "{round}: {error:?}");
                let failure = Failure::from(error);
                assert_eq!(failure.kind, FailureKind::RegistryUnavailable);
                assert!(failure.message.contains("deploy that code again"), "{}", failure.message);
            }
        }
        let checked = native.store().check().unwrap();
        let damaged: Vec<_> = checked.damaged.into_iter().collect();
        assert_eq!(damaged, [(first.digest, vec!["f:1".to_owned()])], "{round}");
        let again = publish(&remote, &name, code).await;
        assert!(native.store().check().unwrap().is_whole());
        assert_eq!(again, Published { new: false, ..first.clone() });
        for answer in read(&remote, &first.digest).await {
            answer.unwrap();
        }
        assert_eq!(fs::read(&bundle).unwrap(), whole);
    }
    // What no version has is not damaged.
    let unknown = Digest::from_bytes([7; 32]);
    for answer in read(&remote, &unknown).await {
        assert!(matches!(answer, Err(RegistryError::NotFound { .. })), "{answer:?}");
    }
}

/// A store with two functions, and where its tables and bundles are.
fn two_functions() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    for name in ["f", "g"] {
        store.publish(&name.parse().unwrap(), &*tar(name)).unwrap();
    }
    let (tables, bundles) = (folder.path().join("meta.redb"), folder.path().join("blobs"));
    (folder, tables, bundles)
}

#[test]
fn a_store_with_bundles_and_without_tables_does_not_start_and_loses_none() {
    let (folder, tables, bundles) = two_functions();
    let count = || fs::read_dir(&bundles).unwrap().count();
    let whole = fs::read(&tables).unwrap();
    let new = tempfile::tempdir().unwrap();
    drop(redb::Database::create(new.path().join("new.redb")).unwrap());
    let new = fs::read(new.path().join("new.redb")).unwrap();
    let spoil: [&dyn Fn(); 4] = [
        &|| fs::remove_file(&tables).unwrap(),
        &|| fs::write(&tables, "").unwrap(),
        // Tables of which none has been made yet.
        &|| fs::write(&tables, &new).unwrap(),
        &|| fs::write(&tables, &whole[..whole.len() / 2]).unwrap(),
    ];
    for (round, spoil) in spoil.iter().enumerate() {
        for format in [true, false] {
            let said = fs::read(folder.path().join("FORMAT")).unwrap();
            if !format {
                fs::remove_file(folder.path().join("FORMAT")).unwrap();
            }
            spoil();
            let error = Store::open(folder.path()).unwrap_err();
            let text = chain(&error);
            assert!(round == 3 || text.contains("put that file back"), "{round}: {text}");
            assert_eq!(count(), 2, "{round}");
            fs::write(&tables, &whole).unwrap();
            fs::write(folder.path().join("FORMAT"), said).unwrap();
            Store::open(folder.path()).unwrap();
            assert_eq!(count(), 2, "{round}");
        }
    }
}

/// All that a store says: what each name means, and in which versions.
fn said(store: &Store) -> Result<Vec<(String, Digest)>, RegistryError> {
    let mut said = Vec::new();
    for text in ["f", "f:1", "f:2", "f:live", "team/g"] {
        let resolved = store.resolve(&text.parse::<FunctionRef>().unwrap())?;
        said.push((format!("{text} {}", resolved.version), resolved.digest));
    }
    for name in ["f", "team/g"] {
        for info in store.versions(&name.parse().unwrap())? {
            said.push((format!("{name} {}", info.version), info.digest));
        }
    }
    for listing in store.list()? {
        said.push((format!("{} {:?}", listing.name, listing.aliases), listing.digest));
    }
    Ok(said)
}

/// A store with versions, an alias, and a function that was deleted; and what it says.
fn filled() -> (tempfile::TempDir, Vec<(String, Digest)>) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let name = |text: &str| text.parse::<FunctionName>().unwrap();
    for (function, code) in
        [("f", "1"), ("f", "2"), ("team/g", "3"), ("gone", "4"), ("gone", "5"), ("f", "1")]
    {
        store.publish(&name(function), &*tar(code)).unwrap();
    }
    store.set_alias(&name("f"), "live", Some(Version(2)), None).unwrap();
    store.delete(&name("gone")).unwrap();
    let said = said(&store).unwrap();
    (folder, said)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

fn count(folder: &Path) -> usize {
    fs::read_dir(folder.join("blobs")).unwrap().count()
}

/// Bits all over the tables, one at a time: there may be an error, but never another answer, and no bundle
/// goes. Afterwards the tables are made anew, and say all that they did.
#[test]
fn a_flipped_bit_in_the_tables_is_found_and_they_are_made_anew() {
    let (folder, expected) = filled();
    let bundles = count(folder.path());
    let tables = fs::read(folder.path().join("meta.redb")).unwrap();
    let used: Vec<usize> = (0..tables.len()).filter(|at| tables[*at] != 0).collect();
    // Most bytes are of pages that are not used any more; these are of a row, in whichever page it is.
    let row = {
        let rows = redb::TableDefinition::<(&str, u64), &[u8]>::new("versions");
        let database = redb::Database::open(folder.path().join("meta.redb")).unwrap();
        let table = database.begin_read().unwrap().open_table(rows).unwrap();
        table.get(("f", 2)).unwrap().unwrap().value().to_vec()
    };
    let copies: Vec<usize> =
        (0..tables.len() - row.len()).filter(|at| tables[*at..].starts_with(&row)).collect();
    assert!(!copies.is_empty());
    let anywhere = used.iter().step_by(used.len().div_ceil(80)).map(|at| (vec![*at], false));
    let in_the_row = (0..row.len()).step_by(23);
    let in_the_row = in_the_row.map(|n| (copies.iter().map(|at| at + n).collect(), true));
    for (n, (places, is_found)) in anywhere.chain(in_the_row).enumerate() {
        let at = &places[0];
        let place = tempfile::tempdir().unwrap();
        copy(folder.path(), place.path());
        let mut spoilt = tables.clone();
        for at in &places {
            spoilt[*at] ^= 1 << (n % 8);
        }
        fs::write(place.path().join("meta.redb"), spoilt).unwrap();
        // redb panics where a page makes no sense; the daemon does not start then.
        let answer = std::panic::catch_unwind(|| {
            let store = Store::open(place.path()).map_err(|error| chain(&error))?;
            said(&store).map_err(|error| chain(&error))
        });
        if let Ok(Ok(said)) = answer {
            assert!(said == expected && !is_found, "byte {at}: {said:?}");
        }
        assert_eq!(count(place.path()), bundles, "byte {at}");
        let rebuilt = Store::rebuild(place.path()).unwrap();
        assert_eq!((rebuilt.functions, rebuilt.versions), (2, 4));
        assert!(rebuilt.damaged.is_empty() && rebuilt.missing.is_empty(), "{rebuilt:?}");
        assert_eq!(said(&Store::open(place.path()).unwrap()).unwrap(), expected, "byte {at}");
    }
}

#[test]
fn tables_that_are_lost_are_made_anew_and_no_number_is_used_again() {
    let (folder, expected) = filled();
    let gone: FunctionName = "gone".parse().unwrap();
    for round in 0..3 {
        let store = Store::open(folder.path()).unwrap();
        let error = chain(&Store::rebuild(folder.path()).unwrap_err());
        assert!(error.contains("in use by another process"), "{error}");
        let revision = store.events().last();
        drop(store);
        match round {
            0 => fs::remove_file(folder.path().join("meta.redb")).unwrap(),
            1 => fs::write(folder.path().join("meta.redb"), "no tables at all").unwrap(),
            _ => fs::write(folder.path().join("meta.redb"), "").unwrap(),
        }
        let error = chain(&Store::open(folder.path()).unwrap_err());
        assert!(round == 1 || error.contains("`ol registry rebuild`"), "{error}");
        let rebuilt = Store::rebuild(folder.path()).unwrap();
        assert_eq!(rebuilt.before.is_some(), round > 0);
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(said(&store).unwrap(), expected);
        assert_eq!(store.events().last(), revision);
        let published = store.publish(&gone, &*tar("6")).unwrap();
        assert_eq!(published.version, Version(3 + round));
        store.delete(&gone).unwrap();
    }
}

/// A copy of the tables from before would have the later bundles removed.
#[test]
fn tables_that_are_older_than_what_was_acknowledged_are_refused() {
    let (folder, _) = filled();
    let tables = folder.path().join("meta.redb");
    let old = fs::read(&tables).unwrap();
    let store = Store::open(folder.path()).unwrap();
    let name: FunctionName = "f".parse().unwrap();
    for code in ["7", "8"] {
        store.publish(&name, &*tar(code)).unwrap();
    }
    let expected = said(&store).unwrap();
    drop(store);
    let bundles = count(folder.path());
    fs::write(&tables, old).unwrap();
    let error = chain(&Store::open(folder.path()).unwrap_err());
    assert!(error.contains("put the last meta.redb back"), "{error}");
    assert_eq!(count(folder.path()), bundles);
    Store::rebuild(folder.path()).unwrap();
    assert_eq!(said(&Store::open(folder.path()).unwrap()).unwrap(), expected);
}

/// While something is wrong with the tables, what is whole is read, and nothing is changed.
#[test]
fn with_a_damaged_row_the_rest_is_read_and_nothing_is_changed() {
    let (folder, _) = filled();
    let rows: redb::TableDefinition<'_, (&str, u64), &[u8]> =
        redb::TableDefinition::new("versions");
    let database = redb::Database::open(folder.path().join("meta.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut table = transaction.open_table(rows).unwrap();
        let mut row = table.get(("f", 2)).unwrap().unwrap().value().to_vec();
        // A digit of its digest.
        row[20] ^= 1;
        table.insert(("f", 2), &*row).unwrap();
    }
    transaction.commit().unwrap();
    drop(database);
    let store = Store::open(folder.path()).unwrap();
    let resolve = |text: &str| store.resolve(&text.parse().unwrap());
    assert!(resolve("f").is_ok() && resolve("team/g").is_ok());
    let error = resolve("f:2").unwrap_err();
    assert!(matches!(error, RegistryError::Damaged { .. }), "{error:?}");
    assert!(chain(&error).contains("entry for version 2 of f is damaged"), "{}", chain(&error));
    let error = chain(&store.delete(&"team/g".parse().unwrap()).unwrap_err());
    assert!(error.contains("nothing can be changed") && error.contains("rebuild"), "{error}");
    drop(store);
    Store::rebuild(folder.path()).unwrap();
    let store = Store::open(folder.path()).unwrap();
    store.delete(&"team/g".parse().unwrap()).unwrap();
    assert_eq!(store.resolve(&"f:live".parse().unwrap()).unwrap().version, Version(2));
}

/// The network is gone without a word: what was connected stays, and nothing passes.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_whose_connection_died_without_a_word_goes_on_over_another() {
    let folder = tempfile::tempdir().unwrap();
    let native = Arc::new(NativeRegistry::new(Store::open(folder.path()).unwrap()));
    let served = Arc::clone(&native);
    let serving = Serving::start(async move |listener, stop| {
        serve(served, listener, ServeConfig::default(), stop).await.unwrap();
    })
    .unwrap();
    let server = serving.url().strip_prefix("http://").unwrap().to_owned();
    let between = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", between.local_addr().unwrap());
    // Those that were made by then do not pass anything on any more.
    let dead = tokio_util::sync::CancellationToken::new();
    let silent = dead.clone();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = between.accept().await.unwrap();
            let mut server = tokio::net::TcpStream::connect(&*server).await.unwrap();
            let until = if silent.is_cancelled() { None } else { Some(silent.clone()) };
            tokio::spawn(async move {
                let Some(until) = until else {
                    drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
                    return;
                };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    () = until.cancelled() => std::future::pending::<()>().await,
                }
            });
        }
    });
    let name: FunctionName = "f".parse().unwrap();
    let remote = RemoteRegistry::connect(&url).unwrap();
    let mut watch = remote.watch(Revision::NOW);
    assert!(matches!(watch.next().await, Some(RegistryEvent::Lagged { .. })));
    publish(&*native, &name, "1").await;
    assert!(matches!(watch.next().await, Some(RegistryEvent::Published { .. })));
    dead.cancel();
    publish(&*native, &name, "2").await;
    // Far below the 30 s for which a name's meaning may be used without asking.
    let told = tokio::time::timeout(std::time::Duration::from_secs(15), watch.next()).await;
    assert!(
        matches!(told, Ok(Some(RegistryEvent::Published { version: Version(2), .. }))),
        "{told:?}"
    );
}

/// Functions that were deleted share one file. A crash between it and the tables costs neither a function nor a
/// number.
#[test]
fn deleted_functions_share_one_file_and_a_crash_between_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let files = || {
        let entries = fs::read_dir(folder.path().join("functions")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let names: Vec<FunctionName> = (0..20).map(|n| format!("f{n}").parse().unwrap()).collect();
    let store = Store::open(folder.path()).unwrap();
    for name in &names {
        store.publish(name, &*tar("1")).unwrap();
    }
    let alive = fs::read(folder.path().join("functions/default:f0.json")).unwrap();
    for name in &names[..19] {
        store.delete(name).unwrap();
    }
    assert_eq!(files(), ["default:f19.json", "deleted.json"]);
    drop(store);
    let deleted = folder.path().join("functions/deleted.json");
    // Its own file had not gone yet.
    fs::write(folder.path().join("functions/default:f0.json"), &alive).unwrap();
    Store::open(folder.path()).unwrap();
    assert_eq!(files(), ["default:f19.json", "deleted.json"]);
    // The file of the deleted ones is damaged, and then lost.
    flip(&deleted, 30);
    Store::open(folder.path()).unwrap();
    let whole = fs::read(&deleted).unwrap();
    fs::remove_file(&deleted).unwrap();
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(fs::read(&deleted).unwrap(), whole);
    // A deletion is in the files, and not yet in the tables.
    let last = &names[19];
    drop(store);
    let tables = fs::read(folder.path().join("meta.redb")).unwrap();
    Store::open(folder.path()).unwrap().delete(last).unwrap();
    assert_eq!(files(), ["deleted.json"]);
    fs::write(folder.path().join("meta.redb"), tables).unwrap();
    for _ in 0..2 {
        let store = Store::open(folder.path()).unwrap();
        let latest = FunctionRef::latest(last.clone());
        assert_eq!(store.resolve(&latest).unwrap().version, Version(1));
        assert_eq!(files(), ["default:f19.json", "deleted.json"]);
        drop(store);
        fs::remove_file(folder.path().join("meta.redb")).unwrap();
        Store::rebuild(folder.path()).unwrap();
    }
    let store = Store::open(folder.path()).unwrap();
    // One that lives again has a file again, with numbers that go on.
    for version in 2..4 {
        let published = store.publish(&names[0], &*tar("1")).unwrap();
        assert_eq!(published.version, Version(version));
        assert_eq!(files(), ["default:f0.json", "default:f19.json", "deleted.json"]);
        store.delete(&names[0]).unwrap();
    }
    assert_eq!(files(), ["default:f19.json", "deleted.json"]);
}
