//! The image server as the client sees it: one origin, one pinned certificate, one token.

use std::time::Duration;

use reqwest::header::AUTHORIZATION;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

mod api;
mod cache_host;
mod channels;
mod contact;
mod error;
mod outgoing;
mod retention;
mod static_host;
mod tls;
mod token;

pub use api::{
    AfterExpiry, BaseInfo, DesktopInfo, GoldenInfo, ImageInfo, LeaseAnswer, LeaseInfo, LeaseWish, Listing,
    Placing, PresentIn, RemovedDesktop, ServerInfo, VersionInfo, WantedInfo,
};
pub use cache_host::CacheHost;
pub use channels::{ChannelInfo, ChannelMove, NamedVersion, Outcome, RollbackWord, Rollout, States};
pub use contact::Contact;
pub use error::RemoteError;
pub use retention::{Policy, Retention};
pub use static_host::StaticHost;
pub use tls::{Fingerprint, Trust};

use contact::LastContact;
use tls::ClientTls;
use token::Token;

use crate::said::printable;

/// The interface version this client speaks.
pub(crate) const API_VERSION: &str = "1";
pub(crate) const API_HEADER: &str = "satchel-api";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a response may stay silent before it counts as lost.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes under way at once: 100 Mbit/s at 150 ms needs 1.9 MB for one stream, 1 Gbit/s at 60 ms 7.5 MB for all.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A connection is looked after so often,
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// and is lost when nothing comes back for so long.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// The same where much is sent: the question queues behind megabytes in the kernel, on a link that may take long for them.
const SENDING_PING_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest control-plane answer anyone reads, bytes.
const MAX_JSON_BYTES: usize = 8 << 20;

/// Where a server is and how it is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `https://HOST:PORT`, without a path.
    pub url: String,
    /// How its certificate is judged.
    pub trust: Trust,
}

impl Endpoint {
    /// Takes a URL as a person types it: `HOST`, `HOST:PORT` or `https://HOST:PORT/`.
    ///
    /// # Errors
    /// `BadUrl` for another scheme, a path, a query, or what is no URL at all.
    pub fn new(url: &str, trust: Trust) -> Result<Self, RemoteError> {
        let bad = |reason: &str| RemoteError::BadUrl { url: url.to_owned(), reason: reason.to_owned() };
        let full = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        let parsed = reqwest::Url::parse(&full).map_err(|error| bad(&error.to_string()))?;
        if parsed.scheme() != "https" {
            return Err(bad("Satchel speaks https only"));
        }
        if parsed.path() != "/" || parsed.query().is_some() || !parsed.username().is_empty() {
            return Err(bad("give scheme, host and port only"));
        }
        Ok(Self { url: parsed.as_str().trim_end_matches('/').to_owned(), trust })
    }
}

/// A server, ready to be asked. Cheap to clone; connections are shared.
#[derive(Clone)]
pub struct Remote {
    endpoint: Endpoint,
    token: Token,
    http: reqwest::Client,
    /// For what is sent: on connections of its own, so that nothing that is waited for queues behind it.
    sending: reqwest::Client,
    tls: ClientTls,
    last: LastContact,
}

impl Remote {
    /// Prepares to ask a server; connects at the first request.
    ///
    /// # Errors
    /// `BadToken`; `Setup` when the machine's certificates or resolver cannot be used.
    pub fn new(endpoint: Endpoint, token: &str) -> Result<Self, RemoteError> {
        let token = Token::new(token)?;
        let (http, tls) = http_client(&endpoint.trust)?;
        // How long it may be silent depends on how much is under way: see `outgoing`.
        let sending = build(client_builder(&tls).http2_keep_alive_timeout(SENDING_PING_TIMEOUT))?;
        Ok(Self { endpoint, token, http, sending, tls, last: LastContact::default() })
    }

    /// Where a newer token is looked for when the server refuses this one, by every request once.
    #[must_use]
    pub fn renewing(mut self, newest: impl Fn() -> Option<String> + Send + Sync + 'static) -> Self {
        self.token.renewed_by(newest);
        self
    }

    /// Where the server is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What the last request of all that share these connections met, and when; none before anything was asked.
    pub fn last_contact(&self) -> Option<(Contact, Instant)> {
        self.last.get()
    }

    /// The certificate the server showed when it was last refused, if it was.
    pub fn refused_certificate(&self) -> Option<Fingerprint> {
        self.tls.refused()
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.request_by(&self.http, method, path)
    }

    /// A request that brings a body of some size, for [`send_out`](Self::send_out).
    fn outgoing(&self, method: Method, path: &str) -> RequestBuilder {
        self.request_by(&self.sending, method, path)
    }

    fn request_by(&self, http: &reqwest::Client, method: Method, path: &str) -> RequestBuilder {
        http.request(method, format!("{}{path}", self.endpoint.url)).header(API_HEADER, API_VERSION)
    }

    /// Sends a request and turns everything but success into an error.
    async fn send(&self, request: RequestBuilder) -> Result<Response, RemoteError> {
        self.send_any(request, &[]).await
    }

