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
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    path
}

/// However often it happens: nothing of what is on the disks was tried.
#[tokio::test]
async fn a_machine_that_could_not_be_made_is_no_bad_start() {
    let directory = tempfile::tempdir().unwrap();
    let (_, volume, _) = new_desktop(SystemMode::Keep);
    for name in volume.list().unwrap() {
        std::fs::write(directory.path().join(&name), volume.read(&name, 1 << 20).unwrap()).unwrap();
    }
    let golden = DesktopStore::read_only(Arc::new(volume)).unwrap().record().base;
    let vmm = program(directory.path().join("vmm"), "echo 'there is no memory' >&2; exit 5");
    let passt = program(directory.path().join("passt"), "exec sleep 600");
    let serves = "trap 'exit 0' TERM; : >\"$0/system.raw\"; echo mounted; while :; do sleep 0.01; done";
    let request = RunRequest { engine: Engine::Kvm, ..served_by(serves, directory.path()) };
    let events = |_: Event| {};
    let mut mount = Mount::start(&request, &events).await.unwrap();
    let mut signals = EndSignals::watch().unwrap();
    for _ in 0..starts::BAD_STARTS {
        let (line, serial) = SerialLine::new().unwrap();
        let programs = Programs::at(vmm.clone(), passt.clone());
        let starter = Starter::Kvm { programs, line, serial: Some(serial) };
        let ran = run_machine(&request, starter, &mut mount, &mut signals, &mut false, &events).await;
        assert!(
            matches!(&ran, Err(RunError::Machine { said, .. }) if said == "there is no memory"),
            "{ran:?}"
        );
    }
    mount.stop(directory.path(), UNMOUNT_TIMEOUT, &mut signals, &events).await.unwrap();
    assert_eq!(starts::Starts::load(directory.path()).on(golden).map(|starts| starts.begun), Some(0));
}
