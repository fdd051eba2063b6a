//! `satchel-server`: makes, serves and checks an image server's directory.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    match cli::run(arguments) {
        Ok(code) => code,
        Err(error) => {
            cli::output::message(&format!("error: {}", image_server::chain(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}
