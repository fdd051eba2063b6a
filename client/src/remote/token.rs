//! The token that requests carry. One that ends while a desktop is in use is replaced by a login beside it.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use reqwest::header::HeaderValue;

use super::RemoteError;

/// What says which token this machine's login has by now; none when it has no token for this server and user.
type Newest = dyn Fn() -> Option<String> + Send + Sync;

/// A token, shared by all who ask the server.
#[derive(Clone)]
pub(super) struct Token {
    header: Arc<RwLock<HeaderValue>>,
    newest: Option<Arc<Newest>>,
}

impl Token {
    /// # Errors
    /// `BadToken`.
    pub(super) fn new(token: &str) -> Result<Self, RemoteError> {
        Ok(Self { header: Arc::new(RwLock::new(header(token)?)), newest: None })
    }

    /// Where a newer one is looked for when the server refuses this one.
    pub(super) fn renewed_by(&mut self, newest: impl Fn() -> Option<String> + Send + Sync + 'static) {
        self.newest = Some(Arc::new(newest));
    }

    /// What a request carries.
    pub(super) fn header(&self) -> HeaderValue {
        self.header.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// After `refused` was: the one that may be tried instead.
    pub(super) fn instead_of(&self, refused: &HeaderValue) -> Option<HeaderValue> {
        let newest = match &self.newest {
            Some(newest) => newest().and_then(|token| header(&token).ok()),
            None => None,
        }
        .filter(|newest| newest != refused)?;
        *self.header.write().unwrap_or_else(PoisonError::into_inner) = newest.clone();
        Some(newest)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").finish_non_exhaustive()
    }
}

fn header(token: &str) -> Result<HeaderValue, RemoteError> {
    if token.is_empty() {
        return Err(RemoteError::BadToken { reason: "empty" });
    }
    let bad = RemoteError::BadToken { reason: "none: it holds spaces or signs no token has" };
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(bad);
    }
    let mut header = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| bad)?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_token_is_replaced_by_the_newest_and_no_other() {
        let mut token = Token::new("old").unwrap();
        let refused = token.header();
        assert_eq!(token.instead_of(&refused), None, "there is nowhere to look");
        token.renewed_by(|| Some("old".to_owned()));
        assert_eq!(token.instead_of(&refused), None, "it is the same");
        token.renewed_by(|| Some("no token".to_owned()));
        assert_eq!(token.instead_of(&refused), None, "it is none");
        let shared = token.clone();
        token.renewed_by(|| Some("new".to_owned()));
        assert_eq!(token.instead_of(&refused).unwrap(), "Bearer new");
        assert_eq!(shared.header(), "Bearer new");
        assert!(Token::new("").is_err() && Token::new("a b").is_err() && Token::new("a\nb").is_err());
    }
}
