//! Satchel's own machine beside QEMU's smallest, on the same kernel, the same disk and the same transport.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use satchel_tests::{lab, skip};
use serde::{Deserialize, Serialize};

use crate::median;
use crate::report::{Report, Table};

const MEMORY_MIB: u64 = 256;
const DISK_BYTES: u64 = 256 << 20;
/// Starts of each machine in a round besides the one whose disk is measured: where everything is imitated, each takes another time.
const MORE_STARTS: usize = 3;
/// How long all of it may take where everything is imitated twice over.
const LAB_LIMIT: Duration = Duration::from_secs(3600);
/// How long one machine may take there.
const MACHINE_LIMIT: Duration = Duration::from_secs(400);
/// What each machine itself may add to the guest's memory, MB.
const GOAL_MB: f64 = 15.0;

#[derive(Serialize, Deserialize)]
struct Task {
    rounds: usize,
    disk: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
enum Contender {
    Satchel,
    Microvm,
}

/// One thing found of one machine in one round.
#[derive(Debug, Serialize, Deserialize)]
struct Finding {
    of: Contender,
    what: String,
    value: f64,
}

/// What the guest says of one kind of request (`tests/lab/measure.rs`).
#[derive(Deserialize)]
struct Measured {
    job: String,
    requests_per_s: f64,
}

/// What the guest is to do once it is up (`tests/lab/guest-init`).
const MEASURE: &str = "task=measure";
const NOTHING: &str = "task=off";

const UP: &str = "up";
const OWN_MEMORY: &str = "own memory";

/// Measures both, on this machine where KVM works, else in the lab.
pub(crate) fn beside_microvm(report: &mut Report) {
    let guest = lab::small_guest();
    let task = Task { rounds: report.rounds, disk: guest.disk, kernel: guest.kernel, initrd: guest.initrd };
    let task = serde_json::to_string(&task).expect("plain data");
    let is_native = skip::kvm().lack.is_none();
    let said = if is_native { measure(&task) } else { lab::run(&mut lab::command(LAB_LIMIT), &task) };
    let mut found: HashMap<(String, Contender), Vec<f64>> = HashMap::new();
    for finding in said.lines().filter_map(|line| serde_json::from_str::<Finding>(line).ok()) {
        found.entry((finding.what, finding.of)).or_default().push(finding.value);
    }
    let of = |what: &str, of| median(found.get(&(what.to_owned(), of)).expect("both were measured").clone());
    let mut table = Table::new(&["", "Satchel", "QEMU microvm", "", "goal"]);
    let mut row = |what: &str, key: &str, is_time: bool| {
        let (ours, rival) = (of(key, Contender::Satchel), of(key, Contender::Microvm));
        let (unit, ratio, goal) =
            if is_time { ("s", ours / rival, "at most 1.0") } else { ("/s", ours / rival, "at least 1.0") };
        table.row([
            what.to_owned(),
            format!("{ours:.1} {unit}"),
            format!("{rival:.1} {unit}"),
            format!("**{ratio:.2}** times"),
            goal.to_owned(),
        ]);
    };
    row("from the start to the guest's first program", UP, true);
    row("read 1 MiB, sequential, depth 4", "1m-read", false);
    row("write 1 MiB, sequential, depth 4", "1m-write", false);
    row("read 4 KiB, random, depth 1", "4k-read-1", false);
    row("write 4 KiB, random, depth 1", "4k-write-1", false);
    row("read 4 KiB, random, depth 32", "4k-read-32", false);
    row("write 4 KiB, random, depth 32", "4k-write-32", false);
    let (ours, rival) = (of(OWN_MEMORY, Contender::Satchel), of(OWN_MEMORY, Contender::Microvm));
    table.row([
        "resident beside the guest's memory, while it reads".to_owned(),
        format!("{ours:.1} MB"),
        format!("{rival:.1} MB"),
        format!("**{:.2}** times", ours / rival),
        format!("at most {GOAL_MB} MB"),
    ]);
    let sizes = [own_program(), PathBuf::from("/usr/bin/qemu-system-x86_64")].map(|program| {
        format!("{:.1} MB", fs::metadata(program).map_or(0, |about| about.len()) as f64 / 1e6)
    });
    let [ours, rival] = sizes;
    table.row([
        "the program".to_owned(),
        ours,
        format!("{rival} and its libraries"),
        String::new(),
        String::new(),
    ]);
    let place = if is_native {
        "On this machine's KVM."
    } else {
        "In the lab (`tests/lab/run`): this machine has no KVM, so that a processor with SVM is imitated and everything takes some thirty times \
         as long, what machines do for their guest as well as what guests do by themselves; ratios of real hardware differ."
    };
    let text = format!(
        "{place} One processor, {MEMORY_MIB} MiB; Debian's cloud kernel and an initial RAM disk, virtio over mmio, a second disk of {} MiB in memory that \
         is measured past the guest's page cache; by turns, the median of {} rounds, with {MORE_STARTS} more starts in each. QEMU has `cache=writeback,aio=io_uring`.\n\n{table}\n```\n\
         bench machine\n```",
        DISK_BYTES >> 20,
        report.rounds
    );
    report.write("Satchel's own machine", &text);
    println!("{table}");
}

/// Measures both in the lab.
pub(crate) fn inside(task: &str) {
    measure(task);
}

/// Findings, a line of JSON each, shown as they come.
fn measure(task: &str) -> String {
    let task: Task = serde_json::from_str(task).expect("a task");
    let scratch = tempfile::tempdir().expect("a temporary directory can be made");
    let disk = scratch.path().join("disk");
    let mut lines = String::new();
    let jobs = [&[MEASURE][..], &[NOTHING; MORE_STARTS]].concat();
    for job in jobs.repeat(task.rounds) {
        for of in [Contender::Satchel, Contender::Microvm] {
            let made = File::create(&disk).and_then(|file| file.set_len(DISK_BYTES));
            made.expect("a file of our own can be made");
            for (what, value) in observe(of, &task, &disk, job) {
                let finding = Finding { of, what, value };
                let line = serde_json::to_string(&finding).expect("plain data");
                println!("{line}");
                lines.push_str(&line);
                lines.push('\n');
            }
        }
    }
    lines
}

/// Starts a machine and listens to its guest until that is done.
fn observe(of: Contender, task: &Task, disk: &Path, job: &str) -> Vec<(String, f64)> {
    let mut command = command(of, task, disk, job);
    let began = Instant::now();
    let mut machine =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the machine can be started");
    let mut found = Vec::new();
    let mut lines = BufReader::new(machine.stdout.take().expect("it is a pipe"));
    let process = Pid::from_child(&machine);
    let (over, is_over) = mpsc::channel::<()>();
    let watch = thread::spawn(move || {
        if is_over.recv_timeout(MACHINE_LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = kill_process(process, Signal::KILL);
        }
    });
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        if text.contains("guest up") {
            found.push((UP.to_owned(), began.elapsed().as_secs_f64()));
        }
        if let Ok(Measured { job, requests_per_s }) = serde_json::from_str(text) {
            if found.len() == 1 {
                found.push((OWN_MEMORY.to_owned(), own_memory_mb(&machine)));
            }
            found.push((job, requests_per_s));
        }
        line.clear();
    }
    drop(over);
    watch.join().expect("it only waits");
    let status = machine.wait().expect("a child can be waited for");
    assert!(status.success(), "{command:?} ended with {status} after {found:?}");
    found
}

