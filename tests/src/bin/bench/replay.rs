//! A boot's reads without the boot: cold over a link, warm, and against what people use today.

use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use satchel_tests::{Client, Link, Mount, ReadAccess, Replay, StaticHttps};

use crate::contenders::{LIMIT, Outcome, Rival, race, replay_until};
use crate::median;
use crate::report::{Report, Table};
use crate::selection::LinkShape;
use crate::stage::{Kind, Stage, kinds};

/// The links Satchel is measured over; the others over the first.
const LINKS: [LinkShape; 3] = [LinkShape::new(25, 40), LinkShape::new(1000, 2), LinkShape::new(100, 150)];

/// Replays a boot of each image.
pub(crate) fn boots(report: &mut Report) {
    for kind in kinds(report) {
        boot(kind, report);
    }
}

fn boot(kind: Kind, report: &mut Report) {
    let stage = report.stage(kind);
    // Recorded before the clock runs, which takes minutes.
    let streams_bytes = if report.selection.has_contender("satchel") { stage.streams_bytes() } else { None };
    let replay = stage.replay();
    let links = report.selection.links(&LINKS);
    let mut rows: Vec<(String, LinkShape, Outcome)> = Vec::new();
    let mut warm = None;
    if report.selection.has_contender("satchel") {
        for &link in &links {
            let (laptop, net) = stage.newcomer(kind.name(), link);
            let outcome = cold(&laptop, "work", &net, &replay);
            show(kind, link, "satchel", &outcome);
            rows.push(("Satchel".to_owned(), link, outcome));
            if warm.is_none() {
                warm = Some(again(&stage, &laptop, &net, &replay, report));
            }
        }
    }
    let rivals = Rival::ALL.into_iter().filter(|rival| report.selection.has_contender(rival.name()));
    let rivals: Vec<Rival> = rivals.collect();
    if !rivals.is_empty() {
        let qcow2 = stage.qcow2();
        let files = StaticHttps::start(qcow2.parent().expect("a file lies in a directory"));
        for &rival in &rivals {
            let outcome = race(rival, &stage, &replay, &files, links[0]);
            show(kind, links[0], rival.name(), &outcome);
            rows.push((rival.title().to_owned(), links[0], outcome));
        }
    }
    write((&stage, streams_bytes), &replay, &rows, warm.as_ref(), report);
}

/// Mounts a desktop of which this machine has nothing yet and replays.
pub(crate) fn cold(laptop: &Client, desktop: &str, link: &Link, replay: &Replay) -> Outcome {
    let before = link.counts().down_bytes;
    let began = Instant::now();
    let mut mount = mount(laptop, desktop);
    let ready = Instant::now();
    let file = mount.system();
    let replayed = replay_until(began + LIMIT, replay, &file, || mount.process().kill());
    let outcome = Outcome::new(began, ready, (link, before), replayed);
    if outcome.seconds.is_ok() {
        mount.unmount();
    }
    outcome
}

/// Mounts a desktop, noticing at once that it is there.
pub(crate) fn mount(laptop: &Client, desktop: &str) -> Mount {
    let directory = laptop.new_directory();
    let mut process = laptop.start(["mount".as_ref(), desktop.as_ref(), directory.as_os_str()]);
    while process.status().is_none() && !process.stdout().ends_with('\n') {
        std::thread::sleep(Duration::from_millis(1));
    }
    laptop.mounted(desktop, &directory, process)
}

