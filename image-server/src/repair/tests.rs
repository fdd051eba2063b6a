//! What is lost, is sent again, and is whole again; and what that may not hold up or spoil.

use std::fs;
use std::ops::Range;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, header};
use chunk_format::{ID_BYTES, SegmentId};
use tower::ServiceExt;

use super::{Report, repair};
use crate::database::Database;
use crate::database::segments::{self, Places};
use crate::layout::DataDir;
use crate::tokens::{NewToken, issue};
use crate::verify::Part;
use crate::verify::tests::{FIRST, Heard, Meanwhile, OWN, SECOND, Stored, apart, flip, send};
use crate::{Role, testing};

async fn repaired(stored: &Stored) -> Report {
    repair(stored.dir.path(), &Heard::default()).await.unwrap()
}

/// Packs and segments noted as lost, those whole again, led, and lost still.
fn counts(report: &Report) -> [u64; 6] {
    [
        report.lost_packs,
        report.lost_segments,
        report.whole_packs,
        report.whole_segments,
        report.led_segments,
        report.still_lost_segments,
    ]
}

const NOTHING: [u64; 6] = [0; 6];

async fn answer(router: &Router, method: &str, path: &str, token: &str, body: Vec<u8>) -> (u16, Vec<u8>) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::CONTENT_LENGTH, body.len())
        .body(Body::from(body))
        .unwrap();
    let answer = router.clone().oneshot(request).await.unwrap();
    let status = answer.status().as_u16();
    (status, axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap().to_vec())
}

/// Which of these the server says that it lacks.
async fn missing(
    router: &Router,
    token: &str,
    namespace: &str,
    class: &str,
    ids: &[[u8; ID_BYTES]],
) -> Vec<bool> {
    let path = format!("/v1/missing/{namespace}/{class}");
    let (status, bitmap) = answer(router, "POST", &path, token, ids.concat()).await;
    assert_eq!(status, 200);
    (0..ids.len()).map(|at| bitmap[at / 8] >> (at % 8) & 1 == 1).collect()
}

async fn missing_chunks(router: &Router, token: &str, numbers: Range<u64>) -> Vec<u64> {
    let ids: Vec<_> = numbers.clone().map(|number| *testing::chunk_id(number).as_bytes()).collect();
    let missing = missing(router, token, "image/debian", "chunks", &ids).await;
    numbers.zip(missing).filter_map(|(number, missing)| missing.then_some(number)).collect()
}

async fn lacks_segment(router: &Router, token: &str, namespace: &str, segment: SegmentId) -> bool {
    missing(router, token, namespace, "segments", &[*segment.as_bytes()]).await[0]
}

async fn send_pack(router: &Router, token: &str, numbers: Range<u64>) {
    let pack = testing::pack(numbers);
    let path = format!("/v1/data/image/debian/packs/{}", pack.id);
    send(router, "PUT", &path, token, "", pack.bytes).await;
}

async fn put_segment(router: &Router, token: &str, namespace: &str, numbers: Vec<u64>) -> (SegmentId, u16) {
    let (id, frame) = testing::segment(numbers.into_iter().map(testing::chunk_id).collect());
    let path = format!("/v1/data/{namespace}/segments/{id}?also=image/debian");
    (id, answer(router, "PUT", &path, token, frame).await.0)
}

/// Sends a segment of the image's from a callback.
fn apart_put(router: &Router, token: &str, numbers: Vec<u64>) -> u16 {
    let status = std::sync::Mutex::new(0);
    apart(async {
        let sent = put_segment(router, token, "image/debian", numbers).await.1;
        *status.lock().unwrap() = sent;
    });
    status.into_inner().unwrap()
}

async fn alice(stored: &Stored) -> String {
    let alice = NewToken { user: "alice".parse().unwrap(), role: Role::User, label: None, expires_ms: None };
    issue(stored.dir.path(), &alice).await.unwrap().reveal().to_owned()
}

fn own_segment() -> Vec<u64> {
    (0..5).chain(OWN).collect()
}

fn segment_id(numbers: Vec<u64>) -> SegmentId {
    testing::segment(numbers.into_iter().map(testing::chunk_id).collect()).0
}

