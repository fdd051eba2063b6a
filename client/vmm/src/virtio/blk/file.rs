//! A disk's file: reads straight into the guest's memory and writes straight from it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, GuestMemoryBackend, VolatileSlice};

use super::request::{BLOCK_BYTES, DiskRange};
use crate::virtio::GuestMemory;
use crate::virtio::segments::Segments;

/// Buffers of one system call: `IOV_MAX`.
const MAX_BUFFERS: usize = 1024;
/// Zeros written at once where a file system cannot make them.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    FromFile,
    ToFile,
}

/// Reads into buffers.
///
/// # Errors
/// What the file says; `UnexpectedEof` when it is shorter than it was.
pub(super) fn read(file: &File, offset: u64, into: &Segments, memory: &GuestMemory) -> io::Result<()> {
    transfer(file, offset, into, memory, Direction::FromFile)
}

/// Writes buffers.
///
/// # Errors
/// What the file says.
pub(super) fn write(file: &File, offset: u64, from: &Segments, memory: &GuestMemory) -> io::Result<()> {
    transfer(file, offset, from, memory, Direction::ToFile)
}

fn transfer(
    file: &File,
    offset: u64,
    segments: &Segments,
    memory: &GuestMemory,
    direction: Direction,
) -> io::Result<()> {
    let mut slices = Vec::with_capacity(segments.list().len());
    for segment in segments.list() {
        slices.push(memory.get_slice(segment.address, segment.bytes as usize).map_err(io::Error::other)?);
    }
    let mut offset = offset;
    for batch in slices.chunks(MAX_BUFFERS) {
        offset += transfer_batch(file, offset, batch, direction)?;
    }
    Ok(())
}

/// Moves all bytes of some buffers, however many calls it takes; answers how many they were.
fn transfer_batch<B: BitmapSlice>(
    file: &File,
    offset: u64,
    slices: &[VolatileSlice<'_, B>],
    direction: Direction,
) -> io::Result<u64> {
    let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let mut buffers: Vec<libc::iovec> = guards
        .iter()
        .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
        .collect();
    let total: u64 = buffers.iter().map(|buffer| buffer.iov_len as u64).sum();
    let mut done = 0;
    let mut first = 0;
    while done < total {
        let at = i64::try_from(offset + done).map_err(io::Error::other)?;
        let left = &buffers[first..];
        let count = i32::try_from(left.len()).map_err(io::Error::other)?;
        // SAFETY: each buffer is a range of the guest's memory, which `guards` keep mapped, and of no object of this
        // program: the kernel may read and write it as the guest may at the same time.
        #[expect(unsafe_code, reason = "the kernel is to move bytes without a copy of ours")]
        let moved = unsafe {
            match direction {
                Direction::FromFile => libc::preadv64(file.as_raw_fd(), left.as_ptr(), count, at),
                Direction::ToFile => libc::pwritev64(file.as_raw_fd(), left.as_ptr(), count, at),
            }
        };
        let moved = match usize::try_from(moved) {
            Ok(0) if direction == Direction::FromFile => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(moved) => moved,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
        };
        done += moved as u64;
        // What was moved is behind the first buffer that is not done.
        let mut moved = moved;
        while let Some(buffer) = buffers.get_mut(first)
            && moved > 0
        {
            let step = moved.min(buffer.iov_len);
            buffer.iov_base = buffer.iov_base.wrapping_byte_add(step);
            buffer.iov_len -= step;
            moved -= step;
            if buffer.iov_len == 0 {
                first += 1;
            }
        }
    }
    Ok(total)
}

/// Reads the block that begins at an offset, and forgets it: whoever serves the file has it at hand then.
///
/// # Errors
/// What the file says.
pub(super) fn read_block(file: &File, offset: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    file.read_at(&mut [0; BLOCK_BYTES], offset).map(drop)
}

/// Makes all that was written last.
///
/// # Errors
/// What the file says: then nobody knows what did last.
pub(super) fn flush(file: &File) -> io::Result<()> {
    file.sync_data()
}

/// Forgets a range: it may read as anything, and reads as zero here.
///
/// # Errors
/// What the file says. That it cannot is no error.
pub(super) fn discard(file: &File, range: DiskRange) -> io::Result<()> {
    match punch(file, range) {
        Err(error) if is_unsupported(&error) => Ok(()),
        result => result,
    }
}

/// Makes a range zero.
///
/// # Errors
/// What the file says; `Interrupted` when it takes long and is not wanted any more.
pub(super) fn write_zeroes(
    file: &File,
    range: DiskRange,
    unmap: bool,
    stopping: &AtomicBool,
) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    if range.bytes == 0 {
        return Ok(());
    }
    let made = match unmap {
        true => punch(file, range),
        false => {
            let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(file, flags, range.offset, range.bytes).map_err(io::Error::from)
        }
    };
    match made {
        Err(error) if is_unsupported(&error) => {
            let mut at = range.offset;
            let end = range.offset + range.bytes;
            while at < end {
                if stopping.load(Ordering::SeqCst) {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                let step = usize::try_from(end - at).unwrap_or(usize::MAX).min(ZEROS.len());
                file.write_all_at(&ZEROS[..step], at)?;
                at += step as u64;
            }
            Ok(())
        }
        result => result,
    }
}

fn punch(file: &File, range: DiskRange) -> io::Result<()> {
    if range.bytes == 0 {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, range.offset, range.bytes)?)
}

