//! `satchel retention`

use chunk_format::Name;
use clap::Args;
use satchel_client::remote::{Policy, Retention};
use satchel_client::session::SessionError;
use serde::Serialize;

use super::Context;

#[derive(Debug, Args)]
pub(super) struct RetentionArgs {
    /// The desktop
    desktop: Name,
    /// Keep the newest N versions; rules that are not given keep none
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
    /// Keep what the server keeps of all desktops
    #[arg(long, conflicts_with_all = ["keep_last", "keep_hourly", "keep_daily", "keep_weekly"])]
    default: bool,
}

#[derive(Serialize)]
struct Kept<'a> {
    desktop: &'a Name,
    #[serde(flatten)]
    retention: Retention,
}

pub(crate) async fn run(context: &Context, args: RetentionArgs) -> anyhow::Result<()> {
    let (_, remote) = context.state()?.remote()?;
    let given = [args.keep_last, args.keep_hourly, args.keep_daily, args.keep_weekly];
    let policy = given.iter().any(Option::is_some).then(|| Policy {
        keep_last: args.keep_last.unwrap_or(0),
        keep_hourly: args.keep_hourly.unwrap_or(0),
        keep_daily: args.keep_daily.unwrap_or(0),
        keep_weekly: args.keep_weekly.unwrap_or(0),
    });
    let answer = match (policy, args.default) {
        (None, false) => remote.retention(&args.desktop).await,
        (policy, _) => remote.set_retention(&args.desktop, policy).await,
    };
    let retention = match answer {
        Err(error) if error.code() == Some("not_found") => {
            return Err(SessionError::NoSuchDesktop { desktop: args.desktop }.into());
        }
        answer => answer?,
    };
    let kept = Kept { desktop: &args.desktop, retention };
    context.printer.result(&kept, |kept| {
        let Policy { keep_last, keep_hourly, keep_daily, keep_weekly } = kept.retention.policy;
        let whose = if kept.retention.own { "as set for it" } else { "as the server does for all" };
        format!(
            "{} keeps its last {keep_last} versions, and the newest of each of {keep_hourly} hours, {keep_daily} days \
             and {keep_weekly} weeks, {whose}; its first, and those with a note, always",
            kept.desktop
        )
    })?;
    Ok(())
}
