//! What people use today to start from an image that is elsewhere.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use satchel_tests::{Link, Process, ReadAccess, Replay, Replayed, StaticHttps, StorageDaemon, wait};
use tempfile::TempDir;

use crate::selection::LinkShape;
use crate::stage::Stage;

/// How long anyone may take for a boot's reads.
pub(crate) const LIMIT: Duration = Duration::from_secs(600);

/// One that can bring an image's disk from an HTTPS server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rival {
    Qemu,
    Nbdkit,
    Download,
}

impl Rival {
    pub(crate) const ALL: [Self; 3] = [Self::Qemu, Self::Nbdkit, Self::Download];

    /// What it is called on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Nbdkit => "nbdkit",
            Self::Download => "download",
        }
    }

    /// What it is called on the page.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Qemu => "QEMU: qcow2 overlay with copy-on-read on the compressed qcow2 over https",
            Self::Nbdkit => {
                "nbdkit curl with cache and readahead filters (which says that this plugin gives it nothing to do), the \
                 same overlay in front"
            }
            Self::Download => "full download of the compressed qcow2, then the same overlay",
        }
    }

    /// What was run, for the page.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::Qemu => {
                "qemu-storage-daemon --blockdev driver=https,node-name=file,url=URL,timeout=60,read-only=on --blockdev \
                 driver=qcow2,node-name=base,file=file,read-only=on --blockdev \
                 driver=file,node-name=changes,filename=overlay.qcow2 --blockdev \
                 driver=qcow2,node-name=overlay,file=changes,backing=base --blockdev \
                 driver=copy-on-read,node-name=top,file=overlay --export type=fuse,id=disk,node-name=top,mountpoint=FILE"
            }
            Self::Nbdkit => {
                "nbdkit --unix SOCKET --filter=readahead --filter=cache curl url=URL cache-on-read=true  # and the same \
                 with driver=nbd,node-name=file,server.type=unix,server.path=SOCKET,read-only=on"
            }
            Self::Download => {
                "curl --output debian.qcow2 URL  # and the same with driver=file,node-name=file,filename=debian.qcow2,read-only=on"
            }
        }
    }
}

/// How one did over one link.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// From its start to the end of the last read, seconds; or why there is none.
    pub(crate) seconds: Result<f64, String>,
    /// Until the first read could be asked for, seconds.
    pub(crate) ready_seconds: f64,
    /// What came over the link meanwhile, bytes.
    pub(crate) down_bytes: u64,
    pub(crate) replayed: Option<Replayed>,
}

impl Outcome {
    /// Counts from `began`, with what the link carried since `before`.
    pub(crate) fn new(
        began: Instant,
        ready: Instant,
        carried: (&Link, u64),
        replayed: Result<Replayed, String>,
    ) -> Self {
        let (link, before) = carried;
        let seconds = began.elapsed().as_secs_f64();
        Self {
            ready_seconds: ready.duration_since(began).as_secs_f64(),
            down_bytes: link.counts().down_bytes - before,
            seconds: replayed.as_ref().map(|_| seconds).map_err(Clone::clone),
            replayed: replayed.ok(),
        }
    }
}

/// Replays on `file` until `deadline`, when `give_up` must end whoever serves it.
pub(crate) fn replay_until(
    deadline: Instant,
    replay: &Replay,
    file: &Path,
    give_up: impl FnOnce(),
) -> Result<Replayed, String> {
    let done = AtomicUsize::new(0);
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| tell.send(replay.run(file, ReadAccess::Direct, 1, &done)));
        match told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(went) => went.map_err(|error| error.to_string()),
            Err(_) => {
                let progress = done.load(Ordering::Relaxed);
                give_up();
                Err(format!("not done after {} s: {progress} of {} reads", LIMIT.as_secs(), replay.len()))
            }
        }
    })
}

/// Measures `rival` with `replay` over a link of its own to a server that has the image as a compressed qcow2.
pub(crate) fn race(
    rival: Rival,
    stage: &Stage,
    replay: &Replay,
    files: &StaticHttps,
    link: LinkShape,
) -> Outcome {
    let qcow2 = stage.qcow2();
    let name = qcow2.file_name().expect("an image has a name").to_string_lossy().into_owned();
    let work = tempfile::tempdir().expect("a temporary directory can be made");
    let overlay = work.path().join("overlay.qcow2");
    let size = std::fs::metadata(&stage.disk).expect("the image is there").len();
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2"]).arg(&overlay).arg(size.to_string());
    assert!(create.status().is_ok_and(|status| status.success()), "{create:?} failed");
    let link = Link::start(files.address(), link.shape());
    let url = format!("{}/{name}", link.url());

    let began = Instant::now();
    let deadline = began + LIMIT;
    let opened = open(rival, &url, &work, deadline).and_then(|(helper, file)| {
        let left = deadline.saturating_duration_since(Instant::now());
        let daemon = StorageDaemon::start(&blockdevs(&file, &overlay), left)?;
        Ok((helper, daemon))
    });
    let ready = Instant::now();
    let replayed = opened.and_then(|(_helper, mut daemon)| {
        let file = daemon.file().to_owned();
        replay_until(deadline, replay, &file, || daemon.kill())
    });
    Outcome::new(began, ready, (&link, 0), replayed)
}

/// Does what comes before QEMU's storage daemon: the process that must stay, and the block device with the qcow2.
fn open(
    rival: Rival,
    url: &str,
    work: &TempDir,
    deadline: Instant,
) -> Result<(Option<Process>, String), String> {
    let left = deadline.saturating_duration_since(Instant::now());
    match rival {
        Rival::Qemu => {
            Ok((None, format!("driver=https,node-name=file,url={url},sslverify=off,timeout=60,read-only=on")))
        }
        Rival::Nbdkit => {
            let socket = work.path().join("nbd");
            let mut command = Command::new("nbdkit");
            command.args(["--foreground", "--unix"]).arg(&socket);
            command.args(["--filter=readahead", "--filter=cache", "curl", "sslverify=false"]);
            command.args([format!("url={url}"), "cache-on-read=true".to_owned()]);
            let mut process = Process::start("nbdkit", &mut command);
            let is_there = wait::attempt(left, || {
                (socket.exists() || process.status().is_some()).then(|| socket.exists())
            });
            if is_there != Some(true) {
                return Err(process.report());
            }
            let path = socket.display();
            Ok((
                Some(process),
                format!("driver=nbd,node-name=file,server.type=unix,server.path={path},read-only=on"),
            ))
        }
        Rival::Download => {
            let path = work.path().join("debian.qcow2");
            let mut command = Command::new("curl");
            command
                .args(["--silent", "--show-error", "--fail", "--insecure", "--output"])
                .arg(&path)
                .arg(url);
            let mut process = Process::start("curl", &mut command);
            match wait::attempt(left, || process.status()) {
                Some(status) if status.success() => {
                    Ok((None, format!("driver=file,node-name=file,filename={},read-only=on", path.display())))
                }
                Some(_) => Err(process.report()),
                None => Err(format!("not downloaded after {} s", LIMIT.as_secs())),
            }
        }
    }
}

/// An overlay that keeps what is read, over the qcow2 that is in the block device `file`.
fn blockdevs(file: &str, overlay: &Path) -> Vec<String> {
    vec![
        file.to_owned(),
        "driver=qcow2,node-name=base,file=file,read-only=on".to_owned(),
        format!("driver=file,node-name=changes,filename={}", overlay.display()),
        "driver=qcow2,node-name=overlay,file=changes,backing=base".to_owned(),
        "driver=copy-on-read,node-name=top,file=overlay".to_owned(),
    ]
}
