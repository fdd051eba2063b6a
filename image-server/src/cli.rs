//! The command line: one module per command.

mod fingerprint;
mod gc;
mod init;
mod install;
mod mirror;
pub(crate) mod output;
mod policy;
mod progress;
mod remove;
mod repair;
mod retention;
mod serve;
mod token;
mod verify;

use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use tokio::runtime::Runtime;

/// Threads for disk access and decoding. Each serves one file operation at a time; more would only wait for the disk.
const MAX_BLOCKING_THREADS: usize = 64;

/// The image server of Satchel: keeps golden images and people's desktops, and hands them out.
#[derive(Parser)]
#[command(name = "satchel-server", version, max_term_width = 100)]
pub(crate) struct Arguments {
    /// Print results as one JSON value
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Init(init::Init),
    Serve(serve::Serve),
    Fingerprint(fingerprint::Fingerprint),
    Token(token::Token),
    Mirror(mirror::Mirror),
    Retention(retention::Retention),
    Gc(gc::Gc),
    Verify(verify::Verify),
    Repair(repair::Repair),
    Policy(policy::Policy),
    Remove(remove::Remove),
    Completions(install::Completions),
    Man(install::Man),
}

/// Runs one command; what it prints is its own affair.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let runtime = runtime().context("cannot start threads")?;
    let Arguments { json, command } = arguments;
    runtime.block_on(async {
        match command {
            Command::Init(command) => command.run(json).await,
            Command::Serve(command) => command.run(json).await,
            Command::Fingerprint(command) => command.run(json),
            Command::Token(command) => command.run(json).await,
            Command::Mirror(command) => command.run(json).await,
            Command::Retention(command) => command.run(json).await,
            Command::Gc(command) => command.run(json).await,
            Command::Verify(command) => command.run(json).await,
            Command::Repair(command) => command.run(json).await,
            Command::Policy(command) => command.run(json).await,
            Command::Remove(command) => command.run(json).await,
            Command::Completions(command) => command.run(Arguments::command()),
            Command::Man(command) => command.run(Arguments::command()),
        }
    })
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_name("satchel-server")
        .build()
}
