//! Every header name and HTTP encoding between client, balancer and worker, in one place.
//!
//! | file | what |
//! |---|---|
//! | `headers.rs` | the `x-openlambda-` headers, hop-by-hop headers, what a browser's page may not do |
//! | `paths.rs` | internal paths, paths of invocations, of the registry |
//! | `failures.rs` | the one table from failures to statuses, their JSON and headers, and back |
//! | `timing.rs` | `Server-Timing` |
//! | `trace.rs` | `traceparent` |
//! | `cluster.rs` | announcements, events, reservations, a balancer's state |
//! | `replies.rs` | replies in JSON and metrics |
//! | `websocket.rs` | a client's handshake for a WebSocket, and the two ends of its bytes |
//!
//! # Late binding
//!
//! A balancer that has not chosen a worker yet may ask several for a place in their queues:
//!
//! ```text
//! balancer                                            worker
//!    │── GET /internal/events?balancer=B ──────────────▶│ one stream, kept open
//!    │── POST /internal/reservations {B, ticket, …} ───▶│ the place waits like a call
//!    │◀─ {"event": "offered", "ticket"} on B's stream ──│ a slot is held, for a short time
//!    │── /run/… with x-openlambda-reservation: B/ticket ▶│ runs in it
//!    │   or DELETE /internal/reservations/B/ticket ────▶│ the slot goes to the next
//! ```
//!
//! A call whose reservation is over, or never existed, is treated like any other. Each of these messages
//! may get lost: a reservation ends at its deadline, a held slot after the worker's time-out, and both
//! when the balancer's last stream of events ends.

mod cluster;
mod failures;
mod headers;
mod paths;
mod replies;
mod timing;
mod trace;
mod websocket;

pub use cluster::{
    Announcement, BalancerStatus, Reservation, ReservationKey, WorkerEvent, WorkerStatus,
    is_balancer_name,
};
pub use failures::{
    FailureBody, TRAILERS, body_too_large, closing, failure_kind_of, failure_response,
    failure_trailers, read_failure, status_of,
};
pub use headers::{
    BALANCER, CLOSE, CLOSE_TRAILER, DECLARED_LENGTH, DETAIL, DIGEST, ERROR, FAILURE, IDLE, PREFIX,
    REQUEST_ID, RESERVATION, SERVER_TIMING, START, STARTED, VERSION, WEBSOCKET, WORKER,
    declares_more_than, detail_of, id_value, is_hop_by_hop, is_relayed, refuse_ambiguous,
    refuse_pages, refuse_unclear, remove_hop_by_hop, remove_own, request_id_of, takes_trailers,
    tells_origin,
};
pub use paths::{
    ANNOUNCE_PATH, CLUSTER_PATH, EVENTS_PATH, INTERNAL, LOAD_PATH, REFRESH_PATH, RESERVATIONS_PATH,
    RegistryPath, Target, is_mutable, parse_registry_path, parse_target, run_path, shown,
};
pub use replies::{DEFAULT_BODY_LIMIT, json_response, metrics_response};
pub use timing::{parse_server_timing, server_timing};
pub use trace::TraceParent;
pub use websocket::{asks_for_websocket, going_away, refuse_handshake};
