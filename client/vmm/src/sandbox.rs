//! What confines the process: it holds a hostile guest, and must be worth nothing to one that breaks out.
//!
//! In this order: every descriptor closed that was not given; no new privileges, no core dumps and no tracing by others; no
//! path reachable (Landlock, as far as the kernel has it); and for each thread the system calls it needs and no others
//! (seccomp). `docs/threat-model.md` says against what.

use std::io;
use std::os::fd::RawFd;
use std::sync::OnceLock;

mod filters;
mod paths;

use filters::Filters;

pub use filters::Thread;

/// How strictly system calls are judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// One that is not allowed ends the process.
    #[default]
    Enforce,
    /// One that is not allowed is logged by the kernel, for whoever looks for what a filter lacks.
    Log,
    /// Nothing is confined.
    Off,
}

impl std::str::FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "enforce" => Ok(Mode::Enforce),
            "log" => Ok(Mode::Log),
            "off" => Ok(Mode::Off),
            _ => Err(UnknownMode),
        }
    }
}

/// A word that is no mode.
#[derive(Debug, thiserror::Error)]
#[error("the sandbox is `enforce`, `log` or `off`")]
pub struct UnknownMode;

/// Why the process cannot be confined. It does not run a guest then.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The kernel refuses.
    #[error("cannot {action}")]
    Kernel {
        /// What was being done.
        action: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// A filter cannot be made.
    #[error("the filter of system calls cannot be made")]
    Filter(#[source] seccompiler::BackendError),
    /// A filter cannot be put on.
    #[error("the filter of system calls cannot be put on")]
    Install(#[source] seccompiler::Error),
    /// Landlock refuses.
    #[error("the file system cannot be shut out")]
    Landlock(#[source] landlock::RulesetError),
}

fn kernel_cannot(action: &'static str) -> impl FnOnce(rustix::io::Errno) -> SandboxError {
    move |error| SandboxError::Kernel { action, source: error.into() }
}

/// The filters of all threads, once the process is confined.
static FILTERS: OnceLock<Filters> = OnceLock::new();

/// The most descriptors the process may have.
const MAX_DESCRIPTORS: u64 = 1024;

/// Confines the process and its first thread; threads that start later confine themselves by [`confine_thread`]. Answers in
/// words what confines it.
///
/// # Errors
/// [`SandboxError`].
pub fn confine_process(mode: Mode) -> Result<String, SandboxError> {
    if mode == Mode::Off {
        return Ok("none".to_owned());
    }
    keep_to_one_arena();
    rustix::thread::set_no_new_privs(true).map_err(kernel_cannot("give up new privileges"))?;
    let dumpable = rustix::process::DumpableBehavior::NotDumpable;
    rustix::process::set_dumpable_behavior(dumpable).map_err(kernel_cannot("forbid dumps"))?;
    limit(rustix::process::Resource::Core, 0)?;
    limit(rustix::process::Resource::Nofile, MAX_DESCRIPTORS)?;
    let paths = paths::shut_out()?;
    let filters = FILTERS.get_or_init(|| Filters::new(mode));
    filters.install(Thread::Main)?;
    crate::virtio::start_threads_from_here()
        .map_err(|source| SandboxError::Kernel { action: "start a thread", source })?;
    let calls = if mode == Mode::Enforce { "seccomp" } else { "seccomp (only logging)" };
    Ok(format!("{calls}, {paths}"))
}

/// Confines a thread to what it is for. Nothing happens in a process that is not confined.
///
/// # Errors
/// [`SandboxError`].
pub fn confine_thread(thread: Thread) -> Result<(), SandboxError> {
    match FILTERS.get() {
        Some(filters) => filters.install(thread),
        None => Ok(()),
    }
}

/// Keeps the C library's allocator from opening files: to count the host's processors, when a thread first asks for memory and
/// there may be more than one arena; and to learn whether memory is overcommitted, before it gives back what the top of any
/// but the first arena holds. So there is only the first, which nobody waits for long, and none that is there already gives
/// anything back.
fn keep_to_one_arena() {
    // SAFETY: it sets numbers in the allocator, which takes them at any time.
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "a function of the C library")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
    }
}

fn limit(resource: rustix::process::Resource, value: u64) -> Result<(), SandboxError> {
    let now = rustix::process::getrlimit(resource);
    let value = value.min(now.maximum.unwrap_or(u64::MAX));
    let limit = rustix::process::Rlimit { current: Some(value), maximum: Some(value) };
    rustix::process::setrlimit(resource, limit).map_err(kernel_cannot("limit resources"))
}

/// Closes every descriptor but the standard ones and those that are kept. To be done before anything else is opened.
///
/// # Errors
/// The kernel refuses.
pub fn close_others(kept: &[RawFd]) -> Result<(), SandboxError> {
    let mut kept: Vec<u32> =
        kept.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd > 2).collect();
    kept.sort_unstable();
    let mut first = 3;
    for last in kept.iter().map(|fd| fd - 1).chain([u32::MAX]) {
        if first <= last {
            // SAFETY: nothing in this process uses the descriptors in between: all that are in use are in `kept`.
            #[expect(unsafe_code, reason = "the kernel closes whole ranges only here")]
            let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            if closed != 0 {
                let source = io::Error::last_os_error();
                return Err(SandboxError::Kernel { action: "close descriptors", source });
            }
        }
        first = last.saturating_add(2);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