#[tokio::test]
async fn what_is_whole_is_left_as_it_is() {
    let stored = Stored::new().await;
    let report = repaired(&stored).await;
    assert_eq!(counts(&report), NOTHING);
    assert!(report.findings.is_empty() && report.affects.is_empty());
}

#[tokio::test]
async fn a_lost_pack_is_sent_again_and_all_that_needs_it_leads_there() {
    let stored = Stored::new().await;
    fs::remove_file(stored.pack(FIRST, "image/debian")).unwrap();
    let (router, token) = stored.open().await;
    assert_eq!(missing_chunks(&router, &token, 0..40).await, [0; 0], "before: nobody would send anything");

    let report = repaired(&stored).await;
    // All three segments have chunks of it, and all versions have one of those.
    assert_eq!(counts(&report), [1, 3, 0, 0, 0, 3]);
    assert_eq!(report.affects.len(), 3, "{:?}", report.affects);
    assert!(report.lost_pack_bytes > 0 && report.findings.is_empty());
    assert_eq!(missing_chunks(&router, &token, 0..40).await, FIRST.collect::<Vec<_>>());
    assert!(lacks_segment(&router, &token, "image/debian", segment_id(FIRST.collect())).await);
    assert_eq!(counts(&repaired(&stored).await), [0, 0, 0, 0, 0, 3], "a second repair finds no more");

    // In other packs than before, and with only one of the three segments.
    send_pack(&router, &token, 0..8).await;
    send_pack(&router, &token, 8..20).await;
    assert_eq!(missing_chunks(&router, &token, 0..40).await, [0; 0]);
    let (one, status) = put_segment(&router, &token, "image/debian", FIRST.collect()).await;
    assert_eq!(status, 200);
    assert!(!lacks_segment(&router, &token, "image/debian", one).await);
    let report = stored.verify().await;
    assert_eq!(report.findings.len(), 1, "the pack is needed still: {:#?}", report.findings);
    assert_eq!(report.findings[0].affects.iter().collect::<Vec<_>>(), [&stored.desktop, &stored.image[1]]);

    let heard = Heard::default();
    let report = repair(stored.dir.path(), &heard).await.unwrap();
    assert_eq!(counts(&report), [0, 0, 0, 0, 2, 0]);
    assert_eq!(heard.0.into_inner().unwrap().last(), Some(&(Part::Lost, 2, 2)), "it is told how far that is");
    let report = stored.verify().await;
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    // What was lost is garbage: two runs later its row is gone.
    stored.collect().await;
    assert_eq!(stored.collect().await.deleted.packs, 1);
    assert_eq!(stored.verify().await.packs, 4);
}

#[tokio::test]
async fn a_file_that_is_put_back_is_taken_up() {
    let stored = Stored::new().await;
    let pack = stored.pack(SECOND, "image/debian");
    let aside = stored.dir.path().join("aside");
    fs::rename(&pack, &aside).unwrap();
    assert_eq!(counts(&repaired(&stored).await), [1, 1, 0, 0, 0, 1]);
    fs::rename(&aside, &pack).unwrap();
    assert_eq!(counts(&repaired(&stored).await), [0, 0, 1, 1, 0, 0]);
    let (router, token) = stored.open().await;
    assert_eq!(missing_chunks(&router, &token, 0..40).await, [0; 0]);
    assert!(stored.verify().await.findings.is_empty());
}

#[tokio::test]
async fn the_same_pack_sent_again_is_taken_up() {
    let stored = Stored::new().await;
    flip(&stored.pack(FIRST, "image/debian"), 3000);
    // Chunk 0, which the image's first segment and the desktop's have: the other can be read.
    let report = repaired(&stored).await;
    assert_eq!(counts(&report), [1, 2, 0, 0, 0, 2]);
    let (router, token) = stored.open().await;
    let pack = testing::pack(FIRST);
    let path = format!("/v1/data/image/debian/packs/{}", pack.id);
    assert_eq!(answer(&router, "PUT", &path, &token, pack.bytes).await.0, 200);
    assert_eq!(counts(&repaired(&stored).await), [0, 0, 0, 2, 0, 0]);
    assert!(stored.verify().await.findings.is_empty());
}

