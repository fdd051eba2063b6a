//! `satchel-server policy`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use image_server::policy::{self, AfterExpiry};

use super::output;

/// Change how long a machine may work on a desktop without reaching the server, and how often it syncs by itself; print what
/// holds. Works while a server runs
#[derive(Args)]
pub(crate) struct Policy {
    /// The server's directory
    dir: PathBuf,
    /// How long a lease holds after its machine was last heard of
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=i64::from(policy::MAX_LEASE_DAYS)))]
    lease_days: Option<u32>,
    /// What a machine may do with a desktop after that: `read-only` or `refuse`
    #[arg(long, value_name = "WHAT")]
    after_expiry: Option<AfterExpiry>,
    /// How often a machine syncs a desktop in use by itself, unless its person says otherwise; 0 for never
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u32).range(0..=i64::from(policy::MAX_SYNC_EVERY_MINUTES)))]
    sync_every: Option<u32>,
}

impl Policy {
    pub(crate) async fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        let policy = policy::change(&self.dir, self.lease_days, self.after_expiry, self.sync_every).await?;
        if json {
            output::json(&policy)?;
        } else {
            let after = match policy.after_expiry {
                AfterExpiry::ReadOnly => "read-only",
                AfterExpiry::Refuse => "refuse",
            };
            output::data(&format!(
                "lease-days {}\nafter-expiry {after}\nsync-every {}",
                policy.lease_days, policy.sync_every_minutes
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
