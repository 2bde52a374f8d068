//! What every kind of registry must do: [`suite`].
//!
//! A kind brings a [`Fixture`], which makes empty registries, and says what the kind cannot do by its
//! nature; then the suite demands errors that say so.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::bundle::{self, Packed};
use crate::function::{Digest, FunctionName, FunctionRef, Version};
use crate::registry::{
    Bundle, BundleStream, Published, Registry, RegistryError, RegistryEvent, Resolved, Revision,
};

/// What a kind of registry brings to the suite.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// A fresh registry without functions. One is in use at a time.
    async fn empty(&self) -> Arc<dyn Registry>;

    /// The registry that `empty` made last, closed and opened again; `None` for a kind that keeps
    /// nothing. The suite has dropped its handles before.
    async fn reopened(&self) -> Option<Arc<dyn Registry>>;

    /// Whether it keeps the versions of a function beside the newest. Aliases need them.
    fn keeps_versions(&self) -> bool {
        true
    }
}

/// Runs everything below. Must run on a runtime with several threads.
///
/// # Panics
///
/// When the kind breaks the contract.
pub async fn suite(fixture: &dyn Fixture) {
    what_is_published_is_found(fixture).await;
    a_bundle_goes_from_one_registry_to_another(fixture).await;
    a_bundle_in_one_chunk_is_taken(fixture).await;
    versions_grow(fixture).await;
    what_is_not_there_is_not_found(fixture).await;
    functions_are_listed(fixture).await;
    versions_are_listed(fixture).await;
    deleting_forgets_all_but_the_numbers(fixture).await;
    aliases_are_compared_and_set(fixture).await;
    changes_are_told_in_order(fixture).await;
    bad_bundles_are_refused(fixture).await;
    many_publish_at_once(fixture).await;
    what_was_acknowledged_is_kept(fixture).await;
}

/// Name, version and digest lead to the bundle, byte for byte.
pub async fn what_is_published_is_found(fixture: &dyn Fixture) {
    let registry = fixture.empty().await;
    for text in ["echo", "team/echo"] {
        let name = name(text);
        let (packed, tar) = function(text);
        let published = publish(&*registry, &name, tar).await.expect("a valid bundle");
        assert!(published.new);
        assert_eq!(published.digest, packed.digest, "the digest is not the canonical tar's");
        let by_version = format!("{text}:{}", published.version);
        let by_digest = format!("{text}@{}", published.digest);
        for reference in [text, &by_version, &by_digest] {
            let resolved = resolve(&*registry, reference).await.expect("it was published");
            let mut expected = Resolved::new(
                name.clone(),
                published.version,
                packed.digest,
                packed.manifest.clone(),
            );
            expected.born = resolved.born;
            assert_eq!(resolved, expected, "{reference}");
            assert!(resolved.born.is_none_or(|born| born == published.version), "{reference}");
        }
        fetches(&*registry, &packed.digest).await;
    }
}

/// What `get` gives is the canonical tar, and what it stands for can be `put` under another name.
pub async fn a_bundle_goes_from_one_registry_to_another(fixture: &dyn Fixture) {
    let registry = fixture.empty().await;
    let (packed, tar) = function("f");
    publish(&*registry, &name("f"), tar.clone()).await.expect("a valid bundle");
    let bundle = registry.get(&packed.digest).await.expect("it was published");
    let pieces: Vec<Bytes> = bundle.try_collect().await.expect("it is whole");
    assert!(pieces.concat() == tar, "what was given is not the canonical tar");
    let bundle = Bundle::of(&*tar, bundle::Limits::default()).expect("a valid bundle");
    let put = registry.put(&name("g"), bundle).await.expect("a valid bundle");
    assert_eq!((put.digest, put.new), (packed.digest, true));
    let again = Bundle::of(&*tar, bundle::Limits::default()).expect("a valid bundle");
    let again = registry.put(&name("g"), again).await.expect("a valid bundle");
    assert_eq!(again, Published { new: false, ..put.clone() });
    let resolved = resolve(&*registry, "g").await.expect("it was put");
    assert_eq!((resolved.version, resolved.manifest), (put.version, packed.manifest));
    fetches(&*registry, &packed.digest).await;
}

