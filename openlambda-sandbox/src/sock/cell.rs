//! The pool of what is expensive to make: network namespaces and cgroups.
//!
//! Both are made ahead, used by one sandbox after another, and cleaned in between; `sock.rs` lists what
//! could be carried over.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, UnixListener};

use super::bridge::{Bridge, Lease};
use super::cgroup::{Cgroup, Cgroups, Limits};
use super::sockets::Sockets;
use crate::sys::nursery::{NetworkNamespace, Nursery, NurseryError};

/// More than these are not kept when they come back.
const MOST_KEPT: usize = 256;

/// A cgroup that its last tenant has left more memory charged to is not used again: pages of the
/// machine's programs are that many at most, and the kernel takes those back.
const MOST_CHARGED: u64 = 64 << 20;

/// The pool of one factory.
#[derive(Debug)]
pub(super) struct Cells {
    /// How many networks are made ahead.
    ahead: usize,
    filling: AtomicBool,
    filling_bridged: AtomicBool,
    closed: AtomicBool,
    next_cgroup: AtomicU64,
    ready: Mutex<Ready>,
}

#[derive(Debug, Default)]
struct Ready {
    networks: VecDeque<Network>,
    bridged: VecDeque<Network>,
    cgroups: Vec<Cgroup>,
}

/// A network namespace and its listeners.
#[derive(Debug)]
pub(super) struct Network {
    made: NetworkNamespace,
    /// Where: without root, another nursery has no power over it.
    nursery: u64,
    /// The addresses of one that is connected with the machine's; free when the rest is closed.
    lease: Option<Lease>,
}

impl Network {
    pub(super) fn namespace(&self) -> BorrowedFd<'_> {
        self.made.namespace.as_fd()
    }

    /// The listener of the Runtime API at `127.0.0.1:9001`, for one tenant.
    pub(super) fn tcp(&self) -> io::Result<TcpListener> {
        TcpListener::from_std(self.made.tcp.try_clone()?.into())
    }

    /// The same at its abstract Unix socket.
    pub(super) fn unix(&self) -> io::Result<UnixListener> {
        UnixListener::from_std(self.made.unix.try_clone()?.into())
    }

    /// The sockets of the tenant whose first process this is.
    pub(super) fn sockets(&self, pid: i32, counts_all: bool) -> io::Result<Sockets> {
        Sockets::of(pid, &self.made, counts_all, self.lease.is_some())
    }

    /// Accepts and closes what the last tenant has left waiting.
    fn clean(&self) -> bool {
        let drained = |listener: &OwnedFd| loop {
            match rustix::net::accept(listener) {
                Ok(left) => {
                    // Closed without a farewell that the other end would have to wait for.
                    let _ = rustix::net::sockopt::set_socket_linger(&left, Some(Duration::ZERO));
                }
                Err(rustix::io::Errno::AGAIN) => return true,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                Err(_) => return false,
            }
        };
        drained(&self.made.tcp) && drained(&self.made.unix)
    }
}

async fn make(nursery: &Nursery) -> Result<Network, NurseryError> {
    let made = nursery.network(None).await?;
    Ok(Network { made, nursery: nursery.id(), lease: None })
}

