//! The whole of Satchel in a few minutes: a real Debian disk is published, runs on one machine while it streams, is
//! changed there, and continues on another machine with the change.
//!
//! Everything is the real thing: the programs, TLS, tokens, a FUSE mount, a guest in Satchel's own machine where KVM works,
//! else in QEMU. The "machines" are two state directories. Whatever it starts and mounts is gone when it ends, however it ends.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use std::fmt::Display;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use satchel_tests::{Access, Client, Link, RunOptions, Running, Shape, TestServer};
use satchel_tests::{images, lab, skip};

/// A boot under emulation, on a busy machine, may take this long.
const BOOT_LIMIT: Duration = Duration::from_secs(600);
const END_LIMIT: Duration = Duration::from_secs(300);
/// All of it inside the lab.
const LAB_LIMIT: Duration = Duration::from_secs(3600);
const TELL_EVERY: Duration = Duration::from_secs(5);
const LETTER: &str = "written on machine A";

fn main() {
    if let Ok(task) = std::env::var(lab::TASK) {
        let task: serde_json::Value = serde_json::from_str(&task).expect("a task");
        return follow_a_person(&Scene::from_task(&task));
    }
    // With --lab the machines are inside the lab, where KVM works on any host.
    let in_the_lab = std::env::args().any(|argument| argument == "--lab");
    step("A real Debian disk: built once with the Debian packages of this machine, then kept");
    let disk = images::plain();
    let about = fs::metadata(&disk).expect("the image is there");
    let (size, allocated) = (about.len(), about.blocks() * 512);
    say(format!("{}: {} of data on a disk of {}", disk.display(), bytes(allocated), bytes(size)));

    step("An image server: certificate, database and object store in one directory, HTTPS on loopback");
    command("satchel-server init STORE; satchel-server serve STORE");
    let server = TestServer::start();
    say(format!("listening on {}, certificate {}", server.url(), server.fingerprint()));

    step("IT publishes the disk: cut into chunks, compressed, signed; only what the server lacks is sent");
    let publisher = Client::new("the publisher");
    publisher.login(&server.access("it", "publisher"));
    command("satchel publish debian.raw --image debian");
    let published = publisher.satchel(["publish", path(&disk), "--image", "debian", "--json"]).ok().json();
    let sent = number(&published, "sent_bytes");
    say(format!("version {}: {} sent for {} of data", published["sequence"], bytes(sent), bytes(allocated)));

    let engine = if skip::kvm().lack.is_none() { "auto" } else { "qemu" };
    let mut scene = Scene {
        access: server.access("alice", "user"),
        server: server.address(),
        allocated,
        engine: engine.to_owned(),
    };
    if in_the_lab {
        step(
            "The machines are in the lab, a virtual machine whose /dev/kvm works (imitated, about thirty times slower)",
        );
        scene.engine = "kvm".to_owned();
        scene.server.set_ip(lab::HOST.parse().expect("an address"));
        let status = lab::command(LAB_LIMIT).env(lab::TASK, scene.to_task()).status();
        assert!(status.expect("the lab can be started").success(), "the demo failed in the lab");
    } else {
        follow_a_person(&scene);
    }
    server.verify();
    say(format!(
        "published: {} for an image of {}, {} of it in use",
        bytes(sent),
        bytes(size),
        bytes(allocated)
    ));
}

/// Where the machines of the demo are, and what they know.
struct Scene {
    access: Access,
    server: SocketAddr,
    allocated: u64,
    engine: String,
}

impl Scene {
    fn to_task(&self) -> String {
        let Access { url, token, fingerprint } = &self.access;
        serde_json::json!({
            "url": url, "token": token, "fingerprint": fingerprint,
            "server": self.server.to_string(), "allocated": self.allocated, "engine": self.engine,
        })
        .to_string()
    }

    fn from_task(task: &serde_json::Value) -> Scene {
        let text = |name: &str| task[name].as_str().unwrap_or_else(|| panic!("no {name}")).to_owned();
        Scene {
            access: Access { url: text("url"), token: text("token"), fingerprint: text("fingerprint") },
            server: text("server").parse().expect("an address"),
            allocated: number(task, "allocated"),
            engine: text("engine"),
        }
    }
}

