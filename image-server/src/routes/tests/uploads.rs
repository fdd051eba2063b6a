//! Packs and segments on their way in.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use bytes::Bytes;
use chunk_format::{ChunkId, ChunkSize, FrameDecoder, FrameEncoder, Locator, PackId, SegmentId};
use futures_util::stream;

use super::{Fixture, request};
use crate::http::body::BodyReader;
use crate::http::error::ApiError;
use crate::limits::Limits;
use crate::testing;

fn pack_path(id: PackId) -> String {
    format!("/v1/data/image/debian/packs/{id}")
}

#[tokio::test]
async fn a_pack_counts_once_it_is_checked() {
    let fixture = Fixture::empty(Limits::default(), None).await;
    let (path, publisher) = (pack_path(fixture.image.pack), &fixture.tokens.publisher);
    let ids: Vec<u8> = (0..25).flat_map(|number| *testing::chunk_id(number).as_bytes()).collect();
    let missing =
        async || fixture.post("/v1/missing/image/debian/chunks", publisher, &ids).await.done(200).body;
    assert_eq!(missing().await, &[0xff, 0xff, 0xff, 0x01][..]);
    fixture.get(&path, publisher).await.refused(404, "not_found");
    fixture.put(&path, publisher, &fixture.image.pack_bytes).await.done(201);
    fixture.put(&path, publisher, &fixture.image.pack_bytes).await.done(200);
    fixture.get(&path, publisher).await.done(200);
    assert_eq!(missing().await, &[0x00, 0x00, 0xf0, 0x01][..]);
    fixture.staging_is_empty().await;
}

#[tokio::test]
async fn packs_that_are_not_what_they_say_leave_nothing() {
    let fixture = Fixture::empty(Limits::default(), None).await;
    let publisher = &fixture.tokens.publisher;
    let good = fixture.image.pack_bytes.clone();
    let len = good.len();
    let altered = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    // Under the right name, these have another id; under their own, what is inside is wrong.
    let cases = [
        altered(0),
        altered(11),
        altered(5000),
        altered(len - 100),
        altered(len - 1),
        good[..len - 1].to_vec(),
        good[1..].to_vec(),
        Vec::new(),
        vec![0; 79],
        vec![0; 5000],
    ];
    for bytes in cases {
        let answer = fixture.put(&pack_path(fixture.image.pack), publisher, &bytes).await;
        answer.refused(422, "damaged");
        let answer = fixture.put(&pack_path(PackId::of(&bytes)), publisher, &bytes).await;
        answer.refused(422, "damaged");
    }
    fixture.staging_is_empty().await;
    assert!(fixture.files("image").is_empty());
    let ids = testing::chunk_id(0).as_bytes().to_vec();
    assert_eq!(fixture.post("/v1/missing/image/debian/chunks", publisher, &ids).await.body, &[1][..]);
}

/// A pack whose table names other chunks than its frames hold: everything but the frames adds up.
#[tokio::test]
async fn a_pack_that_lies_about_its_chunks_is_refused() {
    let fixture = Fixture::empty(Limits::default(), None).await;
    let mut encoder = FrameEncoder::new().unwrap();
    let mut builder = chunk_format::PackBuilder::new(ChunkSize::DEFAULT);
    let real = testing::chunk(1, ChunkSize::DEFAULT);
    builder.add(testing::chunk_id(0), &testing::chunk(0, ChunkSize::DEFAULT), &mut encoder).unwrap();
    builder.add(testing::chunk_id(2), &real, &mut encoder).unwrap();
    let pack = builder.seal().unwrap();
    let answer = fixture.put(&pack_path(pack.id), &fixture.tokens.publisher, &pack.bytes).await;
    let message = answer.refused(422, "damaged");
    assert!(message.contains(&testing::chunk_id(2).to_string()), "{message}");
    assert!(fixture.files("image").is_empty());
}

#[tokio::test]
async fn packs_of_every_chunk_size_are_taken() {
    let fixture = Fixture::empty(Limits::default(), None).await;
    for log2 in [12, 16, 22] {
        let pack = testing::pack_of_size(0..3, ChunkSize::from_log2(log2).unwrap());
        fixture.put(&pack_path(pack.id), &fixture.tokens.publisher, &pack.bytes).await.done(201);
    }
}

