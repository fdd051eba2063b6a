use std::time::Instant;

use reqwest::Version;

use super::*;

const OBJECT_LEN: usize = 10_000;
const OBJECT_PATH: &str = "/v1/data/image/debian/packs/00ff";

/// The body of an upload, or why it did not come whole.
type Upload = Result<Vec<u8>, String>;
type Uploads = Arc<Mutex<Vec<Upload>>>;

fn object() -> Vec<u8> {
    let mut bytes = vec![0; OBJECT_LEN];
    Rng::new(1).fill(&mut bytes);
    bytes
}

/// A server of one object that can be read in ranges, and of uploads, whose bodies it keeps.
#[derive(Debug)]
struct Upstream {
    url: String,
    fingerprint: String,
    uploads: Uploads,
    _threads: Threads,
}

impl Upstream {
    fn start() -> Self {
        let threads = Threads::start("upstream");
        let (config, fingerprint) = tls::new_identity();
        let listener = threads.runtime().block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let uploads = Uploads::default();
        let kept = Arc::clone(&uploads);
        threads.runtime().spawn(async move {
            let acceptor = TlsAcceptor::from(config);
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (acceptor, kept) = (acceptor.clone(), Arc::clone(&kept));
                tokio::spawn(async move {
                    let client = acceptor.accept(client).await.unwrap();
                    let service = service_fn(|request| respond(request, Arc::clone(&kept)));
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(client), service)
                        .await;
                });
            }
        });
        Self { url, fingerprint, uploads, _threads: threads }
    }

    fn uploads(&self) -> Vec<Upload> {
        lock(&self.uploads).clone()
    }
}

async fn respond(request: Request<Incoming>, uploads: Uploads) -> Result<Response<Body>, io::Error> {
    if request.method() == Method::PUT {
        let body = request.into_body().collect().await;
        let body = body.map(|body| body.to_bytes().to_vec()).map_err(|error| error.to_string());
        lock(&uploads).push(body);
        return Ok(Response::builder().status(201).body(whole(Bytes::new())).unwrap());
    }
    if request.method() == Method::HEAD {
        return Ok(Response::builder()
            .header(header::CONTENT_LENGTH, OBJECT_LEN)
            .body(whole(Bytes::new()))
            .unwrap());
    }
    let all = Bytes::from(object());
    let range = request.headers().get(header::RANGE).and_then(|range| parse_range(range.to_str().unwrap()));
    let response = Response::builder().header(header::ETAG, "\"00ff\"");
    let response = match range {
        Some(Range { start, end }) => {
            let bytes = all.slice(usize::try_from(start).unwrap()..usize::try_from(end).unwrap());
            let said = format!("bytes {start}-{}/{OBJECT_LEN}", end - 1);
            response.status(206).header(header::CONTENT_RANGE, said).body(whole(bytes))
        }
        None => response.status(200).body(whole(all)),
    };
    Ok(response.unwrap())
}

/// What a client got: status, headers, body; or that it got no whole answer.
type Got = Result<(u16, HeaderMap, Vec<u8>), reqwest::Error>;

struct Story {
    upstream: Upstream,
    proxy: FaultyHttps,
    client: reqwest::Client,
    threads: Threads,
}

impl Story {
    fn new() -> Self {
        let upstream = Upstream::start();
        let proxy = FaultyHttps::start(&upstream.url, &upstream.fingerprint);
        let client = reqwest::Client::builder().tls_backend_preconfigured(tls::pinned(proxy.fingerprint()));
        Self { upstream, client: client.build().unwrap(), proxy, threads: Threads::start("client") }
    }

    fn send(&self, method: Method, range: Option<&str>, body: Vec<u8>) -> Got {
        let mut request =
            self.client.request(method, format!("{}{OBJECT_PATH}", self.proxy.url())).body(body);
        if let Some(range) = range {
            request = request.header(header::RANGE, range);
        }
        self.threads.runtime().block_on(async {
            let response = request.send().await?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            Ok((status, headers, response.bytes().await?.to_vec()))
        })
    }

    fn get(&self, range: Option<&str>) -> Got {
        self.send(Method::GET, range, Vec::new())
    }

    /// Gets the object with `fault`, then without.
    fn get_with(&self, fault: Fault, range: Option<&str>) -> Got {
        self.proxy.inject(Rule::new(fault).on(Class::Packs).times(1));
        let got = self.get(range);
        let (status, _, body) = self.get(None).unwrap();
        assert_eq!((status, body), (200, object()), "a fault ends");
        got
    }
}

