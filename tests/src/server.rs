//! The real image server, in a directory and on a port of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpSocket;

use crate::bucket::TestBucket;
use crate::client::Output;
use crate::process::{Process, Signal};
use crate::programs;
use crate::proxy::{FaultyHttps, Link, link, tls};
use crate::wait::PATIENCE;

/// What a client needs to log in: where, as whom, and which certificate to expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The origin, `https://HOST:PORT`.
    pub url: String,
    /// The token that says who asks.
    pub token: String,
    /// The certificate's fingerprint, `SHA256:` and hex digits.
    pub fingerprint: String,
}

impl Access {
    /// What accepts this server's certificate and no other.
    pub fn tls(&self) -> rustls::ClientConfig {
        tls::pinned(&self.fingerprint)
    }

    /// Returns the same access by way of a link.
    #[must_use]
    pub fn through(&self, link: &Link) -> Self {
        Self { url: link.url(), ..self.clone() }
    }

    /// Returns the same access by way of a proxy that answers wrongly on purpose.
    #[must_use]
    pub fn through_faulty(&self, proxy: &FaultyHttps) -> Self {
        Self { url: proxy.url(), fingerprint: proxy.fingerprint().to_owned(), ..self.clone() }
    }
}

/// A running `satchel-server` with its store in a temporary directory.
#[derive(Debug)]
pub struct TestServer {
    directory: TempDir,
    store: PathBuf,
    admin_token: String,
    fingerprint: String,
    address: SocketAddr,
    /// What its programs find in their environment.
    environment: Vec<(&'static str, String)>,
    /// Keeps the port ours while no server listens.
    _reservation: TcpSocket,
    process: Option<Process>,
}

impl TestServer {
    /// Makes a new store and serves it on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// When the server does not start, as every method does when the server does not do what it is told.
    #[track_caller]
    pub fn start() -> Self {
        let directory = new_directory();
        let store = directory.path().join("store");
        Self::start_in(directory, store, &[], Vec::new())
    }

    /// Makes a new store with its objects in a bucket, under a prefix and by way of a link if there is one, and serves it.
    #[track_caller]
    pub fn start_on(bucket: &TestBucket, prefix: &str, link: Option<&Link>) -> Self {
        let directory = new_directory();
        let store = directory.path().join("store");
        Self::start_in(directory, store, &bucket.arguments(prefix, link), bucket.environment().into())
    }

    /// Makes a new store in a directory of the caller's, on a small disk for example, and serves it.
    #[track_caller]
    pub fn start_at(store: &Path) -> Self {
        let directory = new_directory();
        Self::start_in(directory, store.to_owned(), &[], Vec::new())
    }

