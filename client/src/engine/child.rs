//! How the programs of an engine are started: what they inherit, and whose end ends them.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::Signal;

/// Lets a process to be started end when this one does, however this one ends: a machine without its supervisor, or
/// a mount without its machine, is of no use to anyone. It is told so as a host that shuts down tells everyone.
pub(crate) fn die_with_parent(command: &mut Command) -> &mut Command {
    end_with_parent(command, Signal::TERM)
}

/// The same for a program that would end at once when the session or the host does, which tells every process: its guest is
/// being shut down then, and until that is over it has to go on. Only the end of this process ends it.
pub(crate) fn die_only_with_parent(command: &mut Command) -> &mut Command {
    keep_signals_off(end_with_parent(command, Signal::KILL))
}

#[expect(unsafe_code, reason = "only the process itself can ask for this, between fork and exec")]
fn end_with_parent(command: &mut Command, signal: Signal) -> &mut Command {
    let ask = move || rustix::process::set_parent_process_death_signal(Some(signal)).map_err(io::Error::from);
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; `prctl` is one, and nothing is
    // allocated or locked.
    unsafe { command.pre_exec(ask) }
}

/// Blocks SIGTERM and SIGHUP for a program to be started, which stay so unless it says otherwise.
#[expect(unsafe_code, reason = "only the process itself can block its signals, between fork and exec")]
fn keep_signals_off(command: &mut Command) -> &mut Command {
    let block = || {
        // SAFETY: a signal set is plain integers, for which zeros are a value.
        let mut signals: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: these read and write the set they are given, which is ours, and the mask of this thread.
        let status = unsafe {
            libc::sigemptyset(&raw mut signals);
            libc::sigaddset(&raw mut signals, libc::SIGTERM);
            libc::sigaddset(&raw mut signals, libc::SIGHUP);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut())
        };
        match status {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; these are, and nothing is allocated or locked.
    unsafe { command.pre_exec(block) }
}

/// Lets a command inherit descriptors under the numbers they have here.
#[expect(unsafe_code, reason = "between fork and exec, only the process itself can keep them open")]
pub(crate) fn give(command: &mut Command, descriptors: Vec<OwnedFd>) {
    let keep = move || {
        for descriptor in &descriptors {
            rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; `fcntl` is one, and nothing is allocated or
    // locked.
    unsafe { command.pre_exec(keep) };
}
