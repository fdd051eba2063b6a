//! Another machine's cache as a source: the laptop fetches from the office machine beside it, and hardly from the server.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use satchel_tests::{
    Class, Client, Event, Fault, FaultyHttps, Link, Model, Policy, Process, Publication, Shape, Signal,
    require,
};

use super::IMAGE_BYTES;

const LIMIT: Duration = Duration::from_secs(60);

/// A server, the way to it that counts, and two machines of one person's: `office`, which has read the first part of the
/// disk, and `laptop`, which has nothing.
struct Rig {
    published: Publication,
    proxy: FaultyHttps,
    office: Client,
    laptop: Client,
}

/// A cache that is being served.
struct Served {
    process: Process,
    address: String,
    host: String,
    fingerprint: String,
    token: String,
}

impl Rig {
    fn new(seed: u64, read_bytes: u64) -> Self {
        let published = Publication::new(seed, IMAGE_BYTES);
        let office = published.machine_with_desktop("office");
        let mount = office.mount("work");
        let model = Model::of(published.content, IMAGE_BYTES);
        model.read(&super::open(&mount.system()), 0, read_bytes);
        mount.unmount();
        let proxy = FaultyHttps::start(&published.server.url(), published.server.fingerprint());
        let laptop = Client::new("laptop");
        laptop.login(&published.access().through_faulty(&proxy));
        Self { published, proxy, office, laptop }
    }

    fn serve(&self, arguments: &[&str]) -> Served {
        let words = ["cache", "serve", "work", "--listen", "127.0.0.1:0"];
        let mut process = self.office.start(words.iter().chain(arguments));
        let address = process.wait_for_line("its address", LIMIT, |line| {
            line.starts_with("cache://").then(|| line.trim_end().to_owned())
        });
        let parts = address.strip_prefix("cache://").and_then(|rest| rest.split_once("/#"));
        let (host, secret) = parts.expect("an address has a host and a secret");
        let (fingerprint, token) = secret.split_once('.').expect("a secret has two parts");
        let [host, fingerprint, token] = [host, fingerprint, token].map(str::to_owned);
        Served { process, address, host, fingerprint, token }
    }

    fn add(&self, address: &str) {
        let listed =
            self.laptop.satchel(["--json", "source", "work", "--add", address, "--first"]).ok().json();
        assert_eq!(listed["added"][0].as_str(), address.split("/#").next());
    }

    /// Bytes of packs that the server delivered.
    fn delivered_bytes(&self) -> u64 {
        let delivered = self.proxy.exchanges().into_iter();
        let delivered = delivered.filter(|exchange| matches!(exchange.class, Class::Packs));
        delivered.map(|exchange| exchange.response_bytes).sum()
    }

    /// Reads all of the disk, anew when the server delivered more than `most_bytes`: a machine so busy that a cache is not heard
    /// of for a second goes to the server. What the mount said, and what the server delivered.
    fn read_undisturbed(&self, most_bytes: u64) -> (String, u64) {
        let mut tries = 0..3;
        loop {
            let before = self.delivered_bytes();
            let said = self.read_through(|| {});
            let delivered = self.delivered_bytes() - before;
            if tries.next().is_none() || delivered <= most_bytes {
                return (said, delivered);
            }
            std::fs::remove_dir_all(self.laptop.desktop_directory("work").join("cache"))
                .expect("the cache is there");
        }
    }

    /// Reads all of the disk, the first quarter before something happens; what the mount said.
    fn read_through(&self, happens: impl FnOnce()) -> String {
        let mut mount = self.laptop.mount("work");
        let model = Model::of(self.published.content, IMAGE_BYTES);
        let disk = super::open(&mount.system());
        model.read(&disk, 0, IMAGE_BYTES / 4);
        happens();
        model.read(&disk, IMAGE_BYTES / 4, IMAGE_BYTES * 3 / 4);
        drop(disk);
        self.published.content.assert_in(&mount.system());
        assert_eq!(self.laptop.status("work")["live"]["online"], true);
        let said = mount.process().stderr();
        mount.unmount();
        said
    }
}

