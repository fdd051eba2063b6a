//! Ed25519 signatures (RFC 8032) over the exact bytes of manifests and profiles.
//!
//! A signature is stored, and sent, as one line of ASCII:
//! `satchel-signature-v1 ed25519:<64 hex digits of the public key> <128 hex digits of the signature>\n`.
//! Manifests and profiles begin differently, so a signature over one never holds for the other.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::error::FormatError;
use crate::id::{parse_hex, preview, write_hex};

const WHAT: &str = "signature";
const PREFIX: &str = "satchel-signature-v1 ";
const ALGORITHM: &str = "ed25519:";

/// The longest stored signature, bytes.
pub const MAX_SIGNATURE_BYTES: usize = 256;

/// Who may sign: the public half of an Ed25519 key. Written `ed25519:` and 64 hex digits; never one of the few weak
/// points that verify what nobody signed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The key's 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ALGORITHM)?;
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let key = text
            .strip_prefix(ALGORITHM)
            .and_then(parse_hex)
            .filter(|key| VerifyingKey::from_bytes(key).is_ok_and(|point| !point.is_weak()));
        key.map(Self).ok_or_else(|| {
            FormatError::field(WHAT, "key", preview(text), "ed25519: and the 64 hex digits of a public key")
        })
    }
}

impl TryFrom<String> for PublicKey {
    type Error = FormatError;
    fn try_from(text: String) -> Result<Self, FormatError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.to_string()
    }
}

/// The secret half of an Ed25519 key. Never printed; wiped from memory when dropped.
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// Makes a key from 32 bytes of the operating system's randomness, or from a key's stored bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(bytes))
    }

    /// The 32 bytes to store, readable by the owner only.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs bytes as they are.
    pub fn sign(&self, bytes: &[u8]) -> Signature {
        Signature { key: self.public(), signature: self.0.sign(bytes).to_bytes() }
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public())
    }
}

/// A signature and the key it claims to be made with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signature {
    /// The key that can check it; whether that key may sign is the caller's to decide.
    pub key: PublicKey,
    signature: [u8; 64],
}

impl Signature {
    /// Checks that the named key signed exactly these bytes.
    ///
    /// # Errors
    /// `BadSignature` naming the structure and the key.
    pub fn verify(&self, what: &'static str, bytes: &[u8]) -> Result<(), FormatError> {
        let signature = ed25519_dalek::Signature::from_bytes(&self.signature);
        VerifyingKey::from_bytes(&self.key.0)
            .and_then(|key| key.verify_strict(bytes, &signature))
            .map_err(|_| FormatError::BadSignature { what, key: self.key.to_string() })
    }

    /// The signature as it is stored, with its line end.
    pub fn encode(&self) -> Vec<u8> {
        format!("{self}\n").into_bytes()
    }

    /// Reads a stored signature; any input is safe to pass.
    ///
    /// # Errors
    /// `TooLong`, or `Field` when it is not one line of the form above.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.len() > MAX_SIGNATURE_BYTES {
            let (len_bytes, limit_bytes) = (bytes.len() as u64, MAX_SIGNATURE_BYTES as u64);
            return Err(FormatError::TooLong { what: WHAT, len_bytes, limit_bytes });
        }
        let text = String::from_utf8_lossy(bytes);
        text.strip_suffix('\n').unwrap_or(&text).parse()
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{} ", self.key)?;
        write_hex(&self.signature, f)
    }
}

impl FromStr for Signature {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let expected = "satchel-signature-v1 ed25519:KEY SIGNATURE";
        let wrong = || FormatError::field(WHAT, "line", preview(text), expected);
        let (key, signature) =
            text.strip_prefix(PREFIX).and_then(|rest| rest.split_once(' ')).ok_or_else(wrong)?;
        Ok(Self { key: key.parse()?, signature: parse_hex(signature).ok_or_else(wrong)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_bytes_and_key_only() {
        let key = SecretKey::from_bytes(&[7; 32]);
        let signature = key.sign(b"bytes");
        signature.verify("manifest", b"bytes").unwrap();
        assert!(signature.verify("manifest", b"other").is_err());
        let other = Signature { key: SecretKey::from_bytes(&[8; 32]).public(), ..signature };
        assert!(other.verify("manifest", b"bytes").is_err());
    }

    #[test]
    fn a_signature_reads_back_with_and_without_its_line_end() {
        let signature = SecretKey::from_bytes(&[7; 32]).sign(b"bytes");
        assert_eq!(Signature::decode(&signature.encode()).unwrap(), signature);
        assert_eq!(signature.to_string().parse::<Signature>().unwrap(), signature);
    }

    #[test]
    fn what_is_no_signature_is_refused() {
        let good = SecretKey::from_bytes(&[7; 32]).sign(b"bytes").to_string();
        for bad in [
            "",
            "ed25519",
            &good[..good.len() - 2],
            &good.to_uppercase(),
            &format!("{good} "),
            &"x".repeat(400),
        ] {
            assert!(Signature::decode(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn weak_keys_are_refused() {
        let identity = format!("ed25519:01{}", "0".repeat(62));
        let order_four = format!("ed25519:{}", "0".repeat(64));
        let order_eight = "ed25519:c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a";
        for key in [&identity, &order_four, order_eight] {
            assert!(key.parse::<PublicKey>().is_err(), "{key}");
        }
    }

    #[test]
    fn a_signature_has_one_form() {
        let good = SecretKey::from_bytes(&[7; 32]).sign(b"bytes");
        // Adding the group's order to the second half gives the same number, which RFC 8032 forbids.
        let order = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10u8,
        ];
        let mut other = good;
        let mut carry = 0u16;
        for (byte, add) in other.signature[32..].iter_mut().zip(order) {
            carry += u16::from(*byte) + u16::from(add);
            *byte = carry.to_le_bytes()[0];
            carry >>= 8;
        }
        assert_ne!(other, good);
        assert!(other.verify("manifest", b"bytes").is_err());
    }

    #[test]
    fn the_secret_is_never_printed() {
        let shown = format!("{:?}", SecretKey::from_bytes(&[0xab; 32]));
        assert!(!shown.contains("abab"), "{shown}");
    }
}
