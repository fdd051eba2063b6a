//! `satchel rollback`

use chunk_format::{ManifestId, Name};
use clap::Args;
use satchel_client::rollback::{Part, Roller};
use serde::Serialize;

use super::output::short;
use super::{Context, machine_name, now_ms};

#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// The desktop
    desktop: Name,
    /// The version: its number, its id, or the first eight digits of it (see `satchel history`)
    version: String,
    /// Put back the system disk only, with the golden version below it
    #[arg(long, conflicts_with = "home_only")]
    system_only: bool,
    /// Put back the home disk only
    #[arg(long)]
    home_only: bool,
}

#[derive(Serialize)]
struct RolledBack {
    desktop: Name,
    /// The version whose disks the desktop has again.
    to: u64,
    /// The version made for it; null when the newest has these disks already.
    version: Option<Made>,
}

#[derive(Serialize)]
struct Made {
    id: ManifestId,
    sequence: u64,
    note: Option<String>,
}

pub(crate) async fn run(context: &Context, args: RollbackArgs) -> anyhow::Result<()> {
    let state = context.state()?;
    let (login, remote) = state.remote()?;
    let part = match (args.system_only, args.home_only) {
        (true, _) => Part::System,
        (_, true) => Part::Home,
        (false, false) => Part::All,
    };
    let roller = Roller { remote, state: &state, owner: login.user, machine: machine_name(), now_ms };
    let done = roller.roll_back(&args.desktop, &args.version, part).await?;
    let made = |version: satchel_client::desktop::Version| Made {
        id: version.id,
        sequence: version.manifest.sequence,
        note: version.manifest.note,
    };
    let result = RolledBack { desktop: args.desktop, to: done.to, version: done.version.map(made) };
    context.printer.result(&result, |result| {
        let (desktop, to) = (&result.desktop, result.to);
        match &result.version {
            None => format!("{desktop} is as it was at version {to} already; nothing was changed"),
            Some(made) => format!(
                "rolled {desktop} back to version {to}: that is now version {} ({}). To undo it: satchel rollback \
                 {desktop} {}",
                made.sequence,
                short(&made.id),
                made.sequence - 1
            ),
        }
    })?;
    Ok(())
}
