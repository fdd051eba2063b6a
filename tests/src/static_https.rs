//! A directory on an HTTPS server that knows of nothing but files, as any static host is.

use std::convert::Infallible;
use std::fmt;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;
use hyper::header::{self, HeaderMap};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::proxy::{Threads, tls};

/// How much of a file is read at a time, bytes.
const PIECE_BYTES: u64 = 256 << 10;

type Body = BoxBody<Bytes, io::Error>;

/// A loopback HTTPS server of the files below a directory: `GET` and `HEAD`, single byte ranges, HTTP/1.1.
///
/// No HTTP/2: QEMU's https driver (7.2) stops for good in the middle of a disk where a server offers it.
pub struct StaticHttps {
    address: SocketAddr,
    fingerprint: String,
    acceptor: Arc<Mutex<TlsAcceptor>>,
    _threads: Threads,
}

impl fmt::Debug for StaticHttps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticHttps").field("address", &self.address).finish_non_exhaustive()
    }
}

impl StaticHttps {
    /// Serves `directory` on a free port of 127.0.0.1.
    pub fn start(directory: &Path) -> Self {
        let threads = Threads::start("static-https");
        let (acceptor, fingerprint) = new_identity();
        let acceptor = Arc::new(Mutex::new(acceptor));
        let listener =
            std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port can be had");
        listener.set_nonblocking(true).expect("a socket can be made non-blocking");
        let address = listener.local_addr().expect("a bound socket has an address");
        threads.runtime().spawn(serve(Arc::from(directory), listener, Arc::clone(&acceptor)));
        Self { address, fingerprint, acceptor, _threads: threads }
    }

    /// Returns the address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the fingerprint of its certificate, `SHA256:` and hex digits.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Shows another certificate from the next connection on.
    pub fn change_certificate(&self) {
        *lock(&self.acceptor) = new_identity().0;
    }
}

fn new_identity() -> (TlsAcceptor, String) {
    let (config, fingerprint) = tls::new_identity();
    let mut config = Arc::unwrap_or_clone(config);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    (TlsAcceptor::from(Arc::new(config)), fingerprint)
}

fn lock(acceptor: &Mutex<TlsAcceptor>) -> MutexGuard<'_, TlsAcceptor> {
    acceptor.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(directory: Arc<Path>, listener: std::net::TcpListener, acceptor: Arc<Mutex<TlsAcceptor>>) {
    let listener = TcpListener::from_std(listener).expect("the listener is non-blocking");
    loop {
        // An error here is a connection that ended before it was accepted.
        if let Ok((stream, _)) = listener.accept().await {
            let acceptor = lock(&acceptor).clone();
            tokio::spawn(connection(Arc::clone(&directory), stream, acceptor));
        }
    }
}

async fn connection(directory: Arc<Path>, stream: TcpStream, acceptor: TlsAcceptor) {
    let _ = stream.set_nodelay(true);
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = service_fn(move |request: Request<_>| {
        let answer = answer(&directory, &request);
        async move { Ok::<_, Infallible>(answer) }
    });
    // A connection that breaks is the client's affair.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn answer<B>(directory: &Path, request: &Request<B>) -> Response<Body> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return status(StatusCode::METHOD_NOT_ALLOWED);
    }
    let opened = locate(directory, request.uri().path()).and_then(|path| {
        let file = File::open(path).ok()?;
        let about = file.metadata().ok()?;
        about.is_file().then_some((file, about.len()))
    });
    let Some((file, len)) = opened else { return status(StatusCode::NOT_FOUND) };
    let asked = match range(request.headers(), len) {
        Ok(asked) => asked,
        Err(()) => return status(StatusCode::RANGE_NOT_SATISFIABLE),
    };
    let part = asked.clone().unwrap_or(0..len);
    let mut response = Response::builder()
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, part.end - part.start);
    if let Some(part) = asked {
        let content_range = format!("bytes {}-{}/{len}", part.start, part.end - 1);
        response = response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, content_range);
    }
    let body = if request.method() == Method::HEAD { empty() } else { content(file, part) };
    response.body(body).expect("the headers are plain text")
}

