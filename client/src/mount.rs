//! Serves a desktop's disks on a directory until it is unmounted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chunk_format::Name;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

mod freezes;
mod lease;
pub(crate) mod point;
mod trickle;

use freezes::FreezeDesk;
use lease::{LeaseDesk, LeaseEvent};
pub use point::{COPY_POINT, MACHINE_POINT, PointError, clean_stale, unmount};
use trickle::TrickleEvent;
pub use trickle::{DEFAULT_INTERVAL, Trickle};

use crate::cache::Look;
use crate::control::{self, Connection, Reply, Request};
use crate::desktop::OpenDesktop;
use crate::disk::DiskError;
use crate::fetch::{DownCause, FillError, LinkState};
use crate::fs::DesktopFs;
use crate::fs::fuse::{self, MountOptions};
use crate::hint::explain;
use crate::metrics;
use crate::renew::{self, Ready};
use crate::session::Session;
use crate::signals::{EndSignal, EndSignals};
use crate::status::{DesktopStatus, unsynced_bytes};
use crate::sync::{SyncReport, Syncer};
use crate::upload::{Pace, UploadProgress};

/// How often the cache's index is written.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);
/// How often unmounting is tried again while some program has a file open.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often a sync that someone waits for says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Why a desktop could not be mounted, or was not unmounted cleanly.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The directory cannot be mounted on.
    #[error("{0}")]
    Point(#[from] PointError),
    /// The kernel or `fusermount3` refused.
    #[error("cannot mount on {}", directory.display())]
    Fuse {
        /// The directory.
        directory: PathBuf,
        /// What was said.
        #[source]
        source: std::io::Error,
    },
    /// A socket, a signal handler or a thread could not be had.
    #[error("cannot {action}")]
    Setup {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The last flush failed.
    #[error("what was written last may not have reached the disk")]
    Flush(#[from] DiskError),
}

/// What happens while a desktop is mounted.
#[derive(Clone, Debug)]
pub enum Event {
    /// A dead mount of an earlier process was cleared away.
    StaleMountCleared,
    /// The disks are there.
    Mounted,
    /// No source answers; requests that need one wait.
    LinkDown {
        /// Why.
        reason: String,
        /// Who has to do something about it.
        cause: DownCause,
    },
    /// The sources answer again.
    LinkUp,
    /// Another machine asks for the desktop: it is synced and unmounted, if no program uses it.
    Wanted {
        /// The machine.
        machine: String,
    },
    /// It was not: some program uses the disks, and whoever asks is told so.
    NotHandedOver,
    /// Another machine has taken the desktop: what is done here goes to a fork.
    Taken {
        /// The machine.
        machine: String,
    },
    /// It is unmounted, and so much of what was written is on this machine only; what was discarded is no part of it.
    LeftUnsynced {
        /// Bytes.
        bytes: u64,
    },
    /// The desktop was synced: before it was handed over, or by itself.
    Synced {
        /// The desktop.
        desktop: Name,
        /// What the sync did.
        report: Box<SyncReport>,
        /// Whether by itself: another follows.
        is_routine: bool,
    },
    /// That sync failed.
    NotSynced {
        /// Why.
        reason: String,
        /// Whether it is tried again by itself.
        is_routine: bool,
    },
    /// Another golden version can be taken up at the next start.
    NextReady(Ready),
    /// Asked to unmount, but some program has a file open.
    Busy,
    /// Unmounting.
    Unmounting,
}

/// What is done with a desktop while it is mounted, beside serving its disks.
pub struct Services {
    /// How it is synced.
    pub syncer: Syncer,
    /// How it is synced by itself.
    pub trickle: Trickle,
    /// Where numbers are asked for.
    pub metrics: Option<TcpListener>,
}

/// Serves a session's disks on a directory until it is unmounted, a signal arrives, or someone asks over the control
/// socket. Everything written is durable when this returns.
///
/// # Errors
/// [`MountError`].
pub async fn serve(
    session: Session,
    desktop_directory: &Path,
    directory: &Path,
    options: &MountOptions,
    services: Services,
    events: impl Fn(Event),
) -> Result<(), MountError> {
    let Services { syncer, trickle, metrics } = services;
    let setup = |action| move |source| MountError::Setup { action, source };
    let session = Arc::new(session);
    // Before there is anything that ends badly when one is not heard.
    let mut signals = EndSignals::watch().map_err(setup("watch for signals"))?;
    let Begun { listener, mut unmounted, fs } =
        match begin(&session, desktop_directory, directory, options, &events) {
            Ok(begun) => begun,
            Err(error) => {
                session.release_lease((syncer.now_ms)()).await;
                return Err(error);
            }
        };
    // Not before: what was fetched ahead for a renewal is needed until that was made.
    session.desktop.let_go_of_old().await;
    let starting = Arc::clone(&session);
    tokio::spawn(async move {
        if starting.offline {
            return;
        }
        let record = starting.desktop.store().record();
        if record.pinned {
            starting.desktop.fetcher().limit_background(record.pin_rate_bytes_per_s);
        }
        if let Err(error) = starting.desktop.fetch_for_start().await {
            tracing::info!(
                error = &error as &dyn std::error::Error,
                "nothing is fetched ahead for the start"
            );
        }
        // What a renewal or another machine brought since it was pinned; asked anew, for it may have been let go meanwhile.
        if !starting.desktop.store().record().pinned {
            return;
        }
        match starting.desktop.fill(Look::Index).await {
            Err(
                error @ (FillError::NoRoom { .. } | FillError::NoSpace { .. } | FillError::NotDurable(_)),
            ) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "not all of a pinned desktop is here"
                );
            }
            // It was let go, or the mount ends.
            Ok(_) | Err(FillError::Ended | FillError::Fetch(_)) => {}
        }
    });
    let asked = Arc::new(Notify::new());
    let (desk, refusals) = LeaseDesk::new();
    let (lease_sender, mut lease_events) = mpsc::unbounded_channel();
    let keeping = tokio::spawn(lease::keep(
        Arc::clone(&session),
        Arc::clone(&desk),
        refusals,
        syncer.now_ms,
        lease_sender,
    ));
    let (ready_sender, mut ready) = mpsc::unbounded_channel();
    let watching = (!session.offline).then(|| {
        let (session, machine) = (Arc::clone(&session), syncer.machine.clone());
        tokio::spawn(renew::watch(session, desktop_directory.to_owned(), machine, ready_sender))
    });
    let scraping = metrics.map(|listener| tokio::spawn(metrics::serve(listener, Arc::clone(&session))));
    let freezes = Arc::new(FreezeDesk::default());
    let pace = Arc::new(Pace::new(trickle.limit_bytes_per_s));
    let (trickle_sender, mut trickled) = mpsc::unbounded_channel();
    let trickling = trickle.every.map(|every| {
        let (session, freezes, pace) = (Arc::clone(&session), Arc::clone(&freezes), Arc::clone(&pace));
        tokio::spawn(trickle::trickle(session, syncer.clone(), freezes, pace, every, trickle_sender))
    });
    let answering = tokio::spawn(answer(
        listener,
        Answering {
            session: Arc::clone(&session),
            syncer: Syncer { guest: Some(Arc::clone(&freezes) as Arc<_>), ..syncer.clone() },
            mounted_at: directory.display().to_string(),
            unmount: Arc::clone(&asked),
            desk: Arc::clone(&desk),
            freezes,
            pace,
        },
    ));
    events(Event::Mounted);

    let mut link = session.desktop.fetcher().link();
    let mut save = tokio::time::interval(SAVE_INTERVAL);
    let mut retry = tokio::time::interval(RETRY_INTERVAL);
    let mut attempts = 0;
    let mut is_handing_over = false;
    let outcome = loop {
        let is_meant = tokio::select! {
            outcome = &mut unmounted => break outcome,
            signal = signals.received() => signal == EndSignal::Interrupt,
            () = asked.notified() => true,
            Ok(()) = link.changed() => {
                match link.borrow_and_update().clone() {
                    LinkState::Up => events(Event::LinkUp),
                    LinkState::Down { reason, cause, .. } => events(Event::LinkDown { reason, cause }),
                }
                continue;
            }
            Some(event) = lease_events.recv() => {
                match event {
                    LeaseEvent::Taken { machine } => events(Event::Taken { machine }),
                    LeaseEvent::Wanted { machine } => {
                        events(Event::Wanted { machine });
                        let unmounting = directory.to_owned();
                        match tokio::task::spawn_blocking(move || unmount(&unmounting, false)).await {
                            Ok(Ok(())) => is_handing_over = true,
                            _ => {
                                events(Event::NotHandedOver);
                                let desk = Arc::clone(&desk);
                                tokio::spawn(async move { desk.refuse("its disks are in use".to_owned()).await });
                            }
                        }
                    }
                }
                continue;
            }
            Some(event) = trickled.recv() => {
                events(match event {
                    TrickleEvent::Synced(report) => {
                        let desktop = session.desktop.store().record().desktop;
                        Event::Synced { desktop, report, is_routine: true }
                    }
                    TrickleEvent::NotSynced { reason } => Event::NotSynced { reason, is_routine: true },
                });
                continue;
            }
            Some(next) = ready.recv() => {
                events(Event::NextReady(next));
                continue;
            }
            _ = save.tick() => {
                let session = Arc::clone(&session);
                tokio::task::spawn_blocking(move || session.desktop.cache().save_index());
                continue;
            }
            _ = retry.tick(), if attempts > 0 => {
                // Whoever was in the way may be gone.
                let unmounting = directory.to_owned();
                let _ = tokio::task::spawn_blocking(move || unmount(&unmounting, false)).await;
                continue;
            }
        };
        attempts += 1;
        // Who asks a second time means it: programs that still have a file open get errors from then on.
        let force = attempts > 1 && is_meant;
        events(Event::Unmounting);
        let unmounting = directory.to_owned();
        let result = tokio::task::spawn_blocking(move || unmount(&unmounting, force)).await;
        if force {
            session.desktop.fetcher().stop();
        }
        match result {
            Ok(Ok(())) if force => {
                // Whoever has a file open keeps the mount, and gets errors. Until this process has ended it holds the desktop, for
                // requests may still be on their way.
                fs.take_away();
                std::mem::forget(Arc::clone(&session));
                break Ok(Ok(()));
            }
            Ok(Err(PointError::Busy { .. })) => events(Event::Busy),
            Ok(Err(error)) => tracing::warn!(error = &error as &dyn std::error::Error, "unmounting failed"),
            _ => {}
        }
    };
    if let Ok(Err(error)) = outcome {
        tracing::warn!(%error, "the file system ended with an error");
    }
    answering.abort();
    keeping.abort();
    if let Some(trickling) = trickling {
        trickling.abort();
        // What it was in the middle of has ended before the next sync begins.
        let _ = trickling.await;
    }
    if is_handing_over {
        match syncer.sync(&session.desktop, None).await {
            Ok(report) => {
                let desktop = session.desktop.store().record().desktop;
                events(Event::Synced { desktop, report: Box::new(report), is_routine: false });
            }
            Err(error) => {
                let reason = explain(&error);
                // Whoever asked waits for nothing.
                let told = session.renew_lease((syncer.now_ms)(), Some(format!("its sync failed: {error}")));
                if let Err(error) = told.await {
                    tracing::info!(%error, "the machine that asks for this desktop was not told that it has to wait");
                }
                events(Event::NotSynced { reason, is_routine: false });
            }
        }
    }
    if let Some(watching) = watching {
        watching.abort();
    }
    if let Some(scraping) = scraping {
        scraping.abort();
    }
    control::unlink(desktop_directory);
    let bytes = unsynced_bytes(&session.desktop);
    if bytes > 0 {
        events(Event::LeftUnsynced { bytes });
    }
    let closed = {
        let session = Arc::clone(&session);
        tokio::task::spawn_blocking(move || session.desktop.close()).await
    };
    session.release_lease((syncer.now_ms)()).await;
    match closed {
        Ok(closed) => Ok(closed?),
        Err(error) => Err(MountError::Setup { action: "flush the disks", source: error.into() }),
    }
}

