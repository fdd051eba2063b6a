use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::header::{HEADER_BYTES, RECEIVED};
use super::*;
use crate::virtio::driver::{Descriptor, Driver, MEMORY_BYTES};

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const NO_HEADER: [u8; HEADER_BYTES] = [0; HEADER_BYTES];
const PATIENCE: Duration = Duration::from_secs(20);

fn net() -> (Net, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    (Net::new(MAC, Some(1500), Box::new(Stream::new(ours.into()))), theirs)
}

fn say(peer: &mut UnixStream, frame: &[u8]) {
    peer.write_all(&u32::try_from(frame.len()).unwrap().to_be_bytes()).unwrap();
    peer.write_all(frame).unwrap();
}

fn hear(peer: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    peer.read_exact(&mut length).unwrap();
    let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    peer.read_exact(&mut frame).unwrap();
    frame
}

fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn status(net: &Net) -> u8 {
    let mut status = [0; 2];
    net.read_config(6, &mut status);
    status[0]
}

/// The device still carries frames both ways.
fn works(driver: &mut Driver, peer: &mut UnixStream) {
    let (_, written) = driver.ask(TX, &[&NO_HEADER, &[0x11; 100]], &[]);
    assert_eq!(written, 0);
    assert_eq!(hear(peer), [0x11; 100]);
    let answer = driver.send(RX, &[], &[1526]);
    say(peer, &[0x22; 90]);
    assert_eq!(driver.used(RX), (answer.head, 102));
    assert_eq!(driver.read(answer.address, 102), [&RECEIVED[..], &[0x22; 90]].concat());
}

#[test]
fn the_configuration_is_an_address_a_link_and_an_mtu() {
    let (net, _peer) = net();
    let mut config = [0xff; 16];
    net.read_config(0, &mut config);
    assert_eq!(config, [0x52, 0x54, 0, 1, 2, 3, 1, 0, 0, 0, 0xdc, 5, 0, 0, 0, 0]);
    assert_eq!(net.features(), 1 << 3 | 1 << 5 | 1 << 16);
    assert_eq!(net.device_type(), 1);
}

#[test]
fn frames_go_both_ways_whatever_parts_they_lie_in() {
    let (mut net, mut peer) = net();
    let mut driver = Driver::start(&mut net);
    works(&mut driver, &mut peer);
    driver.ask(TX, &[&NO_HEADER[..5], &NO_HEADER[5..], &[1; 20], &[], &[2; 30]], &[]);
    assert_eq!(hear(&mut peer), [&[1; 20][..], &[2; 30]].concat());
    let answer = driver.send(RX, &[], &[3, 12, 0, 500]);
    say(&mut peer, &[7; 333]);
    assert_eq!(driver.used(RX), (answer.head, 345));
    assert_eq!(driver.read(answer.address, 345)[12..], [7; 333]);
    assert!(driver.interrupt.queues() >= 4);
}

#[test]
fn the_longest_frame_goes_both_ways() {
    let (mut net, mut peer) = net();
    let mut driver = Driver::start(&mut net);
    let frame = vec![9; LONGEST_FRAME];
    let answer = driver.send(RX, &[], &[65_562]);
    say(&mut peer, &frame);
    assert_eq!(driver.used(RX), (answer.head, 65_562));
    driver.send(TX, &[&NO_HEADER, &frame], &[]);
    assert_eq!(hear(&mut peer), frame);
}

#[test]
fn frames_wait_for_a_guest_without_buffers() {
    let (mut net, mut peer) = net();
    let mut driver = Driver::start(&mut net);
    for frame in 0..50 {
        say(&mut peer, &[frame; 60]);
    }
    for frame in 0..50 {
        let (bytes, written) = driver.ask(RX, &[], &[1526]);
        assert_eq!((bytes[12], written), (frame, 72));
    }
}

