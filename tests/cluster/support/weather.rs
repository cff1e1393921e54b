//! What requests meet on their way through a proxy, whichever they are.

use super::api_proxy::{Cut, Request};
use axum::body::Body;
use axum::http::Response;
use futures::future::BoxFuture;

/// The answer to a request, to be waited for.
pub type Answer<'a> = BoxFuture<'a, Result<Response<Body>, Cut>>;

/// What requests meet.
pub trait Weather: Send + Sync {
    /// Lets a request pass, or what is to happen to it happen.
    fn pass<'a>(&'a self, request: &'a Request, forward: Answer<'a>) -> Answer<'a>;
}
