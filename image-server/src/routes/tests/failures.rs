//! A store and a database that fail, or are asked by many at once.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};
use tempfile::TempDir;

use super::{Answer, Fixture};
use crate::limits::Limits;
use crate::testing;

/// What a failing call says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Full,
    Broken,
    /// Nothing, and says that it is done.
    Pretended,
}

/// A store whose nth call, reading calls not counted, fails.
#[derive(Debug)]
struct FailingStore {
    inner: LocalFileSystem,
    calls: Arc<Calls>,
}

#[derive(Debug)]
struct Calls {
    left: AtomicUsize,
    fault: Fault,
}

impl Calls {
    fn count(&self) -> Result<()> {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match (left, self.fault) {
            (Ok(1), Fault::Full) => Err(generic(io::Error::from(io::ErrorKind::StorageFull))),
            (Ok(1), Fault::Broken | Fault::Pretended) => {
                Err(generic(io::Error::other("secret path /srv/objects is on fire")))
            }
            _ => Ok(()),
        }
    }
}

fn generic(source: io::Error) -> Error {
    Error::Generic { store: "failing", source: Box::new(source) }
}

impl fmt::Display for FailingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FailingStore")
    }
}

#[async_trait]
impl ObjectStore for FailingStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.calls.count()?;
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.calls.count()?;
        let inner = self.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(FailingUpload { inner, calls: self.calls.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        match (self.calls.count(), self.calls.fault) {
            (Err(_), Fault::Pretended) => Ok(()),
            (counted, _) => {
                counted?;
                self.inner.copy_opts(from, to, options).await
            }
        }
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct FailingUpload {
    inner: Box<dyn MultipartUpload>,
    calls: Arc<Calls>,
}

#[async_trait]
impl MultipartUpload for FailingUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        match self.calls.count() {
            Ok(()) => self.inner.put_part(data),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.calls.count()?;
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

/// A server whose store fails at the nth writing call; the store is where a local one would be.
async fn failing_at(nth: usize, fault: Fault, objects: &TempDir) -> Fixture {
    let calls = Arc::new(Calls { left: AtomicUsize::new(nth), fault });
    let inner = LocalFileSystem::new_with_prefix(objects.path()).unwrap();
    Fixture::empty(Limits::default(), Some(Arc::new(FailingStore { inner, calls }))).await
}

/// Publishes the image as a client does, and stops at the first answer that is no success.
async fn publish(fixture: &Fixture) -> std::result::Result<(), Box<Answer>> {
    let (image, publisher) = (&fixture.image, &fixture.tokens.publisher);
    let well = |answer: Answer| if answer.status.is_success() { Ok(()) } else { Err(Box::new(answer)) };
    let path = format!("/v1/data/image/debian/packs/{}", image.pack);
    well(fixture.put(&path, publisher, &image.pack_bytes).await)?;
    let path = format!("/v1/data/image/debian/segments/{}", image.segment);
    well(fixture.put(&path, publisher, &image.segment_frame).await)?;
    well(fixture.commit("/v1/images/debian/versions?channel=stable", publisher, &image.manifest, 1).await)
}

/// Fails each writing call in turn until one publication goes through untouched. After each failure the server must have
/// told it, shown nothing half, and taken the same publication well at the next try.
async fn fail_every_call(fault: Fault, status: u16, code: &str) -> usize {
    for nth in 1..100 {
        let objects = tempfile::tempdir().unwrap();
        let fixture = failing_at(nth, fault, &objects).await;
        let Err(answer) = publish(&fixture).await else { return nth - 1 };
        let message = answer.refused(status, code);
        assert!(!message.contains("fire") && !message.contains("/srv"), "{message}");
        let alice = &fixture.tokens.alice;
        assert_eq!(fixture.get("/v1/images", alice).await.done(200).json()["images"], serde_json::json!([]));
        publish(&fixture).await.unwrap_or_else(|answer| panic!("call {nth}: {:?}", answer.body));
        let id = fixture.image.pack;
        let read = fixture.get(&format!("/v1/data/image/debian/packs/{id}"), alice).await.done(200);
        assert_eq!(read.body, fixture.image.pack_bytes[..]);
    }
    panic!("a publication takes fewer calls than that");
}

#[tokio::test]
async fn a_full_store_is_told_at_every_call_and_nothing_is_lost() {
    let calls = fail_every_call(Fault::Full, 507, "store_full").await;
    // Stage, a part, its end, the copy with its name; locator, segment; manifest, signature.
    assert_eq!(calls, 8);
}

#[tokio::test]
async fn a_broken_store_is_ours_to_know_at_every_call() {
    fail_every_call(Fault::Broken, 500, "internal").await;
}

#[tokio::test]
async fn a_copy_that_was_said_to_be_made_and_was_not_is_made_again() {
    let objects = tempfile::tempdir().unwrap();
    // After the beginning of the upload, its part and its end.
    let fixture = failing_at(4, Fault::Pretended, &objects).await;
    publish(&fixture).await.unwrap_or_else(|answer| panic!("{:?}", answer.body));
    let path = format!("/v1/data/image/debian/packs/{}", fixture.image.pack);
    let read = fixture.get(&path, &fixture.tokens.alice).await.done(200);
    assert_eq!(read.body, fixture.image.pack_bytes[..]);
}

#[tokio::test]
async fn a_full_database_is_told_reads_go_on_and_writes_do_when_there_is_room() {
    let fixture = Fixture::new().await;
    let (publisher, alice) = (&fixture.tokens.publisher, &fixture.tokens.alice);
    fixture.app.database.fill().await;
    // More chunks than the pages that are there have room for.
    let pack = testing::pack_of_size(1000..9000, chunk_format::ChunkSize::new(4096).unwrap());
    let path = format!("/v1/data/image/debian/packs/{}", pack.id);
    let message = fixture.put(&path, publisher, &pack.bytes).await.refused(507, "store_full");
    assert!(message.ends_with("this request stored nothing; what was stored before is kept"), "{message}");
    fixture.get(&path, alice).await.refused(404, "not_found");
    let path = format!("/v1/data/image/debian/packs/{}", fixture.image.pack);
    fixture.get(&path, alice).await.done(200);
    fixture.get("/v1/images", alice).await.done(200);
    fixture.get("/healthz", "").await.done(200);
    fixture.staging_is_empty().await;
    fixture.app.database.make_room().await;
    let path = format!("/v1/data/image/debian/packs/{}", pack.id);
    fixture.put(&path, publisher, &pack.bytes).await.done(201);
}

#[tokio::test]
async fn many_who_ask_how_an_image_gets_on_do_not_wait_for_each_other() {
    let fixture = Fixture::new().await;
    let states = (0..12).map(|_| fixture.get("/v1/images/debian/states", &fixture.tokens.publisher));
    let (states, server) = tokio::join!(join_all(states), fixture.get("/v1/server", &fixture.tokens.alice));
    server.done(200);
    for answer in states {
        answer.done(200);
    }
}
