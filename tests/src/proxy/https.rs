//! An HTTPS proxy that answers wrongly on purpose.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::fault::{Class, Fault, Policy, Rule};
use super::{Threads, tls};
use crate::seed::Rng;

/// Headers that concern one connection, or that the other side sets anew.
const NOT_FORWARDED: [HeaderName; 8] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::HOST,
    header::EXPECT,
    header::CONTENT_LENGTH,
];

/// Which interface version a side speaks.
const API_VERSION: HeaderName = HeaderName::from_static("satchel-api");

type Body = BoxBody<Bytes, io::Error>;

/// A request that went through a [`FaultyHttps`], and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Its place in the order of arrival, from 0.
    pub number: u64,
    /// Its method, such as `GET`.
    pub method: String,
    /// Its path and query.
    pub path: String,
    /// What it was for.
    pub class: Class,
    /// The range it asked for, such as `bytes=0-99`.
    pub range: Option<String>,
    /// The length of its body, bytes; 0 when it was not read.
    pub request_bytes: u64,
    /// The status the client was given; `None` when it was given none.
    pub status: Option<u16>,
    /// The length of the answer's body as the server sent it, bytes.
    pub response_bytes: u64,
    /// What went wrong on purpose.
    pub fault: Option<Fault>,
}

/// A loopback HTTPS server that passes requests on to the real one and spoils some of the answers.
///
/// It ends the client's TLS with a certificate of its own, which the client pins instead of the server's; so, unlike on a
/// [`Link`](super::Link), what is spoilt is what the client reads. Bodies are held whole in memory on the way.
#[derive(Debug)]
pub struct FaultyHttps {
    shared: Arc<Shared>,
    address: SocketAddr,
    fingerprint: String,
    _threads: Threads,
}

impl FaultyHttps {
    /// Opens a way to the server at `url`, whose certificate has `fingerprint`, on a free port of 127.0.0.1.
    pub fn start(url: &str, fingerprint: &str) -> Self {
        let threads = Threads::start("faulty-https");
        let upstream = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::pinned(fingerprint))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .expect("the TLS configuration is complete");
        let shared = Arc::new(Shared {
            upstream,
            origin: url.trim_end_matches('/').to_owned(),
            count: AtomicU64::new(0),
            rules: Mutex::default(),
            policy: Mutex::default(),
            heals: watch::Sender::new(()),
            exchanges: Mutex::default(),
        });
        let (config, fingerprint) = tls::new_identity();
        let listener =
            std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port can be had");
        listener.set_nonblocking(true).expect("a socket can be made non-blocking");
        let address = listener.local_addr().expect("a bound socket has an address");
        threads.runtime().spawn(serve(Arc::clone(&shared), listener, TlsAcceptor::from(config)));
        Self { shared, address, fingerprint, _threads: threads }
    }

    /// Returns the address clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the origin for clients.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Returns the fingerprint of the certificate that clients are shown.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Adds a rule. The first rule with a fault for a request decides; then the policy is asked.
    pub fn inject(&self, rule: Rule) {
        lock(&self.shared.rules).push(rule);
    }

    /// Sets the policy for requests that no rule spoils.
    pub fn set_policy(&self, policy: Policy) {
        *lock(&self.shared.policy) = Some(policy);
    }

    /// Removes all rules and the policy: every answer is right from now on, and requests on hold go on.
    pub fn heal(&self) {
        lock(&self.shared.rules).clear();
        *lock(&self.shared.policy) = None;
        self.shared.heals.send_replace(());
    }

    /// Returns the exchanges that have ended, or whose answer has begun, in that order.
    pub fn exchanges(&self) -> Vec<Exchange> {
        lock(&self.shared.exchanges).clone()
    }
}

/// Locks are held one at a time and never across an await.
#[derive(Debug)]
struct Shared {
    upstream: reqwest::Client,
    origin: String,
    count: AtomicU64,
    rules: Mutex<Vec<Rule>>,
    policy: Mutex<Option<Policy>>,
    /// Told whenever the rules are removed.
    heals: watch::Sender<()>,
    exchanges: Mutex<Vec<Exchange>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(shared: Arc<Shared>, listener: std::net::TcpListener, acceptor: TlsAcceptor) {
    let listener = TcpListener::from_std(listener).expect("the listener is non-blocking");
    loop {
        // An error here is a connection that ended before it was accepted.
        if let Ok((client, _)) = listener.accept().await {
            tokio::spawn(connection(Arc::clone(&shared), client, acceptor.clone()));
        }
    }
}

async fn connection(shared: Arc<Shared>, client: TcpStream, acceptor: TlsAcceptor) {
    // A client that gives up, or that we gave up on, is no failure of the proxy.
    let _ = client.set_nodelay(true);
    let Ok(client) = acceptor.accept(client).await else {
        return;
    };
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { shared.handle(request).await }
    });
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(client), service).await;
}

