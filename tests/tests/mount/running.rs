//! What a run says, and what a recording makes of its starts, with a stand-in for QEMU.

use satchel_tests::wait::{self, PATIENCE};
use satchel_tests::{Output, Process, Publication, Signal, require};

use super::IMAGE_BYTES;
use super::power::run_in;
use super::stand_in::{OBEYS, stand_in};

const CHUNK_BYTES: usize = 64 << 10;
const CHUNKS: u64 = IMAGE_BYTES / CHUNK_BYTES as u64;
/// What every recorded start reads, chunks.
const COMMON: u64 = 40;

#[test]
fn the_json_of_a_run_is_its_sync_alone_and_the_guest_is_heard_beside_it() {
    require!(fuse);
    let published = Publication::new(86, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let speaks = format!("echo 'the guest says hello' >&\"$serial\"\n{OBEYS}");
    let run = |options: &[&str]| -> Process {
        let mut running = run_in(&speaks, &laptop, options);
        wait::until("the guest is heard", PATIENCE, || {
            let said = running.stdout() + &running.stderr();
            said.contains("the guest says hello").then_some(())
        });
        let status = running.stop(Signal::INT, PATIENCE);
        assert!(status.success(), "{}", running.report());
        running
    };
    let json = |running: &Process| -> serde_json::Value {
        let said = running.stdout();
        serde_json::from_str(&said)
            .unwrap_or_else(|error| panic!("it is not one JSON value: {error}\n{said}"))
    };
    let mount = laptop.mount("work");
    let home = satchel_tests::model::open_for_writing(&mount.home());
    std::os::unix::fs::FileExt::write_all_at(&home, b"something", 0).expect("the disk takes it");
    drop(home);
    mount.unmount();

    let synced = run(&["--json"]);
    let report = json(&synced);
    assert_eq!((&report["desktop"], &report["version"]["sequence"]), (&"work".into(), &2.into()), "{report}");
    assert_eq!((&report["dirty_chunks"], &report["fork"]), (&1.into(), &serde_json::Value::Null), "{report}");
    assert!(report["sent_bytes"].as_u64() > Some(0), "{report}");
    assert!(synced.stderr().contains("the guest says hello"), "{}", synced.stderr());
    assert!(synced.stderr().contains("the machine is off"), "{}", synced.stderr());
    let unchanged = json(&run(&["--json"]));
    assert!(unchanged["version"].is_null(), "{unchanged}");
    // Where nothing is synced there is nothing to tell.
    assert_eq!(run(&["--json", "--no-sync"]).stdout(), "");
    // For a person both are on the terminal.
    let said = run(&[]).stdout();
    assert_eq!(said, "the guest says hello\nwork has no changes to sync\n");
}

/// Records two starts, the first of which reads `more` chunks than the second; how many are in the profile, and what was said.
fn recorded(published: &Publication, more: std::ops::Range<u64>) -> (u64, String) {
    let reads = format!(
        r#"
echo >>"$0.starts"
reads() {{ dd if="$disk" of=/dev/null bs={CHUNK_BYTES} iflag=direct skip="$1" count="$2" status=none; }}
reads 0 {COMMON}
[[ $(wc -l <"$0.starts") -gt 1 ]] || reads {} {}
echo READY >&"$serial"
while read -r line <&"$control"; do
    [[ $line != *quit* ]] || exit 0
    echo '{{"return": {{}}}}' >&"$control"
done
"#,
        more.start,
        more.end - more.start
    );
    let record = ["--json", "profile", "record", "golden", "--display", "none", "--until", "READY"];
    let mut command = published.publisher.command(record);
    stand_in(&reads, &published.publisher, &mut command);
    let recorded = Output::of(&mut command).ok();
    (recorded.json()["chunks"].as_u64().expect("chunks are counted"), recorded.stderr)
}

#[test]
fn a_recording_whose_starts_differ_by_much_says_so_and_keeps_what_both_read() {
    require!(fuse);
    const WARNING: &str = "the starts differ by much: only what all of them read is in the profile";
    let published = Publication::new(89, IMAGE_BYTES);
    let is_stored = |chunk: &u64| {
        let offset = chunk * CHUNK_BYTES as u64;
        published.content.bytes(offset, CHUNK_BYTES).iter().any(|byte| *byte != 0)
    };
    let common = (0..COMMON).filter(is_stored).count() as u64;
    let apart = (COMMON..CHUNKS).find(is_stored).expect("there is more than zeros");
    let (chunks, said) = recorded(&published, apart..apart + 1);
    assert_eq!(chunks, common + 1, "a little is kept");
    assert!(!said.contains(WARNING), "{said}");
    let (chunks, said) = recorded(&published, COMMON..CHUNKS);
    assert_eq!(chunks, common);
    assert_eq!(said.matches(WARNING).count(), 1, "{said}");
    let left_out = (COMMON..CHUNKS).filter(is_stored).count();
    assert!(said.contains(&format!("chunks={left_out}")), "{left_out} of them: {said}");
}
