//! The mounted disk against a plain file.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use satchel_tests::{Client, Link, Publication, Shape};

use crate::median;
use crate::report::{Report, Row, Unit};

/// Size of the disks that are read and written, bytes.
const DISK_BYTES: u64 = 1 << 30;
/// How long each workload runs, seconds.
const RUNTIME_S: u32 = 6;
const GOAL: f64 = 0.7;

/// A workload of `fio`.
struct Workload {
    what: &'static str,
    arguments: &'static [&'static str],
    writes: bool,
    unit: Unit,
}

const WORKLOADS: [Workload; 5] = [
    Workload {
        what: "read 1 MiB, sequential",
        arguments: &["--rw=read", "--bs=1M", "--iodepth=4"],
        writes: false,
        unit: Unit::MegabytesPerSecond,
    },
    Workload {
        what: "read 4 KiB, random, depth 1",
        arguments: &["--rw=randread", "--bs=4k", "--iodepth=1"],
        writes: false,
        unit: Unit::OperationsPerSecond,
    },
    Workload {
        what: "read 4 KiB, random, depth 32",
        arguments: &["--rw=randread", "--bs=4k", "--iodepth=32"],
        writes: false,
        unit: Unit::OperationsPerSecond,
    },
    Workload {
        what: "write 4 KiB, random, depth 32",
        arguments: &["--rw=randwrite", "--bs=4k", "--iodepth=32"],
        writes: true,
        unit: Unit::OperationsPerSecond,
    },
    Workload {
        what: "write 4 KiB, random, flushed each",
        arguments: &["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"],
        writes: true,
        unit: Unit::OperationsPerSecond,
    },
];

/// Runs each workload on a mounted disk that is in the cache, and on a file beside the cache.
pub(crate) fn against_a_raw_file(report: &mut Report) {
    let published = Publication::new(1, 1 << 20);
    let disk = published.publisher.directory().join("noise.raw");
    fill_with_noise(&disk).expect("the disk can be written");
    let forced =
        ["publish".as_ref(), disk.as_os_str(), "--image".as_ref(), "noise".as_ref(), "--force".as_ref()];
    let _ = published.publisher.satchel(forced).ok();
    let laptop = published.machine("laptop");
    laptop.create("work", "noise", Some("1G"));
    let mount = laptop.mount("work");
    // Everything is fetched, and checked once, before anything is measured.
    read_all(&mount.system());
    let written = laptop.directory().join("written.raw");
    File::create(&written).and_then(|file| file.set_len(DISK_BYTES)).expect("a file can be made");

    let mut rows = Vec::new();
    for workload in WORKLOADS {
        let (ours, rival) = if workload.writes { (mount.home(), &written) } else { (mount.system(), &disk) };
        let (mut our_numbers, mut rival_numbers) = (Vec::new(), Vec::new());
        for _ in 0..report.rounds {
            our_numbers.push(fio(&workload, &ours));
            rival_numbers.push(fio(&workload, rival));
        }
        rows.push(Row {
            what: workload.what.to_owned(),
            ours: median(our_numbers),
            rival: median(rival_numbers),
            unit: workload.unit,
            goal: GOAL,
            command: format!("{} --filename=FILE", common(&workload).join(" ")),
        });
    }
    mount.unmount();
    report.compare(
        "A mounted disk",
        "`fio` with direct I/O (`O_DIRECT`) on a disk of 1 GiB that `satchel mount` serves and that is in its cache, and \
         on a raw file on the same file system. What is read is noise; what is written are disks that were empty. The mount \
         reads and writes its own files through the host's page cache, as `cache=writeback` does for a hypervisor, which is \
         most of its lead where it leads; a flush goes to the disk in both.",
        "raw file",
        &rows,
    );
}

/// Reads a disk over a link of 1 Gbit/s and looks at how much memory that took.
pub(crate) fn memory_while_streaming(report: &mut Report) {
    let published = Publication::new(2, DISK_BYTES);
    let link =
        Link::start(published.server.address(), Shape::symmetric(1_000_000_000, Duration::from_millis(2)));
    let laptop = Client::new("laptop");
    laptop.login(&published.access().through(&link));
    laptop.create("work", "golden", Some("16M"));
    let mut mount = laptop.mount("work");
    read_all(&mount.system());
    let peak_mib = mount.process().peak_memory_bytes() >> 20;
    mount.unmount();
    report.say(
        "Memory",
        &format!(
            "`satchel mount`, while a disk of 1 GiB is read in full over a link of 1 Gbit/s and 4 ms: {peak_mib} MiB \
             at its peak (`VmHWM`). Goal: less than 200 MiB."
        ),
    );
}

fn fill_with_noise(path: &Path) -> io::Result<()> {
    let mut noise = io::Read::take(File::open("/dev/urandom")?, DISK_BYTES);
    let mut file = File::create(path)?;
    io::copy(&mut noise, &mut file)?;
    file.sync_all()
}

fn read_all(path: &PathBuf) {
    let read = File::open(path).and_then(|mut file| io::copy(&mut file, &mut io::sink()));
    read.unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
}

fn common(workload: &Workload) -> Vec<String> {
    let mut words: Vec<String> =
        ["fio", "--name=bench", "--direct=1", "--ioengine=libaio", "--time_based"].map(str::to_owned).into();
    words.push(format!("--runtime={RUNTIME_S}"));
    words.push(format!("--size={DISK_BYTES}"));
    words.extend(workload.arguments.iter().map(|&word| word.to_owned()));
    words
}

/// Megabytes or operations a second.
fn fio(workload: &Workload, path: &Path) -> f64 {
    let words = common(workload);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg("--output-format=json").arg(format!("--filename={}", path.display()));
    let output = command.output().expect("fio can be run");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let json = text.find('{').map_or("", |start| &text[start..]);
    let result: serde_json::Value = serde_json::from_str(json).expect("fio writes JSON");
    let side = &result["jobs"][0][if workload.writes { "write" } else { "read" }];
    let number = |field: &str| side[field].as_f64().unwrap_or_else(|| panic!("no {field} in {side}"));
    match workload.unit {
        Unit::MegabytesPerSecond => number("bw_bytes") / 1e6,
        _ => number("iops"),
    }
}
