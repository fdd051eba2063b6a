//! The command line: one module a command. stdout is data, stderr is messages and progress; exit 0 done, 1 failed,
//! 2 bad usage.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use chunk_format::{DiskRole, Name, PublicKey, SystemMode};
use clap::{Args, Parser, Subcommand, ValueEnum};
use satchel_client::hint;
use satchel_client::profile::LinkShape;
use satchel_client::remote::Fingerprint;
use satchel_client::state::StateDir;
use satchel_client::versions::{DesktopRef, ImageRef};

mod browse;
mod cache;
mod channel;
mod claim;
mod copy;
mod create;
mod diff;
mod export;
mod forks;
mod history;
mod images;
mod login;
mod mount;
mod output;
mod pin;
mod profile;
mod progress;
mod publish;
mod quantity;
mod rebase;
mod retention;
mod rollback;
mod run;
mod source;
mod status;
mod sync;
mod watch;

use output::Printer;
use quantity::{ByteSize, Every};

/// Carries your desktop from machine to machine.
///
/// An image server publishes golden disk images; a desktop is a copy-on-write machine on one of them that streams what
/// it touches, works without a network, and syncs back.
#[derive(Debug, Parser)]
#[command(name = "satchel", version, max_term_width = 100)]
struct Cli {
    /// Where this machine keeps what it knows
    #[arg(long, global = true, value_name = "DIR", env = "SATCHEL_STATE")]
    state: Option<PathBuf>,
    /// Print results as one JSON value
    #[arg(long, global = true)]
    json: bool,
    /// Say more about what happens (twice: much more)
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Log in to an image server
    Login(LoginArgs),
    /// Publish a disk image as the next version of an image
    Publish(PublishArgs),
    /// Write a published version out as files: for a stick, a static host, or a place without a network
    Export(ExportArgs),
    /// List the server's images
    Images,
    /// List your desktops
    Desktops,
    /// Make a desktop from an image
    Create(CreateArgs),
    /// List the forks of your desktops: work that could not be a desktop's next version
    Forks(ForksArgs),
    /// Make a fork's disks the desktop's, and keep the desktop's as the fork
    Adopt(AdoptArgs),
    /// Mount a desktop's disks, in the foreground until it is unmounted or interrupted
    Mount(MountArgs),
    /// Run a desktop's machine; its changes are synced when it is switched off
    Run(RunArgs),
    /// Send a desktop's changes to the server
    Sync(SyncArgs),
    /// Make a version of a desktop as it is, to come back to; also while its machine runs
    Checkpoint(CheckpointArgs),
    /// Fetch all of a desktop and keep it, so that it works without a network
    Pin(PinArgs),
    /// Show or change where a desktop's chunks come from beside its server
    Source(SourceArgs),
    /// Serve what this machine has of a desktop to your other machines
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    /// Show what a desktop is doing
    Status(StatusArgs),
    /// List the versions of a desktop or image
    History(HistoryArgs),
    /// Put a desktop's disks back as they were at an earlier version, as a new version
    Rollback(RollbackArgs),
    /// Show the files of any version of a desktop on a directory, until it is unmounted or interrupted
    Browse(BrowseArgs),
    /// Tell which files differ between two versions
    Diff(DiffArgs),
    /// Copy a file or directory out of any version into a desktop on this machine
    Copy(CopyArgs),
    /// Show or change how many versions of a desktop the server keeps
    Retention(RetentionArgs),
    /// Show where an image's channels point, or move one
    Channel(ChannelArgs),
    /// Move a desktop to another golden version of its image, or back; its home stays as it is
    Rebase(RebaseArgs),
    /// Record or show what a start of an image touches, so that clients fetch it ahead
    #[command(subcommand)]
    Profile(ProfileCommand),
}

#[derive(Debug, Subcommand)]
enum ProfileCommand {
    /// Boot a published version twice on this machine and attach what both starts read to it
    Record(RecordArgs),
    /// Show a version's profile, and what a start takes over a given link
    Show(ShowProfileArgs),
}

