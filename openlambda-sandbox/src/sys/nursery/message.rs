// What the worker and its nursery say to each other: one datagram a message, with descriptors beside
// it. This file is a module of both programs, so it uses nothing but std.

use std::io;

/// The worker's first message.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Setup {
    /// Whether the nursery must make a user namespace of its own to be allowed anything.
    pub(super) rootless: bool,
    /// Whether memory is bounded by somebody who looks, from whom none may be hidden.
    pub(super) watched: bool,
    /// Folders of `/usr` in whose place sandboxes see empty ones.
    pub(super) hidden: Vec<String>,
    /// Files for `/var/runtime`: name, mode, content.
    pub(super) runtime_files: Vec<(String, u32, Vec<u8>)>,
    /// The seccomp filter, as an array of `struct sock_filter`.
    pub(super) filter: Vec<u8>,
}

/// One start. Beside it go the descriptors of its standard output and error, of the pipe for errors,
/// of its network namespace if it has one, and of the cgroup files to join.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Start {
    /// Names it in answers.
    pub(super) id: u64,
    /// Folders that its root must have beside the usual ones, for mounts.
    pub(super) folders: Vec<String>,
    /// Folders of the machine: source, target, whether it may write.
    pub(super) mounts: Vec<(String, String, bool)>,
    /// The size of `/tmp`, bytes.
    pub(super) tmp_bytes: u64,
    /// The size of `/dev/shm`, bytes.
    pub(super) shm_bytes: u64,
    /// Who it is on the machine; 0 leaves it as it is.
    pub(super) outside_id: u32,
    /// Who it is to itself.
    pub(super) inside_id: u32,
    /// Whether a network namespace's descriptor is among those beside the message.
    pub(super) has_network: bool,
    /// Whether the cgroup descriptors are folders of the second version, to be cloned into.
    pub(super) cgroup_v2: bool,
    /// Whether it gets a user namespace of its own.
    pub(super) user_namespace: bool,
    /// Limits: resource, value.
    pub(super) limits: Vec<(u32, u64)>,
    /// Its working folder.
    pub(super) folder: String,
    /// The program.
    pub(super) program: String,
    /// Its arguments, the program's name first.
    pub(super) arguments: Vec<String>,
    /// Its environment, `KEY=value`.
    pub(super) environment: Vec<String>,
}

/// Asks for a network namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct NetworkRequest {
    /// How it is connected with the machine's, if it is.
    pub(super) link: Option<Link>,
}

/// A pair of network devices between a sandbox and the machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Link {
    /// What the machine's end is called there.
    pub(super) name: String,
    /// The address of the machine's end.
    pub(super) machine: [u8; 4],
    /// The address of the sandbox's end.
    pub(super) sandbox: [u8; 4],
}

/// From the nursery.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    /// The setup is done, or failed with what and why.
    Ready(Result<(), (String, i32)>),
    /// A start was cloned, or failed with the step and the errno. A pidfd is beside the message.
    Started { id: u64, pid: i32, failed: Option<(String, i32)> },
    /// A child ended with this wait status.
    Ended { pid: i32, status: i32 },
    /// A network namespace, with three sockets in it: four descriptors are beside the message.
    Network(Result<(), (String, i32)>),
}

/// Writes values into a datagram.
#[derive(Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn number(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn list<T>(&mut self, list: &[T], mut each: impl FnMut(&mut Self, &T)) {
        self.number(list.len() as u64);
        for value in list {
            each(self, value);
        }
    }
}

/// Reads them back.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn number(&mut self) -> io::Result<u64> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*bytes))
    }

    pub(super) fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let length = self.number()? as usize;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn text(&mut self) -> io::Result<String> {
        let text = std::str::from_utf8(self.bytes()?);
        text.map(str::to_owned).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    fn list<T>(&mut self, mut each: impl FnMut(&mut Self) -> io::Result<T>) -> io::Result<Vec<T>> {
        (0..self.number()?).map(|_| each(self)).collect()
    }
}

impl Setup {
    pub(super) fn write(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.number(self.rootless.into());
        w.number(self.watched.into());
        w.list(&self.hidden, |w, folder| w.bytes(folder.as_bytes()));
        w.list(&self.runtime_files, |w, (name, mode, content)| {
            w.bytes(name.as_bytes());
            w.number((*mode).into());
            w.bytes(content);
        });
        w.bytes(&self.filter);
        w.0
    }

