//! Errors as HTTP responses, with one table from the contract's error codes to statuses.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, HeaderValue, RETRY_AFTER};
use actix_web::{HttpRequest, HttpResponse, ResponseError};
use isol8_actors::ExecuteError;
use isol8_api::{ErrorBody, ErrorCode};
use isol8_engine::EngineError;
use isol8_engine::jobs::JobError;

/// An error response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    code: ErrorCode,
    message: String,
    retry_after: Option<Duration>,
}

impl ApiError {
    /// Makes an error with this code. The text says what went wrong, and how to fix it.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retry_after: None,
        }
    }

    /// Returns the error about a body for which no memory is left.
    pub(super) fn no_memory() -> Self {
        let text =
            "body: the bodies of other requests take up server.maxBodiesSize, try again later";
        Self::new(ErrorCode::Unavailable, text)
    }

    /// Returns the error code.
    pub(super) fn code(&self) -> ErrorCode {
        self.code
    }
}

impl From<JobError> for ApiError {
    fn from(error: JobError) -> Self {
        Self::new(error.code, error.to_string())
    }
}

impl From<ExecuteError> for ApiError {
    fn from(error: ExecuteError) -> Self {
        Self {
            code: error.code(),
            retry_after: error.retry_after(),
            message: error.to_string(),
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Job(error) => error.into(),
            EngineError::Execute(error) => error.into(),
        }
    }
}

/// Returns the HTTP status of an error code, as the contract defines it.
pub(super) fn status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::InvalidRequest
        | ErrorCode::Unsupported
        | ErrorCode::RuntimeUnavailable
        | ErrorCode::SetupFailed => StatusCode::BAD_REQUEST,
        ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorCode::Forbidden | ErrorCode::PolicyDenied => StatusCode::FORBIDDEN,
        ErrorCode::NotFound | ErrorCode::SessionNotFound | ErrorCode::FileNotFound => {
            StatusCode::NOT_FOUND
        }
        ErrorCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        ErrorCode::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        ErrorCode::RuntimeMismatch | ErrorCode::SessionExists => StatusCode::CONFLICT,
        ErrorCode::SessionLost => StatusCode::GONE,
        ErrorCode::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::BackendUnavailable => StatusCode::BAD_GATEWAY,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Whether the response to this error has a `Retry-After` header.
pub(super) fn tells_when_to_retry(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::TooManyRequests | ErrorCode::Unavailable)
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        status(self.code)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        if tells_when_to_retry(self.code) {
            let seconds = self.retry_after.map_or(1, |after| after.as_secs().max(1));
            response.insert_header((RETRY_AFTER, seconds));
        }
        response.json(ErrorBody {
            error: self.message.clone(),
            code: self.code,
        })
    }
}

/// Responds to a request whose path has no route.
pub async fn no_such_route(request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let text = format!("there is no {}", request.path());
    Err(ApiError::new(ErrorCode::NotFound, text))
}

/// Responds to a method that a path does not accept, with a header of those that it does.
pub(super) fn no_such_method(request: &HttpRequest, allowed: &str) -> HttpResponse {
    let (path, method) = (request.path(), request.method());
    let text = format!("{path} does not take {method}, only {allowed}");
    let mut response = ApiError::new(ErrorCode::MethodNotAllowed, text).error_response();
    // Names of methods and commas are always valid in a header.
    if let Ok(allowed) = HeaderValue::try_from(allowed) {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_for_now_says_when_to_come_back() {
        for code in [ErrorCode::Unavailable, ErrorCode::TooManyRequests] {
            let response = ApiError::new(code, "later").error_response();
            assert_eq!(response.headers().get(RETRY_AFTER).unwrap(), "1");
        }
    }
}
