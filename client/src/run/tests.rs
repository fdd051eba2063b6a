use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt;

use chunk_format::SystemMode;

use super::*;
use crate::engine::kvm::{Programs, SerialLine};
use crate::sync::tests::new_desktop;
use crate::volume::Volume;

/// A run whose disks are served by a script of a shell.
fn served_by(script: &str, desktop_directory: &Path) -> RunRequest {
    RunRequest {
        desktop: "work".to_owned(),
        desktop_directory: desktop_directory.to_owned(),
        mount_command: ["sh", "-c", script].map(std::ffi::OsString::from).to_vec(),
        engine: Engine::Qemu,
        memory_mib: 128,
        cpus: 1,
        display: Display::None,
        console: ConsoleOutput::Stdout,
        sync: false,
        good_after: Duration::ZERO,
    }
}

/// Starts the script and stops it; what it said, and how that went.
async fn stopped(script: &str) -> (Vec<String>, Result<(), RunError>) {
    let directory = tempfile::tempdir().unwrap();
    let said = RefCell::new(Vec::new());
    let events = |event| match event {
        Event::Mount(line) => said.borrow_mut().push(line),
        event => panic!("{event:?}"),
    };
    let mut mount = Mount::start(&served_by(script, directory.path()), &events).await.unwrap();
    let stopped =
        mount.stop(directory.path(), UNMOUNT_TIMEOUT, &mut EndSignals::watch().unwrap(), &events).await;
    (said.into_inner(), stopped)
}

#[tokio::test]
async fn what_serves_the_disks_is_heard_to_its_end() {
    let waits = "trap 'echo unmounting >&2; exit 0' TERM; echo mounted; while :; do sleep 0.01; done";
    let (said, stopped) = stopped(waits).await;
    assert_eq!(said, ["unmounting"]);
    assert!(stopped.is_ok());
}

#[tokio::test]
async fn a_flush_that_fails_at_the_end_fails_the_run() {
    let fails = "trap 'echo it is lost >&2; exit 1' TERM; echo mounted; while :; do sleep 0.01; done";
    let (said, stopped) = stopped(fails).await;
    assert_eq!(said, ["it is lost"]);
    assert!(matches!(stopped, Err(RunError::MountFailed { .. })), "{stopped:?}");
}

