//! Several things that are damaged at once: what hides what the others affect.

use std::collections::BTreeSet;

use super::*;
use crate::verify::Finding;

impl Stored {
    /// The finding about an object.
    #[track_caller]
    fn finding<'r>(&self, report: &'r Report, object: &str) -> &'r Finding {
        let mut found = report.findings.iter().filter(|finding| finding.object.contains(object));
        let (first, second) = (found.next(), found.next());
        assert!(second.is_none(), "{:#?}", report.findings);
        first.unwrap_or_else(|| panic!("nothing about {object}: {:#?}", report.findings))
    }

    fn damage(&self, below: &str) {
        assert!(self.path(below).exists());
        fs::write(self.path(below), "damaged").unwrap();
    }

    /// The two segments of the image's newer version, and the desktop's own.
    fn segments() -> [chunk_format::SegmentId; 3] {
        let of = |numbers: Vec<u64>| testing::segment(numbers.into_iter().map(testing::chunk_id).collect()).0;
        [of(FIRST.collect()), of((10..40).collect()), of((0..5).chain(OWN).collect())]
    }
}

fn set<const N: usize>(texts: [&String; N]) -> BTreeSet<String> {
    texts.into_iter().cloned().collect()
}

#[tokio::test]
async fn a_lost_pack_affects_versions_whose_segments_cannot_be_read() {
    let stored = Stored::new().await;
    let [one, other, _] = Stored::segments();
    let pack = format!("image/debian/packs/{}", testing::pack(SECOND).id);
    fs::remove_file(stored.path(&pack)).unwrap();
    let affected = set([&stored.image[1], &stored.desktop]);
    // First the locators are left, then the database alone.
    for class in ["segments", "locators"] {
        for segment in [one, other] {
            stored.damage(&format!("image/debian/{class}/{segment}"));
        }
        let report = stored.verify().await;
        let finding = stored.finding(&report, &pack);
        assert_eq!((&finding.affects, finding.unsure.len()), (&affected, 0), "{class}: {finding:#?}");
        let finding = stored.finding(&report, &format!("{class}/{other}"));
        assert_eq!((&finding.affects, finding.unsure.len()), (&affected, 0), "{class}: {finding:#?}");
    }
}

#[tokio::test]
async fn it_is_said_when_what_a_damaged_frame_affects_cannot_be_told() {
    let stored = Stored::new().await;
    let [_, other, own] = Stored::segments();
    // Chunk 30, in the image's second segment.
    let pack = stored.pack(SECOND, "image/debian");
    flip(&pack, testing::pack(SECOND).entries[10].range().start + 100);
    let locator = fs::read(stored.path(&format!("image/debian/locators/{other}"))).unwrap();
    stored.damage(&format!("image/debian/locators/{other}"));
    stored.damage(&format!("user/alice/locators/{own}"));
    let report = stored.verify().await;
    let finding = stored.finding(&report, "packs");
    // The desktop's own segment has none of that pack, which the database knows.
    let reason = format!("image/debian/locators/{other} cannot be read");
    assert_eq!((finding.affects.len(), &finding.unsure), (0, &set([&reason])), "{finding:#?}");
    // Where the segment alone cannot be read, its locator says which frames it needs.
    let file = stored.path(&format!("image/debian/locators/{other}"));
    fs::write(&file, locator).unwrap();
    stored.damage(&format!("image/debian/segments/{other}"));
    let report = stored.verify().await;
    let finding = stored.finding(&report, "packs");
    assert_eq!(finding.affects, set([&stored.image[1], &stored.desktop]), "{finding:#?}");
    fs::write(&file, "damaged").unwrap();
    // A database that is older than its notes of which packs a segment needs.
    stored.execute("DELETE FROM segment_packs; UPDATE segments SET has_packs = 0").await;
    let report = stored.verify().await;
    let [segment, own] = [format!("image/debian/segments/{other}"), format!("user/alice/locators/{own}")]
        .map(|object| format!("{object} cannot be read"));
    assert_eq!(stored.finding(&report, "packs").unsure, set([&reason, &segment, &own]));
}

#[tokio::test]
async fn a_lost_signature_hides_nothing() {
    let stored = Stored::new().await;
    let [_, _, own] = Stored::segments();
    let manifest = stored.file("user/alice/manifests", |bytes| bytes.starts_with(b"{"));
    fs::remove_file(manifest.with_extension("sig")).unwrap();
    stored.damage(&format!("user/alice/locators/{own}"));
    let report = stored.verify().await;
    let finding = stored.finding(&report, "user/alice/locators");
    assert_eq!((&finding.affects, finding.unsure.len()), (&set([&stored.desktop]), 0), "{finding:#?}");
    assert_eq!(report.findings.len(), 2, "{:#?}", report.findings);
}

#[tokio::test]
async fn it_is_said_when_a_manifest_that_cannot_be_read_may_name_what_is_damaged() {
    let stored = Stored::new().await;
    let [one, _, own] = Stored::segments();
    let file = stored.file("user/alice/manifests", |bytes| bytes.starts_with(b"{"));
    fs::remove_file(&file).unwrap();
    fs::remove_file(stored.pack(OWN, "user/alice")).unwrap();
    stored.damage(&format!("user/alice/segments/{own}"));
    stored.damage(&format!("image/debian/segments/{one}"));
    let report = stored.verify().await;
    let name = file.file_name().unwrap().to_str().unwrap();
    let reason = format!("user/alice/manifests/{name} cannot be read");
    for object in ["user/alice/packs", "user/alice/segments"] {
        let finding = stored.finding(&report, object);
        assert_eq!((finding.affects.len(), &finding.unsure), (0, &set([&reason])), "{finding:#?}");
    }
    // It may have segments of its golden version, too.
    let finding = stored.finding(&report, "image/debian/segments");
    let affected = set([&stored.image[0], &stored.image[1]]);
    assert_eq!((&finding.affects, &finding.unsure), (&affected, &set([&reason])), "{finding:#?}");
    assert_eq!(stored.finding(&report, "user/alice/manifests").affects, set([&stored.desktop]));
}

#[tokio::test]
async fn it_is_said_when_a_segment_without_a_row_may_need_what_is_damaged() {
    let stored = Stored::new().await;
    fs::remove_file(stored.pack(OWN, "user/alice")).unwrap();
    stored.execute("DELETE FROM segments WHERE id = 3").await;
    let report = stored.verify().await;
    let finding = stored.finding(&report, "user/alice/packs");
    assert_eq!(finding.affects.len(), 0);
    let reason = format!("1 segments of {} have no row", stored.desktop);
    assert_eq!(finding.unsure, set([&reason]), "{finding:#?}");
}