#[test]
fn passes_on_what_it_does_not_spoil() {
    let story = Story::new();
    let (status, headers, body) = story.get(None).unwrap();
    assert_eq!(
        (status, &headers[header::ETAG], body),
        (200, &HeaderValue::from_static("\"00ff\""), object())
    );
    let (status, headers, body) = story.get(Some("bytes=100-299")).unwrap();
    assert_eq!((status, body), (206, object()[100..300].to_vec()));
    assert_eq!(headers[header::CONTENT_RANGE], "bytes 100-299/10000");
    let (status, headers, body) = story.send(Method::HEAD, None, Vec::new()).unwrap();
    assert_eq!((status, body.len(), headers[header::CONTENT_LENGTH].to_str().unwrap()), (200, 0, "10000"));
    let (status, ..) = story.send(Method::PUT, None, vec![5; 100_000]).unwrap();
    assert_eq!((status, story.upstream.uploads()), (201, vec![Ok(vec![5; 100_000])]));

    let exchanges = story.proxy.exchanges();
    assert_eq!(exchanges.iter().map(|exchange| exchange.number).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let ranged = &exchanges[1];
    assert_eq!((ranged.class, ranged.range.as_deref()), (Class::Packs, Some("bytes=100-299")));
    assert_eq!((ranged.status, ranged.response_bytes, ranged.fault), (Some(206), 200, None));
    assert_eq!((exchanges[3].method.as_str(), exchanges[3].request_bytes), ("PUT", 100_000));
}

#[test]
fn shows_a_certificate_of_its_own() {
    let story = Story::new();
    assert_ne!(story.proxy.fingerprint(), story.upstream.fingerprint);
    let wrong =
        reqwest::Client::builder().tls_backend_preconfigured(tls::pinned(&story.upstream.fingerprint));
    let refused = story.threads.runtime().block_on(wrong.build().unwrap().get(story.proxy.url()).send());
    assert!(refused.unwrap_err().is_connect());
    // Nor does it take anyone for the server.
    let proxy = FaultyHttps::start(&story.upstream.url, story.proxy.fingerprint());
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls::pinned(proxy.fingerprint()));
    assert!(story.threads.runtime().block_on(client.build().unwrap().get(proxy.url()).send()).is_err());
}

#[test]
fn alters_one_bit() {
    let (status, _, body) = Story::new().get_with(Fault::Alter, None).unwrap();
    let bits: u32 = body.iter().zip(object()).map(|(found, sent)| (found ^ sent).count_ones()).sum();
    assert_eq!((status, body.len(), bits), (200, OBJECT_LEN, 1));
}

#[test]
fn truncates_and_says_so_in_the_length() {
    let (status, headers, body) = Story::new().get_with(Fault::Truncate, None).unwrap();
    assert_eq!((status, &body[..]), (200, &object()[..OBJECT_LEN / 2]));
    assert_eq!(headers[header::CONTENT_LENGTH], "5000");
}

#[test]
fn repeats_the_first_half() {
    let (_, _, body) = Story::new().get_with(Fault::Repeat, None).unwrap();
    let half = &object()[..OBJECT_LEN / 2];
    assert_eq!(body, [half, half].concat());
}

#[test]
fn answers_another_range_than_it_says() {
    let story = Story::new();
    for (asked, given) in [("bytes=300-499", 100..300), ("bytes=0-199", 200..400)] {
        let (status, headers, body) = story.get_with(Fault::WrongRange, Some(asked)).unwrap();
        assert_eq!((status, &body[..]), (206, &object()[given]));
        assert_eq!(headers[header::CONTENT_RANGE], format!("{}/10000", asked.replace('=', " ")));
    }
    let (_, _, body) = story.get_with(Fault::WrongRange, None).unwrap();
    assert_eq!(body.len(), OBJECT_LEN);
    assert_ne!(body, object());
}

#[test]
fn stalls_half_way() {
    let pause = Duration::from_millis(200);
    let story = Story::new();
    story.proxy.inject(Rule::new(Fault::Stall(pause)));
    let start = Instant::now();
    let (_, _, body) = story.get(None).unwrap();
    assert_eq!(body, object());
    assert!(start.elapsed() >= pause);
}

