use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::virtio::driver::{Answer, Driver};
use crate::virtio::hostile::{play, send_broken};

const WRITE: u16 = 2;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const PORT_RECEIVE: u16 = 4;
const PORT_TRANSMIT: u16 = 5;

const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// A console with the other ends of its port 0.
struct Setup {
    device: Console,
    typed: UnixStream,
    shown: UnixStream,
}

fn console(ports: Vec<Port>) -> Setup {
    let (typed, input) = UnixStream::pair().unwrap();
    let (shown, output) = UnixStream::pair().unwrap();
    shown.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let stdio = Stdio { input: input.into(), output: output.into() };
    Setup { device: Console::new(Some(stdio), ports).unwrap(), typed, shown }
}

fn agent(peer: Peer) -> Port {
    Port { name: "org.qemu.guest_agent.0".to_owned(), peer }
}

fn listener() -> (TempDir, UnixListener, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent");
    (folder, UnixListener::bind(&path).unwrap(), path)
}

fn wait_until(mut what: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !what() {
        assert!(begin.elapsed() < Duration::from_secs(20), "it does not happen");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A driver that speaks about ports.
struct Guest {
    driver: Driver,
    buffers: HashMap<u16, Answer>,
}

impl Guest {
    fn start(device: &mut Console) -> Guest {
        let mut guest = Guest { driver: Driver::start(device), buffers: HashMap::new() };
        for _ in 0..CONTROL_QUEUE_SIZE {
            guest.give();
        }
        guest
    }

    fn give(&mut self) {
        let answer = self.driver.send(CONTROL, &[], &[64]);
        self.buffers.insert(answer.head, answer);
    }

    fn say(&mut self, id: u32, event: u16, value: u16) {
        let message = [&id.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat();
        self.driver.ask(CONTROL + 1, &[&message], &[]);
    }

    fn hear(&mut self) -> (u32, u16, u16, Vec<u8>) {
        let (head, written) = self.driver.used(CONTROL);
        let bytes = self.driver.read(self.buffers[&head].address, written);
        self.give();
        let id = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        let event = u16::from_le_bytes(bytes[4..6].try_into().unwrap());
        let value = u16::from_le_bytes(bytes[6..8].try_into().unwrap());
        (id, event, value, bytes[8..].to_vec())
    }

    fn expect(&mut self, id: u32, event: u16, value: u16) {
        let (heard_id, heard_event, heard_value, _) = self.hear();
        assert_eq!((heard_id, heard_event, heard_value), (id, event, value));
    }

    /// Takes the ports up and opens them, as Linux does with those it has a use for.
    fn open(&mut self, ports: u32) {
        self.say(u32::MAX, DEVICE_READY, 1);
        for id in 0..ports {
            self.expect(id, DEVICE_ADD, 0);
        }
        for id in 0..ports {
            self.say(id, PORT_READY, 1);
            if id == 0 {
                self.expect(0, CONSOLE_PORT, 1);
                self.expect(0, PORT_OPEN, 1);
            } else {
                self.expect(id, PORT_NAME, 1);
            }
            self.say(id, PORT_OPEN, 1);
        }
    }

    /// Waits for a chain and reads what was written into it.
    fn received(&mut self, queue: u16, answer: Answer) -> Vec<u8> {
        let (head, written) = self.driver.used(queue);
        assert_eq!(head, answer.head);
        self.driver.read(answer.address, written)
    }
}

#[test]
fn what_is_typed_reaches_the_guest_and_what_it_writes_is_shown() {
    let mut setup = console(Vec::new());
    let mut guest = Guest::start(&mut setup.device);
    guest.open(1);
    let answer = guest.driver.send(RECEIVE, &[], &[4, 8]);
    setup.typed.write_all(b"root\n").unwrap();
    assert_eq!(guest.received(RECEIVE, answer), b"root\n");
    guest.driver.ask(TRANSMIT, &[b"pass", b"word: "], &[]);
    let mut shown = [0; 10];
    setup.shown.read_exact(&mut shown).unwrap();
    assert_eq!(&shown, b"password: ");
}

#[test]
fn a_driver_that_knows_one_port_needs_no_conversation() {
    let mut setup = console(vec![agent(Peer::Connected(UnixStream::pair().unwrap().0.into()))]);
    let mut driver = Driver::start_with(&mut setup.device, F_SIZE);
    let answer = driver.send(RECEIVE, &[], &[8]);
    setup.typed.write_all(b"x").unwrap();
    assert_eq!(driver.used(RECEIVE), (answer.head, 1));
    driver.ask(TRANSMIT, &[b"y"], &[]);
    setup.shown.read_exact(&mut [0]).unwrap();
}

#[test]
fn input_waits_for_the_guest_to_open_the_port_and_to_give_buffers() {
    let mut setup = console(Vec::new());
    let mut guest = Guest::start(&mut setup.device);
    setup.typed.write_all(b"early").unwrap();
    let answer = guest.driver.send(RECEIVE, &[], &[3]);
    guest.open(1);
    assert_eq!(guest.received(RECEIVE, answer), b"ear");
    let answer = guest.driver.send(RECEIVE, &[], &[3]);
    assert_eq!(guest.received(RECEIVE, answer), b"ly");
}

#[test]
fn a_host_that_does_not_read_makes_the_guest_wait() {
    let mut setup = console(Vec::new());
    let mut guest = Guest::start(&mut setup.device);
    guest.open(1);
    let line = vec![b'.'; 60_000];
    let sent: Vec<Answer> = (0..40).map(|_| guest.driver.send(TRANSMIT, &[&line], &[])).collect();
    guest.say(0, PORT_OPEN, 1);
    let mut used = 0;
    while guest.driver.try_used(TRANSMIT).is_some() {
        used += 1;
    }
    assert!(used < sent.len(), "a socket holds less than all of it");
    let mut all = vec![0; line.len() * sent.len()];
    setup.shown.read_exact(&mut all).unwrap();
    assert!(all.iter().all(|byte| *byte == b'.'));
    for answer in &sent[used..] {
        assert_eq!(guest.driver.used(TRANSMIT), (answer.head, 0));
    }
}

#[test]
fn the_end_of_the_input_ends_the_input_only() {
    let mut setup = console(Vec::new());
    let mut guest = Guest::start(&mut setup.device);
    guest.open(1);
    drop(setup.typed);
    let answer = guest.driver.send(RECEIVE, &[], &[8]);
    guest.driver.ask(TRANSMIT, &[b"still here"], &[]);
    setup.shown.read_exact(&mut [0; 10]).unwrap();
    assert_eq!(guest.driver.try_used(RECEIVE), None);
    assert_eq!(guest.driver.read(answer.address, 8), [0; 8]);
}

#[test]
fn what_is_written_to_a_closed_output_is_dropped() {
    let mut setup = console(Vec::new());
    let mut guest = Guest::start(&mut setup.device);
    guest.open(1);
    drop(setup.shown);
    for _ in 0..100 {
        guest.driver.ask(TRANSMIT, &[&[b'x'; 30_000]], &[]);
    }
    let answer = guest.driver.send(RECEIVE, &[], &[8]);
    setup.typed.write_all(b"in").unwrap();
    assert_eq!(guest.received(RECEIVE, answer), b"in");
}

#[test]
fn an_output_that_is_closed_while_the_guest_waits_lets_it_go_on() {
    let mut setup = console(Vec::new());
    let mut guest = Guest::start(&mut setup.device);
    guest.open(1);
    let sent: Vec<Answer> = (0..20).map(|_| guest.driver.send(TRANSMIT, &[&[b'x'; 60_000]], &[])).collect();
    guest.say(0, PORT_OPEN, 1);
    drop(setup.shown);
    for answer in sent {
        assert_eq!(guest.driver.used(TRANSMIT), (answer.head, 0));
    }
}

#[test]
fn clients_of_a_named_port_come_and_go() {
    let (_folder, listening, path) = listener();
    let mut setup = console(vec![agent(Peer::Listening(listening.into()))]);
    let mut guest = Guest::start(&mut setup.device);
    guest.open(2);
    guest.driver.ask(PORT_TRANSMIT, &[b"nobody hears this"], &[]);
    for name in [b"one", b"two"] {
        let mut client = UnixStream::connect(&path).unwrap();
        guest.expect(1, PORT_OPEN, 1);
        let answer = guest.driver.send(PORT_RECEIVE, &[], &[16]);
        client.write_all(name).unwrap();
        assert_eq!(guest.received(PORT_RECEIVE, answer), name);
        guest.driver.ask(PORT_TRANSMIT, &[b"hello"], &[]);
        let mut heard = [0; 5];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
        drop(client);
        guest.expect(1, PORT_OPEN, 0);
    }
}

#[test]
fn a_second_client_waits_until_the_first_is_gone() {
    let (_folder, listening, path) = listener();
    let mut setup = console(vec![agent(Peer::Listening(listening.into()))]);
    let mut guest = Guest::start(&mut setup.device);
    guest.open(2);
    let first = UnixStream::connect(&path).unwrap();
    guest.expect(1, PORT_OPEN, 1);
    let mut second = UnixStream::connect(&path).unwrap();
    second.write_all(b"second").unwrap();
    let answer = guest.driver.send(PORT_RECEIVE, &[], &[16]);
    drop(first);
    guest.expect(1, PORT_OPEN, 0);
    guest.expect(1, PORT_OPEN, 1);
    assert_eq!(guest.received(PORT_RECEIVE, answer), b"second");
}

#[test]
fn a_client_that_only_asks_and_listens_gets_its_answer() {
    let (_folder, listening, path) = listener();
    let mut setup = console(vec![agent(Peer::Listening(listening.into()))]);
    let mut guest = Guest::start(&mut setup.device);
    guest.open(2);
    let mut client = UnixStream::connect(&path).unwrap();
    guest.expect(1, PORT_OPEN, 1);
    client.write_all(b"ping").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let answer = guest.driver.send(PORT_RECEIVE, &[], &[16]);
    assert_eq!(guest.received(PORT_RECEIVE, answer), b"ping");
    guest.driver.ask(PORT_TRANSMIT, &[b"pong"], &[]);
    client.read_exact(&mut [0; 4]).unwrap();
    drop(client);
    guest.expect(1, PORT_OPEN, 0);
}

#[test]
fn what_a_client_said_before_it_went_reaches_the_guest() {
    let (_folder, listening, path) = listener();
    let mut setup = console(vec![agent(Peer::Listening(listening.into()))]);
    let mut guest = Guest::start(&mut setup.device);
    guest.open(2);
    UnixStream::connect(&path).unwrap().write_all(b"bye").unwrap();
    guest.expect(1, PORT_OPEN, 1);
    let answer = guest.driver.send(PORT_RECEIVE, &[], &[16]);
    assert_eq!(guest.received(PORT_RECEIVE, answer), b"bye");
    guest.expect(1, PORT_OPEN, 0);
}

#[test]
fn a_client_of_a_port_that_the_guest_has_closed_can_go() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut setup = console(vec![agent(Peer::Connected(theirs.into()))]);
    let mut guest = Guest::start(&mut setup.device);
    guest.say(1, PORT_READY, 1);
    guest.expect(1, PORT_NAME, 1);
    guest.expect(1, PORT_OPEN, 1);
    (&ours).write_all(b"unread").unwrap();
    drop(ours);
    guest.expect(1, PORT_OPEN, 0);
}

#[test]
fn a_new_size_is_in_the_configuration_and_is_told() {
    let mut setup = console(Vec::new());
    let handle = setup.device.handle();
    let mut guest = Guest::start(&mut setup.device);
    guest.open(1);
    handle.resize(80, 25);
    assert_eq!(guest.hear(), (0, RESIZE, 0, vec![80, 0, 25, 0]));
    wait_until(|| guest.driver.interrupt.config() == 1);
    let read = |offset, length| {
        let mut data = vec![9; length];
        setup.device.read_config(offset, &mut data);
        data
    };
    assert_eq!(read(0, 12), [80, 0, 25, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(read(1, 3), [0, 25, 0]);
    assert_eq!(read(7, 4), [0; 4]);
    assert_eq!(read(u64::MAX, 2), [0; 2]);
}

#[test]
fn a_size_known_before_is_told_when_the_port_is_taken_up() {
    let mut setup = console(Vec::new());
    setup.device.handle().resize(300, 2);
    let mut guest = Guest::start(&mut setup.device);
    guest.say(0, PORT_READY, 1);
    guest.expect(0, CONSOLE_PORT, 1);
    assert_eq!(guest.hear(), (0, RESIZE, 0, vec![44, 1, 2, 0]));
}

#[test]
fn news_wait_for_a_buffer_that_is_large_enough() {
    let mut setup = console(Vec::new());
    let mut driver = Driver::start(&mut setup.device);
    driver.ask(CONTROL + 1, &[&[0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0]], &[]);
    let small = driver.send(CONTROL, &[], &[7]);
    assert_eq!(driver.used(CONTROL), (small.head, 0));
    let (bytes, written) = driver.ask(CONTROL, &[], &[8]);
    assert_eq!((bytes, written), (vec![0, 0, 0, 0, 1, 0, 0, 0], 8));
}

#[test]
fn a_broken_chain_is_returned_unused_and_the_queue_goes_on() {
    let mut setup = console(Vec::new());
    let mut guest = Guest::start(&mut setup.device);
    guest.open(1);
    let sent = send_broken(&mut guest.driver, TRANSMIT, PORT_QUEUE_SIZE, 0);
    for head in sent {
        assert_eq!(guest.driver.used(TRANSMIT), (head, 0));
    }
    guest.driver.ask(TRANSMIT, &[&vec![0; 600_000], &vec![0; 600_000]], &[]);
    guest.driver.make_available(TRANSMIT, PORT_QUEUE_SIZE);
    guest.driver.ask(TRANSMIT, &[b"x"], &[]);
    let mut shown = [0];
    setup.shown.read_exact(&mut shown).unwrap();
    assert_eq!(&shown, b"x");

    let given = send_broken(&mut guest.driver, RECEIVE, PORT_QUEUE_SIZE, WRITE);
    guest.driver.make_available(RECEIVE, PORT_QUEUE_SIZE);
    let answer = guest.driver.send(RECEIVE, &[], &[4]);
    setup.typed.write_all(b"y").unwrap();
    for head in given {
        assert_eq!(guest.driver.used(RECEIVE), (head, 0));
    }
    assert_eq!(guest.received(RECEIVE, answer), b"y");

    let size = CONTROL_QUEUE_SIZE;
    for head in send_broken(&mut guest.driver, CONTROL + 1, size, 0) {
        assert_eq!(guest.driver.used(CONTROL + 1), (head, 0));
    }
    guest.driver.ask(CONTROL + 1, &[b"short"], &[]);
    guest.say(0, PORT_READY, 1);
    guest.expect(0, CONSOLE_PORT, 1);
}

#[test]
fn after_a_reset_it_begins_again_with_the_same_ends() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut setup = console(vec![agent(Peer::Connected(theirs.into()))]);
    for _ in 0..3 {
        let mut guest = Guest::start(&mut setup.device);
        guest.open_connected();
        // The host does not read: these are in flight.
        for _ in 0..20 {
            guest.driver.send(TRANSMIT, &[&[b'x'; 60_000]], &[]);
        }
        setup.device.reset();
        let mut guest = Guest::start(&mut setup.device);
        guest.open_connected();
        let answer = guest.driver.send(PORT_RECEIVE, &[], &[16]);
        ours.write_all(b"again").unwrap();
        assert_eq!(guest.received(PORT_RECEIVE, answer), b"again");
        setup.device.reset();
    }
}

impl Guest {
    fn open_connected(&mut self) {
        self.say(1, PORT_READY, 1);
        self.expect(1, PORT_NAME, 1);
        self.expect(1, PORT_OPEN, 1);
        self.say(1, PORT_OPEN, 1);
    }
}

#[test]
fn a_port_works_beside_no_terminal() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut device = Console::new(None, vec![agent(Peer::Connected(theirs.into()))]).unwrap();
    let mut guest = Guest::start(&mut device);
    guest.say(u32::MAX, DEVICE_READY, 1);
    guest.expect(1, DEVICE_ADD, 0);
    guest.open_connected();
    let answer = guest.driver.send(PORT_RECEIVE, &[], &[16]);
    ours.write_all(b"ping").unwrap();
    assert_eq!(guest.received(PORT_RECEIVE, answer), b"ping");
    // A driver that writes there all the same goes on.
    guest.driver.ask(TRANSMIT, &[b"is anybody there?"], &[]);
}

#[test]
fn a_terminal_can_be_port_0() {
    let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let path = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    let terminal = std::fs::File::options().read(true).write(true).open(path.to_str().unwrap()).unwrap();
    let stdio = Stdio { input: terminal.try_clone().unwrap().into(), output: terminal.into() };
    let mut device = Console::new(Some(stdio), Vec::new()).unwrap();
    let mut guest = Guest::start(&mut device);
    guest.open(1);
    let answer = guest.driver.send(RECEIVE, &[], &[16]);
    rustix::io::write(&master, b"ls\n").unwrap();
    assert_eq!(guest.received(RECEIVE, answer), b"ls\n");
    guest.driver.ask(TRANSMIT, &[b"files"], &[]);
    let mut shown = Vec::new();
    wait_until(|| {
        let mut bytes = [0; 64];
        let length = rustix::io::read(&master, &mut bytes).unwrap();
        shown.extend(&bytes[..length]);
        shown.ends_with(b"files")
    });
}

#[test]
fn names_and_numbers_of_ports_have_bounds() {
    let new = |ports: Vec<Port>| {
        let (input, output) = UnixStream::pair().unwrap();
        Console::new(Some(Stdio { input: input.into(), output: output.into() }), ports).map(|_| ())
    };
    let port = |name: &str| Port {
        name: name.to_owned(),
        ..agent(Peer::Connected(UnixStream::pair().unwrap().0.into()))
    };
    assert!(matches!(new(vec![port("")]), Err(ConsoleError::Name { .. })));
    assert!(matches!(new(vec![port("a\0b")]), Err(ConsoleError::Name { .. })));
    assert!(matches!(new(vec![port(&"x".repeat(129))]), Err(ConsoleError::Name { .. })));
    let many = (0..31).map(|index| port(&index.to_string())).collect();
    assert!(matches!(new(many), Err(ConsoleError::TooManyPorts { ports: 32 })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_the_driver_does_the_device_ends_when_it_is_reset(
        bytes in prop::collection::vec(any::<u8>(), 0..1000),
        typed in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut setup = console(vec![agent(Peer::Connected(theirs.into()))]);
        setup.shown.set_nonblocking(true).unwrap();
        let mut guest = Guest::start(&mut setup.device);
        guest.open_connected();
        setup.typed.write_all(&typed).unwrap();
        ours.write_all(&typed).unwrap();
        play(&mut guest.driver, 6, &bytes);
        setup.device.reset();
        let end = setup.shown.read_to_end(&mut Vec::new()).unwrap_err();
        prop_assert_eq!(end.kind(), ErrorKind::WouldBlock);
        let mut guest = Guest::start(&mut setup.device);
        guest.open_connected();
    }
}
