//! `satchel-server completions` and `satchel-server man`: what is installed beside the program

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use clap_complete::Shell;
use clap_mangen::roff::{Roff, bold, roman};

use super::output;

/// Print what lets a shell complete commands and options
#[derive(Args)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self, mut command: clap::Command) -> anyhow::Result<ExitCode> {
        // To memory first: it panics where a reader of stdout has gone.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "satchel-server", &mut script);
        output::data(String::from_utf8_lossy(&script).trim_end())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What is taken from the environment, and what for.
const ENVIRONMENT: &[(&str, &str)] = &[
    (
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN",
        "What gives access to the bucket, where the objects are in one.",
    ),
    (
        "AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ROLE_ARN, AWS_ROLE_SESSION_NAME",
        "The same, by a role that a token stands for.",
    ),
    (
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI, AWS_CONTAINER_CREDENTIALS_FULL_URI, AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "The same, by the role of a container.",
    ),
    (
        "AWS_METADATA_ENDPOINT",
        "Where the role of an instance is asked for, which gives access where nothing else does.",
    ),
    (
        "AWS_REGION, AWS_DEFAULT_REGION",
        "The bucket's region, for `satchel-server init` without --bucket-region.",
    ),
    ("HTTPS_PROXY, ALL_PROXY", "The proxy through which a bucket is asked."),
    (
        "HTTP_PROXY, http_proxy, all_proxy",
        "A proxy for what is not encrypted: a bucket that would be asked so through one is refused.",
    ),
    ("NO_PROXY, no_proxy", "The hosts that are asked without it, with commas between."),
];

/// Write the manual pages, one a command
#[derive(Args)]
pub(crate) struct Man {
    /// Where to: a directory, which is made if it is not there
    directory: PathBuf,
}

impl Man {
    pub(crate) fn run(self, command: clap::Command) -> anyhow::Result<ExitCode> {
        let main = self.directory.join(format!("{}.1", command.get_name()));
        std::fs::create_dir_all(&self.directory)
            .and_then(|()| clap_mangen::generate_to(command, &self.directory))
            .and_then(|()| OpenOptions::new().append(true).open(main)?.write_all(environment().as_bytes()))
            .with_context(|| format!("cannot write manual pages to {}", self.directory.display()))?;
        Ok(ExitCode::SUCCESS)
    }
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