/// How large a chunk of the stream is, is the sender's choice: here a whole bundle of 6 MiB.
pub async fn a_bundle_in_one_chunk_is_taken(fixture: &dyn Fixture) {
    let registry = fixture.empty().await;
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("f.py"), "def f(event):\n    return event\n").expect("a file");
    fs::write(folder.path().join("large"), vec![b'x'; 6 << 20]).expect("a file");
    let mut tar = Vec::new();
    let packed = bundle::pack_dir(folder.path(), &mut tar).expect("a valid function");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(&tar).expect("memory is enough");
    let bytes = encoder.finish().expect("memory is enough");
    let chunk = stream::iter([Ok(Bytes::from(bytes))]);
    registry.publish(&name("f"), Box::pin(chunk)).await.expect("a valid bundle");
    fetches(&*registry, &packed.digest).await;
}

/// A bundle is published once; another one gets a higher number, and the older stays what it was.
pub async fn versions_grow(fixture: &dyn Fixture) {
    let registry = fixture.empty().await;
    let name = name("f");
    let first = publish(&*registry, &name, function("one").1).await.expect("a valid bundle");
    let again = publish(&*registry, &name, function("one").1).await.expect("a valid bundle");
    assert_eq!(again, Published { new: false, ..first.clone() });
    let second = publish(&*registry, &name, function("two").1).await.expect("a valid bundle");
    assert!(second.new && second.version > first.version);
    assert_eq!(resolve(&*registry, "f").await.expect("there").version, second.version);
    let old = resolve(&*registry, &format!("f:{}", first.version)).await;
    if fixture.keeps_versions() {
        assert_eq!(old.expect("it is kept").digest, first.digest);
        fetches(&*registry, &first.digest).await;
        // What was a version before is a new one when another came between.
        let back = publish(&*registry, &name, function("one").1).await.expect("a valid bundle");
        assert!(back.new && back.version > second.version && back.digest == first.digest);
        let by_digest = resolve(&*registry, &format!("f@{}", first.digest)).await;
        assert_eq!(by_digest.expect("there").version, back.version, "the newest of that digest");
    } else {
        not_found(old, "an old version");
    }
}

/// Errors name what was looked for.
pub async fn what_is_not_there_is_not_found(fixture: &dyn Fixture) {
    let registry = fixture.empty().await;
    not_found(resolve(&*registry, "nothing").await, "an unknown name");
    publish(&*registry, &name("f"), function("f").1).await.expect("a valid bundle");
    let zeros = Digest::from_bytes([0; 32]);
    for reference in ["f:0", "f:999999999999999999", "f:live", &format!("f@{zeros}"), "team/f"] {
        not_found(resolve(&*registry, reference).await, reference);
    }
    let into = tempfile::tempdir().expect("a folder");
    not_found(registry.fetch(&zeros, into.path()).await, "an unknown digest");
    not_found(registry.get(&zeros).await.map(drop), "an unknown digest");
    not_found(registry.delete(&name("nothing")).await, "an unknown name");
}

/// In order of their names, each once.
pub async fn functions_are_listed(fixture: &dyn Fixture) {
    let registry = fixture.empty().await;
    assert_eq!(registry.list().await.expect("a list"), []);
    for text in ["b", "team/a", "a", "a"] {
        publish(&*registry, &name(text), function(text).1).await.expect("a valid bundle");
    }
    let list = registry.list().await.expect("a list");
    let mut expected = ["a", "b", "team/a"].map(name);
    expected.sort();
    assert_eq!(list.iter().map(|listing| &listing.name).collect::<Vec<_>>(), expected.each_ref());
    for listing in list {
        let resolved = registry.resolve(&FunctionRef::latest(listing.name)).await.expect("listed");
        assert_eq!((listing.version, listing.digest), (resolved.version, resolved.digest));
    }
}

