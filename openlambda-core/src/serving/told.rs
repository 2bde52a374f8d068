//! A connection's service, as the connection's other parts see it: [`Told`].

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::Service;

use super::departure::Phase;
use super::flushing::{Answering, Flush, Flushing};
use super::upgrade::Switch;

/// A connection's service, which tells what is going on.
#[derive(Debug)]
pub(super) struct Told<S> {
    pub(super) service: S,
    pub(super) phase: Phase,
    pub(super) flush: Flush,
    pub(super) switch: Switch,
}

impl<S, B> Service<Request<Incoming>> for Told<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
    B: Body,
{
    type Response = Response<Flushing<B>>;
    type Error = S::Error;
    type Future = Answering<S::Future>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        self.phase.call(&request);
        self.switch.offer(&mut request);
        Answering { reply: self.service.call(request), flush: self.flush.clone() }
    }
}
