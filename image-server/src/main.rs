//! `satchel-server`: makes, serves and checks an image server's directory.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    match cli::run(arguments) {
        Ok(code) => code,
        Err(error) => match error.downcast::<clap::Error>() {
            // Options that do not go together: told as those are that the parser finds.
            Ok(usage) => usage.exit(),
            Err(error) => {
                cli::output::message(&format!("error: {}", image_server::chain(error.as_ref())));
                ExitCode::FAILURE
            }
        },
    }
}
