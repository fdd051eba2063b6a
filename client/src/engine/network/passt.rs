//! One `passt(1)`.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use super::place::Resolver;
use crate::engine::child::{die_only_with_parent, give};
use crate::said::printable;

/// What is kept of what it says.
const MAX_WORDS_BYTES: usize = 1024;
/// What a pipe holds (pipe(7)).
const PIPE_BYTES: usize = 64 << 10;
/// How it complains of a host without a log, which is no reason for anything.
const NOISE: &str = "Failed to send ";

/// One that was started; killed when this is dropped.
#[derive(Debug)]
pub(super) struct Passt {
    process: Child,
    stderr: Option<ChildStderr>,
    words: VecDeque<u8>,
}

impl Passt {
    /// Starts it on a connection to the machine.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn start(program: &Path, connection: OwnedFd, resolver: &Resolver) -> io::Result<Passt> {
        let mut command = Command::new(program);
        // The guest gets to the network, and not to what listens on this machine's loopback.
        command.args(["--foreground", "--quiet", "--no-map-gw"]);
        // Longer frames the guest's buffers do not take.
        command.args(["--mtu", "1500"]);
        if let Resolver::Given(servers) = resolver {
            for server in servers {
                command.args(["--dns", &server.to_string()]);
            }
        }
        command.args(["--fd", &connection.as_raw_fd().to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        give(&mut command, vec![connection]);
        // Its own process group: a Ctrl-C in the terminal is ours to handle.
        let mut process = die_only_with_parent(command.process_group(0)).spawn()?;
        let stderr = process.stderr.take();
        if let Some(stderr) = &stderr {
            let flags = rustix::fs::fcntl_getfl(stderr)?;
            rustix::fs::fcntl_setfl(stderr, flags | rustix::fs::OFlags::NONBLOCK)?;
        }
        Ok(Passt { process, stderr, words: VecDeque::new() })
    }

    /// What it said last when it has ended; none while it runs. What it says is read either way: whoever is not heard stands still.
    pub(super) fn ended(&mut self) -> Option<String> {
        let ended = self.process.try_wait();
        if let Some(stderr) = &mut self.stderr {
            hear(stderr, &mut self.words);
        }
        match ended {
            Ok(None) => None,
            // Whom a signal ended has said nothing of that.
            Ok(Some(status)) if status.signal().is_some() => Some(status.to_string()),
            Ok(Some(status)) => Some(self.last_words().unwrap_or_else(|| status.to_string())),
            Err(error) => Some(error.to_string()),
        }
    }

    fn last_words(&mut self) -> Option<String> {
        let said = String::from_utf8_lossy(self.words.make_contiguous()).into_owned();
        let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains(NOISE));
        lines.next_back().map(printable)
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        // One that has ended is as well.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads what there is, as far as a pipe holds it, and keeps the end of it: who never stops talking must not keep this from ending.
fn hear(from: &mut impl Read, words: &mut VecDeque<u8>) {
    let mut buffer = [0; 4096];
    for _ in 0..PIPE_BYTES / buffer.len() {
        let Ok(read @ 1..) = from.read(&mut buffer) else { return };
        words.extend(&buffer[..read]);
        let beyond = words.len().saturating_sub(MAX_WORDS_BYTES);
        words.drain(..beyond);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_never_stops_talking_is_left_and_the_end_of_what_was_said_is_kept() {
        let mut words = VecDeque::new();
        hear(&mut io::repeat(b'x'), &mut words);
        assert_eq!(words.len(), MAX_WORDS_BYTES);
        hear(&mut &b"the end"[..], &mut words);
        assert_eq!(words.len(), MAX_WORDS_BYTES);
        assert!(words.iter().rev().eq(b"the end".iter().rev().chain(&[b'x'; MAX_WORDS_BYTES - 7])));
    }
}