#[tokio::test]
async fn what_needs_something_lost_can_be_made_and_is_lost_too() {
    let stored = Stored::new().await;
    fs::remove_file(stored.pack(FIRST, "image/debian")).unwrap();
    repaired(&stored).await;
    let (router, token) = stored.open().await;
    // Work on a disk whose neighbours are lost is taken all the same.
    let (changed, status) = put_segment(&router, &token, "image/debian", (5..30).collect()).await;
    assert_eq!(status, 201);
    assert!(lacks_segment(&router, &token, "image/debian", changed).await);
    send_pack(&router, &token, 0..21).await;
    assert!(!missing_chunks(&router, &token, 0..40).await.contains(&7));
    let report = repaired(&stored).await;
    assert_eq!((report.still_lost_segments, report.findings.len()), (0, 0));
    assert!(!lacks_segment(&router, &token, "image/debian", changed).await);
}

#[tokio::test]
async fn a_segment_that_can_be_read_is_not_led_to_what_is_lost() {
    let stored = Stored::new().await;
    let (router, _) = stored.open().await;
    let token = alice(&stored).await;
    // It leads to the image's pack; her own has the chunks, too, and is lost.
    let (segment, status) = put_segment(&router, &token, "user/alice", vec![0, 1, 2]).await;
    assert_eq!(status, 201);
    let pack = testing::pack(0..3);
    let path = format!("/v1/data/user/alice/packs/{}", pack.id);
    send(&router, "PUT", &path, &token, "", pack.bytes).await;
    fs::remove_file(stored.pack(0..3, "user/alice")).unwrap();
    assert_eq!(counts(&repaired(&stored).await), [1, 0, 0, 0, 0, 0]);
    let locator = stored.path(&format!("user/alice/locators/{segment}"));
    let before = fs::read(&locator).unwrap();
    // Sent again by who does not know of the image.
    let (_, frame) = testing::segment([0, 1, 2].map(testing::chunk_id).to_vec());
    let path = format!("/v1/data/user/alice/segments/{segment}");
    assert_eq!(answer(&router, "PUT", &path, &token, frame).await.0, 200);
    assert_eq!(fs::read(&locator).unwrap(), before);
    assert!(stored.verify().await.findings.is_empty());
}

#[tokio::test]
async fn a_lost_locator_is_written_anew_and_a_lost_segment_waits() {
    let stored = Stored::new().await;
    let own = segment_id(own_segment());
    fs::remove_file(stored.path(&format!("user/alice/locators/{own}"))).unwrap();
    assert_eq!(counts(&repaired(&stored).await), [0, 1, 0, 0, 1, 0]);
    assert!(stored.verify().await.findings.is_empty());

    let file = stored.path(&format!("user/alice/segments/{own}"));
    flip(&file, 10);
    let report = repaired(&stored).await;
    assert_eq!(counts(&report), [0, 1, 0, 0, 0, 1]);
    assert_eq!(report.affects.iter().collect::<Vec<_>>(), [&stored.desktop]);
    let (router, _) = stored.open().await;
    let token = alice(&stored).await;
    assert!(lacks_segment(&router, &token, "user/alice", own).await);
    assert_eq!(put_segment(&router, &token, "user/alice", own_segment()).await.1, 200);
    assert_eq!(counts(&repaired(&stored).await), NOTHING);
    assert!(stored.verify().await.findings.is_empty());
}

#[tokio::test]
async fn what_is_only_withheld_is_not_lost() {
    let stored = Stored::new().await;
    // No file can be read through a name that leads around in a circle.
    let pack = stored.pack(FIRST, "image/debian");
    fs::remove_file(&pack).unwrap();
    std::os::unix::fs::symlink(&pack, &pack).unwrap();
    let report = repaired(&stored).await;
    assert_eq!(counts(&report), NOTHING);
    let finding = report.findings.iter().find(|finding| finding.object.contains("packs")).unwrap();
    assert!(finding.advice.contains("may be whole"), "{finding:#?}");
}

