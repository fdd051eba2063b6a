//! Records what a start touches: boots the published version on this machine, twice, and notes the order of first reads.
//!
//! The machine stands on a desktop that exists only here: its overlays are thrown away, nothing of it is committed. What
//! is fetched is kept between the two starts, and after an interruption, in the directory given. Where the golden version has no
//! home disk the machine has one that is blank at first, as most desktops do: to format it, or to find it, is part of a start.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chunk_format::{
    Base as ManifestBase, DiskRole, Features, Manifest, Name, ProfileEntry, SecretKey, Subject,
};
use rustix::fs::{Mode, OFlags};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::desktop::{DesktopError, DesktopStore, NewDesktop, OpenDesktop, Version};
use crate::disk::{Base, BaseChunk, Touches};
use crate::engine::qmp::Qmp;
use crate::engine::{Display, EngineError, Machine, qemu};
use crate::fetch::Fetcher;
use crate::fs::DesktopFs;
use crate::fs::fuse::{self, MountOptions};
use crate::mount::{PointError, clean_stale, unmount};
use crate::profile::{Merged, ProfileStore, Reading, ReadingError, merge};
use crate::source::ChunkSource;
use crate::state::{Login, StateError, make_private_dir};
use crate::volume::DirVolume;

/// Starts of which a profile is made.
const STARTS: u32 = 2;
/// How often it is looked at how far the machine is.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// The end of the console that is kept to look for the text that ends a start, bytes.
const CONSOLE_KEPT_BYTES: usize = 64 << 10;
/// Size of the home disk of a machine whose golden version has none.
const HOME_BYTES: u64 = 1 << 30;
/// How long QEMU may take to end.
const QUIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a start could not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The directory could not be prepared.
    #[error("{0}")]
    State(#[from] StateError),
    /// The version cannot be read here.
    #[error("{0}")]
    Reading(#[from] ReadingError),
    /// A file or socket failed.
    #[error("cannot {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The desktop that is booted could not be put together.
    #[error("{0}")]
    Desktop(#[from] DesktopError),
    /// The desktop could not be written down.
    #[error("{0}")]
    Format(#[from] chunk_format::FormatError),
    /// The disks could not be mounted or unmounted.
    #[error("{0}")]
    Point(#[from] PointError),
    /// The machine failed.
    #[error("{0}")]
    Engine(#[from] EngineError),
    /// The machine ended before it was up.
    #[error("the machine ended by itself after {seconds} s; a start ends when the guest is up and quiet")]
    Ended {
        /// How long it ran.
        seconds: u64,
    },
    /// The machine was not up in time.
    #[error("the machine was not up after {seconds} s, with {chunks} chunks read")]
    TooSlow {
        /// How long it was waited for.
        seconds: u64,
        /// Chunks it had read.
        chunks: usize,
    },
}

/// What happens while a profile is recorded.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// A start begins.
    Starting {
        /// Which one, from 1.
        start: u32,
        /// Of how many.
        starts: u32,
        /// Whether the processor runs the machine itself.
        accelerated: bool,
    },
    /// A start goes on.
    Reading {
        /// Chunks read so far.
        chunks: usize,
    },
    /// A start is over.
    Up {
        /// Chunks it read.
        chunks: usize,
        /// How long it took.
        took: Duration,
    },
}

/// Records starts of a golden version.
pub struct Recorder<'a> {
    /// Where the version's objects come from.
    pub source: Arc<dyn ChunkSource>,
    /// Whose machine this is.
    pub login: &'a Login,
    /// This machine's key.
    pub key: &'a SecretKey,
    /// A directory of its own; what is fetched is kept there.
    pub directory: &'a Path,
    /// Memory of the machine, MiB.
    pub memory_mib: u64,
    /// Processors of the machine.
    pub cpus: u32,
    /// The machine's screen.
    pub display: Display,
    /// A text on the serial console that says that the start is over.
    pub until: Option<String>,
    /// Without such a text it is over when nothing new was read for this long.
    pub quiet: Duration,
    /// The longest a start may take.
    pub limit: Duration,
}

/// What was recorded, and what reads the version's chunks.
pub struct Recorded {
    /// What the starts touched.
    pub entries: Vec<ProfileEntry>,
    /// Fetches for the version's disks.
    pub fetcher: Fetcher,
    /// The version's disks.
    pub disks: Vec<Arc<Base>>,
}

impl Recorder<'_> {
    /// Boots the version until it is up, twice.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn record(&self, golden: &Version, steps: &impl Fn(Step)) -> Result<Recorded, RecordError> {
        let Reading { cache, fetcher } = Reading::open(self.directory, golden, Arc::clone(&self.source))?;
        // The second start finds it as the first left it.
        let home = match golden.manifest.disk(DiskRole::Home) {
            Some(_) => None,
            None => blank_disk(self.directory.join("home.raw"))?,
        };
        let (mut starts, mut disks) = (Vec::new(), Vec::new());
        for start in 1..=STARTS {
            let directory = self.directory.join("start");
            clear(&directory)?;
            make_private_dir(&directory)?;
            let store = self.begin(&directory, golden)?;
            let profiles = ProfileStore::new(directory.clone());
            let cache = Arc::clone(&cache);
            let desktop = OpenDesktop::assemble(store, cache, fetcher.clone(), profiles, Handle::current())?;
            disks = golden
                .manifest
                .disks
                .iter()
                .filter_map(|disk| Some(Arc::clone(&desktop.disk(disk.role)?.view().base)))
                .collect();
            starts.push(self.start(start, golden, &desktop, home.as_deref(), &directory, steps).await?);
            // What was learned of the disk is kept with the cache.
            if let Err(error) = desktop.cache().save_index() {
                tracing::warn!(%error, "the cache's index was not saved");
            }
            clear(&directory)?;
        }
        let Merged { entries, left_out } = merge(&starts);
        if left_out > 0 {
            tracing::warn!(
                chunks = left_out,
                "the starts differ by much: only what all of them read is in the profile; was the guest doing something else?"
            );
        }
        Ok(Recorded { entries, fetcher, disks })
    }

    /// The desktop that is booted: at its first version, which nobody else will see.
    fn begin(&self, directory: &Path, golden: &Version) -> Result<DesktopStore, RecordError> {
        let Subject::Image { image } = &golden.manifest.subject else {
            return Err(DesktopError::NotHere.into());
        };
        let desktop: Name = "recording".parse()?;
        let subject = Subject::Desktop { owner: self.login.user.clone(), desktop: desktop.clone() };
        let publisher = golden.signature.key;
        let manifest = Manifest {
            features: Features::default(),
            subject,
            base: Some(ManifestBase { image: image.clone(), channel: None, version: golden.id, publisher }),
            parent: None,
            sequence: 1,
            created_ms: 0,
            machine: String::new(),
            note: None,
            disks: golden.manifest.disks.clone(),
            boot: golden.manifest.boot,
            system_mode: None,
        };
        let bytes = manifest.encode()?;
        let head = Version::decode(bytes.clone(), self.key.sign(&bytes))?;
        let new = NewDesktop {
            server: self.login.server,
            owner: self.login.user.clone(),
            desktop,
            id: head.id,
            publisher,
        };
        let volume = DirVolume::open(directory).map_err(io("open the directory of the recording"))?;
        Ok(DesktopStore::create(Arc::new(volume), new, &head, golden)?)
    }

    async fn start(
        &self,
        start: u32,
        golden: &Version,
        desktop: &OpenDesktop,
        blank_home: Option<&Path>,
        directory: &Path,
        steps: &impl Fn(Step),
    ) -> Result<Vec<ProfileEntry>, RecordError> {
        let touches: Vec<Arc<Touches>> = golden
            .manifest
            .disks
            .iter()
            .filter_map(|disk| Some(desktop.disk(disk.role)?.note_touches()))
            .collect();
        let mut mounted = Mounted::new(desktop, &directory.join("disks"))?;
        let own_home = desktop.disk(DiskRole::Home).map(|_| mounted.directory.join("home.raw"));
        let machine = Machine {
            name: "recording".to_owned(),
            system: mounted.directory.join("system.raw"),
            home: own_home.or_else(|| blank_home.map(Path::to_owned)),
            firmware: golden.manifest.boot.firmware,
            settings: directory.join("uefi-settings.fd"),
            directory: directory.to_owned(),
            memory_mib: self.memory_mib,
            cpus: self.cpus,
            display: self.display,
        };
        let began = Instant::now();
        let mut running = qemu::start(&machine)?;
        steps(Step::Starting { start, starts: STARTS, accelerated: running.accelerated });
        let (mut qmp, _events) = Qmp::open(running.control).await?;
        let (up, mut is_up) = oneshot::channel();
        let console = UnixStream::from_std(running.serial).map_err(io("read the machine's console"))?;
        let listening = tokio::spawn(listen(console, self.until.clone(), up));
        let count = || touches.iter().map(|touches| touches.count()).sum::<usize>();
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        loop {
            tokio::select! {
                _ = running.process.wait() => {
                    return Err(RecordError::Ended { seconds: began.elapsed().as_secs() });
                }
                Ok(()) = &mut is_up => break,
                _ = looks.tick() => {}
            }
            steps(Step::Reading { chunks: count() });
            let quiet = touches.iter().filter_map(|touches| touches.quiet_for()).min();
            if self.until.is_none() && quiet.is_some_and(|quiet| quiet >= self.quiet) {
                break;
            }
            if began.elapsed() >= self.limit {
                let seconds = began.elapsed().as_secs();
                return Err(RecordError::TooSlow { seconds, chunks: count() });
            }
        }
        let took = began.elapsed();
        steps(Step::Up { chunks: count(), took });
        let orders: Vec<_> = touches.iter().map(|touches| touches.order()).collect();
        listening.abort();
        // Its disks are thrown away: pulling the plug is as good as a shutdown, and touches nothing more.
        if qmp.send("quit").await.is_err()
            || tokio::time::timeout(QUIT_TIMEOUT, running.process.wait()).await.is_err()
        {
            let _ = running.process.kill().await;
        }
        mounted.fetcher = None;
        drop(mounted);
        Ok(stored(desktop, golden, orders))
    }
}

/// The entries of what was touched, without chunks that are all zeros.
fn stored(
    desktop: &OpenDesktop,
    golden: &Version,
    orders: Vec<Vec<chunk_format::ChunkIndex>>,
) -> Vec<ProfileEntry> {
    let mut entries = Vec::new();
    for ((at, described), order) in (0u8..).zip(&golden.manifest.disks).zip(orders) {
        let Some(disk) = desktop.disk(described.role) else { continue };
        let base = Arc::clone(&disk.view().base);
        let is_stored = |chunk: &chunk_format::ChunkIndex| matches!(base.chunk(*chunk), BaseChunk::Known(..));
        entries.extend(order.into_iter().filter(is_stored).map(|chunk| ProfileEntry { disk: at, chunk }));
    }
    entries
}

/// Reads the machine's console, and tells when it says the text.
async fn listen(mut console: UnixStream, until: Option<String>, up: oneshot::Sender<()>) {
    let mut up = Some(up);
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read) = console.read(&mut buffer).await
        && read > 0
    {
        said.extend_from_slice(buffer.get(..read).unwrap_or_default());
        if let Some(until) = &until
            && String::from_utf8_lossy(&said).contains(until)
            && let Some(up) = up.take()
        {
            let _ = up.send(());
        }
        let spare = said.len().saturating_sub(CONSOLE_KEPT_BYTES);
        said.drain(..spare);
    }
}

