//! Which file of a version a start reads instead of one of the version before: the same path, or where that has changed with a version
//! in it, of a kernel or a library, the path that took its place.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use crate::files::places::{FileIndex, FilePlaces};

/// What kernels are called, up to their release.
const KERNELS: &[&[u8]] = &[b"vmlinuz-", b"kernel-"];
/// Kinds of kernels that are told apart at most.
const MAX_KINDS: usize = 64;

/// The files of two versions of a disk.
pub(super) struct Successors<'a> {
    old: &'a FilePlaces,
    new: &'a FilePlaces,
    /// The release of a kernel that was the newest, and the one that is.
    releases: Vec<(&'a [u8], &'a [u8])>,
    /// The names that only the new version has, by their directory and what of them is no number; in the order of their numbers.
    added: HashMap<Vec<u8>, Vec<&'a [u8]>>,
    /// Where the directories that were asked for are in the new version.
    directories: HashMap<&'a [u8], Option<Vec<u8>>>,
    /// What was found of files.
    known: HashMap<FileIndex, Fate>,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is read as before, also if it was written anew.
    Same(FileIndex),
    /// Another is read in its place, whether it is still there or not.
    Followed(FileIndex),
    /// It is gone.
    Gone,
}

impl<'a> Successors<'a> {
    pub(super) fn new(old: &'a FilePlaces, new: &'a FilePlaces) -> Self {
        let mut added: HashMap<Vec<u8>, Vec<&[u8]>> = HashMap::new();
        for path in new.paths() {
            let (directory, name) = split(path);
            if has_number(name) && old.find_path(path).is_none() {
                added.entry(key(directory, name)).or_default().push(name);
            }
        }
        for names in added.values_mut() {
            names.sort_by(|one, other| by_numbers(one, other).then_with(|| one.cmp(other)));
        }
        let releases = releases(old, new);
        Self { old, new, releases, added, directories: HashMap::new(), known: HashMap::new() }
    }

    /// What became of a file of the old version.
    pub(super) fn of(&mut self, file: FileIndex) -> Fate {
        if let Some(known) = self.known.get(&file) {
            return *known;
        }
        let fate = self.find(self.old.path(file));
        self.known.insert(file, fate);
        fate
    }

    fn find(&mut self, path: &'a [u8]) -> Fate {
        // Of several kernels that are installed the newest is started.
        let next = self.releases.iter().filter_map(|(old, new)| replaced(path, old, new));
        let next = next.filter_map(|path| self.new.find_path(&path)).next();
        if let Some(file) = next {
            return Fate::Followed(file);
        }
        if let Some(file) = self.new.find_path(path) {
            return Fate::Same(file);
        }
        let (directory, name) = split(path);
        let followed = self.directory(directory).and_then(|directory| self.name(&directory, name));
        followed.and_then(|path| self.new.find_path(&path)).map_or(Fate::Gone, Fate::Followed)
    }

    /// Where a directory is in the new version.
    fn directory(&mut self, directory: &'a [u8]) -> Option<Vec<u8>> {
        if self.new.find_path(directory).is_some() {
            return Some(directory.to_vec());
        }
        // The root of a file system is followed by none.
        if !directory.contains(&b'/') {
            return None;
        }
        if let Some(known) = self.directories.get(directory) {
            return known.clone();
        }
        let (parent, name) = split(directory);
        let found = self.directory(parent).and_then(|parent| self.name(&parent, name));
        self.directories.insert(directory, found.clone());
        found
    }

    /// What a name is called in a directory of the new version: the same, or else the new name with the next higher numbers, or else
    /// that with the highest.
    fn name(&self, directory: &[u8], name: &[u8]) -> Option<Vec<u8>> {
        let path = [directory, b"/", name].concat();
        if self.new.find_path(&path).is_some() {
            return Some(path);
        }
        let added = self.added.get(&key(directory, name))?;
        let next = added.partition_point(|added| by_numbers(added, name) != Ordering::Greater);
        let found = added.get(next).or(added.last())?;
        Some([directory, b"/", found].concat())
    }
}

