//! A server behind a real socket: what the connection enforces, and how the server ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use reqwest::{Body, Client, StatusCode, Version};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::{Config, Server};
use crate::init;
use crate::layout::DataDir;
use crate::limits::Limits;
use crate::testing;

/// A running server, stopped and waited for by [`Running::stop`].
struct Running {
    _dir: TempDir,
    address: SocketAddr,
    token: String,
    certificate: Vec<u8>,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

impl Running {
    async fn start(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let token = init(dir.path(), &[], None).await.unwrap().token.reveal().to_owned();
        let certificate = std::fs::read(DataDir::new(dir.path()).certificate()).unwrap();
        let server = Server::open(dir.path(), Config { limits, store: None }).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let served = tokio::spawn(server.serve(listener, stop.clone()));
        Self { _dir: dir, address, token, certificate, stop, served }
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }

    fn client(&self, version: Version) -> Client {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(certificates(&self.certificate));
        let mut tls = client_config(roots);
        let alpn: &[u8] = if version == Version::HTTP_2 { b"h2" } else { b"http/1.1" };
        tls.alpn_protocols = vec![alpn.to_vec()];
        Client::builder().tls_backend_preconfigured(tls).build().unwrap()
    }

    async fn tls(&self, alpn: &[u8]) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(certificates(&self.certificate));
        let mut tls = client_config(roots);
        tls.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.served.await.unwrap();
    }

    /// Uploads one pack and gives its path and its bytes.
    async fn upload(&self, client: &Client, chunks: u64) -> (String, Vec<u8>) {
        let pack = testing::pack(0..chunks);
        let path = format!("/v1/data/image/debian/packs/{}", pack.id);
        let put = client.put(self.url(&path)).bearer_auth(&self.token).body(pack.bytes.clone());
        assert_eq!(put.send().await.unwrap().status(), StatusCode::CREATED);
        (path, pack.bytes)
    }
}

fn certificates(pem: &[u8]) -> Vec<rustls::pki_types::CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().unwrap()
}

fn client_config(roots: rustls::RootCertStore) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Reads until the server closes the connection, or has said nothing for a while.
async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut all)).await;
    read.ok().map(|_| all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_versions_of_http_serve_the_same() {
    let server = Running::start(Limits::default()).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let client = server.client(version);
        let (path, bytes) = server.upload(&client, if version == Version::HTTP_2 { 40 } else { 41 }).await;
        let get = || client.get(server.url(&path)).bearer_auth(&server.token);
        let answer = get().send().await.unwrap();
        assert_eq!(answer.version(), version);
        assert_eq!(answer.bytes().await.unwrap(), bytes);
        let part = get().header("range", "bytes=1000-1999").send().await.unwrap();
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(part.bytes().await.unwrap(), bytes[1000..2000]);
        let head = client.head(server.url(&path)).bearer_auth(&server.token).send().await.unwrap();
        assert_eq!(head.headers()["content-length"], bytes.len().to_string());
        // Refused before its body is read, which the client must come to know all the same.
        for size in [1, 1 << 10, 1 << 20, 8 << 20, 32 << 20] {
            let refused = client.put(server.url(&path)).bearer_auth("x").body(vec![0; size]).send().await;
            assert_eq!(refused.unwrap().status(), StatusCode::UNAUTHORIZED, "{version:?} {size}");
        }
        assert_eq!(get().send().await.unwrap().status(), StatusCode::OK);
    }
    server.stop().await;
}

