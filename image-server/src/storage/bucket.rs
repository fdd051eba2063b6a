//! An object store in an S3 bucket, or in one of another program that speaks S3's protocol.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Uri;
use axum::http::uri::Authority;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, Error as StoreError, ObjectStore, RetryConfig};
use serde::{Deserialize, Serialize};

use super::{STAGING, StorageError};

const SCHEME: &str = "s3://";
/// Bucket names have at most 63 characters, keys 1,024 bytes, of which an object's path takes less than 200.
const MAX_NAME_CHARS: usize = 63;
const MAX_PREFIX_BYTES: usize = 512;
/// What objects of ours begin with: a server within another's is not told from its objects.
const OUR_PREFIXES: [&str; 3] = [STAGING, "image", "user"];

/// What is taken from the environment: who we are, and nothing that would change where the bucket is or what is sent.
const FROM_ENVIRONMENT: [&str; 10] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_METADATA_ENDPOINT",
];

/// How long a connection may take; and how long nothing may come of an answer, or of one to a request that is still being sent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(120);
/// Proxies that are used for what is not encrypted.
const PROXIES: [&str; 4] = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
const NOT_PROXIED: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// How long requests are repeated that a bucket does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Some seconds: clients are told, and ask again.
    OfServers,
    /// Some minutes: what was read for hours is not to be read again.
    OfPrograms,
}

impl Patience {
    fn retries(self) -> RetryConfig {
        match self {
            Self::OfServers => RetryConfig {
                backoff: BackoffConfig::default(),
                max_retries: 5,
                retry_timeout: Duration::from_secs(30),
            },
            Self::OfPrograms => RetryConfig {
                backoff: BackoffConfig {
                    init_backoff: Duration::from_secs(1),
                    max_backoff: Duration::from_secs(15),
                    base: 3.0,
                },
                // The time is the limit.
                max_retries: 1000,
                retry_timeout: Duration::from_secs(180),
            },
        }
    }
}

/// Where the objects of a server lie that does not keep them in its directory.
///
/// What gives access to it is taken from the environment at every start, never stored: `AWS_ACCESS_KEY_ID` and
/// `AWS_SECRET_ACCESS_KEY`, or what a container or an instance is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored")]
pub struct Bucket {
    bucket: String,
    /// What all names begin with, without slashes at its ends; may be empty.
    prefix: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    region: Option<String>,
}

/// What a file says of a bucket, which a person may have edited: as good as what a command line says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    bucket: String,
    prefix: String,
    endpoint: Option<String>,
    region: Option<String>,
}

impl TryFrom<Stored> for Bucket {
    type Error = BucketError;

    fn try_from(stored: Stored) -> Result<Self, BucketError> {
        let mut bucket: Self = format!("{SCHEME}{}/{}", stored.bucket, stored.prefix).parse()?;
        if let Some(endpoint) = &stored.endpoint {
            bucket = bucket.at(endpoint)?;
        }
        match stored.region {
            Some(region) => bucket.in_region(region),
            None => Ok(bucket),
        }
    }
}

/// Why what names a bucket does not.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BucketError {
    /// Not of the form.
    #[error(
        "{0:?} does not name a bucket: write s3://BUCKET or s3://BUCKET/PREFIX, of letters, digits, dots and dashes, and \
         without a part that is called staging, image or user"
    )]
    Form(String),
    /// Others could read content on the way, or change it.
    #[error(
        "{0:?} is no address of the form https://HOST[:PORT]: http:// is for an endpoint on this machine alone"
    )]
    Endpoint(String),
    /// It becomes a part of a host's name.
    #[error("{0:?} names no region: they are like eu-central-1")]
    Region(String),
}

impl Bucket {
    /// Names an endpoint other than Amazon's, such as `https://minio.example:9000`.
    ///
    /// # Errors
    /// `Endpoint`, unless it is https, or http on this machine.
    pub fn at(mut self, endpoint: &str) -> Result<Self, BucketError> {
        let endpoint = endpoint.trim_end_matches('/');
        // The library does not look, and panics at what is none.
        let is_address = endpoint.parse::<Uri>().is_ok_and(|uri| {
            let is_host = |host: &Authority| host.as_str() == host.host() || host.port_u16().is_some();
            uri.authority().is_some_and(is_host) && uri.query().is_none()
        });
        if !is_address || !is_private(endpoint) {
            return Err(BucketError::Endpoint(endpoint.to_owned()));
        }
        self.endpoint = Some(endpoint.to_owned());
        Ok(self)
    }