#[derive(Debug, Args)]
struct RecordArgs {
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
struct ShowProfileArgs {
    /// The version: NAME, NAME:CHANNEL or NAME@VERSION
    #[arg(value_name = "NAME[:CHANNEL|@VERSION]")]
    image: ImageRef,
    /// A link to estimate a start for, as in 25mbit/40ms
    #[arg(long, value_name = "RATE/ROUND-TRIP", default_value = "25mbit/40ms")]
    link: LinkShape,
}

#[derive(Debug, Args)]
struct LoginArgs {
    /// The server: HOST, HOST:PORT or https://HOST:PORT
    url: String,
    /// The token its operator gave you (`-` reads it from standard input)
    #[arg(long, env = "SATCHEL_TOKEN", hide_env_values = true)]
    token: String,
    /// The server's certificate, as `satchel-server init` printed it
    #[arg(long, value_name = "SHA256:...")]
    fingerprint: Option<Fingerprint>,
}

#[derive(Debug, Args)]
struct PublishArgs {
    /// The disk image: raw or qcow2
    file: PathBuf,
    /// The image it is a version of
    #[arg(long, value_name = "NAME")]
    image: Name,
    /// The channel that moves to the new version
    #[arg(long, value_name = "CHANNEL", default_value = "stable")]
    channel: Name,
    /// What to say of this version
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
    /// Publish a file that does not look like a disk
    #[arg(long)]
    force: bool,
    /// Publish the free blocks of ext4 file systems as they are, and not as zeros
    #[arg(long)]
    keep_free: bool,
    /// Carry the profile of an earlier version over to this one: its number or id, or `newest`
    #[arg(long, value_name = "VERSION")]
    profile_from: Option<String>,
    /// Do not tell what changed against the version before
    #[arg(long)]
    no_summary: bool,
    /// Refuse a version of which a client with the one before would have to fetch more
    #[arg(long, value_name = "SIZE")]
    max_update: Option<ByteSize>,
    /// The share of desktops that the channel leads to this version, per cent; the others stay on the one before
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=100))]
    percent: Option<u8>,
    /// What desktops made from this image do with their system disk (without it: as the version before)
    #[arg(long, value_name = "MODE", value_enum)]
    mode: Option<ModeArg>,
}

/// How a desktop takes up new golden versions.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeArg {
    /// A fresh system disk at every start; what is written to it is dropped
    Renew,
    /// Changes to the system disk are kept until the channel moves on
    Keep,
    /// The system disk is the desktop's own, and moves only with `satchel rebase`
    Own,
}

impl From<ModeArg> for SystemMode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Renew => Self::Renew,
            ModeArg::Keep => Self::Keep,
            ModeArg::Own => Self::Own,
        }
    }
}

#[derive(Debug, Args)]
struct ChannelArgs {
    /// The image
    image: Name,
    /// The channel
    channel: Option<Name>,
    /// Where it is to point: a version's number, or its id
    #[arg(requires = "channel", conflicts_with = "rollback")]
    version: Option<String>,
    /// The share of desktops that follow, per cent; the others stay on the version before
    #[arg(long, value_name = "N", requires = "channel", value_parser = clap::value_parser!(u8).range(0..=100))]
    percent: Option<u8>,
    /// No further desktop follows for the time being
    #[arg(long, requires = "channel", conflicts_with = "resume")]
    pause: bool,
    /// Desktops follow again
    #[arg(long, requires = "channel")]
    resume: bool,
    /// Take the last move back, at once and for all desktops
    #[arg(long, requires = "channel", conflicts_with_all = ["percent", "pause", "resume"])]
    rollback: bool,
}

#[derive(Debug, Args)]
struct RebaseArgs {
    /// The desktop
    desktop: Name,
    /// The golden version: its number, or its id (without it: what the channel names)
    #[arg(long, value_name = "VERSION", conflicts_with = "undo")]
    to: Option<String>,
    /// Go back to the golden version and the system disk before the last renewal
    #[arg(long)]
    undo: bool,
    /// Stay on this golden version, and change what becomes of the system disk when the channel moves on
    #[arg(long, value_name = "MODE", value_enum, conflicts_with_all = ["to", "undo"])]
    mode: Option<ModeArg>,
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// What to call it
    desktop: Name,
    /// The image it starts from: NAME, NAME:CHANNEL or NAME@VERSION
    #[arg(long, value_name = "NAME[:CHANNEL|@VERSION]")]
    image: ImageRef,
    /// The size of its home disk (0: none)
    #[arg(long, value_name = "SIZE", default_value = "32G")]
    home: ByteSize,
    /// The key that must have signed the image
    #[arg(long, value_name = "ed25519:...")]
    publisher: Option<PublicKey>,
    /// What becomes of its system disk when the image's channel moves on (without it: as the image says, or own)
    #[arg(long, value_name = "MODE", value_enum)]
    mode: Option<ModeArg>,
}

