//! Reads a kernel that was chosen, and what goes with it.

use thiserror::Error;

use super::BootPlan;
use super::choice::Choice;
use super::grub::GrubError;
use super::kernel::{KernelError, KernelHeader};
use super::origin::{Origin, Place, shown};
use super::volume::{ReadError, Volume};

/// Bytes of a kernel.
const MAX_KERNEL_BYTES: u64 = 64 << 20;
/// Bytes of all initrds.
const MAX_INITRD_BYTES: u64 = 512 << 20;
/// Bytes of a command line: `COMMAND_LINE_SIZE` of Linux on the PC, without the zero at its end.
const MAX_COMMAND_LINE_BYTES: usize = 2047;

/// What is wrong with a kernel that was chosen.
#[derive(Debug, Error)]
pub enum CandidateError {
    /// GRUB's configuration.
    #[error("the configuration is not understood")]
    Grub(#[source] GrubError),
    /// A file that is needed.
    #[error("{path} is needed")]
    File {
        /// Its path.
        path: String,
        /// What is wrong with it.
        #[source]
        source: ReadError,
    },
    /// The kernel.
    #[error("{path} is not for this machine")]
    Kernel {
        /// Its path.
        path: String,
        /// What is wrong with it.
        #[source]
        source: KernelError,
    },
    /// The command line is too long.
    #[error("its command line has {0} bytes; Linux takes {MAX_COMMAND_LINE_BYTES}")]
    LongCommandLine(usize),
    /// The command line has something else than text.
    #[error("its command line has control characters")]
    CommandLine,
}

/// Reads what was chosen. Its paths are looked for on the volume that the choice was made on, then on the others: what a
/// configuration calls `/boot/vmlinuz` may be `/vmlinuz` to Linux.
pub(super) fn load(volumes: &[Volume], choice: &Choice) -> Result<BootPlan, CandidateError> {
    let command_line = &choice.command_line;
    if command_line.len() > MAX_COMMAND_LINE_BYTES {
        return Err(CandidateError::LongCommandLine(command_line.len()));
    }
    if command_line.chars().any(char::is_control) {
        return Err(CandidateError::CommandLine);
    }
    let mut kernel = Vec::new();
    let volume = append(volumes, choice.volume, &choice.kernel, MAX_KERNEL_BYTES, &mut kernel)?;
    let header = KernelHeader::parse(&kernel)
        .map_err(|source| CandidateError::Kernel { path: shown(&choice.kernel), source })?;
    let mut initrd = Vec::new();
    for path in &choice.initrds {
        let left = MAX_INITRD_BYTES.saturating_sub(initrd.len() as u64);
        append(volumes, volume, path, left, &mut initrd)?;
        initrd.resize(initrd.len().next_multiple_of(4), 0);
    }
    let Some(found) = volumes.get(volume) else { return Err(missing(&choice.kernel)) };
    Ok(BootPlan {
        kernel,
        initrd: (!choice.initrds.is_empty()).then_some(initrd),
        command_line: command_line.clone(),
        origin: Origin {
            place: Place::from(&found.partition),
            config: choice.config.as_deref().map(shown),
            title: choice.title.as_deref().map(shown),
            kernel: shown(&choice.kernel),
            initrds: choice.initrds.iter().map(|path| shown(path)).collect(),
            version: shown(&header.version),
        },
    })
}

/// Puts a file of the first volume that has it behind some bytes; which volume that was.
fn append(
    volumes: &[Volume],
    first: usize,
    path: &str,
    max_bytes: u64,
    bytes: &mut Vec<u8>,
) -> Result<usize, CandidateError> {
    for place in order(volumes, first) {
        let Some(volume) = volumes.get(place) else { continue };
        match volume.append(path, max_bytes, bytes) {
            Ok(()) => return Ok(place),
            Err(ReadError::Missing) => {}
            Err(source) => return Err(CandidateError::File { path: shown(path), source }),
        }
    }
    Err(missing(path))
}

fn missing(path: &str) -> CandidateError {
    CandidateError::File { path: shown(path), source: ReadError::Missing }
}

/// Places of all volumes, one of them first.
pub(super) fn order(volumes: &[Volume], first: usize) -> impl Iterator<Item = usize> {
    std::iter::once(first).chain((0..volumes.len()).filter(move |place| *place != first))
}
