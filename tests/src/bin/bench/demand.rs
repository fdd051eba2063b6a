//! How long a read waits while everything else is fetched in the background.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use rustix::fs::SeekFrom;
use satchel_tests::{BlockRead, Link, ReadAccess, Replay, Rng, Signal, Trace, wait};

use crate::replay::mount;
use crate::report::{Report, Table};
use crate::selection::LinkShape;
use crate::stage::{Stage, kinds, number};

const LINKS: [LinkShape; 2] = [LinkShape::new(25, 40), LinkShape::new(100, 150)];
const READS: usize = 80;
const READ_BYTES: u64 = 4096;
const CHUNK_BYTES: u64 = 64 << 10;
/// From the end of a read to the next one.
const PAUSE: Duration = Duration::from_millis(1000);
/// How long the background fill may take to fill the link, and to stop.
const FILL_LIMIT: Duration = Duration::from_secs(120);

/// Reads here and there on a disk that is being pinned.
pub(crate) fn while_filling(report: &mut Report) {
    // The disk that takes longest to fill.
    let Some(kind) = kinds(report).first().copied() else { return };
    let stage = report.stage(kind);
    let data = data_ranges(&stage.disk).expect("the image can be looked through");
    let mut table = Table::new(&[
        "link",
        "2 round trips + transfer",
        "median",
        "99 %",
        "reads that waited",
        "link used meanwhile",
    ]);
    for link in report.selection.links(&LINKS) {
        let row = measure(&stage, link, &data);
        println!("{} demand {}", kind.name(), row.join(", "));
        table.row(row);
    }
    let text = format!(
        "{}: {READS} reads of 4 KiB (`O_DIRECT`), one each {} ms, at random places that hold data, while `satchel pin` \
         fetches all of the disk. Counted are the reads that waited for the link. The transfer is that of a chunk of 64 \
         KiB as it is stored on average. Goal: the median within two round trips and the transfer.\n\n{table}\n\
         ```\nsatchel mount work DIR\nsatchel pin work\n```",
        kind.title(),
        PAUSE.as_millis()
    );
    report.write("A read while the disk is fetched in the background", &text);
}

fn measure(stage: &Stage, link: LinkShape, data: &[Range<u64>]) -> Vec<String> {
    let (laptop, net) = stage.newcomer(stage.bare(), link);
    let mount = mount(&laptop, "work");
    let mut pin = laptop.start(["pin", "work"]);
    wait::until("the background fill to fill the link", FILL_LIMIT, || is_full(&net, link).then_some(()));
    let missed = || number(&laptop.status("work")["disks"][0]["activity"], "missed_reads");
    let mut rng = Rng::new(11);
    let (missed_before, bytes_before, began) = (missed(), net.counts().down_bytes, Instant::now());
    let mut latencies: Vec<Duration> = (0..READS)
        .map(|_| {
            let reads = vec![BlockRead { offset: somewhere(data, &mut rng), len: READ_BYTES }];
            let replay = Replay::new(&Trace { reads }, &stage.disk).expect("the image can be read");
            let went = replay.run(&mount.system(), ReadAccess::Direct, 1, &AtomicUsize::new(0));
            std::thread::sleep(PAUSE);
            went.expect("the mount can be read").latency(1.0)
        })
        .collect();
    let seconds = began.elapsed().as_secs_f64();
    let carried = net.counts().down_bytes - bytes_before;
    let waited = usize::try_from(missed() - missed_before).unwrap_or(READS).min(READS);
    pin.stop(Signal::INT, FILL_LIMIT);
    mount.unmount();
    // What did not wait is all shorter than what did.
    latencies.sort_unstable_by(|left, right| right.cmp(left));
    latencies.truncate(waited);
    let quantile = |share: usize| {
        let latency = latencies.get(latencies.len() * share / 100).copied().unwrap_or_default();
        format!("{:.0} ms", latency.as_secs_f64() * 1e3)
    };
    let transfer = link.seconds_for(CHUNK_BYTES) * stage.stored_share();
    vec![
        link.to_string(),
        format!("{:.0} ms", (2.0 * link.round_trip.as_secs_f64() + transfer) * 1e3),
        quantile(50),
        quantile(1),
        format!("{waited} of {READS}"),
        format!("{:.0} %", 100.0 * link.seconds_for(carried) / seconds),
    ]
}

/// Whether the link carries at least four fifths of what it can, for half a second.
fn is_full(net: &Link, link: LinkShape) -> bool {
    let (before, began) = (net.counts().down_bytes, Instant::now());
    std::thread::sleep(Duration::from_millis(500));
    link.seconds_for(net.counts().down_bytes - before) > 0.8 * began.elapsed().as_secs_f64()
}

/// Where a file has data.
fn data_ranges(path: &Path) -> io::Result<Vec<Range<u64>>> {
    let file = File::open(path)?;
    let (mut ranges, mut at) = (Vec::new(), 0);
    while let Ok(start) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
        at = rustix::fs::seek(&file, SeekFrom::Hole(start))?;
        ranges.push(start..at);
    }
    Ok(ranges)
}

/// A place for a read where there is data.
fn somewhere(data: &[Range<u64>], rng: &mut Rng) -> u64 {
    let total: u64 = data.iter().map(|range| (range.end - range.start) / READ_BYTES).sum();
    let mut left = rng.below(total);
    for range in data {
        let places = (range.end - range.start) / READ_BYTES;
        if left < places {
            return range.start + left * READ_BYTES;
        }
        left -= places;
    }
    0
}

impl Stage {
    /// How long a chunk is as it is stored, as a share of its length.
    fn stored_share(&self) -> f64 {
        number(&self.published, "sent_bytes") as f64 / number(&self.published, "new_bytes") as f64
    }
}