async fn make_bridged(nursery: &Nursery, bridge: &Arc<Bridge>) -> Result<Network, NurseryError> {
    loop {
        let Some(lease) = bridge.lease() else {
            let step = "find an address for a network device".to_owned();
            return Err(NurseryError::Refused { step, errno: libc::EADDRNOTAVAIL });
        };
        match nursery.network(Some(&lease.link())).await {
            Ok(made) => {
                lease.protect();
                return Ok(Network { made, nursery: nursery.id(), lease: Some(lease) });
            }
            // The device of a worker that was killed, of which the kernel still has to think.
            Err(NurseryError::Refused { errno: libc::EEXIST, .. }) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

impl Cells {
    pub(super) fn new(ahead: usize) -> Arc<Self> {
        Arc::new(Cells {
            ahead,
            filling: AtomicBool::new(false),
            filling_bridged: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            next_cgroup: AtomicU64::new(0),
            ready: Mutex::default(),
        })
    }

    /// A clean network namespace. More are made ahead in the background.
    pub(super) async fn network(
        self: &Arc<Self>,
        nursery: &Arc<Nursery>,
    ) -> Result<Network, NurseryError> {
        let (ready, left) = {
            let mut ready = self.ready.lock();
            ready.networks.retain(|network| network.nursery == nursery.id());
            let network = ready.networks.pop_front();
            (network, ready.networks.len())
        };
        if left < self.ahead / 2 && !self.filling.swap(true, Ordering::SeqCst) {
            let (cells, nursery) = (Arc::clone(self), Arc::clone(nursery));
            tokio::spawn(async move { cells.fill(&nursery).await });
        }
        match ready {
            Some(network) => Ok(network),
            None => make(nursery).await,
        }
    }

    async fn fill(&self, nursery: &Nursery) {
        while !self.closed.load(Ordering::SeqCst) && self.ready.lock().networks.len() < self.ahead {
            match make(nursery).await {
                Ok(network) => self.ready.lock().networks.push_back(network),
                Err(error) => {
                    tracing::warn!(error = openlambda_core::failure::chain(&error), "no network");
                    break;
                }
            }
        }
        self.filling.store(false, Ordering::SeqCst);
    }

    /// A network namespace that reaches the world and has not been used. From the first one on, a few
    /// are made ahead.
    pub(super) async fn bridged(
        self: &Arc<Self>,
        nursery: &Arc<Nursery>,
        bridge: &Arc<Bridge>,
    ) -> Result<Network, NurseryError> {
        let ahead = self.ahead / 4;
        let (ready, left) = {
            let mut ready = self.ready.lock();
            ready.bridged.retain(|network| network.nursery == nursery.id());
            (ready.bridged.pop_front(), ready.bridged.len())
        };
        if left < ahead && !self.filling_bridged.swap(true, Ordering::SeqCst) {
            let (cells, nursery, bridge) =
                (Arc::clone(self), Arc::clone(nursery), Arc::clone(bridge));
            tokio::spawn(async move {
                while !cells.closed.load(Ordering::SeqCst)
                    && cells.ready.lock().bridged.len() < ahead
                {
                    match make_bridged(&nursery, &bridge).await {
                        Ok(network) => cells.ready.lock().bridged.push_back(network),
                        Err(error) => {
                            let error = openlambda_core::failure::chain(&error);
                            tracing::warn!(error, "no bridged network");
                            break;
                        }
                    }
                }
                cells.filling_bridged.store(false, Ordering::SeqCst);
            });
        }
        match ready {
            Some(network) => Ok(network),
            None => make_bridged(nursery, bridge).await,
        }
    }

    /// Those that reach the world are not used again.
    pub(super) fn give_back_network(&self, network: Network) {
        if network.lease.is_some() || !network.clean() || self.closed.load(Ordering::SeqCst) {
            return;
        }
        let mut ready = self.ready.lock();
        if ready.networks.len() < MOST_KEPT {
            ready.networks.push_back(network);
        }
    }

    /// A cgroup without processes.
    pub(super) fn cgroup(&self, cgroups: &Cgroups, limits: Limits) -> io::Result<Cgroup> {
        loop {
            let Some(known) = self.ready.lock().cgroups.pop() else { break };
            // It refuses a limit below what the last tenant's files in memory still take of it.
            match known.set_limits(limits) {
                Ok(()) => return Ok(known),
                Err(error) => tracing::debug!(%error, "a cgroup cannot be used again"),
            }
        }
        let n = self.next_cgroup.fetch_add(1, Ordering::Relaxed);
        let cgroup = cgroups.create(&n.to_string())?;
        cgroup.set_limits(limits)?;
        Ok(cgroup)
    }

    pub(super) async fn give_back_cgroup(&self, cgroup: Cgroup) {
        let _ = cgroup.thaw();
        // Its processes have ended; the kernel takes them off its list a moment later.
        for _ in 0..500 {
            if cgroup.is_empty() {
                break;
            }
            cgroup.kill();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let charged = cgroup.usage().is_ok_and(|(bytes, _)| bytes >= MOST_CHARGED);
        let clean = cgroup.is_empty() && !charged;
        let keep = {
            let mut ready = self.ready.lock();
            let room = ready.cgroups.len() < MOST_KEPT;
            match clean && room && !self.closed.load(Ordering::SeqCst) {
                true => {
                    ready.cgroups.push(cgroup);
                    None
                }
                false => Some(cgroup),
            }
        };
        if let Some(surplus) = keep {
            let closed = self.closed.load(Ordering::SeqCst);
            let remove = move || {
                let cgroups = surplus.cgroups().clone();
                drop(surplus);
                // The last one of a factory that is gone takes its folder along.
                if closed {
                    cgroups.remove_folder();
                }
            };
            let _ = tokio::task::spawn_blocking(remove).await;
        }
    }

    /// Nothing is kept from now on.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub(super) fn clear_networks(&self) {
        let (networks, bridged) = {
            let mut ready = self.ready.lock();
            (std::mem::take(&mut ready.networks), std::mem::take(&mut ready.bridged))
        };
        drop((networks, bridged));
    }

    /// Removes everything that is ready. Blocks.
    pub(super) fn clear(&self) {
        let ready = std::mem::take(&mut *self.ready.lock());
        drop(ready);
    }
}