    /// Names the region, `us-east-1` if nobody does.
    ///
    /// # Errors
    /// `Region`, unless it is letters, digits and dashes.
    pub fn in_region(mut self, region: String) -> Result<Self, BucketError> {
        let is_region = |text: &str| {
            (1..=MAX_NAME_CHARS).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if !is_region(&region) {
            return Err(BucketError::Region(region));
        }
        self.region = Some(region);
        Ok(self)
    }

    pub(super) fn failed(&self, action: &'static str, source: StoreError) -> StorageError {
        StorageError::Bucket { bucket: self.clone(), action, source }
    }

    /// The variable that has requests to the endpoint go to a proxy, if one does.
    fn proxied(&self) -> Option<&'static str> {
        let value = |name: &&'static str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let host = self.endpoint.as_deref().and_then(host)?;
        let exempt = NOT_PROXIED
            .iter()
            .filter_map(value)
            .any(|list| list.split(',').map(str::trim).any(|name| name == "*" || name == host));
        PROXIES.into_iter().find(|name| !exempt && value(name).is_some())
    }

    /// The buckets that this one would lie within.
    pub(super) fn outer(&self) -> Vec<Self> {
        let ends = self.prefix.match_indices('/').map(|(end, _)| end);
        let prefixes = ends.map(|end| self.prefix[..end].to_owned());
        let all = (!self.prefix.is_empty()).then(String::new).into_iter().chain(prefixes);
        all.map(|prefix| Self { prefix, ..self.clone() }).collect()
    }

    pub(super) fn open(&self, patience: Patience) -> Result<Arc<dyn ObjectStore>, StorageError> {
        // The HTTP client takes the process's provider; it fails when there is one, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let endpoint_is_plain =
            self.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
        let client = ClientOptions::new()
            .with_allow_http(endpoint_is_plain)
            .with_connect_timeout(CONNECT_TIMEOUT)
            // An answer takes as long as whoever reads it does.
            .with_timeout_disabled()
            .with_read_timeout(SILENCE);
        if let (true, Some(variable)) = (endpoint_is_plain, self.proxied()) {
            return Err(StorageError::Proxied { bucket: self.clone(), variable });
        }
        let mut builder = AmazonS3Builder::new()
            .with_client_options(client)
            .with_retry(patience.retries())
            .with_bucket_name(&self.bucket)
            .with_conditional_put(S3ConditionalPut::ETagMatch);
        for name in FROM_ENVIRONMENT {
            let Ok(value) = std::env::var(name) else { continue };
            let value = value.trim();
            // Some are sent in a head, where the library panics at them.
            if !value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
                return Err(StorageError::Environment { variable: name });
            }
            if let Ok(key) = name.to_ascii_lowercase().parse() {
                builder = builder.with_config(key, value);
            }
        }
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(region) = &self.region {
            builder = builder.with_region(region);
        }
        let store = builder.build().map_err(|source| self.failed("prepare to ask for it", source))?;
        Ok(match self.prefix.as_str() {
            "" => Arc::new(store),
            prefix => Arc::new(PrefixStore::new(store, Path::from(prefix))),
        })
    }
}

impl FromStr for Bucket {
    type Err = BucketError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || BucketError::Form(text.to_owned());
        let rest = text.strip_prefix(SCHEME).ok_or_else(form)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        let is_name = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        };
        let is_prefix = prefix.is_empty()
            || prefix.len() <= MAX_PREFIX_BYTES
                && prefix.split('/').all(|part| {
                    is_name(part) && part != "." && part != ".." && !OUR_PREFIXES.contains(&part)
                });
        if !is_name(bucket) || bucket.len() > MAX_NAME_CHARS || !is_prefix {
            return Err(form());
        }
        Ok(Self { bucket: bucket.to_owned(), prefix: prefix.to_owned(), endpoint: None, region: None })
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        match &self.endpoint {
            Some(endpoint) => write!(f, " at {endpoint}"),
            None => Ok(()),
        }
    }
}

