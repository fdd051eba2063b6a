//! A server with Debian on it.

use std::path::PathBuf;

use satchel_tests::{Client, RunOptions, TestServer, images};

/// A server with the plain image published as `debian`.
pub(crate) struct DebianServer {
    pub(crate) server: TestServer,
    /// The file that was published.
    pub(crate) image: PathBuf,
    /// The machine that published it.
    pub(crate) publisher: Client,
}

impl DebianServer {
    #[track_caller]
    pub(crate) fn start() -> Self {
        let (server, image) = (TestServer::start(), images::plain());
        let publisher = Client::new("build-machine");
        publisher.login(&server.access("it", "publisher"));
        let _ = publisher.publish(&image, "debian");
        Self { server, image, publisher }
    }
}

/// How these tests run a machine.
pub(crate) fn emulated() -> RunOptions {
    RunOptions {
        engine: "qemu".to_owned(),
        memory: Some("1G".to_owned()),
        cpus: Some("2".to_owned()),
        ..RunOptions::default()
    }
}
