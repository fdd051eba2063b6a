//! What a boot reads of its disk: recorded once with QEMU, and replayed against whatever serves that disk.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::guest::{Machine, MachineOptions};

/// How long an emulated boot may take on a loaded machine.
const BOOT_LIMIT: Duration = Duration::from_secs(900);

/// Size of the blank home disk a recorded guest has, as one that runs from Satchel does.
const HOME_BYTES: u64 = 1 << 30;

const SECTOR_BYTES: u64 = 512;
/// Says on which machine, too: what was recorded on another is recorded anew.
const HEAD: &str =
    "# offset and length of each read of a boot, bytes, in order; of a machine with an agent's port";

/// A read of a disk, as the guest asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRead {
    /// Where it begins, bytes.
    pub offset: u64,
    /// Its length, bytes; above 0.
    pub len: u64,
}

/// The reads of a boot, in the order in which the guest asked.
///
/// As text: a line `OFFSET LENGTH` for each read, in bytes; lines that begin with `#` say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The reads.
    pub reads: Vec<BlockRead>,
}

impl Trace {
    /// Returns what a boot of `image` reads until its guest is up; recorded when it is not yet in the file `IMAGE.reads`
    /// beside the image.
    ///
    /// # Panics
    /// When the guest does not come up, or the file is none.
    #[track_caller]
    pub fn of_boot(image: &Path, options: &MachineOptions) -> Self {
        let path = image.with_extension("reads");
        if let Ok(text) = fs::read_to_string(&path)
            && text.starts_with(HEAD)
        {
            return Self::parse(&text).unwrap_or_else(|line| panic!("{}: {line}", path.display()));
        }
        let trace = Self::record(image, options);
        let partial = path.with_extension("reads.partial");
        fs::write(&partial, trace.to_string())
            .and_then(|()| fs::rename(&partial, &path))
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        trace
    }

    /// Boots `image`, which is not written to, and takes down what is read until the guest is up.
    #[track_caller]
    fn record(image: &Path, options: &MachineOptions) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let home = directory.path().join("home.raw");
        fs::File::create(&home).and_then(|file| file.set_len(HOME_BYTES)).expect("a file can be made");
        let log = directory.path().join("reads");
        let options = MachineOptions { read_log: Some(log.clone()), ..options.clone() };
        let disks: [PathBuf; 2] = [image.to_owned(), home];
        let mut machine = Machine::start(&disks, &options);
        machine.guest().wait_ready(BOOT_LIMIT);
        machine.kill();
        let log = fs::read_to_string(&log).expect("QEMU writes what it was told to trace");
        let trace = Self::of_qemu_log(&log);
        assert!(!trace.reads.is_empty(), "QEMU traced no read; is it built with the trace backend `log`?");
        trace
    }

    /// Takes the reads of the disk that was read most, which is the system's, from QEMU's trace.
    fn of_qemu_log(log: &str) -> Self {
        let mut disks: HashMap<&str, Vec<BlockRead>> = HashMap::new();
        for line in log.lines() {
            let Some((_, fields)) = line.split_once("virtio_blk_handle_read ") else { continue };
            let words: Vec<&str> = fields.split_whitespace().collect();
            let ["vdev", disk, "req", _, "sector", sector, "nsectors", sectors] = words[..] else { continue };
            let (Ok(sector), Ok(sectors)) = (sector.parse::<u64>(), sectors.parse::<u64>()) else { continue };
            if sectors > 0 {
                let read = BlockRead { offset: sector * SECTOR_BYTES, len: sectors * SECTOR_BYTES };
                disks.entry(disk).or_default().push(read);
            }
        }
        let reads = disks.into_values().max_by_key(|reads| total(reads));
        Self { reads: reads.unwrap_or_default() }
    }

    /// Reads the text form.
    ///
    /// # Errors
    /// Which line is no read.
    pub fn parse(text: &str) -> Result<Self, String> {
        let read = |line: &str| {
            let (offset, len) = line.split_once(' ')?;
            let read = BlockRead { offset: offset.parse().ok()?, len: len.parse().ok()? };
            (read.len > 0 && read.offset.checked_add(read.len).is_some()).then_some(read)
        };
        let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty());
        let reads = lines.map(|(at, line)| {
            read(line).ok_or_else(|| format!("line {} is no `offset length`: {line:?}", at + 1))
        });
        Ok(Self { reads: reads.collect::<Result<_, _>>()? })
    }

    /// Returns how much is read, bytes; what is read twice counts twice.
    pub fn bytes(&self) -> u64 {
        total(&self.reads)
    }
}

impl Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEAD}")?;
        self.reads.iter().try_for_each(|read| writeln!(f, "{} {}", read.offset, read.len))
    }
}

fn total(reads: &[BlockRead]) -> u64 {
    reads.iter().map(|read| read.len).sum()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    #[test]
    fn the_text_form_keeps_every_read_in_order() {
        let trace = Trace {
            reads: [(512, 4096), (0, 512), (512, 4096)].map(|(offset, len)| BlockRead { offset, len }).into(),
        };
        assert_eq!(Trace::parse(&trace.to_string()), Ok(trace));
        for bad in ["1", "1 0", "x 1", "1 2 3", "18446744073709551615 1"] {
            assert!(Trace::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_system_disk_is_told_from_the_other() {
        let log = "virtio_blk_handle_read vdev 0x1 req 0x9 sector 0 nsectors 1\n\
                   12@3.4:virtio_blk_handle_read vdev 0x2 req 0x9 sector 8 nsectors 16\n\
                   qemu-system-x86_64: something else\n\
                   virtio_blk_handle_read vdev 0x2 req 0x8 sector 0 nsectors 8\n";
        let mut text = String::new();
        for read in Trace::of_qemu_log(log).reads {
            let _ = write!(text, "{} {};", read.offset, read.len);
        }
        assert_eq!(text, "4096 8192;0 4096;");
    }
}
