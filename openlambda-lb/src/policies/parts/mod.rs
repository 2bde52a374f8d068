//! The building blocks of balancing policies: data structures that follow the cluster's events. A decision
//! allocates nothing and depends on no randomly seeded order.
//!
//! | part | what it is | per decision | source |
//! |---|---|---|---|
//! | [`Candidates`] | the workers that a request may go to | O(1); a retry O(k² log n) | |
//! | [`WorkerRing`] | a consistent-hash ring that follows the workers | O(1) on average | Karger et al., STOC 1997 |
//! | [`Ring`] | the same without events: you add the points | O(1) on average | Karger et al., STOC 1997 |
//! | [`LookupTable`] | a table from keys to workers, in even shares | O(1) | Eisenbud et al., Maglev, NSDI 2016 |
//! | [`LoadOrder`] | workers in order of a small whole number | O(1) | Batagelj and Zaveršnik, 2003 |
//! | [`FillOrder`] | workers in order of how full they are | O(1) | as `LoadOrder` |
//! | [`Room`] | which workers have a free slot | O(1) | |
//! | [`WorkerQueue`] | workers in order of arrival, removed from anywhere | O(1) | |
//! | [`BySlot`] | one value per worker | O(1) | |
//! | [`FewWorkers`] | up to eight workers, kept with a request | O(8) | |
//! | [`FixedMap`] | from 64-bit keys to values | O(1) on average | Knuth, TAOCP 3, 6.4L and R |
//!
//! A part with a method `observe` needs every event that the policy observes. A whole policy of two
//! parts, the function's own worker on a ring while that has a free slot, else the least loaded worker:
//!
//! ```
//! use openlambda_core::balancing::{
//!     BalancingPolicy, ClusterView, Decision, PolicyContext, PolicyEvent, Refusal, RequestInfo, Why,
//! };
//! use openlambda_lb::policies::parts::{Candidates, LoadOrder, WorkerRing};
//!
//! #[derive(Debug)]
//! struct HomeOrLeast {
//!     ring: WorkerRing,
//!     order: LoadOrder,
//! }
//!
//! impl BalancingPolicy for HomeOrLeast {
//!     fn select(
//!         &mut self,
//!         request: &RequestInfo<'_>,
//!         view: &ClusterView<'_>,
//!         cx: &mut PolicyContext<'_>,
//!     ) -> Decision {
//!         let candidates = Candidates::of(request, view);
//!         let home = self.ring.home(request.key, &candidates, view);
//!         let has_room = home
//!             .and_then(|home| view.worker(home))
//!             .is_some_and(|worker| worker.in_flight() < worker.capacity());
//!         match home.filter(|_| has_room).or_else(|| self.order.draw_lowest(&candidates, cx.rng)) {
//!             Some(worker) => Decision::To(worker, Why("home or least loaded")),
//!             None => Decision::Refuse(Refusal::NoWorker),
//!         }
//!     }
//!
//!     fn observe(
//!         &mut self,
//!         event: &PolicyEvent<'_>,
//!         view: &ClusterView<'_>,
//!         _: &mut PolicyContext<'_>,
//!     ) {
//!         self.ring.observe(event, view);
//!         self.order.observe(event, view);
//!     }
//! }
//!
//! openlambda_core::conformance::balancing::check(|| {
//!     Box::new(HomeOrLeast { ring: WorkerRing::new(100), order: LoadOrder::new() })
//! });
//! ```

mod by_slot;
mod candidates;
mod few_workers;
mod fill_order;
mod fixed_map;
mod load_order;
mod lookup_table;
mod ring;
mod room;
mod worker_queue;
mod worker_ring;

pub use by_slot::BySlot;
pub use candidates::Candidates;
pub use few_workers::FewWorkers;
pub use fill_order::FillOrder;
pub use fixed_map::FixedMap;
pub use load_order::LoadOrder;
pub use lookup_table::LookupTable;
pub use ring::Ring;
pub use room::Room;
pub use worker_queue::WorkerQueue;
pub use worker_ring::WorkerRing;
