//! Bearer tokens: made here, shown once, stored only as their SHA-256.

use std::fmt;

use sha2::{Digest, Sha256};

const PREFIX: &str = "satchel_";
const RANDOM_BYTES: usize = 32;
const BASE64URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The operating system gives no randomness.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gives no random bytes")]
pub struct NoRandomness(#[source] getrandom::Error);

/// Fills an array from the operating system's generator.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(NoRandomness)?;
    Ok(bytes)
}

/// A bearer token: `satchel_` and 43 characters of base64url, 256 bits. [`fmt::Debug`] hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// What is stored of a token, and looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SecretHash(pub(crate) [u8; 32]);

impl Secret {
    /// Makes a new token.
    pub(crate) fn generate() -> Result<Self, NoRandomness> {
        let mut text = String::from(PREFIX);
        push_base64url(&mut text, &random::<RANDOM_BYTES>()?);
        Ok(Self(text))
    }

    /// The token as a client sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub(crate) fn hash(&self) -> SecretHash {
        SecretHash::of(self.0.as_bytes())
    }
}

impl SecretHash {
    pub(crate) fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Appends bytes as base64url without padding (RFC 4648 section 5).
fn push_base64url(text: &mut String, bytes: &[u8]) {
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..=group.len() {
            let value = bits >> (18 - 6 * digit) & 0x3f;
            text.push(char::from(BASE64URL[value as usize]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_matches_the_vectors_of_rfc_4648() {
        let cases =
            [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg"), ("fooba", "Zm9vYmE")];
        for (plain, expected) in cases {
            let mut text = String::new();
            push_base64url(&mut text, plain.as_bytes());
            assert_eq!(text, expected);
        }
        let mut text = String::new();
        push_base64url(&mut text, &[0xfb, 0xff]);
        assert_eq!(text, "-_8");
    }

    #[test]
    fn tokens_are_long_different_and_never_printed_by_debug() {
        let (one, other) = (Secret::generate().unwrap(), Secret::generate().unwrap());
        assert_eq!(one.reveal().len(), PREFIX.len() + 43);
        assert!(one != other);
        assert!(!format!("{one:?}").contains(&one.reveal()[PREFIX.len()..]));
    }
}
