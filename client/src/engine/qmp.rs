//! QEMU's control protocol (docs/interop/qmp-spec in QEMU's sources): one JSON object a line.

use std::io;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::EngineError;

/// The longest line anyone reads, bytes.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// Given to commands whose answer nobody waits for; it comes back with that.
const UNAWAITED: &str = "unawaited";

/// Something the machine did.
#[derive(Clone, Debug)]
pub struct Event {
    /// QEMU's name for it: `SHUTDOWN`, `BLOCK_IO_ERROR`, ...
    pub name: String,
    /// What QEMU says of it.
    pub data: Value,
}

/// A connection to QEMU, ready for commands.
#[derive(Debug)]
pub struct Qmp {
    writer: OwnedWriteHalf,
    answers: mpsc::Receiver<Result<Value, String>>,
}

#[derive(Deserialize)]
struct Message {
    event: Option<String>,
    #[serde(default)]
    data: Value,
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<Failure>,
    /// What the command was given, if anything.
    id: Option<Value>,
}

#[derive(Deserialize)]
struct Failure {
    desc: String,
}

impl Qmp {
    /// Takes up the conversation; events come through the receiver, which ends with the connection.
    ///
    /// # Errors
    /// `Connection`, `Refused`.
    pub async fn open(
        stream: std::os::unix::net::UnixStream,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Event>), EngineError> {
        let stream = UnixStream::from_std(stream).map_err(EngineError::Connection)?;
        let (reader, writer) = stream.into_split();
        let (answer_sender, answers) = mpsc::channel(16);
        let (event_sender, events) = mpsc::unbounded_channel();
        tokio::spawn(read_messages(BufReader::new(reader), answer_sender, event_sender));
        let mut qmp = Self { writer, answers };
        qmp.run("qmp_capabilities", json!({})).await?;
        Ok((qmp, events))
    }

    /// Runs a command and returns its result.
    ///
    /// # Errors
    /// `Connection`, `Refused`.
    pub async fn run(&mut self, command: &str, arguments: Value) -> Result<Value, EngineError> {
        self.write(&json!({"execute": command, "arguments": arguments})).await?;
        let ended = || EngineError::Connection(io::ErrorKind::UnexpectedEof.into());
        let answer = self.answers.recv().await.ok_or_else(ended)?;
        answer.map_err(|reason| EngineError::Refused { command: command.to_owned(), reason })
    }

    /// Sends a command whose answer nobody waits for: a machine that answers nothing holds nobody up.
    ///
    /// # Errors
    /// `Connection`.
    pub async fn send(&mut self, command: &str) -> Result<(), EngineError> {
        self.write(&json!({"execute": command, "id": UNAWAITED})).await
    }

    async fn write(&mut self, message: &Value) -> Result<(), EngineError> {
        self.writer.write_all(format!("{message}\n").as_bytes()).await.map_err(EngineError::Connection)
    }
}

async fn read_messages(
    mut reader: BufReader<OwnedReadHalf>,
    answers: mpsc::Sender<Result<Value, String>>,
    events: mpsc::UnboundedSender<Event>,
) {
    loop {
        let mut line = String::new();
        match (&mut reader).take(MAX_LINE_BYTES).read_line(&mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        // The greeting is neither event nor answer.
        let Ok(message) = serde_json::from_str::<Message>(&line) else { continue };
        let delivered = if let Some(name) = message.event {
            events.send(Event { name, data: message.data }).is_ok()
        } else if message.id.is_some() {
            if let Some(failure) = message.error {
                tracing::warn!(reason = failure.desc, "QEMU does not do what it was told");
            }
            true
        } else if let Some(failure) = message.error {
            answers.send(Err(failure.desc)).await.is_ok()
        } else if let Some(result) = message.result {
            answers.send(Ok(result)).await.is_ok()
        } else {
            true
        };
        if !delivered {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncBufReadExt;

    use super::*;

    #[tokio::test]
    async fn commands_are_answered_and_events_are_told_apart() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let qemu = tokio::spawn(async move {
            let (reader, mut writer) = UnixStream::from_std(theirs).unwrap().into_split();
            let mut lines = BufReader::new(reader).lines();
            writer.write_all(b"{\"QMP\": {\"version\": {}}}\n").await.unwrap();
            assert!(lines.next_line().await.unwrap().unwrap().contains("qmp_capabilities"));
            writer.write_all(b"{\"return\": {}}\n").await.unwrap();
            let sent: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
            assert_eq!(sent["execute"], "system_powerdown");
            let event = r#"{"event": "POWERDOWN", "timestamp": {}}"#;
            let answer = json!({"error": {"class": "X", "desc": "not now"}, "id": sent["id"]});
            writer.write_all(format!("{event}\n{answer}\n").as_bytes()).await.unwrap();
            lines.next_line().await.unwrap();
            writer
                .write_all(b"{\"error\": {\"class\": \"X\", \"desc\": \"no such command\"}}\n")
                .await
                .unwrap();
        });
        let (mut qmp, mut events) = Qmp::open(ours).await.unwrap();
        qmp.send("system_powerdown").await.unwrap();
        assert_eq!(events.recv().await.unwrap().name, "POWERDOWN");
        let error = qmp.run("nonsense", json!({})).await.unwrap_err();
        assert!(error.to_string().contains("no such command"), "{error}");
        qemu.await.unwrap();
        assert!(events.recv().await.is_none());
        assert!(matches!(qmp.run("quit", json!({})).await, Err(EngineError::Connection(_))));
    }
}
