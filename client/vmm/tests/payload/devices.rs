//! Each device, from its handshake to the interrupt that says that it is done.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use satchel_vmm::event::Event;
use satchel_vmm::faults::Faults;
use satchel_vmm::machine::layout;
use satchel_vmm::virtio::balloon::Balloon;
use satchel_vmm::virtio::blk::{Blk, BlkConfig};
use satchel_vmm::virtio::console::{Console, Stdio};
use satchel_vmm::virtio::net::{Net, Stream};
use satchel_vmm::virtio::rng::Rng;
use satchel_vmm::virtio::vsock::{Connector, Vsock};
use satchel_vmm::virtio::{EVENT_IDX, INDIRECT_DESC, VERSION_1, VirtioDevice};

use crate::driver::{self, CONFIG_CHANGED, Driver, FEATURES_OK, USED_BUFFER, register};
use crate::guest::{Guest, PATIENCE};
use crate::skip::kvm;

pub(crate) const NET: u32 = 1;
pub(crate) const BLOCK: u32 = 2;
const CONSOLE: u32 = 3;
const ENTROPY: u32 = 4;
const BALLOON: u32 = 5;
const VSOCK: u32 = 19;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
/// `VIRTIO_BLK_F_MQ`.
const SEVERAL_QUEUES: u64 = 1 << 12;
/// `VIRTIO_BLK_F_FLUSH`: the driver flushes; else each write lasts before it is answered.
const FLUSHES: u64 = 1 << 9;

/// The header of a request to a disk.
pub(crate) fn request(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// A disk on a file of this many bytes.
pub(crate) fn disk(bytes: u64, queues: u16) -> (Blk, File) {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(bytes).expect("a size");
    let faults = Arc::new(Faults::new(Event::new().expect("an event")));
    let copy = file.try_clone().expect("a descriptor");
    let config =
        BlkConfig { file: copy, id: "payload".to_owned(), read_only: false, served: false, queues, faults };
    (Blk::new(config).expect("a disk"), file)
}

fn pair() -> (UnixStream, OwnedFd) {
    let (theirs, ours) = UnixStream::pair().expect("a socket");
    theirs.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    (theirs, ours.into())
}

/// A network device, and the other side.
pub(crate) fn net() -> (Net, UnixStream) {
    let (theirs, ours) = pair();
    (Net::new([2, 0, 0, 0, 0, 7], None, Box::new(Stream::new(ours))), theirs)
}

fn receive(stream: &mut UnixStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).expect("the guest's bytes");
    bytes
}

/// A frame as it goes over the socket.
pub(crate) fn framed(frame: &[u8]) -> Vec<u8> {
    let length = u32::try_from(frame.len()).expect("a short frame");
    [&length.to_be_bytes()[..], frame].concat()
}

fn writes_and_reads_back(features: u64) {
    let Some(kvm) = kvm() else { return };
    let (disk, file) = disk(1 << 20, 2);
    let metrics = disk.metrics();
    let mut guest = Guest::start(&kvm, 1, vec![Box::new(disk)]);
    let guest = &mut guest;
    let mut driver = Driver::start(guest, 0, BLOCK, SEVERAL_QUEUES | FLUSHES | features);
    assert_eq!(driver.load(guest, register::CONFIG), 2048, "sectors");
    let sector: Vec<u8> = (0..=255).chain(0..=255).collect();
    assert_eq!(driver.ask(guest, 0, &[&request(OUT, 7), &sector], &[1]), [0]);
    // More than the queue has entries, so that everything comes round.
    for _ in 0..20 {
        assert_eq!(driver.ask(guest, 0, &[&request(FLUSH, 0)], &[1]), [0]);
    }
    let mut written = [0; 512];
    file.read_exact_at(&mut written, 7 * 512).expect("the file is read");
    assert_eq!(written[..], sector);
    file.write_all_at(b"from outside", 7 * 512).expect("the file is written");
    let answer = driver.ask(guest, 1, &[&request(IN, 7)], &[512, 1]);
    assert_eq!((&answer[..12], &answer[12..512], answer[512]), (&b"from outside"[..], &sector[12..], 0));
    let counts =
        [&metrics.writes, &metrics.flushes, &metrics.reads].map(|count| count.load(Ordering::SeqCst));
    assert_eq!(counts, [1, 20, 1]);
    assert_eq!(guest.interrupts(driver.gsi), 22, "one a request");
}

#[test]
fn a_disk_writes_and_reads_back_on_either_queue() {
    writes_and_reads_back(0);
}