/// A whole answer of the server.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Shared {
    /// Answers a request. An error closes the connection, or resets the stream of an HTTP/2 connection, without a word.
    async fn handle(&self, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
        // From before the rules are asked: a request that they hold must not miss their end.
        let mut heals = self.heals.subscribe();
        let mut exchange = self.begin(&request);
        if exchange.fault == Some(Fault::Hold) {
            heals.changed().await.map_err(io::Error::other)?;
        }
        let answered = self.answer(request, &mut exchange).await;
        if let Ok(response) = &answered {
            exchange.status = Some(response.status().as_u16());
        }
        lock(&self.exchanges).push(exchange);
        answered
    }

    fn begin(&self, request: &Request<Incoming>) -> Exchange {
        let method = request.method().as_str().to_owned();
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let class = Class::of(&method, &path);
        let range =
            request.headers().get(header::RANGE).and_then(|range| range.to_str().ok()).map(str::to_owned);
        let ruled = lock(&self.rules).iter_mut().find_map(|rule| rule.apply(&method, class));
        let fault = ruled.or_else(|| lock(&self.policy).as_mut().and_then(Policy::draw));
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        Exchange {
            number,
            method,
            path,
            class,
            range,
            request_bytes: 0,
            status: None,
            response_bytes: 0,
            fault,
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        exchange: &mut Exchange,
    ) -> Result<Response<Body>, io::Error> {
        match exchange.fault {
            Some(Fault::Refuse) => return Err(closed()),
            Some(Fault::Status(status)) => return Ok(in_the_servers_place(status)),
            _ => {}
        }
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        exchange.request_bytes = body.len() as u64;
        if exchange.fault == Some(Fault::CutUpload) {
            self.cut_upload(&parts.method, &exchange.path, parts.headers, body).await;
            return Err(closed());
        }
        let other_range = match (exchange.fault, &exchange.range) {
            (Some(Fault::WrongRange), Some(range)) => other_range(range),
            _ => None,
        };
        let mut headers = parts.headers;
        if let Some(range) = &other_range {
            headers.insert(header::RANGE, HeaderValue::from_str(range).expect("a range is plain text"));
        }
        if let Some(Fault::AskAs(version)) = exchange.fault {
            headers.insert(API_VERSION, version.into());
        }
        let mut answer = self.forward(&parts.method, &exchange.path, headers, body.into()).await?;
        exchange.response_bytes = answer.body.len() as u64;
        if let Some(Fault::AnswerAs(version)) = exchange.fault {
            answer.headers.insert(API_VERSION, version.into());
        }
        if exchange.fault == Some(Fault::LoseAnswer) {
            return Err(closed());
        }
        if let (Some(_), Some(asked)) = (&other_range, &exchange.range) {
            claim_range(&mut answer, asked);
        }
        let spoil = match exchange.fault {
            Some(Fault::WrongRange)
                if other_range.is_some() && answer.status == StatusCode::PARTIAL_CONTENT =>
            {
                None
            }
            fault => fault,
        };
        Ok(spoilt(answer, parts.method == Method::HEAD, spoil, exchange.number))
    }

    async fn forward(
        &self,
        method: &Method,
        path: &str,
        mut headers: HeaderMap,
        body: reqwest::Body,
    ) -> Result<Answer, io::Error> {
        NOT_FORWARDED.iter().for_each(|name| _ = headers.remove(name));
        let request = self
            .upstream
            .request(method.clone(), format!("{}{path}", self.origin))
            .headers(headers)
            .body(body);
        // A server that does not answer looks to the client as it would without us: a connection that breaks.
        let response = request.send().await.map_err(io::Error::other)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.map_err(io::Error::other)?;
        Ok(Answer { status, headers, body })
    }

    /// Sends half of a body that was announced whole, then gives the connection up.
    async fn cut_upload(&self, method: &Method, path: &str, headers: HeaderMap, body: Bytes) {
        let half = body.slice(..body.len() / 2);
        let pieces = stream::once(async { Ok(half) }).chain(stream::once(async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Err(closed())
        }));
        let mut headers = headers;
        NOT_FORWARDED.iter().for_each(|name| _ = headers.remove(name));
        headers.insert(header::CONTENT_LENGTH, body.len().into());
        let request =
            self.upstream.request(method.clone(), format!("{}{path}", self.origin)).headers(headers);
        let _ = request.body(reqwest::Body::wrap_stream(pieces)).send().await;
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "closed on purpose")
}

