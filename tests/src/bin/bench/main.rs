//! `make bench`: measures against what people use today, in one run, and writes `docs/benchmarks.md`.
//!
//! Machines differ and are shared, so every number stands beside the one of its rival, taken in turns in the same run on
//! the same file; what counts is the ratio of the medians. `$SATCHEL_BENCH_ROUNDS` (3) says how many turns.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

mod disk;
mod publish;
mod report;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use report::Report;

fn main() {
    let mut report = Report::new(rounds());
    publish::against_casync_and_openssl(&mut report);
    disk::memory_while_streaming(&mut report);
    disk::against_a_raw_file(&mut report);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks.md");
    std::fs::write(&path, report.markdown()).expect("docs/benchmarks.md can be written");
    println!("wrote docs/benchmarks.md");
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