#[test]
fn the_queue_waits_for_a_peer_that_does_not_read() {
    let (mut net, mut peer) = net();
    let mut driver = Driver::start(&mut net);
    let address = driver.buffer(60_012);
    for _ in 0..200 {
        driver.send_chain(TX, &[Descriptor { address, length: 60_012, flags: 0, next: 0 }]);
    }
    driver.ring(TX);
    driver.used(TX);
    std::thread::sleep(Duration::from_millis(50));
    let mut used = 1;
    while driver.try_used(TX).is_some() {
        used += 1;
    }
    assert!(used < 200, "a socket does not hold 12 MB");
    for _ in 0..200 {
        assert_eq!(hear(&mut peer).len(), 60_000);
    }
    while used < 200 {
        driver.used(TX);
        used += 1;
    }
    works(&mut driver, &mut peer);
}

#[test]
fn the_link_is_down_when_the_peer_is_gone_and_the_guest_is_told_once() {
    let (mut net, peer) = net();
    let mut driver = Driver::start(&mut net);
    let link = net.link();
    assert_eq!((link.is_up(), status(&net)), (true, 1));
    drop(peer);
    wait_for("the link goes down", || !link.is_up());
    assert_eq!(status(&net), 0);
    for _ in 0..10 {
        driver.ask(TX, &[&NO_HEADER, &[1; 60]], &[]);
        driver.send(RX, &[], &[1526]);
    }
    assert_eq!(driver.interrupt.config(), 1);
    net.reset();
    Driver::start(&mut net).ask(TX, &[&NO_HEADER, &[1; 60]], &[]);
}

/// A device whose other side may come again, and where it does.
fn exchange() -> (Net, tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("network");
    let frames = Exchange::new(UnixListener::bind(&path).unwrap()).unwrap();
    (Net::new(MAC, Some(1500), Box::new(frames)), dir, path)
}

fn connect(path: &Path) -> UnixStream {
    let peer = UnixStream::connect(path).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer
}

#[test]
fn the_link_is_up_again_when_another_peer_has_come_and_frames_begin_anew() {
    let (mut net, _dir, path) = exchange();
    let link = net.link();
    assert!(!link.is_up(), "nobody is there");
    let mut driver = Driver::start(&mut net);
    // What is sent to nobody is lost as on a wire.
    driver.ask(TX, &[&NO_HEADER, &[1; 60]], &[]);
    let mut peer = connect(&path);
    wait_for("the link comes up", || link.is_up());
    assert_eq!((status(&net), driver.interrupt.config()), (1, 1));
    works(&mut driver, &mut peer);

    // It goes in the middle of a frame, and has not read all of another.
    peer.write_all(&[0, 0, 0, 90, 1, 2, 3]).unwrap();
    let address = driver.buffer(60_012);
    for _ in 0..100 {
        driver.send_chain(TX, &[Descriptor { address, length: 60_012, flags: 0, next: 0 }]);
    }
    driver.ring(TX);
    driver.used(TX);
    // The next one is there before the first is gone, and waits for that.
    let mut next = connect(&path);
    drop(peer);
    wait_for("all is taken, lost or sent", || {
        next.set_nonblocking(true).unwrap();
        while next.read(&mut [0; 65_536]).is_ok_and(|read| read > 0) {}
        driver.try_used(TX).is_some() && driver.interrupt.config() == 3
    });
    std::thread::sleep(Duration::from_millis(20));
    net.reset();
    drop(next);
    let mut driver = Driver::start(&mut net);
    wait_for("the link goes down", || !link.is_up());
    let mut third = connect(&path);
    wait_for("the link comes up", || link.is_up());
    works(&mut driver, &mut third);
}

#[test]
fn who_connected_before_the_start_is_there_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("network");
    let listener = UnixListener::bind(&path).unwrap();
    let mut peer = connect(&path);
    let mut net = Net::new(MAC, None, Box::new(Exchange::new(listener).unwrap()));
    assert!(net.link().is_up());
    let mut driver = Driver::start(&mut net);
    works(&mut driver, &mut peer);
    assert_eq!(driver.interrupt.config(), 0);
}

#[test]
fn the_link_is_down_when_the_peer_is_gone_while_the_queue_waits_for_it() {
    let (mut net, peer) = net();
    let mut driver = Driver::start(&mut net);
    let address = driver.buffer(60_012);
    for _ in 0..100 {
        driver.send_chain(TX, &[Descriptor { address, length: 60_012, flags: 0, next: 0 }]);
    }
    driver.ring(TX);
    driver.used(TX);
    drop(peer);
    for _ in 1..100 {
        driver.used(TX);
    }
    assert!(!net.link().is_up());
}