    /// As [`send`](Self::send), with other answers that are none.
    async fn send_any(
        &self,
        request: RequestBuilder,
        expected: &[StatusCode],
    ) -> Result<Response, RemoteError> {
        let response = self.send_authorized(request).await?;
        let spoken = response.headers().get(API_HEADER).and_then(|value| value.to_str().ok());
        if spoken != Some(API_VERSION) && response.status() != StatusCode::UPGRADE_REQUIRED {
            let found = spoken.unwrap_or("none").to_owned();
            return Err(self.failed(RemoteError::NotThisInterface { url: self.endpoint.url.clone(), found }));
        }
        if response.status().is_success() || expected.contains(&response.status()) {
            self.last.served();
            return Ok(response);
        }
        Err(self.failed(RemoteError::refused(&self.endpoint.url, response).await))
    }

    /// Sends a request with the token, and once more where the server refuses that and there is another by now.
    async fn send_authorized(&self, request: RequestBuilder) -> Result<Response, RemoteError> {
        let failed = |error| self.transport_error(error);
        let (http, request) = request.build_split();
        let mut request = request.map_err(failed)?;
        let token = self.token.header();
        request.headers_mut().insert(AUTHORIZATION, token.clone());
        // None for a body that is streamed: whoever sent it tries again with the token there is then.
        let again = request.try_clone();
        let response = http.execute(request).await.map_err(failed)?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        match (self.token.instead_of(&token), again) {
            (Some(token), Some(mut again)) => {
                again.headers_mut().insert(AUTHORIZATION, token);
                http.execute(again).await.map_err(failed)
            }
            _ => Ok(response),
        }
    }

    /// A request with a JSON body.
    fn with_json(
        &self,
        request: RequestBuilder,
        body: &impl Serialize,
    ) -> Result<RequestBuilder, RemoteError> {
        let bytes = serde_json::to_vec(body)
            .map_err(|error| self.unexpected(format!("a request that cannot be written: {error}")))?;
        Ok(request.header("content-type", "application/json").body(bytes))
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, RemoteError> {
        let response = self.send(request).await?;
        self.read_json(response).await
    }

    async fn read_json<T: DeserializeOwned>(&self, mut response: Response) -> Result<T, RemoteError> {
        let mut bytes = Vec::new();
        while let Some(part) = response.chunk().await.map_err(|error| self.transport_error(error))? {
            if bytes.len() + part.len() > MAX_JSON_BYTES {
                return Err(self.unexpected(format!("an answer of more than {MAX_JSON_BYTES} bytes")));
            }
            bytes.extend_from_slice(&part);
        }
        from_json(&bytes).map_err(|reason| self.unexpected(reason))
    }

    fn unexpected(&self, reason: String) -> RemoteError {
        RemoteError::Unexpected { url: self.endpoint.url.clone(), reason }
    }

    fn transport_error(&self, source: reqwest::Error) -> RemoteError {
        self.failed(transport_error(&self.endpoint.url, &self.endpoint.trust, &self.tls, source))
    }

    /// Notes that a request failed so.
    fn failed(&self, error: RemoteError) -> RemoteError {
        self.last.failed(&error);
        error
    }
}

/// Reads a JSON value of the server, or says why not as a terminal may show it: such reasons quote what was sent.
fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes)
        .map_err(|error| format!("an answer that is not valid: {}", printable(&error.to_string())))
}

/// An HTTP client that trusts as told.
fn http_client(trust: &Trust) -> Result<(reqwest::Client, ClientTls), RemoteError> {
    let tls = ClientTls::new(trust).map_err(|reason| RemoteError::Setup { reason })?;
    let http = build(client_builder(&tls).read_timeout(SILENCE_TIMEOUT))?;
    Ok((http, tls))
}

fn client_builder(tls: &ClientTls) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls.config())
        .https_only(true)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .user_agent(concat!("satchel/", env!("CARGO_PKG_VERSION")))
}

fn build(builder: reqwest::ClientBuilder) -> Result<reqwest::Client, RemoteError> {
    builder.build().map_err(|error| RemoteError::Setup { reason: error::chain(&error) })
}

fn transport_error(url: &str, trust: &Trust, tls: &ClientTls, source: reqwest::Error) -> RemoteError {
    let url = url.to_owned();
    match tls.take_refused() {
        Some(found) => match *trust {
            Trust::Pinned(expected) => RemoteError::OtherCertificate { url, expected, found },
            Trust::Authorities => RemoteError::UnknownCertificate { url, found },
        },
        // The URL of a request is our own business; its text would only lengthen the message.
        None => RemoteError::Unreachable { url, source: source.without_url() },
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_as_people_type_them() {
        for (typed, url) in [
            ("images.example.org", "https://images.example.org"),
            ("https://images.example.org/", "https://images.example.org"),
            ("127.0.0.1:7440", "https://127.0.0.1:7440"),
            ("https://[::1]:7440", "https://[::1]:7440"),
        ] {
            assert_eq!(Endpoint::new(typed, Trust::Authorities).unwrap().url, url);
        }
        for typed in ["http://a", "https://a/path", "https://a/?q", "", "https://u:p@a", "ftp://a", "a b"] {
            assert!(Endpoint::new(typed, Trust::Authorities).is_err(), "{typed}");
        }
    }

    #[test]
    fn what_a_server_says_that_is_not_valid_cannot_drive_the_terminal() {
        let reason = from_json::<AfterExpiry>(br#""\u001b[2J""#).unwrap_err();
        assert!(reason.contains("unknown variant `\u{fffd}[2J`"), "{reason:?}");
    }
}
