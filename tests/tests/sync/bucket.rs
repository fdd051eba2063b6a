//! A server that keeps its objects in a bucket of S3's protocol: the same promises, and whose the bucket is.

use std::fs;

use satchel_tests::wait::{self, PATIENCE};
use satchel_tests::{Event, Link, Output, Publication, Rng, Shape, TestBucket, TestServer, require};

use super::story::{Disks, IMAGE_BYTES, sync};

/// Has the server checked, which must find damage; the names of the objects that are damaged.
#[track_caller]
fn says_what_is_damaged(server: &TestServer) -> Vec<String> {
    let report = server.run(&["verify"], &["--json"]).exited(1).json();
    let findings = report["findings"].as_array().expect("findings are a list");
    findings.iter().map(|finding| finding["object"].as_str().expect("a name").to_owned()).collect()
}

/// The bucket cannot be reached until this is dropped, which a test that fails does, too: nobody is left waiting.
struct Cut<'a>(&'a Link);

impl<'a> Cut<'a> {
    fn of(link: &'a Link) -> Self {
        link.apply(Event::Refuse);
        link.apply(Event::Reset);
        Self(link)
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        self.0.apply(Event::Accept);
    }
}

#[test]
fn a_desktop_lives_in_a_bucket() {
    require!(fuse);
    let bucket = TestBucket::start();
    let mut published = Publication::on(TestServer::start_on(&bucket, "prod", None), 60, IMAGE_BYTES);
    assert!(!published.server.objects("").exists(), "nothing lies in the server's directory");
    let laptop = published.machine_with_desktop("laptop");
    let mut disks = Disks::new(&published);
    let mut rng = Rng::new(60);
    for _ in 0..3 {
        disks.change_on(&laptop, 30, &mut rng);
        sync(&laptop);
    }
    disks.assert_on_another_machine(&published);

    // A restart finds what there was, in the bucket and nowhere else.
    published.server.restart();
    disks.assert_on_another_machine(&published);
    published.server.verify();

    // What nothing needs goes, and uploads that were cut short; what says whose the bucket is stays.
    let _ = published.server.run(&["retention"], &["--keep-last", "1"]).ok();
    let staged = bucket.objects("prod/staging/left");
    fs::create_dir_all(staged.parent().expect("it has one")).expect("the bucket is a directory");
    fs::write(&staged, "half of a pack").expect("the bucket can be written to");
    let report = published.server.run(&["verify"], &["--json"]).ok().json();
    assert_eq!(report["unfinished"]["files"], 1, "{report}");
    assert_eq!(report["unknown_files"], 0, "{report}");
    let before = bucket.files("prod").len();
    let collect = || published.server.run(&["gc"], &["--grace", "0", "--leftovers"]).ok();
    let _ = (collect(), collect());
    assert!(bucket.files("prod").len() < before);
    published.server.verify();
    disks.assert_on_another_machine(&published);

    // What is damaged there is found.
    let packs = bucket.files("prod/image/golden/packs");
    let mut bytes = fs::read(&packs[0]).expect("a pack can be read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&packs[0], bytes).expect("a pack can be written");
    let name = packs[0].file_name().expect("it has a name").to_str().expect("UTF-8");
    let damaged = says_what_is_damaged(&published.server);
    assert!(damaged.iter().all(|object| object.ends_with(name)) && !damaged.is_empty(), "{damaged:?}");
}

#[test]
fn while_the_bucket_is_out_of_reach_reads_and_syncs_wait() {
    require!(fuse);
    let bucket = TestBucket::start();
    let link = Link::start(bucket.address(), Shape::default());
    let server = TestServer::start_on(&bucket, "prod", Some(&link));
    let mut published = Publication::on(server, 61, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let mut disks = Disks::new(&published);
    let mut rng = Rng::new(61);
    let mount = laptop.mount("work");
    let cut = Cut::of(&link);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| disks.assert_in(&mount));
        let cut = cut;
        let server = published.server.process();
        let fails = || server.stderr().contains("cannot reach the object store").then_some(());
        wait::until("the server says that it cannot reach its bucket", PATIENCE, fails);
        assert!(!reading.is_finished(), "a read that cannot be answered waits");
        drop(cut);
        reading.join().expect("what is read is what was published");
    });

    // A sync that meets an outage says so, and goes on where it was.
    disks.change(&mount, 30, &mut rng);
    let cut = Cut::of(&link);
    let mut waiting = laptop.start(["sync", "work", "--wait"]);
    wait::until("the sync waits", PATIENCE, || waiting.stderr().contains("waiting for it").then_some(()));
    drop(cut);
    assert_eq!(waiting.wait(PATIENCE).code(), Some(0), "{}", waiting.stderr());
    mount.unmount();
    disks.assert_on_another_machine(&published);
    published.server.verify();
}

