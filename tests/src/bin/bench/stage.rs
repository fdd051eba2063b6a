//! Debian images, published, with what a boot of them reads.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use satchel_tests::{Client, Link, MachineOptions, Replay, RunOptions, TestServer, Trace, images};

use crate::report::Report;
use crate::selection::LinkShape;
use crate::time;

/// A Debian image of `tests/images/build`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// With Xfce.
    Desktop,
    /// With a shell on the serial console only.
    Plain,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Desktop, Self::Plain];

    /// What it is called on the command line, and as an image on the server.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Desktop => "desktop",
            Self::Plain => "plain",
        }
    }

    /// What it is called on the page.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Desktop => "Debian with Xfce",
            Self::Plain => "Debian without a desktop",
        }
    }

    pub(crate) fn disk(self) -> PathBuf {
        match self {
            Self::Desktop => images::desktop(),
            Self::Plain => images::plain(),
        }
    }

    /// The same disk after its pending updates were installed.
    pub(crate) fn next_disk(self) -> PathBuf {
        match self {
            Self::Desktop => images::desktop_next(),
            Self::Plain => images::plain_next(),
        }
    }

    /// The machine its boot is recorded with.
    fn machine(self) -> MachineOptions {
        MachineOptions { memory_mib: 2048, has_graphics: self == Self::Desktop, ..MachineOptions::default() }
    }

    /// What a boot of `disk`, which is of this kind, reads.
    pub(crate) fn trace(self, disk: &Path) -> Trace {
        Trace::of_boot(disk, &self.machine())
    }

    /// How Satchel runs it.
    pub(crate) fn run_options(self) -> RunOptions {
        let display = if self == Self::Desktop { "vnc" } else { "none" };
        RunOptions {
            engine: "qemu".to_owned(),
            memory: Some("2G".to_owned()),
            display: display.to_owned(),
            syncs: false,
            ..RunOptions::default()
        }
    }
}

/// The kinds that were asked for.
pub(crate) fn kinds(report: &Report) -> Vec<Kind> {
    Kind::ALL.into_iter().filter(|kind| report.selection.has_image(kind.name())).collect()
}

/// An image on a server, for all sections of a run: recording a profile takes minutes.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) kind: Kind,
    pub(crate) disk: PathBuf,
    pub(crate) server: TestServer,
    pub(crate) publisher: Client,
    /// What `satchel publish` said.
    pub(crate) published: serde_json::Value,
    /// Whether profiles are asked for.
    wants_profile: bool,
    /// How long its boot stream is, bytes, once it was recorded; `None` when it has no profile.
    streams_bytes: OnceCell<Option<u64>>,
    /// The same disk as another image, which has no profile, once it was published.
    bare: OnceCell<String>,
    /// How many people have a desktop on the server.
    people: AtomicU32,
}

impl Stage {
    /// Publishes the image.
    pub(crate) fn new(kind: Kind, wants_profile: bool) -> Self {
        let disk = kind.disk();
        let server = TestServer::start();
        let publisher = Client::new("build-machine");
        publisher.login(&server.access("it", "publisher"));
        let published = publish(&publisher, &disk, kind.name(), &[]);
        Self {
            kind,
            disk,
            server,
            publisher,
            published,
            wants_profile,
            streams_bytes: OnceCell::new(),
            bare: OnceCell::new(),
            people: AtomicU32::new(0),
        }
    }

    /// Records the image's profile, the first time; how long its boot stream is, bytes. `None` when none is wanted.
    pub(crate) fn streams_bytes(&self) -> Option<u64> {
        let record = || self.wants_profile.then(|| record_profile(&self.publisher, self.kind));
        *self.streams_bytes.get_or_init(record)
    }

    /// The name of an image with the same disk and no profile.
    pub(crate) fn bare(&self) -> &str {
        self.bare.get_or_init(|| {
            let name = format!("{}-bare", self.kind.name());
            let _ = publish(&self.publisher, &self.disk, &name, &[]);
            name
        })
    }

    /// A machine that knows nothing but the server, behind a link, and has a desktop `work` there, which another one made.
    pub(crate) fn newcomer(&self, image: &str, link: LinkShape) -> (Client, Link) {
        let access =
            self.server.access(&format!("user-{}", self.people.fetch_add(1, Ordering::Relaxed)), "user");
        let first = Client::new("first");
        first.login(&access);
        first.create("work", image, Some("1G"));
        let link = Link::start(self.server.address(), link.shape());
        let newcomer = Client::new("newcomer");
        newcomer.login(&access.through(&link));
        (newcomer, link)
    }

    /// What a boot of it reads, and what it should get.
    pub(crate) fn replay(&self) -> Replay {
        Replay::new(&self.kind.trace(&self.disk), &self.disk).expect("the image can be read")
    }

    /// The image as a compressed qcow2, made when it is not there yet.
    pub(crate) fn qcow2(&self) -> PathBuf {
        let path = self.disk.with_extension("qcow2");
        if !path.exists() {
            let partial = self.disk.with_extension("qcow2.partial");
            let mut convert = Command::new("qemu-img");
            convert.args(["convert", "-c", "-f", "raw", "-O", "qcow2"]);
            time(convert.arg(&self.disk).arg(&partial));
            std::fs::rename(&partial, &path).expect("a file beside the image can be renamed");
        }
        path
    }
}

/// Publishes a disk as the next version of `image`; what `satchel publish` said.
pub(crate) fn publish(publisher: &Client, disk: &Path, image: &str, more: &[&str]) -> serde_json::Value {
    let words = ["--json".as_ref(), "publish".as_ref(), disk.as_os_str(), "--image".as_ref(), image.as_ref()];
    publisher.satchel(words.into_iter().chain(more.iter().map(OsStr::new))).ok().json()
}

/// Records a profile of the newest version of the image of this kind; the length of its boot stream, bytes.
pub(crate) fn record_profile(publisher: &Client, kind: Kind) -> u64 {
    let display = kind.run_options().display;
    let began = Instant::now();
    let record = [
        "--json",
        "profile",
        "record",
        kind.name(),
        "--memory",
        "2G",
        "--display",
        &display,
        "--until",
        "READY",
    ];
    let recorded = publisher.satchel(record).ok().json();
    let bytes = number(&recorded, "streams_bytes");
    println!(
        "{}: recorded a profile in {:.0} s: {} chunks, {:.1} MB as chunks, {:.1} MB as streams",
        kind.name(),
        began.elapsed().as_secs_f64(),
        recorded["chunks"],
        number(&recorded, "chunk_bytes") as f64 / 1e6,
        bytes as f64 / 1e6
    );
    bytes
}

/// Returns a number of an answer in JSON.
pub(crate) fn number(answer: &serde_json::Value, field: &str) -> u64 {
    answer[field].as_u64().unwrap_or_else(|| panic!("no {field} in {answer}"))
}
