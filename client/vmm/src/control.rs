//! The control socket: how whoever runs a machine speaks to it.
//!
//! A Unix stream socket; one JSON object a line, each way. The machine greets with `{"version":1,...}`, answers each request
//! once, in order, and says on its own when something happens. A line is at most 4 KiB; whoever does not read is hung up on.

use serde::{Deserialize, Serialize};

use crate::faults::Fault;
use crate::machine::End;

pub mod server;

/// The version of this protocol.
pub const VERSION: u32 = 1;
/// The longest line either side sends, except for what metrics need.
pub const MAX_LINE_BYTES: usize = 4096;

/// What can be asked of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// How is it?
    Status,
    /// Counters of its devices.
    Metrics,
    /// Press its power button: the guest shuts down, if it is set to.
    PowerButton,
    /// Switch it off at once.
    ForceOff,
    /// Hold its processors.
    Pause,
    /// Let them go on.
    Resume,
    /// Try again what its disks could not do, and go on.
    Retry,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What is asked.
    pub command: Command,
}

/// The first line the machine says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// [`VERSION`].
    pub version: u32,
    /// Program and version, for people.
    pub program: String,
}

/// What a machine does at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It looks through its disk for what to boot.
    Searching,
    /// It runs.
    Running,
    /// Somebody paused it.
    Paused,
    /// It waits for a disk that failed.
    Waiting,
}

/// How a machine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// What it does.
    pub state: State,
    /// Seconds since its start.
    pub uptime_s: u64,
    /// What its disks could not do.
    pub faults: Vec<Fault>,
    /// Whether its guest's kernel panicked.
    pub panicked: bool,
    /// Processors.
    pub processors: u8,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// The kernel it booted, and where that was found.
    pub booted: serde_json::Value,
    /// What confines it.
    pub sandbox: String,
}

/// What a machine says on its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A disk failed: the machine waits for `retry`.
    DiskFailed {
        /// What failed.
        fault: Fault,
    },
    /// The guest's kernel panicked.
    Panicked,
    /// The machine has come to its end; the socket closes.
    Ended {
        /// How.
        #[serde(flatten)]
        end: End,
    },
}
