//! A machine that runs, whichever engine runs it.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::agent::Agent;
use super::kvm::{self, Programs, SerialLine};
use super::network::Network;
use super::qmp::{self, Qmp};
use super::vmm_control::VmmControl;
use super::{Display, Engine, EngineError, Machine, MachineEvent, check_kvm, qemu};
use crate::said::printable;

/// How many of its last lines are kept to tell why it ended, and how long each may be.
const LAST_LINES: usize = 20;
const MAX_LINE_BYTES: usize = 1024;
/// How long what a dead process said may take to arrive.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take to tell a machine something. Whoever watches over it does nothing else meanwhile.
const TELL_PATIENCE: Duration = Duration::from_secs(1);
/// `SIGSYS`: a system call that its filter does not allow.
const FILTERED_SIGNAL: i32 = 31;

/// How a machine's process ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The machine was switched off.
    Off,
    /// It wants to be started again.
    Reset,
    /// It cannot boot the disk, and another engine may; in its own words.
    CannotBoot {
        /// Why.
        said: String,
    },
    /// It could not be made, or its disk could not be read, and no guest has run.
    NotStarted {
        /// Why.
        said: String,
    },
    /// It failed, in its own words.
    Failed {
        /// Which program.
        program: &'static str,
        /// What it said.
        said: String,
    },
}

#[derive(Debug)]
enum Reins {
    Qemu(Qmp),
    Kvm(VmmControl),
}

/// A running machine.
#[derive(Debug)]
pub struct Running {
    process: Child,
    /// The network of our own machine.
    network: Option<Network>,
    reins: Reins,
    last_lines: Arc<Mutex<VecDeque<String>>>,
    reading: Option<JoinHandle<()>>,
    /// What it does by itself.
    pub events: mpsc::UnboundedReceiver<MachineEvent>,
    /// The guest's agent, where the engine has a port for it. The guest may not run one.
    pub agent: Option<Agent>,
    /// Whether the processor runs the machine itself, or QEMU imitates one.
    pub accelerated: bool,
    /// Whether it is our own machine.
    pub is_own: bool,
}

/// What starts machines, as often as one wants to be started again.
pub enum Starter {
    /// QEMU, which starts its machine again by itself.
    Qemu,
    /// Our own.
    Kvm {
        /// What it takes.
        programs: Programs,
        /// Its serial line, and our end until it is asked for.
        line: SerialLine,
        /// The far end of the line.
        serial: Option<UnixStream>,
    },
}

impl Starter {
    /// Chooses the engine.
    ///
    /// # Errors
    /// `TooManyCpus`, `NoKvm`, `NoScreen`, `NotInstalled`, when our own machine is asked for and cannot be; `Connection`.
    pub fn choose(engine: Engine, display: Display, cpus: u32) -> Result<Starter, EngineError> {
        let own = || -> Result<Programs, EngineError> {
            if cpus > kvm::MAX_CPUS {
                return Err(EngineError::TooManyCpus { limit: kvm::MAX_CPUS });
            }
            check_kvm()?;
            match display {
                Display::None => Programs::find(),
                Display::Window | Display::Vnc => Err(EngineError::NoScreen),
            }
        };
        let programs = match engine {
            Engine::Qemu => None,
            Engine::Kvm => Some(own()?),
            Engine::Auto => own().inspect_err(|error| tracing::debug!(%error, "QEMU it is")).ok(),
        };
        Ok(match programs {
            None => Starter::Qemu,
            Some(programs) => {
                let (line, serial) = SerialLine::new()?;
                Starter::Kvm { programs, line, serial: Some(serial) }
            }
        })
    }

    /// Starts the machine; its serial line is answered the first time.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn start(&mut self, machine: &Machine) -> Result<(Running, Option<UnixStream>), EngineError> {
        match self {
            Starter::Qemu => {
                let mut started = qemu::start(machine)?;
                let (last_lines, reading) = keep_last_lines(started.process.stderr.take());
                let (qmp, said) = match Qmp::open(started.control).await {
                    Ok(open) => open,
                    Err(error) => {
                        // It ended before it spoke: its own words say why.
                        let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, reading).await;
                        return Err(match joined(&last_lines) {
                            said if said.is_empty() => error,
                            reason => EngineError::Refused { command: "start".to_owned(), reason },
                        });
                    }
                };
                let running = Running {
                    process: started.process,
                    network: None,
                    reins: Reins::Qemu(qmp),
                    last_lines,
                    reading: Some(reading),
                    events: translated(said),
                    agent: port_of(started.agent),
                    accelerated: started.accelerated,
                    is_own: false,
                };
                Ok((running, Some(started.serial)))
            }
            Starter::Kvm { programs, line, serial } => {
                let (sender, events) = mpsc::unbounded_channel();
                let mut started = kvm::start(programs, machine, line, sender).await?;
                let (last_lines, reading) = keep_last_lines(started.process.stderr.take());
                let running = Running {
                    process: started.process,
                    network: Some(started.network),
                    reins: Reins::Kvm(started.control),
                    last_lines,
                    reading: Some(reading),
                    events,
                    agent: port_of(started.agent),
                    accelerated: true,
                    is_own: true,
                };
                Ok((running, serial.take()))
            }
        }
    }
}

/// A machine without its agent is as good a machine.
fn port_of(agent: UnixStream) -> Option<Agent> {
    Agent::open(agent).inspect_err(|error| tracing::warn!(%error, "the guest's agent cannot be asked")).ok()
}