/// The oldest first, each as it resolves; the last is what the name alone means.
pub async fn versions_are_listed(fixture: &dyn Fixture) {
    let registry = fixture.empty().await;
    let name = name("f");
    not_found(registry.versions(&name).await, "the versions of an unknown name");
    let mut published = Vec::new();
    // The first text again is a version of its own, unless it is the newest already.
    for text in ["one", "two", "two", "one"] {
        published.push(publish(&*registry, &name, function(text).1).await.expect("valid"));
    }
    published.retain(|published| published.new);
    if !fixture.keeps_versions() {
        published.drain(..published.len() - 1);
    }
    let versions = registry.versions(&name).await.expect("it is there");
    let expected: Vec<_> = published.iter().map(|p| (p.version, p.digest)).collect();
    assert_eq!(versions.iter().map(|v| (v.version, v.digest)).collect::<Vec<_>>(), expected);
    for version in &versions {
        let resolved = resolve(&*registry, &format!("f:{}", version.version)).await;
        assert_eq!(resolved.expect("it is listed").digest, version.digest);
        let size = function("one").0.bytes;
        assert!(version.bytes.is_none_or(|bytes| bytes == size), "{version:?}: not {size} bytes");
    }
    assert!(
        versions.is_sorted_by_key(|version| version.published_ms),
        "a later version was published earlier: {versions:?}"
    );
    registry.delete(&name).await.expect("it is there");
    not_found(registry.versions(&name).await, "the versions of a deleted name");
}

/// A deleted function is gone with its versions and aliases; a later one of its name goes on
/// counting.
pub async fn deleting_forgets_all_but_the_numbers(fixture: &dyn Fixture) {
    let registry = fixture.empty().await;
    let name = name("f");
    let first = publish(&*registry, &name, function("f").1).await.expect("a valid bundle");
    if fixture.keeps_versions() {
        set_alias(&*registry, "live", Some(first.version), None).await.expect("it was not there");
    }
    let first_life = resolve(&*registry, "f").await.expect("it is there").born;
    registry.delete(&name).await.expect("it is there");
    for reference in ["f", &format!("f:{}", first.version), "f:live"] {
        not_found(resolve(&*registry, reference).await, reference);
    }
    assert_eq!(registry.list().await.expect("a list"), []);
    let into = tempfile::tempdir().expect("a folder");
    not_found(registry.fetch(&first.digest, into.path()).await, "a deleted bundle");
    not_found(registry.delete(&name).await, "a deleted name");
    let second = publish(&*registry, &name, function("f").1).await.expect("a valid bundle");
    assert!(second.new && second.version > first.version, "{first:?}, {second:?}");
    fetches(&*registry, &second.digest).await;
    not_found(resolve(&*registry, "f:live").await, "an alias of the deleted function");
    publish(&*registry, &name, function("g").1).await.expect("a valid bundle");
    let second_life = resolve(&*registry, "f").await.expect("it is there").born;
    if first_life.is_some() {
        assert_eq!((first_life, second_life), (Some(first.version), Some(second.version)));
    }
}

