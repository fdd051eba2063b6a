//! Who asks for a port of the guest, until they have said which. Nobody is waited for.

use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// How long a caller may take to name a port.
const PATIENCE: Duration = Duration::from_millis(200);
/// The longest line that names one: `CONNECT 4294967295`.
const MAX_LINE_BYTES: usize = 20;
/// Callers that may be about to name one; more are hung up on.
const MAX_CALLERS: usize = 16;

struct Caller {
    stream: UnixStream,
    line: Vec<u8>,
    until: Instant,
}

/// What a caller comes to.
enum Call {
    Unfinished,
    Named(u32),
    Senseless,
}

/// Callers who have not named a port.
#[derive(Default)]
pub(super) struct Callers {
    list: Vec<Caller>,
}

impl Callers {
    /// Takes who calls, and what they say; answers those who have named a port, and hangs up on who names none.
    pub(super) fn take(&mut self, listener: &UnixListener) -> Vec<(u32, OwnedFd)> {
        while let Ok((stream, _)) = listener.accept() {
            if self.list.len() < MAX_CALLERS && stream.set_nonblocking(true).is_ok() {
                self.list.push(Caller { stream, line: Vec::new(), until: Instant::now() + PATIENCE });
            }
        }
        let mut named = Vec::new();
        for mut caller in std::mem::take(&mut self.list) {
            match caller.listen() {
                Call::Named(port) => named.push((port, caller.stream.into())),
                Call::Unfinished if caller.until > Instant::now() => self.list.push(caller),
                Call::Unfinished | Call::Senseless => {}
            }
        }
        named
    }

    /// Their streams: when one can be read, there is something to take.
    pub(super) fn streams(&self) -> impl Iterator<Item = &UnixStream> {
        self.list.iter().map(|caller| &caller.stream)
    }

    /// How long until somebody is to be hung up on; none when nobody is there.
    pub(super) fn patience(&self) -> Option<Duration> {
        let until = self.list.iter().map(|caller| caller.until).min()?;
        // A moment more, so that it has passed then.
        Some(until.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }
}

impl Caller {
    /// Reads byte by byte: what follows the line is for the guest.
    fn listen(&mut self) -> Call {
        while self.line.last() != Some(&b'\n') {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(1..) if self.line.len() <= MAX_LINE_BYTES => self.line.push(byte[0]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Call::Unfinished,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => return Call::Senseless,
            }
        }
        let line = std::str::from_utf8(&self.line).ok();
        let port = line.and_then(|line| line.trim().strip_prefix("CONNECT ")?.parse().ok());
        port.map_or(Call::Senseless, Call::Named)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn who_names_a_port_is_connected_and_who_does_not_is_hung_up_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut callers = Callers::default();
        // Somebody silent, who holds up nobody.
        let mut silent = UnixStream::connect(&path).unwrap();
        assert!(callers.take(&listener).is_empty());
        assert!(callers.patience().is_some());
        for (said, port) in [
            (&b"CONNECT 1024\nhello"[..], Some(1024)),
            (b"CONNECT\n", None),
            (b"CONNECT 99999999999\n", None),
            (b"\n", None),
            (&[b'x'; 100], None),
        ] {
            let mut caller = UnixStream::connect(&path).unwrap();
            caller.write_all(said).unwrap();
            let named = callers.take(&listener);
            assert_eq!(named.first().map(|(port, _)| *port), port);
            if port.is_some() {
                let mut rest = [0; 5];
                UnixStream::from(named.into_iter().next().unwrap().1).read_exact(&mut rest).unwrap();
                assert_eq!(&rest, b"hello");
            }
        }
        while let Some(left) = callers.patience() {
            std::thread::sleep(left);
            assert!(callers.take(&listener).is_empty());
        }
        assert_eq!(silent.read(&mut [0]).unwrap(), 0, "the silent one is hung up on");
    }
}
