//! `satchel-server retention`

use std::path::PathBuf;
use std::process::ExitCode;

use chunk_format::{Name, Namespace};
use clap::Args;
use clap::error::ErrorKind;
use image_server::retention::{self, Policy, Pruning, Report};

use super::output;

/// Prune versions that the retention policy does not keep. `gc` then deletes what only they needed. Works while a server
/// runs
///
/// Without --keep options the server's own policy counts; at first that is the last 10 versions, and the newest of each
/// of 24 hours, 14 days and 8 weeks. With one or more, exactly these rules count for this run.
#[derive(Args)]
pub(crate) struct Retention {
    /// The server's directory
    dir: PathBuf,
    /// Keep the newest N versions
    #[arg(long, value_name = "N")]
    keep_last: Option<u32>,
    /// Keep the newest version of each of the last N hours that have one
    #[arg(long, value_name = "N")]
    keep_hourly: Option<u32>,
    /// Keep the newest version of each of the last N days that have one
    #[arg(long, value_name = "N")]
    keep_daily: Option<u32>,
    /// Keep the newest version of each of the last N weeks that have one
    #[arg(long, value_name = "N")]
    keep_weekly: Option<u32>,
    /// Make these rules the server's own, which hold for every image and desktop without rules of its own
    #[arg(long)]
    set: bool,
    /// Look at this image only
    #[arg(long, value_name = "NAME", conflicts_with = "user")]
    image: Option<Name>,
    /// Look at this user's desktops only
    #[arg(long, value_name = "NAME")]
    user: Option<Name>,
    /// Say what would be pruned, and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Retention {
    pub(crate) async fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        let given = [self.keep_last, self.keep_hourly, self.keep_daily, self.keep_weekly];
        let policy = given.iter().any(Option::is_some).then(|| Policy {
            keep_last: self.keep_last.unwrap_or(0),
            keep_hourly: self.keep_hourly.unwrap_or(0),
            keep_daily: self.keep_daily.unwrap_or(0),
            keep_weekly: self.keep_weekly.unwrap_or(0),
        });
        if self.set && policy.is_none() {
            anyhow::bail!(
                "say what to set: --keep-last N, --keep-hourly N, --keep-daily N or --keep-weekly N"
            );
        }
        if self.set && (self.image.is_some() || self.user.is_some()) {
            return Err(set_for_one(if self.image.is_some() { "--image" } else { "--user" }).into());
        }
        let only = self.image.map(Namespace::Image).or(self.user.map(Namespace::User));
        let wish = Pruning { policy, set: self.set, only, dry_run: self.dry_run };
        let report = retention::prune(&self.dir, &wish).await?;
        if json {
            output::json(&report)?;
        } else {
            for line in lines(&report) {
                output::data(&line)?;
            }
            if !report.pruned.is_empty() && !report.dry_run {
                output::message("their content is deleted by `satchel-server gc`, after its grace");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What is set holds for the whole server, and not for what is looked at.
fn set_for_one(option: &str) -> clap::Error {
    let message = format!(
        "--set cannot be used with {option}: it makes the rules those of the whole server\nhint: without --set they \
         count for this run; without {option} they become the server's own"
    );
    clap::Error::raw(ErrorKind::ArgumentConflict, format!("{message}\n"))
}

fn lines(report: &Report) -> Vec<String> {
    let done = if report.dry_run { "would prune" } else { "pruned" };
    let mut lines: Vec<String> = report
        .pruned
        .iter()
        .map(|version| {
            let (namespace, name) = (&version.namespace, &version.name);
            let what = match namespace.strip_prefix("user/") {
                Some(user) => format!("desktop {user}/{name}"),
                None => format!("image {name}"),
            };
            format!("{done} {what} version {} ({})", version.sequence, version.id)
        })
        .collect();
    let Policy { keep_last, keep_hourly, keep_daily, keep_weekly } = report.policy;
    let rules = format!("last {keep_last}, hourly {keep_hourly}, daily {keep_daily}, weekly {keep_weekly}");
    lines.push(format!("{done} {}, kept {} ({rules})", report.pruned.len(), report.kept));
    if report.set {
        let is = if report.dry_run { "would be" } else { "is now" };
        lines.push(format!("the server's policy {is}: {rules}"));
    }
    lines
}
