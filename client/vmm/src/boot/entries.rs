//! Entries of the Boot Loader Specification (UAPI.1, type #1): a file for each kernel.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::version::compare;

/// Bytes of an entry that is read.
pub const MAX_BYTES: u64 = 64 << 10;
/// Bytes of a value once its variables are put in.
const MAX_VALUE_BYTES: usize = 16 << 10;
/// Initrds of one entry.
const MAX_INITRDS: usize = 32;

/// An entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The name of its file, without the suffix and without what counts its starts.
    pub id: String,
    /// For people.
    pub title: String,
    /// Version of what it boots.
    pub version: String,
    /// Which system it is, to tell systems of one disk apart.
    pub machine_id: String,
    /// What it is sorted by, before all else.
    pub sort_key: String,
    /// Path of the kernel.
    pub linux: String,
    /// Paths of the initrds.
    pub initrds: Vec<String>,
    /// What the kernel is told; `None` when the entry says nothing about it.
    pub options: Option<String>,
    /// It was started as often as it may, and never came up.
    is_bad: bool,
}

impl Entry {
    /// Reads an entry of some file name; variables of GRUB, as Fedora uses them, are put in. `None` when it boots no
    /// Linux on this processor.
    pub fn parse(file_name: &str, text: &str, variables: &BTreeMap<String, String>) -> Option<Entry> {
        let (id, is_bad) = split_counter(file_name.strip_suffix(".conf")?);
        let mut entry = Entry { id: id.to_owned(), is_bad, ..Entry::default() };
        for line in text.lines() {
            let line = line.trim();
            let Some((key, value)) = line.split_once([' ', '\t']) else { continue };
            let value = value.trim_start();
            match key {
                "title" => entry.title = value.to_owned(),
                "version" => entry.version = value.to_owned(),
                "machine-id" => entry.machine_id = value.to_owned(),
                "sort-key" => entry.sort_key = value.to_owned(),
                "linux" => entry.linux = expand(value, variables)?,
                "initrd" => {
                    let paths = expand(value, variables)?;
                    entry.initrds.extend(paths.split_ascii_whitespace().map(str::to_owned));
                    if entry.initrds.len() > MAX_INITRDS {
                        return None;
                    }
                }
                "options" => {
                    let value = expand(value, variables)?;
                    let options = entry.options.get_or_insert_default();
                    for word in value.split_ascii_whitespace() {
                        if !options.is_empty() {
                            options.push(' ');
                        }
                        options.push_str(word);
                    }
                    if options.len() > MAX_VALUE_BYTES {
                        return None;
                    }
                }
                // "x64" is the name of the UEFI specification.
                "architecture" if !value.eq_ignore_ascii_case("x64") => return None,
                _ => {}
            }
        }
        (!entry.linux.is_empty()).then_some(entry)
    }

    /// Whether it is the one to mend a system with: never booted without being asked for.
    pub fn is_rescue(&self) -> bool {
        let is_named = |text: &str| text.to_ascii_lowercase().contains("rescue");
        is_named(&self.id) || is_named(&self.version) || is_named(&self.linux)
    }

    /// The order of a menu: what is up to be booted comes first.
    fn menu_order(&self, other: &Entry) -> Ordering {
        let newest = |a: &str, b: &str| compare(b, a);
        let by_key = match (self.sort_key.is_empty(), other.sort_key.is_empty()) {
            (false, false) => self
                .sort_key
                .cmp(&other.sort_key)
                .then_with(|| self.machine_id.cmp(&other.machine_id))
                .then_with(|| newest(&self.version, &other.version)),
            (a, b) => a.cmp(&b),
        };
        self.is_bad.cmp(&other.is_bad).then(by_key).then_with(|| newest(&self.id, &other.id))
    }
}

/// Sorts entries as a menu has them, and takes to the front what `saved` names: an id, a title, or a place in the menu.
/// Rescue entries are taken out unless one of them is named.
pub fn sort(mut entries: Vec<Entry>, saved: Option<&str>) -> Vec<Entry> {
    entries.sort_by(Entry::menu_order);
    let named = saved.filter(|saved| !saved.is_empty()).and_then(|saved| {
        let id = saved.strip_suffix(".conf").unwrap_or(saved);
        let by_name = entries.iter().position(|entry| entry.id == id || entry.title == saved);
        by_name.or_else(|| saved.parse().ok().filter(|place| *place < entries.len()))
    });
    let named = named.map(|place| entries.remove(place));
    entries.retain(|entry| !entry.is_rescue());
    named.into_iter().chain(entries).collect()
}

/// Takes `+LEFT` or `+LEFT-DONE` off a name; whether no try is left.
fn split_counter(name: &str) -> (&str, bool) {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if let Some((id, counter)) = name.rsplit_once('+') {
        let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
        if is_number(left) && is_number(done) {
            return (id, left.bytes().all(|digit| digit == b'0'));
        }
    }
    (name, false)
}