fn own_program() -> PathBuf {
    std::env::current_exe().expect("a program has a file").with_file_name("satchel-vmm")
}

fn command(of: Contender, task: &Task, disk: &Path, job: &str) -> Command {
    let (system, disk) = (task.disk.display(), disk.display());
    match of {
        Contender::Satchel => {
            let mut command = Command::new(own_program());
            command.args(["run", "--memory", &MEMORY_MIB.to_string(), "--append", job]);
            command.args(["--disk", &format!("path={system},read-only"), "--disk", &format!("path={disk}")]);
            command
        }
        Contender::Microvm => {
            let mut command = Command::new("qemu-system-x86_64");
            command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
            command.args(["-machine", "microvm,pit=off,pic=off,rtc=on", "-accel", "kvm", "-cpu", "host"]);
            command.args(["-m", &MEMORY_MIB.to_string(), "-serial", "stdio"]);
            command.arg("-kernel").arg(&task.kernel).arg("-initrd").arg(&task.initrd);
            command.args(["-append", &format!("console=ttyS0 quiet loglevel=1 panic=-1 {job}")]);
            let disks = [("system", system, ",read-only=on"), ("disk", disk, "")];
            for (id, path, more) in disks {
                let drive =
                    format!("id={id},if=none,file={path},format=raw,cache=writeback,aio=io_uring{more}");
                command.args(["-drive", &drive, "-device", &format!("virtio-blk-device,drive={id}")]);
            }
            command
        }
    }
}

/// What a machine has in memory beside its guest's, MB.
fn own_memory_mb(machine: &Child) -> f64 {
    let path = format!("/proc/{}/smaps", machine.id());
    let maps = fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"));
    let (mut is_guest, mut kib) = (false, 0);
    for line in maps.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if let Some((begin, end)) = first.split_once('-')
            && let (Ok(begin), Ok(end)) = (u64::from_str_radix(begin, 16), u64::from_str_radix(end, 16))
        {
            is_guest = end - begin >= MEMORY_MIB << 20;
        } else if let Some(value) = line.strip_prefix("Rss:").filter(|_| !is_guest) {
            kib += value.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB");
        }
    }
    kib as f64 * 1024.0 / 1e6
}
