//! `satchel source`

use std::io::{BufRead, IsTerminal, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use chunk_format::{ManifestId, Name, Subject};
use clap::Args;
use clap::error::ErrorKind;
use satchel_client::desktop::DesktopStore;
use satchel_client::hint;
use satchel_client::remote::Remote;
use satchel_client::session::{SessionError, check_exists};
use satchel_client::source::{FailureKind, SourceAddress, SourceList, has_version};
use satchel_client::state::make_private_dir;
use satchel_client::volume::DirVolume;
use serde::Serialize;

use super::Context;
use super::output::short;

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

/// How long it may take to look what a source has.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
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
    for address in &added {
        list.add(address.clone(), args.first);
    }
    if !args.add.is_empty() || !args.remove.is_empty() {
        list.store(&volume)?;
        context.printer.message("used from the next time the desktop is mounted or run");
    }
    if !added.is_empty() {
        let golden = Golden::of(&directory, &remote, &args.desktop).await;
        for address in &added {
            // It is added all the same: a stick may be away.
            if let Some(lacking) = lacking(address, &args.desktop, golden.as_ref()).await {
                context.printer.warning(&lacking);
            }
        }
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

/// The golden version that a desktop stands on.
struct Golden {
    image: Name,
    id: ManifestId,
    /// Where what is on this machine tells it.
    sequence: Option<u64>,
}

impl Golden {
    /// By what is on this machine, or else by what the server says; none where neither tells.
    async fn of(directory: &Path, remote: &Remote, desktop: &Name) -> Option<Self> {
        let here = || {
            let store = DesktopStore::read_only(Arc::new(DirVolume::open(directory).ok()?)).ok()?;
            let golden = store.version(store.record().base).ok()?;
            let Subject::Image { image } = golden.manifest.subject else { return None };
            Some(Self { image, id: golden.id, sequence: Some(golden.manifest.sequence) })
        };
        if let Some(golden) = here() {
            return Some(golden);
        }
        let info = tokio::time::timeout(LOOK_TIMEOUT, remote.desktop(desktop)).await.ok()?.ok()?;
        Some(Self { image: info.base.image, id: info.base.version, sequence: None })
    }
}

/// What speaks against a source, as far as it can be told now: that it is not there, or has not what the desktop stands on.
async fn lacking(address: &SourceAddress, desktop: &Name, golden: Option<&Golden>) -> Option<String> {
    if let SourceAddress::Directory(path) = address
        && !path.is_dir()
    {
        return Some(format!("there is no directory {} now: it is asked when it is there", path.display()));
    }
    let golden = golden?;
    // What cannot be used at all is told where it is opened.
    let source = address.open().ok()?;
    let looking = has_version(&*source, &golden.image, golden.id, address.is_local());
    let error = match tokio::time::timeout(LOOK_TIMEOUT, looking).await {
        Ok(Ok(())) => return None,
        Ok(Err(error)) => error,
        Err(_) => {
            return Some(format!(
                "it could not be told within {} s whether {address} has what {desktop} stands on",
                LOOK_TIMEOUT.as_secs()
            ));
        }
    };
    let why = hint::chain(&error);
    Some(match error.kind {
        FailureKind::NotFound | FailureKind::Damaged => {
            let Golden { image, id, sequence } = golden;
            let (version, of) = match sequence {
                Some(sequence) => (sequence.to_string(), format!("{image}@{sequence}")),
                None => (short(id), image.to_string()),
            };
            format!(
                "{address} has not all of version {version} of {image}, on which {desktop} stands ({why}): what lacks comes from \
                 elsewhere. `satchel export {of} DIR` writes all of it"
            )
        }
        _ => format!("{address} cannot be asked now ({why})"),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_source_that_is_away_or_has_not_the_version_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let desktop: Name = "work".parse().unwrap();
        let golden =
            Golden { image: "debian".parse().unwrap(), id: ManifestId::of(b"a version"), sequence: Some(3) };
        let away: SourceAddress = format!("file:{}/stick", dir.path().display()).parse().unwrap();
        let said = lacking(&away, &desktop, None).await.unwrap();
        assert!(said.starts_with("there is no directory ") && said.contains("/stick now"), "{said}");
        let there: SourceAddress = format!("file:{}", dir.path().display()).parse().unwrap();
        assert!(lacking(&there, &desktop, Some(&golden)).await.unwrap().contains("cannot be asked now"));
        std::fs::write(dir.path().join("letter"), "of another thing").unwrap();
        let said = lacking(&there, &desktop, Some(&golden)).await.unwrap();
        for part in [
            "has not all of version 3 of debian, on which work stands",
            "/manifests/",
            "`satchel export debian@3 DIR`",
        ] {
            assert!(said.contains(part), "`{part}` is not in: {said}");
        }
        assert_eq!(lacking(&there, &desktop, None).await, None, "nothing is known to look for");
    }
}