#[derive(Debug, Args)]
struct OpenArgs {
    /// The most disk space to use for what was fetched
    #[arg(long, value_name = "SIZE", default_value = "20G")]
    cache_size: ByteSize,
    /// What to do when the server answers but has not the right bytes
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = OnMissingArg::Wait)]
    on_missing: OnMissingArg,
    /// Contact nobody: start from what is on this machine, and only if a start needs no more
    #[arg(long)]
    offline: bool,
    /// Take the desktop from another machine that has it in use: what that one has not synced goes to a fork
    #[arg(long, conflicts_with_all = ["ask", "read_only", "offline"])]
    take: bool,
    /// Ask the machine that has the desktop in use to sync and end, and wait for that
    #[arg(long, conflicts_with_all = ["read_only", "offline"])]
    ask: bool,
    /// Only look at it: nobody is kept from using it, and what is written is thrown away at the end
    #[arg(long)]
    read_only: bool,
    /// Serve numbers for Prometheus on this loopback address (port 0: any)
    #[arg(long, value_name = "127.0.0.1:PORT")]
    metrics: Option<SocketAddr>,
    /// Sync by itself so often while it is in use, as 10m, 90s or 2h, or never; without it as the server's operator says, or else every 10m
    #[arg(long, value_name = "TIME")]
    sync_every: Option<Every>,
    /// The most such a sync sends in a second; without it, half of what the link carries
    #[arg(long, value_name = "SIZE", value_parser = quantity::rate)]
    sync_rate: Option<ByteSize>,
    /// Seconds between two looks whether the channel names another version
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    ask_every: u64,
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// The desktop
    desktop: Name,
    /// Show it again and again until interrupted
    #[arg(long, short)]
    watch: bool,
    /// Seconds from one look to the next
    #[arg(long, value_name = "SECONDS", default_value_t = 1, requires = "watch", value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
}

#[derive(Debug, Args)]
struct ExportArgs {
    /// The version: NAME, NAME:CHANNEL or NAME@VERSION
    #[arg(value_name = "NAME[:CHANNEL|@VERSION]")]
    image: ImageRef,
    /// The directory; several versions may share one
    dir: PathBuf,
}

