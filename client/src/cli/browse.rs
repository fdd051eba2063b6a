//! `satchel browse`

use std::path::PathBuf;
use std::sync::Arc;

use chunk_format::ChunkSize;
use clap::Args;
use satchel_client::files::browse::{self, Tree};
use satchel_client::files::{DiskFiles, FilesError, Holds};
use satchel_client::image::DiskImage;
use satchel_client::past::{Past, PastDisk, PastRef, PastVersion};
use satchel_client::state::StateDir;
use serde::Serialize;

use super::Context;
use super::mount::say;

#[derive(Debug, Args)]
pub(super) struct BrowseArgs {
    /// The version: DESKTOP is its newest, without what was not synced yet; image:NAME[:CHANNEL|@VERSION] is a golden one
    #[arg(value_name = "DESKTOP[@VERSION]")]
    version: PastRef,
    /// An empty directory; the files appear in DIR/system and DIR/home
    dir: PathBuf,
}

#[derive(Serialize)]
struct Browsed {
    desktop: String,
    version: String,
    sequence: u64,
    mounted_at: String,
    disks: Vec<Shown>,
}

#[derive(Serialize)]
struct Shown {
    disk: String,
    blank: bool,
    file_systems: Vec<ShownFileSystem>,
}

#[derive(Serialize)]
struct ShownFileSystem {
    partition: u32,
    size_bytes: Option<u64>,
    was_in_use: bool,
    error: Option<String>,
}

pub(crate) async fn run(context: &Context, args: BrowseArgs) -> anyhow::Result<()> {
    let state = context.state()?;
    let directory = std::path::absolute(&args.dir)?;
    let version = PastVersion::find(&state, &args.version).await?;
    let past = open(&state, &args.version, &version)?;
    let disks = look_at(past.disks(&version)?).await?;
    let manifest = &version.version.manifest;
    let tree = Tree::new(&disks, manifest.created_ms);
    let browsed = Browsed {
        desktop: args.version.of(),
        version: version.version.id.to_string(),
        sequence: manifest.sequence,
        mounted_at: directory.display().to_string(),
        disks: disks.iter().map(shown).collect(),
    };
    tell_notes(context, &disks);
    let events = |event| {
        say(context.printer, &browsed.desktop, &browsed.mounted_at, event, || {
            // Whoever waits for this line reads it; if nobody does, the mount is there all the same.
            let _ = context.printer.result(&browsed, |browsed| {
                format!(
                    "the files of {} version {} are in {}",
                    browsed.desktop, browsed.sequence, browsed.mounted_at
                )
            });
        });
    };
    browse::serve(
        tree,
        &past,
        &directory,
        &format!("satchel:{}@{}", browsed.desktop, browsed.sequence),
        events,
    )
    .await?;
    Ok(())
}

/// Prepares to read versions of a desktop or image.
pub(crate) fn open(state: &StateDir, wanted: &PastRef, version: &PastVersion) -> anyhow::Result<Past> {
    let (_, remote) = state.remote()?;
    let disks = &version.version.manifest.disks;
    let chunk_size = disks.first().map_or(ChunkSize::DEFAULT, |disk| disk.chunk_size);
    Ok(Past::open(state, remote, &wanted.of(), chunk_size)?)
}

/// Finds the file systems of a version's disks.
pub(crate) async fn look_at(disks: Vec<Arc<PastDisk>>) -> anyhow::Result<Vec<DiskFiles>> {
    let look = move || {
        let find = |disk: Arc<PastDisk>| {
            let (role, disk): (_, Arc<dyn DiskImage>) = (disk.role(), disk);
            DiskFiles::find(role, &disk)
        };
        disks.into_iter().map(find).collect::<Result<Vec<_>, FilesError>>()
    };
    Ok(tokio::task::spawn_blocking(look).await??)
}

/// Says what a person should know of disks before they look for files.
pub(crate) fn tell_notes(context: &Context, disks: &[DiskFiles]) {
    for note in disks.iter().flat_map(DiskFiles::notes) {
        context.printer.message(&note);
    }
}

fn shown(disk: &DiskFiles) -> Shown {
    let found = match &disk.holds {
        Holds::FileSystems(found) => found.as_slice(),
        Holds::Blank | Holds::NoFileSystem => &[],
    };
    let file_systems = found.iter().map(|found| ShownFileSystem {
        partition: found.partition,
        size_bytes: found.opened.as_ref().ok().map(|fs| fs.size_bytes()),
        was_in_use: found.opened.as_ref().is_ok_and(|fs| fs.was_in_use()),
        error: found.opened.as_ref().err().map(ToString::to_string),
    });
    Shown {
        disk: disk.role.to_string(),
        blank: matches!(disk.holds, Holds::Blank),
        file_systems: file_systems.collect(),
    }
}
