//! How a desktop is opened: what commands that do have in common.

use std::net::SocketAddr;

use clap::{Args, ValueEnum};
use satchel_client::lease::Claim;
use satchel_client::session::ASK_EVERY;

use super::quantity::{self, ByteSize, Every};

#[derive(Debug, Args)]
pub(super) struct OpenArgs {
    /// The most disk space to use for what was fetched (without it: 20G, or as much as it has); what is pinned stays
    #[arg(long, value_name = "SIZE")]
    pub(super) cache_size: Option<ByteSize>,
    /// What to do when the server answers but has not the right bytes
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = OnMissingArg::Wait)]
    pub(super) on_missing: OnMissingArg,
    /// Contact nobody: start from what is on this machine, and only if a start needs no more
    #[arg(long)]
    pub(super) offline: bool,
    /// Take the desktop from another machine that has it in use: what that one has not synced goes to a fork
    #[arg(long, conflicts_with_all = ["ask", "read_only", "offline"])]
    pub(super) take: bool,
    /// Ask the machine that has the desktop in use to sync and end, and wait for that
    #[arg(long, conflicts_with_all = ["read_only", "offline"])]
    pub(super) ask: bool,
    /// Only look at it: nobody is kept from using it, and what is written is thrown away at the end
    #[arg(long)]
    pub(super) read_only: bool,
    /// Serve numbers for Prometheus on this loopback address (port 0: any)
    #[arg(long, value_name = "127.0.0.1:PORT")]
    pub(super) metrics: Option<SocketAddr>,
    /// Sync by itself so often while it is in use, as 10m, 90s or 2h, or never; without it as the server's operator says, or else every 10m
    #[arg(long, value_name = "TIME")]
    pub(super) sync_every: Option<Every>,
    /// The most such a sync sends in a second; without it, half of what the link carries
    #[arg(long, value_name = "SIZE", value_parser = quantity::rate)]
    pub(super) sync_rate: Option<ByteSize>,
    /// Seconds between two looks whether the channel names another version
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(super) ask_every: u64,
}

impl OpenArgs {
    /// How a command opens a desktop that serves nobody: with the server, and its lease by the claim alone.
    pub(crate) fn for_command(cache_size: Option<ByteSize>, on_missing: OnMissingArg) -> Self {
        Self {
            cache_size,
            on_missing,
            offline: false,
            take: false,
            ask: false,
            read_only: false,
            metrics: None,
            ask_every: ASK_EVERY.as_secs(),
            sync_every: None,
            sync_rate: None,
        }
    }

    /// What is to be done with the desktop.
    pub(crate) fn claim(&self) -> Claim {
        match (self.take, self.read_only) {
            (true, _) => Claim::Take,
            (false, true) => Claim::ReadOnly,
            (false, false) => Claim::Write,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum OnMissingArg {
    /// Wait until it has: the machine pauses
    Wait,
    /// Fail the read
    Fail,
}