/// An alias changes only if it points where the caller believes.
pub async fn aliases_are_compared_and_set(fixture: &dyn Fixture) {
    let registry = fixture.empty().await;
    let name = name("f");
    let one = publish(&*registry, &name, function("one").1).await.expect("a valid bundle").version;
    if !fixture.keeps_versions() {
        let refused = set_alias(&*registry, "live", Some(one), None).await;
        assert!(matches!(refused, Err(RegistryError::Unsupported(_))), "{refused:?}");
        return;
    }
    let two = publish(&*registry, &name, function("two").1).await.expect("a valid bundle").version;
    set_alias(&*registry, "live", Some(one), None).await.expect("it was not there");
    assert_eq!(resolve(&*registry, "f:live").await.expect("there").version, one);
    for expected in [None, Some(two)] {
        let error = set_alias(&*registry, "live", Some(two), expected).await;
        let at = Some(one);
        assert!(
            matches!(&error, Err(RegistryError::Conflict { alias, at: found }) if alias == "live" && *found == at),
            "{error:?}"
        );
    }
    set_alias(&*registry, "live", Some(two), Some(one)).await.expect("it points there");
    assert_eq!(resolve(&*registry, "f:live").await.expect("there").version, two);
    let aliases = registry.list().await.expect("a list").remove(0).aliases;
    assert_eq!(aliases.into_iter().collect::<Vec<_>>(), [("live".to_owned(), two)]);
    let unknown = Some(Version(two.0 + 100));
    not_found(set_alias(&*registry, "live", unknown, Some(two)).await, "an unknown version");
    set_alias(&*registry, "live", None, Some(two)).await.expect("it points there");
    not_found(resolve(&*registry, "f:live").await, "a removed alias");
    for bad in ["1", "1a", "", "a/b"] {
        let refused = set_alias(&*registry, bad, Some(one), None).await;
        assert!(refused.is_err(), "{bad:?} is no alias");
    }
    // Of many who believe the same, one is right.
    let races = (0..8).map(|_| set_alias(&*registry, "race", Some(one), None));
    let won = join_all(races).await.into_iter().filter(Result::is_ok).count();
    assert_eq!(won, 1);
}

/// Every change is told, in order, to who watches from before it.
pub async fn changes_are_told_in_order(fixture: &dyn Fixture) {
    let registry = fixture.empty().await;
    let name = name("f");
    publish(&*registry, &name, function("zero").1).await.expect("a valid bundle");
    // Watching may begin a little later: publish until a change is seen at once.
    let mut watch = registry.watch(Revision::NOW);
    let start = 'begun: {
        for n in 0..100 {
            let last = publish(&*registry, &name, function(&n.to_string()).1).await.expect("valid");
            let soon = Duration::from_millis(200);
            while let Ok(Some(event)) = tokio::time::timeout(soon, watch.next()).await {
                match event {
                    RegistryEvent::Published { revision, version, .. } => {
                        if version == last.version {
                            break 'begun revision;
                        }
                    }
                    RegistryEvent::Lagged { .. } => {}
                    other => panic!("{other:?} was not done"),
                }
            }
        }
        panic!("100 publications were not told");
    };
    let second = publish(&*registry, &name, function("second").1).await.expect("a valid bundle");
    if fixture.keeps_versions() {
        set_alias(&*registry, "live", Some(second.version), None).await.expect("not there");
    }
    registry.delete(&name).await.expect("it is there");
    // One who was there and one who comes back to where it was see the same.
    let mut again = registry.watch(start);
    for watch in [&mut watch, &mut again] {
        let mut revision = start;
        let mut told = Vec::new();
        for _ in 0..if fixture.keeps_versions() { 3 } else { 2 } {
            let event = next(watch).await;
            assert!(event.revision() > revision, "{event:?} after {revision:?}");
            revision = event.revision();
            told.push(match event {
                RegistryEvent::Published { name, version, digest, .. } => {
                    assert_eq!((version, digest), (second.version, second.digest));
                    format!("published {name}")
                }
                RegistryEvent::Aliased { name, alias, version, .. } => {
                    assert_eq!(version, Some(second.version));
                    format!("aliased {name}:{alias}")
                }
                RegistryEvent::Deleted { name, .. } => format!("deleted {name}"),
                other => panic!("{other:?} was not done"),
            });
        }
        let expected: &[&str] = match fixture.keeps_versions() {
            true => &["published f", "aliased f:live", "deleted f"],
            false => &["published f", "deleted f"],
        };
        assert_eq!(told, expected);
    }
}