/// Disks mounted in this process, which itself never looks at them; unmounted when dropped.
struct Mounted {
    directory: PathBuf,
    /// Ends reads that wait for the network, in which the machine may be even when it is killed; none once that ended well.
    fetcher: Option<Fetcher>,
    serving: Option<std::thread::JoinHandle<std::io::Result<()>>>,
}

impl Mounted {
    fn new(desktop: &OpenDesktop, directory: &Path) -> Result<Self, RecordError> {
        make_private_dir(directory)?;
        let options = MountOptions { name: "satchel:recording".to_owned(), allow_other: false, threads: 4 };
        let fs = Arc::new(DesktopFs::new(desktop.disks()));
        let fuse = fuse::mount(fs, Handle::current(), directory, &options).map_err(io("mount the disks"))?;
        let serving = std::thread::Builder::new()
            .name("fuse".to_owned())
            .spawn(move || fuse.run())
            .map_err(io("start a thread"))?;
        let fetcher = Some(desktop.fetcher().clone());
        Ok(Self { directory: directory.to_owned(), fetcher, serving: Some(serving) })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(fetcher) = &self.fetcher {
            fetcher.stop();
        }
        if let Err(error) = unmount(&self.directory, true) {
            tracing::warn!(error = &error as &dyn std::error::Error, "the recorded disks stay mounted");
            return;
        }
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

/// Makes a blank disk, if the file system takes what goes past its cache, as the machine's does.
fn blank_disk(path: PathBuf) -> Result<Option<PathBuf>, RecordError> {
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::RDWR | OFlags::CLOEXEC | OFlags::DIRECT;
    let file = match rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => file,
        Err(rustix::io::Errno::INVAL) => {
            tracing::warn!(
                path = %path.display(),
                "the file system takes no direct I/O: the recorded machine has no home disk"
            );
            // It was made before it was refused.
            let _ = std::fs::remove_file(&path);
            return Ok(None);
        }
        Err(error) => return Err(io("make a home disk")(error.into())),
    };
    rustix::fs::ftruncate(&file, HOME_BYTES).map_err(|error| io("make a home disk")(error.into()))?;
    Ok(Some(path))
}

/// Removes what a start left, a dead mount included.
fn clear(directory: &Path) -> Result<(), RecordError> {
    if !directory.exists() {
        return Ok(());
    }
    clean_stale(&directory.join("disks"))?;
    std::fs::remove_dir_all(directory).map_err(io("clear the directory of the recording"))
}

fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> RecordError {
    move |source| RecordError::Io { action, source }
}
