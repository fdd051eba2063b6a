//! The control socket of a mounted desktop: other commands ask the process that has it open.
//!
//! One JSON object a line: a request, then replies, the last of which is `done` or `failed`. The socket lies in the
//! desktop's directory, which only its owner can enter.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::socket;

/// The longest line either side reads, bytes.
const MAX_LINE_BYTES: u64 = 1 << 20;
const SOCKET: &str = "control";
const VERSION: u32 = 1;

/// What the process that has a desktop open is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// What it is doing.
    Status,
    /// To commit what was written.
    Sync {
        /// What to say of the version.
        note: Option<String>,
    },
    /// To have all of the desktop on this machine, or no longer.
    Pin {
        /// Whether to.
        pinned: bool,
        /// The most it may take of the link, bytes a second; none for all that nobody else needs.
        limit_bytes_per_s: Option<u64>,
    },
    /// To stop fetching what nobody waits for, or to go on.
    Pause {
        /// Whether to stop.
        paused: bool,
    },
    /// To say when another machine asks for the desktop; the reply is that machine's name, and comes then. Whoever asks
    /// this attends to it.
    AwaitWanted,
    /// To have the machine that asks for the desktop told why it does not get it.
    Refuse {
        /// Why.
        reason: String,
    },
    /// To say when the disks are about to be frozen, so that a guest can hold still; the replies are `hold_still` and `go_on`,
    /// in turn, and each `hold_still` is answered by `still`. Of all who ask this, the latest attends to it.
    AttendFreezes,
    /// To hear that a guest holds still, or does not.
    Still {
        /// Whether it does.
        held: bool,
        /// How long it took, milliseconds.
        took_ms: u64,
    },
    /// To unmount and end.
    Unmount,
}

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// How far it is.
    Progress {
        /// Segments that change.
        #[serde(default)]
        changed_segments: u64,
        /// Those of them of which it is known what they were before.
        #[serde(default)]
        planned_segments: u64,
        /// Bytes to read in all.
        total_bytes: u64,
        /// Bytes read.
        hashed_bytes: u64,
        /// Bytes that need not be sent: zeros, and what the server said it has.
        #[serde(default)]
        known_bytes: u64,
        /// Bytes the server lacks.
        new_bytes: u64,
        /// Bytes sent, compressed.
        sent_bytes: u64,
        /// Bytes sent, before compression.
        sent_raw_bytes: u64,
        /// Segments the server lacks, once their chunks are there.
        #[serde(default)]
        new_segments: u64,
        /// Segments sent.
        #[serde(default)]
        sent_segments: u64,
    },
    /// How much is on this machine.
    Filling {
        /// Bytes there are in all.
        total_bytes: u64,
        /// Bytes that are here.
        local_bytes: u64,
        /// Bytes that came over the link since the desktop was opened.
        #[serde(default)]
        fetched_bytes: u64,
        /// Whether it was told to stop.
        paused: bool,
    },
    /// The disks are about to be frozen: the guest is to hold still.
    HoldStill,
    /// They are; it goes on.
    GoOn,
    /// It is done.
    Done {
        /// The result, of the request's own kind.
        result: serde_json::Value,
    },
    /// It failed.
    Failed {
        /// Why, with all causes.
        message: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    #[serde(flatten)]
    message: T,
}

/// Why the other process could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No process listens.
    #[error("no process has the desktop mounted")]
    NotMounted,
    /// The connection failed.
    #[error("cannot talk to the process that has the desktop mounted")]
    Io(#[source] std::io::Error),
    /// The other process speaks another version or nonsense.
    #[error(
        "the process that has the desktop mounted answers nonsense ({reason}): is it another version of Satchel?"
    )]
    Nonsense {
        /// What does not fit.
        reason: String,
    },
    /// The other process failed.
    #[error("{message}")]
    Failed {
        /// Its own words.
        message: String,
    },
}

