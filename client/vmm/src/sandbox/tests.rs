use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use super::*;
use crate::virtio::{Role, Worker};

/// Names, to the child of a test, what it is to do.
const TASK: &str = "SATCHEL_VMM_SANDBOX_TASK";

/// Runs a task of [`confined`] in a process of its own, which a filter may end.
fn run(task: &str) -> ExitStatus {
    let program = std::env::current_exe().unwrap();
    Command::new(program)
        .args(["sandbox::tests::confined", "--exact", "--ignored", "--test-threads=1"])
        .env(TASK, task)
        .output()
        .unwrap()
        .status
}

fn was_ended_by_a_filter(status: ExitStatus) -> bool {
    status.signal() == Some(libc::SIGSYS)
}

/// Memory that the allocator has at the top of its heap when all is free again, in pieces that it does not keep apart.
fn allocate_and_free() {
    let pieces: Vec<Vec<u8>> = (0..10_000).map(|_| vec![1; 200]).collect();
    pieces.into_iter().rev().for_each(drop);
}

/// In a thread of this sort, does what none may: opens a file, makes a socket, starts a program.
fn trespass(thread: Thread, what: &str) {
    let what = what.to_owned();
    let trespassing = std::thread::spawn(move || {
        confine_thread(thread).unwrap();
        match what.as_str() {
            "memory" => allocate_and_free(),
            // Landlock says EACCES: so it is the filter that answers.
            "open" => {
                let refused = std::fs::File::open("/etc/hostname").unwrap_err();
                assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
            }
            // By descriptor, which tells of what is open already, the console does; by path, nobody.
            "stat" => drop(std::fs::metadata("/etc/hostname")),
            "lstat" => drop(rustix::fs::lstat("/etc/hostname")),
            "socket" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
            "fork" => drop(Command::new("/bin/true").spawn()),
            "kill" => {
                let parent = rustix::process::getppid().unwrap();
                let _ = rustix::process::kill_process(parent, rustix::process::Signal::CONT);
            }
            "disk" => drop(rustix::fs::fsync(io::stderr())),
            "space" => drop(rustix::fs::fallocate(io::stderr(), rustix::fs::FallocateFlags::empty(), 0, 1)),
            "receive" => {
                let _ = rustix::net::recv(io::stderr(), &mut [0_u8; 1], rustix::net::RecvFlags::empty());
            }
            "kvm" => drop(rustix::io::ioctl_fionread(io::stderr())),
            "wait its turn" => schedule(libc::SCHED_BATCH),
            "come before others" => schedule(libc::SCHED_FIFO),
            "nothing" => {}
            other => panic!("no such task: {other}"),
        }
    });
    trespassing.join().unwrap();
}

/// Has the calling thread scheduled so.
fn schedule(policy: libc::c_int) {
    let parameters = libc::sched_param { sched_priority: i32::from(policy == libc::SCHED_FIFO) };
    // SAFETY: the kernel reads one `sched_param`, which outlives the call; 0 is the calling thread.
    #[expect(unsafe_code, reason = "no safe wrapper of sched_setscheduler(2) is among the libraries")]
    let set = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const parameters) };
    assert_eq!(set, 0);
}

#[test]
#[ignore = "runs in a process of its own, started by the other tests"]
fn confined() {
    let Ok(task) = std::env::var(TASK) else { return };
    let (thread, what) = task.split_once(' ').unwrap();
    let thread = match thread {
        "main" => Thread::Main,
        "processor" => Thread::Processor,
        "block" => Thread::Device(Role::Block),
        "network" => Thread::Device(Role::Network),
        "random" => Thread::Device(Role::Random),
        "console" => Thread::Device(Role::Console),
        "balloon" => Thread::Device(Role::Balloon),
        "vsock" => Thread::Device(Role::Vsock),
        "serial" => Thread::Device(Role::Serial),
        "paths" => {
            // Without seccomp, Landlock alone is to keep paths away.
            let said = paths::shut_out().unwrap();
            assert!(said.starts_with("no Landlock") || std::fs::File::open("/etc/hostname").is_err());
            return;
        }
        "descriptors" => {
            let files: Vec<_> = (0..5).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
            let numbers: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
            std::mem::forget(files);
            close_others(&[numbers[3], numbers[1]]).unwrap();
            let is_open = |number: &RawFd| std::fs::exists(format!("/proc/self/fd/{number}")).unwrap();
            let open: Vec<bool> = numbers.iter().map(is_open).collect();
            assert_eq!(open, [false, true, false, true, false]);
            return;
        }
        "inherit" => {
            // As when a driver starts its device: the thread of a processor has that of a disk started.
            let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
            confine_process(Mode::Enforce).unwrap();
            let started = std::thread::spawn(move || {
                confine_thread(Thread::Processor).unwrap();
                let (done, read) = std::sync::mpsc::channel();
                let worker = Worker::start(Role::Block, move |_| {
                    use std::os::unix::fs::FileExt;
                    let _ = done.send(file.read_at(&mut [0; 8], 0).is_ok());
                });
                let was_read = read.recv().unwrap();
                drop(worker);
                was_read
            });
            assert!(started.join().unwrap());
            return;
        }
        other => panic!("no such thread: {other}"),
    };
    confine_process(Mode::Enforce).unwrap();
    trespass(thread, what);
}

const THREADS: [&str; 9] =
    ["main", "processor", "block", "network", "random", "console", "balloon", "vsock", "serial"];

#[test]
fn a_thread_that_keeps_to_its_work_lives() {
    for thread in THREADS {
        for what in ["nothing", "memory"] {
            let status = run(&format!("{thread} {what}"));
            assert!(status.success(), "{thread} {what}: {status}");
        }
    }
}

#[test]
fn no_thread_opens_a_file_makes_a_socket_starts_a_program_or_signals_another() {
    for thread in THREADS {
        let status = run(&format!("{thread} open"));
        assert!(status.success(), "{thread} open: {status}");
        for what in ["stat", "lstat", "socket", "fork", "kill", "kvm", "come before others"] {
            let status = run(&format!("{thread} {what}"));
            assert!(was_ended_by_a_filter(status), "{thread} {what}: {status}");
        }
    }
}

#[test]
fn each_thread_is_kept_from_the_work_of_others() {
    for thread in ["processor", "network", "random", "console", "balloon", "vsock", "serial"] {
        for what in ["disk", "space"] {
            let status = run(&format!("{thread} {what}"));
            assert!(was_ended_by_a_filter(status), "{thread} {what}: {status}");
        }
    }
    assert!(run("block wait its turn").success());
    for thread in ["processor", "network", "random", "console", "balloon", "vsock", "serial"] {
        let status = run(&format!("{thread} wait its turn"));
        assert!(was_ended_by_a_filter(status), "{thread}: {status}");
    }
    for thread in ["processor", "block", "random", "balloon", "serial"] {
        let status = run(&format!("{thread} receive"));
        assert!(was_ended_by_a_filter(status), "{thread}: {status}");
    }
}

#[test]
fn no_path_can_be_opened() {
    assert!(run("paths -").success());
}

#[test]
fn a_process_that_is_not_confined_starts_threads_all_the_same() {
    confine_thread(Thread::Processor).unwrap();
    assert_eq!(confine_process(Mode::Off).unwrap(), "none");
}

#[test]
fn a_device_that_a_processor_starts_may_do_its_own_work() {
    assert!(run("inherit -").success());
}

#[test]
fn only_what_is_kept_stays_open() {
    assert!(run("descriptors -").success());
}
