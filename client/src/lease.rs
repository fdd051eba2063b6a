//! The lease of a desktop as this machine sees it: taken at the start, renewed while the desktop is open, given back when
//! nothing is left to sync.
//!
//! A lease keeps two machines from working on one desktop unawares. It is courtesy, kept by clocks; that no work is lost
//! rests on the server's compare-and-swap alone. Without a network a machine goes by when it last heard of the server,
//! and a clock that is set back does not make that later: the latest time ever seen here is kept.

use std::io;

use chunk_format::{ManifestId, Name, PublicKey};
use serde::{Deserialize, Serialize};

use crate::remote::{AfterExpiry, LeaseAnswer, LeaseInfo, LeaseWish, Remote, RemoteError};
use crate::volume::Volume;

const FILE_NAME: &str = "lease.json";
const VERSION: u32 = 1;
const MAX_FILE_BYTES: usize = 4096;
/// Of a machine's name that is written down: more than a server takes.
const MAX_MACHINE_CHARS: usize = 256;
/// How long before the end a person is warned, milliseconds; or a third of the whole, for short leases.
const WARNING_MS: u64 = 24 * 3_600_000;

/// How a desktop is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// To be written: the lease is needed where the server can be asked.
    Write,
    /// To be written, even if another machine holds the lease: its work goes to a fork from then on.
    Take,
    /// For what writes nothing new, as a sync: the lease is taken if it is free.
    IfFree,
    /// To be looked at: no lease, and what is written is thrown away at the end.
    ReadOnly,
}

/// What this machine knows of its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    version: u32,
    /// When the server was last heard of, milliseconds since 1970 UTC by this machine's clock.
    pub heard_ms: u64,
    /// The latest time this machine's clock ever showed while the desktop was opened.
    pub latest_ms: u64,
    /// How long a lease holds after its machine was last heard of, milliseconds.
    pub lease_ms: u64,
    /// What this machine does after that.
    pub after_expiry: AfterExpiry,
    /// Whether this machine holds the lease, as far as it knows.
    pub is_held: bool,
    /// How often the operator wants the desktop synced by itself while it is in use, seconds; 0 for never.
    #[serde(default)]
    pub sync_every_s: Option<u64>,
    /// The machine that took it from this one, as far as this one knows.
    #[serde(default)]
    pub taken_by: Option<String>,
}

/// What may be done without asking the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Work may go on.
    Good,
    /// Work may go on for so long.
    Ending {
        /// Milliseconds.
        left_ms: u64,
    },
    /// The time is over.
    Expired {
        /// What the operator decided for this.
        after: AfterExpiry,
    },
}

impl LeaseRecord {
    /// What the server's answer says, heard at this time.
    pub fn heard(answer: &LeaseAnswer, is_held: bool, now_ms: u64) -> Self {
        Self {
            version: VERSION,
            heard_ms: now_ms,
            latest_ms: now_ms,
            lease_ms: answer.lease_ms,
            after_expiry: answer.after_expiry,
            is_held,
            sync_every_s: answer.sync_every_s,
            taken_by: None,
        }
    }

    /// What may be done at this time without asking the server.
    pub fn standing(&self, now_ms: u64) -> Standing {
        let elapsed_ms = now_ms.max(self.latest_ms).saturating_sub(self.heard_ms);
        let Some(left_ms) = self.lease_ms.checked_sub(elapsed_ms).filter(|left_ms| *left_ms > 0) else {
            return Standing::Expired { after: self.after_expiry };
        };
        match left_ms <= WARNING_MS.min(self.lease_ms / 3) {
            true => Standing::Ending { left_ms },
            false => Standing::Good,
        }
    }

    /// Reads what a desktop's directory has; none when there is nothing that can be read: a lease is courtesy.
    pub fn load(volume: &dyn Volume) -> Option<Self> {
        let bytes = match volume.read(FILE_NAME, MAX_FILE_BYTES) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, "cannot read {FILE_NAME}");
                }
                return None;
            }
        };
        match serde_json::from_slice::<Self>(&bytes) {
            Ok(record) if record.version == VERSION => Some(record),
            Ok(record) => {
                tracing::warn!(version = record.version, "{FILE_NAME} is of another version, and not used");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "{FILE_NAME} is damaged, and not used");
                None
            }
        }
    }

    /// Writes it into a desktop's directory.
    ///
    /// # Errors
    /// What the file system says.
    fn store(&self, volume: &dyn Volume) -> io::Result<()> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        bytes.push(b'\n');
        volume.replace(FILE_NAME, &bytes)
    }

    /// Writes it into a desktop's directory; what cannot be written is no reason not to work: a lease is courtesy.
    pub fn note(&self, volume: &dyn Volume) {
        if let Err(error) = self.store(volume) {
            tracing::warn!(%error, "what is known of the lease was not written down");
        }
    }

    /// What holds after another machine was heard to have taken the lease at this time.
    pub fn taken(self, machine: String, now_ms: u64) -> Self {
        // Whatever a server says, the file stays one that is read again.
        let machine = machine.chars().take(MAX_MACHINE_CHARS).collect();
        Self { is_held: false, taken_by: Some(machine), heard_ms: now_ms, ..self.seen(now_ms) }
    }

    /// What holds after the lease was given back at this time.
    pub fn given_back(self, now_ms: u64) -> Self {
        Self { is_held: false, heard_ms: now_ms, ..self.seen(now_ms) }
    }

    /// Notes that the desktop is opened or closed at this time.
    pub fn seen(self, now_ms: u64) -> Self {
        Self { latest_ms: self.latest_ms.max(now_ms), ..self }
    }
}

