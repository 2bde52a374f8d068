//! Compiles a bundle's Python files once, in a sandbox, and keeps the result beside them.
//!
//! Python looks for `__pycache__/f.cpython-313.pyc` beside `f.py`. The files there are of the kind whose date is not
//! compared, so they hold for as long as the unpacked bundle is here, and go with it. They are no part of the bundle: its
//! digest was checked before.
//!
//! A compiler reads what strangers wrote, so it runs where functions run: in a sandbox of the worker's kind, without a
//! network, with limits of its own, in which the bundle can only be read and of which nothing is run. It sends what it
//! makes as a stream, and this file, which trusts none of it, decides where it goes: into the folder of this bundle and no
//! other, under the name of a file that is there. Whatever fails, functions find fewer compiled files, or none, and
//! Python compiles what it imports as it does without.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;

use crate::failure::{Failure, FailureKind};
use crate::invocation::{Body, BoxError, Invocation, RequestHead, RequestId, full_body};
use crate::manifest::{Manifest, Network, Style};
use crate::sandbox::{NoLog, SandboxFactory, SandboxSpec, Work};
use crate::time::{Clock, SystemClock};

/// How long it may take, from the making of the sandbox on.
const TIME: Duration = Duration::from_secs(120);
/// What the compiler may take of memory, MiB: the largest files of common packages take half of it.
const MEMORY_MB: u64 = 512;
/// The most files that are compiled, and the most bytes of their paths.
const MOST_FILES: usize = 20_000;
const MOST_PATHS: usize = 2 << 20;
/// The largest file that is compiled, bytes. Larger ones are data, and the compiler takes some hundred times their
/// size of memory.
const MOST_SOURCE: u64 = 2 << 20;
/// How much larger than all sources the results may be together. They are about as large.
const GROWTH: u64 = 8;

/// Compiles the bundle that the spec's function has. Returns the bytes that were written.
pub(super) async fn compile(
    factory: &dyn SandboxFactory,
    spec: SandboxSpec,
    clock: &SystemClock,
) -> u64 {
    let folder = spec.code.clone();
    let listed = tokio::task::spawn_blocking(move || Sources::in_folder(folder)).await;
    let Ok(sources) = listed else { return 0 };
    let mut into = Results { sources, tag: None, rest: BytesMut::new(), written: 0 };
    let done = tokio::time::timeout(TIME, run(factory, spec, clock, &mut into)).await;
    match done {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => tracing::debug!(%failure, "a bundle is not compiled as a whole"),
        Err(_) => tracing::debug!("a bundle is not compiled as a whole: it took too long"),
    }
    into.written
}

async fn run(
    factory: &dyn SandboxFactory,
    mut spec: SandboxSpec,
    clock: &SystemClock,
    into: &mut Results,
) -> Result<(), Failure> {
    let id = spec.digest.hex().parse();
    let invocation = Invocation {
        id: id.unwrap_or_else(|_| RequestId::from_bits(0, 0)),
        function: spec.function.clone(),
        deadline: clock.now() + TIME,
        deadline_unix_ms: clock.unix_millis() + TIME.as_millis() as u64,
        head: RequestHead::default(),
        body: full_body(serde_json::to_vec(&into.sources.paths).unwrap_or_default()),
        websocket: None,
    };
    spec.manifest = Arc::new(Manifest {
        runtime: spec.manifest.runtime,
        handler: Some("compile.handler".to_owned()),
        style: Some(Style::Event),
        memory_mb: MEMORY_MB,
        timeout_seconds: TIME.as_secs_f64(),
        processes: 4,
        tmp_mb: 1,
        network: Network::None,
        ..Manifest::default()
    });
    spec.work = Work::Compile;
    spec.log = Arc::new(NoLog);
    // Dropped with this future, it is destroyed all the same.
    let sandbox = factory.create(spec).await?.sandbox;
    let reply = sandbox.invoke(invocation).await;
    let taken = match reply {
        Ok(reply) => into.take(reply.body).await,
        Err(error) => Err(error.into()),
    };
    sandbox.destroy().await;
    taken
}

/// The Python files of an unpacked bundle.
#[derive(Debug)]
struct Sources {
    folder: PathBuf,
    /// Paths in it.
    paths: Vec<String>,
    /// Bytes of all of them.
    bytes: u64,
}

