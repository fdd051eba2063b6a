//! What a served cache is known and opened by: a certificate made here, and a token. Both are kept beside the desktop, so
//! that its address stays the same.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use serde::{Deserialize, Serialize};

use crate::remote::Fingerprint;
use crate::source::CacheToken;
use crate::volume::{DirVolume, Volume};

const FILE_NAME: &str = "cache-serve.json";
const FORMAT_VERSION: u32 = 1;
const MAX_FILE_BYTES: usize = 64 << 10;
/// What the certificate is for; who pins it does not look.
const CERTIFICATE_NAME: &str = "satchel-cache";

/// Why there is no certificate or token to serve with.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// The file does not hold.
    #[error("{} does not hold: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; nothing of what is in it.
        reason: String,
    },
    /// The certificate could not be made.
    #[error("cannot make a certificate")]
    Make(#[source] rcgen::Error),
    /// The operating system gave no randomness.
    #[error("cannot make a token: the operating system gives no randomness")]
    NoRandomness(#[source] getrandom::Error),
}

/// A certificate with its key, ready to be shown, and the token.
pub(super) struct Identity {
    pub(super) tls: Arc<ServerConfig>,
    pub(super) fingerprint: Fingerprint,
    pub(super) token: CacheToken,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    /// PEM.
    certificate: String,
    /// PEM.
    key: String,
    /// 64 hex digits.
    token: String,
}

impl Identity {
    /// The identity kept in a desktop's directory; makes one when there is none.
    pub(super) fn load_or_make(volume: &DirVolume) -> Result<Self, IdentityError> {
        let path = volume.path().join(FILE_NAME);
        let bytes = match volume.read(FILE_NAME, MAX_FILE_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::make(volume),
            Err(source) => return Err(IdentityError::Io { action: "read", path, source }),
        };
        let damaged = |reason: &str| IdentityError::Damaged { path: path.clone(), reason: reason.to_owned() };
        // What serde says of a value quotes it, and these are secrets.
        let stored: Stored =
            serde_json::from_slice(&bytes).map_err(|_| damaged("it is not what was stored"))?;
        if stored.version != FORMAT_VERSION {
            let found = stored.version;
            return Err(damaged(&format!("it has version {found}, this program reads {FORMAT_VERSION}")));
        }
        Self::decode(&stored).map_err(|reason| damaged(&reason))
    }

    /// Makes an identity and keeps it in a desktop's directory, in the place of the one before.
    pub(super) fn make(volume: &DirVolume) -> Result<Self, IdentityError> {
        let path = volume.path().join(FILE_NAME);
        let made =
            rcgen::generate_simple_self_signed([CERTIFICATE_NAME.to_owned()]).map_err(IdentityError::Make)?;
        let token = CacheToken::generate().map_err(IdentityError::NoRandomness)?;
        let stored = Stored {
            version: FORMAT_VERSION,
            certificate: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
            token: token.reveal(),
        };
        let identity =
            Self::decode(&stored).map_err(|reason| IdentityError::Damaged { path: path.clone(), reason })?;
        let failed = |source| IdentityError::Io { action: "write", path: path.clone(), source };
        let mut bytes = serde_json::to_vec_pretty(&stored).map_err(|error| failed(error.into()))?;
        bytes.push(b'\n');
        volume.replace(FILE_NAME, &bytes).map_err(failed)?;
        Ok(identity)
    }

    fn decode(stored: &Stored) -> Result<Self, String> {
        let certificate = CertificateDer::from_pem_slice(stored.certificate.as_bytes())
            .map_err(|_| "its certificate is not PEM".to_owned())?;
        let key = PrivateKeyDer::from_pem_slice(stored.key.as_bytes())
            .map_err(|_| "its key is not PEM".to_owned())?;
        let fingerprint = Fingerprint::of(&certificate);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![certificate], key))
            .map_err(|error| error.to_string())?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let token = stored.token.parse().map_err(str::to_owned)?;
        Ok(Self { tls: Arc::new(tls), fingerprint, token })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_identity_stays_until_another_is_made_and_is_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let volume = DirVolume::open(dir.path()).unwrap();
        let made = Identity::load_or_make(&volume).unwrap();
        let again = Identity::load_or_make(&volume).unwrap();
        assert!(made.fingerprint == again.fingerprint && made.token == again.token);
        let mode = std::fs::metadata(dir.path().join(FILE_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let other = Identity::make(&volume).unwrap();
        assert!(made.fingerprint != other.fingerprint && made.token != other.token);
        assert!(Identity::load_or_make(&volume).unwrap().token == other.token);
    }

    #[test]
    fn a_damaged_identity_is_said_without_its_secret() {
        let dir = tempfile::tempdir().unwrap();
        let volume = DirVolume::open(dir.path()).unwrap();
        let token = Identity::make(&volume).unwrap().token.reveal();
        let text = String::from_utf8(volume.read(FILE_NAME, MAX_FILE_BYTES).unwrap()).unwrap();
        for bad in [
            text.replace("\"version\": 1", "\"version\": 2"),
            text.replace(&format!("\"{token}\""), "7"),
            text.replace(&token, &token[1..]),
            text.replace("BEGIN", "BEGUN"),
            text[..text.len() / 2].to_owned(),
        ] {
            volume.replace(FILE_NAME, bad.as_bytes()).unwrap();
            let Err(IdentityError::Damaged { reason, .. }) = Identity::load_or_make(&volume) else {
                panic!("it was taken: {bad}");
            };
            assert!(!reason.contains(&token[1..]), "{reason}");
        }
    }
}