#[tokio::test]
async fn a_body_must_say_its_length_keep_to_it_and_fit() {
    let fixture = Fixture::empty(Limits::default(), None).await;
    let publisher = &fixture.tokens.publisher;
    let path = pack_path(fixture.image.pack);
    let put = || request(Method::PUT, &path, publisher);
    let bytes = fixture.image.pack_bytes.clone();
    let len = bytes.len();
    let with_len =
        |len: usize| put().header(header::CONTENT_LENGTH, len).body(Body::from(bytes.clone())).unwrap();
    let none = put().body(Body::from(bytes.clone())).unwrap();
    fixture.ask(none).await.refused(411, "length_required");
    fixture.ask(with_len(len - 1)).await.refused(400, "bad_request");
    fixture.ask(with_len(len + 1)).await.refused(400, "bad_request");
    fixture.ask(with_len((32 << 20) + 1)).await.refused(413, "too_large");
    fixture.ask(with_len(len)).await.done(201);
    let segment = format!("/v1/data/image/debian/segments/{}", fixture.image.segment);
    fixture.put(&segment, publisher, &[0; 32_770]).await.refused(413, "too_large");
    let missing = "/v1/missing/image/debian/chunks";
    fixture.post(missing, publisher, &vec![0; (2 << 20) + 32]).await.refused(413, "too_large");
    fixture.post(missing, publisher, &[0; 33]).await.refused(400, "bad_request");
    fixture.staging_is_empty().await;
}

#[tokio::test]
async fn a_body_that_stops_coming_is_ended() {
    let limits = Limits { body_pause: Duration::from_millis(50), ..Limits::default() };
    let fixture = Fixture::empty(limits, None).await;
    let bytes = fixture.image.pack_bytes.clone();
    let half = Bytes::copy_from_slice(&bytes[..bytes.len() / 2]);
    let stalled = stream::once(async { Ok::<_, std::io::Error>(half) });
    let stalled = Body::from_stream(futures_util::StreamExt::chain(stalled, stream::pending()));
    let put = request(Method::PUT, &pack_path(fixture.image.pack), &fixture.tokens.publisher)
        .header(header::CONTENT_LENGTH, bytes.len());
    fixture.ask(put.body(stalled).unwrap()).await.refused(408, "too_slow");
    fixture.staging_is_empty().await;
}

#[tokio::test]
async fn an_upload_that_is_given_up_leaves_nothing() {
    let fixture = Fixture::empty(Limits::default(), None).await;
    let bytes = Bytes::from(fixture.image.pack_bytes.clone());
    let body = stream::iter([Ok(bytes.slice(..100_000)), Err(std::io::Error::other("connection reset"))]);
    let put = request(Method::PUT, &pack_path(fixture.image.pack), &fixture.tokens.publisher)
        .header(header::CONTENT_LENGTH, bytes.len());
    fixture.ask(put.body(Body::from_stream(body)).unwrap()).await.refused(400, "bad_request");
    fixture.staging_is_empty().await;

    // The request is dropped in the middle, as it is when its connection ends.
    let body = futures_util::StreamExt::chain(
        stream::once(async move { Ok::<_, std::io::Error>(bytes.slice(..100_000)) }),
        stream::pending(),
    );
    let put = request(Method::PUT, &pack_path(fixture.image.pack), &fixture.tokens.publisher)
        .header(header::CONTENT_LENGTH, fixture.image.pack_bytes.len());
    let asked = fixture.ask(put.body(Body::from_stream(body)).unwrap());
    assert!(tokio::time::timeout(Duration::from_millis(200), asked).await.is_err());
    fixture.staging_is_empty().await;
    assert!(fixture.files("image").is_empty());
}

