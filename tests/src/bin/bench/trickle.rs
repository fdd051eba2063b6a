//! A desktop that is synced by itself while it is written to.

use std::process::Command;

use satchel_tests::{Client, Link, Publication, SmallDisk, TestServer};

use crate::median;
use crate::report::{Report, Table};
use crate::selection::LinkShape;

const LINK: LinkShape = LinkShape::new(100, 20);
/// How long each workload runs, seconds.
const RUNTIME_S: u32 = 60;
/// How often it is synced: every ten minutes is the default, so that this is twenty times as much.
const EVERY: &str = "30s";

/// Workloads of `fio`, on 64 MiB of the home disk: what is written over again and again within ten minutes.
const WORKLOADS: [(&str, &[&str]); 3] = [
    ("write 4 KiB, random, depth 32", &["--rw=randwrite", "--bs=4k", "--iodepth=32"]),
    (
        "read and write 4 KiB, random, depth 4, flushed every 32",
        &["--rw=randrw", "--rwmixread=70", "--bs=4k", "--iodepth=4", "--fsync=32"],
    ),
    ("write 256 KiB, sequential, 20 MB/s", &["--rw=write", "--bs=256k", "--iodepth=4", "--rate=20m"]),
];

/// What a run of `fio` came to.
struct Ran {
    ops_per_s: f64,
    longest_ms: f64,
}

/// Runs each workload without syncs and with syncs, in turns.
pub(crate) fn under_writes(report: &mut Report) {
    let mut table = Table::new(&[
        "",
        "without",
        "with",
        "of that",
        "goal",
        "longest wait without",
        "longest wait with",
        "goal",
        "versions",
    ]);
    for (what, arguments) in WORKLOADS {
        // The server is another machine's: its flushes do not keep this one's disk busy.
        let memory = SmallDisk::new(2 << 30);
        let published = Publication::on(TestServer::start_at(&memory.join("store")), 7, 1 << 20);
        let link = Link::start(published.server.address(), LINK.shape());
        let laptop = Client::new("laptop");
        laptop.login(&published.access().through(&link));
        laptop.create("work", "golden", Some("64M"));
        let (mut without, mut with) = (Vec::new(), Vec::new());
        let (mut longest_without, mut longest_with) = (0_f64, 0_f64);
        let mut versions = 0;
        for _ in 0..report.rounds {
            let ran = measure(&laptop, arguments, "never");
            without.push(ran.ops_per_s);
            longest_without = longest_without.max(ran.longest_ms);
            let before = laptop.history("work").as_array().map_or(0, Vec::len);
            let ran = measure(&laptop, arguments, EVERY);
            with.push(ran.ops_per_s);
            longest_with = longest_with.max(ran.longest_ms);
            println!("trickle, {what}: longest wait {:.0} ms", ran.longest_ms);
            // One of them is that of the end.
            versions += laptop.history("work").as_array().map_or(0, Vec::len) - before - 1;
        }
        let (without, with) = (median(without), median(with));
        let percent = with / without * 100.0;
        println!(
            "trickle, {what}: {without:.0} /s without, {with:.0} /s with ({percent:.0} %), longest wait {longest_without:.0} ms and \
             {longest_with:.0} ms, {versions} versions"
        );
        table.row([
            what.to_owned(),
            format!("{without:.0} /s"),
            format!("{with:.0} /s"),
            format!("**{percent:.0} %**"),
            "85 %".to_owned(),
            format!("{longest_without:.0} ms"),
            format!("**{longest_with:.0} ms**"),
            "200 ms".to_owned(),
            versions.to_string(),
        ]);
        published.server.verify();
    }
    let text = format!(
        "`fio` with direct I/O for {RUNTIME_S} s on 64 MiB of a mounted home disk that is synced by itself every {EVERY} (the default is every \
         10m), over a link of {LINK}, and on one that never is; server, client and `fio` share this machine's processors, but not its disk: the server's store is in memory. The \
         longest wait is that of one request, flushes included, over all rounds.\n\n{table}\n```\nsatchel mount work DIR --sync-every {EVERY}\n\
         fio {common} --filename=DIR/home.raw ...\n```",
        common = common().join(" "),
    );
    report.write("Synced by itself while it is written to", &text);
}

fn common() -> Vec<String> {
    ["--name=bench", "--direct=1", "--ioengine=libaio", "--time_based", "--size=64M"]
        .map(str::to_owned)
        .into_iter()
        .chain([format!("--runtime={RUNTIME_S}")])
        .collect()
}

fn measure(laptop: &Client, arguments: &[&str], every: &str) -> Ran {
    let mount = laptop.mount_with("work", &["--sync-every", every]);
    let mut command = Command::new("fio");
    command.args(common()).args(arguments).arg("--output-format=json");
    command.arg(format!("--filename={}", mount.home().display()));
    let output = command.output().expect("fio can be run");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    mount.unmount();
    drop(laptop.sync("work"));
    let text = String::from_utf8_lossy(&output.stdout);
    let json = text.find('{').map_or("", |start| &text[start..]);
    let result: serde_json::Value = serde_json::from_str(json).expect("fio writes JSON");
    let job = &result["jobs"][0];
    let sides = [&job["read"], &job["write"]];
    let ops_per_s = sides.iter().filter_map(|side| side["iops"].as_f64()).sum();
    let waits = [&job["read"]["lat_ns"], &job["write"]["lat_ns"], &job["sync"]["lat_ns"]];
    let longest_ns = waits.iter().filter_map(|wait| wait["max"].as_f64()).fold(0.0, f64::max);
    Ran { ops_per_s, longest_ms: longest_ns / 1e6 }
}
