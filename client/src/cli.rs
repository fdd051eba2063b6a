//! The command line: one module a command. stdout is data, stderr is messages and progress; exit 0 done, 1 failed,
//! 2 bad usage.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use chunk_format::{MAX_MACHINE_BYTES, misleads};
use clap::{CommandFactory, Parser, Subcommand};
use satchel_client::hint;
use satchel_client::state::StateDir;

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
mod install;
mod login;
mod mount;
mod open;
mod output;
mod pin;
mod place;
mod profile;
mod progress;
mod publish;
mod quantity;
mod rebase;
mod remove;
mod retention;
mod rollback;
mod run;
mod source;
mod status;
mod sync;
mod watch;

use output::Printer;

/// Carries your desktop from machine to machine.
///
/// An image server publishes golden disk images; a desktop is a copy-on-write machine on one of them that streams what
/// it touches, works without a network, and syncs back.
#[derive(Debug, Parser)]
#[command(name = "satchel", version, max_term_width = 100)]
struct Cli {
    /// Where this machine keeps what it knows, without it in $XDG_STATE_HOME/satchel or ~/.local/state/satchel
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
    Login(login::LoginArgs),
    /// Publish a disk image as the next version of an image
    Publish(publish::PublishArgs),
    /// Write a published version out as files: for a stick, a static host, or a place without a network
    Export(export::ExportArgs),
    /// List the server's images
    Images,
    /// List your desktops
    Desktops,
    /// Make a desktop from an image
    Create(create::CreateArgs),
    /// List the forks of your desktops: work that could not be a desktop's next version
    Forks(forks::ForksArgs),
    /// Make a fork's disks the desktop's, and keep the desktop's as the fork
    Adopt(forks::AdoptArgs),
    /// Remove a desktop or a fork with all its versions, from the server and from this machine
    Remove(remove::RemoveArgs),
    /// Mount a desktop's disks, in the foreground until it is unmounted or interrupted
    Mount(mount::MountArgs),
    /// Run a desktop's machine; its changes are synced when it is switched off
    Run(run::RunArgs),
    /// Send a desktop's changes to the server
    Sync(sync::SyncArgs),
    /// Make a version of a desktop as it is, to come back to; also while its machine runs
    Checkpoint(sync::CheckpointArgs),
    /// Fetch all of a desktop and keep it, so that it works without a network
    Pin(pin::PinArgs),
    /// Show or change where a desktop's chunks come from beside its server
    Source(source::SourceArgs),
    /// Serve what this machine has of a desktop to your other machines
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    /// Show what a desktop is doing
    Status(status::StatusArgs),
    /// List the versions of a desktop or image
    History(history::HistoryArgs),
    /// Put a desktop's disks back as they were at an earlier version, as a new version
    Rollback(rollback::RollbackArgs),
    /// Show the files of any version of a desktop on a directory, until it is unmounted or interrupted
    Browse(browse::BrowseArgs),
    /// Tell which files differ between two versions
    Diff(diff::DiffArgs),
    /// Copy a file or directory out of any version into a desktop on this machine
    Copy(copy::CopyArgs),
    /// Show or change how many versions of a desktop the server keeps
    Retention(retention::RetentionArgs),
    /// Show where an image's channels point, or move one
    Channel(channel::ChannelArgs),
    /// Move a desktop to another golden version of its image, or back; its home stays as it is
    Rebase(rebase::RebaseArgs),
    /// Record or show what a start of an image touches, so that clients fetch it ahead
    #[command(subcommand)]
    Profile(profile::ProfileCommand),
    /// Print what lets a shell complete commands and options
    Completions(install::CompletionsArgs),
    /// Write the manual pages, one a command
    Man(install::ManArgs),
}

/// What every command gets.
struct Context {
    /// What `--state` says.
    given_state: Option<PathBuf>,
    printer: Printer,
    json: bool,
    verbose: u8,
}

impl Context {
    /// The state directory of whoever has logged in.
    fn state(&self) -> anyhow::Result<StateDir> {
        Ok(StateDir::open_existing(&self.state_path()?)?)
    }

    /// The state directory to log in with, which is made if there is none.
    fn new_state(&self) -> anyhow::Result<StateDir> {
        Ok(StateDir::open(&self.state_path()?)?)
    }

