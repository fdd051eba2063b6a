//! A TCP proxy on loopback that is as slow, far and unreliable as it is told.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Threads;
use super::wire::{Direction, Shape, Wire};

/// How far ahead of the wire a sender may be: the queue before a real link, and slack for timers of a millisecond.
const QUEUE: Duration = Duration::from_millis(15);

/// A direction of a [`Link`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// What can happen to a [`Link`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The network goes silent: nothing arrives, nothing is refused, connections stay open and wait.
    Down,
    /// The network works again; what was under way arrives.
    Up,
    /// Silence for a while.
    Stall(Duration),
    /// New connections are refused; open ones go on.
    Refuse,
    /// New connections are accepted again.
    Accept,
    /// Every open connection is reset.
    Reset,
    /// The connection that carries the given byte from now on, counted over all connections, is reset there: after 10
    /// bytes, exactly 10 more bytes arrive in that direction before the cut.
    CutAfter(Way, u64),
    /// Rates and delays change.
    Shape(Shape),
}

/// What a [`Link`] has carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counts {
    /// Bytes that reached the server.
    pub up_bytes: u64,
    /// Bytes that reached the client.
    pub down_bytes: u64,
    /// Connections accepted.
    pub connections: u64,
}

/// A loopback address that leads to a server through a network of a given shape.
///
/// All connections share each direction's rate. A byte is under way for the direction's delay while others follow, and a
/// new connection takes a round trip to open, so that rate times delay behaves as on a real link. Losses and slow start
/// are not modelled.
#[derive(Debug)]
pub struct Link {
    shared: Arc<Shared>,
    threads: Threads,
}

impl Link {
    /// Opens a way to `target` on a free port of 127.0.0.1.
    pub fn start(target: SocketAddr, shape: Shape) -> Self {
        let shared = Arc::new(Shared::new(target, shape).expect("a loopback port can be had"));
        let link = Self { shared, threads: Threads::start("link") };
        link.apply(Event::Accept);
        link
    }

    /// Returns the address clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Returns the address as an HTTPS origin.
    pub fn url(&self) -> String {
        format!("https://{}", self.address())
    }

    /// Returns what was carried so far.
    pub fn counts(&self) -> Counts {
        Counts {
            up_bytes: lock(&self.shared.side(Way::Up).meter).carried_bytes,
            down_bytes: lock(&self.shared.side(Way::Down).meter).carried_bytes,
            connections: self.shared.connections.load(Ordering::Relaxed),
        }
    }

    /// Makes `event` happen; returns when it has begun.
    pub fn apply(&self, event: Event) {
        let (done, wait) = std::sync::mpsc::channel();
        let shared = Arc::clone(&self.shared);
        self.threads.runtime().spawn(async move {
            shared.apply(event).await;
            let _ = done.send(());
        });
        wait.recv().expect("the link's threads do not panic");
    }

    /// Makes events happen, each at its time from now, while the test goes on.
    pub fn schedule(&self, events: impl IntoIterator<Item = (Duration, Event)>) {
        let start = Instant::now();
        for (after, event) in events {
            let shared = Arc::clone(&self.shared);
            self.threads.runtime().spawn(async move {
                sleep_until(start + after).await;
                shared.apply(event).await;
            });
        }
    }
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    address: SocketAddr,
    sides: [Side; 2],
    connections: AtomicU64,
    is_up: watch::Sender<bool>,
    /// The task that holds the listening socket; none while connections are refused.
    accepting: tokio::sync::Mutex<Option<JoinHandle<()>>>,
    /// Cancelled to reset every connection that is open.
    open: Mutex<CancellationToken>,
    /// Bound but never listening: keeps the port ours while connections are refused.
    _reservation: TcpSocket,
}

/// One direction of the link. Neither lock is held while taking the other.
#[derive(Debug)]
struct Side {
    wire: Mutex<Wire>,
    meter: Mutex<Meter>,
}