/// What is no bundle is refused with the reason, and nothing is stored.
pub async fn bad_bundles_are_refused(fixture: &dyn Fixture) {
    let registry = fixture.empty().await;
    let name = name("f");
    let (_, good) = function("f");
    let traversal = {
        let mut tar = good.clone();
        // The first entry's name and checksum, by hand: no packer writes such a name.
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes().copy_from_slice(&tar[..512]);
        header.as_old_mut().name[..8].copy_from_slice(b"../f.py\0");
        header.set_cksum();
        tar[..512].copy_from_slice(header.as_bytes());
        tar
    };
    let bad_manifest = tar_of(&[("f.py", ""), ("ol.toml", "memory = 1")]);
    let cut = good[..good.len() / 3].to_vec();
    for (bundle, why) in [
        (b"hello".to_vec(), ""),
        (Vec::new(), ""),
        (cut, ""),
        (traversal, "../f.py"),
        (bad_manifest, "did you mean \"memory_mb\""),
        (tar_of(&[("readme", "")]), "cannot tell what to run"),
    ] {
        let error = publish(&*registry, &name, bundle).await.expect_err("it is no bundle");
        let text = error.to_string();
        assert!(matches!(error, RegistryError::BadBundle { .. }), "{text}");
        assert!(text.contains(why), "{text}: says nothing of {why}");
    }
    let half: BundleStream = Box::pin(stream::iter([
        Ok(Bytes::from(good[..600].to_vec())),
        Err(std::io::Error::other("the sender is gone")),
    ]));
    registry.publish(&name, half).await.expect_err("half of a bundle");
    assert_eq!(registry.list().await.expect("a list"), []);
    not_found(resolve(&*registry, "f").await, "what was refused");
    publish(&*registry, &name, good).await.expect("a good one still gets in");
}

/// Publishers of one name at once get numbers of their own; one who gives up leaves nothing or all.
pub async fn many_publish_at_once(fixture: &dyn Fixture) {
    let registry = fixture.empty().await;
    let name = name("f");
    /// One publisher in four.
    const GIVING_UP: u64 = 4;
    let publishers = (0..4 * GIVING_UP).map(|n| {
        let (registry, name) = (Arc::clone(&registry), name.clone());
        async move {
            let publishing = publish(&*registry, &name, function(&format!("v{n}")).1);
            match n % 4 {
                // Gives up at some moment.
                3 => tokio::time::timeout(Duration::from_micros(n * 200), publishing).await.ok(),
                _ => Some(publishing.await),
            }
        }
    });
    let done: Vec<Published> = join_all(publishers)
        .await
        .into_iter()
        .flatten()
        .map(|published| published.expect("a valid bundle"))
        .collect();
    let numbers: BTreeSet<Version> = done.iter().map(|published| published.version).collect();
    assert_eq!(numbers.len(), done.len(), "a number was given twice");
    // Whoever gave up may still be heard, so where only the present version is kept, it may change
    // between the answer and the fetch: that is an error, after which the next try succeeds.
    for tries_left in (0..=GIVING_UP).rev() {
        let newest = resolve(&*registry, "f").await.expect("it was published");
        assert!(Some(&newest.version) >= numbers.last(), "{newest:?} is older than {numbers:?}");
        let into = tempfile::tempdir().expect("a folder");
        match registry.fetch(&newest.digest, into.path()).await {
            Ok(()) => {
                assert_eq!(digest_of(into.path()), newest.digest);
                break;
            }
            Err(RegistryError::Unavailable(_)) if !fixture.keeps_versions() && tries_left > 0 => {}
            Err(error) => panic!("{newest:?} cannot be fetched: {error}"),
        }
    }
    if fixture.keeps_versions() {
        for published in done {
            let resolved = resolve(&*registry, &format!("f:{}", published.version)).await;
            assert_eq!(resolved.expect("it was acknowledged").digest, published.digest);
        }
    }
}

