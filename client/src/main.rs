//! `satchel`: carries a desktop from machine to machine.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
