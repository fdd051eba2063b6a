//! Answers whoever runs the machine, until it ends.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::json;

use super::callers::Callers;
use super::devices::Watched;
use super::switch::{Step, Switch};
use crate::control::server::Server;
use crate::control::{self, Command, State, Status};
use crate::event::Event;
use crate::faults::{Fault, Faults};
use crate::machine::{End, Machine};

/// What is told of the machine besides what it does.
pub(super) struct About {
    pub(super) started: Instant,
    pub(super) processors: u8,
    pub(super) memory_bytes: u64,
    pub(super) booted: serde_json::Value,
    pub(super) sandbox: String,
}

/// What was said already.
#[derive(Default)]
struct Told {
    faults: Vec<Fault>,
    panicked: bool,
}

/// Watches over a machine.
pub(super) struct Supervisor {
    machine: Machine,
    server: Server,
    faults: Arc<Faults>,
    told: Told,
    watched: Watched,
    callers: Callers,
    about: About,
    switch: Switch,
    paused_by_hand: bool,
    forced: bool,
}

impl Supervisor {
    pub(super) fn new(
        machine: Machine,
        server: Server,
        faults: Arc<Faults>,
        watched: Watched,
        about: About,
    ) -> Supervisor {
        Supervisor {
            machine,
            server,
            faults,
            told: Told::default(),
            watched,
            callers: Callers::default(),
            about,
            switch: Switch::default(),
            paused_by_hand: false,
            forced: false,
        }
    }

    /// Answers whoever runs the machine until it ends.
    pub(super) fn watch(mut self, news: &Event, interrupt: &Event, host_ends: &Event) -> End {
        loop {
            self.wait([news, interrupt, host_ends]);
            news.take();
            if host_ends.take() {
                let step = self.switch.told_to_end();
                self.take(step);
            }
            if interrupt.take() {
                let step = self.switch.interrupted();
                self.take(step);
            }
            self.tell_news();
            self.serve();
            if self.server.is_deserted() {
                self.see_to_deserted();
            }
            self.connect_ports();
            let end = if self.forced { Some(End::Forced) } else { self.machine.ending().end() };
            if let Some(end) = end {
                self.tell_news();
                self.machine.end();
                self.server.tell(&control::Event::Ended { end: end.clone() });
                return end;
            }
        }
    }

    /// Ends a machine by itself whose only client is gone: it would run unseen, and keep its disks from everyone.
    fn see_to_deserted(&mut self) {
        // Whoever held it by hand lets nothing go on any more.
        if std::mem::take(&mut self.paused_by_hand) {
            self.go_on();
        }
        let is_held = !self.faults.list().is_empty();
        if let Some(step) = self.switch.deserted(is_held, Instant::now()) {
            tracing::warn!(?step, "whoever ran the machine is gone");
            self.take(step);
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Press => self.machine.press_power_button(),
            Step::ForceOff => self.forced = true,
        }
    }

    fn wait(&self, events: [&Event; 3]) {
        let events = events.map(|event| PollFd::from_borrowed_fd(event.as_fd(), PollFlags::IN));
        let mut polled = Vec::from(events);
        polled.extend(self.server.polled());
        if let Some((listener, _)) = &self.watched.vsock {
            polled.push(PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN));
        }
        for caller in self.callers.streams() {
            polled.push(PollFd::new(caller, PollFlags::IN));
        }
        // A moment more, so that it has passed then.
        let until_step = self.switch.patience(Instant::now()).map(|left| left + Duration::from_millis(1));
        let patience = [self.callers.patience(), until_step].into_iter().flatten().min();
        let patience = patience.and_then(|left| Timespec::try_from(left).ok());
        // It fails only when it is interrupted: then there is nothing to do.
        let _ = rustix::event::poll(&mut polled, patience.as_ref());
    }

    /// Says what happened, and holds the machine while a disk waits.
    fn tell_news(&mut self) {
        let faults = self.faults.list();
        for fault in faults.iter().filter(|fault| !self.told.faults.contains(fault)) {
            self.server.tell(&control::Event::DiskFailed { fault: fault.clone() });
        }
        if !faults.is_empty() && !self.machine.is_paused() {
            self.machine.pause();
        }
        self.told.faults = faults;
        if self.machine.ending().has_panicked() && !self.told.panicked {
            self.told.panicked = true;
            self.server.tell(&control::Event::Panicked);
        }
    }

    fn serve(&mut self) {
        let mut server = std::mem::take(&mut self.server);
        server.serve(|command| self.answer(command));
        self.server = server;
    }

    fn answer(&mut self, command: Command) -> serde_json::Value {
        match command {
            Command::Status => return serde_json::to_value(self.status()).unwrap_or_default(),
            Command::Metrics => return self.metrics(),
            Command::PowerButton => self.machine.press_power_button(),
            Command::ForceOff => self.forced = true,
            Command::Pause => {
                self.paused_by_hand = true;
                self.machine.pause();
            }
            Command::Resume => {
                self.paused_by_hand = false;
                self.go_on();
            }
            Command::Retry => {
                self.faults.try_again();
                // What fails once more is told once more.
                self.told.faults.retain(|fault| fault.is_final);
                self.go_on();
            }
        }
        json!({ "state": self.state() })
    }

    /// Lets the processors run, when neither a person nor a disk holds them.
    fn go_on(&mut self) {
        if !self.paused_by_hand && self.faults.list().is_empty() {
            self.machine.resume();
        }
    }

    fn state(&self) -> State {
        match (self.faults.list().is_empty(), self.machine.is_paused()) {
            (false, _) => State::Waiting,
            (true, true) => State::Paused,
            (true, false) => State::Running,
        }
    }

    fn status(&self) -> Status {
        Status {
            state: self.state(),
            uptime_s: self.about.started.elapsed().as_secs(),
            faults: self.faults.list(),
            panicked: self.machine.ending().has_panicked(),
            processors: self.about.processors,
            memory_bytes: self.about.memory_bytes,
            booted: self.about.booted.clone(),
            sandbox: self.about.sandbox.clone(),
        }
    }

    fn metrics(&self) -> serde_json::Value {
        let disks: serde_json::Map<String, serde_json::Value> = self
            .watched
            .disks
            .iter()
            .map(|(id, disk)| {
                let counters = [
                    ("reads", &disk.reads),
                    ("read_bytes", &disk.read_bytes),
                    ("writes", &disk.writes),
                    ("written_bytes", &disk.written_bytes),
                    ("flushes", &disk.flushes),
                    ("discards", &disk.discards),
                    ("refused", &disk.refused),
                ];
                let counters =
                    counters.map(|(name, counter)| (name.to_owned(), json!(counter.load(Ordering::Relaxed))));
                (id.clone(), counters.into_iter().collect())
            })
            .collect();
        let link = self.watched.link.as_ref().map(|link| link.is_up());
        json!({ "disks": disks, "network_is_up": link })
    }

    /// Connects who asks for a port of the guest.
    fn connect_ports(&mut self) {
        let Some((listener, handle)) = &self.watched.vsock else { return };
        for (port, stream) in self.callers.take(listener) {
            if let Err(error) = handle.connect(port, stream) {
                tracing::warn!(port, %error, "a connection to the guest is refused");
            }
        }
    }
}
