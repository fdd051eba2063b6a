//! `satchel rebase`

use satchel_client::lease::Claim;
use satchel_client::renew::{Renewer, Wanted};

use super::quantity::ByteSize;
use super::{Context, OnMissingArg, OpenArgs, RebaseArgs, mount, now_ms};

/// What lies below the changes that are synced first.
const CACHE_BYTES: u64 = 20 << 30;

pub(crate) async fn run(context: &Context, args: RebaseArgs) -> anyhow::Result<()> {
    let state = context.state()?;
    let open = OpenArgs::for_command(ByteSize(CACHE_BYTES), OnMissingArg::Wait);
    let session = mount::open(context, &state, &args.desktop, &open, Claim::Write).await?;
    let syncer = mount::syncer(&state, &session)?;
    let directory = state.desktop_path(&args.desktop);
    let renewer = Renewer { state: &state, syncer: &syncer, directory: &directory };
    let wanted = match (args.to, args.undo) {
        (Some(version), _) => Wanted::Version(version),
        (None, true) => Wanted::Undo,
        (None, false) => Wanted::Channel,
    };
    let outcome = renewer.rebase(&session, &wanted).await;
    tokio::task::block_in_place(|| session.desktop.close())?;
    session.release_lease(now_ms()).await;
    context.printer.result(&outcome?, |renewed| mount::say_renewed(&args.desktop, renewed))?;
    Ok(())
}
