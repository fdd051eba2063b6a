//! Desktops in Satchel's own machine: on this machine where KVM works, else in the lab.

mod killed;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use rustix::process::{Signal as KillSignal, kill_process};
use satchel_tests::{
    Access, Client, RunOptions, Signal, TestServer, Turn, child, images, lab, require, skip, wait,
};
use serde::{Deserialize, Serialize};

use super::BOOT_LIMIT;
use super::server::DebianServer;

/// How long all of a scenario may take inside the lab, where everything is imitated twice over.
const LAB_LIMIT: Duration = Duration::from_secs(1500);
/// How long one kill may take there: a start, and looking at what is left.
const KILL_LIMIT: Duration = Duration::from_secs(400);
/// What a server on the network says.
const GREETING: &str = "reached over the network";

/// What a scenario is told from outside.
#[derive(Serialize, Deserialize)]
struct Task {
    url: String,
    token: String,
    fingerprint: String,
    /// A server on the network, `HOST PORT`.
    greeter: Option<String>,
    story: Story,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
enum Story {
    /// Work on one machine is found on another.
    Follow,
    /// A desktop takes a new version up.
    Renew,
    /// Parts of a running desktop stand still and are killed.
    Killed {
        /// How often each part is.
        kills: u32,
        /// Decides when.
        seed: u64,
    },
}

impl Task {
    fn access(&self) -> Access {
        Access { url: self.url.clone(), token: self.token.clone(), fingerprint: self.fingerprint.clone() }
    }

