//! Why a reconcile fails. It is tried again.

use crate::read::Incomplete;
use std::time::Duration;

/// The limit of one request to the API server.
pub const API_TIMEOUT: Duration = Duration::from_secs(10);

/// A failed reconcile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused, or did not answer.
    #[error("cannot {what}: {}", words(source))]
    Api {
        /// What was tried.
        what: &'static str,
        /// What it said.
        #[source]
        source: kube::Error,
    },
    /// The API server did not answer in time.
    #[error("cannot {0}: the API server did not answer within {API_TIMEOUT:?}")]
    Timeout(&'static str),
    /// The object cannot be read.
    #[error(transparent)]
    Incomplete(#[from] Incomplete),
    /// It is no Tunnel that this operator knows.
    #[error("the Tunnel cannot be read ({0}): correct the field, or delete the Tunnel")]
    Unreadable(String),
    /// A bug.
    #[error("no end after {0} steps, the last one {1}: please report this as a bug")]
    Endless(usize, String),
    /// Another one. What it said is not kept: it may hold anything.
    #[error("a panic: please report this as a bug, with the place that the log has")]
    Panic,
}

/// An API server's refusal in its own words, not as the whole object that they came in.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    }
}

impl Error {
    /// The HTTP status that the API server refused with.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source: kube::Error::Api(status), .. } => Some(status.code),
            _ => None,
        }
    }

    /// It is not as it was read (409), or not there any more (404).
    pub fn is_outdated(&self) -> bool {
        matches!(self.code(), Some(404 | 409))
    }

    /// By quota, policy or rights: trying on at once changes nothing.
    pub fn is_refusal(&self) -> bool {
        matches!(self.code(), Some(400 | 403 | 422))
    }

    /// A create in a namespace that is being deleted is refused, for this cause.
    pub fn is_namespace_ending(&self) -> bool {
        let Self::Api { source: kube::Error::Api(status), .. } = self else { return false };
        let causes = status.details.iter().flat_map(|details| &details.causes);
        causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
    }
}