#[derive(Debug, Default)]
struct Meter {
    carried_bytes: u64,
    /// The count at which a connection is reset, once.
    cut_at_bytes: Option<u64>,
}

impl Meter {
    /// Counts up to `len` bytes; how many may pass, and whether the connection is then reset.
    fn pass(&mut self, len: usize) -> (usize, bool) {
        let left = self.cut_at_bytes.map_or(u64::MAX, |cut| cut - self.carried_bytes);
        let passing = usize::try_from(left).unwrap_or(usize::MAX).min(len);
        self.carried_bytes += passing as u64;
        let is_cut = self.cut_at_bytes == Some(self.carried_bytes);
        if is_cut {
            self.cut_at_bytes = None;
        }
        (passing, is_cut)
    }
}

impl Shared {
    fn new(target: SocketAddr, shape: Shape) -> io::Result<Self> {
        let reservation = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let side = |direction| Side {
            wire: Mutex::new(Wire::new(direction, Instant::now())),
            meter: Mutex::default(),
        };
        Ok(Self {
            target,
            address: reservation.local_addr()?,
            sides: [side(shape.up), side(shape.down)],
            connections: AtomicU64::new(0),
            is_up: watch::Sender::new(true),
            accepting: tokio::sync::Mutex::default(),
            open: Mutex::default(),
            _reservation: reservation,
        })
    }

    fn side(&self, way: Way) -> &Side {
        match way {
            Way::Up => &self.sides[0],
            Way::Down => &self.sides[1],
        }
    }

    fn shape(&self) -> Shape {
        let direction = |way| lock(&self.side(way).wire).direction();
        Shape { up: direction(Way::Up), down: direction(Way::Down) }
    }

    async fn apply(self: &Arc<Self>, event: Event) {
        match event {
            Event::Down => _ = self.is_up.send_replace(false),
            Event::Up => _ = self.is_up.send_replace(true),
            Event::Stall(time) => {
                self.is_up.send_replace(false);
                let shared = Arc::clone(self);
                tokio::spawn(async move {
                    sleep(time).await;
                    shared.is_up.send_replace(true);
                });
            }
            Event::Refuse => {
                if let Some(task) = self.accepting.lock().await.take() {
                    task.abort();
                    let _ = task.await;
                }
            }
            Event::Accept => {
                let mut accepting = self.accepting.lock().await;
                if accepting.is_none() {
                    let listener = bind(self.address).and_then(|socket| socket.listen(1024));
                    let listener = listener.expect("a port that is reserved can be listened on");
                    *accepting = Some(tokio::spawn(accept(Arc::clone(self), listener)));
                }
            }
            Event::Reset => std::mem::take(&mut *lock(&self.open)).cancel(),
            Event::CutAfter(way, bytes) => {
                let mut meter = lock(&self.side(way).meter);
                meter.cut_at_bytes = Some(meter.carried_bytes + bytes);
            }
            Event::Shape(shape) => {
                lock(&self.side(Way::Up).wire).set_direction(shape.up);
                lock(&self.side(Way::Down).wire).set_direction(shape.down);
            }
        }
    }

    async fn wait_until_up(&self) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.is_up.subscribe().wait_for(|is_up| *is_up).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes an address without listening on it: nobody else gets it, and whoever binds it with `SO_REUSEADDR` may listen.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        // An error here is a connection that ended before it was accepted.
        if let Ok((client, _)) = listener.accept().await {
            shared.connections.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(connection(Arc::clone(&shared), client));
        }
    }
}

