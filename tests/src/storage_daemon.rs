//! QEMU's own way to make a disk image a file: `qemu-storage-daemon` with a FUSE export.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::client::{is_mounted, unmount};
use crate::process::{Process, forget_mount, remember_mount};
use crate::wait;

/// A `qemu-storage-daemon` that shows one of its block nodes as a file, until dropped.
#[derive(Debug)]
pub struct StorageDaemon {
    process: Process,
    file: PathBuf,
    _directory: TempDir,
}

impl StorageDaemon {
    /// Starts one with these block devices, as its option `--blockdev` takes them, and waits until the last of them, whose
    /// node must be called `top`, can be read as a file.
    ///
    /// # Errors
    /// What the daemon said, when it ended or did not make it within `limit`.
    pub fn start(blockdevs: &[String], limit: Duration) -> Result<Self, String> {
        let directory = tempfile::Builder::new().prefix("satchel-qsd-").tempdir();
        let directory = directory.expect("a temporary directory can be made");
        let file = directory.path().join("disk");
        // The export is mounted over a file.
        File::create(&file).expect("a file can be made");
        // Killed when the thread that started it ends, as no other program here is: a thread of this process that waits
        // for a read keeps a process that was told to end from ending, and with it the network the daemon waits for.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-storage-daemon"]);
        for blockdev in blockdevs {
            command.args(["--blockdev", blockdev]);
        }
        command.args(["--export", &format!("type=fuse,id=disk,node-name=top,mountpoint={}", file.display())]);
        remember_mount(&file);
        let process = Process::start("qemu-storage-daemon", &mut command);
        let mut daemon = Self { process, file, _directory: directory };
        let appeared = wait::attempt(limit, || {
            let has_ended = daemon.process.status().is_some();
            (has_ended || is_mounted(&daemon.file)).then_some(has_ended)
        });
        match appeared {
            Some(false) => Ok(daemon),
            Some(true) => Err(daemon.process.report()),
            None => Err(format!("nothing to read after {limit:?}\n{}", daemon.process.report())),
        }
    }

    /// Returns the file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Ends it at once; whoever waits for a read gets an error.
    pub fn kill(&mut self) {
        self.process.kill();
        if is_mounted(&self.file) {
            unmount(&self.file);
        }
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        self.kill();
        if !is_mounted(&self.file) {
            forget_mount(&self.file);
        }
    }
}
