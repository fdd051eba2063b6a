//! `satchel cache`

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use chunk_format::Name;
use clap::{Args, Subcommand};
use satchel_client::serve::{self, Sent, ServedCache};
use satchel_client::signals::EndSignals;
use satchel_client::source::DEFAULT_PORT;
use serde::Serialize;

use super::Context;
use super::quantity::ByteSize;

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DEFAULT_PORT);

#[derive(Debug, Subcommand)]
pub(super) enum CacheCommand {
    /// Serve what this machine has fetched of a desktop to your other machines, until interrupted
    ///
    /// Prints one address. On the other machine, `satchel source DESKTOP --add -` takes it on its standard input and has the
    /// desktop fetch from here first. Whoever has the address can read what is in this cache, your home's files and what
    /// was written here and is not synced yet included: give it to your own machines only. The desktop must not be mounted
    /// here; nothing of it is changed, and no server is needed.
    Serve(ServeArgs),
}

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// The desktop
    desktop: Name,
    /// Address and port to listen on: 0.0.0.0:7443 for other machines; port 0 takes any free one
    #[arg(long, value_name = "ADDR:PORT", default_value_t = DEFAULT_LISTEN)]
    listen: SocketAddr,
    /// Make another address; those printed before open nothing any more
    #[arg(long)]
    new_address: bool,
}

#[derive(Serialize)]
struct Serving {
    desktop: Name,
    /// With its secret.
    address: String,
    listen: SocketAddr,
    held_bytes: u64,
}

pub(super) async fn run(context: &Context, args: ServeArgs) -> anyhow::Result<()> {
    let state = context.state()?;
    let printer = context.printer;
    // First, so that no address is made void for one that is then not served.
    let listener = serve::listen(args.listen).await?;
    let served = ServedCache::open(&state, &args.desktop, args.new_address)?;
    let listen = listener.local_addr().context("cannot tell which port was taken")?;
    // Before the address is there for anyone: from here on a signal ends the serving, and that ends well.
    let mut signals = EndSignals::watch().context("cannot watch for signals")?;
    let address = served.address(listen)?.reveal();
    let held_bytes = served.held_bytes();
    if held_bytes == 0 {
        printer.warning(&format!(
            "nothing of {} was fetched yet, so that there is nothing to serve: `satchel pin {0}` fetches all of it",
            args.desktop
        ));
    }
    printer.message(&format!(
        "serving {} of {desktop} until Ctrl-C. On the other machine: satchel source {desktop} --add -, and \
         paste the address there\n\
         whoever has the address can read what is in this cache, home and what is not synced yet included; \
         `satchel cache serve {desktop} --new-address` ends that",
        ByteSize(held_bytes),
        desktop = args.desktop
    ));
    if listen.ip().is_loopback() {
        printer.message(&format!(
            "only this machine can reach it; for others: --listen 0.0.0.0:{}",
            listen.port()
        ));
    }
    let serving = Serving { desktop: args.desktop, address, listen, held_bytes };
    printer.result(&serving, |serving| serving.address.clone())?;
    let sent = served.sent();
    tokio::select! {
        () = served.serve(listener) => {}
        _ = signals.received() => {}
    }
    printer.message(&said(&sent));
    Ok(())
}

fn said(sent: &Sent) -> String {
    let (chunks, bytes) = (sent.chunks.load(Ordering::Relaxed), sent.bytes.load(Ordering::Relaxed));
    format!("stopped; {chunks} chunks were sent, {}", ByteSize(bytes))
}
