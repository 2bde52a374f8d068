//! The command line's own small HTTP client.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use crate::error::{Context, Result};

/// Sends a request and collects the whole answer.
pub(crate) async fn send(request: http::Request<Bytes>) -> Result<http::Response<Bytes>> {
    let url = request.uri().to_string();
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let answer = client.request(request.map(Full::new)).await;
    let answer = answer
        .context(|| format!("cannot reach {url}; `ol status` shows whether the cluster is up"))?;
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.context(|| format!("the answer of {url} broke off"))?;
    Ok(http::Response::from_parts(parts, body.to_bytes()))
}
