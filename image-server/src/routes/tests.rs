//! The whole interface, asked without a socket.

mod access;
mod channels;
mod commits;
mod failures;
mod garbage;
mod leases;
mod paths;
mod profiles;
mod reading;
mod removal;
mod uploads;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use bytes::Bytes;
use chunk_format::{ManifestId, PackId, SegmentId, StreamId};
use http_body_util::BodyExt;
use object_store::ObjectStore;
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt;

use crate::app::App;
use crate::database::Database;
use crate::database::tokens::UserId;
use crate::layout::DataDir;
use crate::limits::Limits;
use crate::role::Role;
use crate::storage::Storage;
use crate::tokens::{NewToken, issue_in, revoke};
use crate::{identity, init, testing};

/// The one object of the image's boot stream.
const BOOT_STREAM: &[u8] = b"what a start touches";

/// A server with content: image `debian`, published by `pub`, and desktop `work` of `alice` on it.
struct Fixture {
    dir: TempDir,
    app: Arc<App>,
    router: Router,
    tokens: Tokens,
    image: Published,
    desktop: Published,
}

struct Tokens {
    admin: String,
    publisher: String,
    foreign_publisher: String,
    alice: String,
    bob: String,
    expired: String,
    revoked: String,
}

/// What lies in one namespace.
struct Published {
    pack: PackId,
    pack_bytes: Vec<u8>,
    segment: SegmentId,
    segment_frame: Vec<u8>,
    manifest: chunk_format::Manifest,
    version: ManifestId,
    signature: String,
}

