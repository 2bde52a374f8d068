//! OpenLambda's contracts, its pure deciders, and the worker around them.
//!
//! OpenLambda is a serverless (FaaS) platform for research: a load balancer in front of workers
//! that pull functions' code from a registry and run it in sandboxes. This crate holds
//!
//! * the **contracts**: the traits [`SandboxFactory`](sandbox::SandboxFactory),
//!   [`Sandbox`](sandbox::Sandbox), [`Registry`](registry::Registry) and
//!   [`BalancingPolicy`](balancing::BalancingPolicy), with the types and errors they speak in;
//! * the **pure deciders**: [`scheduler`], [`keep_alive`], [`queue`], [`code_cache`] and the
//!   balancer's reducer [`balancing::Cluster`]. They take time and randomness as inputs and do no
//!   I/O, so the simulator runs the very code that serves live traffic;
//! * the [`catalog`] by which deciders are chosen by name; a program can add its own;
//! * the **worker** (feature `worker`): the shell that carries out the deciders' actions;
//! * **in-memory implementations** (feature `memory`) and **conformance suites** (feature
//!   `conformance`) for all three traits, and for [`KeepAlivePolicy`](keep_alive::KeepAlivePolicy);
//! * **kits** (feature `kit`): what a new kind of sandbox or registry builds on ([`sandbox::kit`],
//!   [`registry::kit`]), and [`wrap`], which makes any of them slow, faulty or limited.
//!
//! Without default features the crate has neither tokio nor hyper.

pub mod allow;
mod arena;
#[cfg(feature = "serving")]
pub mod audit;
pub mod backoff;
pub mod balancing;
#[cfg(feature = "bundle")]
pub mod bundle;
pub mod catalog;
pub mod code_cache;
pub mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod failure;
pub mod files;
pub mod format;
pub mod function;
pub mod hash;
pub mod invocation;
pub mod json_lines;
pub mod keep_alive;
pub mod manifest;
#[cfg(feature = "memory")]
pub mod memory;
pub mod metrics;
mod pause_after;
pub mod queue;
pub mod random;
pub mod registry;
pub mod sandbox;
pub mod scheduler;
#[cfg(feature = "serving")]
pub mod serving;
pub mod time;
pub mod wire;
#[cfg(feature = "worker")]
pub mod worker;
pub mod worker_core;
#[cfg(feature = "kit")]
pub mod wrap;