/// Whether nobody on the way can read along.
fn is_private(endpoint: &str) -> bool {
    if let Some(rest) = endpoint.strip_prefix("https://") {
        return !rest.is_empty() && !rest.contains('@');
    }
    host(endpoint).is_some_and(|host| {
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

/// Whom requests to an endpoint of `http://` go to.
fn host(endpoint: &str) -> Option<&str> {
    let authority = endpoint.strip_prefix("http://").filter(|rest| !rest.contains('@'))?;
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => authority.split([':', '/']).next(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_named_by_address_and_prefix() {
        for (text, prefix) in [
            ("s3://desktops", ""),
            ("s3://desktops/", ""),
            ("s3://desktops/prod", "prod"),
            ("s3://my.desktops-1/a/b_c/", "a/b_c"),
        ] {
            let bucket: Bucket = text.parse().unwrap();
            assert_eq!(bucket.prefix, prefix, "{text}");
            assert_eq!(bucket.to_string(), text.trim_end_matches('/'));
        }
        for text in [
            "desktops",
            "s3://",
            "s3:///prod",
            "gs://desktops",
            "s3://desk tops",
            "s3://desktops//a",
            "s3://desktops/../a",
            "s3://user:password@desktops",
            "s3://desktops/staging",
            "s3://desktops/prod/image",
        ] {
            assert_eq!(text.parse::<Bucket>(), Err(BucketError::Form(text.to_owned())), "{text}");
        }
        assert!(format!("s3://{}", "a".repeat(MAX_NAME_CHARS + 1)).parse::<Bucket>().is_err());
    }

    #[test]
    fn a_bucket_lies_within_those_of_shorter_prefixes() {
        let outer = |text: &str| -> Vec<String> {
            let bucket: Bucket = text.parse().unwrap();
            bucket.outer().iter().map(Bucket::to_string).collect()
        };
        assert_eq!(outer("s3://desktops"), [""; 0]);
        assert_eq!(outer("s3://desktops/a"), ["s3://desktops"]);
        assert_eq!(outer("s3://desktops/a/b/c"), ["s3://desktops", "s3://desktops/a", "s3://desktops/a/b"]);
    }

    #[test]
    fn endpoints_are_https_or_here() {
        let bucket: Bucket = "s3://desktops".parse().unwrap();
        for endpoint in [
            "https://minio.example:9000",
            "https://s3.example/",
            "http://127.0.0.1:9000",
            "http://[::1]:9000",
            "http://localhost:9000/",
        ] {
            assert!(bucket.clone().at(endpoint).is_ok(), "{endpoint}");
        }
        for endpoint in [
            "http://minio.example:9000",
            "http://127.0.0.1.example",
            "http://127.0.0.1@minio.example",
            "http://127.0.0.1:80@minio.example",
            "https://user:secret@minio.example",
            "http://localhost.example",
            "minio.example",
            "https://",
            "ftp://localhost",
            "https://s3 example:9000",
            "https://s3.example:port",
            "https://s3.example?a=b",
            "https://s3.example\n",
        ] {
            assert!(bucket.clone().at(endpoint).is_err(), "{endpoint}");
        }
    }

    #[test]
    fn what_is_stored_of_a_bucket_is_read_again() {
        let bucket: Bucket = "s3://desktops/prod".parse().unwrap();
        let bucket = bucket.at("https://s3.example").unwrap().in_region("eu-1".to_owned()).unwrap();
        let text = serde_json::to_string(&bucket).unwrap();
        assert_eq!(
            text,
            r#"{"bucket":"desktops","prefix":"prod","endpoint":"https://s3.example","region":"eu-1"}"#
        );
        assert_eq!(serde_json::from_str::<Bucket>(&text).unwrap(), bucket);
        for (from, to) in [
            ("https", "http"),
            ("prod", "staging"),
            ("desktops", "a@b"),
            ("eu-1", "eu.example/"),
            ("eu-1", ""),
        ] {
            let edited = serde_json::from_str::<Bucket>(&text.replace(from, to));
            assert!(edited.is_err(), "{to}");
        }
    }
}
