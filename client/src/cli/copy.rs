//! `satchel copy`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use chunk_format::Name;
use clap::Args;
use satchel_client::files::copy::{Copied, CopyError, Staged, Target, stage};
use satchel_client::files::{DiskFiles, FileSystem, FilesError};
use satchel_client::fs::DesktopFs;
use satchel_client::fs::fuse::{self, MountOptions};
use satchel_client::image::DiskImage;
use satchel_client::lease::Claim;
use satchel_client::mount::{COPY_POINT, clean_stale, unmount};
use satchel_client::past::{LiveDisk, Past, PastRef, PastVersion};
use satchel_client::session::Session;
use satchel_client::state::{StateDir, make_private_dir};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::open::{OnMissingArg, OpenArgs};
use super::output::count;
use super::place::{DiskArg, FilePlace};
use super::quantity::ByteSize;
use super::{Context, browse, mount, progress, status};

#[derive(Debug, Args)]
pub(super) struct CopyArgs {
    /// The file or directory, and the version it is copied out of; image:NAME[:CHANNEL|@VERSION]:PATH is one of a golden version
    #[arg(value_name = "DESKTOP[@VERSION]:PATH")]
    from: FilePlace<PastRef>,
    /// Where it goes: into a directory that is there, or under a new name
    #[arg(value_name = "DESKTOP:PATH")]
    to: FilePlace<Name>,
    /// The disk that both paths are on
    #[arg(long, value_enum, default_value_t = DiskArg::Home)]
    disk: DiskArg,
    /// Replace files that are there
    #[arg(long)]
    force: bool,
    /// The most disk space to use for what was fetched (without it: 20G, or as much as it has)
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<ByteSize>,
}

/// Where a copy is made, in the desktop's directory, and where in that is what is on its way.
const DIRECTORY: &str = "copy";
const STAGING: &str = "files";

#[derive(Serialize)]
struct Report {
    from: String,
    from_sequence: u64,
    desktop: String,
    disk: String,
    #[serde(flatten)]
    copied: Copied,
}

impl Report {
    fn new(args: &CopyArgs, from_sequence: u64, copied: Copied) -> Self {
        let (from, desktop) = (args.from.of.to_string(), args.to.of.to_string());
        Self { from, from_sequence, desktop, disk: args.disk.role().to_string(), copied }
    }
}

pub(crate) async fn run(context: &Context, args: CopyArgs) -> anyhow::Result<()> {
    let state = context.state()?;
    // What is to be copied first: a path that was mistyped is said before another desktop is opened.
    status::warn_of_unsynced(context, &state, &[&args.from.of]).await;
    let source = Source::find(context, &state, &args).await?;
    let open = OpenArgs::for_command(args.cache_size, OnMissingArg::Fail);
    // Its lock is held from here on: the desktop is not started meanwhile.
    let session = mount::open(context, &state, &args.to.of, &open, Claim::Write).await?;
    let desktop = state.desktop_path(&args.to.of);
    let copied = copy_into(context, &args, source, session, &desktop).await;
    let closed = match &copied {
        Ok((session, _)) => mount::close(session).await,
        Err(_) => Ok(()),
    };
    let cleared = clear(&desktop);
    context.printer.result(&copied?.1?, said)?;
    closed.and(cleared)
}

/// Copies into a desktop that is open: all of it, or nothing.
async fn copy_into(
    context: &Context,
    args: &CopyArgs,
    source: Source,
    session: Session,
    desktop: &Path,
) -> anyhow::Result<(Session, anyhow::Result<Report>)> {
    if let Err(refused) = check_kept(args, &session).and_then(|()| make_directories(desktop)) {
        return Ok((session, Err(refused)));
    }
    let stop = CancellationToken::new();
    let copying = async {
        let from_sequence = source.version.version.manifest.sequence;
        let staged = source.stage(args, &session, desktop, &stop).await;
        let staged = match staged.and_then(|staged| Ok(session.desktop.begin_attempt().map(|()| staged)?)) {
            Ok(staged) => staged,
            Err(error) => return Ok((session, Err(error))),
        };
        let session = session.reassembled()?;
        let copied = write(args, staged, &session, desktop, &stop).await;
        let ended = match copied {
            Ok(copied) => session.desktop.keep_attempt().map(|()| copied).map_err(Into::into),
            Err(error) => session.desktop.undo_attempt().map_err(Into::into).and(Err(error)),
        };
        let report = ended.map(|copied| Report::new(args, from_sequence, copied));
        Ok((session.reassembled()?, report))
    };
    tokio::pin!(copying);
    tokio::select! {
        outcome = &mut copying => outcome,
        _ = tokio::signal::ctrl_c() => {
            stop.cancel();
            context.printer.message("stopping; interrupt again to end at once");
            tokio::select! {
                outcome = &mut copying => outcome,
                _ = tokio::signal::ctrl_c() => {
                    Err(anyhow::anyhow!("interrupted; nothing was copied, and the next opening of the desktop clears that away"))
                }
            }
        }
    }
}

