//! How long a read waits while everything else is fetched in the background.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use rustix::fs::SeekFrom;
use satchel_tests::{BlockRead, Link, ReadAccess, Replay, Rng, Trace, wait};

use crate::replay::mount;
use crate::report::{Report, Table};
use crate::selection::LinkShape;
use crate::stage::{Stage, kinds, number};

const LINKS: [LinkShape; 2] = [LinkShape::new(25, 40), LinkShape::new(100, 150)];
/// Reads in the time the link takes for all of the disk, were none to wait.
const READS: u32 = 80;
const READ_BYTES: u64 = 4096;
const CHUNK_BYTES: u64 = 64 << 10;
/// How long the background fill may take to fill the link.
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
        let mut rng = Rng::new(11);
        let rounds = (0..report.rounds).map(|_| measure(&stage, link, &data, &mut rng));
        let row = row(&stage, link, rounds.reduce(Measured::joined).expect("there is a round"));
        println!("{} demand {}", kind.name(), row.join(", "));
        table.row(row);
    }
    let text = format!(
        "{}: reads of 4 KiB (`O_DIRECT`), one after the other, each at a random place that holds data and {READS} in the time that the link takes for \
         all of the disk were none to wait, while `satchel pin` fetches it, and until that is done; {} times. Counted are the reads that waited \
         for the link. The transfer is that of a chunk of 64 KiB as it is stored on average. Goal: the median within two round trips and the \
         transfer.\n\n{table}\n```\nsatchel mount work DIR\nsatchel pin work\n```",
        kind.title(),
        report.rounds
    );
    report.write("A read while the disk is fetched in the background", &text);
}

/// What was seen while the disk was filled, once or several times.
struct Measured {
    /// How long each read took.
    latencies: Vec<Duration>,
    /// How many of them waited.
    waited: usize,
    seconds: f64,
    carried_bytes: u64,
}

impl Measured {
    fn joined(mut self, other: Measured) -> Measured {
        self.latencies.extend(other.latencies);
        self.waited += other.waited;
        self.seconds += other.seconds;
        self.carried_bytes += other.carried_bytes;
        self
    }
}

fn measure(stage: &Stage, link: LinkShape, data: &[Range<u64>], rng: &mut Rng) -> Measured {
    let (laptop, net) = stage.newcomer(stage.bare(), link);
    let mount = mount(&laptop, "work");
    let mut pin = laptop.start(["pin", "work"]);
    wait::until("the background fill to fill the link", FILL_LIMIT, || is_full(&net, link).then_some(()));
    let missed = || number(&laptop.status("work")["disks"][0]["activity"], "missed_reads");
    let pause = Duration::from_secs_f64(link.seconds_for(number(&stage.published, "sent_bytes"))) / READS;
    let (missed_before, bytes_before, began) = (missed(), net.counts().down_bytes, Instant::now());
    let mut latencies = Vec::new();
    while pin.status().is_none() {
        let reads = vec![BlockRead { offset: somewhere(data, rng), len: READ_BYTES }];
        let replay = Replay::new(&Trace { reads }, &stage.disk).expect("the image can be read");
        let went = replay.run(&mount.system(), ReadAccess::Direct, 1, &AtomicUsize::new(0));
        latencies.push(went.expect("the mount can be read").latency(1.0));
        std::thread::sleep(pause);
    }
    let measured = Measured {
        waited: usize::try_from(missed() - missed_before).unwrap_or(usize::MAX).min(latencies.len()),
        latencies,
        seconds: began.elapsed().as_secs_f64(),
        carried_bytes: net.counts().down_bytes - bytes_before,
    };
    mount.unmount();
    measured
}

fn row(stage: &Stage, link: LinkShape, measured: Measured) -> Vec<String> {
    let Measured { mut latencies, waited, seconds, carried_bytes } = measured;
    let reads = latencies.len();
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
        format!("{waited} of {reads}"),
        format!("{:.0} %", 100.0 * link.seconds_for(carried_bytes) / seconds),
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
