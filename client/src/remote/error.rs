//! Why a server could not be asked, or said no.

use std::error::Error;

use reqwest::{Response, StatusCode};
use serde::Deserialize;

use super::tls::Fingerprint;
use crate::said::printable;

/// What went wrong between client and server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// The URL is not one Satchel can use.
    #[error("`{url}` is no server address: {reason}")]
    BadUrl {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// TLS or the HTTP client could not be prepared.
    #[error("cannot prepare connections: {reason}")]
    Setup {
        /// Why.
        reason: String,
    },
    /// The token is none that any server gave.
    #[error("the token is {reason}")]
    BadToken {
        /// What is wrong with it; never the token itself.
        reason: &'static str,
    },
    /// Nobody is to be contacted.
    #[error("the server is not asked: this is --offline")]
    Offline,
    /// No connection, or it broke or fell silent.
    #[error("cannot reach {url}")]
    Unreachable {
        /// The server.
        url: String,
        /// What the transport said.
        #[source]
        source: reqwest::Error,
    },
    /// What was being sent stopped moving.
    #[error("cannot reach {url}: nothing that was sent to it got on for {seconds} s")]
    Stalled {
        /// The server.
        url: String,
        /// For how long.
        seconds: u64,
    },
    /// The server shows another certificate than the pinned one.
    #[error(
        "{url} shows the certificate {found}, but {expected} is pinned: this may be another server in its place"
    )]
    OtherCertificate {
        /// The server.
        url: String,
        /// The pinned certificate.
        expected: Fingerprint,
        /// The one it showed.
        found: Fingerprint,
    },
    /// The server's certificate is from no authority this machine knows.
    #[error("{url} shows the certificate {found}, which no authority known here has signed")]
    UnknownCertificate {
        /// The server.
        url: String,
        /// The one it showed.
        found: Fingerprint,
    },
    /// The server answers, but not with this interface.
    #[error("{url} does not speak interface version 1 of Satchel (it says: {found})")]
    NotThisInterface {
        /// The server.
        url: String,
        /// The version it names, or none.
        found: String,
    },
    /// The server refused the request.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The stable code of `docs/api.md`, or empty when the answer had none.
        code: String,
        /// The server's sentence.
        message: String,
        /// What the code adds: `head`, `missing`, `supported`.
        details: serde_json::Value,
        /// Seconds after which to try again, when the server says so.
        retry_after_s: Option<u64>,
    },
    /// The server's answer makes no sense.
    #[error("{url} sent {reason}")]
    Unexpected {
        /// The server.
        url: String,
        /// What it sent.
        reason: String,
    },
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorFields,
}

#[derive(Deserialize)]
struct ErrorFields {
    code: String,
    message: String,
    #[serde(flatten)]
    details: serde_json::Value,
}

impl RemoteError {
    /// The server's stable error code, when it refused with one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Whether the same request may succeed later without anyone changing anything here.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Stalled { .. } | Self::Unexpected { .. } => true,
            Self::Refused { status, code, .. } => {
                status.is_server_error() || code == "too_slow" || *status == StatusCode::TOO_MANY_REQUESTS
            }
            _ => false,
        }
    }

    /// Reads a refusal: the JSON of `docs/api.md`, or whatever a proxy in between wrote.
    pub(super) async fn refused(url: &str, mut response: Response) -> Self {
        const MAX_BODY_BYTES: usize = 65_536;
        let status = response.status();
        let retry_after_s =
            response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let mut body = Vec::new();
        while let Ok(Some(part)) = response.chunk().await {
            body.extend_from_slice(&part);
            if body.len() > MAX_BODY_BYTES {
                break;
            }
        }
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(ErrorBody { error }) => Self::Refused {
                status,
                code: error.code,
                message: printable(&error.message),
                details: error.details,
                retry_after_s,
            },
            Err(_) => Self::Refused {
                status,
                code: String::new(),
                message: format!("{url} answered {status}"),
                details: serde_json::Value::Null,
                retry_after_s,
            },
        }
    }
}

/// An error and its causes in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_does_not_write_to_the_terminal_as_it_likes() {
        assert_eq!(printable("no such image\x1b[2J\n"), "no such image\u{fffd}[2J\u{fffd}");
    }
}
