//! `satchel diff`

use std::fmt::Write;
use std::sync::Arc;

use anyhow::bail;
use chunk_format::DiskRole;
use clap::Args;
use satchel_client::files::diff::{Change, DiskSide, Fate, compare_disks};
use satchel_client::files::{DiskFiles, FilesError};
use satchel_client::image::DiskImage;
use satchel_client::past::{PastDisk, PastRef, PastVersion};
use serde::Serialize;

use super::output::short;
use super::place::DiskArg;
use super::quantity::ByteSize;
use super::{Context, browse, progress, status};

#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// The first version; image:NAME[:CHANNEL|@VERSION] is a golden one
    #[arg(value_name = "DESKTOP[@VERSION]")]
    before: PastRef,
    /// The second version, likewise
    #[arg(value_name = "DESKTOP[@VERSION]")]
    after: PastRef,
    /// Look at this disk only
    #[arg(long, value_enum)]
    disk: Option<DiskArg>,
}

#[derive(Serialize)]
struct Report {
    before: Side,
    after: Side,
    disks: Vec<DiskReport>,
    fetched_bytes: u64,
}

#[derive(Serialize)]
struct Side {
    desktop: String,
    version: String,
    sequence: u64,
}

impl Side {
    fn new(wanted: &PastRef, past: &PastVersion) -> Self {
        let (version, sequence) = (past.version.id.to_string(), past.version.manifest.sequence);
        Self { desktop: wanted.of(), version, sequence }
    }
}

#[derive(Serialize)]
struct DiskReport {
    disk: String,
    /// Every byte of the disk is the same.
    identical: bool,
    /// The files of both could be looked at; else the notes say why not.
    compared: bool,
    added: u64,
    changed: u64,
    removed: u64,
    changes: Vec<Change>,
    unreadable: Vec<String>,
    notes: Vec<String>,
}

pub(crate) async fn run(context: &Context, args: DiffArgs) -> anyhow::Result<()> {
    let state = context.state()?;
    status::warn_of_unsynced(context, &state, &[&args.before, &args.after]).await;
    let before = PastVersion::find(&state, &args.before).await?;
    let after = PastVersion::find(&state, &args.after).await?;
    let past = browse::open(&state, &args.before, &before)?;
    let (old, new) = (past.disks(&before)?, past.disks(&after)?);
    let wanted = args.disk.map(DiskArg::role);
    let mut reports = Vec::new();
    for role in [DiskRole::System, DiskRole::Home] {
        if wanted.is_some_and(|wanted| wanted != role) {
            continue;
        }
        let segments =
            |past: &PastVersion| past.version.manifest.disk(role).map(|disk| disk.segments.clone());
        let (of_old, of_new) = (segments(&before), segments(&after));
        if of_old.is_none() && of_new.is_none() {
            if wanted.is_some() {
                bail!("neither version has a {role} disk");
            }
            continue;
        }
        if of_old == of_new {
            reports.push(DiskReport::identical(role));
            continue;
        }
        let find = |disks: &[Arc<PastDisk>]| disks.iter().find(|disk| disk.role() == role).cloned();
        let (old, new) = (find(&old), find(&new));
        let comparing = tokio::task::spawn_blocking(move || compare(role, old, new));
        let fetched = || past.fetcher().stats().fetched_bytes;
        let report = progress::while_fetching("comparing", fetched, comparing).await??;
        reports.push(report);
    }
    let report = Report {
        before: Side::new(&args.before, &before),
        after: Side::new(&args.after, &after),
        disks: reports,
        fetched_bytes: past.fetcher().stats().fetched_bytes,
    };
    past.close();
    context.printer.result(&report, text)?;
    Ok(())
}

impl DiskReport {
    fn identical(role: DiskRole) -> Self {
        Self {
            disk: role.to_string(),
            identical: true,
            compared: true,
            added: 0,
            changed: 0,
            removed: 0,
            changes: Vec::new(),
            unreadable: Vec::new(),
            notes: Vec::new(),
        }
    }
}

fn compare(
    role: DiskRole,
    old: Option<Arc<PastDisk>>,
    new: Option<Arc<PastDisk>>,
) -> Result<DiskReport, FilesError> {
    let side = |disk: Option<Arc<PastDisk>>| {
        let Some(disk) = disk else { return Ok(None) };
        let image: Arc<dyn DiskImage> = disk.clone();
        let files = Arc::new(DiskFiles::find(role, &image)?);
        Ok(Some(DiskSide { disk, files }))
    };
    let (old, new) = (side(old)?, side(new)?);
    let difference = compare_disks(old.as_ref(), new.as_ref())?;
    let notes = |side: &Option<DiskSide>, which: &str| {
        let notes = side.iter().flat_map(|side| side.files.notes());
        notes.map(|note| format!("{which}: {note}")).collect::<Vec<_>>()
    };
    Ok(DiskReport {
        disk: role.to_string(),
        identical: false,
        compared: [&old, &new].into_iter().flatten().all(|side| side.files.is_readable()),
        added: difference.added,
        changed: difference.changed,
        removed: difference.removed,
        changes: difference.changes,
        unreadable: difference.unreadable,
        notes: [notes(&old, "before"), notes(&new, "after")].concat(),
    })
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    // Writing into a string does not fail.
    for disk in &report.disks {
        for note in &disk.notes {
            let _ = writeln!(text, "{note}");
        }
        for change in &disk.changes {
            let _ = writeln!(text, "{}", line(&disk.disk, change));
        }
        for path in &disk.unreadable {
            let _ = writeln!(text, "? {}{path}", disk.disk);
        }
        let what = if disk.identical {
            "the same to the byte".to_owned()
        } else if !disk.compared && disk.changes.is_empty() {
            "it differs; its files cannot be compared".to_owned()
        } else {
            format!("{} added, {} changed, {} removed", disk.added, disk.changed, disk.removed)
        };
        let _ = writeln!(text, "{}: {what}", disk.disk);
    }
    let name = |side: &Side| format!("{} version {} ({})", side.desktop, side.sequence, short(&side.version));
    format!("{text}from {} to {}\n", name(&report.before), name(&report.after))
}

fn line(disk: &str, change: &Change) -> String {
    let size = |bytes: Option<u64>| ByteSize(bytes.unwrap_or(0));
    let path = format!("{disk}{}", change.path);
    let path = if change.kind == "directory" { format!("{path}/") } else { path };
    match change.fate {
        Fate::Added => format!("+ {path}  {}", size(change.after_bytes)),
        Fate::Removed => format!("- {path}  {}", size(change.before_bytes)),
        Fate::Changed if change.before_bytes == change.after_bytes => {
            format!("~ {path}  {}", change.what.join(", "))
        }
        Fate::Changed => format!(
            "~ {path}  {} -> {} ({})",
            size(change.before_bytes),
            size(change.after_bytes),
            change.what.join(", ")
        ),
    }
}