fn in_the_servers_place(status: u16) -> Response<Body> {
    let text =
        format!(r#"{{"error":{{"code":"injected","message":"status {status} by the test's proxy"}}}}"#);
    let mut response = Response::new(whole(Bytes::from(text)));
    *response.status_mut() = StatusCode::from_u16(status).expect("a test injects valid statuses");
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status == 503 {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Returns a range of the same length beside `range`; `None` unless that is one `bytes=A-B`.
fn other_range(range: &str) -> Option<String> {
    let Range { start, end } = parse_range(range)?;
    let len = end - start;
    let start = if start >= len { start - len } else { end };
    Some(format!("bytes={start}-{}", start + len - 1))
}

fn parse_range(range: &str) -> Option<Range<u64>> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..last.checked_add(1)?)
}

/// Makes an answer say that it is of the range `asked`.
fn claim_range(answer: &mut Answer, asked: &str) {
    let Some(Range { start, end }) = parse_range(asked) else {
        return;
    };
    let total =
        answer.headers.get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok()?.split('/').nth(1));
    let claim = format!("bytes {start}-{}/{}", end - 1, total.unwrap_or("*"));
    answer
        .headers
        .insert(header::CONTENT_RANGE, HeaderValue::from_str(&claim).expect("a range is plain text"));
}

/// Makes the response out of an answer and what is to go wrong with it.
fn spoilt(mut answer: Answer, is_head: bool, fault: Option<Fault>, number: u64) -> Response<Body> {
    let announced = answer.headers.get(header::CONTENT_LENGTH).cloned();
    NOT_FORWARDED.iter().for_each(|name| _ = answer.headers.remove(name));
    let full = answer.body;
    let half = full.len() / 2;
    let mut announced_len = full.len();
    let body = match fault {
        Some(Fault::Alter) if !full.is_empty() => {
            let mut bytes = full.to_vec();
            let mut rng = Rng::new(number);
            let at = rng.below(bytes.len() as u64);
            bytes[usize::try_from(at).expect("a place in memory")] ^= 1 << rng.below(8);
            whole(bytes.into())
        }
        Some(Fault::Truncate) => {
            announced_len = half;
            whole(full.slice(..half))
        }
        Some(Fault::Repeat | Fault::WrongRange) => {
            let mut bytes = full.to_vec();
            bytes.copy_within(..full.len() - half, half);
            whole(bytes.into())
        }
        Some(Fault::Stall(time)) => in_two(full.slice(..half), time, Ok(full.slice(half..))),
        Some(Fault::Close) if !full.is_empty() => {
            in_two(full.slice(..half), Duration::from_millis(20), Err(closed()))
        }
        _ => whole(full),
    };
    let mut response = Response::new(body);
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    // An answer to HEAD announces a body that it does not have; 204 and 304 have none and announce none.
    let has_body = !matches!(answer.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let length = if is_head { announced } else { has_body.then(|| announced_len.into()) };
    if let Some(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, length);
    }
    response
}

fn whole(bytes: Bytes) -> Body {
    http_body_util::Full::new(bytes).map_err(|never: Infallible| match never {}).boxed()
}

/// A body in two pieces with a pause between them; the second may be an error, which closes the connection.
fn in_two(first: Bytes, pause: Duration, second: Result<Bytes, io::Error>) -> Body {
    let second = stream::once(async move {
        tokio::time::sleep(pause).await;
        second.map(Frame::data)
    });
    let pieces = stream::once(async { Ok(Frame::data(first)) }).chain(second);
    BodyExt::boxed(StreamBody::new(Box::pin(pieces)))
}

#[cfg(test)]
mod tests;
