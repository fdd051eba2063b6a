//! The QEMU guest agent's protocol (docs/interop/qemu-ga-ref in QEMU's sources): one JSON object a line, over a port of the
//! machine. The other side is the guest: it may answer late, never, out of order or with nonsense, and none of that may
//! cost more than a bounded time and a bounded line.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::Instant;

/// The name of its port in the guest.
pub const PORT: &str = "org.qemu.guest_agent.0";

/// The longest line that is read from a guest, bytes.
const MAX_LINE_BYTES: u64 = 64 << 10;
/// How long a command may take in all, taking up the conversation included.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(2);
/// Begins what the agent says anew: `guest-sync-delimited` has it answer after this byte, which is in no JSON.
const DELIMITER: u8 = 0xff;

/// Why the guest's agent did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It did not answer in time: it may not run, or the guest is busy.
    #[error("the guest's agent does not answer")]
    Silent,
    /// The port is closed, or failed.
    #[error("lost the connection to the guest's agent")]
    Connection(#[source] std::io::Error),
    /// It refused.
    #[error("the guest's agent refused `{command}`: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Its own words.
        reason: String,
    },
    /// It answered what is no answer.
    #[error("the guest's agent answers `{command}` with nonsense")]
    Nonsense {
        /// The command.
        command: &'static str,
    },
}

/// Whether a guest's file systems are frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezeStatus {
    /// They take writes.
    Thawed,
    /// Writes wait.
    Frozen,
}

/// A connection to a guest's agent. The guest may not run one.
#[derive(Debug)]
pub struct Agent {
    stream: BufReader<UnixStream>,
    timeout: Duration,
    /// Whether the next line is the answer to the next command. Not so before the first command, nor after one that was
    /// not answered: its answer may still come.
    is_in_step: bool,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<Failure>,
}

#[derive(Deserialize)]
struct Failure {
    desc: String,
}

impl Agent {
    /// Takes a port's host side.
    ///
    /// # Errors
    /// `Connection`.
    pub fn open(stream: std::os::unix::net::UnixStream) -> Result<Self, AgentError> {
        stream.set_nonblocking(true).map_err(AgentError::Connection)?;
        let stream = UnixStream::from_std(stream).map_err(AgentError::Connection)?;
        Ok(Self { stream: BufReader::new(stream), timeout: COMMAND_TIMEOUT, is_in_step: false })
    }

