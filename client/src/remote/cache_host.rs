//! Another machine that serves its cache.

use reqwest::{Method, Response};

use super::tls::ClientTls;
use super::{API_HEADER, API_VERSION, Fingerprint, RemoteError, Trust, http_client, transport_error};

/// A machine that serves its cache, ready to be asked. Cheap to clone; connections are shared.
#[derive(Clone)]
pub struct CacheHost {
    /// What to call it: its address without the secret.
    shown: String,
    url: String,
    token: String,
    trust: Trust,
    http: reqwest::Client,
    tls: ClientTls,
}

impl CacheHost {
    /// Prepares to ask `HOST:PORT`, which must show exactly this certificate; `shown` is what messages call it.
    ///
    /// # Errors
    /// `Setup` when the HTTP client cannot be prepared.
    pub fn new(
        shown: String,
        host: &str,
        fingerprint: Fingerprint,
        token: String,
    ) -> Result<Self, RemoteError> {
        let trust = Trust::Pinned(fingerprint);
        let (http, tls) = http_client(&trust)?;
        Ok(Self { shown, url: format!("https://{host}"), token, trust, http, tls })
    }

    /// What messages call it.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Response, RemoteError> {
        self.send(self.http.request(Method::GET, format!("{}{path}", self.url))).await
    }

    pub(crate) async fn post(&self, path: &str, body: Vec<u8>) -> Result<Response, RemoteError> {
        let request = self.http.request(Method::POST, format!("{}{path}", self.url));
        self.send(request.header("content-type", "application/octet-stream").body(body)).await
    }

    /// Turns an error in the middle of a body into ours.
    pub(crate) fn body_error(&self, error: reqwest::Error) -> RemoteError {
        transport_error(&self.shown, &self.trust, &self.tls, error)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, RemoteError> {
        let request = request.bearer_auth(&self.token).header(API_HEADER, API_VERSION);
        let response = request.send().await.map_err(|error| self.body_error(error))?;
        let spoken = response.headers().get(API_HEADER).and_then(|value| value.to_str().ok());
        if response.status().is_success() && spoken != Some(API_VERSION) {
            let found = spoken.unwrap_or("none").to_owned();
            return Err(RemoteError::NotThisInterface { url: self.shown.clone(), found });
        }
        match response.status().is_success() {
            true => Ok(response),
            false => Err(RemoteError::refused(&self.shown, response).await),
        }
    }
}