#[test]
fn closes_half_way() {
    let error = Story::new().get_with(Fault::Close, None).unwrap_err();
    assert!(error.is_body() || error.is_decode() || error.is_request(), "{error:?}");
}

#[test]
fn refuses_without_telling_the_server() {
    let story = Story::new();
    story.proxy.inject(Rule::new(Fault::Refuse).method("PUT").times(1));
    story.send(Method::PUT, None, vec![1; 1000]).unwrap_err();
    assert_eq!(story.upstream.uploads(), []);
    story.send(Method::PUT, None, vec![2; 1000]).unwrap();
    assert_eq!(story.upstream.uploads(), [Ok(vec![2; 1000])]);
}

#[test]
fn loses_an_answer_after_the_deed() {
    let story = Story::new();
    story.proxy.inject(Rule::new(Fault::LoseAnswer).method("PUT").times(1));
    story.send(Method::PUT, None, vec![1; 1000]).unwrap_err();
    assert_eq!(story.upstream.uploads(), [Ok(vec![1; 1000])]);
    let exchange = &story.proxy.exchanges()[0];
    assert_eq!((exchange.status, exchange.fault), (None, Some(Fault::LoseAnswer)));
}

#[test]
fn cuts_an_upload() {
    let story = Story::new();
    story.proxy.inject(Rule::new(Fault::CutUpload).times(1));
    story.send(Method::PUT, None, vec![1; 100_000]).unwrap_err();
    let uploads = crate::wait::until("the server to notice", crate::wait::PATIENCE, || {
        let uploads = story.upstream.uploads();
        (!uploads.is_empty()).then_some(uploads)
    });
    assert!(matches!(uploads[..], [Err(_)]), "{uploads:?}");
}

#[test]
fn answers_in_the_servers_place() {
    let story = Story::new();
    for status in [401, 500, 503] {
        let (found, headers, body) = story.get_with(Fault::Status(status), None).unwrap();
        let error: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((found, error["error"]["code"].as_str()), (status, Some("injected")));
        assert_eq!(headers.contains_key(header::RETRY_AFTER), status == 503);
    }
}

#[test]
fn follows_a_policy_until_healed() {
    let story = Story::new();
    story.proxy.set_policy(Policy::new(3).chance(Fault::Status(503), 0.5));
    let statuses: Vec<u16> = (0..40).map(|_| story.get(None).unwrap().0).collect();
    let expected: Vec<u16> = {
        let mut policy = Policy::new(3).chance(Fault::Status(503), 0.5);
        (0..40).map(|_| if policy.draw().is_some() { 503 } else { 200 }).collect()
    };
    assert_eq!(statuses, expected);
    story.proxy.heal();
    assert!((0..20).all(|_| story.get(None).unwrap().0 == 200));
}

#[test]
fn speaks_both_http_versions() {
    let story = Story::new();
    let mut config = tls::pinned(story.proxy.fingerprint());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let http1 = reqwest::Client::builder().tls_backend_preconfigured(config).http1_only().build().unwrap();
    story.proxy.inject(Rule::new(Fault::Close).skip(2));
    let url = format!("{}{OBJECT_PATH}", story.proxy.url());
    for (client, version) in [(&story.client, Version::HTTP_2), (&http1, Version::HTTP_11)] {
        let response = story.threads.runtime().block_on(client.get(&url).send()).unwrap();
        assert_eq!(response.version(), version);
    }
    for client in [&story.client, &http1] {
        let broken = story.threads.runtime().block_on(async { client.get(&url).send().await?.bytes().await });
        broken.unwrap_err();
    }
}

#[test]
fn a_request_on_hold_goes_on_when_the_proxy_is_healed() {
    let story = Story::new();
    story.proxy.inject(Rule::new(Fault::Hold).times(1));
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| story.get(None).map(|(status, _, body)| (status, body))));
        crate::wait::until("one of them is answered", crate::wait::PATIENCE, || {
            (!story.proxy.exchanges().is_empty()).then_some(())
        });
        assert!(both.iter().any(|get| !get.is_finished()), "the other one waits");
        story.proxy.heal();
        for get in both {
            assert_eq!(get.join().unwrap().unwrap(), (200, object()));
        }
    });
    let held: Vec<bool> = story.proxy.exchanges().iter().map(|one| one.fault == Some(Fault::Hold)).collect();
    assert_eq!(held, [false, true]);
}