    /// Asks whether it is there.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn ping(&mut self) -> Result<(), AgentError> {
        self.run("guest-ping").await.map(drop)
    }

    /// Has the guest write out its file systems and hold back writes; answers how many it froze. After an error they may
    /// be frozen nevertheless.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn freeze(&mut self) -> Result<u64, AgentError> {
        let command = "guest-fsfreeze-freeze";
        self.run(command).await?.as_u64().ok_or(AgentError::Nonsense { command })
    }

    /// Has the guest go on writing; answers how many file systems it thawed.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn thaw(&mut self) -> Result<u64, AgentError> {
        let command = "guest-fsfreeze-thaw";
        self.run(command).await?.as_u64().ok_or(AgentError::Nonsense { command })
    }

    /// Asks whether file systems are frozen.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn status(&mut self) -> Result<FreezeStatus, AgentError> {
        let command = "guest-fsfreeze-status";
        match self.run(command).await?.as_str() {
            Some("thawed") => Ok(FreezeStatus::Thawed),
            Some("frozen") => Ok(FreezeStatus::Frozen),
            _ => Err(AgentError::Nonsense { command }),
        }
    }

    async fn run(&mut self, command: &'static str) -> Result<Value, AgentError> {
        let deadline = Instant::now() + self.timeout;
        let was_in_step = std::mem::replace(&mut self.is_in_step, false);
        let asked = async {
            if !was_in_step {
                self.synchronize().await?;
            }
            self.send(json!({"execute": command})).await?;
            let line = self.line(command).await?;
            let answer: Answer =
                serde_json::from_slice(&line).map_err(|_| AgentError::Nonsense { command })?;
            match answer {
                Answer { error: Some(failure), .. } => Ok(Err(failure.desc)),
                Answer { result: Some(result), .. } => Ok(Ok(result)),
                _ => Err(AgentError::Nonsense { command }),
            }
        };
        let answer = tokio::time::timeout_at(deadline, asked).await.map_err(|_| AgentError::Silent)??;
        self.is_in_step = true;
        answer.map_err(|reason| AgentError::Refused { command, reason })
    }

    /// Skips whatever earlier commands left behind: the agent repeats a number after the delimiter.
    async fn synchronize(&mut self) -> Result<(), AgentError> {
        let command = "guest-sync-delimited";
        let mut random = [0; 4];
        getrandom::fill(&mut random)
            .map_err(|error| AgentError::Connection(std::io::Error::other(error.to_string())))?;
        let id = u32::from_le_bytes(random);
        // The delimiter has the agent forget half a command that it may have been sent before.
        self.stream.get_mut().write_all(&[DELIMITER]).await.map_err(AgentError::Connection)?;
        self.send(json!({"execute": command, "arguments": {"id": id}})).await?;
        loop {
            // Whatever comes, the deadline ends it.
            self.skip_to_delimiter().await?;
            let line = match self.line(command).await {
                Err(AgentError::Nonsense { .. }) => continue,
                line => line?,
            };
            let answer = serde_json::from_slice::<Answer>(&line);
            if answer.is_ok_and(|answer| answer.result.is_some_and(|result| result == json!(id))) {
                return Ok(());
            }
        }
    }

    async fn send(&mut self, message: Value) -> Result<(), AgentError> {
        let mut line = message.to_string();
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes()).await.map_err(AgentError::Connection)
    }

    async fn line(&mut self, command: &'static str) -> Result<Vec<u8>, AgentError> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await;
        if read.map_err(AgentError::Connection)? == 0 {
            return Err(closed());
        }
        if line.last() != Some(&b'\n') {
            return Err(AgentError::Nonsense { command });
        }
        Ok(line)
    }

    async fn skip_to_delimiter(&mut self) -> Result<(), AgentError> {
        loop {
            let buffered = self.stream.fill_buf().await.map_err(AgentError::Connection)?;
            if buffered.is_empty() {
                return Err(closed());
            }
            let (used, found) = match buffered.iter().position(|byte| *byte == DELIMITER) {
                Some(at) => (at + 1, true),
                None => (buffered.len(), false),
            };
            self.stream.consume(used);
            if found {
                return Ok(());
            }
        }
    }
}

