//! Naming an image's mirrors, beside a running server or without one.
//!
//! A mirror is a static HTTPS host with the tree of `satchel export`, or of this server's own object store, below its
//! URL. Clients ask it before the server, check all it says, and go on with the server when it fails.

use std::path::Path;

use axum::http::Uri;
use chunk_format::{Name, Namespace};

use crate::database::{Database, DatabaseError, commit, mirrors, namespaces, versions};
use crate::layout::{DataDir, LayoutError};

const MAX_MIRRORS: usize = 16;
const MAX_URL_BYTES: usize = 300;

/// Why mirrors could not be listed or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MirrorError {
    /// The directory cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// There is no such image.
    #[error("there is no image {image} here")]
    NoSuchImage {
        /// The image.
        image: Name,
    },
    /// The URL is none that clients can use.
    #[error("`{url}` is no mirror: {reason}")]
    BadUrl {
        /// The URL.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The URL is no mirror of the image.
    #[error("{url} is no mirror of {image}")]
    Unknown {
        /// The URL.
        url: String,
        /// The image.
        image: Name,
    },
    /// There are too many.
    #[error("an image has at most {MAX_MIRRORS} mirrors")]
    TooMany,
}

/// Changes an image's mirrors, all or nothing; answers what they are then.
///
/// # Errors
/// [`MirrorError`].
pub async fn change(
    root: &Path,
    image: &Name,
    add: &[String],
    remove: &[String],
) -> Result<Vec<String>, MirrorError> {
    let all_cleaned = |urls: &[String]| urls.iter().map(|url| cleaned(url)).collect::<Result<Vec<_>, _>>();
    let (add, remove) = (all_cleaned(add)?, all_cleaned(remove)?);
    let dir = DataDir::open(root)?;
    let lock = dir.lock()?;
    let database = Database::open(&dir.database()).await?;
    drop(lock);
    let changed = change_in(&database, image, &add, &remove).await;
    database.close().await;
    changed
}

async fn change_in(
    database: &Database,
    image: &Name,
    add: &[String],
    remove: &[String],
) -> Result<Vec<String>, MirrorError> {
    let mut tx = database.begin().await?;
    let namespace = namespaces::find(&mut *tx, &Namespace::Image(image.clone())).await?;
    let series = match namespace {
        Some(namespace) => versions::find_series(&mut *tx, namespace.id, image).await?,
        None => None,
    };
    let series = series.ok_or_else(|| MirrorError::NoSuchImage { image: image.clone() })?.id;
    for url in remove {
        if !mirrors::remove(&mut *tx, series, url).await? {
            return Err(MirrorError::Unknown { url: url.clone(), image: image.clone() });
        }
    }
    for url in add {
        mirrors::add(&mut *tx, series, url).await?;
    }
    let now = mirrors::list(&mut *tx, series).await?;
    if now.len() > MAX_MIRRORS {
        return Err(MirrorError::TooMany);
    }
    commit(tx).await?;
    Ok(now)
}

/// A URL as clients take it: `https://HOST[:PORT][/PREFIX]`, with `#SHA256:...` to pin a certificate.
fn cleaned(text: &str) -> Result<String, MirrorError> {
    let bad = |reason| MirrorError::BadUrl { url: text.to_owned(), reason };
    if text.len() > MAX_URL_BYTES {
        return Err(bad("it is too long"));
    }
    let (url, pin) = text.split_once('#').map_or((text, None), |(url, pin)| (url, Some(pin)));
    let parsed: Uri = url.parse().map_err(|_| bad("write https://HOST/PREFIX"))?;
    if parsed.scheme_str() != Some("https") || parsed.host().is_none_or(str::is_empty) {
        return Err(bad("write https://HOST/PREFIX: clients speak https only"));
    }
    if parsed.query().is_some() || parsed.authority().is_some_and(|host| host.as_str().contains('@')) {
        return Err(bad("give scheme, host, port and path only"));
    }
    let url = url.trim_end_matches('/');
    match pin {
        None => Ok(url.to_owned()),
        Some(pin) => {
            let digits = pin.strip_prefix("SHA256:").unwrap_or_default();
            if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(bad("a pinned certificate is written #SHA256: and 64 hex digits"));
            }
            Ok(format!("{url}#{pin}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_https_and_written_in_one_way() {
        assert_eq!(cleaned("https://m.example.org/a/").unwrap(), "https://m.example.org/a");
        let pinned = format!("https://m.example.org:8443#SHA256:{}", "0f".repeat(32));
        assert_eq!(cleaned(&pinned).unwrap(), pinned);
        let long = format!("https://m/{}", "a".repeat(300));
        for bad in [
            "",
            "m.example.org",
            "http://m",
            "https://",
            "https://m/?a",
            "https://u@m",
            "https://m#SHA256:00",
            long.as_str(),
        ] {
            assert!(cleaned(bad).is_err(), "{bad}");
        }
    }
}
