//! Which system calls each thread may make.
//!
//! A thread gets the filter of whoever starts it and its own on top: the first thread's allows what any of them needs.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::{Mode, SandboxError};
use crate::virtio::Role;

/// A thread of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Thread {
    /// The first: builds the machine, then answers whoever runs it.
    Main,
    /// Runs a processor.
    Processor,
    /// Serves a device.
    Device(Role),
}

/// `KVM_RUN`: `_IO(KVMIO, 0x80)` of linux/kvm.h.
const KVM_RUN: u64 = 0xae80;
/// `KVM_KVMCLOCK_CTRL`: `_IO(KVMIO, 0xad)`.
const KVM_KVMCLOCK_CTRL: u64 = 0xaead;
/// `KVMIO`: all of KVM's requests have this in bits 8 to 15.
const KVM_IO: u64 = 0xae;

/// What is answered with an error by a filter of its own: it does not happen, and whoever tries goes on. `clone`, which is used
/// instead of `clone3`, has flags that can be judged. A library that would read a setting of the host does without.
const ANSWERED: [(&[c_long], i32); 2] =
    [(&[libc::SYS_clone3], libc::ENOSYS), (&[libc::SYS_open, libc::SYS_openat], libc::EPERM)];

/// What every thread does: lives, waits, keeps memory, says what it has to say, ends.
const COMMON: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_seccomp,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Moves a disk's bytes, and sees whether that made it wait.
const DISK: &[c_long] = &[
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_getrusage,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_timerfd_settime,
];

/// Moves bytes over a socket that is there.
const SOCKETS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
];

/// Makes events, and one more descriptor of what is open: what a driver that starts its device comes down to.
const EVENTS: &[c_long] = &[libc::SYS_eventfd2];

/// What only the first thread does. Of a file it is only asked by its descriptor: Landlock keeps nobody from asking by path.
const MAIN: &[c_long] = &[
    libc::SYS_dup3,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_rt_sigaction,
    libc::SYS_sched_getparam,
    libc::SYS_sysinfo,
];

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// The filters of all threads.
pub(super) struct Filters {
    mode: Mode,
}

impl Filters {
    pub(super) fn new(mode: Mode) -> Filters {
        Filters { mode }
    }

    /// Puts a thread's filter on for good.
    pub(super) fn install(&self, thread: Thread) -> Result<(), SandboxError> {
        if thread == Thread::Main {
            for (calls, error) in ANSWERED {
                let answer = answer(calls, error).map_err(SandboxError::Filter)?;
                apply_filter(&answer).map_err(SandboxError::Install)?;
            }
        }
        let program = self.program(thread).map_err(SandboxError::Filter)?;
        apply_filter(&program).map_err(SandboxError::Install)
    }

