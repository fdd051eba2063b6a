//! What a volume says is to be booted, each way in which it may say so.

use std::collections::BTreeMap;

use super::entries::{self, Entry};
use super::grub::{self, Files};
use super::load::{CandidateError, order};
use super::version::compare_debian;
use super::volume::Volume;

/// Where GRUB keeps its configuration, as seen from `/` or from a `/boot` of its own.
const GRUB_DIRECTORIES: [&str; 4] = ["/boot/grub", "/boot/grub2", "/grub", "/grub2"];
/// Where entries of the Boot Loader Specification are.
const ENTRY_DIRECTORIES: [&str; 2] = ["/boot/loader/entries", "/loader/entries"];
/// Entries of one directory that are read.
const MAX_ENTRIES: usize = 256;
/// Bytes of `/etc/kernel/cmdline` that are read.
const MAX_CMDLINE_BYTES: u64 = 16 << 10;

/// A kernel that something says is to be booted. Nothing about it was checked.
pub(super) struct Choice {
    /// The volume its paths are meant on.
    pub(super) volume: usize,
    /// The configuration that says so.
    pub(super) config: Option<String>,
    /// The entry of it.
    pub(super) title: Option<String>,
    /// Path of the kernel.
    pub(super) kernel: String,
    /// Paths of its initrds.
    pub(super) initrds: Vec<String>,
    /// What it is told.
    pub(super) command_line: String,
}

/// Entries of the Boot Loader Specification, the one to boot first.
pub(super) fn by_entries(volumes: &[Volume], place: usize) -> Vec<Choice> {
    let Some(volume) = volumes.get(place) else { return Vec::new() };
    let Some((directory, names)) = ENTRY_DIRECTORIES.iter().find_map(|directory| {
        let mut names = volume.names(directory);
        names.retain(|name| name.ends_with(".conf"));
        names.truncate(MAX_ENTRIES);
        (!names.is_empty()).then_some((directory, names))
    }) else {
        return Vec::new();
    };
    let variables = variables(volumes, place);
    let mut found: Vec<(Entry, String)> = Vec::new();
    for name in names {
        let path = format!("{directory}/{name}");
        let Ok(text) = volume.read(&path, entries::MAX_BYTES) else { continue };
        found.extend(
            Entry::parse(&name, &String::from_utf8_lossy(&text), &variables).map(|entry| (entry, path)),
        );
    }
    let paths: BTreeMap<String, String> =
        found.iter().map(|(entry, path)| (entry.id.clone(), path.clone())).collect();
    let named =
        ["default", "saved_entry"].iter().find_map(|name| variables.get(*name).filter(|id| !id.is_empty()));
    let sorted =
        entries::sort(found.into_iter().map(|(entry, _)| entry).collect(), named.map(String::as_str));
    let choice = |entry: Entry| Choice {
        volume: place,
        config: paths.get(&entry.id).cloned(),
        title: (!entry.title.is_empty()).then_some(entry.title),
        kernel: entry.linux,
        initrds: entry.initrds,
        command_line: entry.options.unwrap_or_else(|| command_line(volumes, place)),
    };
    sorted.into_iter().map(choice).collect()
}

/// The entry that GRUB would boot, and which configuration says so; more than one where a volume has several.
pub(super) fn by_grub(volumes: &[Volume], place: usize) -> Vec<(String, Result<Choice, CandidateError>)> {
    let Some(volume) = volumes.get(place) else { return Vec::new() };
    let mut found = Vec::new();
    for directory in GRUB_DIRECTORIES {
        let path = format!("{directory}/grub.cfg");
        if volume.file_bytes(&path).is_none() {
            continue;
        }
        let choice = match volume.read(&path, grub::MAX_BYTES) {
            Ok(script) => grub::choose(&String::from_utf8_lossy(&script), directory, volume)
                .map_err(CandidateError::Grub),
            Err(source) => Err(CandidateError::File { path: path.clone(), source }),
        };
        let choice = choice.map(|choice| Choice {
            volume: place,
            config: Some(path.clone()),
            title: Some(choice.title),
            kernel: choice.kernel,
            initrds: choice.initrds,
            command_line: choice.command_line,
        });
        found.push((path, choice));
    }
    found
}

/// The kernels in `/boot`, or in `/` where that is a `/boot` of its own; the newest first.
pub(super) fn by_version(volumes: &[Volume], place: usize) -> Vec<Choice> {
    let Some(volume) = volumes.get(place) else { return Vec::new() };
    let mut found = Vec::new();
    for directory in ["/boot/", "/"] {
        let names = volume.names(directory);
        let mut versions: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix("vmlinuz-")).collect();
        versions.retain(|version| !version.contains("rescue") && !version.contains(".dpkg-"));
        versions.sort_by(|a, b| compare_debian(b, a));
        for version in versions.into_iter().take(MAX_ENTRIES) {
            let initrds = [
                format!("initrd.img-{version}"),
                format!("initramfs-{version}.img"),
                format!("initrd-{version}"),
                format!("initramfs-{version}"),
            ];
            let initrd = initrds.iter().find(|initrd| names.contains(initrd));
            found.push(Choice {
                volume: place,
                config: None,
                title: None,
                kernel: format!("{directory}vmlinuz-{version}"),
                initrds: initrd.map(|initrd| format!("{directory}{initrd}")).into_iter().collect(),
                command_line: command_line(volumes, place),
            });
        }
    }
    found
}

/// GRUB's variables, of the first volume that has any: from its configuration, and what the system has left for it.
fn variables(volumes: &[Volume], first: usize) -> BTreeMap<String, String> {
    for place in order(volumes, first) {
        let Some(volume) = volumes.get(place) else { continue };
        for directory in GRUB_DIRECTORIES {
            let block = volume.read(&format!("{directory}/grubenv"), grub::env::MAX_BYTES);
            let script = volume.read(&format!("{directory}/grub.cfg"), grub::MAX_BYTES);
            if block.is_err() && script.is_err() {
                continue;
            }
            let mut variables = block.map(|block| grub::env::parse(&block)).unwrap_or_default();
            if let Ok(script) = script {
                // A script that is not understood leaves what the block says.
                let set = grub::variables(&String::from_utf8_lossy(&script), directory, volume);
                variables.extend(set.unwrap_or_default());
            }
            return variables;
        }
    }
    BTreeMap::new()
}

/// The command line of a kernel that nothing says one for: what `kernel-install` was told, else where the root is.
fn command_line(volumes: &[Volume], first: usize) -> String {
    let in_order = || order(volumes, first).filter_map(|place| volumes.get(place));
    for volume in in_order() {
        if let Ok(text) = volume.read("/etc/kernel/cmdline", MAX_CMDLINE_BYTES) {
            let text = String::from_utf8_lossy(&text);
            return text.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        }
    }
    let is_root = |volume: &&Volume| volume.exists("/etc/fstab") || volume.exists("/sbin/init");
    let root = in_order().find(is_root).or(volumes.get(first));
    root.map(|root| format!("root=UUID={} ro", root.uuid)).unwrap_or_default()
}

impl Files for Volume {
    fn file_bytes(&self, path: &str) -> Option<u64> {
        self.file_bytes(path)
    }

    fn exists(&self, path: &str) -> bool {
        self.exists(path)
    }

    fn read(&self, path: &str, max_bytes: u64) -> Option<Vec<u8>> {
        self.read(path, max_bytes).ok()
    }
}