/// What asking for a lease came to.
#[derive(Clone, Debug)]
pub enum Asked {
    /// This machine holds it.
    Held(Box<LeaseAnswer>),
    /// Another machine does.
    HeldElsewhere(Box<LeaseInfo>),
}

/// Takes or renews a lease.
///
/// # Errors
/// [`RemoteError`], but not that another machine holds it.
pub async fn ask(remote: &Remote, desktop: &Name, wish: &LeaseWish) -> Result<Asked, RemoteError> {
    match remote.put_lease(desktop, wish).await {
        Ok(answer) => Ok(Asked::Held(Box::new(answer))),
        Err(RemoteError::Refused { code, details, .. }) if code == "lease_held" => {
            let lease = serde_json::from_value(details["lease"].clone());
            let lease = lease.map_err(|error| RemoteError::Unexpected {
                url: remote.endpoint().url.clone(),
                reason: format!("a lease that is not valid: {error}"),
            })?;
            Ok(Asked::HeldElsewhere(lease))
        }
        Err(error) => Err(error),
    }
}

/// Tells the server what a machine stands on, whoever has the lease: what is written on it without a network can then become
/// a fork, however much later. If it is not heard, the next opening says so.
pub(crate) async fn note_standing(remote: &Remote, desktop: &Name, key: &PublicKey, version: ManifestId) {
    if let Err(error) = remote.put_standing(desktop, key, version).await {
        tracing::info!(%error, "the server was not told what this machine stands on");
    }
}

/// Whether a lease is this machine's.
pub fn is_ours(lease: &LeaseInfo, key: &PublicKey) -> bool {
    lease.key == *key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::SimulatedVolume;

    const DAY_MS: u64 = 24 * 3_600_000;

    fn record() -> LeaseRecord {
        LeaseRecord {
            version: VERSION,
            heard_ms: 100 * DAY_MS,
            latest_ms: 100 * DAY_MS,
            lease_ms: 7 * DAY_MS,
            after_expiry: AfterExpiry::ReadOnly,
            is_held: true,
            sync_every_s: None,
            taken_by: None,
        }
    }

    #[test]
    fn work_goes_on_for_as_long_as_the_lease_and_is_warned_in_time() {
        let record = record();
        assert_eq!(record.standing(100 * DAY_MS), Standing::Good);
        assert_eq!(record.standing(105 * DAY_MS), Standing::Good);
        assert_eq!(record.standing(106 * DAY_MS), Standing::Ending { left_ms: DAY_MS });
        assert_eq!(record.standing(107 * DAY_MS), Standing::Expired { after: AfterExpiry::ReadOnly });
        let short = LeaseRecord { lease_ms: 3000, ..record };
        assert_eq!(short.standing(100 * DAY_MS + 1999), Standing::Good);
        assert_eq!(short.standing(100 * DAY_MS + 2000), Standing::Ending { left_ms: 1000 });
    }

    #[test]
    fn a_clock_that_is_set_back_gives_no_more_time() {
        let record = record().seen(107 * DAY_MS);
        assert!(matches!(record.standing(90 * DAY_MS), Standing::Expired { .. }));
        // Before the last word of the server: nothing has passed.
        assert_eq!(self::record().standing(90 * DAY_MS), Standing::Good);
        assert_eq!(record.clone().seen(90 * DAY_MS), record);
    }

    #[test]
    fn a_record_that_was_edited_or_damaged_is_not_used() {
        let volume = SimulatedVolume::default();
        assert_eq!(LeaseRecord::load(&volume), None);
        record().store(&volume).unwrap();
        assert_eq!(LeaseRecord::load(&volume), Some(record()));
        for bytes in [&b"{"[..], br#"{"version":9}"#, b"\xff\xff"] {
            volume.replace(FILE_NAME, bytes).unwrap();
            assert_eq!(LeaseRecord::load(&volume), None);
        }
    }
}
