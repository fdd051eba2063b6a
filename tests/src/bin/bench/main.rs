//! `make bench`: measures against what people use today, in one run, and writes `docs/benchmarks.md`.
//!
//! Machines differ and are shared, so every number stands beside the one of its rival, taken in turns in the same run on
//! the same file; what counts is the ratio of the medians. `$SATCHEL_BENCH_ROUNDS` (3) says how many turns.
//! Words on the command line ask for less, whose numbers are only printed: `bench replay --image plain`.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

mod accounting;
mod boot;
mod contenders;
mod crowd;
mod demand;
mod disk;
mod failover;
mod link;
mod machine;
mod publish;
mod replay;
mod report;
mod selection;
mod stage;
mod trickle;
mod update;

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use report::Report;
use satchel_tests::lab;
use selection::{Selection, USAGE};

/// Measures and writes a section.
type Measure = fn(&mut Report);

/// The sections of the page, by the names they are called with to have only those printed.
const SECTIONS: &[(&str, Measure)] = &[
    ("link", link::alone),
    ("replay", replay::boots),
    ("boot", boot::cold_and_warm),
    ("demand", demand::while_filling),
    ("failover", failover::between_sources),
    ("crowd", crowd::booting_at_once),
    // Last of those that share the images: it publishes other versions.
    ("update", update::to_the_next_version),
    ("accounting", accounting::of_an_update),
    ("publish", publish::against_casync_and_openssl),
    ("memory", disk::memory_while_streaming),
    ("disk", disk::against_a_raw_file),
    ("trickle", trickle::under_writes),
    ("machine", machine::beside_microvm),
];

fn main() -> ExitCode {
    if let Ok(task) = std::env::var(lab::TASK) {
        machine::inside(&task);
        return ExitCode::SUCCESS;
    }
    let selection = match Selection::parse(std::env::args().skip(1)) {
        Ok(selection) => selection,
        Err(reason) => {
            println!("{reason}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let page = selection.page();
    let mut report = Report::new(rounds(), selection);
    for &(name, measure) in SECTIONS {
        if report.selection.has_section(name) {
            measure(&mut report);
            if let Some(page) = &page {
                // After each section: what was measured is not lost when a later one fails.
                std::fs::write(page, report.markdown()).expect("the page can be written");
                println!("wrote {} up to {name}", page.display());
            }
        }
    }
    ExitCode::SUCCESS
}

fn rounds() -> usize {
    std::env::var("SATCHEL_BENCH_ROUNDS")
        .map_or(3, |text| text.parse().expect("SATCHEL_BENCH_ROUNDS is a number"))
}

/// How long a command takes that must succeed.
#[track_caller]
fn time(command: &mut Command) -> Duration {
    let began = Instant::now();
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let took = began.elapsed();
    assert!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    took
}

/// The middle one of some numbers.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    if numbers.len() % 2 == 1 { numbers[middle] } else { f64::midpoint(numbers[middle - 1], numbers[middle]) }
}
