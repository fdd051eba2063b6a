//! `satchel-server remove`

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use chunk_format::Name;
use clap::Args;
use clap::error::ErrorKind;
use image_server::format_ms;
use image_server::removal::{self, Removed};

use super::output;

/// Remove a person's desktop, or take one back; list those that can be taken back. Works while a server runs
///
/// A desktop that is removed leaves every listing, and its name is free. For seven days it can be taken back; from then on
/// `retention` prunes its versions, and `gc` deletes what only they needed. A machine that has work of it keeps that, and syncs
/// it as a fork.
#[derive(Args)]
pub(crate) struct Remove {
    /// The server's directory
    dir: PathBuf,
    /// The desktop; without one, those that can be taken back are listed
    #[arg(value_name = "USER/DESKTOP")]
    desktop: Option<OwnedDesktop>,
    /// Prune its versions at once: it cannot be taken back
    #[arg(long, requires = "desktop", conflicts_with = "take_back")]
    at_once: bool,
    /// Take back the desktop that was removed last under this name
    #[arg(long, requires = "desktop")]
    take_back: bool,
    /// Take back, or prune at once, the one of this number in the list, and not the last one or the one there is
    #[arg(long, value_name = "N", requires = "desktop")]
    removed: Option<i64>,
}

const NUMBER_ALONE: &str =
    "--removed says which one to --take-back, or to prune --at-once: give one of them\n";

/// `alice/work`.
#[derive(Clone)]
struct OwnedDesktop {
    owner: Name,
    desktop: Name,
}

impl FromStr for OwnedDesktop {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (owner, desktop) = text.split_once('/').ok_or("say whose it is: USER/DESKTOP")?;
        let name = |text: &str| text.parse::<Name>().map_err(|error| error.to_string());
        Ok(Self { owner: name(owner)?, desktop: name(desktop)? })
    }
}

impl Remove {
    pub(crate) async fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        let Some(OwnedDesktop { owner, desktop }) = self.desktop else {
            let removed = removal::list(&self.dir).await?;
            if json {
                output::json(&removed)?;
            } else if removed.is_empty() {
                output::message("there is no removed desktop that can be taken back");
            }
            for removed in removed.iter().filter(|_| !json) {
                output::data(&line(removed))?;
            }
            return Ok(ExitCode::SUCCESS);
        };
        let done = match self.removed {
            number if self.take_back => removal::take_back(&self.dir, &owner, &desktop, number).await?,
            Some(number) if self.at_once => removal::erase(&self.dir, &owner, &desktop, number).await?,
            Some(_) => return Err(clap::Error::raw(ErrorKind::MissingRequiredArgument, NUMBER_ALONE).into()),
            None => removal::remove(&self.dir, &owner, &desktop, self.at_once).await?,
        };
        if json {
            output::json(&done)?;
        } else if self.take_back {
            output::data(&format!("took {owner}/{desktop} back: {} versions", done.versions))?;
        } else if self.at_once {
            output::data(&format!(
                "removed {owner}/{desktop}: {} versions, which were pruned",
                done.versions
            ))?;
            output::message("their content is deleted by `satchel-server gc`, after its grace");
        } else {
            output::data(&line(&done))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn line(removed: &Removed) -> String {
    let Removed { number, owner, desktop, versions, removed_ms, kept_until_ms } = removed;
    format!(
        "removed {owner}/{desktop} (number {number}): {versions} versions, at {}; can be taken back until {} (--take-back)",
        format_ms(*removed_ms),
        format_ms(*kept_until_ms)
    )
}