impl Served {
    fn stop(mut self) -> String {
        let status = self.process.stop(Signal::INT, LIMIT);
        assert!(status.success(), "{}", self.process.report());
        self.process.stderr()
    }

    /// The address of the same cache by another way.
    fn by_way_of(&self, host: &str, fingerprint: &str) -> String {
        format!("cache://{host}/#{}.{}", fingerprint.trim_start_matches("SHA256:"), self.token)
    }
}

#[test]
fn a_desktop_comes_from_another_machines_cache_and_the_server_is_hardly_asked() {
    require!(fuse);
    let mut rig = Rig::new(90, IMAGE_BYTES);
    let served = rig.serve(&[]);
    rig.add(&served.address);
    let (said, delivered) = rig.read_undisturbed(0);
    assert_eq!(delivered, 0, "{said}");
    assert!(!said.contains(&served.token), "{said}");

    // The same address after a restart, until another is asked for; the secret is in one file on each machine.
    let address = served.address.clone();
    let told = served.stop();
    assert!(told.contains("chunks were sent") && told.contains("can read what is in this cache"), "{told}");
    assert!(!told.contains(served_token(&address)), "the address is data: {told}");
    let again = rig.serve(&["--new-address"]);
    assert!(again.token != served_token(&address) && again.address != address);
    for (machine, file) in [(&rig.office, "cache-serve.json"), (&rig.laptop, "sources.json")] {
        let path = machine.desktop_directory("work").join(file);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    }

    // Enough without the server, for a mount that knows where the chunks lie.
    rig.add(&again.address);
    std::fs::remove_dir_all(rig.laptop.desktop_directory("work").join("cache")).unwrap();
    let mount = rig.laptop.mount("work");
    let model = Model::of(rig.published.content, IMAGE_BYTES);
    let disk = super::open(&mount.system());
    model.read(&disk, 0, IMAGE_BYTES / 8);
    rig.published.server.stop();
    model.read(&disk, IMAGE_BYTES / 8, IMAGE_BYTES * 7 / 8);
    drop(disk);
    rig.published.content.assert_in(&mount.system());
    mount.unmount();
    rig.published.server.start_again();

    // Removed by what is shown of it.
    let shown = format!("cache://{}", again.host);
    let listed = rig.laptop.satchel(["source", "work"]).ok().stdout;
    assert!(listed.contains(&shown) && !listed.contains(&again.token), "{listed}");
    let listed = rig.laptop.satchel(["--json", "source", "work", "--remove", &shown]).ok().json();
    // The one of before listened on another port.
    assert!(!listed["added"].as_array().unwrap().iter().any(|added| *added == shown.as_str()), "{listed}");
    again.stop();
}

fn served_token(address: &str) -> &str {
    address.rsplit_once('.').map_or("", |(_, token)| token)
}

#[test]
fn what_a_cache_lacks_comes_from_the_server() {
    require!(fuse);
    let rig = Rig::new(91, IMAGE_BYTES / 2);
    let served = rig.serve(&[]);
    rig.add(&served.address);
    let (said, delivered) = rig.read_undisturbed(IMAGE_BYTES * 5 / 8);
    assert!(delivered > IMAGE_BYTES / 16 && delivered < IMAGE_BYTES * 5 / 8, "{delivered}");
    assert!(!said.contains("does not answer") && !said.contains("does not serve us"), "{said}");
    served.stop();
}

#[test]
fn a_machine_that_dies_while_it_serves_is_missed_by_nobody() {
    require!(fuse);
    let rig = Rig::new(92, IMAGE_BYTES);
    let mut served = rig.serve(&[]);
    rig.add(&served.address);
    rig.read_through(|| served.process.kill());
    assert!(rig.delivered_bytes() > IMAGE_BYTES / 4);
}

