//! Runs a desktop: mounts it in a process of its own, starts an engine on the disks, and syncs when the machine is
//! switched off.

mod guest;
mod stopped;

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use chunk_format::{Firmware, ManifestId};
use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::control::{Connection, ControlError, Reply, Request};
use crate::desktop::{DesktopError, DesktopStore};
use crate::engine::child::die_with_parent;
use crate::engine::console::{self, ConsoleOutput, Key, RawTerminal};
use crate::engine::network::NetworkNews;
use crate::engine::qmp::Qmp;
use crate::engine::running::{Ended, Running, Starter};
use crate::engine::{Display, Engine, EngineError, Machine, MachineEvent};
use crate::mount::MACHINE_POINT;
use crate::remote::NamedVersion;
use crate::signals::{EndSignal, EndSignals};
use crate::starts;
use crate::sync::SyncReport;
use crate::volume::DirVolume;
use guest::GuestDesk;
use stopped::{Stop, Stops};

/// How long the mount's process may take to end after the machine, before the disks are taken from whoever still has them; after
/// that; and where a machine that was switched off may be what holds them, in a read that waits for the network.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(60);
const FORCED_UNMOUNT_TIMEOUT: Duration = Duration::from_secs(60);
const UNMOUNT_TIMEOUT_WHEN_FORCED: Duration = Duration::from_secs(3);
const WAIT_FOR_MOUNT: &str = "wait for the process that serves the disks";
/// How long it may take to say how it stands.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);
/// How long what it said at its end may take to arrive.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a machine that was told to switch itself off may take, until it is killed; and how long a killed one: a read that
/// waits for the network holds it.
const SWITCH_OFF_PATIENCE: Duration = Duration::from_secs(5);
const KILLED_PATIENCE: Duration = Duration::from_secs(10);
/// How long a machine that is to be handed over may take to shut down.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(180);
/// How long after the power button was pressed it is pressed once more: what is pressed before the guest listens for it is
/// lost, and one that shuts down already takes no notice.
const PRESS_AGAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Why a desktop could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The desktop could not be mounted; the process that tried has said why.
    #[error("desktop {desktop} could not be mounted")]
    NotMounted {
        /// The desktop.
        desktop: String,
    },
    /// The mount's process ended while the machine was running.
    #[error(
        "the process that serves the disks ended ({status}); the machine was stopped. What it had flushed is safe"
    )]
    MountDied {
        /// How it ended.
        status: ExitStatus,
    },
    /// The mount's process goes on.
    #[error(
        "the process that serves the disks does not end: the desktop is in use on this machine until it does"
    )]
    MountStays,
    /// The mount's process failed at its end; it has said why.
    #[error(
        "the process that serves the disks ended with an error ({status}): what was written last may not be kept"
    )]
    MountFailed {
        /// How it ended.
        status: ExitStatus,
    },
    /// The desktop's files failed.
    #[error("{0}")]
    Desktop(#[from] DesktopError),
    /// The engine failed.
    #[error("{0}")]
    Engine(#[from] EngineError),
    /// The machine's process ended with an error.
    #[error("{program} ended with an error: {said}")]
    Machine {
        /// What ran the machine.
        program: &'static str,
        /// Its own words.
        said: String,
    },
    /// The mount's process could not be talked to.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// A process, a signal handler or the terminal could not be had.
    #[error("cannot {action}")]
    Setup {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// A desktop to run.
#[derive(Clone, Debug)]
pub struct RunRequest {
    /// The desktop.
    pub desktop: String,
    /// Its directory.
    pub desktop_directory: PathBuf,
    /// The command that mounts it on the directory added at its end, in the foreground, and prints a line when the
    /// disks are there.
    pub mount_command: Vec<std::ffi::OsString>,
    /// What is to run the machine.
    pub engine: Engine,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Processors.
    pub cpus: u32,
    /// The machine's screen.
    pub display: Display,
    /// Where its serial console goes.
    pub console: ConsoleOutput,
    /// Whether to sync after the machine was switched off.
    pub sync: bool,
    /// How long a machine has to run, until its guest switches it off, for its start to be a good one.
    pub good_after: Duration,
}

/// What happens while a desktop runs.
#[derive(Clone, Debug)]
pub enum Event {
    /// A line from the process that serves the disks.
    Mount(String),
    /// The machine is starting.
    Starting {
        /// Whether the processor runs it itself.
        accelerated: bool,
        /// Whether it is Satchel's own machine.
        is_own: bool,
        /// Whether what is typed goes to it.
        interactive: bool,
    },
    /// Satchel's own machine finds nothing to boot on the disk; QEMU is tried.
    OtherEngine {
        /// What it said.
        said: String,
    },
    /// The guest starts its machine again.
    Restarting,
    /// The guest's agent answers for the first time since the machine was started: its system is up.
    GuestAnswers,
    /// Its screen can be seen here.
    Vnc {
        /// `127.0.0.1:PORT`.
        address: String,
        /// The password.
        password: String,
    },
    /// The power button was pressed.
    ShuttingDown,
    /// Another machine asks for the desktop: this one is shut down.
    Wanted {
        /// The machine.
        machine: String,
    },
    /// The machine is being switched off.
    ForcedOff,
    /// What keys there are.
    Help,
    /// A disk could not answer; the machine waits and is told to go on now and then.
    DiskStopped {
        /// Whether for want of space.
        no_space: bool,
        /// It does not go on.
        is_final: bool,
    },
    /// The guest's kernel has panicked.
    Panicked,
    /// Something happened to the machine's network.
    Network(NetworkNews),
    /// The machine is off.
    Off,
    /// How far the sync is.
    Syncing(Reply),
    /// The sync is done.
    Synced(Box<SyncReport>),
    /// The sync failed; what was written is kept.
    NotSynced {
        /// Why.
        reason: String,
    },
}

/// Runs a desktop until its machine is switched off. Whether the sync worked is told by an event.
///
/// # Errors
/// [`RunError`].
pub async fn run(request: &RunRequest, events: &impl Fn(Event)) -> Result<(), RunError> {
    // Whatever speaks against the engine is said before anything is fetched.
    let starter = Starter::choose(request.engine, request.display, request.cpus)?;
    let mut mount = Mount::start(request, events).await?;
    // One for all that follows: a signal between two watchers would be lost.
    let mut signals = match EndSignals::watch() {
        Ok(signals) => signals,
        Err(source) => return Err(RunError::Setup { action: "watch for signals", source }),
    };
    let mut was_forced = false;
    let ran = run_machine(request, starter, &mut mount, &mut signals, &mut was_forced, events).await;
    if matches!(ran, Err(RunError::MountDied { .. })) {
        return ran;
    }
    events(Event::Off);
    if request.sync && ran.is_ok() {
        let synced = sync(&request.desktop_directory, &mut signals, events);
        hearing(&mut mount.lines, events, synced).await;
    }
    let patience = if was_forced { UNMOUNT_TIMEOUT_WHEN_FORCED } else { UNMOUNT_TIMEOUT };
    let stopped = mount.stop(&request.desktop_directory, patience, &mut signals, events).await;
    ran.and(stopped)
}

async fn run_machine(
    request: &RunRequest,
    mut starter: Starter,
    mount: &mut Mount,
    signals: &mut EndSignals,
    was_forced: &mut bool,
    events: &impl Fn(Event),
) -> Result<(), RunError> {
    let setup = |action| move |source| RunError::Setup { action, source };
    let (golden, firmware) = stands_on(&request.desktop_directory)?;
    let home = mount.directory.join("home.raw");
    let machine = Machine {
        name: request.desktop.clone(),
        system: mount.directory.join("system.raw"),
        home: mount.has_home.then_some(home),
        firmware,
        settings: request.desktop_directory.join("uefi-settings.fd"),
        directory: request.desktop_directory.clone(),
        memory_mib: request.memory_mib,
        cpus: request.cpus,
        display: request.display,
    };
    let mut began_at = None;
    let terminal = RawTerminal::enter().map_err(setup("set up the terminal"))?;
    if let Some(golden) = golden {
        noted(starts::note_begun(&request.desktop_directory, golden));
    }
    let interactive = terminal.is_some();
    let (key_sender, mut keys) = mpsc::unbounded_channel();
    let mut asked_to_stop = false;
    loop {
        let started = starter.start(&machine).await;
        if let (Err(_), None, Some(golden)) = (&started, began_at, golden) {
            // No machine was made: that says nothing of what is on its disks.
            noted(starts::note_neutral(&request.desktop_directory, golden.id));
        }
        let (mut running, serial) = started?;
        let began = *began_at.get_or_insert_with(Instant::now);
        if let Some(serial) = serial {
            let keys = key_sender.clone();
            console::connect(serial, request.console, interactive, keys).map_err(setup("start a thread"))?;
        }
        if request.display == Display::Vnc
            && let Some(qmp) = running.qmp()
        {
            events(open_vnc(qmp).await?);
        }
        let (accelerated, is_own) = (running.accelerated, running.is_own);
        events(Event::Starting { accelerated, is_own, interactive });
        let mut supervisor = Supervisor {
            running,
            asked_to_stop,
            press_again_at: None,
            kill_at: None,
            left_behind_at: None,
            off_at: None,
            is_left_behind: false,
            is_forced: false,
            refuse_at: None,
            stops: Stops::default(),
            desktop_directory: &request.desktop_directory,
            golden: golden.map(|golden| golden.id),
            events,
        };
        let ended = supervisor.watch(mount, signals, &mut keys).await;
        asked_to_stop = supervisor.asked_to_stop;
        let is_switched_off = supervisor.left_behind_at.is_some();
        *was_forced = is_switched_off || supervisor.is_left_behind;
        // Disks that are gone, a guest that has not run, and reads that waited for the network say nothing of what is on them.
        let says_nothing = matches!(ended, Err(_) | Ok(Ended::NotStarted { .. }))
            || is_switched_off && is_cut_off(&request.desktop_directory).await;
        if let Some(golden) = golden.filter(|_| says_nothing) {
            noted(starts::note_neutral(&request.desktop_directory, golden.id));
        }
        let ended = ended?;
        let by_itself = !is_switched_off && matches!(ended, Ended::Off);
        if let Some(golden) = golden.filter(|_| by_itself) {
            if began.elapsed() >= request.good_after {
                noted(starts::note_good(&request.desktop_directory, golden.id));
            } else if asked_to_stop {
                noted(starts::note_neutral(&request.desktop_directory, golden.id));
            }
        }
        match ended {
            Ended::Off => return Ok(()),
            // Whoever pulls the plug has what they wanted, whatever the machine says of it.
            _ if supervisor.is_forced => return Ok(()),
            // One that looked for what to boot is off as well.
            Ended::Reset | Ended::CannotBoot { .. } | Ended::NotStarted { .. } if asked_to_stop => {
                return Ok(());
            }
            Ended::Reset => {
                // It is up when it stays up.
                began_at = None;
                events(Event::Restarting);
            }
            Ended::CannotBoot { said } if request.engine == Engine::Auto => {
                began_at = None;
                events(Event::OtherEngine { said });
                starter = Starter::Qemu;
            }
            Ended::CannotBoot { said } | Ended::NotStarted { said } => {
                return Err(RunError::Machine { program: "the machine", said });
            }
            Ended::Failed { program, said } => return Err(RunError::Machine { program, said }),
        }
    }
}

/// What a desktop whose disks are mounted stands on: its golden version, and how it boots. No golden version when what is
/// written is thrown away at the end: such a start says nothing of those that are kept.
fn stands_on(directory: &Path) -> Result<(Option<NamedVersion>, Firmware), DesktopError> {
    let volume = DirVolume::open(directory).map_err(|source| DesktopError::Io {
        action: "open",
        file: directory.display().to_string(),
        source,
    })?;
    let store = DesktopStore::read_only(Arc::new(volume))?;
    let record = store.record();
    let golden = store.version(record.base)?;
    let named = NamedVersion { id: golden.id, sequence: golden.manifest.sequence };
    let firmware = store.version(record.head)?.manifest.boot.firmware;
    Ok((record.discard_from.is_none().then_some(named), firmware))
}

/// A start that is not noted is no reason not to start.
fn noted(noted: Result<(), starts::StartsError>) {
    if let Err(error) = noted {
        tracing::warn!(error = &error as &dyn std::error::Error, "what became of the start was not noted");
    }
}

/// Watches over a running machine.
struct Supervisor<'a, E: Fn(Event)> {
    running: Running,
    asked_to_stop: bool,
    /// When the power button is pressed once more.
    press_again_at: Option<Instant>,
    /// When a machine that was told to switch itself off is killed.
    kill_at: Option<Instant>,
    /// When a machine that was switched off is left behind: it waits for its disks, which end next.
    left_behind_at: Option<Instant>,
    /// When a machine that said that it is off is left behind, and as what it ended then.
    off_at: Option<(Instant, Ended)>,
    /// A machine was left behind.
    is_left_behind: bool,
    /// A person had it switched off.
    is_forced: bool,
    /// When the machine that asks for the desktop is told that this one does not switch off.
    refuse_at: Option<Instant>,
    stops: Stops,
    desktop_directory: &'a Path,
    /// The golden version it stands on: a guest that answers is a good start of it.
    golden: Option<ManifestId>,
    events: &'a E,
}

impl<E: Fn(Event)> Supervisor<'_, E> {
    async fn watch(
        &mut self,
        mount: &mut Mount,
        signals: &mut EndSignals,
        keys: &mut mpsc::UnboundedReceiver<Key>,
    ) -> Result<Ended, RunError> {
        let (_, no_events) = mpsc::unbounded_channel();
        let mut machine_events = std::mem::replace(&mut self.running.events, no_events);
        let Mount { process: mount_process, lines, .. } = mount;
        let wanted = await_wanted(self.desktop_directory);
        tokio::pin!(wanted);
        let mut is_wanted = false;
        let mut guest = GuestDesk::open(self.running.agent.take(), self.desktop_directory);
        loop {
            let (kill_at, refuse_at) = (self.kill_at, self.refuse_at);
            let left_behind_at = self.left_behind_at;
            let off_at = self.off_at.as_ref().map(|(at, _)| *at);
            tokio::select! {
                ended = self.running.ended() => return Ok(ended),
                () = reached(kill_at) => {
                    self.kill_at = None;
                    self.running.kill();
                }
                () = reached(left_behind_at) => {
                    self.is_left_behind = true;
                    return Ok(Ended::Off);
                }
                () = reached(off_at) => {
                    self.is_left_behind = true;
                    return Ok(self.off_at.take().map_or(Ended::Off, |(_, ended)| ended));
                }
                () = reached(self.press_again_at) => {
                    self.press_again_at = Some(Instant::now() + PRESS_AGAIN_INTERVAL);
                    // A machine that does not take it is about to end.
                    let _ = self.running.press_power_button().await;
                }
                machine = &mut wanted, if !is_wanted => {
                    is_wanted = true;
                    (self.events)(Event::Wanted { machine });
                    self.refuse_at = Some(Instant::now() + HAND_OVER_PATIENCE);
                    if !self.asked_to_stop {
                        self.stop().await;
                    }
                }
                () = guest.answers() => {
                    if let Some(golden) = self.golden {
                        noted(starts::note_good(self.desktop_directory, golden));
                    }
                    (self.events)(Event::GuestAnswers);
                }
                () = reached(refuse_at) => {
                    self.refuse_at = None;
                    let reason = "its machine was asked to shut down, and still runs".to_owned();
                    refuse(self.desktop_directory, reason).await;
                }
                ended = mount_process.wait() => {
                    // Without its disks the machine can only hang.
                    self.running.kill();
                    self.running.ended().await;
                    last_words(lines, self.events).await;
                    let status = ended.map_err(|source| RunError::Setup { action: WAIT_FOR_MOUNT, source })?;
                    return Err(RunError::MountDied { status });
                }
                Some(line) = lines.recv() => (self.events)(Event::Mount(line)),
                Some(key) = keys.recv() => match key {
                    Key::PowerButton => self.stop().await,
                    Key::ForceOff => {
                        self.is_forced = true;
                        self.force_off().await;
                    }
                    Key::Help => (self.events)(Event::Help),
                },
                signal = signals.received() => match signal {
                    EndSignal::Terminate if self.asked_to_stop => {}
                    EndSignal::Interrupt | EndSignal::Terminate => self.stop().await,
                },
                Some(event) = machine_events.recv() => self.take(event),
                () = reached(self.stops.next_at()) => {
                    if self.stops.reached(Instant::now()) {
                        self.running.go_on().await;
                    }
                }
            }
        }
    }

    /// Presses the power button, until the machine is off; switches off when asked a second time.
    async fn stop(&mut self) {
        if self.asked_to_stop {
            self.is_forced = true;
            return self.force_off().await;
        }
        self.asked_to_stop = true;
        (self.events)(Event::ShuttingDown);
        self.press_again_at = Some(Instant::now() + PRESS_AGAIN_INTERVAL);
        if self.running.press_power_button().await.is_err() {
            self.force_off().await;
        }
    }

    async fn force_off(&mut self) {
        self.asked_to_stop = true;
        self.press_again_at = None;
        (self.events)(Event::ForcedOff);
        if self.left_behind_at.is_none() {
            let kill_at = Instant::now() + SWITCH_OFF_PATIENCE;
            self.kill_at = Some(kill_at);
            self.left_behind_at = Some(kill_at + KILLED_PATIENCE);
            self.running.force_off().await;
        } else {
            // Whoever asks once more does not want to wait for its answer.
            self.running.kill();
        }
    }

    fn take(&mut self, event: MachineEvent) {
        match event {
            MachineEvent::DiskStopped { no_space, is_final } => {
                if self.stops.stopped(Stop { no_space, is_final }, Instant::now()) {
                    (self.events)(Event::DiskStopped { no_space, is_final });
                }
            }
            MachineEvent::Panicked => (self.events)(Event::Panicked),
            MachineEvent::Network(news) => (self.events)(Event::Network(news)),
            MachineEvent::Off { by_guest } if self.left_behind_at.is_none() => {
                let ended = match by_guest {
                    true => Ended::Off,
                    // Nobody forced it: it was looking for what to boot.
                    false => Ended::NotStarted { said: "it was switched off before a guest ran".to_owned() },
                };
                self.off_at = Some((Instant::now() + KILLED_PATIENCE, ended));
            }
            MachineEvent::Off { .. } => {}
        }
    }
}

/// Waits until then; for ever when there is nothing to wait for.
async fn reached(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Waits until another machine asks for the desktop; for ever when nobody can tell.
async fn await_wanted(desktop_directory: &Path) -> String {
    let asked = async {
        let mut connection = Connection::open(desktop_directory).await?;
        connection.ask(&Request::AwaitWanted, |_| {}).await
    };
    match asked.await.map(serde_json::from_value::<String>) {
        Ok(Ok(machine)) => machine,
        Ok(Err(error)) => {
            tracing::warn!(%error, "another machine may ask for this desktop, and is not heard");
            std::future::pending().await
        }
        Err(error) => {
            tracing::warn!(%error, "another machine may ask for this desktop, and is not heard");
            std::future::pending().await
        }
    }
}

/// Whether nobody has what is not on this machine, as far as the process that serves the disks knows.
async fn is_cut_off(desktop_directory: &Path) -> bool {
    let asked = async {
        let mut connection = Connection::open(desktop_directory).await?;
        connection.ask(&Request::Status, |_| {}).await
    };
    match tokio::time::timeout(STATUS_PATIENCE, asked).await {
        Ok(Ok(status)) => status["live"]["online"] == false,
        _ => false,
    }
}

/// Has the machine that asks for the desktop told that it has to wait.
async fn refuse(desktop_directory: &Path, reason: String) {
    let told = async {
        let mut connection = Connection::open(desktop_directory).await?;
        connection.ask(&Request::Refuse { reason }, |_| {}).await
    };
    if let Err(error) = told.await {
        tracing::warn!(%error, "the machine that asks for this desktop was not told that it has to wait");
    }
}

/// Gives the screen a password, since other users of this machine can connect to it too.
async fn open_vnc(qmp: &mut Qmp) -> Result<Event, RunError> {
    // As long as the protocol takes (RFC 6143, section 7.2.2).
    const LETTERS: &[u8] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| RunError::Setup {
        action: "make a password",
        source: std::io::Error::other(error.to_string()),
    })?;
    let password: String =
        random.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect();
    qmp.run("set_password", json!({"protocol": "vnc", "password": password})).await?;
    let vnc = qmp.run("query-vnc", json!({})).await?;
    let part = |name: &str| vnc[name].as_str().unwrap_or("?").to_owned();
    Ok(Event::Vnc { address: format!("{}:{}", part("host"), part("service")), password })
}

async fn sync(desktop_directory: &Path, signals: &mut EndSignals, events: &impl Fn(Event)) {
    let synced = async {
        let mut connection = Connection::open(desktop_directory).await?;
        let request = Request::Sync { note: None };
        connection.ask(&request, |reply| events(Event::Syncing(reply.clone()))).await
    };
    let report = tokio::select! {
        report = synced => Some(report.map(serde_json::from_value::<SyncReport>)),
        _ = signals.received() => None,
    };
    let reason = match report {
        Some(Ok(Ok(report))) => return events(Event::Synced(Box::new(report))),
        Some(Ok(Err(error))) => error.to_string(),
        Some(Err(error)) => error.to_string(),
        None => "it was interrupted. They are kept on this machine, and the next sync goes on".to_owned(),
    };
    // Another machine that asks for the desktop waits for nothing.
    refuse(desktop_directory, format!("its sync failed: {reason}")).await;
    events(Event::NotSynced { reason });
}

/// Passes on what the process that serves the disks has said before its end.
async fn last_words(lines: &mut mpsc::UnboundedReceiver<String>, events: &impl Fn(Event)) {
    let said = async {
        while let Some(line) = lines.recv().await {
            events(Event::Mount(line));
        }
    };
    // What it started may hold the line open; that has nothing to say.
    let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, said).await;
}

