//! `satchel history`

use chunk_format::{Name, Subject};
use clap::Args;
use satchel_client::remote::{Listing, VersionInfo};
use satchel_client::versions::VersionError;

use super::Context;
use super::output::{moment, short, table};
use super::quantity::ByteSize;

#[derive(Debug, Args)]
pub(super) struct HistoryArgs {
    /// The desktop
    #[arg(required_unless_present = "image", conflicts_with = "image")]
    desktop: Option<Name>,
    /// An image instead
    #[arg(long, value_name = "NAME")]
    image: Option<Name>,
    /// At most so many, the newest first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Only those before this number
    #[arg(long, value_name = "VERSION")]
    before: Option<u64>,
    /// Also those whose content the server no longer keeps
    #[arg(long)]
    pruned: bool,
}

/// Versions asked for at once.
const PAGE: u32 = 100;

fn nothing_of(subject: &Subject) -> VersionError {
    match subject {
        Subject::Image { image } => VersionError::NoSuchImage { image: image.clone() },
        Subject::Desktop { desktop, .. } => VersionError::NoSuchDesktop { desktop: desktop.clone() },
    }
}

pub(crate) async fn run(context: &Context, args: HistoryArgs) -> anyhow::Result<()> {
    let (login, remote) = context.state()?.remote()?;
    let subject = match (args.image, args.desktop) {
        (Some(image), _) => Subject::Image { image },
        (None, Some(desktop)) => Subject::Desktop { owner: login.user, desktop },
        (None, None) => anyhow::bail!("name a desktop, or an image with --image"),
    };
    let wanted = args.limit.map_or(usize::MAX, |limit| limit as usize);
    let mut versions: Vec<VersionInfo> = Vec::new();
    let mut listing = Listing { limit: PAGE, before: args.before, pruned: args.pruned };
    // One more than wanted tells whether there are older ones.
    while versions.len() <= wanted {
        let page = match remote.list_versions(&subject, listing).await {
            Err(error) if error.code() == Some("not_found") => return Err(nothing_of(&subject).into()),
            page => page?,
        };
        let Some(last) = page.last() else { break };
        listing.before = Some(last.sequence);
        versions.extend(page);
    }
    let has_older = versions.len() > wanted;
    versions.truncate(wanted);
    let oldest = versions.last().map_or(1, |version| version.sequence);
    context.printer.result(&versions, |versions| text(versions, args.pruned))?;
    if has_older {
        context.printer.message(&format!("there are older ones: add --before {oldest}"));
    }
    Ok(())
}

fn text(versions: &[VersionInfo], with_pruned: bool) -> String {
    let rows: Vec<Vec<String>> = versions
        .iter()
        .map(|version| {
            let golden = version.golden.as_ref();
            let mut note = version.note.clone().unwrap_or_default();
            if with_pruned && version.pruned_ms.is_some() {
                note = format!("(pruned) {note}");
            }
            vec![
                version.sequence.to_string(),
                short(&version.id),
                moment(version.committed_ms),
                version.machine.clone(),
                version.stored_bytes.map_or_else(|| "?".to_owned(), |bytes| ByteSize(bytes).to_string()),
                golden.map(|golden| format!("{}@{}", golden.image, golden.sequence)).unwrap_or_default(),
                note,
            ]
        })
        .collect();
    table(&["VERSION", "ID", "WHEN", "FROM", "NEW", "ON", "NOTE"], &rows)
}
