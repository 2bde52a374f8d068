//! Makes an image from this machine's own files, for machines that cannot pull one.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use bollard::query_parameters::CreateImageOptions;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use openlambda_core::sandbox::SandboxError;
use tar::{Builder, EntryType, Header};

use super::engine::Engine;
use crate::errors::resources;
use crate::python::INSTALLED;

/// Libraries that compiled packages, of PyPI for example, take for granted, where they are beside the C
/// library. Some are empty ones that programs of before glibc 2.34 ask for.
const EXPECTED: [&str; 7] = [
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libutil.so.1",
];

/// The name of the image that [`build_base_image`] makes, unless it is told another.
pub const BASE_IMAGE: &str = "openlambda-base:latest";

/// What a shell script needs least.
const PROGRAMS: [&str; 22] = [
    "sh", "bash", "env", "cat", "echo", "printf", "sleep", "true", "false", "test", "id", "ls",
    "mkdir", "rm", "cp", "mv", "chmod", "date", "head", "dd", "grep", "sed",
];

/// Parts of Python's library that functions do without, and that are large.
const LEFT_OUT: [&str; 6] = ["test", "idlelib", "turtledemo", "tkinter", "lib2to3", "ensurepip"];

/// Makes an image of this machine's Python with its standard library, a shell and a few programs, and of
/// `more`: paths of further programs or folders. What packages are installed on the machine, it does not hold.
/// Returns its size in bytes.
///
/// # Errors
///
/// This machine has no Python; the files cannot be read; the engine does not take them.
pub async fn build_base_image(
    socket: &Path,
    name: &str,
    more: &[PathBuf],
) -> Result<u64, SandboxError> {
    let engine = Engine::connect(socket).await?;
    let more = more.to_vec();
    let packed = tokio::task::spawn_blocking(move || pack(&more)).await;
    let archive = packed.unwrap_or_else(|_| Err(io::Error::other("it was interrupted")));
    let archive = archive.map_err(|error| resources("its files cannot be packed", error))?;
    let size = archive.metadata().map_or(0, |metadata| metadata.len());
    let (repo, tag) = match name.rsplit_once(':') {
        Some((repo, tag)) if !tag.contains('/') => (repo, tag),
        _ => (name, "latest"),
    };
    let options = CreateImageOptions {
        from_src: Some("-".to_owned()),
        repo: Some(repo.to_owned()),
        tag: Some(tag.to_owned()),
        message: Some("made by OpenLambda of this machine's files".to_owned()),
        ..CreateImageOptions::default()
    };
    let body = bollard::body_try_stream(chunks(archive));
    let mut progress = engine.docker.create_image(Some(options), Some(body), None);
    while let Some(step) = progress.next().await {
        step.map_err(|error| engine.error("the image cannot be made", error))?;
    }
    Ok(size)
}

/// The file in pieces.
fn chunks(file: File) -> impl stream::Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold(file, |file| async {
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = Vec::with_capacity(1 << 20);
            let read = (&file).take(1 << 20).read_to_end(&mut chunk);
            read.map(|_| (Bytes::from(chunk), file))
        });
        match read.await {
            Ok(Ok((chunk, file))) => (!chunk.is_empty()).then_some((Ok(chunk), file)),
            Ok(Err(error)) => Some((Err(error), File::open("/dev/null").ok()?)),
            Err(_) => None,
        }
    })
}

/// Packs everything into a file without a name.
fn pack(more: &[PathBuf]) -> io::Result<File> {
    let mut packer = Packer { tar: Builder::new(tempfile::tempfile()?), seen: BTreeSet::new() };
    packer.tar.follow_symlinks(false);
    for (folder, mode) in [
        ("etc", 0o755),
        ("dev", 0o755),
        ("proc", 0o755),
        ("sys", 0o755),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("var", 0o755),
        ("var/task", 0o755),
        ("var/runtime", 0o755),
        ("run", 0o755),
        ("run/openlambda", 0o755),
    ] {
        packer.made(folder, EntryType::Directory, mode, b"")?;
    }
    for (file, content) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nfunction:x:1000:1000::/tmp:/bin/sh\n"),
        ("etc/group", "root:x:0:\nfunction:x:1000:\n"),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ] {
        packer.made(file, EntryType::Regular, 0o644, content.as_bytes())?;
    }
    let python = python_files()?;
    let mut programs = vec![python.program];
    programs.extend(PROGRAMS.iter().filter_map(|name| in_path(name)));
    programs.extend(more.iter().filter(|path| path.is_file()).cloned());
    packer.tree(&python.library, &|name| !INSTALLED.contains(&name))?;
    for tree in more.iter().filter(|path| path.is_dir()) {
        packer.tree(tree, &|_| true)?;
    }
    for optional in [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/ssl/openssl.cnf",
        "/etc/mime.types",
        "/etc/ld.so.cache",
        "/usr/lib/ssl",
        "/usr/lib/locale/C.utf8",
        "/usr/share/zoneinfo",
    ] {
        let path = Path::new(optional);
        if path.exists() {
            packer.tree(path, &|_| true)?;
        }
    }
    // The links that a merged /usr has at the root, without which no program finds its loader.
    for link in ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"] {
        if fs::symlink_metadata(link).is_ok_and(|metadata| metadata.is_symlink()) {
            packer.add(Path::new(link))?;
        }
    }
    let mut linked = programs.clone();
    linked.extend(packer.seen.iter().filter(|path| is_library(path)).cloned());
    let libraries = libraries(&linked)?;
    let beside = libraries.iter().filter(|path| path.ends_with("libc.so.6"));
    let beside = beside.flat_map(|libc| EXPECTED.map(|name| libc.with_file_name(name)));
    programs.extend(beside.filter(|path| path.exists()));
    programs.extend(libraries);
    for program in &programs {
        packer.add(program)?;
    }
    let mut file = packer.tar.into_inner()?;
    io::Seek::rewind(&mut file)?;
    Ok(file)
}

