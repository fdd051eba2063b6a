//! `satchel profile`

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::bail;
use chunk_format::{ChunkSize, ManifestId, Name, ProfileEntry, Subject};
use clap::{Args, Subcommand};
use satchel_client::desktop::Version;
use satchel_client::disk::Base;
use satchel_client::engine::Display;
use satchel_client::fetch::Fetcher;
use satchel_client::past::{Past, PastError, PastVersion};
use satchel_client::profile::{
    Attacher, BothImages, LinkShape, Mapper, ProfileError, Reading, Recorder, SignedProfile, Step,
    StreamProgress, disks_of, encode_streams, fetch_profile,
};
use satchel_client::remote::Remote;
use satchel_client::source::HttpSource;
use satchel_client::state::StateDir;
use satchel_client::versions::{ImageRef, check_publisher, fetch_golden, fetch_version, find_version};
use serde::Serialize;

use super::Context;
use super::output::short;
use super::progress::{ProgressLine, per_second, time_left, while_fetching, while_working};
use super::quantity::ByteSize;
use super::run::DisplayArg;

#[derive(Debug, Subcommand)]
pub(super) enum ProfileCommand {
    /// Boot a published version twice on this machine and attach what the starts read to it
    Record(RecordArgs),
    /// Show a version's profile, and what a start takes over a given link
    Show(ShowProfileArgs),
}

#[derive(Debug, Args)]
pub(super) struct RecordArgs {
    /// The version: NAME, NAME:CHANNEL or NAME@VERSION
    #[arg(value_name = "NAME[:CHANNEL|@VERSION]")]
    image: ImageRef,
    /// The machine's memory
    #[arg(long, value_name = "SIZE", default_value = "2G")]
    memory: ByteSize,
    /// The machine's processors
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// The machine's screen: a desktop needs one to start
    #[arg(long, value_enum, default_value_t = DisplayArg::Vnc)]
    display: DisplayArg,
    /// A start is over when its serial console says this
    #[arg(long, value_name = "TEXT", conflicts_with = "quiet")]
    until: Option<String>,
    /// A start is over when nothing new was read for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    quiet: u64,
    /// The longest a start may take, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    limit: u64,
}

#[derive(Debug, Args)]
pub(super) struct ShowProfileArgs {
    /// The version: NAME, NAME:CHANNEL or NAME@VERSION
    #[arg(value_name = "NAME[:CHANNEL|@VERSION]")]
    image: ImageRef,
    /// A link to estimate a start for, as in 25mbit/40ms
    #[arg(long, value_name = "RATE/ROUND-TRIP", default_value = "25mbit/40ms")]
    link: LinkShape,
}

/// A profile that was attached to a version.
#[derive(Debug, Serialize)]
pub(crate) struct Attachment {
    version: String,
    chunks: usize,
    chunk_bytes: u64,
    streams: usize,
    streams_bytes: u64,
}

impl Attachment {
    pub(crate) fn text(&self) -> String {
        format!(
            "a start of version {} reads {} in {} chunks; they are one download of {}",
            short(&self.version),
            ByteSize(self.chunk_bytes),
            self.chunks,
            ByteSize(self.streams_bytes)
        )
    }
}

pub(crate) async fn record(context: &Context, args: RecordArgs) -> anyhow::Result<()> {
    let display = match args.display {
        DisplayArg::None => Display::None,
        DisplayArg::Window => Display::Window,
        DisplayArg::Vnc => Display::Vnc,
        DisplayArg::Web => bail!("QEMU shows no screen in a browser; use --display vnc or --display none"),
    };
    let state = context.state()?;
    let (login, remote) = state.remote()?;
    let key = Arc::new(state.publisher_key()?);
    let golden = fetch_golden(&remote, &state, &args.image).await?;
    if golden.signature.key != key.public() {
        bail!(
            "image {} is signed by {}, the publisher key of this machine is {}; record the profile on the machine \
             that publishes the image",
            args.image.image,
            golden.signature.key,
            key.public()
        );
    }
    let machine_key = state.machine_key()?;
    let directory = work_directory(&state, &golden);
    let recorder = Recorder {
        source: Arc::new(HttpSource::new(remote.clone())),
        login: &login,
        key: &machine_key,
        directory: &directory,
        memory_mib: args.memory.0 >> 20,
        cpus: args.cpus,
        display,
        until: args.until,
        quiet: Duration::from_secs(args.quiet),
        limit: Duration::from_secs(args.limit),
    };
    let screen = Screen::new(context);
    let recorded = recorder.record(&golden, &|step| screen.show(step)).await?;
    screen.clear();
    let attachment = attach(
        Attacher { remote: &remote, image: &args.image.image, key: &key },
        golden.id,
        &recorded.fetcher,
        &recorded.disks,
        recorded.entries,
    )
    .await?;
    remove(&recorded.fetcher, &directory);
    context.printer.result(&attachment, Attachment::text)?;
    Ok(())
}

