//! The command line's own small HTTP client.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use openlambda_core::serving::{Connector, Secret};

use crate::error::{Context, Result};

/// How long it may take until a server accepts a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Sends a request to a server of the cluster with this secret, and collects the whole answer.
pub(crate) async fn send(
    request: http::Request<Bytes>,
    secret: Option<&Secret>,
) -> Result<http::Response<Bytes>> {
    let url = request.uri().to_string();
    let connector = Connector::new(secret.cloned(), CONNECT_LIMIT);
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let answer = client.request(request.map(Full::new)).await;
    let answer = answer
        .context(|| format!("cannot reach {url}; `ol status` shows whether the cluster is up"))?;
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.context(|| format!("the answer of {url} broke off"))?;
    Ok(http::Response::from_parts(parts, body.to_bytes()))
}
