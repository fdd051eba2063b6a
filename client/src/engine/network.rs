//! The network of Satchel's own machine: passt, started again when it has ended, and when this host is where the one that runs is
//! of no use.
//!
//! The machine listens on a socket; each passt is given a connection to it. The guest sees its link go down and up in between, and asks
//! for an address and name servers anew, as on a cable that is put into another socket.

use std::collections::HashSet;
use std::io;
use std::mem::{Discriminant, discriminant};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::MachineEvent;
use crate::socket;

mod passt;
mod place;

use passt::Passt;
use place::{Place, Resolver};

/// The socket's name in the directory of the desktop.
const SOCKET: &str = "network";
/// How often this host and passt are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a link stays down at least, so that the guest notices.
const DOWN_FOR: Duration = Duration::from_secs(1);
/// How long after its end passt is started again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Who ran so long ended for a reason of its own.
const RAN_WELL: Duration = Duration::from_secs(60);

/// What happened to a machine's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkNews {
    /// passt had ended, and is started again.
    Ended {
        /// Its last words.
        said: String,
    },
    /// This host has no network, and so the machine has none.
    Absent,
    /// This host has one now, and so the machine has.
    Back,
    /// This host is on another network: the machine's link goes down and up.
    Moved,
    /// The guest reaches nobody who resolves names: who does it for this host answers nobody else.
    NoNames,
}

/// What carries a machine's network; it ends when this is dropped.
#[derive(Debug)]
pub struct Network {
    /// Hung up on, it ends the thread.
    _until: mpsc::Sender<()>,
}

impl Network {
    /// Makes the socket for a machine, which gets the descriptor, and has passt carry its frames where this host has a network, or as
    /// soon as it has one. What becomes of it is told to `events`.
    ///
    /// # Errors
    /// The socket or a thread cannot be made.
    pub fn start(
        program: PathBuf,
        directory: &Path,
        events: UnboundedSender<MachineEvent>,
    ) -> io::Result<(Network, OwnedFd)> {
        let (line, listener) = Line::listen(directory)?;
        let (until, told) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let mut carrier = Carrier::new(program, line, events);
        // A thread of its own, which lasts: what a process is told of the end of its parent goes by the thread that started it.
        thread::Builder::new().name("network".to_owned()).spawn(move || {
            let mut is_wanted = carrier.look(&Place::here(), Instant::now());
            // Whoever started this may be gone already.
            let _ = ready.send(());
            while is_wanted && told.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                is_wanted = carrier.look(&Place::here(), Instant::now());
            }
        })?;
        // The first passt is there before the machine looks.
        let _ = is_ready.recv();
        Ok((Network { _until: until }, listener.into()))
    }
}

/// Where the machine is reached: a socket in the desktop's directory, for as long as this lives.
#[derive(Debug)]
struct Line {
    directory: PathBuf,
}

impl Line {
    fn listen(directory: &Path) -> io::Result<(Line, UnixListener)> {
        let listener = socket::listen(directory, SOCKET)?;
        Ok((Line { directory: directory.to_owned() }, listener))
    }

    fn connect(&self) -> io::Result<UnixStream> {
        socket::connect(&self.directory, SOCKET)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // A leftover is in nobody's way.
        let _ = std::fs::remove_file(self.directory.join(SOCKET));
    }
}

/// What there is of a passt.
#[derive(Debug)]
enum Carried {
    /// One runs, since then, and was started there.
    By { passt: Passt, since: Instant, place: Place },
    /// There is to be one from then on; why the last one ended, if it did so by itself.
    From { at: Instant, ended: Option<String> },
}

/// Sees to it that there is a passt.
#[derive(Debug)]
struct Carrier {
    program: PathBuf,
    line: Line,
    events: UnboundedSender<MachineEvent>,
    carried: Carried,
    /// How long to wait after the next end.
    pause: Duration,
    /// What was said of it already, and is not said again until it is well.
    told: HashSet<Discriminant<NetworkNews>>,
    /// Whether the one that runs was of no use at the last look.
    was_of_no_use: bool,
}

impl Carrier {
    fn new(program: PathBuf, line: Line, events: UnboundedSender<MachineEvent>) -> Carrier {
        Carrier {
            program,
            line,
            events,
            carried: Carried::From { at: Instant::now(), ended: None },
            pause: FIRST_PAUSE,
            told: HashSet::new(),
            was_of_no_use: false,
        }
    }

    /// Looks after passt; whether there is still a machine to carry frames for.
    fn look(&mut self, here: &Place, now: Instant) -> bool {
        match &mut self.carried {
            Carried::By { passt, since, place } => {
                if let Some(said) = passt.ended() {
                    tracing::warn!(said, "passt has ended");
                    if now.duration_since(*since) >= RAN_WELL {
                        self.pause = FIRST_PAUSE;
                        self.told.clear();
                    }
                    self.carried = Carried::From { at: now + self.pause, ended: Some(said) };
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                    return true;
                }
                // What is seen once may be half of a change.
                let is_of_no_use = !place.serves(here);
                if is_of_no_use && self.was_of_no_use {
                    tracing::info!(?here, "this host is elsewhere");
                    self.carried = Carried::From { at: now + DOWN_FOR, ended: None };
                    self.told.clear();
                    self.send(NetworkNews::Moved);
                }
                self.was_of_no_use = is_of_no_use;
                true
            }
            Carried::From { at, .. } if *at > now => true,
            Carried::From { ended, .. } => {
                let ended = ended.take();
                self.begin(here, now, ended)
            }
        }
    }

    fn begin(&mut self, here: &Place, now: Instant, ended: Option<String>) -> bool {
        if !here.has_network() {
            self.tell(NetworkNews::Absent);
            return true;
        }
        // The end of the machine ends passt as well, and is told in other words.
        let Ok(connection) = self.line.connect() else { return false };
        if let Some(said) = ended {
            self.tell(NetworkNews::Ended { said });
        }
        let resolver = here.resolver();
        match Passt::start(&self.program, connection.into(), &resolver) {
            Ok(passt) => {
                if self.told.remove(&discriminant(&NetworkNews::Absent)) {
                    self.send(NetworkNews::Back);
                }
                if resolver == Resolver::OutOfReach {
                    self.tell(NetworkNews::NoNames);
                }
                self.carried = Carried::By { passt, since: now, place: here.clone() };
            }
            Err(error) => {
                self.tell(NetworkNews::Ended { said: format!("{}: {error}", self.program.display()) });
                self.carried = Carried::From { at: now + LONGEST_PAUSE, ended: None };
            }
        }
        self.was_of_no_use = false;
        true
    }

    /// Says it once.
    fn tell(&mut self, news: NetworkNews) {
        if self.told.insert(discriminant(&news)) {
            self.send(news);
        }
    }

    fn send(&self, news: NetworkNews) {
        // Nobody may listen any more: the machine is coming to its end then.
        let _ = self.events.send(MachineEvent::Network(news));
    }
}

#[cfg(test)]
mod tests;