/// Where a version is read: kept from one try to the next, removed when the work is done.
fn work_directory(state: &StateDir, version: &Version) -> std::path::PathBuf {
    state.path().join(format!("profile-{}", short(&version.id)))
}

fn remove(fetcher: &Fetcher, directory: &std::path::Path) {
    fetcher.stop();
    if let Err(error) = std::fs::remove_dir_all(directory) {
        tracing::warn!(path = %directory.display(), %error, "the directory of the recording was not removed");
    }
}

/// Compresses what a start touches, and attaches it to the version.
async fn attach(
    attacher: Attacher<'_>,
    version: ManifestId,
    fetcher: &Fetcher,
    disks: &[Arc<Base>],
    entries: Vec<ProfileEntry>,
) -> anyhow::Result<Attachment> {
    if entries.is_empty() {
        bail!("the starts have too little in common; was the machine up?");
    }
    let progress = Arc::new(StreamProgress::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let encoding = encode_streams(fetcher, disks, &entries, threads, &progress);
    let streams = while_working(|elapsed| describe(&progress, elapsed), encoding).await?;
    let chunk_bytes = progress.total_bytes.load(Ordering::Relaxed);
    let attached = attacher.attach(version, entries, streams).await?;
    Ok(Attachment {
        version: version.to_string(),
        chunks: attached.chunks,
        chunk_bytes,
        streams: attached.streams,
        streams_bytes: attached.stream_bytes,
    })
}

#[derive(Debug, Serialize)]
struct Shown {
    version: String,
    chunks: usize,
    chunk_bytes: u64,
    streams: usize,
    streams_bytes: u64,
    seconds: f64,
}

pub(crate) async fn show(context: &Context, args: ShowProfileArgs) -> anyhow::Result<()> {
    let state = context.state()?;
    let (_, remote) = state.remote()?;
    let golden = fetch_golden(&remote, &state, &args.image).await?;
    let profile = profile_of(&remote, &state, &golden).await?.profile;
    let chunk_bytes: u64 = profile
        .entries
        .iter()
        .filter_map(|entry| golden.manifest.disks.get(usize::from(entry.disk)))
        .map(|disk| disk.chunk_size.bytes_u64())
        .sum();
    let streams_bytes = profile.streams.iter().map(|stream| u64::from(stream.len_bytes)).sum();
    let shown = Shown {
        version: golden.id.to_string(),
        chunks: profile.entries.len(),
        chunk_bytes,
        streams: profile.streams.len(),
        streams_bytes,
        seconds: args.link.seconds_for(streams_bytes),
    };
    context.printer.result(&shown, |shown| {
        format!(
            "version {} of {}: a start reads {} in {} chunks\none download of {} in {} objects: {:.1} s at {:.0} \
             Mbit/s and {} ms",
            golden.manifest.sequence,
            args.image.image,
            ByteSize(shown.chunk_bytes),
            shown.chunks,
            ByteSize(shown.streams_bytes),
            shown.streams,
            shown.seconds,
            args.link.rate_bits_per_s / 1e6,
            args.link.round_trip.as_millis()
        )
    })?;
    Ok(())
}

/// The profile of a golden version; an error that says what to do when it has none.
async fn profile_of(remote: &Remote, state: &StateDir, version: &Version) -> anyhow::Result<SignedProfile> {
    let directory = work_directory(state, version);
    let reading = Reading::open(&directory, version, Arc::new(HttpSource::new(remote.clone())))?;
    let profile = fetch_profile(&reading.fetcher, version).await;
    remove(&reading.fetcher, &directory);
    let Subject::Image { image } = &version.manifest.subject else { bail!("only images have profiles") };
    profile.map_err(|error| {
        let sequence = version.manifest.sequence;
        anyhow::Error::new(error).context(format!(
            "version {sequence} of {image} has no profile; record one: satchel profile record {image}@{sequence}"
        ))
    })
}

/// How many versions `newest` looks back for one with a profile.
const LOOKED_BACK: u32 = 4;

/// The version of an image whose profile is to be carried over. The newest that has one may not be the newest there is: an
/// earlier command may have been interrupted between a version and its profile.
pub(crate) async fn find_profiled(
    remote: &Remote,
    state: &StateDir,
    image: &Name,
    wanted: &str,
) -> anyhow::Result<Version> {
    let info = remote.image(image).await?;
    check_publisher(&info, state.pin(image)?.as_ref())?;
    let subject = Subject::Image { image: image.clone() };
    let candidates: Vec<ManifestId> = match wanted {
        "newest" => {
            let listed = remote.versions(&subject, LOOKED_BACK, None).await?;
            listed.into_iter().map(|listed| listed.id).collect()
        }
        wanted => vec![find_version(remote, &subject, wanted).await?.id],
    };
    let mut missing = None;
    for id in candidates {
        let version = fetch_version(remote, &subject, id, &info.publisher).await?;
        // Said before the work, not after it.
        match profile_of(remote, state, &version).await {
            Ok(_) => return Ok(version),
            Err(error) if matches!(error.downcast_ref(), Some(ProfileError::Fetch(_))) => {
                missing = missing.or(Some(error));
            }
            Err(error) => return Err(error),
        }
    }
    Err(missing.unwrap_or_else(|| anyhow::anyhow!("image {image} has no versions")))
}

/// Carries the profile of one version over to another. `start` is what it comes to, where that is known already.
pub(crate) async fn carry_over(
    remote: &Remote,
    state: &StateDir,
    image: &Name,
    previous: &Version,
    version: ManifestId,
    start: Option<Vec<ProfileEntry>>,
) -> anyhow::Result<Attachment> {
    let key = Arc::new(state.publisher_key()?);
    let subject = Subject::Image { image: image.clone() };
    let version = fetch_version(remote, &subject, version, &key.public()).await?;
    let entries = match start {
        Some(entries) => entries,
        None => find_start(remote, state, image, previous, &version).await?,
    };
    let directory = work_directory(state, &version);
    let reading = Reading::open(&directory, &version, Arc::new(HttpSource::new(remote.clone())))?;
    let attacher = Attacher { remote, image, key: &key };
    let attachment = attach(attacher, version.id, &reading.fetcher, &disks_of(&version), entries).await?;
    remove(&reading.fetcher, &directory);
    Ok(attachment)
}

/// What a start of a version reads, by the profile of an earlier one.
async fn find_start(
    remote: &Remote,
    state: &StateDir,
    image: &Name,
    previous: &Version,
    version: &Version,
) -> anyhow::Result<Vec<ProfileEntry>> {
    let past = open_past(remote, state, image)?;
    let profile = fetch_profile(past.fetcher(), previous).await?.profile;
    // Disks with chunks of another size are carried over without the names of their files.
    let images = |version: &Version| past.disks(&PastVersion::of_image(version.clone())).unwrap_or_default();
    let both = images(previous).into_iter().zip(images(version));
    let images = both.map(|(old, new)| BothImages { old, new }).collect();
    let (old, new) = (disks_of(previous), disks_of(version));
    let mapper = Mapper { fetcher: past.fetcher(), old: &old, new: &new, images };
    let fetched = || past.fetcher().stats().fetched_bytes;
    let entries = while_fetching("looking for what a start reads", fetched, mapper.map(&profile)).await;
    past.close();
    Ok(entries?)
}

/// Reads the versions of an image, to tell what is not the same in them.
pub(crate) fn open_past(remote: &Remote, state: &StateDir, image: &Name) -> Result<Past, PastError> {
    Past::open(state, remote.clone(), &format!("image.{image}"), ChunkSize::DEFAULT)
}

/// Says how a recording goes.
struct Screen<'a> {
    context: &'a Context,
    line: Mutex<ProgressLine>,
}

impl<'a> Screen<'a> {
    fn new(context: &'a Context) -> Self {
        Self { context, line: Mutex::new(ProgressLine::new()) }
    }

    fn line(&self) -> MutexGuard<'_, ProgressLine> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, step: Step) {
        match step {
            Step::Starting { start, starts, accelerated } => {
                let slow = if accelerated { "" } else { " (QEMU imitates a processor, which is slow)" };
                self.context.printer.message(&format!("start {start} of {starts}{slow}"));
            }
            Step::Reading { chunks } => self.line().show(format!("{chunks} chunks read")),
            Step::Up { chunks, took } => {
                self.context
                    .printer
                    .message(&format!("up after {:.0} s, {chunks} chunks read", took.as_secs_f64()));
            }
        }
    }

    fn clear(&self) {
        self.line().finish();
    }
}

fn describe(progress: &StreamProgress, elapsed: Duration) -> String {
    let (total, done) =
        (progress.total_bytes.load(Ordering::Relaxed), progress.done_bytes.load(Ordering::Relaxed));
    let left = time_left(total.saturating_sub(done), per_second(done, elapsed));
    format!("compressing the boot stream: {} of {}, {left}", ByteSize(done), ByteSize(total))
}
