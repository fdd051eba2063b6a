//! Speaks with a running machine's guest: whether it is up, and that it holds still while its disks are frozen.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::control::{Connection, ControlError, Reply, Request};
use crate::engine::agent::{Agent, AgentError, FreezeStatus};

/// How often the guest's agent is asked whether it is there, until it is.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// The longest a guest is held still, whatever the process that freezes the disks does.
const HOLD_LIMIT: Duration = Duration::from_secs(2);
/// How often a guest is told to go on, until it says that it does.
const THAW_INTERVAL: Duration = Duration::from_millis(200);

/// Attends to a machine's guest until it is dropped; a guest that is held still by then goes on only with its machine's end.
#[derive(Debug)]
pub(super) struct GuestDesk {
    _attending: JoinSet<()>,
    answered: Option<oneshot::Receiver<()>>,
}

impl GuestDesk {
    /// Begins to attend; a machine may have no port for an agent, and its guest may run none.
    pub(super) fn open(agent: Option<Agent>, desktop_directory: &Path) -> Self {
        let mut attending = JoinSet::new();
        let answered = agent.map(|agent| {
            let (sender, answered) = oneshot::channel();
            attending.spawn(attend(agent, desktop_directory.to_owned(), sender));
            answered
        });
        Self { _attending: attending, answered }
    }

    /// Waits until the guest's agent answers for the first time; for ever when it never does.
    pub(super) async fn answers(&mut self) {
        let Some(answered) = &mut self.answered else { return std::future::pending().await };
        let has_answered = answered.await.is_ok();
        self.answered = None;
        if !has_answered {
            std::future::pending().await
        }
    }
}

async fn attend(mut agent: Agent, desktop_directory: PathBuf, answered: oneshot::Sender<()>) {
    while let Err(error) = agent.ping().await {
        if matches!(error, AgentError::Connection(_)) {
            // The machine has ended, or is about to.
            return;
        }
        tokio::time::sleep(PING_INTERVAL).await;
    }
    // Whoever started the machine may not care.
    let _ = answered.send(());
    if let Err(error) = attend_freezes(&mut agent, &desktop_directory).await {
        tracing::info!(%error, "the guest does not hold still any more while its disks are frozen");
    }
}

async fn attend_freezes(agent: &mut Agent, desktop_directory: &Path) -> Result<(), ControlError> {
    let mut connection = Connection::open(desktop_directory).await?;
    connection.send(&Request::AttendFreezes).await?;
    while let Some(reply) = connection.receive::<Reply>().await? {
        match reply {
            Reply::HoldStill => hold_still(agent, &mut connection).await?,
            // It was held still for too long, and goes on already.
            Reply::GoOn => {}
            reply => {
                let reason = format!("{reply:?} where a freeze is announced");
                return Err(ControlError::Nonsense { reason });
            }
        }
    }
    Ok(())
}

/// Has the guest hold still until its disks are frozen. Whatever fails in between, it goes on.
async fn hold_still(agent: &mut Agent, connection: &mut Connection) -> Result<(), ControlError> {
    let begun = Instant::now();
    let frozen = agent.freeze().await;
    let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let told = async {
        // A guest without file systems to freeze promises nothing.
        let held = matches!(frozen, Ok(count) if count > 0);
        connection.send(&Request::Still { held, took_ms }).await?;
        match held {
            true => tokio::time::timeout(HOLD_LIMIT, connection.receive::<Reply>()).await.unwrap_or(Ok(None)),
            false => Ok(None),
        }
    };
    let told = told.await.map(drop);
    match frozen {
        Err(AgentError::Refused { reason, .. }) => {
            tracing::info!(reason, "the guest does not hold still");
        }
        // Without an answer it may be on its way to hold still.
        _ => thaw(agent).await,
    }
    told
}

/// Has the guest go on, again and again until it says that it does.
async fn thaw(agent: &mut Agent) {
    loop {
        let thawed = agent.thaw().await;
        match agent.status().await {
            Ok(FreezeStatus::Thawed) | Err(AgentError::Connection(_) | AgentError::Refused { .. }) => return,
            status => tracing::warn!(?thawed, ?status, "the guest does not go on yet"),
        }
        tokio::time::sleep(THAW_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixStream;
    use tokio::sync::mpsc;

    use super::*;
    use crate::control;

    /// A guest's agent that tells what it is asked, and answers in step.
    fn agent() -> (Agent, mpsc::UnboundedReceiver<String>) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let (sender, asked) = mpsc::unbounded_channel();
        theirs.set_nonblocking(true).unwrap();
        tokio::spawn(async move {
            let mut stream = BufReader::new(UnixStream::from_std(theirs).unwrap());
            let mut line = Vec::new();
            let mut frozen = false;
            while stream.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
                let text: Vec<u8> = line.drain(..).filter(|byte| *byte != 0xff).collect();
                let command: Value = serde_json::from_slice(&text).unwrap();
                let name = command["execute"].as_str().unwrap().to_owned();
                let answer = match name.as_str() {
                    "guest-sync-delimited" => command["arguments"]["id"].clone(),
                    "guest-fsfreeze-freeze" => {
                        frozen = true;
                        json!(2)
                    }
                    "guest-fsfreeze-thaw" => {
                        frozen = false;
                        json!(2)
                    }
                    "guest-fsfreeze-status" => json!(if frozen { "frozen" } else { "thawed" }),
                    _ => json!({}),
                };
                if name == "guest-sync-delimited" {
                    stream.get_mut().write_all(&[0xff]).await.unwrap();
                }
                stream
                    .get_mut()
                    .write_all(format!("{}\n", json!({"return": answer})).as_bytes())
                    .await
                    .unwrap();
                let _ = sender.send(name);
            }
        });
        (Agent::open(ours).unwrap(), asked)
    }

    async fn next(asked: &mut mpsc::UnboundedReceiver<String>) -> String {
        loop {
            let name = asked.recv().await.unwrap();
            if name != "guest-sync-delimited" && name != "guest-ping" {
                return name;
            }
        }
    }

    #[tokio::test]
    async fn a_guest_is_held_still_until_it_may_go_on_and_never_longer_than_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let listener = control::listen(dir.path()).unwrap();
        let (agent, mut asked) = agent();
        let mut desk = GuestDesk::open(Some(agent), dir.path());
        desk.answers().await;
        let mut mount = Connection::new(listener.accept().await.unwrap().0);
        assert!(matches!(mount.receive().await.unwrap(), Some(Request::AttendFreezes)));
        for lets_go in [true, false] {
            mount.send(&Reply::HoldStill).await.unwrap();
            let still = mount.receive().await.unwrap();
            assert!(matches!(still, Some(Request::Still { held: true, .. })), "{still:?}");
            assert_eq!(next(&mut asked).await, "guest-fsfreeze-freeze");
            assert!(asked.try_recv().is_err());
            if lets_go {
                mount.send(&Reply::GoOn).await.unwrap();
            }
            assert_eq!(next(&mut asked).await, "guest-fsfreeze-thaw");
            assert_eq!(next(&mut asked).await, "guest-fsfreeze-status");
        }
        // A word that comes too late changes nothing.
        mount.send(&Reply::GoOn).await.unwrap();
        mount.send(&Reply::HoldStill).await.unwrap();
        assert!(matches!(mount.receive().await.unwrap(), Some(Request::Still { held: true, .. })));
        // Nor is a guest left still when the other side dies.
        drop(mount);
        assert_eq!(next(&mut asked).await, "guest-fsfreeze-freeze");
        assert_eq!(next(&mut asked).await, "guest-fsfreeze-thaw");
    }
}
