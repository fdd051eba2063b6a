//! Looks now and then, while a desktop is mounted, whether its channel names another version for it, and fetches what the next start
//! will touch.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chunk_format::{ManifestId, Name, SystemMode};
use tokio::sync::mpsc;

use super::decide::due;
use super::{Heard, Now, RenewError, ahead, tell};
use crate::remote::NamedVersion;
use crate::session::Session;
use crate::starts::Starts;
use crate::versions::fetch_version;

/// A golden version that the next start can take up.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The image.
    pub image: Name,
    /// The version's number.
    pub sequence: u64,
    /// Whether it is taken up only when a person says so.
    pub only_if_told: bool,
}

/// Watches a session's channel until the receiver has gone. What cannot be asked or fetched is tried again at the next look.
pub async fn watch(
    session: Arc<Session>,
    directory: PathBuf,
    machine: String,
    ready: mpsc::UnboundedSender<Ready>,
) {
    let (mut tag, mut done) = (None, None);
    loop {
        tokio::time::sleep(with_jitter(session.ask_every)).await;
        if let Ok(now) = Now::of(&session) {
            tell(&session, &directory, &machine, Some(now.golden.id)).await;
        }
        match look(&session, &directory, &mut tag, &mut done).await {
            Ok(Some(found)) => {
                if ready.send(found).is_err() {
                    return;
                }
            }
            Ok(None) => {}
            Err(error) => {
                // Seen once more as if for the first time.
                tag = None;
                tracing::info!(error = &error as &dyn std::error::Error, "the channel was not looked at");
            }
        }
    }
}

async fn look(
    session: &Session,
    directory: &std::path::Path,
    tag: &mut Option<String>,
    done: &mut Option<ManifestId>,
) -> Result<Option<Ready>, RenewError> {
    let now = Now::of(session)?;
    let Some(channel) = &now.base.channel else { return Ok(None) };
    let Some(info) = session.remote.image_if_changed(&now.base.image, tag).await? else { return Ok(None) };
    let Some(rollout) = info.rollouts.get(channel) else { return Ok(None) };
    Heard::of(&info.image, channel, rollout).store(directory);
    let standing = now.standing(&Starts::load(directory), directory, rollout);
    let Some(NamedVersion { id, .. }) = due(&standing, rollout).filter(|to| *done != Some(to.id)) else {
        return Ok(None);
    };
    let golden = fetch_version(&session.remote, &now.image(), id, &now.publisher).await?;
    let only_if_told = now.mode == SystemMode::Own;
    if !only_if_told {
        session.desktop.set_awaited(&golden);
        let came = ahead::fetch_ahead(&session.desktop, &golden).await.map_err(|error| {
            RenewError::Nowhere(format!("the next version cannot be fetched yet: {error}"))
        })?;
        tracing::info!(chunks = came, "the next golden version was fetched ahead");
    }
    *done = Some(id);
    Ok(Some(Ready { image: info.image, sequence: golden.manifest.sequence, only_if_told }))
}

/// Up to a fifth longer, so that the desktops of a house do not ask at once.
fn with_jitter(every: Duration) -> Duration {
    let mut random = [0; 1];
    // Without randomness all ask at once, which only costs the server a moment.
    let _ = getrandom::fill(&mut random);
    every + every.mul_f64(f64::from(random[0]) / 1275.0)
}
