//! The balancing policies, and the catalogue that makes one from its name and parameters.
//!
//! | name | parameters | chooses |
//! |---|---|---|
//! | `round-robin` | | the next worker in turn |
//! | `random` | | any, uniformly |
//! | `power-of-two` | `d` | the least loaded of `d` random ones |
//! | `least-outstanding` | | the least loaded of all |
//! | `bounded-load` | `epsilon`, `vnodes` | the function's own worker on a hash ring, unless that is over its share |
//! | `central-queue` | `wait`, `most` | the first free slot, in order of arrival |
//! | `ch-rlu` | `bound`, `chain`, `popular`, `vnodes` | the function's own worker; for popular functions, the next on the ring that is not overloaded |
//! | `consistent-hashing` | `vnodes` | the function's own worker on a hash ring |
//! | `dodoor` | `b` | the less loaded of two, by a load vector that is `b` decisions old at most, or half as many as there are workers |
//! | `guardrails` | `inner`, `c`, `g`, `size` | another policy's choice, unless that worker has had too much work of this size |
//! | `hermod` | | the fullest worker with a free slot, warm first; all busy: the least loaded |
//! | `hiku` | | the least loaded worker with an idle instance of the function |
//! | `join-idle-queue` | `below` | the worker that has been idle longest, else any |
//! | `late-binding` | `d`, `patience`, `wait` | the first of `d` random workers that has a slot free |
//! | `maglev` | `size` | the function's own worker in an evenly filled table |
//! | `min-worker-set` | `utilisation`, `vnodes`, `window` | the least loaded of the fewest workers that cover the function's demand |
//! | `openwhisk` | | the first worker with a free slot, in co-prime steps from the function's own |
//! | `package-aware` | `threshold`, `vnodes` | the less loaded of two workers that have the function's package |
//! | `palette` | `assign`, `buckets` | the worker of the request's colour |
//! | `peak-ewma` | `tau` | the one of two with the lower expected latency, by its latencies and calls in flight |
//! | `prequal` | `probes`, `pool`, `quantile`, … | the best of a pool of recently probed workers |
//! | `rendezvous` | | the worker with the highest random weight for the function |
//!
//! [`PolicyCatalog::standard`] has these (`standard.rs` is the list);
//! [`Catalog::register`](openlambda_core::catalog::Catalog::register) adds your own; [`parts`]
//! has what most policies are built from.

mod bounded_load;
mod catalog;
mod central_queue;
mod ch_rlu;
mod consistent_hashing;
mod dodoor;
mod guardrails;
mod hermod;
mod hiku;
mod join_idle_queue;
mod late_binding;
mod least_outstanding;
mod maglev;
mod min_worker_set;
mod openwhisk;
mod package_aware;
mod palette;
pub mod parts;
mod peak_ewma;
mod power_of_d;
mod prequal;
mod random;
mod rendezvous;
mod round_robin;
mod standard;

pub use bounded_load::BoundedLoad;
pub use catalog::{
    BuildPolicy, ParameterInfo, Parameters, PolicyCatalog, PolicyConfig, PolicyEntry, PolicyMaker,
};
pub use central_queue::CentralQueue;
pub use ch_rlu::ChRlu;
pub use consistent_hashing::ConsistentHashing;
pub use dodoor::Dodoor;
pub use guardrails::Guardrails;
pub use hermod::Hermod;
pub use hiku::Hiku;
pub use join_idle_queue::JoinIdleQueue;
pub use late_binding::LateBinding;
pub use least_outstanding::LeastOutstanding;
pub use maglev::Maglev;
pub use min_worker_set::MinWorkerSet;
pub use openwhisk::OpenWhisk;
pub use package_aware::PackageAware;
pub use palette::{Assignment, Palette};
pub use peak_ewma::PeakEwma;
pub use power_of_d::PowerOfD;
pub use prequal::{Prequal, PrequalParameters};
pub use random::Random;
pub use rendezvous::Rendezvous;
pub use round_robin::RoundRobin;