/// Begins to serve.
fn begin(
    session: &Session,
    desktop_directory: &Path,
    directory: &Path,
    options: &MountOptions,
    events: &impl Fn(Event),
) -> Result<Begun, MountError> {
    if clean_stale(directory)? {
        events(Event::StaleMountCleared);
    }
    point::check(directory)?;
    let setup = |action| move |source| MountError::Setup { action, source };
    let listener = control::listen(desktop_directory).map_err(setup("listen for other commands"))?;
    let fs = Arc::new(DesktopFs::new(session.desktop.disks()));
    let fuse = fuse::mount(Arc::clone(&fs), Handle::current(), directory, options)
        .map_err(|source| MountError::Fuse { directory: directory.to_owned(), source })?;
    let (ended, unmounted) = oneshot::channel();
    std::thread::Builder::new()
        .name("fuse".to_owned())
        .spawn(move || drop(ended.send(fuse.run())))
        .map_err(setup("start a thread"))?;
    Ok(Begun { listener, unmounted, fs })
}

/// A mount that has begun.
struct Begun {
    /// Where other commands come in.
    listener: UnixListener,
    /// Tells that the disks are unmounted.
    unmounted: oneshot::Receiver<std::io::Result<()>>,
    /// What is mounted.
    fs: Arc<DesktopFs>,
}

