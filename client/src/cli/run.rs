//! `satchel run`

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context as _, bail};
use chunk_format::Name;
use clap::{Args, ValueEnum};
use satchel_client::control::Reply;
use satchel_client::engine::network::NetworkNews;
use satchel_client::engine::{Display, Engine, console};
use satchel_client::run::{self, Event, RunError, RunRequest};
use satchel_client::session;

use super::open::{OnMissingArg, OpenArgs};
use super::output::{AlreadySaid, Printer, is_error};
use super::progress::UploadReporter;
use super::quantity::{ByteSize, Every};
use super::{Context, claim, sync};

/// Less than this boots no kernel that a desktop has.
const LEAST_MEMORY_MIB: u64 = 128;

#[derive(Debug, Args)]
pub(super) struct RunArgs {
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
pub(super) enum EngineArg {
    /// The best there is on this machine
    Auto,
    /// Satchel's own machine
    Kvm,
    /// QEMU, with KVM where it works
    Qemu,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum DisplayArg {
    /// A window
    Window,
    /// A VNC server on 127.0.0.1
    Vnc,
    /// A page in the browser
    Web,
    /// None: the serial console is in the terminal
    None,
}

pub(crate) async fn run(context: &Context, args: RunArgs) -> anyhow::Result<()> {
    let engine = match args.engine {
        EngineArg::Auto => Engine::Auto,
        EngineArg::Kvm => Engine::Kvm,
        EngineArg::Qemu => Engine::Qemu,
    };
    let display = match args.display {
        DisplayArg::None => Display::None,
        DisplayArg::Window => Display::Window,
        DisplayArg::Vnc => Display::Vnc,
        DisplayArg::Web => bail!("QEMU shows no screen in a browser; use --display window or --display vnc"),
    };
    let memory_mib = args.memory.0 >> 20;
    if memory_mib < LEAST_MEMORY_MIB {
        bail!(
            "a machine with {} of memory starts no desktop; give at least --memory {LEAST_MEMORY_MIB}M, and 512M or more to most",
            args.memory
        );
    }
    let state = context.state()?;
    let (_, remote) = state.remote()?;
    let desktop_directory = state.desktop_path(&args.desktop);
    session::check_exists(&desktop_directory, &remote, &args.desktop, args.open.offline).await?;
    if args.open.ask {
        claim::ask(context, &state, &args.desktop).await?;
    }
    let request = RunRequest {
        desktop: args.desktop.to_string(),
        mount_command: mount_command(context, &args)?,
        desktop_directory,
        engine,
        memory_mib,
        cpus: args.cpus,
        display,
        console: if context.json { console::ConsoleOutput::Stderr } else { console::ConsoleOutput::Stdout },
        // Without a network the changes stay here, and the next sync takes them along.
        sync: !args.no_sync && !args.open.offline && !args.open.read_only,
        good_after: Duration::from_secs(args.good_after * 60),
    };
    let screen = Screen {
        printer: context.printer,
        reporter: RefCell::new(None),
        failed: RefCell::new(None),
        has_said_why: Cell::new(false),
    };
    let ran = run::run(&request, &|event| screen.show(&args, event)).await;
    let not_synced = screen.failed.into_inner();
    let not_synced =
        not_synced.map(|reason| format!("the machine is off, but its changes were not synced: {reason}"));
    match (ran, not_synced) {
        (Ok(()), None) => Ok(()),
        (Ok(()), Some(not_synced)) => bail!(not_synced),
        // What could not be mounted has said so itself.
        (Err(RunError::NotMounted { .. }), _) if screen.has_said_why.get() => Err(AlreadySaid.into()),
        (Err(error), not_synced) => {
            not_synced.inspect(|not_synced| context.printer.warning(not_synced));
            Err(error.into())
        }
    }
}

/// This program again, to mount the desktop.
fn mount_command(context: &Context, args: &RunArgs) -> anyhow::Result<Vec<OsString>> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command: Vec<OsString> = vec![program.into()];
    command.extend(["--state".into(), context.state_path()?.into()]);
    command.extend((0..context.verbose).map(|_| "--verbose".into()));
    command.push("mount".into());
    if let Some(size) = args.open.cache_size {
        command.extend(["--cache-size".into(), size.0.to_string().into()]);
    }
    let on_missing = match args.open.on_missing {
        OnMissingArg::Wait => "wait",
        OnMissingArg::Fail => "fail",
    };
    command.extend(["--on-missing".into(), on_missing.into()]);
    command.extend(["--ask-every".into(), args.open.ask_every.to_string().into()]);
    command.extend(args.open.offline.then(|| "--offline".into()));
    command.extend(args.open.take.then(|| "--take".into()));
    command.extend(args.open.read_only.then(|| "--read-only".into()));
    // Whoever does not want the changes synced at the end does not want them synced before.
    if let Some(every) = args.open.sync_every.or(args.no_sync.then_some(Every(None))) {
        command.extend(["--sync-every".into(), every.to_string().into()]);
    }
    if let Some(rate) = args.open.sync_rate {
        command.extend(["--sync-rate".into(), rate.0.to_string().into()]);
    }
    if let Some(address) = args.open.metrics {
        command.extend(["--metrics".into(), address.to_string().into()]);
    }
    command.push(args.desktop.as_str().into());
    Ok(command)
}

/// Says what happens.
struct Screen {
    printer: Printer,
    reporter: RefCell<Option<UploadReporter>>,
    failed: RefCell<Option<String>>,
    /// Whether the process that mounts the disks has said why it failed.
    has_said_why: Cell<bool>,
}

impl Screen {
    fn show(&self, args: &RunArgs, event: Event) {
        let printer = self.printer;
        match event {
            Event::Mount(line) => {
                // A line of progress makes room, and comes again.
                self.reporter.take();
                self.has_said_why.set(self.has_said_why.get() || is_error(&line));
                printer.message(&line);
            }
            Event::Starting { accelerated, is_own, interactive } => {
                if is_own {
                    printer.message("starting the machine (Satchel's own, on KVM)");
                }
                if !accelerated {
                    printer.warning("this machine's processor does not virtualize: QEMU imitates one, which is slow");
                }
                if interactive {
                    printer.message(console::HELP);
                }
            }
            // A person sees that for themselves.
            Event::GuestAnswers => {}
            Event::Vnc { address, password } => {
                printer.message(&format!("the screen is at vnc://{address}, password {password}"));
            }
            Event::ShuttingDown => printer.message("shutting the machine down; again forces it off"),
            Event::Wanted { machine } => printer.message(&format!(
                "{machine} asks for this desktop: the machine is shut down and synced, and handed over"
            )),
            Event::ForcedOff => printer.message("switching the machine off"),
            Event::Help => printer.message(console::HELP),
            Event::OtherEngine { said } => {
                printer.message(&format!("{said}; QEMU is tried"));
            }
            Event::Restarting => printer.message("the machine starts again"),
            Event::DiskStopped { is_final: true, .. } => printer.warning(
                "a disk could not make last what was written: the machine is paused, and does not go on. Switch it off \
                 (Ctrl-C twice) and start it again: what was flushed before is safe",
            ),
            Event::DiskStopped { no_space: true, .. } => printer.warning(
                "no space left for what the machine writes: it is paused, nothing is lost. Free some space on the \
                 disk that holds the state directory, and it goes on",
            ),
            Event::DiskStopped { no_space: false, .. } => {
                printer.warning("a disk could not answer: the machine is paused and tried again now and then");
            }
            Event::Panicked => printer.warning("the machine's kernel has panicked"),
            Event::Network(news) => self.network(&news),
            Event::Off => printer.message("the machine is off"),
            Event::Syncing(reply) => self.progress(&reply),
            Event::Synced(report) => {
                self.reporter.take();
                // As data: what the run has done.
                let desktop = &args.desktop;
                let synced = sync::Synced { desktop, report: &report };
                let _ = printer.result(&synced, |_| sync::summary(desktop.as_str(), &report));
            }
            Event::NotSynced { reason } => {
                self.reporter.take();
                self.failed.replace(Some(reason));
            }
        }
    }

    fn network(&self, news: &NetworkNews) {
        let printer = self.printer;
        match news {
            NetworkNews::Ended { said } => {
                printer.warning(&format!("the machine's network was interrupted: passt ended ({said}) and is started again"));
            }
            NetworkNews::Absent => {
                printer.message("this computer has no network at present: the machine gets one as soon as there is one");
            }
            NetworkNews::Back => printer.message("the machine has a network now"),
            NetworkNews::Moved => {
                printer.message("this computer is on another network: the machine is connected to it anew");
            }
            NetworkNews::NoNames => printer.warning(
                "the machine can look up no names: the name server in /etc/resolv.conf answers this computer alone, and no other \
                 is known. Name one there that others reach, or one in the guest",
            ),
        }
    }

    fn progress(&self, reply: &Reply) {
        self.reporter.borrow_mut().get_or_insert_with(UploadReporter::new).show(reply);
    }
}