#[tokio::test]
async fn an_upload_whose_client_hangs_up_has_its_turn_until_it_is_stored() {
    let limits = Limits { uploads: 1, upload_wait: Duration::from_millis(50), ..Limits::default() };
    let fixture = Fixture::empty(limits, None).await;
    let (app, publisher) = (&fixture.app, &fixture.tokens.publisher);
    let path = pack_path(fixture.image.pack);
    // The token's first use is noted beside the request.
    fixture.get("/v1/images", publisher).await.done(200);
    let has_tasks = async |count: usize| {
        while app.tasks.len() != count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    has_tasks(0).await;
    let writing = app.database.begin().await.unwrap();
    tokio::select! {
        answer = fixture.put(&path, publisher, &fixture.image.pack_bytes) => panic!("{}", answer.status),
        () = has_tasks(1) => {}
    }
    let alice = fixture.user("alice").await;
    assert!(matches!(app.upload_turn(alice).await, Err(ApiError::Busy(None))));
    drop(writing);
    has_tasks(0).await;
    drop(app.upload_turn(alice).await.unwrap());
    fixture.get(&path, publisher).await.done(200);
}

#[tokio::test]
async fn uploads_beyond_the_limit_wait_and_are_then_told_to_come_again() {
    let limits = Limits {
        uploads: 1,
        uploads_waiting: 1,
        upload_wait: Duration::from_millis(50),
        ..Limits::default()
    };
    let fixture = Fixture::empty(limits, None).await;
    let (path, publisher) = (pack_path(fixture.image.pack), &fixture.tokens.publisher);
    let turn = fixture.app.upload_turn(fixture.user("alice").await).await.unwrap();
    let put = || fixture.put(&path, publisher, &fixture.image.pack_bytes);
    let (busy, second, third) = tokio::join!(put(), put(), put());
    for answer in [&busy, &second, &third] {
        answer.refused(503, "busy");
    }
    assert_eq!(busy.header("retry-after"), "2");
    drop(turn);
    fixture.put(&path, publisher, &fixture.image.pack_bytes).await.done(201);
}

#[tokio::test]
async fn bodies_in_memory_share_what_room_there_is() {
    let limits =
        Limits { body_memory_bytes: 1000, upload_wait: Duration::from_millis(50), ..Limits::default() };
    let fixture = Fixture::empty(limits, None).await;
    let publisher = &fixture.tokens.publisher;
    let path = "/v1/missing/image/debian/chunks";
    let headers = HeaderMap::from_iter([(header::CONTENT_LENGTH, HeaderValue::from(960u32))]);
    let body =
        BodyReader::new(&headers, Body::from(vec![0; 960]), "a body", 1000, &fixture.app.limits).unwrap();
    let alice = fixture.user("alice").await;
    let held = fixture.app.read_whole(alice, body).await.unwrap();
    fixture.post(path, publisher, &[1; 64]).await.refused(503, "busy");
    fixture.post(path, publisher, &[1; 32]).await.done(200);
    drop(held);
    // What is longer than all the room there is takes all of it.
    fixture.post(path, publisher, &[1; 3200]).await.done(200);
}

#[tokio::test]
async fn the_same_pack_many_times_at_once_is_one_pack() {
    let limits = Limits { upload_wait: Duration::from_secs(60), ..Limits::default() };
    let fixture = Fixture::empty(limits, None).await;
    let (path, publisher) = (pack_path(fixture.image.pack), &fixture.tokens.publisher);
    let puts = (0..8).map(|_| fixture.put(&path, publisher, &fixture.image.pack_bytes));
    let answers = futures_util::future::join_all(puts).await;
    let new = answers.iter().filter(|answer| answer.status == 201).count();
    assert_eq!(new, 1);
    assert!(answers.iter().all(|answer| answer.status == 200 || answer.status == 201));
    fixture.staging_is_empty().await;
    assert_eq!(fixture.files("image").len(), 1);
}

#[tokio::test]
async fn a_segment_needs_all_its_chunks() {
    let fixture = Fixture::new().await;
    let (publisher, alice) = (&fixture.tokens.publisher, &fixture.tokens.alice);
    let (id, frame) = testing::segment_of(15..25);
    let path = format!("/v1/data/image/debian/segments/{id}");
    let answer = fixture.put(&path, publisher, &frame).await;
    answer.refused(409, "chunks_missing");
    assert_eq!(answer.json()["error"]["missing"], 5);
    fixture.get(&path, publisher).await.refused(404, "not_found");
    let pack = testing::pack(20..25);
    fixture.put(&pack_path(pack.id), publisher, &pack.bytes).await.done(201);
    fixture.put(&path, publisher, &frame).await.done(201);
    fixture.put(&path, publisher, &frame).await.done(200);
    assert_eq!(fixture.get(&path, alice).await.done(200).body, frame[..]);
    // Zero chunks are nowhere and everywhere.
    let (id, frame) = testing::segment(vec![ChunkId::ZERO, testing::chunk_id(0), ChunkId::ZERO]);
    fixture.put(&format!("/v1/data/image/debian/segments/{id}"), publisher, &frame).await.done(201);
}

#[tokio::test]
async fn segments_that_are_not_what_they_say_are_refused() {
    let fixture = Fixture::new().await;
    let publisher = &fixture.tokens.publisher;
    let frame = &fixture.image.segment_frame;
    let put = async |id: SegmentId, frame: &[u8]| {
        fixture.put(&format!("/v1/data/image/debian/segments/{id}"), publisher, frame).await
    };
    put(SegmentId::of(b"other"), frame).await.refused(422, "damaged");
    put(fixture.image.segment, &frame[..frame.len() - 1]).await.refused(422, "damaged");
    put(fixture.image.segment, b"").await.refused(422, "damaged");
    let zero = FrameEncoder::new().unwrap().encode(&[0; chunk_format::SEGMENT_BYTES]).unwrap();
    put(SegmentId::ZERO, &zero).await.refused(422, "damaged");
    // A bomb: a frame of far more than a segment.
    let bomb = FrameEncoder::new().unwrap().encode(&vec![0; 64 << 20]).unwrap();
    put(fixture.image.segment, &bomb).await.refused(422, "damaged");
}

#[tokio::test]
async fn a_chunk_in_both_namespaces_is_taken_from_the_segments_own() {
    let fixture = Fixture::new().await;
    let alice = &fixture.tokens.alice;
    let pack = testing::pack(5..8);
    fixture.put(&format!("/v1/data/user/alice/packs/{}", pack.id), alice, &pack.bytes).await.done(201);
    let (id, frame) = testing::segment_of(3..10);
    let path = format!("/v1/data/user/alice/segments/{id}?also=image/debian");
    fixture.put(&path, alice, &frame).await.done(201);
    let locator = fixture.get(&format!("/v1/data/user/alice/locators/{id}"), alice).await.done(200);
    let locator = Locator::decode(&locator.body, id, &mut FrameDecoder::new().unwrap()).unwrap();
    let from: Vec<String> =
        (0..7).map(|at| locator.pack(&locator.place(at).unwrap()).unwrap().namespace.to_string()).collect();
    let (own, image) = ("user/alice", "image/debian");
    assert_eq!(from, [image, image, own, own, own, image, image]);
    let sources: Vec<(String,)> = sqlx::query_as(
        "SELECT namespaces.name FROM segment_sources JOIN namespaces ON namespaces.id = segment_sources.namespace_id
         JOIN segments ON segments.id = segment_id WHERE segment = ?",
    )
    .bind(&id.as_bytes()[..])
    .fetch_all(fixture.app.database.readers())
    .await
    .unwrap();
    assert_eq!(sources, [("debian".to_owned(),)]);
}

#[tokio::test]
async fn a_segment_has_chunks_of_one_size() {
    let fixture = Fixture::new().await;
    let publisher = &fixture.tokens.publisher;
    let size = ChunkSize::new(4096).unwrap();
    let pack = testing::pack_of_size(0..2, size);
    fixture.put(&pack_path(pack.id), publisher, &pack.bytes).await.done(201);
    let small = ChunkId::of_chunk(&testing::chunk(0, size));
    let (id, frame) = testing::segment(vec![small, testing::chunk_id(0)]);
    let answer = fixture.put(&format!("/v1/data/image/debian/segments/{id}"), publisher, &frame).await;
    assert!(answer.refused(422, "damaged").contains("one size"));
}

#[tokio::test]
async fn what_is_missing_is_told_bit_by_bit() {
    let fixture = Fixture::new().await;
    let alice = &fixture.tokens.alice;
    // Here: 0..20 in the image, 100..110 at alice's; 50 nowhere; the zero chunk never missing; twice is twice.
    let numbers = [0u64, 50, 100, 0, 50, 109, 19, 20, 110];
    let mut ids: Vec<u8> = numbers.iter().flat_map(|number| *testing::chunk_id(*number).as_bytes()).collect();
    ids.extend_from_slice(ChunkId::ZERO.as_bytes());
    let ask = async |path: &str, body: &[u8]| fixture.post(path, alice, body).await.done(200).body.to_vec();
    assert_eq!(ask("/v1/missing/image/debian/chunks", &ids).await, [0b1011_0110, 0b01]);
    assert_eq!(ask("/v1/missing/user/alice/chunks", &ids).await, [0b1101_1011, 0b01]);
    assert_eq!(ask("/v1/missing/user/alice/chunks?also=image/debian", &ids).await, [0b1001_0010, 0b01]);
    assert_eq!(ask("/v1/missing/user/alice/chunks?also=image/nowhere", &ids).await, [0b1101_1011, 0b01]);
    assert_eq!(ask("/v1/missing/image/nowhere/chunks", &ids).await, [0xff, 0b01]);
    assert!(ask("/v1/missing/image/debian/chunks", b"").await.is_empty());

    let segments = [fixture.image.segment, SegmentId::of(b"x"), fixture.desktop.segment, SegmentId::ZERO];
    let ids: Vec<u8> = segments.iter().flat_map(|id| *id.as_bytes()).collect();
    assert_eq!(ask("/v1/missing/image/debian/segments", &ids).await, [0b0110]);
    assert_eq!(ask("/v1/missing/user/alice/segments?also=image/debian", &ids).await, [0b0010]);
}

#[tokio::test]
async fn the_longest_question_is_answered() {
    let fixture = Fixture::new().await;
    let ids: Vec<u8> = (0..65_536u32).flat_map(|n| *ChunkId::of(&n.to_le_bytes()).as_bytes()).collect();
    let answer = fixture.post("/v1/missing/image/debian/chunks", &fixture.tokens.alice, &ids).await.done(200);
    assert_eq!(answer.body, vec![0xff; 8192]);
}

#[tokio::test]
async fn whoever_sends_slowly_keeps_no_other_user_waiting() {
    let limits =
        Limits { body_memory_bytes: 64 << 10, upload_wait: Duration::from_millis(50), ..Limits::default() };
    let fixture = Fixture::empty(limits, None).await;
    fixture.publish().await;
    let (slow, alice) = (&fixture.tokens.publisher, &fixture.tokens.alice);
    let nothing = || Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    let send = |method: Method, path: &str, len: usize| {
        let request = request(method, path, slow).header(header::CONTENT_LENGTH, len);
        fixture.ask(request.body(nothing()).unwrap())
    };
    let pack = testing::pack(200..210);
    let packs = (0..30).map(|_| send(Method::PUT, &pack_path(pack.id), pack.bytes.len()));
    let questions = (0..7).map(|_| send(Method::POST, "/v1/missing/image/debian/chunks", 16 << 10));
    // More than there is room for, of all users.
    let leases = (0..600).map(|_| send(Method::PUT, "/v1/desktops/work/lease", 16 << 10));
    let sends = futures_util::future::join_all(packs.chain(questions).chain(leases));
    let others = async {
        // By then those that find no room have been told.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let key = chunk_format::SecretKey::from_bytes(&[7; 32]).public();
        let wish = serde_json::json!({"key": key, "machine": "laptop", "version": fixture.desktop.version});
        let path = "/v1/desktops/work/lease";
        fixture.put(path, alice, wish.to_string().as_bytes()).await.done(200);
        let path = "/v1/missing/image/debian/chunks";
        fixture.post(path, alice, &[1; 8 << 10]).await.done(200);
        let path = format!("/v1/data/user/alice/packs/{}", pack.id);
        fixture.put(&path, alice, &pack.bytes).await.done(201);
    };
    tokio::select! {
        _ = sends => panic!("nothing was sent slowly"),
        () = others => {}
    }
}
