//! A volume in memory that loses power on command.
//!
//! The fault model: what a completed `sync_data` covered survives. Each 512-byte sector written or punched since may
//! or may not have reached the disk, each on its own, in its latest or an earlier value. Created, replaced and removed
//! names since the last `sync_names` survive up to some point in their order, as on a journalling file system. The
//! sync that the power cut hits has not completed.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Volume, VolumeFile};

const SECTOR: usize = 512;

/// When the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerCut {
    /// Never.
    Never,
    /// In the nth sync of the volume, counted from 1: that sync fails, and everything after it.
    AtSync(u64),
}

/// A directory of files in memory, with a power switch.
#[derive(Clone)]
pub struct SimulatedVolume {
    state: Arc<Mutex<State>>,
}

struct State {
    files: Vec<Content>,
    /// Names as programs see them.
    names: BTreeMap<String, usize>,
    /// Names as they were at the last `sync_names`, and each state since.
    durable_names: Vec<BTreeMap<String, usize>>,
    syncs: u64,
    cut: PowerCut,
    off: bool,
    failing_sync: Option<(u64, io::ErrorKind)>,
    full_after_bytes: Option<u64>,
    written_bytes: u64,
    /// Writes and replacements up to the one that finds no space.
    full_in: Option<u64>,
}

#[derive(Clone)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Values of sectors written since the last sync, oldest first.
    unsynced: BTreeMap<usize, Vec<[u8; SECTOR]>>,
}

impl Default for SimulatedVolume {
    fn default() -> Self {
        Self::new(PowerCut::Never)
    }
}

impl SimulatedVolume {
    /// Makes an empty volume that will lose power as told.
    pub fn new(cut: PowerCut) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                files: Vec::new(),
                names: BTreeMap::new(),
                durable_names: vec![BTreeMap::new()],
                syncs: 0,
                cut,
                off: false,
                failing_sync: None,
                full_after_bytes: None,
                written_bytes: 0,
                full_in: None,
            })),
        }
    }

    /// Syncs begun so far.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// Whether the power went.
    pub fn is_off(&self) -> bool {
        self.lock().off
    }

    /// Changes when the power goes.
    pub fn cut_power_at(&self, cut: PowerCut) {
        self.lock().cut = cut;
    }

    /// Lets the nth sync of the volume fail, with the power on and what it should have covered still unsynced.
    pub fn fail_sync(&self, nth: u64) {
        self.lock().failing_sync = Some((nth, io::ErrorKind::Other));
    }

    /// Lets the nth sync of the volume find no space, as where space is given out when data goes to the disk.
    pub fn be_full_at_sync(&self, nth: u64) {
        self.lock().failing_sync = Some((nth, io::ErrorKind::StorageFull));
    }

    /// Takes the power away now: every later call fails.
    pub fn cut_power(&self) {
        self.lock().off = true;
    }

    /// Lets writes fail with `StorageFull` after this many more bytes; `None` lifts it.
    pub fn limit_writes(&self, bytes: Option<u64>) {
        let mut state = self.lock();
        state.full_after_bytes = bytes.map(|bytes| state.written_bytes + bytes);
    }

    /// Lets the nth write or replacement from now fail with `StorageFull`, counted from 1; those after it find space again.
    pub fn be_full_once_at(&self, nth: u64) {
        self.lock().full_in = Some(nth);
    }

    /// Whether [`SimulatedVolume::be_full_once_at`] has its write still before it.
    pub fn is_yet_to_be_full(&self) -> bool {
        self.lock().full_in.is_some()
    }

    /// What a reboot finds: a new volume with power, where everything not synced survived or not as `choose` says.
    /// `choose(n)` answers a number below `n`.
    pub fn after_reboot(&self, cut: PowerCut, choose: &mut dyn FnMut(usize) -> usize) -> Self {
        let state = self.lock();
        let names = state.durable_names[choose(state.durable_names.len())].clone();
        let files = state.files.iter().map(|content| content.after_reboot(choose)).collect();
        let reboot = Self::new(cut);
        {
            let mut fresh = reboot.lock();
            fresh.files = files;
            fresh.durable_names = vec![names.clone()];
            fresh.names = names;
        }
        reboot
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn powered(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.lock();
        if state.off { Err(io::Error::other("the power is off")) } else { Ok(state) }
    }

    fn file(&self, at: usize) -> Arc<dyn VolumeFile> {
        Arc::new(SimulatedFile { volume: self.clone(), at })
    }
}

impl State {
    fn sync(&mut self) -> io::Result<()> {
        self.syncs += 1;
        if let PowerCut::AtSync(at) = self.cut
            && self.syncs >= at
        {
            self.off = true;
            return Err(io::Error::other("the power went"));
        }
        if let Some((nth, kind)) = self.failing_sync
            && nth == self.syncs
        {
            return Err(io::Error::new(kind, "the disk failed"));
        }
        Ok(())
    }

    /// Counts a write or replacement, or has it find no space.
    fn take_space(&mut self) -> io::Result<()> {
        self.full_in = match self.full_in {
            Some(..=1) => {
                self.full_in = None;
                return Err(io::ErrorKind::StorageFull.into());
            }
            left => left.map(|left| left - 1),
        };
        Ok(())
    }

    fn rename_point(&mut self) {
        self.durable_names.push(self.names.clone());
    }
}

impl Content {
    fn new(len: usize) -> Self {
        Self { now: vec![0; len], durable: vec![0; len], unsynced: BTreeMap::new() }
    }