/// A desktop is made and used on one machine, and goes on on another.
fn follow_a_person(scene: &Scene) {
    step("Machine A makes a desktop and runs it at once: the disk streams as the guest touches it");
    let link = Link::start(scene.server, Shape::default());
    let machine_a = Client::new("machine A");
    machine_a.login(&scene.access.through(&link));
    command("satchel create work --image debian --home 4G");
    machine_a.create("work", "debian", Some("4G"));
    let before = link.counts();
    let (mut running, up_after) = boot(&machine_a, &link, &scene.engine);
    let after = link.counts();
    let streamed = after.down_bytes - before.down_bytes;
    say(format!(
        "up after {:.0} s with {} over the wire: {} of the image",
        up_after.as_secs_f64(),
        bytes(streamed),
        percent(streamed, scene.allocated)
    ));

    step("Someone works on it: a file in the home directory");
    guest(&mut running, &format!("echo '{LETTER}' > /home/user/letter"));
    guest(&mut running, "apt-get --version | head -1 > /root/system-note");

    step("They switch it off; what changed is sent to the server");
    command("# in the guest: poweroff");
    let said = running.shut_down(END_LIMIT);
    say(said.lines().rev().find(|line| line.starts_with("synced")).unwrap_or("nothing was synced"));
    let synced = link.counts().up_bytes - after.up_bytes;

    step("Machine B knows nothing but the server, and continues");
    let link = Link::start(scene.server, Shape::default());
    let machine_b = Client::new("machine B");
    machine_b.login(&scene.access.through(&link));
    let (mut running, _) = boot(&machine_b, &link, &scene.engine);
    let letter = guest(&mut running, "cat /home/user/letter");
    let note = guest(&mut running, "cat /root/system-note");
    running.shut_down(END_LIMIT);
    assert_eq!(letter, LETTER, "the letter did not arrive");
    assert!(note.starts_with("apt"), "the change on the system disk did not arrive");
    command("satchel history work");
    print!("{}", machine_b.satchel(["history", "work"]).ok().stdout);

    step("What it took");
    let row = |name: &str, value: String| println!("  {name:<44}{value}");
    row("bytes streamed until the guest was up", bytes(streamed));
    row("  share of the image's allocated bytes", percent(streamed, scene.allocated));
    row("seconds until the guest was up", format!("{:.0}", up_after.as_secs_f64()));
    row("bytes sent by the sync", bytes(synced));
    row("found on machine B", format!("/home/user/letter: \"{letter}\""));
}

/// Runs the desktop to the moment its guest says that it is up, and tells meanwhile how far it is.
fn boot(machine: &Client, link: &Link, engine: &str) -> (Running, Duration) {
    command(&format!("satchel run work --engine {engine} --memory 1G"));
    let options =
        RunOptions { engine: engine.to_owned(), memory: Some("1G".to_owned()), ..RunOptions::default() };
    let began = Instant::now();
    let mut running = machine.run("work", &options);
    let start_bytes = link.counts().down_bytes;
    let (is_up, waiting) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = waiting.recv_timeout(TELL_EVERY) {
                let streamed = link.counts().down_bytes - start_bytes;
                say(format!("{:3} s, {} streamed", began.elapsed().as_secs(), bytes(streamed)));
            }
        });
        running.guest().wait_ready(BOOT_LIMIT);
        drop(is_up);
    });
    (running, began.elapsed())
}

/// Runs a command in the guest and shows it with what it said.
fn guest(running: &mut Running, line: &str) -> String {
    println!("  guest# {line}");
    let said = running.guest().run(&format!("{line}; sync"));
    let said = said.trim().to_owned();
    if !said.is_empty() {
        println!("  {said}");
    }
    said
}

fn step(text: &str) {
    println!("\n== {text}");
}

fn command(line: &str) {
    println!("  $ {line}");
}

fn say(text: impl Display) {
    println!("  {text}");
}

fn path(disk: &Path) -> &str {
    disk.to_str().expect("the image's path is text")
}

fn number(value: &serde_json::Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("no {field} in {value}"))
}

fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..1_048_576 => format!("{} KiB", count >> 10),
        1_048_576..1_073_741_824 => format!("{} MiB", count >> 20),
        _ => format!("{:.1} GiB", count as f64 / 1_073_741_824.0),
    }
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", part as f64 * 100.0 / whole as f64)
}
