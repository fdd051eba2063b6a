//! Networks that misbehave: [`Link`] shapes and breaks connections below TLS, [`FaultyHttps`] answers above it.

mod fault;
mod https;
pub(crate) mod link;
pub(crate) mod tls;
mod wire;

pub use fault::{Class, Fault, Policy, Rule};
pub use https::{Exchange, FaultyHttps};
pub use link::{Counts, Event, Link, Way};
pub use wire::{Direction, Shape};

use tokio::runtime::{Builder, Runtime};

/// The threads a proxy runs on, so that blocking tests can use it.
#[derive(Debug)]
pub(crate) struct Threads(Option<Runtime>);

impl Threads {
    pub(crate) fn start(name: &str) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build();
        Self(Some(runtime.expect("threads can be started")))
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        self.0.as_ref().expect("only drop takes the runtime")
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Unlike a plain drop, allowed within another runtime.
            runtime.shutdown_background();
        }
    }
}
