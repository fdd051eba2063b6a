//! Debian images, published, with what a boot of them reads.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use satchel_tests::{Client, Link, MachineOptions, Output, Replay, RunOptions, TestServer, Trace, images};

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

    /// The machine its boot is recorded with.
    pub(crate) fn machine(self) -> MachineOptions {
        MachineOptions { memory_mib: 2048, has_graphics: self == Self::Desktop, ..MachineOptions::default() }
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

/// An image on a server, with its profile when this build makes one.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) kind: Kind,
    pub(crate) disk: PathBuf,
    pub(crate) server: TestServer,
    pub(crate) publisher: Client,
    /// How long its boot stream is, bytes; `None` when it has no profile.
    pub(crate) streams_bytes: Option<u64>,
    /// How many people have a desktop on the server.
    people: AtomicU32,
}

impl Stage {
    /// Publishes the image and records its profile.
    pub(crate) fn new(kind: Kind, report: &Report) -> Self {
        let mut stage = Self::without_profile(kind);
        if !report.selection.without_profile {
            stage.streams_bytes = record_profile(&stage.publisher, kind.name());
        }
        stage
    }

    /// Publishes the image.
    pub(crate) fn without_profile(kind: Kind) -> Self {
        let disk = kind.disk();
        let server = TestServer::start();
        let publisher = Client::new("build-machine");
        publisher.login(&server.access("it", "publisher"));
        let _ = publisher.publish(&disk, kind.name());
        Self { kind, disk, server, publisher, streams_bytes: None, people: AtomicU32::new(0) }
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
        let trace = Trace::of_boot(&self.disk, &self.kind.machine());
        Replay::new(&trace, &self.disk).expect("the image can be read")
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

/// Records a profile of the newest version of `image`; the length of its boot stream, bytes.
pub(crate) fn record_profile(publisher: &Client, image: &str) -> Option<u64> {
    let Output { code, .. } = publisher.satchel(["profile", "--help"]);
    if code != Some(0) {
        return None;
    }
    let recorded = publisher.satchel(["--json", "profile", "record", image]).ok().json();
    let bytes = recorded["streams_bytes"].as_u64();
    Some(bytes.unwrap_or_else(|| panic!("no streams_bytes in {recorded}")))
}
