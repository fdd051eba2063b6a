//! What the operator decided about desktops in use: how long a lease holds without a word from its machine, what a machine
//! does with a desktop when that time is over, and how often it syncs one by itself.

use std::path::Path;

use serde::Serialize;

use crate::database::{Connection, Database, DatabaseError, commit, parsed, settings};
use crate::layout::{DataDir, LayoutError};

const LEASE_DAYS: &str = "lease_days";
const AFTER_EXPIRY: &str = "after_expiry";
const SYNC_EVERY_MINUTES: &str = "sync_every_minutes";
const DAY_MS: i64 = 86_400_000;
/// The longest a lease may hold: a year.
pub const MAX_LEASE_DAYS: u32 = 366;
/// The longest between two syncs: a week.
pub const MAX_SYNC_EVERY_MINUTES: u32 = 7 * 24 * 60;

/// What a machine that could not reach the server for as long as a lease holds may do with a desktop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterExpiry {
    /// Open it; what is written is thrown away at the end.
    ReadOnly,
    /// Nothing.
    Refuse,
}

impl AfterExpiry {
    fn as_str(self) -> &'static str {
        match self {
            Self::ReadOnly => "read_only",
            Self::Refuse => "refuse",
        }
    }
}

/// No name of an [`AfterExpiry`].
#[derive(Debug, thiserror::Error)]
#[error("it must be read-only or refuse")]
pub struct NoSuchPolicy;

impl std::str::FromStr for AfterExpiry {
    type Err = NoSuchPolicy;

    fn from_str(text: &str) -> Result<Self, NoSuchPolicy> {
        match text {
            "read_only" | "read-only" => Ok(Self::ReadOnly),
            "refuse" => Ok(Self::Refuse),
            _ => Err(NoSuchPolicy),
        }
    }
}

/// What holds for desktops in use.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DesktopPolicy {
    /// How long a lease holds after its machine was last heard of, days.
    pub lease_days: u32,
    /// What a machine does when it was not heard of for longer.
    pub after_expiry: AfterExpiry,
    /// How often a machine syncs a desktop in use by itself, minutes; 0 for never.
    pub sync_every_minutes: u32,
}

impl DesktopPolicy {
    /// How long a lease holds, milliseconds.
    pub(crate) fn lease_ms(&self) -> i64 {
        i64::from(self.lease_days).saturating_mul(DAY_MS)
    }
}

impl Default for DesktopPolicy {
    fn default() -> Self {
        Self { lease_days: 7, after_expiry: AfterExpiry::ReadOnly, sync_every_minutes: 10 }
    }
}

/// Why the policy could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The directory cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// Changes what is given, beside a running server or without one; answers what holds then.
///
/// # Errors
/// [`PolicyError`].
pub async fn change(
    root: &Path,
    lease_days: Option<u32>,
    after_expiry: Option<AfterExpiry>,
    sync_every_minutes: Option<u32>,
) -> Result<DesktopPolicy, PolicyError> {
    let dir = DataDir::open(root)?;
    let lock = dir.lock()?;
    let database = Database::open(&dir.database()).await?;
    drop(lock);
    let changed = async {
        let mut tx = database.begin().await?;
        if let Some(days) = lease_days {
            settings::set(&mut *tx, LEASE_DAYS, &days.min(MAX_LEASE_DAYS).to_string()).await?;
        }
        if let Some(after) = after_expiry {
            settings::set(&mut *tx, AFTER_EXPIRY, after.as_str()).await?;
        }
        if let Some(minutes) = sync_every_minutes {
            let minutes = minutes.min(MAX_SYNC_EVERY_MINUTES);
            settings::set(&mut *tx, SYNC_EVERY_MINUTES, &minutes.to_string()).await?;
        }
        let policy = read(&mut tx).await?;
        commit(tx).await?;
        Ok(policy)
    };
    let changed = changed.await;
    database.close().await;
    changed
}

/// The policy in force.
pub(crate) async fn read(connection: &mut Connection) -> Result<DesktopPolicy, DatabaseError> {
    let mut policy = DesktopPolicy::default();
    if let Some(days) = settings::get(&mut *connection, LEASE_DAYS).await? {
        policy.lease_days = parsed("number of days", &days)?;
    }
    if let Some(after) = settings::get(&mut *connection, AFTER_EXPIRY).await? {
        policy.after_expiry = parsed("policy", &after)?;
    }
    if let Some(minutes) = settings::get(&mut *connection, SYNC_EVERY_MINUTES).await? {
        policy.sync_every_minutes = parsed("number of minutes", &minutes)?;
    }
    Ok(policy)
}
