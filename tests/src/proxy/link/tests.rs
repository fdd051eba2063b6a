use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use super::*;
use crate::wait::{self, PATIENCE};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// A server whose connections start with a request of two numbers, each 8 bytes: how many bytes it will be sent, and how
/// many it then sends back.
fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            thread::spawn(move || {
                let mut number = || {
                    let mut bytes = [0; 8];
                    connection.read_exact(&mut bytes).ok()?;
                    Some(u64::from_le_bytes(bytes))
                };
                let (up, down) = (number()?, number()?);
                io::copy(&mut Read::by_ref(&mut connection).take(up), &mut io::sink()).ok()?;
                io::copy(&mut io::repeat(7).take(down), &mut connection).ok()
            });
        }
    });
    address
}

fn request(up: usize, down: usize) -> Vec<u8> {
    let mut bytes = [(up as u64).to_le_bytes(), (down as u64).to_le_bytes()].concat();
    bytes.resize(16 + up, 1);
    bytes
}

/// Sends `up` bytes on a new connection and reads `down` bytes back, then waits for the end.
fn exchange(address: SocketAddr, up: usize, down: usize) -> io::Result<usize> {
    let mut connection = TcpStream::connect(address)?;
    connection.write_all(&request(up, down))?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer)?;
    Ok(answer.len())
}

fn ideal() -> Link {
    Link::start(server(), Shape::default())
}

#[test]
fn carries_and_counts_everything() {
    let link = ideal();
    assert_eq!(exchange(link.address(), 3 * MIB, 5 * MIB).unwrap(), 5 * MIB);
    assert_eq!(exchange(link.address(), 1, 0).unwrap(), 0);
    let counted = Counts { up_bytes: 3 * MIB as u64 + 1 + 32, down_bytes: 5 * MIB as u64, connections: 2 };
    assert_eq!(link.counts(), counted);
}

/// Times `work` again and again; whether it once took at most a tenth more than `exact`. It must never take less, less
/// what may be sent ahead. A loaded machine slows transfers, but not for ever by a tenth.
fn takes(exact: Duration, mut work: impl FnMut()) -> bool {
    let in_time = wait::attempt(PATIENCE, || {
        let start = Instant::now();
        work();
        let taken = start.elapsed();
        assert!(taken >= exact.mul_f64(0.9), "took {taken:?}, less than {exact:?}");
        (taken <= exact.mul_f64(1.1)).then_some(())
    });
    in_time.is_some()
}

#[test]
fn keeps_its_rate_in_both_directions() {
    // 20 Mbit/s down, 10 Mbit/s up: half a second each.
    let shape = Shape {
        down: Direction { rate_bps: Some(20_000_000), delay: Duration::ZERO },
        up: Direction { rate_bps: Some(10_000_000), delay: Duration::ZERO },
    };
    let link = Link::start(server(), shape);
    let half = Duration::from_millis(500);
    assert!(takes(half, || assert_eq!(exchange(link.address(), 0, 1_250_000).unwrap(), 1_250_000)));
    assert!(takes(half, || assert_eq!(exchange(link.address(), 625_000, 0).unwrap(), 0)));
}

#[test]
fn connections_share_the_rate() {
    let link = Link::start(server(), Shape::symmetric(40_000_000, Duration::ZERO));
    let transfer = || {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| exchange(link.address(), 0, 625_000).unwrap());
            }
        });
    };
    assert!(takes(Duration::from_millis(500), transfer));
}

#[test]
fn a_long_link_is_slow_to_answer_but_not_narrow() {
    // 40 Mbit/s over 200 ms: 1 MB is under way when the link is full. One round trip opens the connection, one carries
    // request and first byte of the answer, then 2,500,000 bytes take half a second.
    let link = Link::start(server(), Shape::symmetric(40_000_000, Duration::from_millis(200)));
    let download = || assert_eq!(exchange(link.address(), 0, 2_500_000).unwrap(), 2_500_000);
    assert!(takes(Duration::from_millis(900), download));
}