/// Listens in a desktop's directory. The caller holds the desktop's lock.
///
/// # Errors
/// What the file system says.
pub fn listen(directory: &Path) -> std::io::Result<UnixListener> {
    let listener = socket::listen(directory, SOCKET)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Removes the socket.
pub fn unlink(directory: &Path) {
    // Nobody listens any more; a leftover only costs the next caller a refused connection.
    let _ = std::fs::remove_file(directory.join(SOCKET));
}

/// One side of a conversation.
pub struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// The server's side of an accepted connection.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    /// Connects to the process that has the desktop of this directory mounted.
    ///
    /// # Errors
    /// `NotMounted`, `Io`.
    pub async fn open(directory: &Path) -> Result<Self, ControlError> {
        let connected = socket::connect(directory, SOCKET).and_then(|stream| {
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        });
        match connected {
            Ok(stream) => Ok(Self::new(stream)),
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
                ) =>
            {
                Err(ControlError::NotMounted)
            }
            Err(error) => Err(ControlError::Io(error)),
        }
    }

    /// Sends one message.
    ///
    /// # Errors
    /// `Io`.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), ControlError> {
        let envelope = Envelope { version: VERSION, message };
        let mut line = serde_json::to_vec(&envelope)
            .map_err(|error| ControlError::Nonsense { reason: error.to_string() })?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).await.map_err(ControlError::Io)
    }

    /// Receives one message; none when the other side is done.
    ///
    /// # Errors
    /// `Io`, `Nonsense`.
    pub async fn receive<T: for<'de> Deserialize<'de>>(&mut self) -> Result<Option<T>, ControlError> {
        let mut line = String::new();
        let read =
            (&mut self.stream).take(MAX_LINE_BYTES).read_line(&mut line).await.map_err(ControlError::Io)?;
        if read == 0 {
            return Ok(None);
        }
        let nonsense = |reason: String| ControlError::Nonsense { reason };
        let envelope: Envelope<T> =
            serde_json::from_str(&line).map_err(|error| nonsense(error.to_string()))?;
        if envelope.version != VERSION {
            return Err(nonsense(format!("version {} of the protocol", envelope.version)));
        }
        Ok(Some(envelope.message))
    }

    /// Makes a request; progress is told to `progress`, the result is returned.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn ask(
        &mut self,
        request: &Request,
        mut progress: impl FnMut(&Reply),
    ) -> Result<serde_json::Value, ControlError> {
        self.send(request).await?;
        loop {
            match self.receive::<Reply>().await? {
                Some(Reply::Done { result }) => return Ok(result),
                Some(Reply::Failed { message }) => return Err(ControlError::Failed { message }),
                Some(reply) => progress(&reply),
                None => {
                    let reason = "it ended before it answered".to_owned();
                    return Err(ControlError::Nonsense { reason });
                }
            }
        }
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_is_answered_over_a_socket_in_a_deep_directory() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(100)).join("y".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        assert!(matches!(Connection::open(&deep).await, Err(ControlError::NotMounted)));
        let listener = listen(&deep).unwrap();
        let server = tokio::spawn(async move {
            let mut connection = Connection::new(listener.accept().await.unwrap().0);
            let request: Request = connection.receive().await.unwrap().unwrap();
            assert!(matches!(request, Request::Sync { note: Some(note) } if note == "hello"));
            let progress = Reply::Progress {
                changed_segments: 1,
                planned_segments: 1,
                total_bytes: 9,
                hashed_bytes: 1,
                known_bytes: 0,
                new_bytes: 0,
                sent_bytes: 0,
                sent_raw_bytes: 0,
                new_segments: 0,
                sent_segments: 0,
            };
            connection.send(&progress).await.unwrap();
            connection.send(&Reply::Done { result: "fine".into() }).await.unwrap();
        });
        let mut seen = 0;
        let request = Request::Sync { note: Some("hello".to_owned()) };
        let result = Connection::open(&deep).await.unwrap().ask(&request, |_| seen += 1).await.unwrap();
        assert_eq!((result, seen), ("fine".into(), 1));
        server.await.unwrap();
        unlink(&deep);
        assert!(matches!(Connection::open(&deep).await, Err(ControlError::NotMounted)));
    }

    #[tokio::test]
    async fn nonsense_is_refused() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut ours, mut theirs) = (Connection::new(ours), theirs);
        theirs.write_all(b"{\"version\":2,\"request\":\"status\"}\nnonsense\n").await.unwrap();
        for _ in 0..2 {
            let error = ours.receive::<Request>().await.unwrap_err();
            assert!(matches!(error, ControlError::Nonsense { .. }), "{error}");
        }
    }
}
