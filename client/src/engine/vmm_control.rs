//! The control socket of Satchel's own machine: one JSON object a line, each way (docs/vmm.md).

use std::os::fd::OwnedFd;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::{EngineError, MachineEvent};

/// The version this program speaks.
const VERSION: u64 = 1;
const MAX_LINE_BYTES: u64 = 1 << 20;

/// A connection to a machine.
#[derive(Debug)]
pub struct VmmControl {
    writer: OwnedWriteHalf,
}

/// What a machine says on its own.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Said {
    DiskFailed { fault: Fault },
    Panicked,
    Ended { end: Value },
}

#[derive(Deserialize)]
struct Fault {
    no_space: bool,
    is_final: bool,
}

impl VmmControl {
    /// Takes up the conversation; what the machine says on its own is told to `events`.
    ///
    /// # Errors
    /// `Connection`.
    pub fn open(
        socket: OwnedFd,
        events: mpsc::UnboundedSender<MachineEvent>,
    ) -> Result<VmmControl, EngineError> {
        let stream = std::os::unix::net::UnixStream::from(socket);
        stream.set_nonblocking(true).map_err(EngineError::Connection)?;
        let stream = UnixStream::from_std(stream).map_err(EngineError::Connection)?;
        let (reader, writer) = stream.into_split();
        tokio::spawn(read_lines(BufReader::new(reader), events));
        Ok(VmmControl { writer })
    }

    /// Tells the machine something. Its answer is not waited for: a machine that answers nothing holds nobody up.
    ///
    /// # Errors
    /// `Connection`.
    pub async fn send(&mut self, command: &str) -> Result<(), EngineError> {
        let line = format!("{}\n", json!({ "command": command }));
        self.writer.write_all(line.as_bytes()).await.map_err(EngineError::Connection)
    }
}

async fn read_lines(mut reader: BufReader<OwnedReadHalf>, events: mpsc::UnboundedSender<MachineEvent>) {
    loop {
        let mut line = String::new();
        match (&mut reader).take(MAX_LINE_BYTES).read_line(&mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
        if let Some(version) = message["version"].as_u64() {
            if version != VERSION {
                tracing::warn!(version, "the machine speaks another version of its protocol");
            }
            continue;
        }
        if let Some(reason) = message["error"].as_str() {
            tracing::warn!(reason, "the machine does not do what it was told");
            continue;
        }
        let delivered = match serde_json::from_value(message) {
            Ok(Said::DiskFailed { fault: Fault { no_space, is_final } }) => {
                events.send(MachineEvent::DiskStopped { no_space, is_final }).is_ok()
            }
            Ok(Said::Panicked) => events.send(MachineEvent::Panicked).is_ok(),
            Ok(Said::Ended { end }) => match end.as_str() {
                Some("powered-off") => events.send(MachineEvent::Off { by_guest: true }).is_ok(),
                Some("forced") => events.send(MachineEvent::Off { by_guest: false }).is_ok(),
                // Its status says more.
                _ => true,
            },
            // The answer to a command, or what a later one says.
            Err(_) => true,
        };
        if !delivered {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_and_events_are_told_apart() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let (sender, mut events) = mpsc::unbounded_channel();
        let mut control = VmmControl::open(ours.into(), sender).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut machine = UnixStream::from_std(theirs).unwrap();
        let said = concat!(
            r#"{"version":1,"program":"satchel-vmm"}"#,
            "\n",
            r#"{"event":"panicked"}"#,
            "\n",
            r#"{"event":"disk-failed","fault":{"disk":"home","action":"write","error":"No space left on device (os error 28)","no_space":true,"is_final":false}}"#,
            "\n",
            r#"{"event":"later","news":1}"#,
            "\n",
            r#"{"event":"ended","end":"forced"}"#,
            "\n"
        );
        let machine = tokio::spawn(async move {
            machine.write_all(said.as_bytes()).await.unwrap();
            let (reader, mut writer) = machine.split();
            let mut told = BufReader::new(reader).lines();
            assert_eq!(told.next_line().await.unwrap().unwrap(), r#"{"command":"power-button"}"#);
            writer.write_all(b"{\"state\":\"running\"}\n{\"error\":\"no\"}\n").await.unwrap();
            writer.write_all(b"{\"event\":\"panicked\"}\n").await.unwrap();
        });
        control.send("power-button").await.unwrap();
        machine.await.unwrap();
        assert_eq!(events.recv().await, Some(MachineEvent::Panicked));
        let stopped = MachineEvent::DiskStopped { no_space: true, is_final: false };
        assert_eq!(events.recv().await, Some(stopped));
        assert_eq!(events.recv().await, Some(MachineEvent::Off { by_guest: false }));
        assert_eq!(events.recv().await, Some(MachineEvent::Panicked));
        assert!(matches!(control.send("power-button").await, Err(EngineError::Connection(_))));
    }
}