    fn tell(&self) -> String {
        match self.story {
            Story::Follow => follow(self),
            Story::Renew => renew(self),
            Story::Killed { kills, seed } => killed::kill(self, kills, seed),
        }
    }
}

#[test]
fn a_desktop_in_our_own_machine_follows_its_person() {
    require!(fuse, guest, tool("passt"));
    if skip::kvm().lack.is_some() {
        require!(lab);
    }
    let debian = DebianServer::start();
    println!("{}", play(&debian.server, Story::Follow));
    debian.server.verify();
}

#[test]
fn a_new_version_boots_its_own_kernel_on_two_processors() {
    require!(fuse, guest, tool("passt"));
    if skip::kvm().lack.is_some() {
        require!(lab_for_long);
    }
    let debian = DebianServer::start();
    let office = Client::new("office");
    office.login(&debian.server.access("alice", "user"));
    let _ = office.satchel(["create", "work", "--image", "debian", "--home", "1G", "--mode", "keep"]).ok();
    let _ = debian.publisher.publish(&images::plain_next(), "debian");
    println!("{}", play(&debian.server, Story::Renew));
    let history = office.history("work").to_string();
    assert!(history.contains("renewed to debian@2"), "{history}");
}

/// Plays a story on this machine, or else in the lab; says how that went.
fn play(server: &TestServer, story: Story) -> String {
    let _turn = Turn::wait("guest");
    let access = server.access("alice", "user");
    let mut task =
        Task { url: access.url, token: access.token, fingerprint: access.fingerprint, greeter: None, story };
    if skip::kvm().lack.is_none() {
        return task.tell();
    }
    let greeter = greeter();
    task.url = task.url.replace("127.0.0.1", lab::HOST);
    task.greeter = Some(format!("{} {greeter}", lab::HOST));
    let task = serde_json::to_string(&task).expect("plain data");
    let limit = match story {
        Story::Killed { kills, .. } => LAB_LIMIT + KILL_LIMIT * 3 * kills,
        Story::Follow | Story::Renew => LAB_LIMIT,
    };
    lab::run_inside("kvm::inside", &task, limit)
}

#[test]
#[ignore = "runs in the lab, started by the tests beside it"]
fn inside() {
    let Ok(task) = std::env::var(lab::TASK) else { return };
    println!("{}", serde_json::from_str::<Task>(&task).expect("a task").tell());
}

fn machine(cpus: u32) -> RunOptions {
    RunOptions {
        engine: "kvm".to_owned(),
        memory: Some("512M".to_owned()),
        cpus: Some(cpus.to_string()),
        ..RunOptions::default()
    }
}

/// Starts a desktop made elsewhere, whose image has moved on; says how that went.
fn renew(task: &Task) -> String {
    let laptop = Client::new("laptop");
    laptop.login(&task.access());
    let mut running = laptop.run("work", &machine(2));
    let uptime_s = running.guest().wait_ready(BOOT_LIMIT);
    let found = running.guest().run("nproc; uname -r; ls /boot | sed -n s/vmlinuz-//p | sort -V | tail -n 1");
    let found: Vec<&str> = found.split_whitespace().collect();
    // The version before had an older one.
    assert!(matches!(found[..], ["2", runs, newest] if runs == newest), "{found:?}");
    running.process().signal(Signal::INT);
    let _ = running.wait_closed(BOOT_LIMIT);
    format!("up after {uptime_s} s on two processors in our own machine")
}

/// Works on one machine, finds the work on another; says how that went.
fn follow(task: &Task) -> String {
    let laptop = Client::new("laptop");
    laptop.login(&task.access());
    laptop.create("work", "debian", Some("1G"));
    let mut running = laptop.run("work", &machine(1));
    let uptime_s = running.guest().wait_ready(BOOT_LIMIT);
    let guest = running.guest();
    let disks = guest.run("cat /sys/block/vda/serial; echo; cat /sys/block/vdb/serial; echo; nproc");
    assert_eq!(disks.split_whitespace().collect::<Vec<_>>(), ["system", "home", "1"]);
    if let Some(greeter) = &task.greeter {
        let (host, port) = greeter.split_once(' ').expect("host and port");
        let fetch = format!(
            "for i in $(seq 60); do ip -4 route | grep -q ^default && break; sleep 1; done; ip -4 addr show scope global | grep -c inet; timeout 60 bash -c 'exec 3<>/dev/tcp/{host}/{port}; head -n 1 <&3'"
        );
        let said = guest.run(&fetch);
        assert_eq!(said.lines().collect::<Vec<_>>(), ["1", GREETING]);
        // What carries the network ends: it is started again, and the guest sees its cable pulled out and put back.
        let passt = child(running.process().id(), "passt").expect("the run has one");
        kill_process(passt, KillSignal::KILL).expect("it is there");
        let said = running.guest().run(&format!(
            "for i in $(seq 60); do grep -q 1 /sys/class/net/e*/carrier_up_count && grep -q 1 /sys/class/net/e*/carrier && break; sleep 1; done; {fetch}"
        ));
        assert_eq!(said.lines().collect::<Vec<_>>(), ["1", GREETING]);
        let warning = running.process().stderr();
        assert!(
            warning.contains("the machine's network was interrupted: passt ended (signal: 9"),
            "{warning}"
        );
    }
    let guest = running.guest();
    // Written out by nobody: the guest does that when its agent, on a port of the machine's console, is told to hold still.
    guest.run("echo from the laptop >/home/user/letter");
    let held = wait::until("the guest holds still for a checkpoint", BOOT_LIMIT, || {
        let report = laptop.satchel(["--json", "checkpoint", "work", "-m", "in the lab"]).ok().json();
        (report["held_still"] == true).then(|| report["version"]["sequence"].as_u64().expect("a number"))
    });
    // Ctrl-C is the power button.
    running.process().signal(Signal::INT);
    let console = running.wait_closed(BOOT_LIMIT);
    let synced = format!("synced work: version {}", held + 1);
    assert!(console.contains(&synced), "the run did not say that it synced");

    let other = Client::new("other");
    other.login(&task.access());
    let mount = other.mount("work");
    let found =
        std::process::Command::new("debugfs").args(["-R", "cat user/letter"]).arg(mount.home()).output();
    assert_eq!(String::from_utf8_lossy(&found.expect("debugfs can be run").stdout), "from the laptop\n");
    mount.unmount();
    format!("up after {uptime_s} s in our own machine")
}

/// A server on loopback that greets everyone; its port.
fn greeter() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = writeln!(stream, "{GREETING}");
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read(&mut [0; 1]);
        }
    });
    port
}
