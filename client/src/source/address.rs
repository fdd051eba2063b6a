//! Sources as people name them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cache_address::without_secret;
use super::{CacheAddress, CacheSource, ChunkSource, DirectorySource, StaticSource};
use crate::remote::{Fingerprint, RemoteError, StaticHost, Trust};

/// `file:/PATH`; `https://HOST[:PORT][/PREFIX][#SHA256:...]`, the last part pinning the host's certificate; or
/// `cache://HOST:PORT/#FINGERPRINT.TOKEN`. Shown without its secret; kept whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SourceAddress {
    /// A directory.
    Directory(PathBuf),
    /// A static host.
    Host {
        /// `https://HOST[:PORT][/PREFIX]`, without a slash at its end.
        url: String,
        /// Its certificate, when it must be exactly this one.
        fingerprint: Option<Fingerprint>,
    },
    /// A cache that another machine serves.
    Cache(CacheAddress),
}

/// Text that names no source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no source: {reason}")]
pub struct BadSource {
    text: String,
    reason: String,
}

impl BadSource {
    /// Neither is repeated with what may be a secret.
    pub(super) fn new(text: &str, reason: &str) -> Self {
        Self { text: without_secret(text), reason: without_secret(reason) }
    }
}

impl SourceAddress {
    /// Whether it is on this machine, so that using it contacts nobody.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Directory(_))
    }

    /// Prepares to use the source; nothing is contacted yet.
    ///
    /// # Errors
    /// `BadUrl`, `Setup`.
    pub fn open(&self) -> Result<Arc<dyn ChunkSource>, RemoteError> {
        Ok(match self {
            Self::Directory(path) => Arc::new(DirectorySource::new(path.clone())),
            Self::Host { url, fingerprint } => {
                let trust = fingerprint.map_or(Trust::Authorities, Trust::Pinned);
                Arc::new(StaticSource::new(StaticHost::new(url, &trust)?))
            }
            Self::Cache(address) => Arc::new(CacheSource::new(address)?),
        })
    }

    /// The whole address, secret included: for the one file it is kept in.
    fn reveal(&self) -> String {
        match self {
            Self::Cache(address) => address.reveal(),
            Self::Directory(_) | Self::Host { .. } => self.to_string(),
        }
    }
}

impl FromStr for SourceAddress {
    type Err = BadSource;

    fn from_str(text: &str) -> Result<Self, BadSource> {
        if CacheAddress::is_meant(text) {
            return Ok(Self::Cache(text.parse()?));
        }
        let bad = |reason: &str| BadSource::new(text, reason);
        if let Some(path) = text.strip_prefix("file:") {
            let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
            return match path.is_absolute() {
                true => Ok(Self::Directory(path)),
                false => Err(bad("write the whole path, as in file:/media/stick/satchel")),
            };
        }
        let (url, fingerprint) = match text.split_once('#') {
            Some((url, fingerprint)) => {
                let fingerprint = fingerprint.parse().map_err(|reason: String| bad(&reason))?;
                (url, Some(fingerprint))
            }
            None => (text, None),
        };
        let parsed = reqwest::Url::parse(url).map_err(|_| {
            bad(
                "write file:/DIRECTORY, https://HOST/PREFIX with #SHA256:... to pin its certificate, or what `satchel cache serve` \
                 prints",
            )
        })?;
        if parsed.scheme() != "https" {
            return Err(bad("Satchel fetches from file:, https: and cache: only"));
        }
        if parsed.query().is_some() || !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(bad("give scheme, host, port and path only"));
        }
        Ok(Self::Host { url: parsed.as_str().trim_end_matches('/').to_owned(), fingerprint })
    }
}

impl fmt::Display for SourceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "file:{}", path.display()),
            Self::Host { url, fingerprint: None } => f.write_str(url),
            Self::Host { url, fingerprint: Some(fingerprint) } => write!(f, "{url}#{fingerprint}"),
            Self::Cache(address) => address.fmt(f),
        }
    }
}

impl TryFrom<String> for SourceAddress {
    type Error = BadSource;

    fn try_from(text: String) -> Result<Self, BadSource> {
        text.parse()
    }
}

impl From<SourceAddress> for String {
    fn from(address: SourceAddress) -> Self {
        address.reveal()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_directories_and_https_hosts() {
        let pin = format!("SHA256:{}", "ab".repeat(32));
        for text in [
            "file:/media/stick".to_owned(),
            "https://mirror.example.org".to_owned(),
            "https://mirror.example.org:8443/satchel".to_owned(),
            format!("https://10.0.0.1/x#{pin}"),
        ] {
            assert_eq!(text.parse::<SourceAddress>().unwrap().to_string(), text);
        }
        assert_eq!("file:///a".parse::<SourceAddress>().unwrap().to_string(), "file:/a");
        for bad in [
            "",
            "/media/stick",
            "file:stick",
            "http://a",
            "https://",
            "https://a/?b",
            "https://u:p@a",
            "https://a#x",
        ] {
            assert!(bad.parse::<SourceAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cache_is_kept_with_its_secret_and_shown_without() {
        let text = format!("cache://10.0.0.1:7443/#{}.{}", "ab".repeat(32), "cd".repeat(32));
        let address: SourceAddress = text.parse().unwrap();
        assert_eq!(address.to_string(), "cache://10.0.0.1:7443");
        let kept = serde_json::to_string(&address).unwrap();
        assert_eq!(kept, format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<SourceAddress>(&kept).unwrap(), address);
        assert!(!address.is_local(), "it is not asked with --offline");
    }
}