    #[track_caller]
    fn start_in(
        directory: TempDir,
        store: PathBuf,
        arguments: &[String],
        environment: Vec<(&'static str, String)>,
    ) -> Self {
        let mut init = command(directory.path(), &environment);
        init.arg("init").arg(&store).args(arguments);
        let said = Output::of(&mut init).ok().stdout;
        let word = |name: &str| -> String {
            let value = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            value
                .unwrap_or_else(|| panic!("`satchel-server init` did not say its {name}:\n{said}"))
                .to_owned()
        };
        let (admin_token, fingerprint) = (word("token"), word("fingerprint"));
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let reservation = link::bind(free).expect("a socket can be bound");
        let address = reservation.local_addr().expect("it has an address");
        let process = serve(directory.path(), &environment, &store, address);
        Self {
            directory,
            store,
            admin_token,
            fingerprint,
            address,
            environment,
            _reservation: reservation,
            process: Some(process),
        }
    }

    /// Returns the store's directory, what `satchel-server` is given as `DIR`.
    pub fn store(&self) -> PathBuf {
        self.store.clone()
    }

    /// Returns where an object of the data plane lies, such as `image/debian/packs`.
    pub fn objects(&self, path: &str) -> PathBuf {
        self.store.join("objects").join(path)
    }

    /// Returns the most memory the server had since it was started, bytes.
    ///
    /// # Panics
    /// When it is stopped.
    #[track_caller]
    pub fn peak_memory_bytes(&self) -> u64 {
        self.process.as_ref().expect("the server is running").peak_memory_bytes()
    }

    /// Returns the address it listens on; it keeps it over restarts.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns its origin.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Returns the fingerprint of its certificate.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Returns the access of the administrator that `init` made.
    pub fn admin(&self) -> Access {
        self.access_with(self.admin_token.clone())
    }

    /// Makes a new token for `user` in `role`: `admin`, `publisher` or `user`.
    #[track_caller]
    pub fn token(&self, user: &str, role: &str) -> String {
        let said = self.run(&["token"], &["--user", user, "--role", role]).ok().stdout;
        said.trim_end().to_owned()
    }

    /// Makes a new token for `user` in `role`, and returns the access it gives.
    #[track_caller]
    pub fn access(&self, user: &str, role: &str) -> Access {
        self.access_with(self.token(user, role))
    }

    fn access_with(&self, token: String) -> Access {
        Access { url: self.url(), token, fingerprint: self.fingerprint.clone() }
    }

    /// Runs `satchel-server VERB DIR ARGUMENTS` beside the running server.
    #[track_caller]
    pub fn run(&self, verb: &[&str], arguments: &[&str]) -> Output {
        let mut command = command(self.directory.path(), &self.environment);
        command.args(verb).arg(&self.store).args(arguments);
        Output::of(&mut command)
    }

    /// Runs `satchel-server VERB ARGUMENTS` on another store than this server's, with this in its environment.
    #[track_caller]
    pub fn satchel_server(
        &self,
        verb: &[&str],
        arguments: &[String],
        environment: &[(&'static str, String)],
    ) -> Output {
        let mut command = command(self.directory.path(), environment);
        command.args(verb).args(arguments);
        Output::of(&mut command)
    }

    /// Checks the whole store with `satchel-server verify`.
    ///
    /// # Panics
    /// When it finds anything wrong, with what it found.
    #[track_caller]
    pub fn verify(&self) {
        let _ = self.run(&["verify"], &[]).ok();
    }

    /// Stops the server, keeps a copy of all it has, and starts it again.
    #[track_caller]
    pub fn back_up(&mut self) -> Backup {
        self.stop();
        let copy =
            tempfile::Builder::new().prefix("satchel-backup-").tempdir().expect("a temporary directory");
        copy_directory(&self.store, &copy.path().join("store"));
        self.start_again();
        Backup { copy }
    }

    /// Stops the server and has it go on from a copy it made earlier, as if nothing had happened since.
    #[track_caller]
    pub fn restore(&mut self, backup: &Backup) {
        self.stop();
        std::fs::remove_dir_all(&self.store).expect("the store can be removed");
        copy_directory(&backup.copy.path().join("store"), &self.store);
        self.start_again();
    }

    /// Collects garbage with `satchel-server gc`; what it said.
    #[track_caller]
    pub fn collect_garbage(&self) -> Output {
        self.run(&["gc"], &[]).ok()
    }

    /// Stops the server in good order.
    #[track_caller]
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("the server is running");
        let status = process.stop(Signal::TERM, PATIENCE);
        assert!(status.success(), "the server did not stop well\n{}", process.report());
    }

    /// Kills the server with SIGKILL, in the middle of whatever it does.
    pub fn kill9(&mut self) {
        self.process.take().expect("the server is running").kill();
    }

    /// Starts the server again, after [`stop`](Self::stop) or [`kill9`](Self::kill9), on the address it had.
    #[track_caller]
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "the server is running");
        self.process = Some(serve(self.directory.path(), &self.environment, &self.store, self.address));
    }

    /// Stops the server in good order and starts it again.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    /// Returns the server's process, to look at its log or how it stands.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the server is running")
    }
}

fn new_directory() -> TempDir {
    tempfile::Builder::new().prefix("satchel-server-").tempdir().expect("a temporary directory")
}

/// What a server had when the copy was made.
#[derive(Debug)]
pub struct Backup {
    copy: TempDir,
}

#[track_caller]
fn copy_directory(from: &Path, to: &Path) {
    let _ = Output::of(Command::new("cp").arg("-a").arg("--").arg(from).arg(to)).ok();
}

#[track_caller]
fn serve(home: &Path, environment: &[(&'static str, String)], store: &Path, listen: SocketAddr) -> Process {
    let mut command = command(home, environment);
    command.arg("serve").arg(store).args(["--listen", &listen.to_string()]);
    let mut process = Process::start("satchel-server", &mut command);
    let address: SocketAddr =
        process.wait_for_line("where it listens", PATIENCE + Duration::from_secs(60), |line| {
            line.strip_prefix("listening on https://")?.trim().parse().ok()
        });
    assert_eq!(address, listen, "the server listens elsewhere");
    process
}

/// Makes a command of the server that sees nothing of this machine's settings, but these.
#[track_caller]
fn command(home: &Path, environment: &[(&'static str, String)]) -> Command {
    let mut command = programs::hermetic(&programs::path("satchel-server"), home);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command
}