/// Closing and opening changes nothing.
pub async fn what_was_acknowledged_is_kept(fixture: &dyn Fixture) {
    let registry = fixture.empty().await;
    for text in ["a", "b", "team/c", "gone"] {
        publish(&*registry, &name(text), function(text).1).await.expect("a valid bundle");
    }
    registry.delete(&name("gone")).await.expect("it is there");
    let a = resolve(&*registry, "a").await.expect("there");
    if fixture.keeps_versions() {
        registry.set_alias(&name("a"), "live", Some(a.version), None).await.expect("not there");
    }
    let list = registry.list().await.expect("a list");
    drop(registry);
    let Some(registry) = fixture.reopened().await else { return };
    assert_eq!(registry.list().await.expect("a list"), list);
    for listing in list {
        fetches(&*registry, &listing.digest).await;
    }
    assert_eq!(resolve(&*registry, "a").await.expect("there"), a);
    if fixture.keeps_versions() {
        assert_eq!(resolve(&*registry, "a:live").await.expect("there"), a);
    }
    not_found(resolve(&*registry, "gone").await, "a deleted name");
    let later = publish(&*registry, &name("a"), function("later").1).await.expect("valid");
    assert!(later.new && later.version > a.version);
}

fn name(text: &str) -> FunctionName {
    text.parse().expect("a valid name")
}

/// A function that is told from others by `text`, packed.
fn function(text: &str) -> (Packed, Vec<u8>) {
    let folder = tempfile::tempdir().expect("a folder");
    let code = format!("def f(event):\n    return {text:?}\n");
    fs::write(folder.path().join("f.py"), code).expect("a file");
    fs::create_dir(folder.path().join("data")).expect("a folder");
    fs::write(folder.path().join("data/large"), vec![b'x'; 100_000]).expect("a file");
    let mut tar = Vec::new();
    let packed = bundle::pack_dir(folder.path(), &mut tar).expect("a valid function");
    (packed, tar)
}

fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, text.as_bytes()).expect("memory is enough");
    }
    builder.into_inner().expect("memory is enough")
}

/// Publishes gzipped and in pieces, as a client far away would.
async fn publish(
    registry: &dyn Registry,
    name: &FunctionName,
    tar: Vec<u8>,
) -> Result<Published, RegistryError> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&tar).expect("memory is enough");
    let bytes = encoder.finish().expect("memory is enough");
    let pieces: Vec<_> =
        bytes.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    registry.publish(name, Box::pin(stream::iter(pieces))).await
}

async fn resolve(registry: &dyn Registry, reference: &str) -> Result<Resolved, RegistryError> {
    registry.resolve(&reference.parse().expect("a valid reference")).await
}

async fn set_alias(
    registry: &dyn Registry,
    alias: &str,
    version: Option<Version>,
    expected: Option<Version>,
) -> Result<(), RegistryError> {
    registry.set_alias(&name("f"), alias, version, expected).await
}

async fn fetches(registry: &dyn Registry, digest: &Digest) {
    let into = tempfile::tempdir().expect("a folder");
    registry.fetch(digest, into.path()).await.expect("it is there");
    assert_eq!(digest_of(into.path()), *digest, "what was fetched is something else");
}

fn digest_of(folder: &Path) -> Digest {
    bundle::pack_dir(folder, std::io::sink()).expect("a valid function").digest
}

fn not_found<T: std::fmt::Debug>(result: Result<T, RegistryError>, what: &str) {
    assert!(matches!(result, Err(RegistryError::NotFound { .. })), "{what}: {result:?}");
}

async fn next(
    watch: &mut (impl futures_core::Stream<Item = RegistryEvent> + Unpin),
) -> RegistryEvent {
    let event = tokio::time::timeout(Duration::from_secs(20), watch.next()).await;
    event.expect("a change is told in time").expect("the stream goes on")
}
