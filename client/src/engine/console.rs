//! The machine's serial console in the terminal.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{SendFlags, send};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::sync::mpsc;

/// The key before a command to the console: Ctrl-].
const ESCAPE: u8 = 0x1d;
const CTRL_C: u8 = 0x03;
/// What is typed and not taken by the machine is kept up to this: a pasted page.
const MAX_UNREAD_BYTES: usize = 16 << 10;

/// What a person asks of the console, not of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Ctrl-C: press the machine's power button.
    PowerButton,
    /// Ctrl-] q: switch the machine off.
    ForceOff,
    /// Ctrl-] ?: what keys there are.
    Help,
}

/// What the keys are, for people.
pub const HELP: &str =
    "Ctrl-C shuts the machine down, again forces it off; Ctrl-] c sends Ctrl-C to it, Ctrl-] q forces it off";

/// The terminal in raw mode; as it was when this is dropped.
#[derive(Debug)]
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Puts the terminal into raw mode; none when standard input is no terminal.
    ///
    /// # Errors
    /// What the terminal says.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Output stays processed, so that our own messages begin at the left.
        raw.output_modes = before.output_modes;
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The terminal may be gone; there is nobody to tell then.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Sorts what is typed into bytes for the machine and keys for us.
#[derive(Debug, Default)]
struct Keyboard {
    escaped: bool,
}

impl Keyboard {
    fn take(&mut self, typed: &[u8], mut to_machine: impl FnMut(u8), mut key: impl FnMut(Key)) {
        for byte in typed {
            match (std::mem::take(&mut self.escaped), *byte) {
                (false, ESCAPE) => self.escaped = true,
                (false, CTRL_C) => key(Key::PowerButton),
                (true, b'c') => to_machine(CTRL_C),
                (true, b'q') => key(Key::ForceOff),
                (true, b'?' | b'h') => key(Key::Help),
                (_, byte) => to_machine(byte),
            }
        }
    }
}

/// Where what the machine says on its serial console goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleOutput {
    /// Standard output.
    Stdout,
    /// Standard error: the other is for data.
    Stderr,
}

/// Connects terminal and serial console with two threads, which end with the machine or the process. `keys` gets what
/// a person asks of the console; when standard input is no terminal, every byte goes to the machine.
///
/// # Errors
/// When the threads cannot be started.
pub fn connect(
    serial: UnixStream,
    output: ConsoleOutput,
    interactive: bool,
    keys: mpsc::UnboundedSender<Key>,
) -> io::Result<()> {
    serial.set_nonblocking(false)?;
    let mut from_machine = serial.try_clone()?;
    let mut to_machine = serial;
    std::thread::Builder::new().name("console-out".to_owned()).spawn(move || {
        let mut buffer = [0; 4096];
        let mut terminal: Box<dyn Write> = match output {
            ConsoleOutput::Stdout => Box::new(io::stdout()),
            ConsoleOutput::Stderr => Box::new(io::stderr()),
        };
        while let Ok(read) = from_machine.read(&mut buffer)
            && read > 0
        {
            if terminal.write_all(&buffer[..read]).and_then(|()| terminal.flush()).is_err() {
                // Nobody looks any more; the machine must not wait for them.
                let _ = io::copy(&mut from_machine, &mut io::sink());
                return;
            }
        }
    })?;
    std::thread::Builder::new().name("console-in".to_owned()).spawn(move || {
        if interactive {
            // It ends with the terminal or the machine; there is nobody to tell.
            let _ = listen(io::stdin(), &to_machine, |key| {
                let _ = keys.send(key);
            });
        } else {
            // What comes from a file waits until the machine takes it.
            let _ = io::copy(&mut io::stdin(), &mut to_machine);
        }
    })?;
    Ok(())
}

/// Carries what is typed to the machine, and keys to us, until one of the two ends. A machine that does not read, because it is held
/// or hangs, keeps no key from being heard: what it has no room for is kept up to [`MAX_UNREAD_BYTES`], and lost beyond.
fn listen(terminal: impl AsFd, machine: &UnixStream, mut key: impl FnMut(Key)) -> io::Result<()> {
    let mut keyboard = Keyboard::default();
    let mut unread = VecDeque::new();
    let mut buffer = [0; 4096];
    loop {
        let for_machine = if unread.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let mut polled = [PollFd::new(&terminal, PollFlags::IN), PollFd::new(machine, for_machine)];
        retry_on_intr(|| poll(&mut polled, None))?;
        let [typed, taken] = polled.map(|polled| !polled.revents().is_empty());
        if typed {
            let read = retry_on_intr(|| rustix::io::read(&terminal, &mut buffer))?;
            if read == 0 {
                return Ok(());
            }
            keyboard.take(&buffer[..read], |byte| unread.push_back(byte), &mut key);
            unread.truncate(MAX_UNREAD_BYTES);
        }
        if typed || taken {
            match send(machine, unread.make_contiguous(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => drop(unread.drain(..sent)),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_from_what_is_typed_into_the_machine() {
        let mut keyboard = Keyboard::default();
        let (mut typed, mut keys) = (Vec::new(), Vec::new());
        for part in [&b"ls\r\x03"[..], b"\x1d", b"c\x1dq\x1d?\x1d\x1dx"] {
            keyboard.take(part, |byte| typed.push(byte), |key| keys.push(key));
        }
        assert_eq!(typed, b"ls\r\x03\x1dx");
        assert_eq!(keys, [Key::PowerButton, Key::ForceOff, Key::Help]);
    }

    #[test]
    fn keys_are_heard_while_the_machine_reads_nothing() {
        let (machine, mut far_end) = UnixStream::pair().unwrap();
        let (terminal, mut typist) = UnixStream::pair().unwrap();
        let (sender, keys) = std::sync::mpsc::channel();
        let listening =
            std::thread::spawn(move || listen(terminal, &machine, |key| sender.send(key).unwrap()));
        // One at a time, as a person types: the socket is full after some hundred.
        for _ in 0..40_000 {
            typist.write_all(b"x").unwrap();
        }
        typist.write_all(b"\x03\x1dq").unwrap();
        let patience = std::time::Duration::from_secs(20);
        assert_eq!(keys.recv_timeout(patience), Ok(Key::PowerButton));
        assert_eq!(keys.recv_timeout(patience), Ok(Key::ForceOff));
        // What was kept arrives when it reads again, and what is typed then.
        typist.shutdown(std::net::Shutdown::Write).unwrap();
        listening.join().unwrap().unwrap();
        let mut taken = Vec::new();
        far_end.read_to_end(&mut taken).unwrap();
        assert!(!taken.is_empty() && taken.iter().all(|byte| *byte == b'x'));
    }

    #[test]
    fn what_is_typed_arrives_when_the_machine_reads_again() {
        let (machine, mut far_end) = UnixStream::pair().unwrap();
        let (terminal, mut typist) = UnixStream::pair().unwrap();
        let listening = std::thread::spawn(move || listen(terminal, &machine, |_| {}));
        let typed: Vec<u8> = (0..5000_u32).map(|number| b'a' + u8::try_from(number % 26).unwrap()).collect();
        for byte in &typed {
            typist.write_all(&[*byte]).unwrap();
        }
        let mut taken = vec![0; typed.len()];
        far_end.read_exact(&mut taken).unwrap();
        assert!(taken == typed);
        drop(far_end);
        // The end of the machine ends it.
        assert!(listening.join().unwrap().is_err());
    }
}
