//! What a desktop's channel was last heard to name: `channel.json` in its directory, for whoever shows it. Nothing is decided by
//! it.

use std::path::Path;

use chunk_format::Name;
use serde::{Deserialize, Serialize};

use crate::remote::{NamedVersion, Rollout};
use crate::volume::{DirVolume, Volume};

const FILE_NAME: &str = "channel.json";
const MAX_BYTES: usize = 1 << 14;

/// Where a channel was last heard to point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// The image.
    pub image: Name,
    /// The channel.
    pub channel: Name,
    /// Where it points.
    pub version: NamedVersion,
    /// The share of desktops its move reaches, per cent.
    pub percent: u8,
    /// Whether its move is stopped.
    pub paused: bool,
}

impl Heard {
    pub(crate) fn of(image: &Name, channel: &Name, rollout: &Rollout) -> Self {
        Self {
            image: image.clone(),
            channel: channel.clone(),
            version: rollout.version,
            percent: rollout.percent,
            paused: rollout.paused,
        }
    }

    /// What was heard last, if anything was.
    pub fn load(volume: &dyn Volume) -> Option<Self> {
        serde_json::from_slice(&volume.read(FILE_NAME, MAX_BYTES).ok()?).ok()
    }

    /// Writes it down; failing to is no more than a line lost.
    pub(crate) fn store(&self, directory: &Path) {
        let stored = DirVolume::open(directory).and_then(|volume| {
            if Self::load(&volume).as_ref() == Some(self) {
                return Ok(());
            }
            volume.replace(FILE_NAME, &serde_json::to_vec_pretty(self)?)
        });
        if let Err(error) = stored {
            tracing::info!(%error, "what the channel names was not written down");
        }
    }
}