fn closed() -> AgentError {
    AgentError::Connection(std::io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Peer = BufReader<UnixStream>;

    fn pair(timeout: Duration) -> (Agent, Peer) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let agent = Agent { timeout, ..Agent::open(ours).unwrap() };
        (agent, BufReader::new(UnixStream::from_std(theirs).unwrap()))
    }

    async fn command(peer: &mut Peer) -> Value {
        let mut line = Vec::new();
        peer.read_until(b'\n', &mut line).await.unwrap();
        serde_json::from_slice(line.strip_prefix(&[DELIMITER]).unwrap_or(&line)).unwrap()
    }

    async fn say(peer: &mut Peer, bytes: &[u8]) {
        peer.get_mut().write_all(bytes).await.unwrap();
    }

    /// Answers the command that takes up the conversation.
    async fn synchronize(peer: &mut Peer) {
        let sync = command(peer).await;
        assert_eq!(sync["execute"], "guest-sync-delimited");
        say(peer, b"{\"return\": 1}\n").await;
        say(peer, &[DELIMITER]).await;
        say(peer, format!("{}\n", json!({"return": sync["arguments"]["id"]})).as_bytes()).await;
    }

    #[tokio::test]
    async fn file_systems_are_frozen_and_thawed() {
        let (mut agent, mut peer) = pair(Duration::from_secs(30));
        let guest = tokio::spawn(async move {
            synchronize(&mut peer).await;
            for (expected, answer) in [
                ("guest-ping", json!({"return": {}})),
                ("guest-fsfreeze-freeze", json!({"return": 2})),
                ("guest-fsfreeze-status", json!({"return": "frozen"})),
                ("guest-fsfreeze-thaw", json!({"return": 2})),
                ("guest-fsfreeze-freeze", json!({"error": {"class": "GenericError", "desc": "disabled"}})),
                ("guest-fsfreeze-status", json!({"return": "thawed"})),
            ] {
                assert_eq!(command(&mut peer).await["execute"], expected);
                say(&mut peer, format!("{answer}\n").as_bytes()).await;
            }
        });
        agent.ping().await.unwrap();
        assert_eq!(agent.freeze().await.unwrap(), 2);
        assert_eq!(agent.status().await.unwrap(), FreezeStatus::Frozen);
        assert_eq!(agent.thaw().await.unwrap(), 2);
        let refused = agent.freeze().await.unwrap_err();
        assert!(matches!(&refused, AgentError::Refused { reason, .. } if reason == "disabled"), "{refused}");
        assert_eq!(agent.status().await.unwrap(), FreezeStatus::Thawed);
        guest.await.unwrap();
        assert!(matches!(agent.ping().await, Err(AgentError::Connection(_))));
    }

    #[tokio::test]
    async fn a_late_answer_is_not_taken_for_the_next_one() {
        let (mut agent, mut peer) = pair(Duration::from_millis(200));
        assert!(matches!(agent.freeze().await, Err(AgentError::Silent)));
        agent.timeout = Duration::from_secs(30);
        let guest = tokio::spawn(async move {
            // It wakes up, and answers what it was asked long ago.
            let late = command(&mut peer).await;
            say(&mut peer, &[DELIMITER]).await;
            say(&mut peer, format!("{}\n", json!({"return": late["arguments"]["id"]})).as_bytes()).await;
            say(&mut peer, b"{\"return\": 7}\n").await;
            synchronize(&mut peer).await;
            assert_eq!(command(&mut peer).await["execute"], "guest-fsfreeze-thaw");
            say(&mut peer, b"{\"return\": 3}\n").await;
        });
        assert_eq!(agent.thaw().await.unwrap(), 3);
        guest.await.unwrap();
    }

    #[tokio::test]
    async fn nonsense_and_endless_lines_are_errors_and_the_conversation_is_taken_up_again() {
        let (mut agent, mut peer) = pair(Duration::from_secs(30));
        let guest = tokio::spawn(async move {
            for nonsense in [vec![b'x'; 80 << 10], b"{\"return\": -1}\n".to_vec(), b"{}\n".to_vec()] {
                synchronize(&mut peer).await;
                command(&mut peer).await;
                say(&mut peer, &nonsense).await;
                if nonsense.starts_with(b"{\"return\"") {
                    // Well formed, so that the conversation is still in step.
                    command(&mut peer).await;
                    say(&mut peer, b"[\n").await;
                }
            }
            synchronize(&mut peer).await;
            command(&mut peer).await;
            say(&mut peer, b"{\"return\": {}}\n").await;
        });
        for _ in 0..4 {
            let answer = agent.freeze().await;
            assert!(matches!(answer, Err(AgentError::Nonsense { .. })), "{answer:?}");
        }
        agent.ping().await.unwrap();
        guest.await.unwrap();
    }

    #[tokio::test]
    async fn a_guest_that_talks_without_end_is_left_at_the_deadline() {
        let (mut agent, mut peer) = pair(Duration::from_millis(300));
        let guest = tokio::spawn(async move {
            while peer.get_mut().write_all(&[DELIMITER, b'\n', b'{']).await.is_ok() {
                tokio::task::yield_now().await;
            }
        });
        assert!(matches!(agent.ping().await, Err(AgentError::Silent)));
        drop(agent);
        guest.await.unwrap();
    }
}