struct Python {
    program: PathBuf,
    /// Its standard library.
    library: PathBuf,
}

/// Where Python is and what it imports from, as it says itself.
fn python_files() -> io::Result<Python> {
    const ASK: &str = "import sysconfig; print(sysconfig.get_path('stdlib'))";
    let program = in_path("python3").ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "there is no /usr/bin/python3; install it, or pull an image that has one",
        )
    })?;
    let answer = Command::new(&program).args(["-S", "-c", ASK]).output()?;
    let library = PathBuf::from(String::from_utf8_lossy(&answer.stdout).trim_end());
    if !library.is_dir() {
        let message = format!("{} does not say where its library is", program.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    }
    Ok(Python { program, library })
}

/// The machine's own program of this name; what a user has put before it in PATH is not meant.
fn in_path(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.exists())
}

fn is_library(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "so")
}

/// The libraries that the loader would load for any of these.
fn libraries(programs: &[PathBuf]) -> io::Result<BTreeSet<PathBuf>> {
    // Its status only says that one of them is no dynamic program.
    let told = Command::new("ldd").args(programs).output()?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    // `name => /path (0x…)`, or `/path (0x…)` for the loader itself.
    let path = |line: &str| {
        let line = line.trim().strip_suffix(')')?.rsplit_once(" (")?.0;
        let path = line.split_once(" => ").map_or(line, |(_, path)| path);
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    Ok(told.lines().filter_map(path).collect())
}

struct Packer {
    tar: Builder<File>,
    seen: BTreeSet<PathBuf>,
}

impl Packer {
    /// An entry that the machine does not have in this form.
    fn made(&mut self, path: &str, kind: EntryType, mode: u32, content: &[u8]) -> io::Result<()> {
        self.seen.insert(Path::new("/").join(path));
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        self.tar.append_data(&mut header, path, content)
    }

    /// A folder with what is in it, but for folders whose names `takes` refuses.
    fn tree(&mut self, path: &Path, takes: &dyn Fn(&str) -> bool) -> io::Result<()> {
        self.add(path)?;
        if !fs::metadata(path)?.is_dir() {
            return Ok(());
        }
        let mut entries: Vec<_> = fs::read_dir(path)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if LEFT_OUT.contains(&&*name) || name.starts_with("config-") || !takes(&name) {
                continue;
            }
            match entry.file_type()? {
                kind if kind.is_dir() => self.tree(&entry.path(), takes)?,
                // What a link leads to nowhere stays behind.
                kind if kind.is_symlink() && !entry.path().exists() => {}
                kind if kind.is_symlink() || kind.is_file() => self.add(&entry.path())?,
                _ => {}
            }
        }
        Ok(())
    }

    /// One file with the folders and links on the way to it.
    fn add(&mut self, path: &Path) -> io::Result<()> {
        let mut place = PathBuf::from("/");
        let mut rest: VecDeque<PathBuf> = components(path);
        let mut links = 0;
        while let Some(component) = rest.pop_front() {
            if component == Path::new("..") {
                place.pop();
                continue;
            }
            let next = place.join(component);
            let metadata = fs::symlink_metadata(&next)?;
            if metadata.is_symlink() {
                links += 1;
                if links > 40 {
                    return Err(io::Error::other(format!(
                        "{} is a circle of links",
                        path.display()
                    )));
                }
                let target = fs::read_link(&next)?;
                if self.seen.insert(next.clone()) {
                    let mut header = header(&metadata, EntryType::Symlink);
                    self.tar.append_link(&mut header, relative(&next), &target)?;
                }
                if target.is_absolute() {
                    place = PathBuf::from("/");
                }
                for component in components(&target).into_iter().rev() {
                    rest.push_front(component);
                }
                continue;
            }
            if self.seen.insert(next.clone()) {
                if metadata.is_dir() {
                    let mut header = header(&metadata, EntryType::Directory);
                    self.tar.append_data(&mut header, relative(&next), io::empty())?;
                } else if metadata.is_file() {
                    let mut header = header(&metadata, EntryType::Regular);
                    header.set_size(metadata.len());
                    self.tar.append_data(&mut header, relative(&next), File::open(&next)?)?;
                }
            }
            place = next;
        }
        Ok(())
    }
}

fn components(path: &Path) -> VecDeque<PathBuf> {
    let named = path.components().filter(|c| !matches!(c, Component::RootDir | Component::CurDir));
    named.map(|component| PathBuf::from(component.as_os_str())).collect()
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Root's, with the time that compiled Python files know their sources by.
fn header(metadata: &fs::Metadata, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    // Without setuid bits.
    header.set_mode(metadata.permissions().mode() & 0o777);
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(0);
    header
}
