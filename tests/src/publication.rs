//! Where most stories begin: a server with an image on it.

use std::path::PathBuf;

use crate::client::Client;
use crate::disk::Content;
use crate::server::{Access, TestServer};

/// A server with one image published on it, `golden`, whose content a seed repeats.
#[derive(Debug)]
pub struct Publication {
    /// The server.
    pub server: TestServer,
    /// The machine it was published from, as the user `it`.
    pub publisher: Client,
    /// What is in the image.
    pub content: Content,
    /// The file that was published.
    pub disk: PathBuf,
}

impl Publication {
    /// Starts a server and publishes a disk of `size_bytes`, a multiple of 4,096.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn new(seed: u64, size_bytes: u64) -> Self {
        Self::on(TestServer::start(), seed, size_bytes)
    }

    /// Publishes as [`new`](Self::new) does, on a server that runs.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn on(server: TestServer, seed: u64, size_bytes: u64) -> Self {
        let publisher = Client::new("build-machine");
        publisher.login(&server.access("it", "publisher"));
        let disk = publisher.directory().join("disk.raw");
        let content = Content::new(seed);
        content.write_to(&disk, size_bytes);
        let _ = publisher.publish(&disk, "golden");
        Self { server, publisher, content, disk }
    }

    /// Returns an access for the person whose desktops these are, `alice`.
    #[track_caller]
    pub fn access(&self) -> Access {
        self.server.access("alice", "user")
    }

    /// Sets up a machine of alice's.
    #[track_caller]
    pub fn machine(&self, name: &str) -> Client {
        let machine = Client::new(name);
        machine.login(&self.access());
        machine
    }

    /// Sets up a machine of alice's and makes the desktop `work`, with a home disk of 16 MiB.
    #[track_caller]
    pub fn machine_with_desktop(&self, name: &str) -> Client {
        let machine = self.machine(name);
        machine.create("work", "golden", Some("16M"));
        machine
    }
}