#[test]
fn a_disk_does_so_with_event_indices_and_indirect_tables() {
    writes_and_reads_back(EVENT_IDX | INDIRECT_DESC);
}

#[test]
fn the_entropy_device_fills_a_buffer() {
    let Some(kvm) = kvm() else { return };
    let mut guest = Guest::start(&kvm, 1, vec![Box::new(Rng::new())]);
    let mut driver = Driver::start(&mut guest, 0, ENTROPY, 0);
    let bytes = driver.ask(&mut guest, 0, &[], &[64]);
    assert_eq!(bytes.len(), 64);
    assert_ne!(bytes, driver.ask(&mut guest, 0, &[], &[64]));
}

#[test]
fn every_device_has_registers_and_an_interrupt_of_its_own() {
    let Some(kvm) = kvm() else { return };
    let devices = (0..layout::MAX_VIRTIO).map(|_| Box::new(Rng::new()) as Box<dyn VirtioDevice>);
    let mut guest = Guest::start(&kvm, 1, devices.collect());
    let last = u32::try_from(layout::MAX_VIRTIO - 1).unwrap();
    for number in 0..=last {
        let mut driver = Driver::start(&mut guest, number, ENTROPY, 0);
        assert_eq!(driver.ask(&mut guest, 0, &[], &[4]).len(), 4);
    }
    for number in 0..=last {
        assert_eq!(guest.interrupts(layout::VIRTIO_GSI + number), 1, "device {number}");
    }
    assert_eq!(guest.load(driver::registers(last + 1)), u32::MAX, "nothing is behind the last");
}

#[test]
fn what_was_not_offered_is_not_agreed_to() {
    let Some(kvm) = kvm() else { return };
    let mut guest = Guest::start(&kvm, 1, vec![Box::new(Rng::new())]);
    let at = driver::registers(0);
    assert!(!driver::agree(&mut guest, at, VERSION_1 | 1 << 63));
    assert!(!driver::agree(&mut guest, at, 0), "the device is no legacy one");
    assert!(driver::agree(&mut guest, at, VERSION_1));
    guest.store(at + register::DRIVER_FEATURES, u32::MAX);
    assert_ne!(guest.load(at + register::STATUS) & FEATURES_OK, 0, "what was agreed stays");
}

#[test]
fn the_console_carries_what_is_typed_and_what_is_shown() {
    let Some(kvm) = kvm() else { return };
    let ((mut typed, input), (mut shown, output)) = (pair(), pair());
    let console = Console::new(Some(Stdio { input, output }), Vec::new()).unwrap();
    let mut guest = Guest::start(&kvm, 1, vec![Box::new(console)]);
    let guest = &mut guest;
    let mut driver = Driver::start(guest, 0, CONSOLE, 0);
    driver.ask(guest, 1, &[b"hello, ", b"host"], &[]);
    assert_eq!(receive(&mut shown, 11), b"hello, host");
    let interrupts = guest.interrupts(driver.gsi);
    let buffer = driver.offer(guest, 0, &[], &[32]);
    driver.ring(guest, 0);
    typed.write_all(b"ls\n").unwrap();
    driver.handle_interrupt(guest, interrupts, USED_BUFFER);
    assert_eq!(driver.used(guest, 0), Some((buffer.head, 3)));
    assert_eq!(guest.get(buffer.address, 3), b"ls\n");
}

#[test]
fn the_network_carries_frames_both_ways_and_says_when_it_is_down() {
    const HEADER: [u8; 12] = [0; 12];
    let Some(kvm) = kvm() else { return };
    let (net, mut peer) = net();
    let mut guest = Guest::start(&kvm, 1, vec![Box::new(net)]);
    let guest = &mut guest;
    // VIRTIO_NET_F_MAC and _STATUS.
    let mut driver = Driver::start(guest, 0, NET, 1 << 5 | 1 << 16);
    assert_eq!(driver.load(guest, register::CONFIG).to_le_bytes(), [2, 0, 0, 0]);
    assert_eq!(driver.load(guest, register::CONFIG + 4).to_le_bytes(), [0, 7, 1, 0], "the link is up");
    driver.ask(guest, 1, &[&HEADER, &[7; 60]], &[]);
    assert_eq!(receive(&mut peer, 64), framed(&[7; 60]));
    let interrupts = guest.interrupts(driver.gsi);
    let buffer = driver.offer(guest, 0, &[], &[12, 1514]);
    driver.ring(guest, 0);
    peer.write_all(&framed(&[9; 70])).unwrap();
    driver.handle_interrupt(guest, interrupts, USED_BUFFER);
    assert_eq!(driver.used(guest, 0), Some((buffer.head, 82)));
    assert_eq!(guest.get(buffer.address + 12, 70), [9; 70]);
    drop(peer);
    driver.handle_interrupt(guest, interrupts + 1, CONFIG_CHANGED);
    assert_eq!(driver.load(guest, register::CONFIG + 4).to_le_bytes(), [0, 7, 0, 0], "the link is down");
}