/// What answers take.
#[derive(Clone)]
struct Answering {
    session: Arc<Session>,
    syncer: Syncer,
    mounted_at: String,
    unmount: Arc<Notify>,
    desk: Arc<LeaseDesk>,
    freezes: Arc<FreezeDesk>,
    pace: Arc<Pace>,
}

async fn answer(listener: UnixListener, answering: Answering) {
    while let Ok((stream, _)) = listener.accept().await {
        let Answering { session, syncer, mounted_at, unmount, desk, freezes, pace } = answering.clone();
        tokio::spawn(async move {
            let mut connection = Connection::new(stream);
            let request = match connection.receive::<Request>().await {
                Ok(Some(request)) => request,
                Ok(None) => return,
                Err(error) => {
                    let _ = connection.send(&Reply::Failed { message: error.to_string() }).await;
                    return;
                }
            };
            let reply = match request {
                Request::Status => reply_to(DesktopStatus::of_open(&session, Some(mounted_at))),
                Request::Sync { note } => sync(&session, &syncer, note, &pace, &mut connection).await,
                Request::Pin { pinned: true, limit_bytes_per_s } => {
                    session.desktop.fetcher().limit_background(limit_bytes_per_s);
                    session.desktop.fetcher().pause_background(false);
                    fill(&session, limit_bytes_per_s, &mut connection).await
                }
                Request::Pin { pinned: false, .. } => reply_to(session.desktop.unpin().await),
                Request::Pause { paused } => {
                    session.desktop.fetcher().pause_background(paused);
                    Reply::Done { result: serde_json::Value::Null }
                }
                Request::AwaitWanted => {
                    tokio::select! {
                        machine = desk.wanted() => reply_to(Ok::<_, MountError>(machine)),
                        // Whoever asked has gone away, and attends to nothing.
                        _ = connection.receive::<Request>() => return,
                    }
                }
                Request::AttendFreezes => return freezes.attend(&mut connection).await,
                Request::Still { .. } => {
                    let message = "nobody asked whether a guest holds still".to_owned();
                    Reply::Failed { message }
                }
                Request::Refuse { reason } => {
                    desk.refuse(reason).await;
                    Reply::Done { result: serde_json::Value::Null }
                }
                Request::Unmount => {
                    unmount.notify_one();
                    Reply::Done { result: serde_json::Value::Null }
                }
            };
            // Who asked may have gone away; what was asked for is done all the same.
            let _ = connection.send(&reply).await;
        });
    }
}