#[test]
fn silence_loses_nothing() {
    let link = ideal();
    let mut connection = TcpStream::connect(link.address()).unwrap();
    connection.write_all(&request(1, 10)[..8]).unwrap();
    wait::until("the first half to arrive", PATIENCE, || (link.counts().up_bytes == 8).then_some(()));
    link.apply(Event::Down);
    connection.write_all(&request(1, 10)[8..]).unwrap();
    connection.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut answer = [0; 10];
    let silence = connection.read(&mut answer).unwrap_err();
    assert!(matches!(silence.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence}");
    // A new connection meets the same silence, not a refusal.
    let newcomer = thread::spawn({
        let address = link.address();
        move || exchange(address, 10, 20)
    });
    assert_eq!(link.counts().up_bytes, 8);
    link.apply(Event::Up);
    connection.set_read_timeout(None).unwrap();
    connection.read_exact(&mut answer).unwrap();
    assert_eq!(newcomer.join().unwrap().unwrap(), 20);
}

#[test]
fn a_stall_ends_by_itself() {
    let link = ideal();
    let start = Instant::now();
    link.apply(Event::Stall(Duration::from_millis(100)));
    assert_eq!(exchange(link.address(), 10, 10).unwrap(), 10);
    assert!(start.elapsed() >= Duration::from_millis(100));
}

#[test]
fn refuses_and_accepts_again_on_the_same_port() {
    let link = ideal();
    let mut open = TcpStream::connect(link.address()).unwrap();
    open.write_all(&request(0, 1)[..8]).unwrap();
    wait::until("the connection to open", PATIENCE, || (link.counts().up_bytes == 8).then_some(()));
    for _ in 0..3 {
        link.apply(Event::Refuse);
        let refused = TcpStream::connect(link.address()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        link.apply(Event::Accept);
        assert_eq!(exchange(link.address(), 5, 6).unwrap(), 6);
    }
    open.write_all(&request(0, 1)[8..]).unwrap();
    assert_eq!(open.read(&mut [0; 10]).unwrap(), 1, "open connections go on");
}

#[test]
fn resets_what_is_open() {
    let link = ideal();
    let mut connection = TcpStream::connect(link.address()).unwrap();
    connection.write_all(&request(100, 100)[..20]).unwrap();
    wait::until("the connection to open", PATIENCE, || (link.counts().up_bytes == 20).then_some(()));
    link.apply(Event::Reset);
    let reset = connection.read(&mut [0; 10]).unwrap_err();
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
    assert_eq!(exchange(link.address(), 5, 6).unwrap(), 6, "later connections work");
}

#[test]
fn cuts_at_the_very_byte_once() {
    let link = ideal();
    exchange(link.address(), 0, 1000).unwrap();
    link.apply(Event::CutAfter(Way::Down, 100_000));
    let cut = exchange(link.address(), 0, 200_000).unwrap_err();
    assert_eq!(cut.kind(), ErrorKind::ConnectionReset);
    assert_eq!(link.counts().down_bytes, 101_000);
    assert_eq!(exchange(link.address(), 0, 200_000).unwrap(), 200_000);

    link.apply(Event::CutAfter(Way::Up, 50_000));
    assert!(exchange(link.address(), 100_000, 1).is_err());
    assert_eq!(exchange(link.address(), 100_000, 1).unwrap(), 1);
}

#[test]
fn follows_a_schedule() {
    let link = ideal();
    link.schedule([(Duration::from_millis(20), Event::Refuse)]);
    wait::until("a refusal", PATIENCE, || TcpStream::connect(link.address()).is_err().then_some(()));
    link.schedule([
        (Duration::from_millis(20), Event::Accept),
        (Duration::from_millis(40), Event::Shape(Shape::symmetric(8_000_000, Duration::ZERO))),
    ]);
    wait::until("a connection", PATIENCE, || exchange(link.address(), 0, 1).ok());
    wait::until("the new rate", PATIENCE, || {
        let start = Instant::now();
        exchange(link.address(), 0, 100 * KIB).unwrap();
        (start.elapsed() >= Duration::from_millis(85)).then_some(())
    });
}
