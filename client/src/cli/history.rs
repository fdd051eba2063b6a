//! `satchel history`

use chunk_format::Subject;
use satchel_client::versions::VersionError;

use super::output::{moment, short, table};
use super::{Context, HistoryArgs};

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
    let mut versions = Vec::new();
    let mut before = None;
    loop {
        let page = match remote.versions(&subject, PAGE, before).await {
            Err(error) if error.code() == Some("not_found") => return Err(nothing_of(&subject).into()),
            page => page?,
        };
        let Some(last) = page.last() else { break };
        before = Some(last.sequence);
        versions.extend(page);
    }
    context.printer.result(&versions, |versions| {
        let rows: Vec<Vec<String>> = versions
            .iter()
            .map(|version| {
                vec![
                    version.sequence.to_string(),
                    short(&version.id),
                    moment(version.committed_ms),
                    version.machine.clone(),
                    version.note.clone().unwrap_or_default(),
                ]
            })
            .collect();
        table(&["VERSION", "ID", "WHEN", "FROM", "NOTE"], &rows)
    })?;
    Ok(())
}
