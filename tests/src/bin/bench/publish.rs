//! Publishing against the tools that cut and that hash.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use rustix::fs::SeekFrom;
use satchel_tests::{Client, TestServer, images};

use crate::report::{Report, Row, Unit};
use crate::{median, time};

/// Publishes the plain Debian image as new, and again unchanged.
pub(crate) fn against_casync_and_openssl(report: &mut Report) {
    let disk = images::plain();
    let work = tempfile::tempdir().expect("a temporary directory");
    let allocated = work.path().join("allocated");
    copy_data(&disk, &allocated).expect("the image can be copied");
    let server = TestServer::start();
    let publisher = Client::new("build-machine");
    publisher.login(&server.access("it", "publisher"));

    let (mut new, mut casync, mut again, mut openssl) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..report.rounds {
        let image = format!("debian-{round}");
        let publish = || {
            let arguments = ["publish".as_ref(), disk.as_os_str(), "--image".as_ref(), image.as_ref()];
            time(&mut publisher.command(arguments)).as_secs_f64()
        };
        new.push(publish());
        let store = work.path().join(format!("{round}.castr"));
        let index = work.path().join(format!("{round}.caibx"));
        let mut make = Command::new("casync");
        make.arg("make").arg("--store").arg(&store).arg(&index).arg(&disk);
        casync.push(time(&mut make).as_secs_f64());
        std::fs::remove_dir_all(&store).expect("the store is there");
        // Three of these a round, since they are short.
        for _ in 0..3 {
            again.push(publish());
            let mut hash = Command::new("openssl");
            openssl.push(time(hash.args(["dgst", "-sha256"]).arg(&allocated)).as_secs_f64());
        }
    }
    let about = std::fs::metadata(&disk).expect("the image is there");
    let text = format!(
        "A Debian system on a disk of {} GiB of which {} MiB are in use, to a server on the same machine: TLS, tokens, \
         signatures, every chunk hashed again and synced by the server. casync writes plain files. openssl reads a file \
         of nothing but the bytes in use.",
        about.len() >> 30,
        (about.blocks() * 512) >> 20
    );
    report.compare(
        "Publishing",
        &text,
        "rival",
        &[
            Row {
                what: "publish as new, against `casync make`".to_owned(),
                ours: median(new),
                rival: median(casync),
                unit: Unit::Seconds,
                goal: 8.0,
                command: "satchel publish debian.raw --image debian\ncasync make --store STORE INDEX.caibx debian.raw"
                    .to_owned(),
            },
            Row {
                what: "publish unchanged, against `openssl dgst -sha256`".to_owned(),
                ours: median(again),
                rival: median(openssl),
                unit: Unit::Seconds,
                goal: 1.5,
                command: "openssl dgst -sha256 ALLOCATED-BYTES".to_owned(),
            },
        ],
    );
}

/// Copies what a sparse file holds, without its holes, one piece after the other.
fn copy_data(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (File::open(from)?, File::create(to)?);
    let (mut at, mut end) = (0, 0);
    let mut buffer = vec![0; 1 << 20];
    while let Ok(data) = rustix::fs::seek(&from, SeekFrom::Data(at)) {
        let hole = rustix::fs::seek(&from, SeekFrom::Hole(data))?;
        at = data;
        while at < hole {
            let len = usize::try_from(hole - at).unwrap_or(usize::MAX).min(buffer.len());
            from.read_exact_at(&mut buffer[..len], at)?;
            to.write_all_at(&buffer[..len], end)?;
            at += len as u64;
            end += len as u64;
        }
    }
    to.sync_all()
}
