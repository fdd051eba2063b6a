//! What a mounted desktop does, while it does it: for people and for Prometheus.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use satchel_tests::wait::{self, PATIENCE};
use satchel_tests::{Model, Publication, Signal, require};

use super::IMAGE_BYTES;

#[test]
fn a_watcher_sees_reads_as_they_happen() {
    require!(fuse);
    let published = Publication::new(80, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let none = laptop.satchel(["status", "work", "--watch"]).exited(1).stderr;
    assert!(none.contains("is not mounted"), "{none}");
    let mount = laptop.mount("work");
    let mut watch = laptop.start(["--json", "status", "work", "--watch"]);
    let mut plain = laptop.start(["status", "work", "--watch"]);
    let model = Model::of(published.content, IMAGE_BYTES);
    model.read(&super::open(&mount.system()), 0, IMAGE_BYTES);
    let last = |text: String| -> Option<serde_json::Value> {
        serde_json::from_str(text.trim_end().lines().last()?).ok()
    };
    let seen = wait::until("a sample shows what was read", PATIENCE, || {
        let sample = last(watch.stdout())?;
        (sample["disks"][0]["activity"]["read_bytes"].as_u64() >= Some(IMAGE_BYTES)).then_some(sample)
    });
    assert_eq!(seen["rates"].as_array().map(Vec::len), Some(2), "{seen}");
    assert!(seen["live"]["link"]["rate_bytes_per_s"].as_u64() > Some(0), "{seen}");
    wait::until("a plain line", PATIENCE, || plain.stdout().contains("system: read ").then_some(()));
    assert_eq!(plain.stop(Signal::INT, PATIENCE).code(), Some(0));
    mount.unmount();
    assert_eq!(watch.wait(PATIENCE).code(), Some(0));
    assert!(watch.stderr().contains("is not mounted any more"), "{}", watch.stderr());
}

#[test]
fn a_page_is_no_larger_than_its_terminal() {
    require!(fuse);
    let published = Publication::new(82, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let mount = laptop.mount("work");
    let mut master =
        File::from(openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal can be made"));
    grantpt(&master).and_then(|()| unlockpt(&master)).expect("the terminal can be used");
    let size = Winsize { ws_row: 6, ws_col: 40, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&master, size).expect("the terminal has a size");
    let name = ptsname(&master, Vec::new()).expect("the terminal has a name");
    let terminal =
        File::options().write(true).open(name.to_str().expect("text")).expect("the terminal opens");
    let mut command = laptop.command(["status", "work", "--watch"]);
    let mut watch = command.stdin(Stdio::null()).stdout(terminal).spawn().expect("satchel can be run");
    let mut written = String::new();
    while written.matches("\x1b[J").count() < 2 {
        let mut part = [0; 4096];
        let len = master.read(&mut part).expect("it shows something");
        written.push_str(&String::from_utf8_lossy(&part[..len]));
    }
    watch.kill().and_then(|()| watch.wait()).expect("it ends");
    for page in written.split("\x1b[H").filter(|page| page.contains("\x1b[J")) {
        let lines: Vec<&str> = page.lines().filter_map(|line| line.strip_suffix("\x1b[K")).collect();
        assert_eq!(lines.len(), 5, "{page}");
        assert!(lines.iter().all(|line| line.len() < 40), "{page}");
        assert!(lines[1].starts_with("DISK") && lines[1].len() == 39, "{page}");
    }
    mount.unmount();
}

#[test]
fn numbers_are_served_to_this_machine_alone() {
    require!(fuse);
    let published = Publication::new(81, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let directory = laptop.new_directory();
    let elsewhere = [
        "mount".as_ref(),
        "work".as_ref(),
        directory.as_os_str(),
        "--metrics".as_ref(),
        "0.0.0.0:0".as_ref(),
    ];
    let said = laptop.satchel(elsewhere).exited(1).stderr;
    assert!(said.contains("no loopback address"), "{said}");
    let mut mount = laptop.mount_with("work", &["--metrics", "127.0.0.1:0"]);
    published.content.assert_in(&mount.system());
    let said = mount.process().stderr();
    let address = said.split("http://").nth(1).and_then(|rest| rest.split('/').next());
    let address = address.unwrap_or_else(|| panic!("no address in {said}")).to_owned();
    let ask = |host: &str| {
        let mut answer = String::new();
        let mut stream = TcpStream::connect(&address).expect("it listens");
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n").expect("it listens");
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    };
    assert!(ask("elsewhere.example.org").starts_with("HTTP/1.1 403"));
    let answer = ask(&address);
    let read = answer
        .lines()
        .find(|line| line.starts_with("satchel_disk_read_bytes_total{desktop=\"work\",disk=\"system\"}"));
    let read: Option<f64> = read.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    assert!(read >= Some(IMAGE_BYTES as f64), "{answer}");
    mount.unmount();
}
