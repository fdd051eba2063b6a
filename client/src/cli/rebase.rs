//! `satchel rebase`

use std::sync::Arc;

use chunk_format::{Name, SystemMode};
use clap::Args;
use satchel_client::lease::Claim;
use satchel_client::renew::{ModeChanged, Renewer, Wanted};
use satchel_client::sync::Syncer;
use satchel_client::upload::UploadProgress;

use super::create::ModeArg;
use super::open::{OnMissingArg, OpenArgs};
use super::progress::while_uploading;
use super::{Context, mount};

#[derive(Debug, Args)]
pub(super) struct RebaseArgs {
    /// The desktop
    desktop: Name,
    /// The golden version: its number, or its id (without it: what the channel names)
    #[arg(long, value_name = "VERSION", conflicts_with = "undo")]
    to: Option<String>,
    /// Go back to the golden version and the system disk before the last renewal
    #[arg(long)]
    undo: bool,
    /// Stay on this golden version, and change what becomes of the system disk when the channel moves on
    #[arg(long, value_name = "MODE", value_enum, conflicts_with_all = ["to", "undo"])]
    mode: Option<ModeArg>,
}

pub(crate) async fn run(context: &Context, args: RebaseArgs) -> anyhow::Result<()> {
    let state = context.state()?;
    let open = OpenArgs::for_command(None, OnMissingArg::Wait);
    let session = mount::open(context, &state, &args.desktop, &open, Claim::Write).await?;
    let progress = Arc::new(UploadProgress::default());
    let syncer = Syncer { progress: Arc::clone(&progress), ..mount::syncer(&state, &session)? };
    let directory = state.desktop_path(&args.desktop);
    let renewer = Renewer { state: &state, syncer: &syncer, directory: &directory };
    if let Some(mode) = args.mode {
        let outcome = while_uploading(progress, renewer.set_mode(&session, mode.into())).await;
        mount::close(&session).await?;
        context.printer.result(&outcome?, |changed| say_changed(&args.desktop, changed))?;
        return Ok(());
    }
    let wanted = match (args.to, args.undo) {
        (Some(version), _) => Wanted::Version(version),
        (None, true) => Wanted::Undo,
        (None, false) => Wanted::Channel,
    };
    let outcome = while_uploading(progress, renewer.rebase(&session, &wanted)).await;
    mount::close(&session).await?;
    context.printer.result(&outcome?, |renewed| mount::say_renewed(&args.desktop, renewed))?;
    Ok(())
}

fn say_changed(desktop: &Name, changed: &ModeChanged) -> String {
    let ModeChanged { from, to, before, version } = changed;
    let kept = match to {
        SystemMode::Renew => format!(
            "; its system disk is the image's again, and as it was in version {before} \
             (satchel browse {desktop}@{before} DIRECTORY)"
        ),
        SystemMode::Keep | SystemMode::Own => String::new(),
    };
    format!("the mode of {desktop} is {to}, and was {from} (version {}){kept}", version.sequence)
}
