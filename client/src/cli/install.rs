//! `satchel completions` and `satchel man`: what is installed beside the program

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use clap_complete::Shell;
use clap_mangen::roff::{Roff, bold, roman};

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

/// What is taken from the environment, and what for.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("SATCHEL_STATE", "Where this machine keeps what it knows, as --state says it."),
    ("XDG_STATE_HOME", "Where that is without it, in the directory satchel."),
    ("HOME", "Where that is without either, in .local/state/satchel."),
    ("SATCHEL_TOKEN", "The token for `satchel login`, so that it is in no list of processes."),
    (
        "SATCHEL_LOG",
        "What is logged to standard error, in place of what --verbose says: `debug`, or `warn,satchel_client=info`.",
    ),
    ("SATCHEL_VMM_LOG", "The same of `satchel-vmm`, the machine that `satchel run` starts."),
    ("NO_COLOR", "Set to anything, messages have no colours."),
    ("PATH", "Where other programs are found: passt, qemu-system-x86_64, debugfs."),
    ("HTTPS_PROXY, ALL_PROXY", "The proxy through which servers and static hosts are asked."),
    ("NO_PROXY", "The hosts that are asked without it, with commas between."),
    (
        "SSL_CERT_FILE, SSL_CERT_DIR",
        "The authorities whose certificates are trusted, in place of those that the system names.",
    ),
    ("TZ", "The time zone in which times are told."),
];

pub(crate) fn man(command: clap::Command, args: &ManArgs) -> anyhow::Result<()> {
    let main = args.directory.join(format!("{}.1", command.get_name()));
    std::fs::create_dir_all(&args.directory)
        .and_then(|()| clap_mangen::generate_to(command, &args.directory))
        .and_then(|()| OpenOptions::new().append(true).open(main)?.write_all(environment().as_bytes()))
        .with_context(|| format!("cannot write manual pages to {}", args.directory.display()))
}

/// The section that tells what is taken from the environment.
fn environment() -> String {
    let mut section = Roff::new();
    section.control("SH", ["ENVIRONMENT"]);
    for (name, what) in ENVIRONMENT {
        section.control("TP", []).text([bold(*name)]).text([roman(*what)]);
    }
    section.render()
}