fn make_directories(desktop: &Path) -> anyhow::Result<()> {
    clear(desktop)?;
    for path in [desktop.join(DIRECTORY), desktop.join(COPY_POINT), staging(desktop)] {
        make_private_dir(&path)?;
    }
    Ok(())
}

fn staging(desktop: &Path) -> PathBuf {
    desktop.join(DIRECTORY).join(STAGING)
}

fn said(report: &Report) -> String {
    let copied = &report.copied;
    let skipped = match copied.skipped {
        0 => String::new(),
        count => format!("; {count} devices, pipes and sockets were left out"),
    };
    format!(
        "copied {} ({}), {} and {} of version {} into {} on the {} disk of {}{skipped}\n\
         not synced yet: satchel sync {}",
        count(copied.files, "file"),
        ByteSize(copied.bytes),
        count(copied.directories, "directory"),
        count(copied.links, "link"),
        report.from_sequence,
        copied.path,
        report.disk,
        report.desktop,
        report.desktop
    )
}

/// Refuses what the next start would throw away.
fn check_kept(args: &CopyArgs, session: &Session) -> anyhow::Result<()> {
    let (desktop, role) = (&session.desktop, args.disk.role());
    if desktop.is_read_only() {
        anyhow::bail!(
            "desktop {} can only be looked at now: nothing that is copied would be kept. \
             Copy when its server can be reached",
            args.to.of
        );
    }
    if desktop.disk(role).is_some_and(|disk| desktop.is_volatile(disk)) {
        anyhow::bail!(
            "the {role} disk of {} is new at each start (mode renew): nothing that is copied to it would be kept. \
             Copy to its home, or choose another mode: satchel rebase {0} --mode keep",
            args.to.of
        );
    }
    Ok(())
}

/// Writes what is staged to the desktop's disk, by way of a mount that only this is for.
async fn write(
    args: &CopyArgs,
    staged: Staged,
    session: &Session,
    desktop: &Path,
    stop: &CancellationToken,
) -> anyhow::Result<Copied> {
    let role = args.disk.role();
    let live = live_disk(args, session)?;
    let points = desktop.join(COPY_POINT);
    let options = MountOptions { name: format!("satchel:{}", args.to.of), allow_other: false, threads: 4 };
    let fs = Arc::new(DesktopFs::new(session.desktop.disks()));
    let fuse = fuse::mount(fs, Handle::current(), &points, &options)
        .with_context(|| format!("cannot mount on {}", points.display()))?;
    let serving = std::thread::Builder::new().name("fuse".to_owned()).spawn(move || fuse.run())?;
    let device = points.join(format!("{role}.raw"));
    let (of, path, force) = (args.to.of.to_string(), args.to.path.clone(), args.force);
    let (scripts, stop) = (staging(desktop), stop.clone());
    let writing = tokio::task::spawn_blocking(move || {
        let target = Target { device: &device, disk: live, role, of, stop };
        target.write(&staged, path.as_bytes(), force, &scripts)
    });
    let fetched = || session.desktop.fetcher().stats().fetched_bytes;
    let copied = progress::while_fetching("writing", fetched, writing).await;
    tokio::task::spawn_blocking(move || {
        let unmounted = unmount(&points, false);
        // Who still has it open is gone with the mount.
        let unmounted = unmounted.or_else(|_| unmount(&points, true));
        let _ = serving.join();
        unmounted
    })
    .await??;
    copied?.map_err(|error| placed(error, || format!("on the {role} disk of {} as it is here", args.to.of)))
}