    fn program(&self, thread: Thread) -> Result<BpfProgram, seccompiler::BackendError> {
        let refused = match self.mode {
            Mode::Enforce => SeccompAction::KillProcess,
            Mode::Log | Mode::Off => SeccompAction::Log,
        };
        SeccompFilter::new(rules(thread)?, refused, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
    }
}

/// Of what several filters say the sternest counts: an error is sterner than leave, and death than an error.
fn answer(calls: &[c_long], error: i32) -> Result<BpfProgram, seccompiler::BackendError> {
    let rules: Rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let refused = SeccompAction::Errno(error.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, refused, TargetArch::x86_64)?.try_into()
}

fn rules(thread: Thread) -> Result<Rules, seccompiler::BackendError> {
    let mut rules = Rules::new();
    let mut allow = |calls: &[c_long]| {
        for call in calls {
            rules.insert(*call, Vec::new());
        }
    };
    allow(COMMON);
    ANSWERED.iter().for_each(|(calls, _)| allow(calls));
    match thread {
        Thread::Main => [DISK, SOCKETS, EVENTS, MAIN].into_iter().for_each(&mut allow),
        Thread::Processor => allow(EVENTS),
        Thread::Device(Role::Block) => allow(DISK),
        Thread::Device(Role::Console) => {
            // What is at the other end of a descriptor.
            [SOCKETS, EVENTS, &[libc::SYS_fstat]].into_iter().for_each(&mut allow);
        }
        Thread::Device(Role::Network | Role::Vsock) => {
            [SOCKETS, EVENTS].into_iter().for_each(&mut allow);
        }
        Thread::Device(Role::Balloon | Role::Random | Role::Serial) => {}
    }
    // Memory, but none that can be run.
    let not_to_run = SeccompRule::new(vec![masked(2, libc::PROT_EXEC.unsigned_abs().into(), 0)?])?;
    rules.insert(libc::SYS_mmap, vec![not_to_run.clone()]);
    rules.insert(libc::SYS_mprotect, vec![not_to_run]);
    // Another descriptor of what is open, and whether it blocks; but no signals by way of it.
    let mut may = vec![SeccompRule::new(vec![
        equals(1, libc::F_SETFL.unsigned_abs().into())?,
        masked(2, libc::O_ASYNC.unsigned_abs().into(), 0)?,
    ])?];
    for command in [libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_GETFL] {
        may.push(SeccompRule::new(vec![equals(1, command.unsigned_abs().into())?])?);
    }
    rules.insert(libc::SYS_fcntl, may);
    // To this process itself: a kick, and what an abort comes to.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![equals(0, own)?])?]);
    // A thread's name, and what the allocator calls its memory.
    let name = SeccompRule::new(vec![equals(0, libc::PR_SET_NAME.unsigned_abs().into())?])?;
    let memory_name = SeccompRule::new(vec![equals(0, libc::PR_SET_VMA.unsigned_abs().into())?])?;
    let filter = SeccompRule::new(vec![equals(0, libc::PR_SET_SECCOMP.unsigned_abs().into())?])?;
    let privileges = SeccompRule::new(vec![equals(0, libc::PR_SET_NO_NEW_PRIVS.unsigned_abs().into())?])?;
    rules.insert(libc::SYS_prctl, vec![name, memory_name, filter, privileges]);
    if matches!(thread, Thread::Main | Thread::Device(Role::Block)) {
        // Whether it waits its turn when it is woken; nothing that comes before other threads.
        let policies = [libc::SCHED_OTHER, libc::SCHED_BATCH]
            .map(|policy| SeccompRule::new(vec![equals(0, 0)?, equals(1, policy.unsigned_abs().into())?]));
        rules.insert(libc::SYS_sched_setscheduler, policies.into_iter().collect::<Result<_, _>>()?);
        rules.insert(libc::SYS_sched_getscheduler, Vec::new());
    }
    if thread == Thread::Main {
        // Threads, but no processes.
        let thread_flag = libc::CLONE_THREAD.unsigned_abs().into();
        rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![masked(0, thread_flag, thread_flag)?])?]);
    }
    match thread {
        Thread::Main => {
            // All of KVM; a socket that is not to block; and the terminal as it was before.
            let kvm = SeccompRule::new(vec![masked(1, 0xff00, KVM_IO << 8)?])?;
            let mut allowed = vec![kvm];
            for request in [libc::FIONBIO, libc::TCGETS, libc::TCSETS, libc::TCGETS2, libc::TCSETS2] {
                allowed.push(SeccompRule::new(vec![equals(1, request)?])?);
            }
            rules.insert(libc::SYS_ioctl, allowed);
        }
        Thread::Processor => {
            let requests = [KVM_RUN, KVM_KVMCLOCK_CTRL];
            let rules_of = |request| SeccompRule::new(vec![equals(1, request)?]);
            rules.insert(libc::SYS_ioctl, requests.map(rules_of).into_iter().collect::<Result<_, _>>()?);
        }
        Thread::Device(_) => {}
    }
    Ok(rules)
}

fn equals(argument: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value)
}

fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filter_can_be_made() {
        let roles = [
            Role::Block,
            Role::Network,
            Role::Random,
            Role::Console,
            Role::Balloon,
            Role::Vsock,
            Role::Serial,
        ];
        let threads = [Thread::Main, Thread::Processor].into_iter().chain(roles.map(Thread::Device));
        for thread in threads {
            assert!(!Filters::new(Mode::Enforce).program(thread).unwrap().is_empty());
        }
    }

    #[test]
    fn no_thread_may_do_more_than_the_first() {
        let main = rules(Thread::Main).unwrap();
        for role in [
            Role::Block,
            Role::Network,
            Role::Random,
            Role::Console,
            Role::Balloon,
            Role::Vsock,
            Role::Serial,
        ] {
            for call in rules(Thread::Device(role)).unwrap().keys() {
                assert!(main.contains_key(call), "{role:?}: {call}");
            }
        }
    }
}
