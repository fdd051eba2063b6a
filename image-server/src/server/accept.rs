//! Taking connections, and ending them when the server stops.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection;
use crate::app::App;
use crate::metrics::OpenConnection;
use crate::tls::CurrentTls;

/// The pause after a failed accept, which mostly means that the process has no file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves connections until `stop` is cancelled and those there are have ended or were cut at the deadline.
pub(super) async fn run(
    app: &Arc<App>,
    tls: &CurrentTls,
    router: Router,
    listener: TcpListener,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(app.limits.connections));
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let (stream, from, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let acceptor = TlsAcceptor::from(tls.get().config.clone());
        let (router, limits) = (router.clone(), app.limits.clone());
        let (stop, cut) = (stop.clone(), cut.clone());
        let open = OpenConnection::new(&app.counters);
        connections.spawn(async move {
            let (_place, _open) = (place, open);
            tokio::select! {
                () = connection::serve(stream, from, acceptor, router, limits, stop) => {}
                () = cut.cancelled() => {}
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(app.limits.shutdown_grace, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "cut connections that did not finish in time");
        cut.cancel();
        connections.wait().await;
    }
}

/// Waits for a free place, then for a connection: more than there are places wait in the kernel's queue.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, mut from) = listener.accept().await?;
    // A socket for both families names clients of the older one in the form of the newer.
    from.set_ip(from.ip().to_canonical());
    Ok((stream, from, place))
}