#[test]
fn the_link_is_down_when_the_peer_speaks_garbage() {
    for garbage in [[0; 8], [0xff; 8]] {
        let (mut net, mut peer) = net();
        let mut driver = Driver::start(&mut net);
        driver.send(RX, &[], &[1526]);
        peer.write_all(&garbage).unwrap();
        wait_for("the link goes down", || !net.link().is_up());
        driver.ask(TX, &[&NO_HEADER, &[1; 60]], &[]);
        assert!(driver.try_used(RX).is_none());
    }
}

#[test]
fn a_frame_of_the_guest_that_is_none_is_returned_and_dropped() {
    let (mut net, mut peer) = net();
    let mut driver = Driver::start(&mut net);
    let long = vec![0; 12 + LONGEST_FRAME + 1];
    let mut offload = [0; 80];
    offload[0] = 1;
    let cases: [(&str, &[&[u8]]); 6] = [
        ("empty", &[&[]]),
        ("half a header", &[&[0; 6]]),
        ("header only", &[&[0; 12]]),
        ("shorter than a frame", &[&[0; 25]]),
        ("longer than a frame", &[&long]),
        ("asks for a checksum", &[&offload]),
    ];
    for (what, parts) in cases {
        let (_, written) = driver.ask(TX, parts, &[]);
        assert_eq!(written, 0, "{what}");
    }
    driver.ask(TX, &[&[0; 80]], &[100]);
    works(&mut driver, &mut peer);
}

/// Chains whose descriptors make no sense in any queue; `flags` are those of a sensible part.
fn hopeless_chains(driver: &mut Driver, flags: u16) -> Vec<Vec<Descriptor>> {
    let address = driver.buffer(4096);
    let part = Descriptor { address, length: 100, flags, next: 0 };
    vec![
        vec![Descriptor { address: MEMORY_BYTES - 50, ..part }],
        vec![Descriptor { address: u64::MAX - 10, ..part }],
        vec![part, Descriptor { address: 1 << 40, ..part }],
        vec![Descriptor { length: u32::MAX, ..part }],
        vec![Descriptor { flags: INDIRECT, address: 1 << 40, length: 160, ..part }],
        vec![Descriptor { flags: INDIRECT, length: 17, ..part }],
        vec![Descriptor { flags: INDIRECT, length: 0, ..part }],
        vec![Descriptor { flags: flags ^ WRITE, ..part }],
    ]
}

/// Makes a loop of the next two descriptors, and a chain that leaves the table; returns how many heads come back.
fn make_broken_links(driver: &mut Driver, queue: u16, flags: u16) -> usize {
    let address = driver.buffer(4096);
    let part = Descriptor { address, length: 10, flags: flags | NEXT, next: 201 };
    driver.write_descriptor(queue, 200, part);
    driver.write_descriptor(queue, 201, Descriptor { next: 200, ..part });
    driver.write_descriptor(queue, 202, Descriptor { next: 202, length: 0, ..part });
    driver.write_descriptor(queue, 203, Descriptor { next: 256, ..part });
    for head in [200, 202, 203] {
        driver.make_available(queue, head);
    }
    // No entry of the table: there is nothing to give back.
    driver.make_available(queue, 256);
    driver.make_available(queue, u16::MAX);
    driver.ring(queue);
    3
}

#[test]
fn a_chain_to_send_that_makes_no_sense_is_returned() {
    let (mut net, mut peer) = net();
    let mut driver = Driver::start(&mut net);
    for chain in hopeless_chains(&mut driver, 0) {
        let head = driver.send_chain(TX, &chain);
        driver.ring(TX);
        assert_eq!(driver.used(TX), (head, 0), "{:?}", chain[0]);
    }
    for _ in 0..make_broken_links(&mut driver, TX, 0) {
        assert_eq!(driver.used(TX).1, 0);
    }
    works(&mut driver, &mut peer);
}

