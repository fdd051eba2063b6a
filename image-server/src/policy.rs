//! What the operator decided about leases: how long one holds without a word from its machine, and what a machine does
//! with a desktop when that time is over.

use std::path::Path;

use serde::Serialize;

use crate::database::{Connection, Database, DatabaseError, commit, parsed, settings};
use crate::layout::{DataDir, LayoutError};

const LEASE_DAYS: &str = "lease_days";
const AFTER_EXPIRY: &str = "after_expiry";
const DAY_MS: i64 = 86_400_000;
/// The longest a lease may hold: a year.
pub const MAX_LEASE_DAYS: u32 = 366;

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

/// What holds for leases.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LeasePolicy {
    /// How long a lease holds after its machine was last heard of, days.
    pub lease_days: u32,
    /// What a machine does when it was not heard of for longer.
    pub after_expiry: AfterExpiry,
}

impl LeasePolicy {
    /// How long a lease holds, milliseconds.
    pub(crate) fn lease_ms(&self) -> i64 {
        i64::from(self.lease_days).saturating_mul(DAY_MS)
    }
}

impl Default for LeasePolicy {
    fn default() -> Self {
        Self { lease_days: 7, after_expiry: AfterExpiry::ReadOnly }
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
) -> Result<LeasePolicy, PolicyError> {
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
        let policy = read(&mut tx).await?;
        commit(tx).await?;
        Ok(policy)
    };
    let changed = changed.await;
    database.close().await;
    changed
}

/// The policy in force.
pub(crate) async fn read(connection: &mut Connection) -> Result<LeasePolicy, DatabaseError> {
    let mut policy = LeasePolicy::default();
    if let Some(days) = settings::get(&mut *connection, LEASE_DAYS).await? {
        policy.lease_days = parsed("number of days", &days)?;
    }
    if let Some(after) = settings::get(&mut *connection, AFTER_EXPIRY).await? {
        policy.after_expiry = parsed("policy", &after)?;
    }
    Ok(policy)
}
