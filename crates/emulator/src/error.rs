//! An error as AWS answers it.

use hyper::StatusCode;

/// A refused call: `__type`, `message` and the HTTP status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) name: &'static str,
    pub(crate) message: String,
}

impl ApiError {
    fn bad_request(name: &'static str, message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, name, message: message.into() }
    }

    pub(crate) fn unknown_operation(message: impl Into<String>) -> Self {
        Self::bad_request("UnknownOperationException", message)
    }

    pub(crate) fn serialization(message: impl Into<String>) -> Self {
        Self::bad_request("SerializationException", message)
    }

    pub(crate) fn validation(message: impl Into<String>) -> Self {
        Self::bad_request("ValidationException", message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::bad_request("ResourceNotFoundException", message)
    }

    pub(crate) fn limit_exceeded(message: impl Into<String>) -> Self {
        Self::bad_request("LimitExceededException", message)
    }

    pub(crate) fn throttling() -> Self {
        Self::bad_request("ThrottlingException", "Rate exceeded")
    }

    pub(crate) fn access_denied(message: impl Into<String>) -> Self {
        Self::bad_request("AccessDeniedException", message)
    }

    pub(crate) fn internal_failure() -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            name: "InternalFailure",
            message: "An internal failure occurred".to_owned(),
        }
    }

    pub(crate) fn too_large(bytes: usize) -> Self {
        Self {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            name: "RequestEntityTooLargeException",
            message: format!("The request's body is longer than {bytes} bytes"),
        }
    }
}