/// Makes a program that is a script of a shell.
fn program(path: PathBuf, script: &str) -> PathBuf {
    std::fs::write(&path, format!("#!/bin/bash\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    path
}

/// Machines: one that shuts down when it is told to, one that hangs, and one that cannot be made.
const OBEYS: &str = r#"
while [[ $# -gt 0 ]]; do
    [[ $1 != --control ]] || control=${2#fd=}
    shift
done
while read -r line <&"$control"; do
    [[ $line != *power-button* ]] || exit 0
done
"#;
const HANGS: &str = "exec sleep 600";
const CANNOT_BE: &str = "echo 'there is no memory' >&2; exit 5";

/// Serves disks until it is told to end, or until they are pulled out.
const SERVES: &str = r#"
trap 'exit 0' TERM
: >"$0/system.raw"
echo mounted
while [ ! -e "$0/../pulled" ]; do sleep 0.01; done
exit 1
"#;

/// What a person waits for, and does then.
type Act<'a> = (fn(&Event) -> bool, &'a dyn Fn());

/// A desktop whose disks are served, to be run on machines that are scripts of a shell.
struct Stage {
    directory: tempfile::TempDir,
    golden: ManifestId,
    request: RunRequest,
    mount: Mount,
    signals: EndSignals,
}

impl Stage {
    async fn new(good_after: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (_, volume, _) = new_desktop(SystemMode::Keep);
        for name in volume.list().unwrap() {
            std::fs::write(directory.path().join(&name), volume.read(&name, 1 << 20).unwrap()).unwrap();
        }
        let golden = DesktopStore::read_only(Arc::new(volume)).unwrap().record().base;
        let request = RunRequest { engine: Engine::Kvm, good_after, ..served_by(SERVES, directory.path()) };
        let mount = Mount::start(&request, &|_| {}).await.unwrap();
        Self { directory, golden, request, mount, signals: EndSignals::watch().unwrap() }
    }

    /// Runs a machine, while somebody does one thing after the other.
    async fn run(&mut self, machine: &str, acts: &[Act<'_>]) -> Result<(), RunError> {
        let vmm = program(self.directory.path().join("vmm"), machine);
        let passt = program(self.directory.path().join("passt"), HANGS);
        let (line, serial) = SerialLine::new().unwrap();
        let starter = Starter::Kvm { programs: Programs::at(vmm, passt), line, serial: Some(serial) };
        let (happens, mut happened) = mpsc::unbounded_channel();
        let events = |event| happens.send(event).unwrap();
        let mut acts = acts.iter();
        let acting = async {
            for (is_awaited, act) in &mut acts {
                while !is_awaited(&happened.recv().await.unwrap()) {}
                act();
            }
            std::future::pending::<()>().await;
        };
        let (Self { request, mount, signals, .. }, mut was_forced) = (self, false);
        let ran = tokio::select! {
            ran = run_machine(request, starter, mount, signals, &mut was_forced, &events) => ran,
            () = acting => panic!("nobody has anything to do any more"),
        };
        assert_eq!(acts.len(), 0, "what was waited for has not happened: {ran:?}");
        ran
    }

    /// Starts begun since the last good one, and good ones.
    fn starts(&self) -> (u32, u32) {
        let starts = starts::Starts::load(self.directory.path());
        starts.on(self.golden).map(|starts| (starts.begun, starts.good)).unwrap()
    }

    async fn end(mut self) {
        self.mount.stop(self.directory.path(), UNMOUNT_TIMEOUT, &mut self.signals, &|_| {}).await.unwrap();
    }
}

fn starting(event: &Event) -> bool {
    matches!(event, Event::Starting { .. })
}

fn shutting_down(event: &Event) -> bool {
    matches!(event, Event::ShuttingDown)
}

fn forced_off(event: &Event) -> bool {
    matches!(event, Event::ForcedOff)
}

/// As Ctrl-C does it.
fn interrupt() {
    rustix::process::kill_process(rustix::process::getpid(), Signal::INT).unwrap();
}

/// However often it happens: nothing of what is on the disks was tried.
#[tokio::test]
async fn a_machine_that_could_not_be_made_is_no_bad_start() {
    let mut stage = Stage::new(Duration::ZERO).await;
    for _ in 0..starts::BAD_STARTS {
        let ran = stage.run(CANNOT_BE, &[]).await;
        assert!(
            matches!(&ran, Err(RunError::Machine { said, .. }) if said == "there is no memory"),
            "{ran:?}"
        );
    }
    assert_eq!(stage.starts(), (0, 0));
    stage.end().await;
}

/// A person who changes their mind has not seen whether it comes up.
#[tokio::test]
async fn a_machine_that_a_person_shuts_down_early_is_neither_a_good_nor_a_bad_start() {
    let mut stage = Stage::new(Duration::from_secs(3600)).await;
    for _ in 0..=starts::BAD_STARTS {
        stage.run(OBEYS, &[(starting, &interrupt)]).await.unwrap();
        assert_eq!(stage.starts(), (0, 0));
    }
    stage.end().await;
}

#[tokio::test]
async fn a_machine_that_has_run_for_long_enough_when_it_is_shut_down_is_a_good_start() {
    let mut stage = Stage::new(Duration::ZERO).await;
    stage.run(OBEYS, &[(starting, &interrupt)]).await.unwrap();
    assert_eq!(stage.starts(), (0, 1));
    stage.end().await;
}

/// Nobody asked it to: it may be that what is on its disks does not stay up.
#[tokio::test]
async fn a_machine_that_is_off_too_early_by_itself_or_fails_is_a_bad_start() {
    let mut stage = Stage::new(Duration::from_secs(3600)).await;
    stage.run("exit 0", &[]).await.unwrap();
    assert_eq!(stage.starts(), (1, 0));
    let ran = stage.run("echo 'it broke' >&2; exit 1", &[]).await;
    assert!(matches!(&ran, Err(RunError::Machine { said, .. }) if said == "it broke"), "{ran:?}");
    assert_eq!(stage.starts(), (2, 0));
    // What a person does then takes back no more than what they have begun.
    stage.run(OBEYS, &[(starting, &interrupt)]).await.unwrap();
    assert_eq!(stage.starts(), (2, 0));
    stage.end().await;
}

#[tokio::test]
async fn a_machine_whose_disks_are_gone_is_no_bad_start() {
    let mut stage = Stage::new(Duration::ZERO).await;
    let pulled = stage.directory.path().join("pulled");
    let ran = stage.run(HANGS, &[(starting, &|| std::fs::write(&pulled, "").unwrap())]).await;
    assert!(matches!(ran, Err(RunError::MountDied { .. })), "{ran:?}");
    assert_eq!(stage.starts(), (0, 0));
}

/// The clock stands still, so that it is nothing but the third signal that ends it.
#[tokio::test]
async fn who_interrupts_a_third_time_does_not_wait_for_the_machine() {
    let mut stage = Stage::new(Duration::ZERO).await;
    tokio::time::pause();
    // A clock that is stopped goes on only when there is nothing to do; at last it does, for whoever waits in vain.
    let busy = tokio::spawn(async {
        let began = std::time::Instant::now();
        while began.elapsed() < Duration::from_secs(60) {
            tokio::task::yield_now().await;
        }
    });
    let began = Instant::now();
    let acts: [Act<'_>; 3] = [(starting, &interrupt), (shutting_down, &interrupt), (forced_off, &interrupt)];
    stage.run(HANGS, &acts).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO, "it was waited for");
    assert_eq!(stage.starts(), (1, 0), "what hangs is a bad start");
    busy.abort();
    tokio::time::resume();
    stage.end().await;
}
