use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use proptest::prelude::*;

use super::header::{HEADER_BYTES, HOST_CID, Header, NO_MORE_RECEIVED, NO_MORE_SENT, STREAM, op};
use super::table::MOST_CONNECTIONS;
use super::*;
use crate::virtio::driver::{Answer, Descriptor, Driver, MEMORY_BYTES};

mod malformed;

const CID: u32 = 42;
const PATIENCE: Duration = Duration::from_secs(20);
/// The port somebody of the host listens at, and the one of the guest that talks to it.
const SERVICE: u32 = 1024;
const CLIENT: u32 = 5000;

/// Gives out sockets whose other ends the test has.
#[derive(Clone, Default)]
struct Host(Arc<Mutex<Vec<UnixStream>>>);

impl Connector for Host {
    fn connect(&mut self, port: u32) -> io::Result<OwnedFd> {
        if port != SERVICE {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        theirs.set_read_timeout(Some(PATIENCE))?;
        self.0.lock().unwrap().push(theirs);
        Ok(ours.into())
    }
}

/// A guest: its driver, with buffers to receive in.
struct Guest {
    driver: Driver,
    buffers: VecDeque<Answer>,
    /// What it says of its own room.
    room: u32,
    forwarded: u32,
}

impl Guest {
    fn start(vsock: &mut Vsock) -> Guest {
        let mut guest = Guest::without_buffers(vsock);
        guest.give_buffers(100);
        guest
    }

    fn without_buffers(vsock: &mut Vsock) -> Guest {
        Guest { driver: Driver::start(vsock), buffers: VecDeque::new(), room: 100_000, forwarded: 0 }
    }

    fn give_buffers(&mut self, count: usize) {
        for _ in 0..count {
            let buffer = self.driver.send(RX, &[], &[44, 4096]);
            self.buffers.push_back(buffer);
        }
    }

    fn header(&self, op: u16) -> Header {
        Header {
            src_cid: u64::from(CID),
            dst_cid: HOST_CID,
            src_port: CLIENT,
            dst_port: SERVICE,
            kind: STREAM,
            op,
            buf_alloc: self.room,
            fwd_cnt: self.forwarded,
            ..Header::default()
        }
    }

    fn say(&mut self, header: Header) {
        self.driver.ask(TX, &[&header.to_bytes()], &[]);
    }

    fn say_op(&mut self, op: u16) {
        self.say(self.header(op));
    }

    fn say_bytes(&mut self, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).unwrap();
        let header = Header { len, ..self.header(op::RW) };
        self.driver.ask(TX, &[&header.to_bytes(), bytes], &[]);
    }

    fn hear(&mut self) -> (Header, Vec<u8>) {
        let (head, written) = self.driver.used(RX);
        let buffer = self.buffers.pop_front().unwrap();
        assert_eq!(head, buffer.head);
        self.give_buffers(1);
        let packet = self.driver.read(buffer.address, written);
        let (header, bytes) = packet.split_first_chunk::<HEADER_BYTES>().unwrap();
        let header = Header::parse(header);
        assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, u64::from(CID), STREAM));
        assert_eq!(usize::try_from(header.len).unwrap(), bytes.len());
        (header, bytes.to_vec())
    }

    fn hear_op(&mut self, op: u16) -> Header {
        let (header, _) = self.hear();
        assert_eq!(header.op, op, "{header:?}");
        header
    }

    fn connect(&mut self, host: &Host) -> UnixStream {
        self.say_op(op::REQUEST);
        let response = self.hear_op(op::RESPONSE);
        assert_eq!((response.src_port, response.dst_port), (SERVICE, CLIENT));
        assert_eq!((response.buf_alloc, response.fwd_cnt), (65_536, 0));
        host.0.lock().unwrap().pop().unwrap()
    }
}

fn vsock() -> (Vsock, Host) {
    let host = Host::default();
    (Vsock::new(CID, Box::new(host.clone())).unwrap(), host)
}