#[test]
fn a_bucket_is_one_servers() {
    let bucket = TestBucket::start();
    let first = TestServer::start_on(&bucket, "prod", None);
    let init_with = |prefix: &str, environment: &[(&'static str, String)]| -> Output {
        let directory = first.store().with_file_name("second");
        let _ = fs::remove_dir_all(&directory);
        let directory = directory.to_str().expect("UTF-8").to_owned();
        first.satchel_server(&["init", &directory], &bucket.arguments(prefix, None), environment)
    };
    let init = |prefix: &str| init_with(prefix, &bucket.environment());
    let refuses = |output: Output, words: &[&str]| {
        let output = output.exited(1);
        assert!(words.iter().all(|word| output.stderr.contains(word)), "{}", output.stderr);
    };
    // Another server's, one within that, or one that holds anything at all.
    refuses(init("prod"), &["s3://desktops/prod", "not empty"]);
    refuses(
        init("prod/test"),
        &["s3://desktops/prod/test", "lies within s3://desktops/prod at", "name one beside it"],
    );
    fs::create_dir_all(bucket.objects("photos")).expect("the bucket is a directory");
    fs::write(bucket.objects("photos/cat.jpg"), "a cat").expect("the bucket can be written to");
    refuses(init("photos"), &["cat.jpg"]);
    assert!(!bucket.objects("photos/owner").exists());
    // Without access.
    let mut environment = bucket.environment();
    environment[1].1 = "mistyped".to_owned();
    let refused = init_with("other", &environment).exited(1);
    assert!(refused.stderr.contains("AWS_SECRET_ACCESS_KEY"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("mistyped"), "{}", refused.stderr);
    environment[1].1 = "of two\nlines".to_owned();
    refuses(init_with("other", &environment), &["AWS_SECRET_ACCESS_KEY", "set it anew"]);
    // Beside it; what the environment says of another place counts for nothing.
    let elsewhere =
        [("AWS_ENDPOINT_URL_S3", "http://192.0.2.1".to_owned()), ("AWS_SKIP_SIGNATURE", "true".to_owned())];
    let _ = init_with("other", &[&bucket.environment()[..], &elsewhere].concat()).ok();
    let left = bucket.files("other");
    assert_eq!(left, [bucket.objects("other/owner")], "what was tried is gone");
    // An `init` that was cut after that, and is repeated with the options it had, goes on.
    let second = first.store().with_file_name("second");
    fs::remove_file(second.join("server.json")).expect("it was finished");
    fs::write(second.join("unfinished"), "").expect("it can be written to");
    let arguments = bucket.arguments("other", None);
    let second = second.to_str().expect("UTF-8");
    let _ = first.satchel_server(&["init", second], &arguments, &bucket.environment()).ok();
    // One that was emptied, or put in the place of another, is not taken for the server's.
    fs::copy(bucket.objects("other/owner"), bucket.objects("prod/owner")).expect("it can be written to");
    refuses(first.run(&["verify"], &[]), &["does not say that it is this server's"]);
    fs::remove_file(bucket.objects("prod/owner")).expect("it can be written to");
    refuses(first.run(&["gc"], &[]), &["does not say that it is this server's"]);
}
