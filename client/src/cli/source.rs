//! `satchel source`

use std::io::{BufRead, IsTerminal, Read};

use anyhow::Context as _;
use chunk_format::Name;
use clap::Args;
use clap::error::ErrorKind;
use satchel_client::session::{SessionError, check_exists};
use satchel_client::source::{SourceAddress, SourceList};
use satchel_client::state::make_private_dir;
use satchel_client::volume::DirVolume;
use serde::Serialize;

use super::Context;

#[derive(Debug, Args)]
pub(super) struct SourceArgs {
    /// The desktop
    desktop: Name,
    /// Ask this source too: file:/DIRECTORY, https://HOST/PREFIX with #SHA256:... to pin its certificate, or the address that
    /// `satchel cache serve` prints on another machine (`-` reads one from standard input)
    #[arg(long, value_name = "SOURCE")]
    add: Vec<String>,
    /// Ask what is added before the others
    #[arg(long, requires = "add")]
    first: bool,
    /// Do not ask this source any more, named as it is listed: a cache without its secret, cache://HOST[:PORT]
    #[arg(long, value_name = "SOURCE")]
    remove: Vec<String>,
}

/// The longest address that is read from standard input.
const MAX_ADDRESS_BYTES: u64 = 4096;

#[derive(Serialize)]
struct Sources {
    added: Vec<String>,
    mirrors: Vec<String>,
    server: String,
}

pub(crate) async fn run(context: &Context, args: &SourceArgs) -> anyhow::Result<()> {
    let added = args.add.iter().map(|text| address(context, text)).collect::<anyhow::Result<Vec<_>>>()?;
    let state = context.state()?;
    let (login, remote) = state.remote()?;
    let directory = state.desktop_path(&args.desktop);
    // A server that cannot be asked is what other sources are for.
    if let Err(error @ SessionError::NoSuchDesktop { .. }) =
        check_exists(&directory, &remote, &args.desktop, args.add.is_empty()).await
    {
        return Err(error.into());
    }
    if !args.add.is_empty() {
        make_private_dir(&directory)?;
    } else if !directory.exists() {
        anyhow::bail!("nothing of desktop {} is on this machine; it uses its server only", args.desktop);
    }
    let volume = DirVolume::open(&directory)
        .map_err(|source| SessionError::Lock { path: directory.clone(), source })?;
    let mut list = SourceList::load(&volume)?;
    for address in &args.remove {
        list.remove(address)?;
    }
    for address in added {
        list.add(address, args.first);
    }
    if !args.add.is_empty() || !args.remove.is_empty() {
        list.store(&volume)?;
        context.printer.message("used from the next time the desktop is mounted or run");
    }
    let names = |list: &[_]| list.iter().map(ToString::to_string).collect();
    let sources = Sources { added: names(&list.added), mirrors: names(&list.mirrors), server: login.url };
    context.printer.result(&sources, |sources| {
        let added = sources.added.iter().map(|source| format!("{source}\n"));
        let mirrors = sources.mirrors.iter().map(|mirror| format!("{mirror} (a mirror of the image)\n"));
        added.chain(mirrors).chain([format!("{} (the server)\n", sources.server)]).collect()
    })?;
    Ok(())
}

/// Reads an address. It is not the argument parser that does: that repeats what it cannot read, and an address may hold a
/// secret.
fn address(context: &Context, text: &str) -> anyhow::Result<SourceAddress> {
    let mut line = String::new();
    let text = match text {
        "-" => {
            let input = std::io::stdin();
            if input.is_terminal() {
                context.printer.message("paste the address, and press Enter:");
            }
            input
                .lock()
                .take(MAX_ADDRESS_BYTES)
                .read_line(&mut line)
                .context("cannot read an address from standard input")?;
            line.trim()
        }
        text => text,
    };
    text.parse().or_else(|error| clap::Error::raw(ErrorKind::ValueValidation, format!("{error}\n")).exit())
}
