//! Trust in the server's certificate: one pinned certificate, or the authorities this machine knows.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Names a certificate: the SHA-256 of its DER form. Written `SHA256:` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The name of a certificate.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SHA256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Fingerprint {
    type Err = String;

    /// Takes the form the server prints, and the one `openssl x509 -fingerprint` prints: upper case, with colons.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || "a fingerprint is `SHA256:` and 64 hex digits, as `satchel-server init` prints it".to_owned();
        let digits: String =
            text.strip_prefix("SHA256:").unwrap_or(text).chars().filter(|c| *c != ':').collect();
        if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[at * 2..at * 2 + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> String {
        fingerprint.to_string()
    }
}

/// How a server's certificate is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It must be exactly this one; names and dates do not matter.
    Pinned(Fingerprint),
    /// It must be valid for the server's name by an authority this machine knows.
    Authorities,
}

/// A TLS client configuration that remembers which certificate it refused.
#[derive(Clone)]
pub(super) struct ClientTls {
    config: ClientConfig,
    verifier: Arc<Verifier>,
}

impl ClientTls {
    pub(super) fn new(trust: &Trust) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let judge = match trust {
            Trust::Pinned(fingerprint) => Judge::Pinned(*fingerprint),
            Trust::Authorities => Judge::Authorities(authorities(&provider)?),
        };
        let verifier =
            Arc::new(Verifier { judge, provider: Arc::clone(&provider), refused: Mutex::new(None) });
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { config, verifier })
    }

    pub(super) fn config(&self) -> ClientConfig {
        self.config.clone()
    }

    pub(super) fn refused(&self) -> Option<Fingerprint> {
        *self.verifier.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take_refused(&self) -> Option<Fingerprint> {
        self.verifier.refused.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn authorities(provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err("this machine knows no certificate authorities (Debian package ca-certificates); \
            give the server's --fingerprint instead"
            .to_owned());
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|error| error.to_string())
}

#[derive(Debug)]
enum Judge {
    Pinned(Fingerprint),
    Authorities(Arc<WebPkiServerVerifier>),
}

#[derive(Debug)]
struct Verifier {
    judge: Judge,
    provider: Arc<CryptoProvider>,
    refused: Mutex<Option<Fingerprint>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = Fingerprint::of(end_entity);
        let judged = match &self.judge {
            Judge::Pinned(expected) if *expected == found => Ok(ServerCertVerified::assertion()),
            Judge::Pinned(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
            Judge::Authorities(web) => {
                web.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
        };
        if judged.is_err() {
            *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        }
        judged
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_as_both_programs_print_them() {
        let ours = format!("SHA256:{}", "ab".repeat(32));
        let openssl = vec!["AB"; 32].join(":");
        assert_eq!(ours.parse::<Fingerprint>().unwrap(), openssl.parse().unwrap());
        assert_eq!(ours.parse::<Fingerprint>().unwrap().to_string(), ours);
        for bad in ["", "SHA256:", "SHA256:zz", &ours[..70], &format!("{ours}0"), "MD5:00"] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }
}