async fn sync(
    session: &Session,
    syncer: &Syncer,
    note: Option<String>,
    pace: &Pace,
    connection: &mut Connection,
) -> Reply {
    let progress = Arc::new(UploadProgress::default());
    let syncer = Syncer { progress: Arc::clone(&progress), ..syncer.clone() };
    let syncing = async {
        // The sync that goes on by itself is in the way until it is through.
        let _hurry = pace.hurry();
        syncer.sync_whole(&session.desktop, note).await
    };
    reply_to(telling(syncing, || progress_reply(&progress), connection).await)
}

async fn fill(session: &Session, limit_bytes_per_s: Option<u64>, connection: &mut Connection) -> Reply {
    let desktop = &session.desktop;
    let pinning = desktop.pin(limit_bytes_per_s, desktop.fill(Look::Bytes));
    match telling(pinning, || fill_reply(desktop), connection).await {
        Ok(_) => reply_to(Ok::<_, MountError>(fill_report(desktop))),
        Err(error) => Reply::Failed { message: explain(&error) },
    }
}

/// Does some work, and tells whoever asked for it how far it is. It waits for nobody who does not read that, nor ends when they
/// go away.
async fn telling<T>(
    work: impl Future<Output = T>,
    progress: impl Fn() -> Reply,
    connection: &mut Connection,
) -> T {
    let done = CancellationToken::new();
    let working = async {
        let result = work.await;
        done.cancel();
        result
    };
    // A message that was begun is sent to its end, or what follows could not be told from it.
    let told = async {
        let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
        loop {
            tokio::select! {
                () = done.cancelled() => return,
                _ = ticks.tick() => {}
            }
            if connection.send(&progress()).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(working, told).0
}

/// How far a fill is, as the control socket tells it.
pub fn fill_reply(desktop: &OpenDesktop) -> Reply {
    let FillReport { total_bytes, local_bytes } = fill_report(desktop);
    let fetched_bytes = desktop.fetcher().stats().fetched_bytes;
    let paused = desktop.fetcher().is_background_paused();
    Reply::Filling { total_bytes, local_bytes, fetched_bytes, paused }
}

/// What a fill has done.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct FillReport {
    /// Bytes of the disks that are stored at all.
    pub total_bytes: u64,
    /// Bytes of them that are on this machine.
    pub local_bytes: u64,
}

/// What the fill of a desktop has done so far.
pub fn fill_report(desktop: &OpenDesktop) -> FillReport {
    let (progress, chunk_bytes) = (desktop.fill_progress(), desktop.cache().chunk_size().bytes_u64());
    FillReport {
        total_bytes: progress.total_chunks.load(Ordering::Relaxed) * chunk_bytes,
        local_bytes: progress.local_chunks.load(Ordering::Relaxed) * chunk_bytes,
    }
}

/// How far an upload is, as the control socket tells it.
pub fn progress_reply(progress: &UploadProgress) -> Reply {
    Reply::Progress {
        changed_segments: progress.changed_segments.load(Ordering::Relaxed),
        planned_segments: progress.planned_segments.load(Ordering::Relaxed),
        total_bytes: progress.total_bytes.load(Ordering::Relaxed),
        hashed_bytes: progress.hashed_bytes.load(Ordering::Relaxed),
        known_bytes: progress.known_bytes.load(Ordering::Relaxed),
        new_bytes: progress.new_bytes.load(Ordering::Relaxed),
        sent_bytes: progress.sent_bytes.load(Ordering::Relaxed),
        sent_raw_bytes: progress.sent_raw_bytes.load(Ordering::Relaxed),
        new_segments: progress.new_segments.load(Ordering::Relaxed),
        sent_segments: progress.sent_segments.load(Ordering::Relaxed),
    }
}

fn reply_to<T: serde::Serialize, E: std::error::Error + 'static>(result: Result<T, E>) -> Reply {
    match result.map(serde_json::to_value) {
        Ok(Ok(result)) => Reply::Done { result },
        Ok(Err(error)) => Reply::Failed { message: error.to_string() },
        Err(error) => Reply::Failed { message: explain(&error) },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_waits_for_nobody_who_does_not_read_how_far_it_is() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let is_done = Arc::new(AtomicBool::new(false));
        let asked = tokio::spawn({
            let is_done = Arc::clone(&is_done);
            async move {
                let work = async move {
                    tokio::time::sleep(PROGRESS_INTERVAL * 10).await;
                    is_done.store(true, Ordering::Relaxed);
                };
                // More than a socket holds.
                let progress = || Reply::Failed { message: "a".repeat(32 << 10).repeat(256) };
                let mut connection = Connection::new(ours);
                telling(work, progress, &mut connection).await;
                connection.send(&Reply::Done { result: serde_json::Value::Null }).await.unwrap();
            }
        });
        tokio::time::sleep(PROGRESS_INTERVAL * 20).await;
        assert!(is_done.load(Ordering::Relaxed));
        assert!(!asked.is_finished());
        asked.abort();
        drop(theirs);
    }
}
