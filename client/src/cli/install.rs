//! `satchel completions` and `satchel man`: what is installed beside the program

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use clap_complete::Shell;

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Where to: a directory, which is made if it is not there
    directory: PathBuf,
}

pub(crate) fn completions(mut command: clap::Command, args: &CompletionsArgs) -> anyhow::Result<()> {
    // To memory first: it panics where a reader of stdout has gone.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "satchel", &mut script);
    let mut stdout = io::stdout().lock();
    stdout.write_all(&script).and_then(|()| stdout.flush()).context("cannot print the completions")
}

pub(crate) fn man(command: clap::Command, args: &ManArgs) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.directory)
        .and_then(|()| clap_mangen::generate_to(command, &args.directory))
        .with_context(|| format!("cannot write manual pages to {}", args.directory.display()))
}
