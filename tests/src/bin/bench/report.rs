//! The tables of `docs/benchmarks.md`.

use std::fmt::{self, Display, Write};
use std::fs;
use std::rc::Rc;

use crate::selection::Selection;
use crate::stage::{Kind, Stage};

/// What is measured of both.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    /// Less is better.
    Seconds,
    /// More is better.
    MegabytesPerSecond,
    /// More is better.
    OperationsPerSecond,
}

/// A thing measured beside its rival, the median of all rounds.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) ours: f64,
    pub(crate) rival: f64,
    pub(crate) unit: Unit,
    /// How many times as fast as the rival it should be.
    pub(crate) goal: f64,
    pub(crate) command: String,
}

impl Row {
    /// How many times as fast as the rival it is.
    fn ratio(&self) -> f64 {
        match self.unit {
            Unit::Seconds => self.rival / self.ours,
            Unit::MegabytesPerSecond | Unit::OperationsPerSecond => self.ours / self.rival,
        }
    }
}

/// A table of the page.
#[derive(Debug)]
pub(crate) struct Table(String);

impl Table {
    pub(crate) fn new(columns: &[&str]) -> Self {
        Self(format!("| {} |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len())))
    }

    pub(crate) fn row(&mut self, cells: impl AsRef<[String]>) {
        let _ = writeln!(self.0, "| {} |", cells.as_ref().join(" | "));
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything that was measured.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) rounds: usize,
    pub(crate) selection: Selection,
    stages: Vec<Rc<Stage>>,
    sections: String,
}

impl Report {
    pub(crate) fn new(rounds: usize, selection: Selection) -> Self {
        Self { rounds, selection, stages: Vec::new(), sections: String::new() }
    }

    /// Returns the image of this kind on a server; one for the whole run.
    pub(crate) fn stage(&mut self, kind: Kind) -> Rc<Stage> {
        let found = self.stages.iter().find(|stage| stage.kind == kind).cloned();
        found.unwrap_or_else(|| {
            let stage = Rc::new(Stage::new(kind, !self.selection.without_profile));
            self.stages.push(Rc::clone(&stage));
            stage
        })
    }

    /// Adds a section that compares.
    pub(crate) fn compare(&mut self, title: &str, about: &str, rival: &str, rows: &[Row]) {
        let out = &mut self.sections;
        // Writing into a string does not fail.
        let _ = writeln!(out, "\n## {title}\n\n{about}\n");
        let _ = writeln!(out, "| | Satchel | {rival} | times as fast | goal |\n|---|---|---|---|---|");
        for row in rows {
            let (ours, rival) = (show(row.ours, row.unit), show(row.rival, row.unit));
            let _ = writeln!(
                out,
                "| {} | {ours} | {rival} | **{:.2}** | {:.1} |",
                row.what,
                row.ratio(),
                row.goal
            );
            println!("{}: {ours} against {rival}, {:.2} times as fast", row.what, row.ratio());
        }
        let _ = writeln!(out, "\n```");
        let mut commands: Vec<&str> = rows.iter().map(|row| row.command.as_str()).collect();
        commands.dedup();
        for command in commands {
            let _ = writeln!(out, "{command}");
        }
        let _ = writeln!(out, "```");
    }

    /// Adds a section of plain sentences.
    pub(crate) fn say(&mut self, title: &str, text: &str) {
        self.write(title, text);
        println!("{title}: {text}");
    }

    /// Adds a section whose numbers were shown as they came.
    pub(crate) fn write(&mut self, title: &str, text: &str) {
        let _ = writeln!(self.sections, "\n## {title}\n\n{text}");
    }

    /// The whole page.
    pub(crate) fn markdown(&self) -> String {
        format!(
            "# Benchmarks\n\nWritten by `make bench`. Where two are compared, each number is the median of {} rounds, taken in turns in one run on \
             the same files, which were read or written just before. Machines differ: look at the ratios.\n\n\
             Measured on {}.\n{}",
            self.rounds,
            machine(),
            self.sections
        )
    }
}

fn show(number: f64, unit: Unit) -> String {
    match unit {
        Unit::Seconds => format!("{number:.2} s"),
        Unit::MegabytesPerSecond => format!("{number:.0} MB/s"),
        Unit::OperationsPerSecond => format!("{number:.0} /s"),
    }
}

/// Processor, memory and kernel, for the page's head.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_prefix(':'));
        value.map_or("unknown".to_owned(), |value| value.trim().to_owned())
    };
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let memory_gib = memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) >> 20;
    let kernel = read("/proc/sys/kernel/osrelease");
    let model = field(&read("/proc/cpuinfo"), "model name");
    format!("{cpus} processors ({model}), {memory_gib} GiB, Linux {}", kernel.trim())
}