/// The same replay when everything is here.
struct Warm {
    /// What is read past, or through, the host's page cache: seconds of Satchel and of a raw file.
    seconds: [(&'static str, f64, f64); 2],
    /// What came over the link, from the mount to the last read.
    down_bytes: u64,
}

fn again(stage: &Stage, laptop: &Client, link: &Link, replay: &Replay, report: &Report) -> Warm {
    let before = link.counts().down_bytes;
    let mount = mount(laptop, "work");
    let run = |file: &Path, access| {
        let went = replay.run(file, access, 1, &AtomicUsize::new(0)).expect("what is here can be read");
        went.taken.as_secs_f64()
    };
    let mut down_bytes = None;
    let seconds = [
        ("past the page cache (`O_DIRECT`)", ReadAccess::Direct),
        ("through the page cache", ReadAccess::Cached),
    ]
    .map(|(how, access)| {
        let (mut ours, mut raw) = (Vec::new(), Vec::new());
        for _ in 0..report.rounds.max(1) {
            ours.push(run(&mount.system(), access));
            down_bytes.get_or_insert_with(|| link.counts().down_bytes - before);
            raw.push(run(&stage.disk, access));
        }
        let (ours, raw) = (median(ours), median(raw));
        println!("{} warm, {how}: {ours:.3} s against {raw:.3} s, {:.2} x", stage.kind.name(), ours / raw);
        (how, ours, raw)
    });
    mount.unmount();
    let down_bytes = down_bytes.unwrap_or(0);
    println!("{} warm: {down_bytes} bytes over the link, mount included", stage.kind.name());
    Warm { seconds, down_bytes }
}

fn show(kind: Kind, link: LinkShape, name: &str, outcome: &Outcome) {
    let cells = cells(link, outcome);
    println!("{} {link} {name}: {}", kind.name(), cells.join(", "));
}

/// Seconds, seconds until readable, fetched, link use, median and 99th percentile of the reads.
fn cells(link: LinkShape, outcome: &Outcome) -> Vec<String> {
    let megabytes = format!("{:.1} MB", outcome.down_bytes as f64 / 1e6);
    let seconds = match &outcome.seconds {
        Ok(seconds) => seconds,
        Err(reason) => {
            let mut row = vec![String::new(); 6];
            row[0] = format!("failed: {}", reason.lines().last().unwrap_or_default());
            row[2] = megabytes;
            return row;
        }
    };
    let used = 100.0 * link.seconds_for(outcome.down_bytes) / seconds;
    let latency = |quantile| {
        let latency = outcome.replayed.as_ref().map(|replayed| replayed.latency(quantile));
        format!("{:.2} ms", latency.unwrap_or_default().as_secs_f64() * 1e3)
    };
    vec![
        format!("{seconds:.2} s"),
        format!("{:.2} s", outcome.ready_seconds),
        megabytes,
        format!("{used:.0} %"),
        latency(0.5),
        latency(0.99),
    ]
}

fn write(
    (stage, streams_bytes): (&Stage, Option<u64>),
    replay: &Replay,
    rows: &[(String, LinkShape, Outcome)],
    warm: Option<&Warm>,
    report: &mut Report,
) {
    let ours = rows.iter().find(|(who, ..)| who == "Satchel");
    let our_seconds = ours.and_then(|(.., outcome)| outcome.seconds.as_ref().ok().copied());
    let mut table = Table::new(&[
        "",
        "link",
        "seconds",
        "until it can be read",
        "fetched",
        "link used",
        "a read, median",
        "99 %",
        "Satchel is",
    ]);
    for (who, link, outcome) in rows {
        let mut row = vec![who.clone(), link.to_string()];
        row.extend(cells(*link, outcome));
        let times = match (&outcome.seconds, our_seconds) {
            (Ok(theirs), Some(ours)) if who != "Satchel" => format!("**{:.1}** times as fast", theirs / ours),
            _ => String::new(),
        };
        row.push(times);
        table.row(row);
    }
    let profile = match streams_bytes {
        Some(bytes) => format!(
            "Its boot stream has {:.1} MB, which take {}.",
            bytes as f64 / 1e6,
            times_on_links(bytes, report)
        ),
        None => "The version has no profile.".to_owned(),
    };
    let mut text = format!(
        "What a boot reads ({} reads, {:.1} MB) is read again in order, one read at a time, without a pause, past the \
         page cache (`O_DIRECT`), and compared. Seconds count from the start of the program that brings the disk to the \
         end of the last read. {profile} Goals: over the first link at most 1.15 times the boot stream's time, over the \
         others at least 85 % of the link used; at least 9 times as fast as each of the others.\n\n{table}",
        replay.len(),
        replay.bytes() as f64 / 1e6,
    );
    if let Some(warm) = warm {
        let mut table = Table::new(&["all of it here", "Satchel", "raw file", "times as long", "goal"]);
        for (how, ours, raw) in warm.seconds {
            table.row(vec![
                how.to_owned(),
                format!("{ours:.3} s"),
                format!("{raw:.3} s"),
                format!("**{:.2}**", ours / raw),
                "1.15".to_owned(),
            ]);
        }
        text += &format!(
            "\n{table}\nMounting and reading it again took {} bytes over the link.\n",
            warm.down_bytes
        );
    }
    let commands: Vec<&str> =
        std::iter::once("satchel mount work DIR").chain(Rival::ALL.into_iter().map(Rival::command)).collect();
    text += &format!("\n```\n{}\n```", commands.join("\n"));
    report.write(&format!("A boot replayed: {}", stage.kind.title()), &text);
}

fn times_on_links(bytes: u64, report: &Report) -> String {
    let links = report.selection.links(&LINKS);
    let times = links.iter().map(|link| format!("{:.2} s at {link}", link.seconds_for(bytes)));
    times.collect::<Vec<_>>().join(", ")
}
