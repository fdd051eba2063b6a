//! `satchel-server completions` and `satchel-server man`: what is installed beside the program

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use clap_complete::Shell;

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

/// Write the manual pages, one a command
#[derive(Args)]
pub(crate) struct Man {
    /// Where to: a directory, which is made if it is not there
    directory: PathBuf,
}

impl Man {
    pub(crate) fn run(self, command: clap::Command) -> anyhow::Result<ExitCode> {
        std::fs::create_dir_all(&self.directory)
            .and_then(|()| clap_mangen::generate_to(command, &self.directory))
            .with_context(|| format!("cannot write manual pages to {}", self.directory.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
