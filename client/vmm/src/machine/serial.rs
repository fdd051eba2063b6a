//! The first serial port: a 16550A whose line is a file descriptor.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};

use crate::event::Event;
use crate::virtio::{Role, Worker, wait_readable};

/// Bytes of input taken at once; the port itself holds 64.
const INPUT_BYTES: usize = 64;

/// The interrupt of the port.
struct Interrupt(Event);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.signal();
        Ok(())
    }
}

/// Says when the guest has read all there was.
struct InputRoom(Arc<Event>);

impl SerialEvents for InputRoom {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.0.signal();
    }
}

/// How long the guest waits for a line that takes nothing at present, before what it says is dropped.
const LINE_PATIENCE: Duration = Duration::from_millis(100);

/// Where the guest's output goes. A machine waits for a slow reader a moment, and not at all for one that stands still or is
/// gone.
struct Line {
    file: Option<File>,
    stands_still: bool,
}

impl Line {
    /// Waits until the line takes something; false when it does not.
    fn takes_more(&mut self, file: &File) -> bool {
        let patience = if self.stands_still { Duration::ZERO } else { LINE_PATIENCE };
        let mut polled = [PollFd::new(file, PollFlags::OUT)];
        let patience = Timespec::try_from(patience).ok();
        // An interruption is as good as an end: a processor is wanted elsewhere.
        let is_ready = rustix::event::poll(&mut polled, patience.as_ref()).is_ok_and(|ready| ready > 0);
        self.stands_still = !is_ready;
        is_ready
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(mut file) = self.file.take() {
            let written = if self.takes_more(&file) { file.write(bytes) } else { Ok(0) };
            match written.map_err(|error| error.kind()) {
                Ok(_) | Err(io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => self.file = Some(file),
                Err(_) => {}
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Port = Serial<Interrupt, InputRoom, Line>;

/// The port, and the thread that feeds it.
pub struct SerialPort {
    port: Arc<Mutex<Port>>,
    interrupt: Event,
    _input: Option<Worker>,
}

impl SerialPort {
    /// A port on a line; without an input nothing is ever received.
    ///
    /// # Errors
    /// No thread or descriptor is to be had.
    pub fn new(input: Option<OwnedFd>, output: Option<OwnedFd>) -> io::Result<SerialPort> {
        let interrupt = Event::new()?;
        let room = Arc::new(Event::new()?);
        let line = Line { file: output.map(File::from), stands_still: false };
        let port = Serial::with_events(Interrupt(interrupt.try_clone()?), InputRoom(Arc::clone(&room)), line);
        let port = Arc::new(Mutex::new(port));
        let feeding = Arc::clone(&port);
        let input = match input {
            Some(input) => Some(Worker::start(Role::Serial, move |stop| {
                feed(stop, File::from(input), &feeding, &room);
            })?),
            None => None,
        };
        Ok(SerialPort { port, interrupt, _input: input })
    }

    /// The event that is to raise the port's interrupt.
    pub fn interrupt_event(&self) -> &Event {
        &self.interrupt
    }

    /// The guest reads a register.
    pub fn read(&self, offset: u8) -> u8 {
        lock(&self.port).read(offset)
    }

    /// The guest writes a register.
    pub fn write(&self, offset: u8, value: u8) {
        if let Err(error) = lock(&self.port).write(offset, value) {
            tracing::debug!(%error, "the serial port");
        }
    }
}

fn lock(port: &Mutex<Port>) -> MutexGuard<'_, Port> {
    port.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Carries input to the port, no more than it has room for.
fn feed(stop: &Event, mut input: File, port: &Mutex<Port>, room: &Event) {
    let mut buffer = [0; INPUT_BYTES];
    loop {
        let Some([true]) = wait_readable(stop, [input.as_fd()]) else { return };
        let mut rest = match input.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => &buffer[..read],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        };
        while !rest.is_empty() {
            room.take();
            let taken = {
                let mut port = lock(port);
                let taken = port.fifo_capacity().min(rest.len());
                // In loopback mode the port takes nothing from the line: then the bytes are lost, as on a real one.
                let _ = port.enqueue_raw_bytes(&rest[..taken]);
                taken
            };
            rest = &rest[taken..];
            if taken == 0 && wait_readable(stop, [room.as_fd()]).is_none() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    const DATA: u8 = 0;
    const LINE_STATUS: u8 = 5;

    #[test]
    fn bytes_go_both_ways_however_many_there_are() {
        let (mut outside, line) = UnixStream::pair().unwrap();
        let output = OwnedFd::from(line.try_clone().unwrap());
        let port = SerialPort::new(Some(line.into()), Some(output)).unwrap();
        for byte in b"login: " {
            port.write(DATA, *byte);
        }
        let mut said = [0; 7];
        outside.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"login: ");
        let typed: Vec<u8> = (0..=255).cycle().take(5000).collect();
        outside.write_all(&typed).unwrap();
        let mut received = Vec::new();
        while received.len() < typed.len() {
            if port.read(LINE_STATUS) & 1 != 0 {
                received.push(port.read(DATA));
            }
        }
        assert_eq!(received, typed);
    }

    #[test]
    fn a_line_nobody_reads_any_more_holds_nothing_up() {
        let (outside, line) = UnixStream::pair().unwrap();
        let port = SerialPort::new(None, Some(line.into())).unwrap();
        drop(outside);
        for _ in 0..1_000_000 {
            port.write(DATA, b'x');
        }
    }
}