/// For each kind of kernel whose newest release is another one than before: the one before, and the one now.
fn releases<'a>(old: &'a FilePlaces, new: &'a FilePlaces) -> Vec<(&'a [u8], &'a [u8])> {
    let of = |files: &'a FilePlaces| -> HashSet<&'a [u8]> { files.paths().filter_map(release).collect() };
    let newest = |releases: &HashSet<&'a [u8]>| {
        let mut newest: HashMap<Vec<u8>, &[u8]> = HashMap::new();
        for release in releases {
            let newest = newest.entry(kind(release)).or_insert(release);
            if by_numbers(newest, release) == Ordering::Less {
                *newest = release;
            }
        }
        newest
    };
    let (before, after) = (of(old), of(new));
    let newest_after = newest(&after);
    let pair = |(kind, old): (Vec<u8>, &'a [u8])| {
        let new = newest_after.get(&kind)?;
        (by_numbers(old, new) == Ordering::Less || !after.contains(old)).then_some((old, *new))
    };
    let mut pairs: Vec<_> = newest(&before).into_iter().filter_map(pair).collect();
    pairs.sort_unstable();
    pairs.truncate(MAX_KINDS);
    pairs
}

/// The release of the kernel that a path is of.
fn release(path: &[u8]) -> Option<&[u8]> {
    let (directory, name) = split(path);
    let (file_system, directory) = split(directory);
    // On a file system of its own, or below the root of one.
    let is_boot = file_system.is_empty() || (directory == b"boot" && !file_system.contains(&b'/'));
    let release = KERNELS.iter().find_map(|known| name.strip_prefix(*known))?;
    (is_boot && release.first().is_some_and(u8::is_ascii_digit)).then_some(release)
}

/// A kind of kernel: what of a release is neither a number nor says which distribution it is of, as in `6.12.48+deb13-cloud-amd64`.
fn kind(release: &[u8]) -> Vec<u8> {
    let words = release.split(|byte| matches!(byte, b'.' | b'-' | b'+' | b'~'));
    let names_version = |word: &[u8]| {
        word.iter().all(u8::is_ascii_digit)
            || [&b"deb"[..], b"bpo", b"fc", b"el"].iter().any(|known| {
                let rest = word.strip_prefix(*known);
                rest.and_then(|rest| rest.first()).is_some_and(u8::is_ascii_digit)
            })
    };
    words.filter(|word| !names_version(word)).collect::<Vec<_>>().join(&b'-')
}

/// A path with another release wherever its names have this one; `None` when none has.
fn replaced(path: &[u8], old: &[u8], new: &[u8]) -> Option<Vec<u8>> {
    // Beside `6.1.0-5-amd64`, `16.1.0-5-amd64`, `4.6.1.0-5-amd64` and `6.1.0-5-amd64-dbg` are others.
    let goes_before = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_digit() || *byte == b'.');
    let goes_on = |byte: Option<&u8>| {
        byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'+'))
    };
    let (mut replaced, mut rest, mut before, mut is_there) = (Vec::new(), path, None, false);
    while let Some((first, after)) = rest.split_first() {
        match rest.strip_prefix(old) {
            Some(after) if !goes_before(before) && !goes_on(after.first()) => {
                replaced.extend_from_slice(new);
                (rest, before, is_there) = (after, old.last(), true);
            }
            _ => {
                replaced.push(*first);
                (rest, before) = (after, Some(first));
            }
        }
    }
    is_there.then_some(replaced)
}

/// A directory and a name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

fn has_number(name: &[u8]) -> bool {
    name.iter().any(u8::is_ascii_digit)
}

/// A directory, and a name in it with one mark for each version.
fn key(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut rest = name;
    let mut key = Vec::with_capacity(directory.len() + 1 + name.len());
    key.extend_from_slice(directory);
    key.push(b'/');
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if !first.is_ascii_digit() {
            key.push(*first);
            continue;
        }
        key.push(b'0');
        // Digits, and what stands between the numbers of one version.
        while let [first, after @ ..] = rest {
            let is_between =
                matches!(first, b'.' | b'-' | b'+' | b'~') && after.first().is_some_and(u8::is_ascii_digit);
            if !is_between && !first.is_ascii_digit() {
                break;
            }
            rest = after;
        }
    }
    key
}

/// Compares names by the numbers in them, the first one first.
fn by_numbers(one: &[u8], other: &[u8]) -> Ordering {
    numbers(one).cmp(numbers(other))
}