impl Sources {
    /// Looks for them; follows no link.
    fn in_folder(folder: PathBuf) -> Sources {
        let mut sources = Sources { folder, paths: Vec::new(), bytes: 0 };
        let (mut folders, mut found) = (vec![PathBuf::new()], Vec::new());
        while let Some(below) = folders.pop() {
            let entries = fs::read_dir(sources.folder.join(&below));
            for entry in entries.into_iter().flatten().flatten() {
                let path = below.join(entry.file_name());
                let Ok(metadata) = entry.metadata() else { continue };
                if metadata.is_dir() {
                    folders.push(path);
                } else if let Some(text) = path.to_str()
                    && is_source(&path, &metadata)
                    && metadata.len() <= MOST_SOURCE
                {
                    found.push((metadata.len(), text.to_owned()));
                }
            }
        }
        // What few import comes last, then what may be too large for the compiler, which ends with it; and
        // everything in an order that is always the same.
        let is_test = |path: &str| path.split('/').any(|part| ["test", "tests"].contains(&part));
        let is_large = |bytes: u64| bytes > MOST_SOURCE / 8;
        found.sort_by_cached_key(|(bytes, path)| (is_large(*bytes), is_test(path), path.clone()));
        for (bytes, path) in found {
            sources.bytes += bytes;
            sources.paths.push(path);
        }
        let mut room = MOST_PATHS;
        let fits = |path: &&String| {
            room = room.saturating_sub(path.len());
            room > 0
        };
        let kept = sources.paths.iter().take(MOST_FILES).take_while(fits).count();
        sources.paths.truncate(kept);
        sources
    }
}

/// Whether this is a Python file that can be imported.
pub(super) fn is_source(path: &Path, metadata: &fs::Metadata) -> bool {
    metadata.is_file() && path.extension().is_some_and(|extension| extension == "py")
}

/// What the compiler sends, on its way to where it belongs.
#[derive(Debug)]
struct Results {
    sources: Sources,
    /// What compiled files of this Python are called by.
    tag: Option<String>,
    /// What has come and is not complete.
    rest: BytesMut,
    /// Bytes of files that were written.
    written: u64,
}

impl Results {
    async fn take(&mut self, mut body: Body) -> Result<(), Failure> {
        let broken = |what: &str, error: BoxError| {
            Failure::new(FailureKind::BadReply, format!("{what}: {error}"))
        };
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| broken("the compiler broke off", error))?;
            let Ok(data) = frame.into_data() else { continue };
            self.rest.extend_from_slice(&data);
            let written = self.write_what_is_complete().await;
            if !written.map_err(|error| broken("a result cannot be kept", error.into()))? {
                return Err(broken("the compiler is not believed", "it sent too much".into()));
            }
        }
        Ok(())
    }

    /// Whether more may follow.
    async fn write_what_is_complete(&mut self) -> io::Result<bool> {
        if self.tag.is_none() {
            let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') else {
                return Ok(self.rest.len() < 64);
            };
            let tag = self.rest.split_to(end);
            self.rest.advance(1);
            let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
            if tag.is_empty() || tag.len() > 32 || !tag.iter().all(valid) {
                return Ok(false);
            }
            self.tag = Some(String::from_utf8_lossy(&tag).into_owned());
        }
        let tag = self.tag.clone().unwrap_or_default();
        let room = self.sources.bytes.saturating_mul(GROWTH);
        while let Some(([number, length], _)) = head(&self.rest) {
            let length_of_one = u64::from(length);
            if length_of_one > MOST_SOURCE * GROWTH || self.written + length_of_one > room {
                return Ok(false);
            }
            if self.rest.len() < 8 + length as usize {
                return Ok(true);
            }
            self.rest.advance(8);
            let content = self.rest.split_to(length as usize);
            let Some(path) = self.sources.paths.get(number as usize) else { return Ok(false) };
            let (path, tag) = (self.sources.folder.join(path), tag.clone());
            let wrote = tokio::task::spawn_blocking(move || put(&path, &tag, &content)).await;
            if wrote.map_err(io::Error::other)?? {
                self.written += u64::from(length);
            }
        }
        Ok(true)
    }
}

/// The number of a file and the length of what follows.
fn head(bytes: &[u8]) -> Option<([u32; 2], &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    Some(([u32::from_le_bytes(*number), u32::from_le_bytes(*length)], rest))
}