/// A new connection carries bytes both ways.
fn works(guest: &mut Guest, host: &Host) {
    let mut socket = guest.connect(host);
    guest.say_bytes(b"to the host");
    let mut bytes = [0; 11];
    socket.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"to the host");
    socket.write_all(b"to the guest").unwrap();
    let (header, bytes) = guest.hear();
    assert_eq!((header.op, &bytes[..]), (op::RW, &b"to the guest"[..]));
    assert_eq!(header.fwd_cnt, 11);
    guest.say_op(op::RST);
    assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn the_configuration_is_the_identifier_of_the_guest() {
    let (vsock, _) = vsock();
    let mut config = [0xff; 12];
    vsock.read_config(0, &mut config);
    assert_eq!(config, [42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(vsock.device_type(), 19);
    for reserved in [0, 1, 2, u32::MAX] {
        assert!(Vsock::new(reserved, Box::new(Host::default())).is_err());
    }
}

#[test]
fn a_connection_of_the_guest_carries_bytes_both_ways() {
    let (mut vsock, host) = vsock();
    let mut guest = Guest::start(&mut vsock);
    works(&mut guest, &host);
    works(&mut guest, &host);
}

#[test]
fn a_port_nobody_listens_at_refuses() {
    let (mut vsock, _) = vsock();
    let mut guest = Guest::start(&mut vsock);
    guest.say(Header { dst_port: 7, ..guest.header(op::REQUEST) });
    assert_eq!(guest.hear_op(op::RST).src_port, 7);
}

#[test]
fn a_connection_to_the_guest_begins_with_a_line_that_says_so() {
    let (mut vsock, _) = vsock();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    theirs.write_all(b"early").unwrap();
    vsock.handle().connect(22, ours.into()).unwrap();
    let mut guest = Guest::start(&mut vsock);
    let request = guest.hear_op(op::REQUEST);
    assert_eq!(request.dst_port, 22);
    let answer = Header { src_port: 22, dst_port: request.src_port, ..guest.header(op::RESPONSE) };
    guest.say(answer);
    let line = format!("OK {}\n", request.src_port);
    let mut bytes = vec![0; line.len()];
    theirs.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, line.as_bytes());
    assert_eq!(guest.hear().1, b"early");
    guest.say(Header { op: op::RST, ..answer });
    assert_eq!(theirs.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_connection_the_guest_refuses_is_closed() {
    let (mut vsock, _) = vsock();
    let mut guest = Guest::start(&mut vsock);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    vsock.handle().connect(22, ours.into()).unwrap();
    let request = guest.hear_op(op::REQUEST);
    guest.say(Header { src_port: 22, dst_port: request.src_port, ..guest.header(op::RST) });
    assert_eq!(theirs.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn no_more_connections_wait_for_a_guest_than_there_is_room_for() {
    let (vsock, _) = vsock();
    let handle = vsock.handle();
    let socket = || OwnedFd::from(UnixStream::pair().unwrap().0);
    for _ in 0..64 {
        handle.connect(1, socket()).unwrap();
    }
    assert!(handle.connect(1, socket()).is_err());
}

#[test]
fn the_guest_is_told_when_the_host_took_its_bytes() {
    let (mut vsock, host) = vsock();
    let mut guest = Guest::start(&mut vsock);
    let mut socket = guest.connect(&host);
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let (mut sent, mut taken) = (0_u32, 0_u32);
    while sent < 2_000_000 {
        if sent - taken <= 65_536 - 8192 {
            guest.say_bytes(&[u8::try_from(sent / 8192 % 256).unwrap(); 8192]);
            sent += 8192;
        } else {
            taken = guest.hear_op(op::CREDIT_UPDATE).fwd_cnt;
        }
    }
    guest.say(Header { flags: NO_MORE_SENT, ..guest.header(op::SHUTDOWN) });
    let bytes = reader.join().unwrap();
    assert_eq!(bytes.len(), usize::try_from(sent).unwrap());
    assert!(
        bytes.chunks(8192).enumerate().all(|(at, part)| part.iter().all(|b| usize::from(*b) == at % 256))
    );
}

#[test]
fn a_guest_that_sends_more_than_its_credit_loses_the_connection() {
    let (mut vsock, host) = vsock();
    let mut guest = Guest::start(&mut vsock);
    let _socket = guest.connect(&host);
    // The socket of the host takes some, and nobody reads it.
    let mut packets = 0;
    while guest.driver.try_used(RX).is_none() {
        guest.say_bytes(&[1; 60_000]);
        packets += 1;
        assert!(packets < 100, "everything has an end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_device_sends_no_more_than_the_guest_has_room_for() {
    let (mut vsock, host) = vsock();
    let mut guest = Guest::start(&mut vsock);
    guest.room = 10_000;
    let mut socket = guest.connect(&host);
    socket.write_all(&[7; 25_000]).unwrap();
    drop(socket);
    let mut heard = 0;
    for room in [10_000, 20_000, 25_000] {
        while heard < room {
            let (header, bytes) = guest.hear();
            assert_eq!(header.op, op::RW);
            heard += bytes.len();
        }
        assert_eq!(heard, room);
        if room < 25_000 {
            guest.hear_op(op::CREDIT_REQUEST);
            guest.forwarded = u32::try_from(heard).unwrap();
            guest.say_op(op::CREDIT_UPDATE);
        }
    }
    assert_eq!(guest.hear_op(op::SHUTDOWN).flags, NO_MORE_SENT | NO_MORE_RECEIVED);
    guest.say_op(op::RST);
    guest.forwarded = 0;
    works(&mut guest, &host);
}

#[test]
fn a_guest_that_asks_is_told_the_credit() {
    let (mut vsock, host) = vsock();
    let mut guest = Guest::start(&mut vsock);
    let mut socket = guest.connect(&host);
    guest.say_bytes(&[1; 100]);
    socket.read_exact(&mut [0; 100]).unwrap();
    guest.say_op(op::CREDIT_REQUEST);
    let update = guest.hear_op(op::CREDIT_UPDATE);
    assert_eq!((update.buf_alloc, update.fwd_cnt), (65_536, 100));
}

#[test]
fn each_side_may_end_its_half_first() {
    let (mut vsock, host) = vsock();
    let mut guest = Guest::start(&mut vsock);
    let mut socket = guest.connect(&host);
    guest.say_bytes(b"question");
    guest.say(Header { flags: NO_MORE_SENT, ..guest.header(op::SHUTDOWN) });
    let mut question = Vec::new();
    socket.read_to_end(&mut question).unwrap();
    assert_eq!(question, b"question");
    socket.write_all(b"answer").unwrap();
    assert_eq!(guest.hear().1, b"answer");
    guest.say(Header { flags: NO_MORE_RECEIVED, ..guest.header(op::SHUTDOWN) });
    guest.hear_op(op::RST);

    let mut socket = guest.connect(&host);
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(guest.hear_op(op::SHUTDOWN).flags, NO_MORE_SENT);
    guest.say_bytes(b"still");
    socket.read_exact(&mut [0; 5]).unwrap();
}

#[test]
fn bytes_for_a_host_that_is_gone_end_the_connection() {
    let (mut vsock, host) = vsock();
    let mut guest = Guest::start(&mut vsock);
    drop(guest.connect(&host));
    guest.hear_op(op::SHUTDOWN);
    guest.say_bytes(b"anybody?");
    guest.hear_op(op::RST);
    works(&mut guest, &host);
}

#[test]
fn what_belongs_to_no_connection_is_answered_by_a_reset() {
    let (mut vsock, host) = vsock();
    let mut guest = Guest::start(&mut vsock);
    for op in [0, op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 8, u16::MAX] {
        guest.say_op(op);
        guest.hear_op(op::RST);
    }
    // A reset is not answered, nor is a packet with another's address.
    guest.say_op(op::RST);
    guest.say(Header { src_cid: 43, ..guest.header(op::REQUEST) });
    guest.say(Header { dst_cid: 1, ..guest.header(op::REQUEST) });
    works(&mut guest, &host);
}

#[test]
fn what_makes_no_sense_in_a_connection_ends_it() {
    let (mut vsock, host) = vsock();
    let mut guest = Guest::start(&mut vsock);
    for op in [0, op::REQUEST, op::RESPONSE, 8, u16::MAX] {
        let mut socket = guest.connect(&host);
        guest.say_op(op);
        guest.hear_op(op::RST);
        assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0);
    }
}

#[test]
fn another_type_of_socket_is_refused() {
    let (mut vsock, _) = vsock();
    let mut guest = Guest::start(&mut vsock);
    guest.say(Header { kind: 2, ..guest.header(op::REQUEST) });
    let (_, written) = guest.driver.used(RX);
    let packet = guest.driver.read(guest.buffers[0].address, written);
    let header = Header::parse(packet.first_chunk().unwrap());
    assert_eq!((header.kind, header.op), (2, op::RST));
}

#[test]
fn there_are_so_many_connections_and_no_more() {
    let (mut vsock, host) = vsock();
    let mut guest = Guest::start(&mut vsock);
    let most = u32::try_from(MOST_CONNECTIONS).unwrap();
    for port in 0..most {
        guest.say(Header { src_port: port, ..guest.header(op::REQUEST) });
        guest.hear_op(op::RESPONSE);
    }
    guest.say(Header { src_port: most, ..guest.header(op::REQUEST) });
    guest.hear_op(op::RST);
    guest.say(Header { src_port: 0, ..guest.header(op::RST) });
    guest.say(Header { src_port: most, ..guest.header(op::REQUEST) });
    guest.hear_op(op::RESPONSE);
    assert_eq!(host.0.lock().unwrap().len(), MOST_CONNECTIONS + 1);
}

#[test]
fn a_guest_that_fetches_no_answers_is_not_heard_until_it_does() {
    let (mut vsock, host) = vsock();
    let mut guest = Guest::without_buffers(&mut vsock);
    let header = guest.header(op::RW).to_bytes();
    for _ in 0..256 {
        guest.driver.ask(TX, &[&header], &[]);
    }
    guest.driver.send(TX, &[&header], &[]);
    std::thread::sleep(Duration::from_millis(20));
    assert!(guest.driver.try_used(TX).is_none());
    guest.give_buffers(100);
    for _ in 0..257 {
        guest.hear_op(op::RST);
    }
    guest.driver.used(TX);
    works(&mut guest, &host);
}

#[test]
fn a_reset_closes_the_connections_and_the_next_driver_has_none() {
    let (mut vsock, host) = vsock();
    let mut guest = Guest::start(&mut vsock);
    let mut socket = guest.connect(&host);
    guest.say_bytes(b"left");
    socket.write_all(&[1; 50_000]).unwrap();
    vsock.reset();
    let mut left = Vec::new();
    // The bytes that the guest did not fetch make it a reset for the host too.
    let _ = socket.read_to_end(&mut left);
    assert_eq!(left, b"left");
    let mut guest = Guest::start(&mut vsock);
    guest.say_bytes(b"lost");
    guest.hear_op(op::RST);
    works(&mut guest, &host);
}

#[test]
fn a_reset_of_the_transport_is_an_event() {
    let (mut vsock, host) = vsock();
    let mut guest = Guest::start(&mut vsock);
    let mut socket = guest.connect(&host);
    vsock.handle().reset_transport();
    assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0);
    guest.driver.send(EVENTS, &[], &[2]);
    assert_eq!(guest.driver.used(EVENTS).1, 0);
    let buffer = guest.driver.send(EVENTS, &[], &[8]);
    assert_eq!(guest.driver.used(EVENTS), (buffer.head, 4));
    works(&mut guest, &host);
}
