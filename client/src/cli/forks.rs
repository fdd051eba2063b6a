//! `satchel forks` and `satchel adopt`

use std::sync::Arc;

use chunk_format::Name;
use clap::Args;
use satchel_client::adopt::Adopter;
use satchel_client::remote::DesktopInfo;
use satchel_client::versions::VersionError;

use super::output::{moment, short, table};
use super::{Context, machine_name, now_ms};

#[derive(Debug, Args)]
pub(super) struct ForksArgs {
    /// The desktop; without it, all
    desktop: Option<Name>,
}

#[derive(Debug, Args)]
pub(super) struct AdoptArgs {
    /// The fork, as `satchel forks` lists it
    fork: Name,
}

pub(crate) async fn list(context: &Context, args: ForksArgs) -> anyhow::Result<()> {
    let (_, remote) = context.state()?.remote()?;
    let desktops = remote.desktops().await?;
    let is_meant = |info: &&DesktopInfo| match (&info.fork_of, &args.desktop) {
        (Some(origin), Some(desktop)) => origin == desktop,
        (origin, None) => origin.is_some(),
        (None, Some(_)) => false,
    };
    let forks: Vec<&DesktopInfo> = desktops.iter().filter(is_meant).collect();
    // A server that was set back may know forks of a desktop that it does not know.
    if let Some(desktop) = &args.desktop
        && forks.is_empty()
        && !desktops.iter().any(|info| info.desktop == *desktop)
    {
        return Err(VersionError::NoSuchDesktop { desktop: desktop.clone() }.into());
    }
    if forks.is_empty() {
        context.printer.message("no forks: nothing was done on two machines at once");
    }
    context.printer.result(&forks, |forks| {
        let rows: Vec<Vec<String>> = forks
            .iter()
            .map(|info| {
                vec![
                    info.desktop.to_string(),
                    info.fork_of.as_ref().map_or(String::new(), ToString::to_string),
                    info.head.sequence.to_string(),
                    short(&info.head.id),
                    moment(info.head.committed_ms),
                    info.head.machine.clone(),
                ]
            })
            .collect();
        table(&["FORK", "OF", "VERSION", "ID", "SYNCED", "FROM"], &rows)
    })?;
    Ok(())
}

pub(crate) async fn adopt(context: &Context, args: AdoptArgs) -> anyhow::Result<()> {
    let state = context.state()?;
    let (login, remote) = state.remote()?;
    let key = Arc::new(state.machine_key()?);
    let adopter = Adopter { remote, state: &state, owner: login.user, key, machine: machine_name(), now_ms };
    let adopted = adopter.adopt(&args.fork).await?;
    context.printer.result(&adopted, |adopted| {
        format!(
            "{} is what {} was, as version {}; what it was before is {} now, version {}. \
             `satchel adopt {}` takes it back",
            adopted.desktop, adopted.fork, adopted.version, adopted.fork, adopted.fork_version, adopted.fork
        )
    })?;
    Ok(())
}