#[test]
fn a_cache_that_falls_silent_is_replaced() {
    require!(fuse);
    let rig = Rig::new(93, IMAGE_BYTES);
    let served = rig.serve(&[]);
    let link = Link::start(served.host.parse().unwrap(), Shape::default());
    rig.add(&served.by_way_of(&link.address().to_string(), &served.fingerprint));
    rig.read_through(|| link.apply(Event::Down));
    assert!(rig.delivered_bytes() > IMAGE_BYTES / 4);
}

#[test]
fn a_cache_that_lies_or_is_cut_is_replaced() {
    require!(fuse);
    let rig = Rig::new(94, IMAGE_BYTES);
    let served = rig.serve(&[]);
    for fault in [Fault::Alter, Fault::Truncate, Fault::Status(503)] {
        let fingerprint = format!("SHA256:{}", served.fingerprint);
        let proxy = FaultyHttps::start(&format!("https://{}", served.host), &fingerprint);
        let address = served.by_way_of(&proxy.address().to_string(), proxy.fingerprint());
        drop(rig.laptop.satchel(["source", "work", "--add", &address, "--first"]).ok());
        let before = rig.delivered_bytes();
        rig.read_through(|| proxy.set_policy(Policy::new(94).chance(fault, 1.0)));
        assert!(rig.delivered_bytes() > before, "{fault:?}: it went on with the server");
        std::fs::remove_dir_all(rig.laptop.desktop_directory("work")).unwrap();
    }
    served.stop();
}

#[test]
fn a_wrong_token_or_certificate_is_said_and_the_server_is_used() {
    require!(fuse);
    let rig = Rig::new(95, IMAGE_BYTES);
    let served = rig.serve(&[]);
    let other = "00".repeat(32);
    for (address, expected) in [
        (format!("cache://{}/#{}.{other}", served.host, served.fingerprint), "its token is not the one"),
        (format!("cache://{}/#{other}.{}", served.host, served.token), "its certificate is not the one"),
    ] {
        drop(rig.laptop.satchel(["source", "work", "--add", &address]).ok());
        let before = rig.delivered_bytes();
        let said = rig.read_through(|| {});
        assert!(said.contains(expected) && said.contains(&format!("cache://{}", served.host)), "{said}");
        assert!(!said.contains(&other) || !said.contains(&served.token), "{said}");
        assert!(rig.delivered_bytes() - before > IMAGE_BYTES / 4);
        std::fs::remove_dir_all(rig.laptop.desktop_directory("work")).unwrap();
    }
    let repaired = served.address.replace("cache:", "https:");
    for bad in [&served.address[..served.address.len() - 1], &repaired, "cache://a", "cache:b"] {
        let said = rig.laptop.satchel(["source", "work", "--add", bad]).exited(2).stderr;
        assert!(said.contains("is no source"), "{said}");
        assert!(!said.contains(&served.token[..60]), "{said}");
    }
    served.stop();
}

#[test]
fn a_cache_is_served_only_while_its_desktop_is_not_in_use() {
    require!(fuse);
    let rig = Rig::new(96, IMAGE_BYTES / 4);
    let mount = rig.office.mount("work");
    let said = rig.office.satchel(["cache", "serve", "work"]).exited(1).stderr;
    assert!(said.contains("is in use on this machine") && said.contains("hint: unmount it"), "{said}");
    mount.unmount();
    let served = rig.serve(&[]);
    let directory = rig.office.new_directory();
    let words = ["mount".as_ref(), "work".as_ref(), directory.as_os_str()];
    let said = rig.office.satchel(words).exited(1).stderr;
    assert!(said.contains("in use by another process") && said.contains("cache serve"), "{said}");
    served.stop();
    rig.office.mount("work").unmount();
    let said = rig.laptop.satchel(["cache", "serve", "work"]).exited(1).stderr;
    assert!(said.contains("nothing of desktop work is on this machine"), "{said}");
}
