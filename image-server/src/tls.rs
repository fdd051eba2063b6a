//! The server's certificate: made by `init`, pinned by clients through its fingerprint.

mod current;
mod validity;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{Datelike, TimeDelta, Utc};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use sha2::{Digest, Sha256};

pub(crate) use current::CurrentTls;
pub use current::Reloader;

const VALID_DAYS: i64 = 3650;
/// A client whose clock is a little behind must not refuse a new certificate.
const BACKDATED_DAYS: i64 = 2;

/// What can go wrong with certificates.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A name that cannot stand in a certificate.
    #[error("{name:?} is no host name or IP address")]
    Name {
        /// The name.
        name: String,
    },
    /// The certificate could not be made.
    #[error("cannot make a certificate")]
    Make(#[source] rcgen::Error),
    /// A PEM file could not be read.
    #[error("cannot read {}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not serve together.
    #[error("the certificate {} cannot be used with its key", path.display())]
    Use {
        /// The certificate file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
}

/// The SHA-256 of a DER certificate, written `SHA256:` and 64 lower-case hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SHA256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A new self-signed certificate and its key, both PEM.
pub(crate) struct MadeCertificate {
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
    pub(crate) fingerprint: Fingerprint,
}

/// Makes a self-signed ECDSA P-256 certificate for these names, localhost and the loopback addresses, valid ten years.
pub(crate) fn make_certificate(names: &[String]) -> Result<MadeCertificate, TlsError> {
    let loopback = ["localhost", "127.0.0.1", "::1"];
    let mut all: Vec<String> = Vec::new();
    for name in names.iter().map(String::as_str).chain(loopback) {
        if !all.iter().any(|known| known == name) {
            check_name(name)?;
            all.push(name.to_owned());
        }
    }
    let mut params = CertificateParams::new(all).map_err(TlsError::Make)?;
    params.distinguished_name.push(DnType::CommonName, "Satchel image server");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let (from, until) = (today_and(-BACKDATED_DAYS), today_and(VALID_DAYS));
    params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
    params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(TlsError::Make)?;
    let certificate = params.self_signed(&key).map_err(TlsError::Make)?;
    Ok(MadeCertificate {
        fingerprint: Fingerprint::of(certificate.der()),
        certificate_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
    })
}

/// A name must be one that a URL can have, so that a typing error is seen now and not at the first login.
fn check_name(name: &str) -> Result<(), TlsError> {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_host = name.len() <= 253 && name.split('.').all(is_label);
    if is_host || name.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    Err(TlsError::Name { name: name.to_owned() })
}

/// Year, month and day of the day so many days from today.
fn today_and(days: i64) -> (i32, u8, u8) {
    let date = Utc::now().date_naive() + TimeDelta::days(days);
    let small = |number: u32| u8::try_from(number).unwrap_or(1);
    (date.year(), small(date.month()), small(date.day()))
}

/// What is told of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// What clients check it by.
    pub fingerprint: Fingerprint,
    /// Until when it is valid, milliseconds since 1970 UTC; absent when that cannot be read.
    pub valid_until_ms: Option<i64>,
}

impl Certificate {
    fn of(der: &[u8]) -> Self {
        Self { fingerprint: Fingerprint::of(der), valid_until_ms: validity::end_ms(der) }
    }

    /// Reads the certificate that a file begins with.
    ///
    /// # Errors
    /// `Pem`.
    pub(crate) fn read(path: &Path) -> Result<Self, TlsError> {
        Ok(Self::of(&read_chain(path)?.0))
    }
}

/// What the accept loop needs, and what clients are told.
pub(crate) struct ServerTls {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) certificate: Certificate,
}

fn pem_error(path: &Path) -> impl FnOnce(rustls::pki_types::pem::Error) -> TlsError {
    move |source| TlsError::Pem { path: path.to_owned(), source }
}

/// The server's certificate in a file, and all that are there: those that lead from it to an authority follow it.
fn read_chain(path: &Path) -> Result<(CertificateDer<'static>, Vec<CertificateDer<'static>>), TlsError> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(pem_error(path))?;
    let own = chain.first().cloned().ok_or(rustls::pki_types::pem::Error::NoItemsFound);
    Ok((own.map_err(pem_error(path))?, chain))
}

/// Reads certificate and key: TLS 1.2 and 1.3, HTTP/2 before HTTP/1.1.
pub(crate) fn load(certificate: &Path, key: &Path) -> Result<ServerTls, TlsError> {
    let (own, chain) = read_chain(certificate)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(pem_error(key))?;
    let unusable = |source| TlsError::Use { path: certificate.to_owned(), source };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(ServerTls { config: Arc::new(config), certificate: Certificate::of(&own) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_certificate_loads_with_the_same_fingerprint() {
        let temp = tempfile::tempdir().unwrap();
        let (cert, key) = (temp.path().join("cert.pem"), temp.path().join("key.pem"));
        let made = make_certificate(&["files.example.org".to_owned(), "10.0.0.7".to_owned()]).unwrap();
        std::fs::write(&cert, &made.certificate_pem).unwrap();
        std::fs::write(&key, &made.key_pem).unwrap();
        let loaded = load(&cert, &key).unwrap();
        assert_eq!(loaded.certificate.fingerprint, made.fingerprint);
        assert_eq!(Certificate::read(&cert).unwrap(), loaded.certificate);
        let text = made.fingerprint.to_string();
        assert_eq!(text.len(), "SHA256:".len() + 64);
        assert!(text.bytes().skip(7).all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)));
    }

    #[test]
    fn names_no_url_can_have_are_refused() {
        for bad in ["", "a b", "-x", "https://host", "host:7440", "a..b", &"x".repeat(64)] {
            assert!(matches!(make_certificate(&[bad.to_owned()]), Err(TlsError::Name { .. })), "{bad:?}");
        }
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let (cert, key) = (temp.path().join("cert.pem"), temp.path().join("key.pem"));
        std::fs::write(&cert, make_certificate(&[]).unwrap().certificate_pem).unwrap();
        std::fs::write(&key, make_certificate(&[]).unwrap().key_pem).unwrap();
        assert!(matches!(load(&cert, &key), Err(TlsError::Use { .. })));
    }
}