/// Does something, and passes on what the process that serves the disks says meanwhile.
async fn hearing<T>(
    lines: &mut mpsc::UnboundedReceiver<String>,
    events: &impl Fn(Event),
    doing: impl Future<Output = T>,
) -> T {
    tokio::pin!(doing);
    loop {
        tokio::select! {
            done = &mut doing => return done,
            Some(line) = lines.recv() => events(Event::Mount(line)),
        }
    }
}

/// The process that serves the disks.
struct Mount {
    process: Child,
    directory: PathBuf,
    has_home: bool,
    /// What it says.
    lines: mpsc::UnboundedReceiver<String>,
}

impl Mount {
    async fn start(request: &RunRequest, events: &impl Fn(Event)) -> Result<Self, RunError> {
        let directory = request.desktop_directory.join(MACHINE_POINT);
        let setup = |action| move |source| RunError::Setup { action, source };
        match std::fs::create_dir_all(&directory) {
            // A dead mount of an earlier run, which the next mount clears away.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.map_err(setup("make the directory for the disks"))?,
        }
        let (program, arguments) = request
            .mount_command
            .split_first()
            .ok_or_else(|| RunError::NotMounted { desktop: request.desktop.clone() })?;
        let mut command = Command::new(program);
        die_with_parent(command.as_std_mut());
        let mut process = command
            .args(arguments)
            .arg(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C in the terminal must not take the disks away from under the machine.
            .process_group(0)
            .spawn()
            .map_err(setup("start the process that serves the disks"))?;
        let (line_sender, mut lines) = mpsc::unbounded_channel();
        if let Some(stderr) = process.stderr.take() {
            tokio::spawn(async move {
                let mut reader = BufReader::new(stderr).lines();
                while let Ok(Some(line)) = reader.next_line().await {
                    if line_sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        let mut ready = String::new();
        let mut stdout = process.stdout.take().map(BufReader::new);
        let not_mounted = || RunError::NotMounted { desktop: request.desktop.clone() };
        // For as long as it takes: what was written here before may have to be sent first.
        loop {
            let Some(stdout) = &mut stdout else { return Err(not_mounted()) };
            tokio::select! {
                read = stdout.read_line(&mut ready) => {
                    if read.is_ok_and(|read| read > 0) {
                        break;
                    }
                    // It has ended: what it said comes first.
                    while let Some(line) = lines.recv().await {
                        events(Event::Mount(line));
                    }
                    return Err(not_mounted());
                }
                Some(line) = lines.recv() => events(Event::Mount(line)),
            }
        }
        let has_home = std::fs::exists(directory.join("home.raw")).unwrap_or(false);
        Ok(Self { process, directory, has_home, lines })
    }

    /// Unmounts the disks and waits for the end of the process. Whoever still has the disks open after `patience`, or when a
    /// person interrupts, has them taken away: the machine is off, and what is left of it may wait for the network.
    async fn stop(
        &mut self,
        desktop_directory: &Path,
        patience: Duration,
        signals: &mut EndSignals,
        events: &impl Fn(Event),
    ) -> Result<(), RunError> {
        self.unmount(desktop_directory, Signal::TERM).await;
        let Self { process, lines, .. } = self;
        let interrupted = async { while signals.received().await != EndSignal::Interrupt {} };
        let ended = hearing(lines, events, async {
            tokio::select! {
                ended = process.wait() => Some(ended),
                () = tokio::time::sleep(patience) => None,
                () = interrupted => None,
            }
        });
        let ended = match ended.await {
            Some(ended) => Some(ended),
            None => {
                self.unmount(desktop_directory, Signal::INT).await;
                let Self { process, lines, .. } = self;
                let ending = tokio::time::timeout(FORCED_UNMOUNT_TIMEOUT, process.wait());
                hearing(lines, events, ending).await.ok()
            }
        };
        // Empty and unmounted by now; if not, it stays.
        let _ = std::fs::remove_dir(&self.directory);
        let Some(ended) = ended else { return Err(RunError::MountStays) };
        last_words(&mut self.lines, events).await;
        let status = ended.map_err(|source| RunError::Setup { action: WAIT_FOR_MOUNT, source })?;
        if status.success() { Ok(()) } else { Err(RunError::MountFailed { status }) }
    }

    /// Asks for the end; who asks a second time means it. The signal says the same to one that has no socket to be asked on.
    async fn unmount(&self, desktop_directory: &Path, signal: Signal) {
        let asked = async {
            let mut connection = Connection::open(desktop_directory).await?;
            connection.ask(&Request::Unmount, |_| {}).await
        };
        if asked.await.is_err()
            && let Some(pid) = self.process.id().and_then(|pid| i32::try_from(pid).ok())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

#[cfg(test)]
mod tests;
