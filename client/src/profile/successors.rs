//! Which file of a version took the place of one of the version before, when its name says a version too: a kernel, its modules and
//! its initial RAM disk, libraries.

use std::cmp::Ordering;
use std::collections::HashMap;

use crate::files::places::{FileIndex, FilePlaces};

/// What kernels and what belongs to them are called, up to their version.
const KERNEL_NAMES: &[&[u8]] =
    &[b"vmlinuz-", b"initrd.img-", b"initramfs-", b"System.map-", b"config-", b"kernel-"];

/// The files of two versions, by what of their names is no number.
pub(super) struct Successors<'a> {
    old: &'a FilePlaces,
    new: &'a FilePlaces,
    /// The files that only the new version has.
    added: HashMap<Vec<u8>, Vec<FileIndex>>,
    /// The file of the old version with the highest numbers.
    newest: HashMap<Vec<u8>, FileIndex>,
}

impl<'a> Successors<'a> {
    pub(super) fn new(old: &'a FilePlaces, new: &'a FilePlaces) -> Self {
        let mut added: HashMap<_, Vec<FileIndex>> = HashMap::new();
        for (path, file) in new.paths().filter(|(path, _)| has_number(path)) {
            if old.find_path(path).is_none() {
                added.entry(without_numbers(path)).or_default().push(file);
            }
        }
        let mut newest: HashMap<_, FileIndex> = HashMap::new();
        for (path, file) in old.paths().filter(|(path, _)| has_number(path)) {
            // Nobody asks for others.
            let key = without_numbers(path);
            if added.contains_key(&key) {
                let newest = newest.entry(key).or_insert(file);
                if by_numbers(old.path(*newest), path) == Ordering::Less {
                    *newest = file;
                }
            }
        }
        Self { old, new, added, newest }
    }

    /// The file that a start of the new version reads instead of one that a start of the old version read; `None` when that is the same
    /// one, as far as names tell.
    ///
    /// A file that is gone is followed by the one with the next higher numbers. One that is still there is followed by nobody, but for
    /// the newest kernel and what belongs to it: of several that are installed the newest is started.
    pub(super) fn of(&self, file: FileIndex) -> Option<FileIndex> {
        let path = self.old.path(file);
        if !has_number(path) {
            return None;
        }
        let key = without_numbers(path);
        let added = self.added.get(&key)?;
        let order =
            |one: &&FileIndex, other: &&FileIndex| by_numbers(self.new.path(**one), self.new.path(**other));
        let is_higher = |added: &&FileIndex| by_numbers(self.new.path(**added), path) == Ordering::Greater;
        if self.new.find_path(path).is_none() {
            let next = added.iter().filter(is_higher).min_by(order);
            return next.or_else(|| added.iter().max_by(order)).copied();
        }
        let is_newest = self.newest.get(&key) == Some(&file);
        if !is_newest || !is_of_a_kernel(path) {
            return None;
        }
        added.iter().filter(is_higher).max_by(order).copied()
    }
}

fn has_number(path: &[u8]) -> bool {
    path.iter().any(u8::is_ascii_digit)
}

