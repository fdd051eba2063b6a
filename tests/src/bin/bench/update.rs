//! Moving to the patched next version with the cache of the one before.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use satchel_tests::{Client, Event, Replay, Shape, Trace};
use sha2::{Digest, Sha256};

use crate::contenders::Outcome;
use crate::replay::cold;
use crate::report::{Report, Table};
use crate::selection::LinkShape;
use crate::stage::{Kind, kinds, publish, record_profile};

const LINK: LinkShape = LinkShape::new(25, 40);
const CHUNK_BYTES: u64 = 64 << 10;
/// What packs are compressed with.
const ZSTD_LEVEL: i32 = 3;
/// The part of a cache's index that says whose it is, bytes.
const CACHE_HEADER_BYTES: usize = 4096;

/// Replays a boot of each image's next version where its last version was booted before.
pub(crate) fn to_the_next_version(report: &mut Report) {
    let link = report.selection.links(&[LINK])[0];
    let mut table =
        Table::new(&["", "a boot reads", "of it changed", "as it is stored", "fetched", "times", "seconds"]);
    for kind in kinds(report) {
        update(kind, link, report, &mut table);
    }
    let text = format!(
        "A boot of the version before was replayed on this machine; then the next version (its pending updates were \
         installed with `apt full-upgrade`) was published and a boot of it replayed over a link of {link} on the cache \
         there was. What a boot reads is counted in chunks of 64 KiB; changed are those that no boot of the version before \
         reads, and they are counted as zstd (level {ZSTD_LEVEL}) stores them one by one. Goal: at most 1.05 times that is \
         fetched.\n\n{table}"
    );
    report.write("The next version on the last one's cache", &text);
}

fn update(kind: Kind, link: LinkShape, report: &mut Report, table: &mut Table) {
    let stage = report.stage(kind);
    let has_profile = stage.streams_bytes().is_some();
    let (laptop, net) = stage.newcomer(kind.name(), link);
    net.apply(Event::Shape(Shape::default()));
    let first = cold(&laptop, "work", &net, &stage.replay());
    first.seconds.expect("the version before can be read");

    let next = kind.next_disk();
    let trace = kind.trace(&next);
    let replay = Replay::new(&trace, &next).expect("the image can be read");
    let old = touched(&stage.disk, &kind.trace(&stage.disk)).expect("the image can be read");
    let new = touched(&next, &trace).expect("the image can be read");
    let changed = Changed::new(&old, &new);
    let mut row = |how: &str, outcome: &Outcome| {
        let cells = vec![
            format!("{}{how}", kind.title()),
            format!("{:.1} MB", new.len() as f64 * CHUNK_BYTES as f64 / 1e6),
            format!("{:.1} MB", changed.chunks as f64 * CHUNK_BYTES as f64 / 1e6),
            format!("{:.1} MB", changed.stored_bytes as f64 / 1e6),
            format!("{:.1} MB", outcome.down_bytes as f64 / 1e6),
            format!("**{:.2}**", outcome.down_bytes as f64 / changed.stored_bytes as f64),
            outcome.seconds.as_ref().map_or_else(Clone::clone, |seconds| format!("{seconds:.2} s")),
        ];
        println!("{} update{how}: {}", kind.name(), cells[1..].join(", "));
        table.row(cells);
    };
    let move_on = |desktop: &str| {
        net.apply(Event::Shape(Shape::default()));
        laptop.create(desktop, kind.name(), Some("1G"));
        lend_cache(&laptop, "work", desktop).expect("a cache can be copied");
        net.apply(Event::Shape(link.shape()));
        cold(&laptop, desktop, &net, &replay)
    };
    if has_profile {
        let _ = publish(&stage.publisher, &next, kind.name(), &["--profile-from", "newest"]);
        row(", profile carried over", &move_on("carried"));
        let _ = record_profile(&stage.publisher, kind);
        row(", profile recorded anew", &move_on("recorded"));
    } else {
        let _ = publish(&stage.publisher, &next, kind.name(), &[]);
        row(", no profile", &move_on("next"));
    }
}

/// The chunks a boot reads that a boot of the version before did not.
struct Changed {
    chunks: usize,
    stored_bytes: u64,
}

impl Changed {
    fn new(old: &HashSet<Chunk>, new: &HashSet<Chunk>) -> Self {
        let changed: Vec<&Chunk> = new.difference(old).collect();
        Self { chunks: changed.len(), stored_bytes: changed.iter().map(|chunk| chunk.stored_bytes).sum() }
    }
}

/// A chunk by its content.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Chunk {
    id: [u8; 32],
    stored_bytes: u64,
}

/// Returns the chunks that a trace touches, but for those of zeros.
fn touched(disk: &Path, trace: &Trace) -> io::Result<HashSet<Chunk>> {
    let file = File::open(disk)?;
    let len = file.metadata()?.len();
    let indexes = trace
        .reads
        .iter()
        .flat_map(|read| read.offset / CHUNK_BYTES..(read.offset + read.len).div_ceil(CHUNK_BYTES));
    let indexes: HashSet<u64> = indexes.collect();
    let mut bytes = vec![0; usize::try_from(CHUNK_BYTES).map_err(io::Error::other)?];
    let mut chunks = HashSet::new();
    for index in indexes {
        let start = index * CHUNK_BYTES;
        let part = usize::try_from(CHUNK_BYTES.min(len - start)).map_err(io::Error::other)?;
        bytes.fill(0);
        file.read_exact_at(&mut bytes[..part], start)?;
        if bytes.iter().any(|&byte| byte != 0) {
            let stored = zstd::bulk::compress(&bytes, ZSTD_LEVEL)?;
            let stored_bytes = stored.len().min(bytes.len()) as u64;
            chunks.insert(Chunk { id: Sha256::digest(&bytes).into(), stored_bytes });
        }
    }
    Ok(chunks)
}

/// Gives a new desktop what the cache of another one on the same machine has, as moving that one to another version
/// would: chunks are known by their content.
fn lend_cache(laptop: &Client, from: &str, to: &str) -> io::Result<()> {
    // Its first mount makes it a cache, which says whose it is.
    laptop.mount(to).unmount();
    let (from, to) = (laptop.desktop_directory(from), laptop.desktop_directory(to));
    let header = fs::read(to.join("cache/cache.index"))?;
    for name in ["cache", "segments", "profiles"] {
        fs::remove_dir_all(to.join(name))?;
        let copied = std::process::Command::new("cp")
            .args(["--archive", "--sparse=always", "--"])
            .args([from.join(name), to.join(name)])
            .status()?;
        if !copied.success() {
            return Err(io::Error::other("cp failed"));
        }
    }
    let index = fs::OpenOptions::new().write(true).open(to.join("cache/cache.index"))?;
    index.write_all_at(&header[..CACHE_HEADER_BYTES], 0)
}