/// The disk that is copied into, as it is here.
fn live_disk(args: &CopyArgs, session: &Session) -> anyhow::Result<Arc<dyn DiskImage>> {
    let role = args.disk.role();
    let disk = session.desktop.disk(role).with_context(|| format!("{} has no {role} disk", args.to.of))?;
    Ok(Arc::new(LiveDisk { disk: Arc::clone(disk), runtime: Handle::current() }))
}

/// Says where it is that something is not.
fn placed(error: CopyError, place: impl FnOnce() -> String) -> anyhow::Error {
    match error {
        CopyError::Files(FilesError::NotFound { path }) => anyhow::anyhow!("there is no {path} {}", place()),
        error => error.into(),
    }
}

/// What is copied from.
struct Source {
    version: PastVersion,
    past: Past,
    fs: Arc<FileSystem>,
}

impl Source {
    /// Opens the version's disk and looks whether the file is there.
    async fn find(context: &Context, state: &StateDir, args: &CopyArgs) -> anyhow::Result<Self> {
        let version = PastVersion::find(state, &args.from.of).await?;
        let past = browse::open(state, &args.from.of, &version)?;
        let role = args.disk.role();
        let disk = past.disks(&version)?.into_iter().find(|disk| disk.role() == role);
        let disk: Arc<dyn DiskImage> =
            disk.with_context(|| format!("{} has no {role} disk", args.from.of))?;
        let (path, of) = (args.from.path.clone(), args.from.of.to_string());
        let finding = tokio::task::spawn_blocking(move || {
            let files = DiskFiles::find(role, &disk)?;
            let fs = Arc::clone(files.largest().ok_or(CopyError::NoFileSystem { role, of })?);
            fs.resolve(path.as_bytes(), true)?;
            Ok::<_, CopyError>((fs, files.notes()))
        });
        let fetched = || past.fetcher().stats().fetched_bytes;
        let found = progress::while_fetching("looking", fetched, finding).await?;
        let sequence = version.version.manifest.sequence;
        let place = || format!("on the {role} disk of version {sequence} of {}", args.from.of.of());
        let (fs, notes) = found.map_err(|error| placed(error, place))?;
        notes.iter().for_each(|note| context.printer.message(note));
        Ok(Self { version, past, fs })
    }

    /// Fetches what is copied.
    async fn stage(
        self,
        args: &CopyArgs,
        session: &Session,
        desktop: &Path,
        stop: &CancellationToken,
    ) -> anyhow::Result<Staged> {
        let room_bytes = live_disk(args, session)?.size_bytes();
        let (path, directory) = (args.from.path.clone(), staging(desktop));
        let (fs, stopped) = (self.fs, stop.clone());
        let staging = tokio::task::spawn_blocking(move || {
            stage(&fs, path.as_bytes(), &directory, room_bytes, &stopped)
        });
        let fetched = || self.past.fetcher().stats().fetched_bytes;
        let staging = progress::while_fetching("reading", fetched, staging);
        tokio::pin!(staging);
        let staged = tokio::select! {
            staged = &mut staging => staged?,
            () = stop.cancelled() => {
                // What it waits for does not come any more.
                self.past.close();
                let _ = staging.await;
                Err(CopyError::Interrupted)
            }
        };
        self.past.close();
        Ok(staged?)
    }
}

/// Removes what an earlier copy has left, be it a dead mount.
fn clear(desktop: &Path) -> anyhow::Result<()> {
    let (directory, points) = (desktop.join(DIRECTORY), desktop.join(COPY_POINT));
    if points.exists() || clean_stale(&points)? {
        clean_stale(&points)?;
        let _ = unmount(&points, true);
    }
    match std::fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_said_with_where_that_is() {
        let error = CopyError::Files(FilesError::NotFound { path: "/nosuch".to_owned() });
        let said = placed(error, || "on the home disk of version 3 of work".to_owned()).to_string();
        assert_eq!(said, "there is no /nosuch on the home disk of version 3 of work");
    }
}
