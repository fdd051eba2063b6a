use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use tokio::sync::mpsc::{self as events, UnboundedReceiver};

use super::*;

/// A host with a program in the place of passt.
struct Host {
    directory: tempfile::TempDir,
    carrier: Carrier,
    machine: Option<UnixListener>,
    news: UnboundedReceiver<MachineEvent>,
    now: Instant,
}

const HOME: &str = "nameserver 192.168.1.1";
const OFFICE: &str = "nameserver 10.0.0.2";
const STUB: &str = "nameserver 127.0.0.53";

impl Host {
    /// The program notes what it was told, and does this.
    fn new(does: &str) -> Host {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("passt");
        let script = format!("#!/bin/sh\necho \"$@\" >> {}/told\n{does}\n", directory.path().display());
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let (line, machine) = Line::listen(directory.path()).unwrap();
        machine.set_nonblocking(true).unwrap();
        let (sender, news) = events::unbounded_channel();
        let carrier = Carrier::new(program, line, sender);
        Host { directory, carrier, machine: Some(machine), news, now: Instant::now() }
    }

    /// Looks after so many seconds.
    fn look(&mut self, after_s: u64, here: &Place) -> bool {
        self.now += Duration::from_secs(after_s);
        self.carrier.look(here, self.now)
    }

    /// Looks until the one that runs has ended.
    fn look_until_ended(&mut self, here: &Place) {
        let until = Instant::now() + Duration::from_secs(20);
        while matches!(self.carrier.carried, Carried::By { .. }) {
            assert!(Instant::now() < until, "it does not end");
            thread::sleep(Duration::from_millis(5));
            assert!(self.look(0, here));
        }
    }

    fn news(&mut self) -> Option<NetworkNews> {
        match self.news.try_recv().ok()? {
            MachineEvent::Network(news) => Some(news),
            other => panic!("{other:?}"),
        }
    }

    fn connected(&self) -> Option<UnixStream> {
        self.machine.as_ref()?.accept().ok().map(|(stream, _)| stream)
    }

    /// What the programs were told, one a line.
    fn told(&self) -> Vec<String> {
        let told = std::fs::read_to_string(self.directory.path().join("told")).unwrap_or_default();
        told.lines().map(str::to_owned).collect()
    }
}

#[test]
fn a_machine_has_a_network_as_soon_as_its_host_has_one() {
    let mut host = Host::new("exec sleep 60");
    let (nowhere, home) = (Place::with(false, ""), Place::with(true, HOME));
    assert!(host.look(0, &nowhere) && host.look(2, &nowhere));
    assert_eq!((host.news(), host.news()), (Some(NetworkNews::Absent), None));
    assert!(host.connected().is_none());
    assert!(host.look(2, &home));
    assert_eq!(host.news(), Some(NetworkNews::Back));
    assert!(host.connected().is_some());
    // It stays while the network is gone, and where it can be of use.
    for place in [&nowhere, &home, &nowhere, &nowhere, &home] {
        assert!(host.look(2, place));
    }
    assert_eq!(host.news(), None);
    assert!(host.connected().is_none());
}

#[test]
fn on_another_network_the_link_goes_down_and_up() {
    let mut host = Host::new("exec sleep 60");
    let (home, office) = (Place::with(true, HOME), Place::with(true, OFFICE));
    assert!(host.look(0, &home));
    let first = host.connected().expect("there is one");
    // Half of a change is none.
    assert!(host.look(2, &office) && host.look(2, &home) && host.look(2, &office));
    assert_eq!(host.news(), None);
    assert!(host.look(2, &office));
    assert_eq!(host.news(), Some(NetworkNews::Moved));
    assert_eq!((&first).read(&mut [0]).unwrap(), 0, "its connection is closed");
    assert!(host.connected().is_none(), "the guest has to see it");
    assert!(host.look(2, &office));
    assert!(host.connected().is_some());
    assert_eq!(host.news(), None);
}

#[test]
fn one_that_ends_is_started_again_and_said_once() {
    let mut host =
        Host::new("echo 'Failed to send 3 bytes to syslog' >&2; echo 'no \x1b[31mway' >&2; exit 1");
    let home = Place::with(true, HOME);
    let mut connected = 0;
    for pause_s in [0, 1, 2, 4, 8] {
        assert!(host.look(pause_s, &home));
        assert!(host.look(0, &home), "not before its time");
        connected += usize::from(host.connected().is_some());
        host.look_until_ended(&home);
    }
    assert_eq!((connected, host.told().len()), (5, 5));
    let Some(NetworkNews::Ended { said }) = host.news() else { panic!("nothing was said") };
    assert!(said.starts_with("no ") && !said.contains('\x1b'), "{said:?}");
    assert_eq!(host.news(), None);
    // The machine has ended meanwhile: it is no news that its network does.
    host.machine = None;
    assert!(!host.look(60, &home));
    assert_eq!(host.news(), None);
}

#[test]
fn a_program_that_is_not_there_is_said_at_once_and_once() {
    let mut host = Host::new("");
    let home = Place::with(true, HOME);
    std::fs::remove_file(&host.carrier.program).unwrap();
    assert!(host.look(0, &home) && host.look(60, &home) && host.look(60, &home));
    let Some(NetworkNews::Ended { said }) = host.news() else { panic!("nothing was said") };
    assert!(said.contains("passt: No such file"), "{said}");
    assert_eq!(host.news(), None);
}

#[test]
fn a_guest_is_told_whom_it_can_ask_for_names() {
    let mut host = Host::new("exec sleep 60");
    let until_told = |host: &Host, lines: usize| {
        let until = Instant::now() + Duration::from_secs(20);
        while host.told().len() < lines {
            assert!(Instant::now() < until, "it was not started");
            thread::sleep(Duration::from_millis(5));
        }
        host.told()[lines - 1].clone()
    };
    let behind = Place::behind(STUB, &["10.1.1.1", "fd00::1"]);
    assert!(host.look(0, &behind));
    let told = until_told(&host, 1);
    assert!(told.contains("--no-map-gw") && told.contains("--dns 10.1.1.1 --dns fd00::1"), "{told}");
    assert_eq!(host.news(), None);

    let mut host = Host::new("exec sleep 60");
    assert!(host.look(0, &Place::behind(STUB, &[])));
    let told = until_told(&host, 1);
    assert!(!told.contains("--dns"), "{told}");
    assert_eq!(host.news(), Some(NetworkNews::NoNames));
}

#[test]
fn the_network_ends_with_whoever_has_it() {
    let host = Host::new("exec sleep 60");
    let program = host.carrier.program.clone();
    let directory = tempfile::tempdir().unwrap();
    let (sender, _news) = events::unbounded_channel();
    let (network, listener) = Network::start(program, directory.path(), sender).unwrap();
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true).unwrap();
    // Where this host has no network there is none for the machine.
    let stream = listener.accept().ok().map(|(stream, _)| stream);
    assert_eq!(stream.is_some(), Place::here().has_network());
    drop(network);
    if let Some(mut stream) = stream {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    let until = Instant::now() + Duration::from_secs(20);
    while directory.path().join(SOCKET).exists() {
        assert!(Instant::now() < until, "the socket stays");
        thread::sleep(Duration::from_millis(5));
    }
}
