//! Running `satchel-server` and asking it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::{Client, RequestBuilder, Response, StatusCode};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_satchel-server");
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a command to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

/// Runs a command that must succeed and gives what it printed.
#[track_caller]
pub(crate) fn said(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Makes a server and gives its admin token.
pub(crate) fn init(dir: &Path) -> String {
    let printed = said(&["init", text(dir)]);
    printed.lines().find_map(|line| line.strip_prefix("token: ")).unwrap().to_owned()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A serving process; killed when dropped.
pub(crate) struct Serving {
    child: Child,
    pub(crate) url: String,
    log: PathBuf,
}

impl Serving {
    /// Serves a directory and waits until it answers.
    pub(crate) fn start(dir: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(PROGRAM);
        command.args(["serve", text(dir), "--listen", "127.0.0.1:0"]).args(arguments);
        Self::spawn(command, &dir.with_extension("log"))
    }

    /// Runs a command that ends up serving, with its log in a file.
    pub(crate) fn spawn(mut command: Command, log: &Path) -> Self {
        let out = log.with_extension("out");
        command.stdout(File::create(&out).unwrap()).stderr(File::create(log).unwrap()).stdin(Stdio::null());
        let mut child = command.spawn().unwrap();
        let begun = Instant::now();
        loop {
            let printed = std::fs::read_to_string(&out).unwrap();
            if let Some(url) = printed.lines().find_map(where_it_listens) {
                return Self { child, url, log: log.to_owned() };
            }
            let ended = child.try_wait().unwrap();
            let log = || std::fs::read_to_string(log).unwrap();
            assert!(ended.is_none() && begun.elapsed() < PATIENCE, "it does not serve: {ended:?} {}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Has the process read again what can be changed while it runs.
    pub(crate) fn reload(&self) {
        self.signal("-HUP");
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.id().to_string()]).status().unwrap().success());
    }

    /// Ends the process where it stands.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks the process to stop, and waits until it has.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal("-TERM");
        self.child.wait().unwrap()
    }

    /// Waits until the log has what is looked for.
    #[track_caller]
    pub(crate) fn wait_for_log(&self, part: &str) {
        let begun = Instant::now();
        while !self.log().contains(part) {
            assert!(begun.elapsed() < PATIENCE, "no {part:?} in the log: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it printed as data.
    pub(crate) fn printed(&self) -> String {
        std::fs::read_to_string(self.log.with_extension("out")).unwrap()
    }

    pub(crate) fn log(&self) -> String {
        let mut log = String::new();
        File::open(&self.log).unwrap().read_to_string(&mut log).unwrap();
        log
    }
}

/// Where a server says that it listens, in a whole line of either form.
fn where_it_listens(line: &str) -> Option<String> {
    let told = || serde_json::from_str::<serde_json::Value>(line).ok()?["url"].as_str().map(str::to_owned);
    line.strip_prefix("listening on ").map(str::to_owned).or_else(told)
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client with one token.
#[derive(Clone)]
pub(crate) struct Asker {
    client: Client,
    url: String,
    token: String,
}

impl Asker {
    /// Trusts the certificate in the server's directory.
    pub(crate) fn new(dir: &Path, serving: &Serving, token: &str) -> Self {
        let pem = std::fs::read(dir.join("tls/cert.pem")).unwrap();
        Self::with_certificate(&pem, serving, token)
    }

    pub(crate) fn with_certificate(pem: &[u8], serving: &Serving, token: &str) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).map(Result::unwrap));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let client = Client::builder().tls_backend_preconfigured(tls).build().unwrap();
        Self { client, url: serving.url.clone(), token: token.to_owned() }
    }

    fn asking(&self, request: RequestBuilder) -> RequestBuilder {
        request.bearer_auth(&self.token)
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Result<Response> {
        self.asking(self.client.get(format!("{}{path}", self.url))).send().await
    }

    pub(crate) async fn put(&self, path: &str, body: Vec<u8>) -> reqwest::Result<StatusCode> {
        let request = self.client.put(format!("{}{path}", self.url)).body(body);
        Ok(self.asking(request).send().await?.status())
    }

    pub(crate) async fn post(&self, path: &str, body: Vec<u8>) -> reqwest::Result<Response> {
        self.asking(self.client.post(format!("{}{path}", self.url)).body(body)).send().await
    }

    pub(crate) async fn commit(
        &self,
        path: &str,
        manifest: &chunk_format::Manifest,
        key: u8,
    ) -> reqwest::Result<StatusCode> {
        let (bytes, signature) = crate::testing::signed(manifest, key);
        let request = self.client.post(format!("{}{path}", self.url)).body(bytes);
        Ok(self.asking(request).header("satchel-signature", signature).send().await?.status())
    }
}
