//! A bucket of S3's protocol, for servers that keep their objects in one.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::proxy::{Link, Threads, tls};

const BUCKET: &str = "desktops";
const KEY_ID: &str = "test-key";
const SECRET: &str = "test-secret";

/// An S3 server on 127.0.0.1, over TLS, with one empty bucket, whose objects are files of a temporary directory.
pub struct TestBucket {
    directory: TempDir,
    /// The certificate that programs are told to trust.
    certificate: String,
    address: SocketAddr,
    _threads: Threads,
}

impl fmt::Debug for TestBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestBucket").field("address", &self.address).finish_non_exhaustive()
    }
}

impl TestBucket {
    /// Starts it on a free port.
    pub fn start() -> Self {
        let directory =
            tempfile::Builder::new().prefix("satchel-bucket-").tempdir().expect("a temporary directory");
        std::fs::create_dir(directory.path().join(BUCKET)).expect("a bucket is a directory");
        let (config, _, pem) = tls::new_identity_and_pem();
        let certificate = directory.path().join("certificate.pem");
        std::fs::write(&certificate, pem).expect("a file can be written");
        let certificate = certificate.to_str().expect("UTF-8").to_owned();
        let files = FileSystem::new(directory.path()).expect("the directory can be served");
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        let threads = Threads::start("bucket");
        let listener =
            std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port can be had");
        listener.set_nonblocking(true).expect("a socket can be made non-blocking");
        let address = listener.local_addr().expect("a bound socket has an address");
        threads.runtime().spawn(serve(service.build(), TlsAcceptor::from(config), listener));
        Self { directory, certificate, address, _threads: threads }
    }

    /// Returns the address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns where the files of the objects lie whose names begin with `prefix`.
    pub fn objects(&self, prefix: &str) -> PathBuf {
        self.directory.path().join(BUCKET).join(prefix)
    }

    /// Lists the files of the objects below `prefix`, without what the S3 server adds for itself.
    ///
    /// # Panics
    /// When there are none.
    pub fn files(&self, prefix: &str) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut directories = vec![self.objects(prefix)];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(&directory).expect("a directory can be read") {
                let entry = entry.expect("an entry can be read");
                let path = entry.path();
                if path.is_dir() {
                    directories.push(path);
                } else if !entry.file_name().to_string_lossy().starts_with('.') {
                    files.push(path);
                }
            }
        }
        files.sort();
        files
    }

    /// Returns the words of `satchel-server init` that name what lies under `prefix` in it, by way of a link if there is one.
    pub fn arguments(&self, prefix: &str, link: Option<&Link>) -> [String; 4] {
        let address = link.map_or(self.address, Link::address);
        [
            "--bucket".to_owned(),
            format!("s3://{BUCKET}/{prefix}"),
            "--bucket-endpoint".to_owned(),
            format!("https://{address}"),
        ]
    }

    /// Returns what a program must find in its environment to use it.
    pub fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("AWS_ACCESS_KEY_ID", KEY_ID.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
            ("SSL_CERT_FILE", self.certificate.clone()),
        ]
    }
}

async fn serve(service: S3Service, tls: TlsAcceptor, listener: std::net::TcpListener) {
    let listener = TcpListener::from_std(listener).expect("a runtime takes a socket");
    while let Ok((socket, _)) = listener.accept().await {
        let (service, tls) = (service.clone(), tls.clone());
        tokio::spawn(async move {
            // Clients come and go.
            let Ok(socket) = tls.accept(socket).await else { return };
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
        });
    }
}
