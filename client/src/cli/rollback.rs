//! `satchel rollback`

use chunk_format::{ManifestId, Name, SystemMode};
use clap::Args;
use satchel_client::rollback::{GoldenBelow, Part, Roller};
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
    /// The golden version below the system disk, where that was put back and follows a channel.
    golden: Option<GoldenBelow>,
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
    let (to, version, golden) = (done.to, done.version.map(made), done.golden);
    let result = RolledBack { desktop: args.desktop, to, version, golden };
    context.printer.result(&result, |result| {
        let (desktop, to) = (&result.desktop, result.to);
        let mut text = match &result.version {
            None => format!("{desktop} is as it was at version {to} already; nothing was changed"),
            Some(made) => format!(
                "rolled {desktop} back to version {to}: that is now version {} ({}). To undo it: satchel rollback \
                 {desktop} {}",
                made.sequence,
                short(&made.id),
                made.sequence - 1
            ),
        };
        text.extend(result.golden.iter().flat_map(|golden| of_golden(desktop, golden)));
        text
    })?;
    Ok(())
}

/// What becomes of the golden version below, in lines.
fn of_golden(desktop: &Name, golden: &GoldenBelow) -> Vec<String> {
    let GoldenBelow { image, sequence, mode, named, stays } = golden;
    let mut lines = Vec::new();
    if *mode == SystemMode::Renew {
        lines.push(format!(
            "\nits system disk is new at each start (mode renew): each begins with that of version {sequence} of {image}"
        ));
    }
    lines.extend(named.map(|named| match stays {
        true => format!(
            "\non this machine it stays on version {sequence} of {image} until its channel names another version than {0}, and \
             `satchel rebase {desktop}` takes that up",
            named.sequence
        ),
        false => format!(
            "\nthe next start takes up version {} of {image} again: nothing of {desktop} is on this machine, and so nothing to keep \
             it back. Where it was run before, the same command keeps it on version {sequence}",
            named.sequence
        ),
    }));
    lines
}