/// A path with one mark for each version in it.
fn without_numbers(path: &[u8]) -> Vec<u8> {
    let mut rest = path;
    let mut key = Vec::with_capacity(path.len());
    while let Some((first, after)) = rest.split_first() {
        if !first.is_ascii_digit() {
            key.push(*first);
            rest = after;
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

/// Compares paths by the numbers in them, the first one first.
fn by_numbers(one: &[u8], other: &[u8]) -> Ordering {
    let numbers = |path: &'_ [u8]| -> Vec<Vec<u8>> {
        let parts = path.split(|byte| !byte.is_ascii_digit()).filter(|part| !part.is_empty());
        let digits = parts.map(|part| part.iter().skip_while(|digit| **digit == b'0').copied().collect());
        digits.collect()
    };
    let longer_is_more =
        |one: &Vec<u8>, other: &Vec<u8>| one.len().cmp(&other.len()).then_with(|| one.cmp(other));
    let (one, other) = (numbers(one), numbers(other));
    let first = one.iter().zip(&other).map(|(one, other)| longer_is_more(one, other));
    first.fold(Ordering::Equal, Ordering::then).then(one.len().cmp(&other.len()))
}

/// Whether this is a kernel, one of its modules, or made for one: of those the newest is started.
fn is_of_a_kernel(path: &[u8]) -> bool {
    let mut names = path.split(|byte| *byte == b'/').rev();
    let starts_with_digit = |name: &[u8]| name.first().is_some_and(u8::is_ascii_digit);
    let name = names.next().unwrap_or(path);
    if KERNEL_NAMES.iter().any(|known| name.strip_prefix(*known).is_some_and(starts_with_digit)) {
        return true;
    }
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    parts.windows(3).any(|parts| parts[0] == b"lib" && parts[1] == b"modules" && starts_with_digit(parts[2]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(paths: &[&str]) -> FilePlaces {
        let files: Vec<_> = paths.iter().map(|path| (*path, 0, &[][..])).collect();
        FilePlaces::of(&files)
    }

    /// The path that follows one.
    fn follows(old: &[&str], new: &[&str], path: &str) -> Option<String> {
        let (old, new) = (places(old), places(new));
        let file = old.find_path(path.as_bytes()).unwrap();
        let found = Successors::new(&old, &new).of(file)?;
        Some(String::from_utf8(new.path(found).to_vec()).unwrap())
    }

    #[test]
    fn the_newest_kernel_follows_the_newest_one() {
        let old = [
            "boot/vmlinuz-6.1.0-9-amd64",
            "boot/vmlinuz-6.1.0-50-amd64",
            "boot/initrd.img-6.1.0-50-amd64",
            "boot/initrd.img-6.1.0-50-cloud-amd64",
            "usr/lib/modules/6.1.0-50-amd64",
            "usr/lib/modules/6.1.0-50-amd64/kernel/crypto/sha512_generic.ko",
            "usr/share/doc/linux-image-6.1.0-50-amd64/copyright",
        ];
        let added = [
            "boot/vmlinuz-6.1.0-57-amd64",
            "boot/vmlinuz-6.1.0-100-amd64",
            "boot/initrd.img-6.1.0-57-amd64",
            "usr/lib/modules/6.1.0-57-amd64",
            "usr/lib/modules/6.1.0-57-amd64/kernel/crypto/sha512_generic.ko",
            "usr/share/doc/linux-image-6.1.0-57-amd64/copyright",
        ];
        let new = [&old[..], &added].concat();
        let follows = |path| follows(&old, &new, path);
        assert_eq!(follows(old[0]), None, "it was not started");
        assert_eq!(follows(old[1]).as_deref(), Some(added[1]));
        assert_eq!(follows(old[2]).as_deref(), Some(added[2]));
        assert_eq!(follows(old[3]), None, "another kind of kernel");
        assert_eq!(follows(old[4]).as_deref(), Some(added[3]));
        assert_eq!(follows(old[5]).as_deref(), Some(added[4]));
        assert_eq!(follows(old[6]), None, "both are there");
    }

    #[test]
    fn what_is_gone_is_followed_by_what_is_called_the_same_but_for_its_version() {
        let old = ["lib/libicu.so.72.1", "lib/libicu.so.9", "lib/libssl.so.3", "etc/motd"];
        let gone = |new: &[&str], path| follows(&old, new, path);
        let new = ["lib/libicu.so.73.2", "lib/libicu.so.74.1", "lib/libssl.so.3", "lib/libssl.so.4"];
        assert_eq!(gone(&new, old[0]).as_deref(), Some("lib/libicu.so.73.2"), "the next one");
        assert_eq!(gone(&new, old[2]), None, "it is there still");
        assert_eq!(gone(&new, old[3]), None);
        let new = ["lib/libicu.so.70.1", "lib/libicu.so.71"];
        assert_eq!(gone(&new, old[0]).as_deref(), Some("lib/libicu.so.71"), "a step back");
        assert_eq!(gone(&new, old[1]).as_deref(), Some("lib/libicu.so.70.1"));
    }

    #[test]
    fn numbers_count_as_numbers() {
        for (lower, higher) in [("a9", "a10"), ("a1.2", "a1.2.1"), ("a007", "a8"), ("6.1.0-9", "6.1.0-50")] {
            assert_eq!(by_numbers(lower.as_bytes(), higher.as_bytes()), Ordering::Less, "{lower} {higher}");
        }
        assert_eq!(without_numbers(b"a/6.12.48+deb13-amd64/b1"), b"a/0+deb0-amd0/b0");
        assert_eq!(without_numbers(b"6.1.0-50-x"), b"0-x");
    }
}