    pub(super) fn read(bytes: &[u8]) -> io::Result<Self> {
        let mut r = Reader(bytes);
        Ok(Setup {
            rootless: r.number()? != 0,
            watched: r.number()? != 0,
            hidden: r.list(Reader::text)?,
            runtime_files: r.list(|r| Ok((r.text()?, r.number()? as u32, r.bytes()?.to_vec())))?,
            filter: r.bytes()?.to_vec(),
        })
    }
}

impl Start {
    pub(super) fn write(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.number(self.id);
        w.list(&self.folders, |w, folder| w.bytes(folder.as_bytes()));
        w.list(&self.mounts, |w, (source, target, writes)| {
            w.bytes(source.as_bytes());
            w.bytes(target.as_bytes());
            w.number((*writes).into());
        });
        w.number(self.tmp_bytes);
        w.number(self.shm_bytes);
        w.number(self.outside_id.into());
        w.number(self.inside_id.into());
        w.number(self.has_network.into());
        w.number(self.cgroup_v2.into());
        w.number(self.user_namespace.into());
        w.list(&self.limits, |w, (resource, value)| {
            w.number((*resource).into());
            w.number(*value);
        });
        w.bytes(self.folder.as_bytes());
        w.bytes(self.program.as_bytes());
        w.list(&self.arguments, |w, argument| w.bytes(argument.as_bytes()));
        w.list(&self.environment, |w, variable| w.bytes(variable.as_bytes()));
        w.0
    }

    pub(super) fn read(bytes: &[u8]) -> io::Result<Self> {
        let mut r = Reader(bytes);
        Ok(Start {
            id: r.number()?,
            folders: r.list(Reader::text)?,
            mounts: r.list(|r| Ok((r.text()?, r.text()?, r.number()? != 0)))?,
            tmp_bytes: r.number()?,
            shm_bytes: r.number()?,
            outside_id: r.number()? as u32,
            inside_id: r.number()? as u32,
            has_network: r.number()? != 0,
            cgroup_v2: r.number()? != 0,
            user_namespace: r.number()? != 0,
            limits: r.list(|r| Ok((r.number()? as u32, r.number()?)))?,
            folder: r.text()?,
            program: r.text()?,
            arguments: r.list(Reader::text)?,
            environment: r.list(Reader::text)?,
        })
    }
}

impl NetworkRequest {
    pub(super) fn write(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.number(self.link.is_some().into());
        if let Some(link) = &self.link {
            w.bytes(link.name.as_bytes());
            w.bytes(&link.machine);
            w.bytes(&link.sandbox);
        }
        w.0
    }

    pub(super) fn read(bytes: &[u8]) -> io::Result<Self> {
        let mut r = Reader(bytes);
        if r.number()? == 0 {
            return Ok(NetworkRequest { link: None });
        }
        let name = r.text()?;
        let mut address =
            || r.bytes()?.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        let (machine, sandbox) = (address()?, address()?);
        Ok(NetworkRequest { link: Some(Link { name, machine, sandbox }) })
    }
}

impl Answer {
    pub(super) fn write(&self) -> Vec<u8> {
        let mut w = Writer::default();
        let failure = |w: &mut Writer, failed: Option<&(String, i32)>| {
            w.number(failed.is_some().into());
            if let Some((step, errno)) = failed {
                w.bytes(step.as_bytes());
                w.number(*errno as u64);
            }
        };
        match self {
            Answer::Ready(result) => {
                w.number(0);
                failure(&mut w, result.as_ref().err());
            }
            Answer::Started { id, pid, failed } => {
                w.number(1);
                w.number(*id);
                w.number(*pid as u64);
                failure(&mut w, failed.as_ref());
            }
            Answer::Ended { pid, status } => {
                w.number(2);
                w.number(*pid as u64);
                w.number(*status as u64);
            }
            Answer::Network(result) => {
                w.number(3);
                failure(&mut w, result.as_ref().err());
            }
        }
        w.0
    }

    pub(super) fn read(bytes: &[u8]) -> io::Result<Self> {
        let mut r = Reader(bytes);
        fn failure(r: &mut Reader<'_>) -> io::Result<Option<(String, i32)>> {
            Ok(if r.number()? == 0 { None } else { Some((r.text()?, r.number()? as i32)) })
        }
        let result = |failed: Option<(String, i32)>| failed.map_or(Ok(()), Err);
        Ok(match r.number()? {
            0 => Answer::Ready(result(failure(&mut r)?)),
            1 => Answer::Started {
                id: r.number()?,
                pid: r.number()? as i32,
                failed: failure(&mut r)?,
            },
            2 => Answer::Ended { pid: r.number()? as i32, status: r.number()? as i32 },
            3 => Answer::Network(result(failure(&mut r)?)),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        })
    }
}
