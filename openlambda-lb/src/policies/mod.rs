//! The balancing policies, and the catalogue that makes one from its name and parameters.
//!
//! | name | parameters | chooses |
//! |---|---|---|
//! | `round-robin` | | the next worker in turn |
//! | `random` | | any, uniformly |
//! | `power-of-two` | `d` | the least loaded of `d` random ones |
//! | `least-outstanding` | | the least loaded of all |
//! | `bounded-load` | `epsilon`, `vnodes` | the function's own worker on a hash ring, unless that is over its share |
//! | `ch-rlu` | `bound`, `chain`, `popular`, `vnodes` | the function's own worker; for popular functions, the next on the ring that is not loaded |
//! | `consistent-hashing` | `vnodes` | the function's own worker on a hash ring |
//! | `maglev` | `size` | the function's own worker in an evenly filled table |
//! | `min-worker-set` | `utilisation`, `vnodes`, `window` | the least loaded of the fewest workers that cover the function's demand |
//! | `openwhisk` | | from the function's own worker in co-prime steps to one with a free slot |
//! | `package-aware` | `threshold`, `vnodes` | the less loaded of two workers that have the function's package |
//! | `palette` | `assign`, `buckets` | the worker of the request's colour |
//! | `rendezvous` | | the worker with the highest random weight for the function |
//!
//! [`PolicyCatalog::standard`] knows these; [`PolicyCatalog::register`] adds one of your own.

mod bounded_load;
mod candidates;
mod catalog;
mod ch_rlu;
mod consistent_hashing;
mod least_outstanding;
mod load_order;
mod lookup_table;
mod maglev;
mod min_worker_set;
mod openwhisk;
mod package_aware;
mod palette;
mod power_of_d;
mod random;
mod rendezvous;
mod ring;
mod room;
mod round_robin;
mod worker_ring;

pub use bounded_load::BoundedLoad;
pub use catalog::{BuildPolicy, ParameterInfo, PolicyCatalog, PolicyConfig, PolicyEntry};
pub use ch_rlu::ChRlu;
pub use consistent_hashing::ConsistentHashing;
pub use least_outstanding::LeastOutstanding;
pub use load_order::LoadOrder;
pub use maglev::Maglev;
pub use min_worker_set::MinWorkerSet;
pub use openwhisk::OpenWhisk;
pub use package_aware::PackageAware;
pub use palette::{Assignment, Palette};
pub use power_of_d::PowerOfD;
pub use random::Random;
pub use rendezvous::Rendezvous;
pub use ring::Ring;
pub use round_robin::RoundRobin;