/// Carries one connection until both directions end, or it is reset.
async fn connection(shared: Arc<Shared>, mut client: TcpStream) {
    let reset = lock(&shared.open).clone();
    let open = async {
        shared.wait_until_up().await;
        sleep(shared.shape().round_trip()).await;
        TcpStream::connect(shared.target).await
    };
    let opened = tokio::select! {
        opened = open => opened,
        () = reset.cancelled() => Err(io::ErrorKind::ConnectionReset.into()),
    };
    let Ok(mut server) = opened else {
        let _ = client.set_zero_linger();
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ended = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let both = async {
            tokio::try_join!(
                one_way(&shared, Way::Up, from_client, to_server),
                one_way(&shared, Way::Down, from_server, to_client),
            )
        };
        tokio::select! {
            ended = both => ended.map(|_| ()),
            () = reset.cancelled() => Err(io::ErrorKind::ConnectionReset.into()),
        }
    };
    if ended.is_err() {
        // Closing without lingering is what sends a reset.
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// A piece of a connection's bytes under way; an empty one is the end.
struct Piece {
    bytes: Vec<u8>,
    arrives_at: Instant,
}

async fn one_way(shared: &Shared, way: Way, from: ReadHalf<'_>, to: WriteHalf<'_>) -> io::Result<()> {
    let (queue, arrivals) = mpsc::unbounded_channel();
    let under_way = UnderWay::default();
    tokio::try_join!(
        send(shared.side(way), &under_way, from, queue),
        deliver(shared, way, &under_way, arrivals, to)
    )?;
    Ok(())
}

/// Bytes of one connection and direction that were read and not yet delivered.
#[derive(Default)]
struct UnderWay {
    bytes: AtomicUsize,
    shrank: Notify,
}

/// Reads what the sender has as fast as the wire takes it.
async fn send(
    side: &Side,
    under_way: &UnderWay,
    mut from: ReadHalf<'_>,
    queue: mpsc::UnboundedSender<Piece>,
) -> io::Result<()> {
    loop {
        let direction = lock(&side.wire).direction();
        while under_way.bytes.load(Ordering::Acquire) > window(direction) {
            under_way.shrank.notified().await;
        }
        let mut bytes = vec![0; piece_len(direction)];
        let len = from.read(&mut bytes).await?;
        bytes.truncate(len);
        let passage = lock(&side.wire).carry(Instant::now(), len);
        under_way.bytes.fetch_add(len, Ordering::AcqRel);
        if queue.send(Piece { bytes, arrives_at: passage.arrives_at }).is_err() || len == 0 {
            return Ok(());
        }
        sleep_until(passage.sent_at - QUEUE).await;
    }
}

async fn deliver(
    shared: &Shared,
    way: Way,
    under_way: &UnderWay,
    mut arrivals: mpsc::UnboundedReceiver<Piece>,
    mut to: WriteHalf<'_>,
) -> io::Result<()> {
    while let Some(piece) = arrivals.recv().await {
        sleep_until(piece.arrives_at).await;
        shared.wait_until_up().await;
        if piece.bytes.is_empty() {
            return to.shutdown().await;
        }
        let (passing, is_cut) = lock(&shared.side(way).meter).pass(piece.bytes.len());
        to.write_all(&piece.bytes[..passing]).await?;
        if is_cut {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        under_way.bytes.fetch_sub(piece.bytes.len(), Ordering::AcqRel);
        under_way.shrank.notify_one();
    }
    Ok(())
}

/// Returns how many bytes are read at a time: what the wire takes in 2 ms, so that connections take turns.
fn piece_len(direction: Direction) -> usize {
    const LARGEST: u64 = 64 << 10;
    let len = direction.rate_bps.map_or(LARGEST, |rate_bps| (rate_bps / 4000).clamp(1460, LARGEST));
    usize::try_from(len).expect("a piece is small")
}

/// Returns how many bytes of one connection may be under way, as a receive window limits it: what the link itself holds,
/// and a little.
fn window(direction: Direction) -> usize {
    const SLACK: usize = 64 << 10;
    const UNLIMITED: usize = 64 << 20;
    direction.rate_bps.map_or(UNLIMITED, |rate_bps| {
        let held = u128::from(rate_bps / 8) * (direction.delay + QUEUE).as_micros() / 1_000_000;
        usize::try_from(held).unwrap_or(UNLIMITED).saturating_add(SLACK)
    })
}

#[cfg(test)]
mod tests;
