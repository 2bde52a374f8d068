//! The real binaries, end to end, through the balancer.
//!
//! | module | what it drives |
//! |---|---|
//! | `story` | the documented way: up, deploy, invoke, ls, logs, rm, down, and the JSON of each |
//! | `table` | each row of the table of errors |
//! | `http` | headers, bodies and timings on their way through |
//! | `terminal` | what is printed where, with which status commands end, and what they say while they wait |
//! | `input` | bad input to the command line |
//! | `bench` | small runs of the benches |
//! | `author` | what one who writes functions does, from `ol new` to `ol rollback` |
//! | `readme` | every command of the README, as it stands there |
//! | `admin` | what pages, operators and scripts do over HTTP beside calls |
//! | `allow` | what the operator lets functions ask for |
//! | `deploy` | what a deployment takes, leaves out, and says |
//! | `examples` | what the README of each example says |
//! | `web` | web applications in Python: WSGI, ASGI, Flask, FastAPI |
//! | `websocket` | WebSockets: frames, closes, refusals, and what is left of them |
//! | `chat` | the chat, in every kind of sandbox |
//! | `page` | the chat page, in a real browser |
//! | `audit` | who has changed what |
//! | `identity` | who is let in, by the cluster's secret |
//! | `private` | whose folder a cluster is in |
//! | `removal` | what is left of functions that were removed |
//! | `attack` | requests that no honest client sends, to every port |
//! | `bodies` | the memory of bodies that wait at a worker |
//! | `failures` | what authors and callers are told of functions' failures |
//! | `frozen` | what instances do between calls |
//! | `drain` | ends and limits under load |
//! | `formats` | folders that other releases wrote |
//! | `hostile` | functions that misbehave |
//! | `chaos` | kill −9 of everything, at any time |

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]
#![allow(unreachable_pub, reason = "it is one binary of several modules")]

mod admin;
mod allow;
mod attack;
mod audit;
mod author;
#[cfg(feature = "bench")]
mod bench;
mod bodies;
mod chaos;
mod chat;
mod common;
mod compiled;
mod deploy;
mod disk;
mod drain;
#[path = "../../../openlambda-sandbox/tests/common/engine.rs"]
mod engine;
mod examples;
mod failures;
mod formats;
mod frozen;
mod hostile;
mod http;
mod identity;
mod input;
mod page;
mod private;
mod readme;
mod removal;
mod story;
mod table;
mod terminal;
mod web;
mod websocket;
