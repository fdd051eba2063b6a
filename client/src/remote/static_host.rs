//! A host that serves files and knows nothing of Satchel.

use std::ops::Range;

use reqwest::{Method, Response};

use super::tls::ClientTls;
use super::{RemoteError, Trust, http_client, transport_error};

/// A static host, ready to be asked. Cheap to clone; connections are shared.
#[derive(Clone)]
pub struct StaticHost {
    url: String,
    trust: Trust,
    http: reqwest::Client,
    tls: ClientTls,
}

impl StaticHost {
    /// Prepares to ask a host; `url` is `https://HOST[:PORT][/PREFIX]` without a slash at its end.
    ///
    /// # Errors
    /// `Setup` when the machine's certificates or resolver cannot be used.
    pub fn new(url: &str, trust: &Trust) -> Result<Self, RemoteError> {
        let (http, tls) = http_client(trust)?;
        Ok(Self { url: url.to_owned(), trust: *trust, http, tls })
    }

    /// The host and the path its objects are below.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Begins to fetch a file, or a range of it; any status is an answer.
    pub(crate) async fn get(&self, path: &str, range: Option<Range<u64>>) -> Result<Response, RemoteError> {
        let mut request = self.http.request(Method::GET, format!("{}/{path}", self.url));
        if let Some(range) = range {
            request =
                request.header("range", format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        }
        request.send().await.map_err(|error| self.body_error(error))
    }

    /// Turns an error in the middle of a body into ours.
    pub(crate) fn body_error(&self, error: reqwest::Error) -> RemoteError {
        transport_error(&self.url, &self.trust, &self.tls, error)
    }
}