/// Whether a range cannot be cut here. All ranges lie within the file, so that one that makes no sense to it is no whole number
/// of its blocks: those of a block device may be longer than a sector (`blkdev_fallocate` of Linux).
fn is_unsupported(error: &io::Error) -> bool {
    [Errno::OPNOTSUPP, Errno::NOSYS, Errno::NODEV, Errno::INVAL]
        .map(Errno::raw_os_error)
        .map(Some)
        .contains(&error.raw_os_error())
}

/// Writes bytes into buffers, as many as both have.
pub(super) fn fill(segments: &Segments, bytes: &[u8], memory: &GuestMemory) -> u64 {
    let mut rest = bytes;
    for segment in segments.list() {
        let (part, after) = rest.split_at(rest.len().min(segment.bytes as usize));
        if memory.write_slice(part, segment.address).is_err() {
            break;
        }
        rest = after;
    }
    (bytes.len() - rest.len()) as u64
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

    use super::*;

    type Change = fn(&File, DiskRange) -> io::Result<()>;

    const DISCARD: Change = discard;
    const WRITE_ZEROES: Change = |file, range| write_zeroes(file, range, false, &AtomicBool::new(false));
    const WRITE_ZEROES_OR_DISCARD: Change =
        |file, range| write_zeroes(file, range, true, &AtomicBool::new(false));

    /// Changes the second sector of three where `fallocate` fails so; the error, and what the sector holds then.
    fn change(change: Change, fallocate: Errno) -> (Option<i32>, u8) {
        let changed = move || {
            let error = SeccompAction::Errno(fallocate.raw_os_error().unsigned_abs());
            let calls = [(libc::SYS_fallocate, Vec::new())].into();
            let filter = SeccompFilter::new(calls, SeccompAction::Allow, error, TargetArch::x86_64).unwrap();
            let program: BpfProgram = filter.try_into().unwrap();
            apply_filter(&program).unwrap();
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&[7; 1536], 0).unwrap();
            let changed = change(&file, DiskRange { offset: 512, bytes: 512 });
            let mut content = [0; 1536];
            file.read_exact_at(&mut content, 0).unwrap();
            assert_eq!((&content[..512], &content[1024..]), (&[7; 512][..], &[7; 512][..]));
            assert!(content[512..1024].iter().all(|byte| *byte == content[512]));
            (changed.err().and_then(|error| error.raw_os_error()), content[512])
        };
        // A filter is put on a thread for good.
        std::thread::spawn(changed).join().unwrap()
    }

    #[test]
    fn where_a_range_cannot_be_cut_zeros_are_written_and_nothing_is_discarded() {
        for error in [Errno::OPNOTSUPP, Errno::NOSYS, Errno::NODEV, Errno::INVAL] {
            assert_eq!(change(DISCARD, error), (None, 7), "{error}");
            assert_eq!(change(WRITE_ZEROES, error), (None, 0), "{error}");
            assert_eq!(change(WRITE_ZEROES_OR_DISCARD, error), (None, 0), "{error}");
        }
    }

    #[test]
    fn what_fails_otherwise_is_told() {
        for way in [DISCARD, WRITE_ZEROES, WRITE_ZEROES_OR_DISCARD] {
            for error in [Errno::IO, Errno::NOSPC] {
                assert_eq!(change(way, error), (Some(error.raw_os_error()), 7), "{error}");
            }
        }
    }
}