/// Puts the compiled form of a source into its place, unless the bundle has something there. Whether it did.
fn put(source: &Path, tag: &str, content: &[u8]) -> io::Result<bool> {
    let (Some(folder), Some(stem)) = (source.parent(), source.file_stem()) else {
        return Ok(false);
    };
    let cache = folder.join("__pycache__");
    match DirBuilder::new().mode(0o755).create(&cache) {
        // Functions are other users, whatever our umask is.
        Ok(()) => fs::set_permissions(&cache, Permissions::from_mode(0o755))?,
        // A link may lead out of the bundle.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if !fs::symlink_metadata(&cache)?.is_dir() {
                return Ok(false);
            }
        }
        Err(error) => return Err(error),
    }
    let mut name = stem.to_owned();
    name.push(format!(".{tag}.pyc"));
    let (place, new) = (cache.join(name), cache.join(".new"));
    if fs::symlink_metadata(&place).is_ok() {
        return Ok(false);
    }
    // By renaming: an instance may be importing it.
    let mut file = match File::create_new(&new) {
        Ok(file) => file,
        // The bundle has one.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(error),
    };
    let written = file.write_all(content).and_then(|()| {
        file.set_permissions(Permissions::from_mode(0o644))?;
        fs::rename(&new, &place)
    });
    match written {
        Ok(()) => Ok(true),
        Err(error) => {
            let _ = fs::remove_file(&new);
            match error.kind() {
                // Too long with what the name has beside the source's.
                io::ErrorKind::InvalidFilename => Ok(false),
                _ => Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(folder: &Path, files: &[&str]) -> Sources {
        for file in files {
            let path = folder.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x = 1\n").unwrap();
        }
        Sources::in_folder(folder.to_owned())
    }

    fn result(number: u32, content: &[u8]) -> Vec<u8> {
        let length = (content.len() as u32).to_le_bytes();
        [&number.to_le_bytes()[..], &length, content].concat()
    }

    /// What was written of these bytes, which come one by one, and whether more may follow.
    async fn take(sources: Sources, bytes: &[u8]) -> (u64, bool) {
        let mut results = Results { sources, tag: None, rest: BytesMut::new(), written: 0 };
        for byte in bytes {
            results.rest.extend_from_slice(&[*byte]);
            if !results.write_what_is_complete().await.unwrap() {
                return (results.written, false);
            }
        }
        (results.written, true)
    }

    #[tokio::test]
    async fn results_go_beside_their_sources_and_tests_come_last() {
        let dir = tempfile::tempdir().unwrap();
        let found = sources(dir.path(), &["a/tests/t.py", "z.py", "a/__init__.py", "a/data.txt"]);
        assert_eq!(found.paths, ["a/__init__.py", "z.py", "a/tests/t.py"]);
        let bytes = [&b"cpython-313\n"[..], &result(1, b"one"), &result(0, b"two")].concat();
        assert_eq!(take(found, &bytes).await, (6, true));
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
        assert_eq!(read("__pycache__/z.cpython-313.pyc"), "one");
        assert_eq!(read("a/__pycache__/__init__.cpython-313.pyc"), "two");
        assert!(!dir.path().join("a/tests/__pycache__").exists());
    }

    #[tokio::test]
    async fn large_files_come_last_or_not_at_all_and_a_long_name_ends_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let long = format!("b{}.py", "x".repeat(246));
        let files = ["a/data.py", "a/large.py", &*long, "c.py"];
        sources(dir.path(), &files);
        fs::write(dir.path().join("a/data.py"), vec![b'#'; 3 << 20]).unwrap();
        fs::write(dir.path().join("a/large.py"), vec![b'#'; 1 << 20]).unwrap();
        let found = Sources::in_folder(dir.path().to_owned());
        assert_eq!(found.paths, [&*long, "c.py", "a/large.py"]);
        let bytes =
            [&b"cpython-313\n"[..], &result(0, b"no"), &result(1, b"yes"), &result(2, b"yes")];
        assert_eq!(take(found, &bytes.concat()).await, (6, true));
        // More than any file of the bundle can become.
        let found = Sources::in_folder(dir.path().to_owned());
        let bytes = [&b"t\n"[..], &1u32.to_le_bytes(), &(100u32 << 20).to_le_bytes()].concat();
        assert_eq!(take(found, &bytes).await, (0, false));
    }

    #[tokio::test]
    async fn what_a_compiler_says_that_was_taken_over_harms_no_other_bundle() {
        let dir = tempfile::tempdir().unwrap();
        let (bundle, other) = (dir.path().join("bundle"), dir.path().join("other"));
        fs::create_dir_all(&other).unwrap();
        let found = || sources(&bundle, &["f.py", "linked/g.py", "own/h.py"]);
        found();
        std::os::unix::fs::symlink(&other, bundle.join("linked/__pycache__")).unwrap();
        fs::create_dir(bundle.join("own/__pycache__")).unwrap();
        fs::write(bundle.join("own/__pycache__/h.t.pyc"), "the author's").unwrap();
        for (bytes, expected) in [
            (b"../../x\n".to_vec(), (0, false)),
            (vec![b'a'; 100], (0, false)),
            ([&b"t\n"[..], &result(3, b"no such file")].concat(), (0, false)),
            ([&b"t\n"[..], &u64::MAX.to_le_bytes()].concat(), (0, false)),
            // A folder that is a link, and what the bundle has already.
            ([&b"t\n"[..], &result(1, b"x"), &result(2, b"x")].concat(), (0, true)),
            ([&b"t\n"[..], &result(0, &[7; 100]), &result(0, &[7; 100])].concat(), (100, false)),
        ] {
            assert_eq!(take(found(), &bytes).await, expected, "{bytes:?}");
        }
        assert_eq!(fs::read_dir(&other).unwrap().count(), 0);
        assert_eq!(fs::read(bundle.join("own/__pycache__/h.t.pyc")).unwrap(), b"the author's");
    }
}