#[test]
fn the_balloon_takes_pages_and_says_what_it_wants() {
    let Some(kvm) = kvm() else { return };
    let balloon = Balloon::new().unwrap();
    let handle = balloon.handle();
    let mut guest = Guest::start(&kvm, 1, vec![Box::new(balloon)]);
    let guest = &mut guest;
    let mut driver = Driver::start(guest, 0, BALLOON, 1 << 5);
    handle.target(2);
    driver.handle_interrupt(guest, 0, CONFIG_CHANGED);
    assert_eq!(driver.load(guest, register::CONFIG), 2);
    let page = guest.allocate(8192);
    let number = u32::try_from(page / 4096).unwrap();
    guest.put(page, b"forget me");
    guest.put(page + 4096, b"and me");
    let pages = [number.to_le_bytes(), (number + 1).to_le_bytes()].concat();
    driver.ask(guest, 0, &[&pages], &[]);
    driver.store(guest, register::CONFIG + 4, 2);
    guest.settle();
    assert_eq!(handle.actual(), 2);
    assert_eq!(guest.get(page, 9), [0; 9], "the memory is gone, also where the processor had it mapped");
    driver.ask(guest, 1, &[&pages], &[]);
    guest.put(page + 4096, b"mine again");
    assert_eq!(guest.get(page + 4096, 10), b"mine again");
    // Pages that are reported free are what the device may write.
    assert!(driver.ask(guest, 2, &[], &[4096]).is_empty());
}

/// Connects every port to the same socket.
struct Host(Option<OwnedFd>);

impl Connector for Host {
    fn connect(&mut self, _: u32) -> std::io::Result<OwnedFd> {
        self.0.take().ok_or_else(|| std::io::ErrorKind::ConnectionRefused.into())
    }
}

#[test]
fn the_socket_device_carries_a_connection_of_the_guest() {
    const GUEST: u64 = 42;
    const REQUEST: u16 = 1;
    const RESPONSE: u16 = 2;
    const BYTES: u16 = 5;
    let packet = |op: u16, length: u32| {
        let mut header = Vec::new();
        header.extend_from_slice(&GUEST.to_le_bytes());
        header.extend_from_slice(&2_u64.to_le_bytes());
        for word in [5000, 1024, length, u32::from(op) << 16 | 1, 0, 65_536, 0] {
            header.extend_from_slice(&word.to_le_bytes());
        }
        header
    };
    let op = |header: &[u8]| u16::from_le_bytes([header[30], header[31]]);
    let Some(kvm) = kvm() else { return };
    let (mut peer, ours) = pair();
    let device = Vsock::new(42, Box::new(Host(Some(ours)))).unwrap();
    let mut guest = Guest::start(&kvm, 1, vec![Box::new(device)]);
    let guest = &mut guest;
    let mut driver = Driver::start(guest, 0, VSOCK, 0);
    assert_eq!(driver.load(guest, register::CONFIG), 42);
    driver.ask(guest, 1, &[&packet(REQUEST, 0)], &[]);
    let answers = [(RESPONSE, &b""[..]), (BYTES, b"to the guest")];
    for (expected, bytes) in answers {
        let interrupts = guest.interrupts(driver.gsi);
        let buffer = driver.offer(guest, 0, &[], &[44, 256]);
        driver.ring(guest, 0);
        peer.write_all(bytes).unwrap();
        driver.handle_interrupt(guest, interrupts, USED_BUFFER);
        let length = 44 + u32::try_from(bytes.len()).unwrap();
        assert_eq!(driver.used(guest, 0), Some((buffer.head, length)));
        let packet = guest.get(buffer.address, length);
        assert_eq!((op(&packet), &packet[44..]), (expected, bytes));
    }
    driver.ask(guest, 1, &[&packet(BYTES, 8), b"to host!"], &[]);
    assert_eq!(receive(&mut peer, 8), b"to host!");
}
