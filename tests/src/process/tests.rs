use super::*;
use crate::wait::PATIENCE;

fn shell(script: &str) -> Process {
    Process::start("a shell", Command::new("sh").args(["-c", script]))
}

/// Whether the process group `id` still has a process that is not a zombie.
fn group_lives(id: u32) -> bool {
    let is_alive = |stat: String| {
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        fields[2] == id.to_string() && fields[0] != "Z"
    };
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok())
        .any(is_alive)
}

#[test]
fn finds_a_line_and_stops_gracefully() {
    let mut process =
        shell("trap 'echo bye; exit 3' TERM; echo not this; echo port: 17; while :; do sleep 0.01; done");
    let port: u16 =
        process.wait_for_line("its port", PATIENCE, |line| line.strip_prefix("port: ")?.parse().ok());
    assert_eq!(port, 17);
    let status = process.stop(Signal::TERM, PATIENCE);
    assert_eq!(status.code(), Some(3));
    assert!(process.stdout().ends_with("bye\n"));
}

#[test]
#[should_panic(expected = "out of paper")]
fn shows_the_last_words_of_a_program_that_ended() {
    shell("echo out of paper >&2; exit 1")
        .wait_for_line("hello", PATIENCE, |line| (line == "hello").then_some(()));
}

#[test]
#[should_panic(expected = "still running")]
fn does_not_wait_for_ever() {
    shell("sleep 1000").wait(Duration::from_millis(20));
}

#[test]
fn drop_ends_the_whole_group() {
    let mut process = shell("sleep 1000 & sleep 1000 & echo started; wait");
    process.wait_for_line("that it started", PATIENCE, |line| (line == "started").then_some(()));
    let id = process.id();
    assert!(group_lives(id));
    drop(process);
    wait::until("the group to end", PATIENCE, || (!group_lives(id)).then_some(()));
}

/// Run by `a_killed_test_leaves_nothing_running` in a process of its own.
#[test]
#[ignore = "a helper: it waits to be killed"]
fn waits_to_be_killed() {
    let process = shell("sleep 1000");
    fs::write(std::env::var("SATCHEL_TEST_GROUP_FILE").unwrap(), format!("{}\n", process.id())).unwrap();
    std::thread::sleep(Duration::from_secs(1000));
}

#[test]
fn a_killed_test_leaves_nothing_running() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut test = Process::start(
        "a test",
        Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "process::tests::waits_to_be_killed"])
            .env("SATCHEL_TEST_GROUP_FILE", file.path()),
    );
    let group: u32 = wait::until("the test to start a process", PATIENCE, || {
        fs::read_to_string(file.path()).ok()?.strip_suffix('\n')?.parse().ok()
    });
    assert!(group_lives(group));
    test.kill();
    wait::until("the process to be killed", PATIENCE, || (!group_lives(group)).then_some(()));
}