#[tokio::test]
async fn heads_are_bounded_in_size_and_number() {
    let server = Running::start(Limits::default()).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let client = server.client(version);
        let get = || client.get(server.url("/v1/server")).bearer_auth(&server.token);
        let long = get().header("x-long", "x".repeat(20 << 10)).send().await;
        assert!(
            long.is_err() || long.unwrap().status() == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "{version:?}"
        );
        let many = (0..100).fold(get(), |get, n| get.header(format!("x-{n}"), "1"));
        let many = many.send().await.unwrap();
        assert_eq!(many.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "{version:?}");
        let fits = get().header("x-long", "x".repeat(10 << 10)).send().await.unwrap();
        assert_eq!(fits.status(), StatusCode::OK, "{version:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn slow_heads_handshakes_and_idle_connections_are_ended() {
    let limits = Limits {
        handshake_timeout: Duration::from_secs(2),
        head_timeout: Duration::from_secs(2),
        idle_timeout: Duration::from_secs(2),
        ..Limits::default()
    };
    let server = Running::start(limits).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(rest(&mut silent).await, Some(Vec::new()));
    let mut half_head = server.tls(b"http/1.1").await;
    half_head.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-sl").await.unwrap();
    assert!(rest(&mut half_head).await.is_some());
    let mut kept = server.tls(b"http/1.1").await;
    kept.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let answer = String::from_utf8(rest(&mut kept).await.unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
    let mut idle = server.tls(b"h2").await;
    idle.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    assert!(rest(&mut idle).await.is_some());
    let mut speechless = server.tls(b"h2").await;
    assert!(rest(&mut speechless).await.is_some());
    server.stop().await;
}

#[tokio::test]
async fn a_connection_in_use_is_not_idle() {
    let limits = Limits { idle_timeout: Duration::from_secs(1), ..Limits::default() };
    let server = Running::start(limits).await;
    let client = server.client(Version::HTTP_2);
    let (path, bytes) = server.upload(&client, 200).await;
    let answer = client.get(server.url(&path)).bearer_auth(&server.token).send().await.unwrap();
    // Larger than what is buffered on the way: the rest waits for the reader, longer than an idle connection may live.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(answer.bytes().await.unwrap(), bytes);
    server.stop().await;
}

/// A connection of HTTP/2 whose client takes no answer, and its one request, of `/`.
async fn ask_and_take_nothing(server: &Running, token: &str) -> TlsStream<TcpStream> {
    // GET, https, `/`; `authorization` by its number in the table of HPACK.
    let mut head = vec![0x82, 0x87, 0x84];
    if !token.is_empty() {
        let value = format!("Bearer {token}");
        head.extend([0x0f, 0x08, u8::try_from(value.len()).unwrap()]);
        head.extend(value.bytes());
    }
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // Settings: a window of nothing. Then the head, which is all of the request.
    sent.extend([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]);
    sent.extend([0, 0, u8::try_from(head.len()).unwrap(), 1, 5, 0, 0, 0, 1]);
    sent.extend(head);
    let mut stream = server.tls(b"h2").await;
    stream.write_all(&sent).await.unwrap();
    stream
}

#[tokio::test]
async fn a_connection_without_a_token_is_not_kept() {
    let limits = Limits { token_timeout: Duration::from_secs(2), ..Limits::default() };
    let server = Running::start(limits).await;
    for token in ["", "satchel-none"] {
        let mut untaken = ask_and_take_nothing(&server, token).await;
        assert!(rest(&mut untaken).await.is_some(), "{token:?}");
    }
    let mut many = server.tls(b"http/1.1").await;
    many.write_all(&b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000)).await.unwrap();
    assert!(rest(&mut many).await.is_some());
    server.stop().await;
}

#[tokio::test]
async fn a_connection_whose_answers_are_not_taken_is_ended() {
    let limits = Limits { untaken_timeout: Duration::from_millis(200), ..Limits::default() };
    let server = Running::start(limits).await;
    let mut untaken = ask_and_take_nothing(&server, &server.token).await;
    assert!(rest(&mut untaken).await.is_some());
    server.stop().await;
}

#[tokio::test]
async fn a_stopping_server_finishes_what_it_began() {
    let server = Running::start(Limits::default()).await;
    let client = server.client(Version::HTTP_2);
    let (path, bytes) = server.upload(&client, 400).await;
    let download = client.get(server.url(&path)).bearer_auth(&server.token).send().await.unwrap();
    let second = testing::pack(1000..1040);
    let (first_half, second_half) = (second.bytes[..700_000].to_vec(), second.bytes[700_000..].to_vec());
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let body = stream::once(async move { Ok::<_, std::io::Error>(Bytes::from(first_half)) }).chain(
        stream::once(async move {
            wait.await.ok();
            Ok(Bytes::from(second_half))
        }),
    );
    let upload = client
        .put(server.url(&format!("/v1/data/image/debian/packs/{}", second.id)))
        .bearer_auth(&server.token)
        .header("content-length", second.bytes.len())
        .body(Body::wrap_stream(body));
    let upload = tokio::spawn(upload.send());
    // The upload has reached the server when something of it lies in the staging place.
    let staging = server._dir.path().join("objects/staging");
    while std::fs::read_dir(&staging).map_or(0, Iterator::count) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.stop.cancel();
    while TcpStream::connect(server.address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    go.send(()).unwrap();
    assert_eq!(download.bytes().await.unwrap(), bytes);
    assert_eq!(upload.await.unwrap().unwrap().status(), StatusCode::CREATED);
    server.stop().await;
}

#[tokio::test]
async fn a_stopping_server_does_not_wait_for_ever() {
    let limits = Limits { shutdown_grace: Duration::from_millis(200), ..Limits::default() };
    let server = Running::start(limits).await;
    let client = server.client(Version::HTTP_2);
    let pack = testing::pack(0..40);
    let stuck = client
        .put(server.url(&format!("/v1/data/image/debian/packs/{}", pack.id)))
        .bearer_auth(&server.token)
        .header("content-length", pack.bytes.len())
        .body(Body::wrap_stream(stream::pending::<Result<Bytes, std::io::Error>>()));
    let stuck = tokio::spawn(stuck.send());
    let _idle = server.tls(b"http/1.1").await;
    let staging = server._dir.path().join("objects/staging");
    while std::fs::read_dir(&staging).map_or(0, Iterator::count) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.stop().await;
    assert!(stuck.await.unwrap().is_err());
}

#[tokio::test]
async fn more_connections_than_there_are_places_wait_their_turn() {
    let server = Running::start(Limits { connections: 2, ..Limits::default() }).await;
    let (first, _second) = (server.tls(b"h2").await, server.tls(b"h2").await);
    let client = server.client(Version::HTTP_2);
    let health = tokio::spawn(client.get(server.url("/healthz")).send());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!health.is_finished());
    drop(first);
    assert_eq!(health.await.unwrap().unwrap().status(), StatusCode::OK);
    server.stop.cancel();
}

#[tokio::test]
async fn one_user_has_a_quarter_of_the_connections() {
    let server = Running::start(Limits { connections: 8, ..Limits::default() }).await;
    let ask = async |client: &Client| {
        let asked = client.get(server.url("/v1/server")).bearer_auth(&server.token).send();
        asked.await.unwrap().status()
    };
    let (first, second, third) =
        (server.client(Version::HTTP_2), server.client(Version::HTTP_11), server.client(Version::HTTP_2));
    for _ in 0..2 {
        assert_eq!(ask(&first).await, StatusCode::OK);
        assert_eq!(ask(&second).await, StatusCode::OK);
        assert_eq!(ask(&third).await, StatusCode::SERVICE_UNAVAILABLE);
    }
    // Others, and who needs no token, are not held up.
    assert_eq!(third.get(server.url("/healthz")).send().await.unwrap().status(), StatusCode::OK);
    drop(first);
    while ask(&third).await != StatusCode::OK {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn two_servers_share_a_directory() {
    let one = Running::start(Limits::default()).await;
    let other = Server::open(one._dir.path(), Config::default()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let served = tokio::spawn(other.serve(listener, stop.clone()));
    let client = one.client(Version::HTTP_2);
    let (path, bytes) = one.upload(&client, 20).await;
    let url = format!("https://localhost:{}{path}", address.port());
    let answer = client.get(url).bearer_auth(&one.token).send().await.unwrap();
    assert_eq!(answer.bytes().await.unwrap(), bytes);
    one.stop().await;
    stop.cancel();
    served.await.unwrap();
}
