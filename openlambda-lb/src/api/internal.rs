//! Requests between the processes of one cluster.
//!
//! | request | answer |
//! |---|---|
//! | `POST /internal/workers`, an announcement | `{}`; a worker repeats it with each heartbeat |
//! | `POST /internal/refresh`, a function | its present version, which calls use from now on |
//! | `GET /internal/cluster` | the workers, as the balancer sees them |
//!
//! [`Access`](openlambda_core::serving::Access) has let them in: those who know the cluster's secret, or where
//! there is none, those on this machine.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use openlambda_core::failure::{Failure, FailureKind};
use openlambda_core::function::FunctionRef;
use openlambda_core::invocation::Body;
use openlambda_core::wire::{self, Announcement};
use serde_json::json;

use crate::front::Resolver;
use crate::workers::Selector;
use crate::workers::membership::Announcements;

/// The largest body of a request.
const MOST_BODY: usize = 64 << 10;

/// Answers the cluster's own processes.
#[derive(Debug)]
pub(crate) struct Internal {
    /// The policy's name.
    pub(crate) policy: Arc<str>,
    pub(crate) selector: Arc<Selector>,
    pub(crate) announcements: Announcements,
    pub(crate) resolver: Arc<Resolver>,
}

impl Internal {
    pub(crate) async fn answer(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Response<Body> {
        let nothing = || {
            let message = "there is nothing here; call /run/<function>";
            wire::failure_response(&Failure::new(FailureKind::NotFound, message), None)
        };
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        if parts.method == Method::GET && path == wire::CLUSTER_PATH {
            return wire::json_response(&self.selector.status(&self.policy));
        }
        if parts.method != Method::POST
            || ![wire::ANNOUNCE_PATH, wire::REFRESH_PATH].contains(&path)
        {
            return nothing();
        }
        let answer = async {
            let body = Limited::new(body, MOST_BODY).collect().await;
            let body = body.map_err(|error| bad(format!("the body cannot be read: {error}")))?;
            let body = body.to_bytes();
            if path == wire::ANNOUNCE_PATH {
                let announcement: Announcement = serde_json::from_slice(&body)
                    .map_err(|error| bad(format!("this is not an announcement: {error}")))?;
                self.announcements.take(announcement, peer)?;
                return Ok(wire::json_response(&json!({})));
            }
            let text = std::str::from_utf8(&body).unwrap_or_default().trim();
            let reference: FunctionRef = text.parse().map_err(|error| bad(format!("{error}")))?;
            let resolution = self.resolver.refresh(&reference).await?;
            Ok(wire::json_response(resolution.resolved()))
        };
        answer.await.unwrap_or_else(|failure: Failure| wire::failure_response(&failure, None))
    }
}

fn bad(message: String) -> Failure {
    Failure::new(FailureKind::BadRequest, message)
}
