//! The program that starts of this kind are compared with: it makes the same system calls and does
//! nothing else (`sys/minimal/main.rs` says which and why).

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::cgroup::{Cgroup, Cgroups, Limits};
use super::{cgroup, seccomp};
use crate::sys::{Child, CommandSpec, MARK, Output, Spawner};

/// The program, as `build.rs` compiled it.
static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/minimal"));

/// The program, ready for one start after another. Drop ends it.
#[derive(Debug)]
pub struct Minimal {
    socket: UnixStream,
    child: Child,
    cgroups: Option<(Cgroups, Cgroup)>,
}

impl Minimal {
    /// Starts the program for the `bootstrap` in `code`. What a pool would have ready is made here: its
    /// cgroup, with the limits of an ordinary function where cgroups can be had, and its network.
    /// `state_dir` is its own, and so is `mark`.
    ///
    /// # Errors
    ///
    /// The folder cannot be written, or the machine refuses a step, which the message names.
    pub async fn launch(
        spawner: &Spawner,
        mark: &str,
        state_dir: &Path,
        code: &Path,
    ) -> io::Result<Minimal> {
        let (program, filter) = (state_dir.join("minimal"), state_dir.join("filter"));
        fs::write(&program, PROGRAM)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        fs::write(&filter, seccomp::filter(seccomp::Memory::Counted))?;
        let cgroups = match Cgroups::find(&cgroup::name_of(mark)) {
            Ok(cgroups) => {
                let group = cgroups.create("0")?;
                group.set_limits(Limits { memory: 128 << 20, processes: 64, cpus: 1.0 })?;
                Some((cgroups, group))
            }
            Err(_) => None,
        };
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut descriptors: Vec<OwnedFd> = vec![theirs.into()];
        let mut command = CommandSpec::new(program)
            .arg(descriptors[0].as_raw_fd().to_string())
            .arg(code)
            .arg(filter)
            .arg(if cgroups.as_ref().is_some_and(|(_, group)| group.is_v2()) { "1" } else { "0" });
        for join in cgroups.iter().flat_map(|(_, group)| group.join()) {
            let join = join.as_fd().try_clone_to_owned()?;
            command = command.arg(join.as_raw_fd().to_string());
            descriptors.push(join);
        }
        command = command.env(MARK, mark);
        command.descriptors = descriptors;
        command.stderr = Output::Inherit;
        let child = spawner.spawn(command).await.map_err(io::Error::other)?;
        let mut minimal = Minimal { socket: UnixStream::from_std(ours)?, child, cgroups };
        minimal.answer().await?;
        Ok(minimal)
    }

    /// Whether it bounds memory, processes and processor time, as sandboxes are.
    pub fn has_cgroup(&self) -> bool {
        self.cgroups.is_some()
    }

    /// One start, until the end of the function's program.
    ///
    /// # Errors
    ///
    /// The step that failed.
    pub async fn start(&mut self) -> io::Result<()> {
        self.socket.write_all(&[1]).await?;
        self.answer().await
    }

    /// Ends it and removes its cgroup.
    pub async fn end(self) {
        self.child.kill_group();
        self.child.wait().await;
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }

    async fn answer(&mut self) -> io::Result<()> {
        let mut answer = [0; 256];
        let length = self.socket.read(&mut answer).await?;
        match &answer[..length] {
            [0] => Ok(()),
            [] => Err(io::Error::other("the minimal program has ended")),
            said => Err(io::Error::other(String::from_utf8_lossy(said).into_owned())),
        }
    }
}

impl Drop for Minimal {
    fn drop(&mut self) {
        self.child.kill_group();
        if let Some((cgroups, group)) = self.cgroups.take() {
            drop(group);
            cgroups.remove_folder();
        }
    }
}
