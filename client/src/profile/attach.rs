//! Attaches a profile to a published version: its boot stream first, then the signed profile that names it.

use std::sync::Arc;

use bytes::Bytes;
use chunk_format::{BootStream, FormatError, ManifestId, Name, Namespace, Profile, ProfileEntry, SecretKey};

use crate::remote::{Remote, RemoteError};
use crate::upload::Patience;

/// Why a profile was not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It could not be written down.
    #[error("{0}")]
    Format(#[from] FormatError),
    /// The server did not take it.
    #[error("{0}")]
    Remote(#[from] RemoteError),
}

/// Attaches profiles to an image's versions.
pub struct Attacher<'a> {
    /// The server.
    pub remote: &'a Remote,
    /// The image.
    pub image: &'a Name,
    /// The publisher's key.
    pub key: &'a Arc<SecretKey>,
}

/// An attached profile.
#[derive(Clone, Copy, Debug)]
pub struct Attached {
    /// Its chunks.
    pub chunks: usize,
    /// Bytes of the boot stream.
    pub stream_bytes: u64,
    /// Objects of the boot stream.
    pub streams: usize,
}

impl Attacher<'_> {
    /// Uploads the stream and the profile, and waits for a server that is busy. Doing it again changes nothing.
    ///
    /// # Errors
    /// [`AttachError`].
    pub async fn attach(
        &self,
        manifest: ManifestId,
        entries: Vec<ProfileEntry>,
        streams: Vec<(BootStream, Bytes)>,
    ) -> Result<Attached, AttachError> {
        let namespace = Namespace::Image(self.image.clone());
        let described: Vec<BootStream> = streams.iter().map(|(stream, _)| *stream).collect();
        for (stream, bytes) in streams {
            Patience::DEFAULT.retry(|| self.remote.put_stream(&namespace, stream.id, bytes.clone())).await?;
        }
        let attached = Attached {
            chunks: entries.len(),
            stream_bytes: described.iter().map(|stream| u64::from(stream.len_bytes)).sum(),
            streams: described.len(),
        };
        let bytes = Profile { manifest, entries, streams: described }.encode()?;
        let signature = self.key.sign(&bytes);
        Patience::DEFAULT
            .retry(|| self.remote.put_profile(self.image, manifest, bytes.clone(), &signature))
            .await?;
        Ok(attached)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Mutex;

    use http_body_util::{BodyExt, Full};
    use hyper::body::Incoming;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper::{Request, Response};
    use hyper_util::rt::TokioIo;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::remote::{API_HEADER, API_VERSION, Endpoint, Fingerprint, Trust};

    const STREAM: &[u8] = b"what a start touches";

    /// A server that is too busy for each request at first, and the paths it was asked for.
    async fn busy_server(refusals: usize) -> (Remote, Arc<Mutex<Vec<String>>>) {
        let made = rcgen::generate_simple_self_signed(["server".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let trust = Trust::Pinned(Fingerprint::of(&certificate));
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![certificate], key))
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let noted = Arc::clone(&asked);
        tokio::spawn(async move {
            loop {
                let stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
                let noted = Arc::clone(&noted);
                let answer = service_fn(move |request: Request<Incoming>| {
                    let noted = Arc::clone(&noted);
                    async move {
                        let path = request.uri().path().to_owned();
                        request.into_body().collect().await.unwrap();
                        let mut asked = noted.lock().unwrap();
                        let is_busy = asked.iter().filter(|asked| **asked == path).count() < refusals;
                        asked.push(path);
                        let (status, body) = match is_busy {
                            true => (503, r#"{"error":{"code":"busy","message":"the server is busy"}}"#),
                            false => (201, ""),
                        };
                        let answer = Response::builder().status(status).header(API_HEADER, API_VERSION);
                        Ok::<_, Infallible>(answer.body(Full::new(Bytes::from(body))).unwrap())
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        });
        (Remote::new(Endpoint::new(&url, trust).unwrap(), "token").unwrap(), asked)
    }

    #[tokio::test]
    async fn a_busy_server_is_asked_again() {
        // More often than one that is away.
        let refusals = 7;
        let (remote, asked) = busy_server(refusals).await;
        let (image, key) = ("debian".parse().unwrap(), Arc::new(SecretKey::from_bytes(&[1; 32])));
        let version = ManifestId::of(b"version");
        let stream = BootStream {
            id: chunk_format::StreamId::of(STREAM),
            len_bytes: u32::try_from(STREAM.len()).unwrap(),
            entries: 1,
        };
        let entries = vec![ProfileEntry { disk: 0, chunk: chunk_format::ChunkIndex(0) }];
        let attacher = Attacher { remote: &remote, image: &image, key: &key };
        let attached = attacher.attach(version, entries, vec![(stream, Bytes::from_static(STREAM))]).await;
        assert_eq!(attached.unwrap().stream_bytes, STREAM.len() as u64);
        let stream = format!("/v1/data/image/debian/streams/{}", stream.id);
        let profile = format!("/v1/images/debian/versions/{version}/profile");
        let expected = [vec![stream; refusals + 1], vec![profile; refusals + 1]].concat();
        assert_eq!(*asked.lock().unwrap(), expected);
    }
}