/// An answer, read whole.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {:?}", self.body))
    }

    fn header(&self, name: impl header::AsHeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Checks status and code of a refusal, and gives its message.
    #[track_caller]
    fn refused(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status, status, "{:?}", self.body);
        assert_eq!(self.json()["error"]["code"], code);
        self.json()["error"]["message"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn done(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{:?}", self.body);
        self
    }
}

impl Fixture {
    /// An empty server.
    async fn empty(limits: Limits, store: Option<Arc<dyn ObjectStore>>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let admin = init(dir.path(), &[], None).await.unwrap().token.reveal().to_owned();
        let data = DataDir::open(dir.path()).unwrap();
        let database = Database::open(&data.database()).await.unwrap();
        let storage = match store {
            Some(store) => Storage::remote(store),
            None => Storage::local(data.objects()).unwrap(),
        };
        let identity = identity::read(&data.identity_key()).unwrap().public();
        let issue = async |user: &str, role, expires_ms| {
            let new = NewToken { user: user.parse().unwrap(), role, label: None, expires_ms };
            issue_in(&database, &new).await.unwrap().reveal().to_owned()
        };
        let tokens = Tokens {
            admin,
            publisher: issue("pub", Role::Publisher, None).await,
            foreign_publisher: issue("other-pub", Role::Publisher, None).await,
            alice: issue("alice", Role::User, None).await,
            bob: issue("bob", Role::User, None).await,
            expired: issue("alice", Role::Admin, Some(1_000_000)).await,
            revoked: issue("alice", Role::Admin, None).await,
        };
        revoke(dir.path(), 7).await.unwrap();
        let app = App::new(database, storage, identity, limits);
        let router = super::router(app.clone());
        let (image, desktop) = (image_content(), desktop_content());
        Self { dir, app, router, tokens, image, desktop }
    }

    /// A server with its content uploaded.
    async fn new() -> Self {
        let fixture = Self::empty(Limits::default(), None).await;
        fixture.publish().await;
        fixture
    }

    async fn publish(&self) {
        let (publisher, alice) = (&self.tokens.publisher, &self.tokens.alice);
        self.upload("image/debian", "", publisher, &self.image).await;
        self.commit("/v1/images/debian/versions?channel=stable", publisher, &self.image.manifest, 1)
            .await
            .done(201);
        let path = format!("/v1/data/image/debian/streams/{}", StreamId::of(BOOT_STREAM));
        self.put(&path, publisher, BOOT_STREAM).await.done(201);
        self.attach(self.image.version, publisher, &self.profile()).await.done(201);
        self.upload("user/alice", "?also=image/debian", alice, &self.desktop).await;
        self.commit("/v1/desktops/work/versions", alice, &self.desktop.manifest, 2).await.done(201);
    }

    /// The profile of the image's version, and its signature.
    fn profile(&self) -> (Vec<u8>, String) {
        testing::profile(self.image.version, &[BOOT_STREAM], testing::PUBLISHER_KEY)
    }

    async fn attach(&self, version: ManifestId, token: &str, profile: &(Vec<u8>, String)) -> Answer {
        let path = format!("/v1/images/debian/versions/{version}/profile");
        let request = request(Method::PUT, &path, token)
            .header(header::CONTENT_LENGTH, profile.0.len())
            .header("satchel-signature", &profile.1);
        self.ask(request.body(Body::from(profile.0.clone())).unwrap()).await
    }

    async fn upload(&self, namespace: &str, also: &str, token: &str, content: &Published) {
        let path = format!("/v1/data/{namespace}/packs/{}", content.pack);
        self.put(&path, token, &content.pack_bytes).await.done(201);
        let path = format!("/v1/data/{namespace}/segments/{}{also}", content.segment);
        self.put(&path, token, &content.segment_frame).await.done(201);
    }

    async fn user(&self, name: &str) -> UserId {
        let user = sqlx::query_scalar("SELECT id FROM users WHERE name = ?").bind(name.to_owned());
        user.fetch_one(self.app.database.readers()).await.unwrap()
    }

    async fn ask(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, path: &str, token: &str) -> Answer {
        self.ask(request(Method::GET, path, token).body(Body::empty()).unwrap()).await
    }

    async fn get_with(&self, path: &str, token: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = request(Method::GET, path, token);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.ask(request.body(Body::empty()).unwrap()).await
    }

    async fn send(&self, method: Method, path: &str, token: &str, body: &[u8]) -> Answer {
        let request = request(method, path, token).header(header::CONTENT_LENGTH, body.len());
        self.ask(request.body(Body::from(body.to_vec())).unwrap()).await
    }

    async fn put(&self, path: &str, token: &str, body: &[u8]) -> Answer {
        self.send(Method::PUT, path, token, body).await
    }

    async fn post(&self, path: &str, token: &str, body: &[u8]) -> Answer {
        self.send(Method::POST, path, token, body).await
    }

    async fn commit(&self, path: &str, token: &str, manifest: &chunk_format::Manifest, key: u8) -> Answer {
        let (bytes, signature) = testing::signed(manifest, key);
        self.commit_bytes(path, token, bytes, &signature).await
    }

    async fn commit_bytes(&self, path: &str, token: &str, bytes: Vec<u8>, signature: &str) -> Answer {
        let request = request(Method::POST, path, token)
            .header(header::CONTENT_LENGTH, bytes.len())
            .header("satchel-signature", signature);
        self.ask(request.body(Body::from(bytes)).unwrap()).await
    }

    /// Files in the object store below a path, staging and files being written included.
    fn files(&self, below: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut dirs = vec![self.dir.path().join("objects").join(below)];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    found.push(path.file_name().unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        found
    }

    /// Waits until nothing is left in the staging place: uploads that were given up are removed beside their answer.
    async fn staging_is_empty(&self) {
        for _ in 0..6000 {
            if self.files("staging").is_empty() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("left in staging: {:?}", self.files("staging"));
    }
}

fn request(method: Method, path: &str, token: &str) -> axum::http::request::Builder {
    let request = Request::builder().method(method).uri(path);
    if token.is_empty() { request } else { request.header(header::AUTHORIZATION, format!("Bearer {token}")) }
}

fn image_content() -> Published {
    let pack = testing::pack(0..20);
    let (segment, segment_frame) = testing::segment_of(0..20);
    published(pack, segment, segment_frame, testing::image_manifest("debian", vec![segment]), 1)
}

/// Half of the desktop's segment is the image's.
fn desktop_content() -> Published {
    let pack = testing::pack(100..110);
    let chunks = (0..10).chain(100..110).map(testing::chunk_id).collect();
    let (segment, segment_frame) = testing::segment(chunks);
    let image = image_content();
    let segments = vec![image.segment, segment];
    let manifest = testing::desktop_manifest("alice", "work", "debian", image.version, segments);
    published(pack, segment, segment_frame, manifest, 2)
}

fn published(
    pack: chunk_format::SealedPack,
    segment: SegmentId,
    segment_frame: Vec<u8>,
    manifest: chunk_format::Manifest,
    key: u8,
) -> Published {
    let (bytes, signature) = testing::signed(&manifest, key);
    Published {
        pack: pack.id,
        pack_bytes: pack.bytes,
        segment,
        segment_frame,
        manifest,
        version: ManifestId::of(&bytes),
        signature,
    }
}
