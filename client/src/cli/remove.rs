//! `satchel remove`

use std::io::{IsTerminal, Write};

use anyhow::bail;
use chunk_format::Name;
use clap::Args;
use satchel_client::remote::DesktopInfo;
use satchel_client::remove;
use serde::Serialize;

use super::Context;
use super::output::{count, moment};

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// The desktop, or the fork
    desktop: Name,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Also when this machine has work, or versions, that the server does not have: they are lost
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Removed {
    desktop: Name,
    owner: Name,
    /// Its versions on the server; null when it had none.
    versions: Option<u64>,
    /// Until when the server's operator can take it back.
    kept_until_ms: Option<u64>,
    /// There were files of it on this machine.
    was_here: bool,
}

pub(crate) async fn run(context: &Context, args: RemoveArgs) -> anyhow::Result<()> {
    let state = context.state()?;
    let (login, remote) = state.remote()?;
    let found = remove::look(&remote, &args.desktop).await?;
    if !args.yes && !is_meant(&args.desktop, found.as_ref())? {
        bail!("nothing was removed");
    }
    let done = remove::remove(&remote, &state, &args.desktop, found.as_ref(), args.force).await?;
    let removed = Removed {
        desktop: args.desktop,
        owner: login.user,
        versions: done.from_server.as_ref().map(|removed| removed.versions),
        kept_until_ms: done.from_server.as_ref().map(|removed| removed.kept_until_ms),
        was_here: done.was_here,
    };
    context.printer.result(&removed, |removed| {
        let Removed { desktop, owner, .. } = removed;
        match (removed.versions, removed.kept_until_ms) {
            (Some(versions), Some(until_ms)) => format!(
                "removed {desktop}: {}. The server's operator can take it back until {} \
                 (`satchel-server remove DIR {owner}/{desktop} --take-back`)",
                count(versions, "version"),
                moment(until_ms)
            ),
            _ => format!("removed what this machine had of {desktop}; the server has no such desktop"),
        }
    })?;
    Ok(())
}

/// Asks a person whether the desktop is meant, as it is; nobody there means that it has to be said with `--yes`.
fn is_meant(desktop: &Name, found: Option<&DesktopInfo>) -> anyhow::Result<bool> {
    let mut stderr = std::io::stderr();
    if !std::io::stdin().is_terminal() || !stderr.is_terminal() {
        bail!("nobody is there to be asked whether {desktop} is to be removed\nhint: `--yes` says so");
    }
    let newest = match found {
        Some(DesktopInfo { head, .. }) => format!(
            "Its newest version is {}, of {} on {}; all are removed, for all your machines",
            head.sequence,
            moment(head.committed_ms),
            head.machine
        ),
        None => "The server has no such desktop; what this machine has of it is removed".to_owned(),
    };
    write!(stderr, "{newest}. Type {desktop} to do so: ")?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer.trim() == desktop.as_str())
}