#[tokio::test]
async fn what_is_sent_beside_a_repair_is_not_noted_as_lost() {
    let stored = Stored::new().await;
    let gone = stored.pack(FIRST, "image/debian");
    fs::remove_file(&gone).unwrap();
    let (router, token) = stored.open().await;
    let sending = Meanwhile::new(|part, steps| {
        if (part, steps) == (Part::Versions, 0) {
            apart(async {
                let pack = testing::pack(FIRST);
                let path = format!("/v1/data/image/debian/packs/{}", pack.id);
                assert_eq!(answer(&router, "PUT", &path, &token, pack.bytes).await.0, 200);
            });
        }
    });
    let report = repair(stored.dir.path(), &sending).await.unwrap();
    // The check found segments that could not be read, and what they need is here by now.
    assert_eq!(counts(&report), [0, 3, 0, 0, 3, 0]);
    assert_eq!(missing_chunks(&router, &token, 0..40).await, [0; 0]);
    assert!(stored.verify().await.findings.is_empty());
}

#[tokio::test]
async fn what_no_check_has_seen_is_not_taken_for_whole() {
    let stored = Stored::new().await;
    fs::remove_file(stored.pack(FIRST, "image/debian")).unwrap();
    repaired(&stored).await;
    let (router, token) = stored.open().await;
    let numbers: Vec<u64> = (5..30).collect();
    // Made of what is lost when the check has looked at all segments.
    let sending = Meanwhile::new(|part, steps| {
        if (part, steps) == (Part::Versions, 0) {
            let sent = apart_put(&router, &token, numbers.clone());
            assert_eq!(sent, 201);
        }
    });
    let report = repair(stored.dir.path(), &sending).await.unwrap();
    assert_eq!(counts(&report), [0, 0, 0, 0, 0, 4]);
    assert!(lacks_segment(&router, &token, "image/debian", segment_id(numbers.clone())).await);

    // And one that was found to be lost, and is sent again with what is lost, is not known to be anything.
    let stored = Stored::new().await;
    fs::remove_file(stored.pack(FIRST, "image/debian")).unwrap();
    let (router, token) = stored.open().await;
    let sending = Meanwhile::new(|part, steps| {
        if (part, steps) == (Part::Versions, 0) {
            assert_eq!(apart_put(&router, &token, FIRST.collect()), 200);
        }
    });
    let report = repair(stored.dir.path(), &sending).await.unwrap();
    assert_eq!((report.lost_segments, report.still_lost_segments, report.unsure_segments), (2, 2, 1));
    assert_eq!(repaired(&stored).await.still_lost_segments, 3);
}

#[tokio::test]
async fn a_locator_is_not_written_over_one_that_was_sent_meanwhile() {
    let stored = Stored::new().await;
    let pack = stored.pack(OWN, "user/alice");
    let aside = stored.dir.path().join("aside");
    fs::rename(&pack, &aside).unwrap();
    repaired(&stored).await;
    fs::rename(&aside, &pack).unwrap();
    stored.execute("UPDATE packs SET lost_ms = NULL").await;
    let database = Database::open(&DataDir::open(stored.dir.path()).unwrap().database()).await.unwrap();
    let lost = segments::list_lost(database.readers()).await.unwrap();
    let [row] = &lost[..] else { panic!("{lost:?}") };
    let mut tx = database.begin().await.unwrap();
    let places = Places { sources: &[], packs: &[] };
    assert!(segments::lead(&mut tx, row.row, &places).await.unwrap());
    assert!(!segments::lead(&mut tx, row.row, &places).await.unwrap(), "it leads somewhere by now");
}

#[tokio::test]
async fn a_repair_that_is_cut_short_is_gone_on_with() {
    let stored = Stored::new().await;
    fs::remove_file(stored.pack(FIRST, "image/debian")).unwrap();
    repaired(&stored).await;
    let (router, token) = stored.open().await;
    send_pack(&router, &token, 0..12).await;
    send_pack(&router, &token, 12..20).await;
    // As a crash leaves it between a locator and its row: the packs of both are noted, and the segment is lost.
    let own = segment_id(own_segment());
    let file = stored.path(&format!("user/alice/locators/{own}"));
    let old = fs::read(&file).unwrap();
    repaired(&stored).await;
    assert_ne!(fs::read(&file).unwrap(), old);
    stored.execute("UPDATE segments SET lost_ms = 1").await;
    assert_eq!(counts(&repaired(&stored).await), [0, 0, 0, 3, 0, 0]);
    stored.collect().await;
    stored.collect().await;
    assert!(stored.verify().await.findings.is_empty());
}