/// Finds the file a request's path means; paths that lead out of the directory mean none.
fn locate(directory: &Path, path: &str) -> Option<PathBuf> {
    let relative = Path::new(path.strip_prefix('/')?);
    let is_plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    is_plain.then(|| directory.join(relative))
}

/// Returns the part a request asks for of `len` bytes; `None` when it asks for all, or in a way not known here.
fn range(headers: &HeaderMap, len: u64) -> Result<Option<Range<u64>>, ()> {
    let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok()?.strip_prefix("bytes="));
    let Some((first, last)) = asked.and_then(|asked| asked.split_once('-')) else { return Ok(None) };
    let part = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) => first..last.saturating_add(1).min(len),
        (Ok(first), Err(_)) if last.is_empty() => first..len,
        (Err(_), Ok(count)) if first.is_empty() => len.saturating_sub(count)..len,
        _ => return Ok(None),
    };
    if part.is_empty() { Err(()) } else { Ok(Some(part)) }
}

fn content(file: File, part: Range<u64>) -> Body {
    let file = Arc::new(file);
    let pieces = stream::try_unfold(part.start, move |at| {
        let (file, end) = (Arc::clone(&file), part.end);
        async move {
            if at == end {
                return Ok::<_, io::Error>(None);
            }
            let len = PIECE_BYTES.min(end - at);
            let read = move || {
                let mut piece = vec![0; usize::try_from(len).map_err(io::Error::other)?];
                file.read_exact_at(&mut piece, at)?;
                Ok::<_, io::Error>(piece)
            };
            let piece = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
            Ok(Some((Frame::data(Bytes::from(piece)), at + len)))
        }
    });
    BodyExt::boxed(StreamBody::new(pieces))
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

fn status(code: StatusCode) -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = code;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(range: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::RANGE, range.parse().unwrap())])
    }

    #[test]
    fn ranges_are_cut_to_the_file() {
        assert_eq!(range(&HeaderMap::new(), 100), Ok(None));
        assert_eq!(range(&asked("bytes=0-9"), 100), Ok(Some(0..10)));
        assert_eq!(range(&asked("bytes=90-"), 100), Ok(Some(90..100)));
        assert_eq!(range(&asked("bytes=-5"), 100), Ok(Some(95..100)));
        assert_eq!(range(&asked("bytes=99-1000"), 100), Ok(Some(99..100)));
        assert_eq!(range(&asked("bytes=100-"), 100), Err(()));
        assert_eq!(range(&asked("bytes=0-1,4-5"), 100), Ok(None));
    }

    #[test]
    fn nothing_outside_the_directory_is_served() {
        let directory = Path::new("/srv");
        assert_eq!(locate(directory, "/a/b"), Some("/srv/a/b".into()));
        for path in ["a", "//etc/passwd", "/../etc/passwd", "/a/../../b"] {
            assert_eq!(locate(directory, path), None, "{path}");
        }
    }

    #[test]
    fn files_arrive_whole_and_in_parts() {
        let directory = tempfile::tempdir().unwrap();
        let mut bytes = vec![0; 700_000];
        crate::Rng::new(3).fill(&mut bytes);
        std::fs::write(directory.path().join("file"), &bytes).unwrap();
        let server = StaticHttps::start(directory.path());
        let url = format!("https://{}/", server.address());
        let got = tokio::runtime::Runtime::new().unwrap().block_on(async {
            let client = reqwest::Client::builder()
                .tls_backend_preconfigured(tls::pinned(server.fingerprint()))
                .no_proxy()
                .build()
                .unwrap();
            let whole = client.get(format!("{url}file")).send().await.unwrap().bytes().await.unwrap();
            let part = client.get(format!("{url}file")).header(header::RANGE, "bytes=300000-600000");
            let part = part.send().await.unwrap().bytes().await.unwrap();
            let none = client.get(format!("{url}none")).send().await.unwrap().status();
            (whole, part, none)
        });
        assert_eq!((&got.0[..], &got.1[..]), (&bytes[..], &bytes[300_000..=600_000]));
        assert_eq!(got.2, StatusCode::NOT_FOUND);
    }
}
