//! `satchel-server serve`

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use image_server::{Certificate, Config, Reloader, Server, metrics};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::output;

/// Serve a directory over HTTPS until SIGINT or SIGTERM; SIGHUP has it read its certificate again. Prints where it listens
/// once it answers
#[derive(Args)]
pub(crate) struct Serve {
    /// The server's directory
    dir: PathBuf,
    /// Address and port to listen on; port 0 takes any free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7440")]
    listen: SocketAddr,
    /// Serve numbers for Prometheus at http://ADDR:PORT/metrics, on this machine alone; port 0 takes any free one
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<SocketAddr>,
    /// How the log on stderr is written
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// What the log on stderr tells: error, warn, info (changes and failures, with who asked for them from where), debug
    /// (every request), trace or off
    #[arg(long, value_name = "LEVEL", default_value_t = LevelFilter::INFO)]
    log: LevelFilter,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl Serve {
    pub(crate) async fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        start_log(self.log_format, self.log);
        let server = Server::open(&self.dir, Config::default()).await?;
        let listener =
            TcpListener::bind(self.listen).await.map_err(|error| cannot_listen(self.listen, error))?;
        let address = listener.local_addr().context("cannot tell which port was taken")?;
        let scraped = match self.metrics {
            Some(address) => Some(metrics::listen(address).await?),
            None => None,
        };
        // Before the first signal can arrive: from here on it ends the server and not the process.
        let stop = stop_on_signals()?;
        reload_on_signal(server.reloader())?;
        let (fingerprint, identity) = (server.fingerprint(), server.identity());
        tracing::info!(%address, %fingerprint, server = %identity, "listening");
        if !address.ip().is_loopback() {
            output::message(&format!(
                "reachable from other machines; clients check the fingerprint {fingerprint}"
            ));
        }
        let (metrics_url, scraping) = match scraped {
            Some(scraped) => {
                let address = scraped.local_addr().context("cannot tell which port was taken for metrics")?;
                let url = format!("http://{address}/metrics");
                output::message(&format!("metrics are at {url}"));
                (Some(url), Some(tokio::spawn(metrics::serve(scraped, server.numbers()))))
            }
            None => (None, None),
        };
        let url = format!("https://{address}");
        if json {
            let fingerprint = fingerprint.to_string();
            output::json(
                &json!({ "url": url, "fingerprint": fingerprint, "server": identity, "metrics": metrics_url }),
            )?;
        } else {
            output::data(&format!("listening on {url}"))?;
        }
        server.serve(listener, stop).await;
        if let Some(scraping) = scraping {
            scraping.abort();
        }
        tracing::info!("stopped");
        Ok(ExitCode::SUCCESS)
    }
}

fn cannot_listen(address: SocketAddr, error: io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => " (another program listens there: choose another port with --listen)",
        io::ErrorKind::PermissionDenied => {
            " (ports below 1024 need privileges: choose another with --listen)"
        }
        io::ErrorKind::AddrNotAvailable => " (no network interface here has this address)",
        _ => "",
    };
    anyhow::Error::new(error).context(format!("cannot listen on {address}{hint}"))
}

/// Our own messages at the level asked for, those of libraries only when something is wrong: what libraries log of a
/// request may hold its headers.
fn start_log(format: LogFormat, level: LevelFilter) {
    let filter = Targets::new()
        .with_default(LevelFilter::WARN.min(level))
        .with_target("image_server", level)
        .with_target("satchel_server", level);
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    match format {
        LogFormat::Text => registry.with(layer.with_ansi(io::IsTerminal::is_terminal(&io::stderr()))).init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true).with_current_span(false)).init(),
    }
}

/// The first signal asks the server to stop; the second ends the process where it stands, which loses nothing that was
/// answered for.
fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    let install = |kind| signal(kind).context("cannot catch signals");
    let (mut interrupt, mut terminate) =
        (install(SignalKind::interrupt())?, install(SignalKind::terminate())?);
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        any(&mut interrupt, &mut terminate).await;
        tracing::info!("stopping: requests in flight may finish");
        stopping.cancel();
        any(&mut interrupt, &mut terminate).await;
        output::message("stopped at once");
        std::process::exit(1);
    });
    Ok(stop)
}

/// A certificate that cannot be used leaves the one there is: nobody watches what a signal does.
fn reload_on_signal(certificate: Reloader) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup()).context("cannot catch signals")?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            match certificate.reload() {
                Ok(Certificate { fingerprint, .. }) => {
                    tracing::info!(%fingerprint, "the certificate was read again; connections from now on get it");
                }
                Err(error) => {
                    let cause = image_server::chain(&error);
                    tracing::error!(cause, "the certificate was not read again; the one of before stays");
                }
            }
        }
    });
    Ok(())
}

async fn any(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