#[derive(Debug, Args)]
struct SourceArgs {
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

#[derive(Debug, Args)]
struct ForksArgs {
    /// The desktop; without it, all
    desktop: Option<Name>,
}

#[derive(Debug, Args)]
struct AdoptArgs {
    /// The fork, as `satchel forks` lists it
    fork: Name,
}

#[derive(Debug, Args)]
struct PinArgs {
    /// The desktop
    desktop: Name,
    /// The most to take of the link, bytes a second (without it: all that nobody else needs)
    #[arg(long, value_name = "SIZE")]
    limit_rate: Option<ByteSize>,
    /// No longer keep all of it
    #[arg(long, conflicts_with_all = ["pause", "resume", "limit_rate"])]
    unpin: bool,
    /// Stop fetching in the background while the desktop is mounted
    #[arg(long, conflicts_with = "resume")]
    pause: bool,
    /// Go on with fetching in the background
    #[arg(long)]
    resume: bool,
    /// The most disk space to use for what was fetched
    #[arg(long, value_name = "SIZE", default_value = "20G")]
    cache_size: ByteSize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnMissingArg {
    /// Wait until it has: the machine pauses
    Wait,
    /// Fail the read
    Fail,
}

#[derive(Debug, Args)]
struct MountArgs {
    /// The desktop
    desktop: Name,
    /// An empty directory; DIR/system.raw and DIR/home.raw appear in it
    dir: PathBuf,
    #[command(flatten)]
    open: OpenArgs,
    /// Let other users of this machine use the disks
    #[arg(long)]
    allow_other: bool,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The desktop
    desktop: Name,
    /// What runs the machine
    #[arg(long, value_enum, default_value_t = EngineArg::Auto)]
    engine: EngineArg,
    /// The machine's memory
    #[arg(long, value_name = "SIZE", default_value = "2G")]
    memory: ByteSize,
    /// The machine's processors
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// The machine's screen
    #[arg(long, value_enum, default_value_t = DisplayArg::None)]
    display: DisplayArg,
    /// Leave the changes on this machine when it is switched off
    #[arg(long)]
    no_sync: bool,
    /// A start is good when the machine has run so many minutes until it is shut down; three in a row that are not, on a version
    /// that never was, and the desktop goes back to the one before
    #[arg(long, value_name = "MINUTES", default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=1440))]
    good_after: u64,
    #[command(flatten)]
    open: OpenArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EngineArg {
    /// The best there is on this machine
    Auto,
    /// Satchel's own machine
    Kvm,
    /// QEMU, with KVM where it works
    Qemu,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DisplayArg {
    /// A window
    Window,
    /// A VNC server on 127.0.0.1
    Vnc,
    /// A page in the browser
    Web,
    /// None: the serial console is in the terminal
    None,
}

#[derive(Debug, Args)]
struct SyncArgs {
    /// The desktop
    desktop: Name,
    /// Wait for the server as long as it cannot be reached, and go on then
    #[arg(long)]
    wait: bool,
    /// What to say of this version
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
}

#[derive(Debug, Args)]
struct CheckpointArgs {
    /// The desktop
    desktop: Name,
    /// What to say of this version; there is one even if nothing changed
    #[arg(long, short, value_name = "TEXT")]
    message: String,
}

#[derive(Debug, Args)]
struct BrowseArgs {
    /// The version: DESKTOP is its newest, without what was not synced yet
    #[arg(value_name = "DESKTOP[@VERSION]")]
    desktop: DesktopRef,
    /// An empty directory; the files appear in DIR/system and DIR/home
    dir: PathBuf,
}

#[derive(Debug, Args)]
struct DiffArgs {
    /// The first version
    #[arg(value_name = "DESKTOP[@VERSION]")]
    before: DesktopRef,
    /// The second version
    #[arg(value_name = "DESKTOP[@VERSION]")]
    after: DesktopRef,
    /// Look at this disk only
    #[arg(long, value_enum)]
    disk: Option<DiskArg>,
}

#[derive(Debug, Args)]
struct CopyArgs {
    /// The file or directory, and the version it is copied out of
    #[arg(value_name = "DESKTOP[@VERSION]:PATH")]
    from: FilePlace<DesktopRef>,
    /// Where it goes: into a directory that is there, or under a new name
    #[arg(value_name = "DESKTOP:PATH")]
    to: FilePlace<Name>,
    /// The disk that both paths are on
    #[arg(long, value_enum, default_value_t = DiskArg::Home)]
    disk: DiskArg,
    /// Replace files that are there
    #[arg(long)]
    force: bool,
    /// The most disk space to use for what was fetched
    #[arg(long, value_name = "SIZE", default_value = "20G")]
    cache_size: ByteSize,
}

/// A path on a disk of something: `DESKTOP:PATH`.
#[derive(Clone, Debug)]
struct FilePlace<T> {
    of: T,
    path: String,
}

impl<T: FromStr<Err: std::fmt::Display>> FromStr for FilePlace<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').filter(|(_, path)| !path.is_empty());
        let (of, path) = parts.ok_or_else(|| format!("`{text}` names no file: write DESKTOP:/PATH"))?;
        Ok(Self { of: of.parse().map_err(|error: T::Err| error.to_string())?, path: path.to_owned() })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DiskArg {
    /// The disk that boots
    System,
    /// The person's own disk
    Home,
}

impl DiskArg {
    fn role(self) -> DiskRole {
        match self {
            Self::System => DiskRole::System,
            Self::Home => DiskRole::Home,
        }
    }
}

#[derive(Debug, Args)]
struct HistoryArgs {
    /// The desktop
    #[arg(required_unless_present = "image", conflicts_with = "image")]
    desktop: Option<Name>,
    /// An image instead
    #[arg(long, value_name = "NAME")]
    image: Option<Name>,
    /// At most so many, the newest first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Only those before this number
    #[arg(long, value_name = "VERSION")]
    before: Option<u64>,
    /// Also those whose content the server no longer keeps
    #[arg(long)]
    pruned: bool,
}

#[derive(Debug, Args)]
struct RetentionArgs {
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

#[derive(Debug, Args)]
struct RollbackArgs {
    /// The desktop
    desktop: Name,
    /// The version: its number, its id, or the first eight digits of it (see `satchel history`)
    version: String,
    /// Put back the system disk only, with the golden version below it
    #[arg(long, conflicts_with = "home_only")]
    system_only: bool,
    /// Put back the home disk only
    #[arg(long)]
    home_only: bool,
}

/// What every command gets.
struct Context {
    state_path: PathBuf,
    printer: Printer,
    json: bool,
    verbose: u8,
}

impl Context {
    fn state(&self) -> anyhow::Result<StateDir> {
        Ok(StateDir::open(&self.state_path)?)
    }
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let printer = Printer::new(cli.json);
    start_log(cli.verbose);
    match run(cli, printer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if has_no_reader(&error) => ExitCode::SUCCESS,
        Err(error) => {
            printer.error(&hint::explain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli, printer: Printer) -> anyhow::Result<()> {
    let context =
        Context { state_path: state_path(cli.state)?, printer, json: cli.json, verbose: cli.verbose };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start")?;
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Login(args) => login::run(&context, args).await,
            Command::Publish(args) => interruptible(publish::run(&context, args)).await,
            Command::Export(args) => interruptible(export::run(&context, args)).await,
            Command::Images => images::list_images(&context).await,
            Command::Desktops => images::list_desktops(&context).await,
            Command::Create(args) => interruptible(create::run(&context, args)).await,
            Command::Forks(args) => forks::list(&context, args).await,
            Command::Adopt(args) => interruptible(forks::adopt(&context, args)).await,
            Command::Mount(args) => mount::run(&context, args).await,
            Command::Run(args) => run::run(&context, args).await,
            Command::Sync(args) => interruptible(sync::run(&context, args)).await,
            Command::Checkpoint(args) => interruptible(sync::checkpoint(&context, args)).await,
            Command::Pin(args) => interruptible(pin::run(&context, args)).await,
            Command::Source(args) => source::run(&context, &args),
            Command::Cache(cache::CacheCommand::Serve(args)) => cache::run(&context, args).await,
            Command::Status(args) if args.watch => {
                watch::run(&context, &args.desktop, Duration::from_secs(args.interval)).await
            }
            Command::Status(args) => status::run(&context, &args.desktop).await,
            Command::History(args) => history::run(&context, args).await,
            Command::Retention(args) => retention::run(&context, args).await,
            Command::Rollback(args) => interruptible(rollback::run(&context, args)).await,
            Command::Browse(args) => browse::run(&context, args).await,
            Command::Diff(args) => interruptible(diff::run(&context, args)).await,
            Command::Copy(args) => copy::run(&context, args).await,
            Command::Channel(args) => interruptible(channel::run(&context, args)).await,
            Command::Rebase(args) => interruptible(rebase::run(&context, args)).await,
            Command::Profile(ProfileCommand::Record(args)) => {
                interruptible(profile::record(&context, args)).await
            }
            Command::Profile(ProfileCommand::Show(args)) => {
                interruptible(profile::show(&context, args)).await
            }
        }
    });
    // Threads may still wait for a server or a terminal; nothing they do matters any more.
    runtime.shutdown_background();
    outcome
}

/// Ends a command at Ctrl-C. Every command leaves a state from which the same command continues.
async fn interruptible(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::select! {
        outcome = work => outcome,
        _ = tokio::signal::ctrl_c() => {
            anyhow::bail!("interrupted; the same command continues where this one stopped")
        }
    }
}

/// `--state`, `$SATCHEL_STATE`, `$XDG_STATE_HOME/satchel`, `~/.local/state/satchel`: the first there is.
fn state_path(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        return Ok(std::path::absolute(path)?);
    }
    let from =
        |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("XDG_STATE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| from("HOME").map(|home| home.join(".local/state")))
        .map(|path| path.join("satchel"))
        .context("neither HOME nor XDG_STATE_HOME is set: say where to keep state with --state DIR")
}

fn start_log(verbose: u8) {
    let default = match verbose {
        // fuser warns of every question of the kernel that it has no answer to.
        0 => "warn,fuser=error",
        1 => "warn,fuser=error,satchel_client=info",
        _ => "info,satchel_client=debug",
    };
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("SATCHEL_LOG").unwrap_or_else(|_| default.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(output::color_on_stderr())
        .without_time()
        .with_target(verbose > 1)
        .init();
}

/// Whether whoever read our output has gone, as `head` does: no failure. Only output fails with an error of the system and
/// nothing around it; a connection to another process that broke is somebody's failure, and never a success.
fn has_no_reader(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// What to call this machine in histories.
fn machine_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let clean: String = name.chars().filter(|c| !c.is_control()).take(32).collect();
    if clean.is_empty() { "unnamed".to_owned() } else { clean }
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// Threads that read, hash and compress: one more than there are processors, since some of them wait for the server.
fn worker_threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from) + 1
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn only_a_reader_that_has_gone_is_no_failure() {
        let broken = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert!(has_no_reader(&anyhow::Error::new(broken())));
        let control = satchel_client::control::ControlError::Io(broken());
        assert!(!has_no_reader(&anyhow::Error::new(control)));
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
