//! Whole boots over a slow link.

use std::path::Path;
use std::time::{Duration, Instant};

use satchel_tests::{Client, Event, Link, Shape, Turn};

use crate::report::{Report, Table};
use crate::selection::LinkShape;
use crate::stage::{Kind, kinds};

/// An emulated boot that waits for a slow link may take this long.
const BOOT_LIMIT: Duration = Duration::from_secs(1200);
const LINK: LinkShape = LinkShape::new(25, 40);

/// What a boot took.
struct Boot {
    /// From `satchel run` to the guest's word that it is up.
    seconds: f64,
    /// What came over the link until then, bytes.
    down_bytes: u64,
    /// How long reads waited for a fetch, summed over them and both disks, seconds.
    stall_seconds: f64,
}

/// Boots each image cold, with and without a profile, and warm.
pub(crate) fn cold_and_warm(report: &mut Report) {
    let link = report.selection.links(&[LINK])[0];
    let mut table = Table::new(&["", "seconds", "fetched", "reads waited", "times a warm boot"]);
    for kind in kinds(report) {
        boots(kind, link, report, &mut table);
    }
    let text = format!(
        "From `satchel run` to the guest's `READY` on its serial console, emulated (TCG, 2 processors, 2 GiB), over a link \
         of {link}. Each is the first boot of a new desktop on a machine that knows nothing but the server; when it is \
         warm, the whole disk was read before. The time that reads waited is summed over all of them. Goal: with a \
         profile at most 1.3 times the warm boot.\n\n{table}\n```\nsatchel run work --engine qemu --memory 2G --no-sync\n```"
    );
    report.write("Boots", &text);
}

fn boots(kind: Kind, link: LinkShape, report: &mut Report, table: &mut Table) {
    let stage = report.stage(kind);
    let wants = |cell: &str| report.selection.has_contender(cell);
    let mut cells: Vec<(&str, Boot)> = Vec::new();
    let mut show = |name: &'static str, boot: Boot| {
        println!(
            "{} {link} boot {name}: {:.1} s, {:.1} MB, reads waited {:.1} s",
            kind.name(),
            boot.seconds,
            boot.down_bytes as f64 / 1e6,
            boot.stall_seconds
        );
        cells.push((name, boot));
    };
    if wants("warm") {
        let (laptop, net) = stage.newcomer(stage.bare(), link);
        net.apply(Event::Shape(Shape::default()));
        read_everything(&laptop);
        net.apply(Event::Shape(link.shape()));
        show("warm", boot(kind, &laptop, &net));
    }
    if wants("cold") {
        let (laptop, net) = stage.newcomer(stage.bare(), link);
        show("cold, without a profile", boot(kind, &laptop, &net));
    }
    if wants("profile") && stage.streams_bytes().is_some() {
        let (laptop, net) = stage.newcomer(kind.name(), link);
        show("cold, with a profile", boot(kind, &laptop, &net));
        show("the second boot", boot(kind, &laptop, &net));
    }
    let warm = cells.iter().find(|(name, _)| *name == "warm").map(|(_, boot)| boot.seconds);
    for (name, boot) in cells {
        table.row([
            format!("{}, {name}", kind.title()),
            format!("{:.1} s", boot.seconds),
            format!("{:.1} MB", boot.down_bytes as f64 / 1e6),
            format!("{:.1} s", boot.stall_seconds),
            warm.map_or(String::new(), |warm| format!("**{:.2}**", boot.seconds / warm)),
        ]);
    }
}

/// Runs `work` until its guest is up, and switches it off.
fn boot(kind: Kind, laptop: &Client, link: &Link) -> Boot {
    let _turn = Turn::wait("guest");
    let before = link.counts().down_bytes;
    let began = Instant::now();
    let mut running = laptop.run("work", &kind.run_options());
    running.guest().wait_ready(BOOT_LIMIT);
    let seconds = began.elapsed().as_secs_f64();
    let down_bytes = link.counts().down_bytes - before;
    let status = laptop.status("work");
    let disks = status["disks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let stall_ms: u64 = disks.iter().filter_map(|disk| disk["activity"]["stall_ms"].as_u64()).sum();
    running.shut_down(BOOT_LIMIT);
    Boot { seconds, down_bytes, stall_seconds: stall_ms as f64 / 1e3 }
}

/// Brings all of the system disk to this machine.
fn read_everything(laptop: &Client) {
    let mount = laptop.mount("work");
    read(&mount.system());
    mount.unmount();
}

fn read(path: &Path) {
    let read = std::fs::File::open(path).and_then(|mut file| std::io::copy(&mut file, &mut std::io::sink()));
    read.unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
}
