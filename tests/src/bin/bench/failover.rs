//! How long a read waits when the source it comes from fails.

use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use satchel_tests::{
    BlockRead, Client, Event, Fault, FaultyHttps, Link, Policy, ReadAccess, Replay, Shape, StaticHttps, Trace,
};

use crate::replay::mount;
use crate::report::{Report, Table};
use crate::selection::LinkShape;
use crate::stage::{Kind, Stage};

/// The server's link: the second source.
const LINK: LinkShape = LinkShape::new(100, 20);
const READ_BYTES: u64 = 64 << 10;
/// Reads before the failure, and after it.
const READS: usize = 60;

/// Lets a mirror fail in mid-read, in several ways.
pub(crate) fn between_sources(report: &mut Report) {
    let stage = report.stage(Kind::Plain);
    let mut table = Table::new(&["the first source", "longest read before", "longest read after", "goal"]);
    let faults: [(&str, Fail); 4] = [
        ("dies: connections reset and refused", Fail::Link(&[Event::Refuse, Event::Reset])),
        ("falls silent", Fail::Link(&[Event::Down])),
        ("serves wrong bytes", Fail::Answers(Fault::Alter)),
        ("answers 503", Fail::Answers(Fault::Status(503))),
    ];
    for (what, fail) in faults {
        let (before, after) = measure(&stage, &fail);
        println!("failover, {what}: {before:.3} s before, {after:.3} s after");
        table.row([what.to_owned(), format!("{before:.3} s"), format!("{after:.3} s"), "3 s".to_owned()]);
    }
    let text = format!(
        "A desktop's chunks come from a static host first and from the server, over {LINK}, second; {READS} reads of 64 KiB before \
         the host fails, and {READS} after it, one at a time, each of bytes that are not here. No read failed and none gave a wrong \
         byte.\n\n{table}\n```\nsatchel export {image} DIR\nsatchel source work --add https://HOST/DIR\n```",
        image = Kind::Plain.name()
    );
    report.write("A source that fails", &text);
}

enum Fail {
    Link(&'static [Event]),
    Answers(Fault),
}

fn measure(stage: &Stage, fail: &Fail) -> (f64, f64) {
    let (laptop, _net) = stage.newcomer(stage.bare(), LINK);
    let tree = laptop.directory().join("tree");
    let words = ["export".as_ref(), stage.bare().as_ref(), tree.as_os_str()];
    let exporter = &stage.publisher;
    drop(exporter.satchel(words).ok());
    let host = StaticHttps::start(&tree);
    let proxy = FaultyHttps::start(&format!("https://{}", host.address()), host.fingerprint());
    let link = Link::start(proxy.address(), Shape::default());
    let source = format!("https://{}#{}", link.address(), proxy.fingerprint());
    add(&laptop, &source);
    let mount = mount(&laptop, "work");
    let longest = |reads: &[BlockRead]| {
        let reads = reads.to_vec();
        let replay = Replay::new(&Trace { reads }, &stage.disk).expect("the image can be read");
        let began = Instant::now();
        let went = replay.run(&mount.system(), ReadAccess::Direct, 1, &AtomicUsize::new(0));
        assert!(began.elapsed() < Duration::from_secs(300), "the reads do not end");
        went.expect("no read fails and no byte is wrong").latency(1.0).as_secs_f64()
    };
    let (first, second) = places(stage);
    let before = longest(&first);
    match fail {
        Fail::Link(events) => events.iter().for_each(|event| link.apply(*event)),
        Fail::Answers(fault) => proxy.set_policy(Policy::new(1).chance(*fault, 1.0)),
    }
    let after = longest(&second);
    mount.unmount();
    (before, after)
}

/// Whole chunks that a boot reads, spread over it so that none is read ahead: for before the failure, and for after.
fn places(stage: &Stage) -> (Vec<BlockRead>, Vec<BlockRead>) {
    let mut chunks: Vec<u64> =
        stage.kind.trace(&stage.disk).reads.iter().map(|read| read.offset / READ_BYTES).collect();
    chunks.sort_unstable();
    chunks.dedup();
    let step = (chunks.len() / (2 * READS)).max(1);
    let spread: Vec<BlockRead> = chunks
        .into_iter()
        .step_by(step)
        .take(2 * READS)
        .map(|chunk| BlockRead { offset: chunk * READ_BYTES, len: READ_BYTES })
        .collect();
    let alternate = |from: usize| spread.iter().skip(from).step_by(2).copied().collect();
    (alternate(0), alternate(1))
}

fn add(laptop: &Client, source: &str) {
    drop(laptop.satchel(["source", "work", "--add", source]).ok());
}