/// The numbers in a name, in digits without leading zeros: the longer one is the higher.
fn numbers(name: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let parts = name.split(|byte| !byte.is_ascii_digit()).filter(|part| !part.is_empty());
    parts.map(|part| {
        let zeros = part.iter().take_while(|digit| **digit == b'0').count();
        (part.len() - zeros, &part[zeros..])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(paths: &[&str]) -> FilePlaces {
        let mut all: Vec<&str> = paths.to_vec();
        for path in paths {
            all.extend(path.match_indices('/').map(|(at, _)| &path[..at]));
        }
        all.sort_unstable();
        all.dedup();
        let files: Vec<_> = all.iter().map(|path| (*path, 0, &[][..])).collect();
        FilePlaces::of(&files)
    }

    /// The paths that are read instead of others, in their order; `-` for one that is gone.
    fn read(old: &[&str], new: &[&str], paths: &[&str]) -> Vec<String> {
        let (old, new) = (places(old), places(new));
        let mut successors = Successors::new(&old, &new);
        let read = paths.iter().map(|path| match successors.of(old.find_path(path.as_bytes()).unwrap()) {
            Fate::Same(file) => format!("same {}", String::from_utf8_lossy(new.path(file))),
            Fate::Followed(file) => String::from_utf8_lossy(new.path(file)).into_owned(),
            Fate::Gone => "-".to_owned(),
        });
        read.collect()
    }

    const MODULES: &str = "p1/usr/lib/modules";

    fn kernel(release: &str) -> Vec<String> {
        vec![
            format!("p1/boot/vmlinuz-{release}"),
            format!("p1/boot/initrd.img-{release}"),
            format!("p1/boot/loader/entries/abc-{release}.conf"),
            format!("{MODULES}/{release}"),
            format!("{MODULES}/{release}/kernel/sha1_generic.ko"),
            format!("{MODULES}/{release}/kernel/sha512_generic.ko"),
        ]
    }

    fn str_of(paths: &[Vec<String>]) -> Vec<&str> {
        paths.iter().flatten().map(String::as_str).collect()
    }

    #[test]
    fn the_newest_kernel_follows_the_newest_one_whether_that_is_gone_or_not() {
        let (v9, v50, v57, v100) = (
            kernel("6.1.0-9-amd64"),
            kernel("6.1.0-50-amd64"),
            kernel("6.1.0-57-amd64"),
            kernel("6.1.0-100-amd64"),
        );
        let old = [v9.clone(), v50.clone()];
        for new in [
            vec![v9.clone(), v50.clone(), v57.clone(), v100.clone()],
            vec![v9.clone(), v57.clone(), v100.clone()],
            vec![v100.clone()],
        ] {
            let read = read(&str_of(&old), &str_of(&new), &str_of(std::slice::from_ref(&v50)));
            assert_eq!(read, v100);
        }
        let read_of = |path: &str, new: &[Vec<String>]| read(&str_of(&old), &str_of(new), &[path]);
        let new = [v9.clone(), v50.clone(), v57.clone()];
        assert_eq!(read_of(&v9[0], &new), [format!("same {}", v9[0])], "it was not started");
        assert_eq!(
            read_of(&v50[0], std::slice::from_ref(&v9)),
            ["p1/boot/vmlinuz-6.1.0-9-amd64"],
            "a step back"
        );
        assert_eq!(read_of(&v50[0], &old), [format!("same {}", v50[0])]);
    }

    #[test]
    fn a_kernel_is_followed_by_one_of_its_kind() {
        let next = |old: &str, new: &[&str]| {
            let old = [kernel(old)];
            let new: Vec<Vec<String>> =
                new.iter().map(|release| kernel(release)).chain(old.clone()).collect();
            read(&str_of(&old), &str_of(&new), &[&old[0][0]]).remove(0)
        };
        let new = ["6.1.0-57-amd64", "6.1.0-57-cloud-amd64"];
        assert_eq!(next("6.1.0-50-cloud-amd64", &new), "p1/boot/vmlinuz-6.1.0-57-cloud-amd64");
        assert_eq!(next("6.1.0-50-amd64", &new), "p1/boot/vmlinuz-6.1.0-57-amd64");
        assert_eq!(next("6.1.0-50-amd64", &["6.12.48+deb13-amd64"]), "p1/boot/vmlinuz-6.12.48+deb13-amd64");
        assert_eq!(
            next("6.11.4-301.fc41.x86_64", &["6.12.1-100.fc42.x86_64"]),
            "p1/boot/vmlinuz-6.12.1-100.fc42.x86_64"
        );
        assert_eq!(next("6.1.0-50-rt-amd64", &new), "same p1/boot/vmlinuz-6.1.0-50-rt-amd64");
        let new = ["6.8.0-51-generic", "6.8.0-51-generic-64k"];
        assert_eq!(next("6.8.0-45-generic-64k", &new), "p1/boot/vmlinuz-6.8.0-51-generic-64k");
        assert_eq!(next("6.8.0-45-generic", &new), "p1/boot/vmlinuz-6.8.0-51-generic");
    }

    #[test]
    fn kernels_are_where_machines_are_started_from() {
        for (path, expected) in [
            ("p1/vmlinuz-6.1", Some("6.1")),
            ("p2/boot/vmlinuz-6.1-x", Some("6.1-x")),
            ("p1/var/lib/lxc/a/rootfs/boot/vmlinuz-6.1", None),
            ("p1/boot/vmlinuz-linux", None),
            ("p1/usr/lib/modules/6.1", None),
        ] {
            let found = release(path.as_bytes());
            assert_eq!(found, expected.map(str::as_bytes), "{path}");
        }
        // What belongs to a kernel by chance, or has no successor, is read as before.
        let old = ["p1/boot/vmlinuz-6.6.3", "p1/lib/libQt6Core.so.6.6.3", "p1/lib/modules/6.6.3/a.ko"];
        let new = [&old[..], &["p1/boot/vmlinuz-6.6.4", "p1/lib/modules/6.6.4/a.ko.xz"]].concat();
        let expected = ["p1/boot/vmlinuz-6.6.4", &format!("same {}", old[1]), &format!("same {}", old[2])];
        assert_eq!(read(&old, &new, &old), expected);
    }

    #[test]
    fn a_release_is_replaced_as_a_whole_only() {
        let replaced = |path: &str| {
            let replaced = replaced(path.as_bytes(), b"6.1.0-5-amd64", b"6.1.0-7-amd64")?;
            Some(String::from_utf8(replaced).unwrap())
        };
        assert_eq!(
            replaced("a/6.1.0-5-amd64/b-6.1.0-5-amd64.c").as_deref(),
            Some("a/6.1.0-7-amd64/b-6.1.0-7-amd64.c")
        );
        for other in [
            "vmlinuz-16.1.0-5-amd64",
            "vmlinuz-4.6.1.0-5-amd64",
            "vmlinuz-6.1.0-5-amd64-dbg",
            "vmlinuz-6.1.0-5-amd645",
            "etc/motd",
        ] {
            assert_eq!(replaced(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_gone_is_followed_by_what_is_called_the_same_but_for_its_version() {
        let old = ["p1/lib/libicu.so.72.1", "p1/lib/libicu.so.9", "p1/lib/libssl.so.3", "p1/etc/motd"];
        let of = |new: &[&str], path| read(&old, new, &[path]).remove(0);
        let new =
            ["p1/lib/libicu.so.73.2", "p1/lib/libicu.so.74.1", "p1/lib/libssl.so.3", "p1/lib/libssl.so.4"];
        assert_eq!(of(&new, old[0]), "p1/lib/libicu.so.73.2", "the next one");
        assert_eq!(of(&new, old[2]), "same p1/lib/libssl.so.3", "it is there still");
        assert_eq!(of(&new, old[3]), "-");
        let new = ["p1/lib/libicu.so.70.1", "p1/lib/libicu.so.71"];
        assert_eq!(of(&new, old[0]), "p1/lib/libicu.so.71", "a step back");
        assert_eq!(of(&new, old[1]), "p1/lib/libicu.so.70.1");
        assert_eq!(of(&["p2/lib/libicu.so.72.1"], old[0]), "-", "another file system");
    }

    #[test]
    fn a_directory_is_followed_before_what_is_in_it() {
        let old = ["p1/usr/lib/python3.11/lib2/utf_7.py", "p1/usr/lib/python3.11/lib2/utf_8.py"];
        let new = ["p1/usr/lib/python3.12/lib2/utf_7.py", "p1/usr/lib/python3.12/lib2/utf_8.py"];
        assert_eq!(read(&old, &new, &old), new);
    }

    #[test]
    fn numbers_count_as_numbers() {
        for (lower, higher) in [("a9", "a10"), ("a1.2", "a1.2.1"), ("a007", "a8"), ("6.1.0-9", "6.1.0-50")] {
            assert_eq!(by_numbers(lower.as_bytes(), higher.as_bytes()), Ordering::Less, "{lower} {higher}");
            assert_eq!(by_numbers(higher.as_bytes(), lower.as_bytes()), Ordering::Greater);
        }
        assert_eq!(by_numbers(b"a08", b"b8"), Ordering::Equal);
        assert_eq!(key(b"a/1", b"6.12.48+deb13-amd64"), b"a/1/0+deb0-amd0");
    }
}