#[test]
fn a_chain_to_receive_in_that_makes_no_sense_is_returned_unused() {
    let (mut net, mut peer) = net();
    let mut driver = Driver::start(&mut net);
    let mut heads = Vec::new();
    for chain in hopeless_chains(&mut driver, WRITE) {
        let head = driver.send_chain(RX, &chain);
        driver.ring(RX);
        say(&mut peer, &[1; 60]);
        assert_eq!(driver.used(RX), (head, 0), "{:?}", chain[0]);
    }
    for short in [1, 11, 12, 71] {
        heads.push(driver.send(RX, &[], &[short]).head);
    }
    heads.push(driver.send(RX, &[&[0; 10]], &[100]).head);
    for head in heads {
        say(&mut peer, &[1; 60]);
        assert_eq!(driver.used(RX), (head, 0));
    }
    let broken = make_broken_links(&mut driver, RX, WRITE);
    for _ in 0..broken + 2 {
        say(&mut peer, &[1; 60]);
    }
    for _ in 0..broken {
        assert_eq!(driver.used(RX).1, 0);
    }
    works(&mut driver, &mut peer);
}

#[test]
fn an_index_that_runs_away_stops_the_queue_and_nothing_else() {
    let (mut net, mut peer) = net();
    let mut driver = Driver::start(&mut net);
    for _ in 0..300 {
        driver.make_available(TX, 300);
    }
    driver.ring(TX);
    let answer = driver.send(RX, &[], &[1526]);
    say(&mut peer, &[3; 60]);
    assert_eq!(driver.used(RX), (answer.head, 72));
    net.reset();
    works(&mut Driver::start(&mut net), &mut peer);
}

#[test]
fn a_reset_in_the_middle_of_a_frame_does_not_tear_the_stream() {
    let (mut net, mut peer) = net();
    let mut driver = Driver::start(&mut net);
    let address = driver.buffer(60_012);
    for _ in 0..100 {
        driver.send_chain(TX, &[Descriptor { address, length: 60_012, flags: 0, next: 0 }]);
    }
    driver.ring(TX);
    driver.used(TX);
    std::thread::sleep(Duration::from_millis(20));
    net.reset();
    let mut used = 1;
    while driver.try_used(TX).is_some() {
        used += 1;
    }
    let mut driver = Driver::start(&mut net);
    for _ in 0..used {
        assert_eq!(hear(&mut peer).len(), 60_000);
    }
    works(&mut driver, &mut peer);
}

#[test]
fn a_queue_the_driver_left_out_is_said() {
    let (mut net, _peer) = net();
    let mut other = self::net().0;
    let driver = Driver::start(&mut other);
    let activation = Activation {
        memory: driver.memory.clone(),
        features: 0,
        queues: vec![None, None],
        interrupt: driver.interrupt.clone(),
    };
    assert!(matches!(net.activate(activation), Err(ActivateError::NoQueue { queue: RX })));
}

fn any_descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![0x20_0000..0x30_0000_u64, 0..MEMORY_BYTES + 100, any::<u64>()];
    let length = prop_oneof![0..200_u32, 0..80_000_u32, any::<u32>()];
    (address, length, 0..8_u16, 0..300_u16).prop_map(|(address, length, flags, next)| Descriptor {
        address,
        length,
        flags,
        next,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn no_table_and_no_peer_stops_the_device(
        tables in prop::array::uniform2(prop::collection::vec(any_descriptor(), 1..60)),
        heads in prop::collection::vec((0..2_u16, 0..300_u16), 0..80),
        said in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..200)), 0..20),
    ) {
        let (mut net, mut peer) = net();
        let mut driver = Driver::start(&mut net);
        for (queue, table) in (0..).zip(&tables) {
            for (at, descriptor) in (0..).zip(table) {
                driver.write_descriptor(queue, at, *descriptor);
            }
        }
        for (queue, head) in &heads {
            driver.make_available(*queue, *head);
            driver.ring(*queue);
        }
        for (framed, bytes) in &said {
            // The device closes nothing while it lives, and the socket has room for all of it.
            if *framed {
                say(&mut peer, bytes);
            } else {
                peer.write_all(bytes).unwrap();
            }
        }
        // Its rings may be overwritten now: that it ends is all that can be asked.
        std::thread::sleep(Duration::from_millis(3));
        net.reset();
    }
}

mod with_passt;
