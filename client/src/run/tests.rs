use std::cell::RefCell;

use super::*;

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