impl Running {
    /// Waits until the machine's process has ended.
    pub async fn ended(&mut self) -> Ended {
        let status = self.process.wait().await;
        if let Some(reading) = self.reading.take() {
            let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, reading).await;
        }
        self.network = None;
        let program = if self.is_own { "the machine" } else { "QEMU" };
        let said = joined(&self.last_lines);
        let Ok(status) = status else { return Ended::Failed { program, said } };
        match status.code() {
            Some(0) => Ended::Off,
            Some(kvm::EXIT_RESET) if self.is_own => Ended::Reset,
            Some(kvm::EXIT_NO_BOOT) if self.is_own => Ended::CannotBoot { said },
            Some(kvm::EXIT_NOT_STARTED | kvm::EXIT_USAGE) if self.is_own => Ended::NotStarted { said },
            _ if said.is_empty() => Ended::Failed { program, said: why(status) },
            _ => Ended::Failed { program, said },
        }
    }

    /// Presses the power button. A machine that hangs takes it when it can.
    ///
    /// # Errors
    /// `Connection`.
    pub async fn press_power_button(&mut self) -> Result<(), EngineError> {
        self.tell("system_powerdown", "power-button").await
    }

    /// Tells the machine to switch itself off; one that hangs does not.
    pub async fn force_off(&mut self) {
        if self.tell("quit", "force-off").await.is_err() {
            self.kill();
        }
    }

    async fn tell(&mut self, qemu: &str, own: &str) -> Result<(), EngineError> {
        let told = async {
            match &mut self.reins {
                Reins::Qemu(qmp) => qmp.send(qemu).await,
                Reins::Kvm(control) => control.send(own).await,
            }
        };
        let in_time = tokio::time::timeout(TELL_PATIENCE, told).await;
        in_time.map_err(|_| EngineError::Connection(io::ErrorKind::TimedOut.into()))?
    }

    /// Ends the machine's process.
    pub fn kill(&mut self) {
        // Gone already is as good.
        let _ = self.process.start_kill();
    }

    /// Has the machine try again what its disks could not do.
    pub async fn go_on(&mut self) {
        // It stops again when the disk still cannot answer.
        let _ = self.tell("cont", "retry").await;
    }

    /// QEMU's control protocol, when it is QEMU.
    pub fn qmp(&mut self) -> Option<&mut Qmp> {
        match &mut self.reins {
            Reins::Qemu(qmp) => Some(qmp),
            Reins::Kvm(_) => None,
        }
    }
}

fn why(status: ExitStatus) -> String {
    match status.signal() {
        Some(FILTERED_SIGNAL) => {
            "its sandbox ended it, for a system call that it should not need; please report this".to_owned()
        }
        Some(signal) => format!("it was ended by signal {signal}"),
        None => "it said nothing".to_owned(),
    }
}

/// Keeps the last lines a process says, and reads all of them: a process whose words nobody takes stands still.
fn keep_last_lines(stderr: Option<ChildStderr>) -> (Arc<Mutex<VecDeque<String>>>, JoinHandle<()>) {
    let last_lines = Arc::new(Mutex::new(VecDeque::new()));
    let kept = Arc::clone(&last_lines);
    let reading = tokio::spawn(async move {
        let Some(stderr) = stderr else { return };
        let mut reader = BufReader::new(stderr);
        while let Ok(Some(line)) = next_line(&mut reader).await {
            // What a guest has taken over is not to write on the terminal what it likes.
            let text = printable(String::from_utf8_lossy(&line).trim());
            tracing::debug!(text, "the machine's process says");
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == LAST_LINES {
                kept.pop_front();
            }
            kept.push_back(text);
        }
    });
    (last_lines, reading)
}

/// The next line without its end, and of a long one the first [`MAX_LINE_BYTES`]; none at the end.
async fn next_line(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let mut has_any = false;
    loop {
        let there = reader.fill_buf().await?;
        let end = there.iter().position(|byte| *byte == b'\n');
        let piece = &there[..end.unwrap_or(there.len())];
        let room = MAX_LINE_BYTES - line.len();
        line.extend_from_slice(&piece[..piece.len().min(room)]);
        if there.is_empty() {
            return Ok(has_any.then_some(line));
        }
        has_any = true;
        let read = end.map_or(there.len(), |end| end + 1);
        reader.consume(read);
        if end.is_some() {
            return Ok(Some(line));
        }
    }
}

fn joined(lines: &Mutex<VecDeque<String>>) -> String {
    let lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
    lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
}

/// QEMU's events as ours.
fn translated(mut said: mpsc::UnboundedReceiver<qmp::Event>) -> mpsc::UnboundedReceiver<MachineEvent> {
    let (sender, events) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(event) = said.recv().await {
            let event = match event.name.as_str() {
                "BLOCK_IO_ERROR" if event.data["action"] == "stop" => MachineEvent::DiskStopped {
                    no_space: event.data["nospace"].as_bool().unwrap_or(false),
                    is_final: false,
                },
                "GUEST_PANICKED" => MachineEvent::Panicked,
                _ => continue,
            };
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_a_line_without_end_the_beginning_is_kept() {
        let said = [&b"first\n\n"[..], &[b'x'; 3 << 20], b"\nlast"].concat();
        let mut reader = BufReader::new(&said[..]);
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut reader).await.unwrap() {
            assert!(line.capacity() <= 4 * MAX_LINE_BYTES, "{}", line.capacity());
            lines.push(line);
        }
        assert_eq!(lines, [&b"first"[..], b"", &[b'x'; MAX_LINE_BYTES], b"last"]);
    }
}
