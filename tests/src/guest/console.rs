//! A serial line as lines of text.

use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The two directions of a serial line: what comes is read by a thread and kept, what goes is written at once.
pub(super) struct Console {
    shared: Arc<Shared>,
    input: Box<dyn Write + Send>,
    /// The first line that no wait has passed yet.
    next_line: usize,
}

#[derive(Default)]
struct Shared {
    received: Mutex<Received>,
    grew: Condvar,
}

#[derive(Default)]
struct Received {
    raw: Vec<u8>,
    /// Complete lines without control sequences.
    lines: Vec<String>,
    /// Where in `raw` the line begins that is not complete.
    line_start: usize,
    is_closed: bool,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("next_line", &self.next_line).finish_non_exhaustive()
    }
}

impl Console {
    pub(super) fn new(mut output: impl Read + Send + 'static, input: impl Write + Send + 'static) -> Self {
        let shared = Arc::<Shared>::default();
        let theirs = Arc::clone(&shared);
        // The thread ends with the stream: when whoever holds its other end is gone.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let len = output.read(&mut buffer).unwrap_or(0);
                let mut received = theirs.lock();
                received.append(&buffer[..len]);
                received.is_closed = len == 0;
                theirs.grew.notify_all();
                if received.is_closed {
                    return;
                }
            }
        });
        Self { shared, input: Box::new(input), next_line: 0 }
    }

    /// Sends text as it is. A line that is closed shows when its answer is awaited.
    pub(super) fn send(&mut self, text: &str) {
        let _ = self.input.write_all(text.as_bytes()).and_then(|()| self.input.flush());
    }

    /// Waits for a line after those already passed that `find` makes something of; `None` when `limit` passes or the line
    /// closes without one.
    pub(super) fn wait_for_line<T>(
        &mut self,
        limit: Duration,
        mut find: impl FnMut(&str) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut received = self.shared.lock();
        let mut looked_at = self.next_line;
        loop {
            for (number, line) in received.lines.iter().enumerate().skip(looked_at) {
                if let Some(value) = find(line) {
                    self.next_line = number + 1;
                    return Some(value);
                }
            }
            looked_at = received.lines.len();
            if received.is_closed {
                return None;
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            received =
                self.shared.grew.wait_timeout(received, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the line closes; whether it did within `limit`.
    pub(super) fn wait_closed(&self, limit: Duration) -> bool {
        let received = self.shared.lock();
        let waited = self.shared.grew.wait_timeout_while(received, limit, |received| !received.is_closed);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_closed
    }

    /// Returns a mark for [`lines_since`](Self::lines_since).
    pub(super) fn mark(&self) -> usize {
        self.shared.lock().lines.len()
    }

    /// Returns the complete lines that came after the mark was taken.
    pub(super) fn lines_since(&self, mark: usize) -> Vec<String> {
        self.shared.lock().lines[mark..].to_vec()
    }

    /// Returns everything that came, as it came.
    pub(super) fn transcript(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().raw).into_owned()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Received {
    fn append(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.raw.push(byte);
            if byte == b'\n' {
                let line = plain(&self.raw[self.line_start..self.raw.len() - 1]);
                self.lines.push(line);
                self.line_start = self.raw.len();
            }
        }
    }
}

/// Returns a line as text without control characters and escape sequences.
fn plain(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character != '\x1b' {
            if !character.is_control() {
                plain.push(character);
            }
            continue;
        }
        match characters.next() {
            // A control sequence: parameters, then one final character.
            Some('[') => _ = characters.by_ref().find(|character| ('\x40'..='\x7e').contains(character)),
            // An operating system command: to a bell, or an escape and a backslash.
            Some(']') => {
                while let Some(character) = characters.next() {
                    if character == '\x07' || (character == '\x1b' && characters.next_if_eq(&'\\').is_some())
                    {
                        break;
                    }
                }
            }
            // A character set is two characters long, anything else one.
            Some('(' | ')') => _ = characters.next(),
            _ => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn lines_lose_their_decoration() {
        let decorated = "\x1b[0;32m  OK  \x1b[0m Started\x1b]0;title\x07 it\x1b(B.\r".as_bytes();
        assert_eq!(plain(decorated), "  OK   Started it.");
        assert_eq!(plain(b"\x1b[?2004hroot@desk:~# \x1b]2;x\x1b\\y"), "root@desk:~# y");
        assert_eq!(plain(b"cut \x1b["), "cut ");
        assert_eq!(plain(b"\xff\xfe ok"), "\u{fffd}\u{fffd} ok");
    }

    #[test]
    fn waits_pass_lines_once() {
        let (output, mut guest) = io::pipe().unwrap();
        let mut console = Console::new(output, io::sink());
        guest.write_all(b"one\r\ntwo\r\nthr").unwrap();
        let word = |line: &str| Some(line.to_owned());
        let limit = Duration::from_secs(60);
        assert_eq!(console.wait_for_line(limit, word).unwrap(), "one");
        let mark = console.mark();
        assert_eq!(console.wait_for_line(limit, word).unwrap(), "two");
        assert_eq!(console.wait_for_line(Duration::from_millis(1), word), None, "the line is not complete");
        guest.write_all(b"ee\n").unwrap();
        assert_eq!(console.wait_for_line(limit, word).unwrap(), "three");
        assert_eq!(*console.lines_since(mark).last().unwrap(), "three");
        drop(guest);
        assert!(console.wait_closed(limit));
        assert_eq!(console.wait_for_line(limit, word), None);
        assert_eq!(console.transcript(), "one\r\ntwo\r\nthree\n");
    }
}