    fn store(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if end > self.now.len() {
            self.now.resize(end, 0);
            self.durable.resize(end, 0);
        }
        self.now[offset..end].copy_from_slice(bytes);
        for sector in offset / SECTOR..end.div_ceil(SECTOR) {
            let mut value = [0; SECTOR];
            let from = sector * SECTOR;
            let to = (from + SECTOR).min(self.now.len());
            value[..to - from].copy_from_slice(&self.now[from..to]);
            self.unsynced.entry(sector).or_default().push(value);
        }
    }

    fn after_reboot(&self, choose: &mut dyn FnMut(usize) -> usize) -> Self {
        let mut bytes = self.durable.clone();
        for (sector, values) in &self.unsynced {
            let chosen = choose(values.len() + 1);
            if chosen > 0 {
                let from = sector * SECTOR;
                let to = (from + SECTOR).min(bytes.len());
                bytes[from..to].copy_from_slice(&values[chosen - 1][..to - from]);
            }
        }
        Self { now: bytes.clone(), durable: bytes, unsynced: BTreeMap::new() }
    }
}

impl Volume for SimulatedVolume {
    fn create(&self, name: &str, len_bytes: u64) -> io::Result<Arc<dyn VolumeFile>> {
        let mut state = self.powered()?;
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let at = state.files.len();
        state.files.push(Content::new(to_usize(len_bytes)?));
        state.names.insert(name.to_owned(), at);
        state.rename_point();
        drop(state);
        Ok(self.file(at))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn VolumeFile>> {
        let at = *self.powered()?.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.file(at))
    }

    fn read(&self, name: &str, limit_bytes: usize) -> io::Result<Vec<u8>> {
        let state = self.powered()?;
        let at = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let bytes = state.files[at].now.clone();
        if bytes.len() > limit_bytes { Err(io::ErrorKind::InvalidData.into()) } else { Ok(bytes) }
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.powered()?;
        state.take_space()?;
        state.sync()?;
        let at = state.files.len();
        let mut content = Content::new(bytes.len());
        content.now.copy_from_slice(bytes);
        content.durable.copy_from_slice(bytes);
        state.files.push(content);
        state.names.insert(name.to_owned(), at);
        state.rename_point();
        drop(state);
        self.sync_names()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.powered()?;
        state.names.remove(name);
        state.rename_point();
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.powered()?.names.keys().cloned().collect())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.powered()?;
        state.sync()?;
        state.durable_names = vec![state.names.clone()];
        Ok(())
    }
}

struct SimulatedFile {
    volume: SimulatedVolume,
    at: usize,
}

impl VolumeFile for SimulatedFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.volume.powered()?;
        let start = to_usize(offset)?;
        let bytes =
            state.files[self.at].now.get(start..start + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.volume.powered()?;
        state.take_space()?;
        state.written_bytes += buf.len() as u64;
        if state.full_after_bytes.is_some_and(|limit| state.written_bytes > limit) {
            state.written_bytes -= buf.len() as u64;
            return Err(io::ErrorKind::StorageFull.into());
        }
        let at = self.at;
        state.files[at].store(to_usize(offset)?, buf);
        Ok(())
    }

    fn punch(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        let mut state = self.volume.powered()?;
        let content = &mut state.files[self.at];
        let start = to_usize(offset)?.min(content.now.len());
        let end = start.saturating_add(to_usize(len_bytes)?).min(content.now.len());
        content.store(start, &vec![0; end - start]);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.volume.powered()?;
        state.sync()?;
        let content = &mut state.files[self.at];
        content.durable.clone_from(&content.now);
        content.unsynced.clear();
        Ok(())
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.volume.powered()?.files[self.at].now.len() as u64)
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.len_bytes()
    }
}

fn to_usize(value: u64) -> io::Result<usize> {
    usize::try_from(value).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_synced_is_sure_to_survive() {
        let volume = SimulatedVolume::default();
        let file = volume.create("data", 1024).unwrap();
        volume.sync_names().unwrap();
        file.write_all_at(&[1; 1024], 0).unwrap();
        file.sync_data().unwrap();
        file.write_all_at(&[2; 1024], 0).unwrap();
        file.write_all_at(&[3; 512], 512).unwrap();
        volume.cut_power();
        assert!(file.sync_data().is_err());

        let read = |choose: &mut dyn FnMut(usize) -> usize| {
            volume.after_reboot(PowerCut::Never, choose).read("data", 1024).unwrap()
        };
        assert_eq!(read(&mut |_| 0), [1; 1024]);
        assert_eq!(read(&mut |n| n - 1), [[2; 512], [3; 512]].concat());
        assert_eq!(read(&mut |n| if n == 3 { 1 } else { 0 }), [[1; 512], [2; 512]].concat());
    }

    #[test]
    fn a_name_that_was_not_synced_may_be_lost() {
        let volume = SimulatedVolume::default();
        volume.create("data", 1).unwrap();
        assert!(volume.after_reboot(PowerCut::Never, &mut |_| 0).open("data").is_err());
        volume.sync_names().unwrap();
        assert!(volume.after_reboot(PowerCut::Never, &mut |_| 0).open("data").is_ok());
    }

    #[test]
    fn the_power_goes_in_the_chosen_sync() {
        let volume = SimulatedVolume::new(PowerCut::AtSync(2));
        let file = volume.create("data", 1).unwrap();
        volume.sync_names().unwrap();
        assert!(file.sync_data().is_err());
        assert!(file.write_all_at(&[1], 0).is_err());
        assert!(volume.is_off());
    }
}
