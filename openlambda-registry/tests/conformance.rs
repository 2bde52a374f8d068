//! Every registry of this crate honours the contract.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use openlambda_core::bundle;
use openlambda_core::conformance::registry::{Fixture, suite};
use openlambda_core::registry::Registry;
use openlambda_registry::dir::DirRegistry;
use openlambda_registry::native::{NativeRegistry, RemoteRegistry, ServeConfig, Store, serve};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Folders, one for each registry that the suite asks for.
#[derive(Default)]
struct Folders(Mutex<Vec<TempDir>>);

impl Folders {
    fn next(&self) -> PathBuf {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        self.0.lock().unwrap().push(dir);
        path
    }

    fn last(&self) -> PathBuf {
        self.0.lock().unwrap().last().unwrap().path().join("store")
    }
}

#[derive(Default)]
struct Native(Folders);

#[async_trait]
impl Fixture for Native {
    async fn empty(&self) -> Arc<dyn Registry> {
        Arc::new(NativeRegistry::new(Store::open(&self.0.next()).unwrap()))
    }

    async fn reopened(&self) -> Option<Arc<dyn Registry>> {
        Some(Arc::new(NativeRegistry::new(Store::open(&self.0.last()).unwrap())))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_passes_the_suite() {
    suite(&Native::default()).await;
}

/// The store behind gRPC.
#[derive(Default)]
struct Remote {
    folders: Folders,
    server: tokio::sync::Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

impl Remote {
    async fn serve(&self, folder: PathBuf) -> Arc<dyn Registry> {
        if let Some((stop, server)) = self.server.lock().await.take() {
            stop.send(()).unwrap();
            server.await.unwrap();
        }
        let registry = Arc::new(NativeRegistry::new(Store::open(&folder).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            serve(registry, listener, ServeConfig::default(), stopped).await.unwrap();
        });
        *self.server.lock().await = Some((stop, server));
        Arc::new(RemoteRegistry::connect(&url).unwrap())
    }
}

#[async_trait]
impl Fixture for Remote {
    async fn empty(&self) -> Arc<dyn Registry> {
        self.serve(self.folders.next()).await
    }

    async fn reopened(&self) -> Option<Arc<dyn Registry>> {
        Some(self.serve(self.folders.last()).await)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_remote_registry_passes_the_suite() {
    suite(&Remote::default()).await;
}

#[derive(Default)]
struct Dir(Folders);

#[async_trait]
impl Fixture for Dir {
    async fn empty(&self) -> Arc<dyn Registry> {
        Arc::new(DirRegistry::new(self.0.next()).unwrap())
    }

    async fn reopened(&self) -> Option<Arc<dyn Registry>> {
        Some(Arc::new(DirRegistry::new(self.0.last()).unwrap()))
    }

    fn keeps_versions(&self) -> bool {
        false
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_folder_passes_the_suite() {
    suite(&Dir::default()).await;
}

/// More uploads that never end than a runtime has threads for what blocks.
#[tokio::test(flavor = "multi_thread")]
async fn slow_uploads_hold_up_nobody() {
    let (native, remote, dir) = (Native::default(), Remote::default(), Dir::default());
    for registry in [native.empty().await, remote.empty().await, dir.empty().await] {
        let slow = |n: usize| {
            let registry = Arc::clone(&registry);
            let drops = stream::repeat_with(|| Ok(Bytes::from_static(b"f"))).then(|byte| async {
                tokio::time::sleep(Duration::from_secs(8)).await;
                byte
            });
            let name = format!("slow{n}").parse().unwrap();
            tokio::spawn(async move { registry.publish(&name, Box::pin(drops)).await })
        };
        let slow: Vec<_> = (0..600).map(slow).collect();
        // All of them are under way.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("f.py"), "def f(event): return event").unwrap();
        let mut tar = Vec::new();
        bundle::pack_dir(folder.path(), &mut tar).unwrap();
        let name = "quick".parse().unwrap();
        let tar = Box::pin(stream::once(async { Ok(tar.into()) }));
        let published = registry.publish(&name, tar).await.unwrap();
        assert_eq!(registry.resolve(&name.into()).await.unwrap().digest, published.digest);
        let into = tempfile::tempdir().unwrap();
        registry.fetch(&published.digest, into.path()).await.unwrap();
        assert!(into.path().join("f.py").exists());
        for upload in slow {
            assert!(!upload.is_finished(), "it was given up at once");
            upload.abort();
        }
    }
}

/// A folder that somebody has made deeper than any path is long is refused as every such bundle is, at once.
#[tokio::test]
async fn a_folder_without_a_bottom_is_refused_and_others_are_found() {
    use openlambda_core::function::FunctionRef;
    use openlambda_core::registry::RegistryError;
    use rustix::fs::{Mode, OFlags, mkdirat, openat};

    let root = tempfile::tempdir().unwrap();
    let registry = DirRegistry::new(root.path()).unwrap();
    for name in ["deep", "good"] {
        std::fs::create_dir(root.path().join(name)).unwrap();
        std::fs::write(root.path().join(name).join("f.py"), "").unwrap();
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut at = rustix::fs::open(root.path().join("deep"), flags, Mode::empty()).unwrap();
    for _ in 0..10_000 {
        mkdirat(&at, "a", Mode::RWXU).unwrap();
        at = openat(&at, "a", flags, Mode::empty()).unwrap();
    }
    let latest = |name: &str| FunctionRef::latest(name.parse().unwrap());
    for _ in 0..3 {
        let error = registry.resolve(&latest("deep")).await.unwrap_err();
        assert!(matches!(error, RegistryError::BadBundle { .. }), "{error:?}");
        let told = openlambda_core::failure::chain(&error);
        assert!(told.contains("is over 128 folders deep; move it up"), "{told}");
    }
    registry.resolve(&latest("good")).await.unwrap();
    let list = registry.list().await.unwrap();
    assert_eq!(list.iter().map(|listing| listing.name.name()).collect::<Vec<_>>(), ["good"]);
}