/// Puts in `$name` and `${name}`; unknown ones are empty. `None` when the value becomes too long.
fn expand(value: &str, variables: &BTreeMap<String, String>) -> Option<String> {
    let mut expanded = String::new();
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, after) = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some(split) => split,
            None => after.split_at(after.find(|c| !is_name(c)).unwrap_or(after.len())),
        };
        if name.is_empty() {
            expanded.push('$');
        }
        expanded.push_str(variables.get(name).map_or("", String::as_str));
        if expanded.len() > MAX_VALUE_BYTES {
            return None;
        }
        rest = after;
    }
    expanded.push_str(rest);
    (expanded.len() <= MAX_VALUE_BYTES).then_some(expanded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FEDORA: &str = "title Fedora Linux (6.8.5-301.fc40.x86_64) 40 (Cloud Edition)\nversion 6.8.5-301.fc40.x86_64\n\
        linux /vmlinuz-6.8.5-301.fc40.x86_64\ninitrd /initramfs-6.8.5-301.fc40.x86_64.img $tuned_initrd\n\
        options $kernelopts $tuned_params\ngrub_users $grub_users\ngrub_arg --unrestricted\ngrub_class fedora\n";

    fn parse(name: &str, text: &str) -> Entry {
        Entry::parse(name, text, &BTreeMap::new()).unwrap()
    }

    fn simple(name: &str) -> Entry {
        parse(name, "linux /k")
    }

    fn ids(entries: Vec<Entry>) -> Vec<String> {
        entries.into_iter().map(|entry| entry.id).collect()
    }

    #[test]
    fn an_entry_of_fedora_takes_its_options_from_the_environment() {
        let variables = BTreeMap::from([("kernelopts".to_owned(), "root=UUID=1 ro  quiet".to_owned())]);
        let entry = Entry::parse("0a1b-6.8.5-301.fc40.x86_64.conf", FEDORA, &variables).unwrap();
        assert_eq!(entry.id, "0a1b-6.8.5-301.fc40.x86_64");
        assert_eq!(entry.linux, "/vmlinuz-6.8.5-301.fc40.x86_64");
        assert_eq!(entry.initrds, ["/initramfs-6.8.5-301.fc40.x86_64.img"]);
        assert_eq!(entry.options.as_deref(), Some("root=UUID=1 ro quiet"));
    }

    #[test]
    fn several_initrds_and_lines_of_options_are_joined() {
        let entry = parse(
            "arch.conf",
            "# a comment\ntitle\tArch Linux\nlinux   /vmlinuz-linux\ninitrd  /amd-ucode.img\ninitrd  /initramfs-linux.img\n\
             options root=LABEL=a\noptions rw cost=5$\n",
        );
        assert_eq!(entry.initrds, ["/amd-ucode.img", "/initramfs-linux.img"]);
        assert_eq!(entry.options.as_deref(), Some("root=LABEL=a rw cost=5$"));
        assert_eq!(parse("a.conf", "linux /k").options, None);
    }

    #[test]
    fn what_boots_no_linux_here_is_no_entry() {
        for text in ["title x", "efi /EFI/Linux/x.efi", "linux /k\narchitecture aa64", ""] {
            assert_eq!(Entry::parse("a.conf", text, &BTreeMap::new()), None, "{text}");
        }
        assert_eq!(Entry::parse("a.conf.rpmsave", "linux /k", &BTreeMap::new()), None);
        assert!(Entry::parse("a.conf", "linux /k\narchitecture x64", &BTreeMap::new()).is_some());
    }

    #[test]
    fn the_newest_comes_first_and_rescue_never() {
        let entries =
            ["m-0-rescue.conf", "m-6.8.5.conf", "m-6.10.1.conf", "m-6.9.0+0-3.conf"].map(simple).to_vec();
        assert_eq!(ids(sort(entries.clone(), None)), ["m-6.10.1", "m-6.8.5", "m-6.9.0"]);
        assert_eq!(ids(sort(entries.clone(), Some("m-6.8.5"))), ["m-6.8.5", "m-6.10.1", "m-6.9.0"]);
        assert_eq!(ids(sort(entries.clone(), Some("1")))[0], "m-6.8.5");
        assert_eq!(ids(sort(entries.clone(), Some("m-0-rescue")))[0], "m-0-rescue");
        assert_eq!(ids(sort(entries, Some("gone")))[0], "m-6.10.1");
    }

    #[test]
    fn sort_keys_go_before_versions_of_names() {
        let keyed = |name: &str, version: &str| {
            parse(name, &format!("linux /k\nsort-key fedora\nmachine-id 1\nversion {version}"))
        };
        let entries = vec![simple("z-9.conf"), keyed("a.conf", "6.8"), keyed("b.conf", "6.10")];
        assert_eq!(ids(sort(entries, None)), ["b", "a", "z-9"]);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic_and_within_its_limits(
            text in "(linux|initrd|options|title)( |\t)[ -~é${}]{0,40}\n(options [ -~${}]{0,200}\n){0,8}",
            value in ".{0,300}",
        ) {
            let variables = BTreeMap::from([("a".to_owned(), value)]);
            if let Some(entry) = Entry::parse("x.conf", &text, &variables) {
                prop_assert!(entry.options.unwrap_or_default().len() <= MAX_VALUE_BYTES);
            }
            let full = format!("linux $a{}", "$a".repeat(text.len()));
            let _ = Entry::parse("x.conf", &full, &variables);
        }
    }
}