    /// `--state`, `$SATCHEL_STATE`, `$XDG_STATE_HOME/satchel`, `~/.local/state/satchel`: the first there is.
    fn state_path(&self) -> anyhow::Result<PathBuf> {
        if let Some(path) = &self.given_state {
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
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let printer = Printer::new(cli.json);
    start_log(cli.verbose);
    match run(cli, printer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if has_no_reader(&error) => ExitCode::SUCCESS,
        Err(error) if error.is::<output::AlreadySaid>() => ExitCode::FAILURE,
        Err(error) => {
            printer.error(&hint::explain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli, printer: Printer) -> anyhow::Result<()> {
    let context = Context { given_state: cli.state, printer, json: cli.json, verbose: cli.verbose };
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
            Command::Sync(args) => interruptible_saying(SYNC_GOES_ON, sync::run(&context, args)).await,
            Command::Checkpoint(args) => {
                interruptible_saying(SYNC_GOES_ON, sync::checkpoint(&context, args)).await
            }
            Command::Pin(args) => interruptible(pin::run(&context, args)).await,
            Command::Source(args) => interruptible(source::run(&context, &args)).await,
            Command::Cache(cache::CacheCommand::Serve(args)) => cache::run(&context, args).await,
            Command::Status(args) if args.watch => {
                watch::run(&context, &args.desktop, Duration::from_secs(args.interval)).await
            }
            Command::Status(args) => status::run(&context, &args.desktop).await,
            Command::History(args) => history::run(&context, args).await,
            Command::Retention(args) => retention::run(&context, args).await,
            Command::Remove(args) => interruptible(remove::run(&context, args)).await,
            Command::Rollback(args) => interruptible(rollback::run(&context, args)).await,
            Command::Browse(args) => browse::run(&context, args).await,
            Command::Diff(args) => interruptible(diff::run(&context, args)).await,
            Command::Copy(args) => copy::run(&context, args).await,
            Command::Channel(args) => interruptible(channel::run(&context, args)).await,
            Command::Rebase(args) => interruptible(rebase::run(&context, args)).await,
            Command::Profile(profile::ProfileCommand::Record(args)) => {
                interruptible(profile::record(&context, args)).await
            }
            Command::Profile(profile::ProfileCommand::Show(args)) => {
                interruptible(profile::show(&context, args)).await
            }
            Command::Completions(args) => install::completions(Cli::command(), &args),
            Command::Man(args) => install::man(Cli::command(), &args),
        }
    });
    // Threads may still wait for a server or a terminal; nothing they do matters any more.
    runtime.shutdown_background();
    outcome
}

/// Ends a command at Ctrl-C. Every command leaves a state from which the same command continues.
async fn interruptible(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    interruptible_saying("interrupted; the same command continues where this one stopped", work).await
}

async fn interruptible_saying(
    said: &'static str,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    tokio::select! {
        outcome = work => outcome,
        _ = tokio::signal::ctrl_c() => anyhow::bail!(said),
    }
}

/// Of what the process that has a desktop mounted does by itself.
const SYNC_GOES_ON: &str =
    "interrupted; where the desktop is mounted its sync goes on there, else the same command continues it";

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
        // Whoever read what is said may be gone, and a thread that fails to say so would panic.
        .log_internal_errors(false)
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

/// Characters of this machine's name that histories show, of four bytes at most.
const MAX_MACHINE_CHARS: usize = MAX_MACHINE_BYTES / 4;

/// What to call this machine in histories.
fn machine_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    machine_named(&name)
}

/// A name of a machine as its versions bear it: one that they could not would keep the desktop from being synced.
fn machine_named(name: &str) -> String {
    let clean: String = name.chars().filter(|char| !misleads(*char)).take(MAX_MACHINE_CHARS).collect();
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
    use super::*;

    #[test]
    fn only_a_reader_that_has_gone_is_no_failure() {
        let broken = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert!(has_no_reader(&anyhow::Error::new(broken())));
        let control = satchel_client::control::ControlError::Io(broken());
        assert!(!has_no_reader(&anyhow::Error::new(control)));
    }

    #[test]
    fn machines_have_names_that_versions_bear() {
        assert_eq!(machine_named("B\u{fc}ro-PC"), "B\u{fc}ro-PC");
        assert_eq!(machine_named("lap\u{202e}top\n"), "laptop");
        assert_eq!(machine_named("\t"), "unnamed");
        for name in ["\u{1f469}".repeat(64), "\u{fffd}".repeat(64), "x".repeat(64)] {
            assert_eq!(machine_named(&name).chars().count(), MAX_MACHINE_CHARS);
            assert!(machine_named(&name).len() <= MAX_MACHINE_BYTES);
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
