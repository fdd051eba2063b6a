//! Debian packages of a system, from `/var/lib/dpkg/status` (deb-control(5), dpkg's database).

use std::collections::BTreeMap;

use serde::Serialize;

use super::{FileSystem, FilesError, shown};

const STATUS_PATH: &[u8] = b"/var/lib/dpkg/status";
/// The longest list of packages that is read: several times that of a large desktop.
const MAX_STATUS_BYTES: u64 = 32 << 20;
/// The longest value that counts: names and versions have some dozen bytes.
const MAX_VALUE_BYTES: usize = 256;
/// The most packages that are kept: more than any archive has.
const MAX_PACKAGES: usize = 200_000;

/// The installed packages and their versions; `NAME:ARCHITECTURE` where one is installed for several.
pub type Packages = BTreeMap<String, String>;

/// A package that is there in another version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Upgraded {
    /// Its name.
    pub package: String,
    /// Its version before.
    pub before: String,
    /// Its version after.
    pub after: String,
}

/// A package that came or went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Named {
    /// Its name.
    pub package: String,
    /// Its version.
    pub version: String,
}

/// What became of a system's packages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PackageChanges {
    /// Installed after only.
    pub added: Vec<Named>,
    /// Installed before only.
    pub removed: Vec<Named>,
    /// Installed in another version, be it older.
    pub upgraded: Vec<Upgraded>,
}

impl PackageChanges {
    /// Compares two systems.
    pub fn between(before: &Packages, after: &Packages) -> Self {
        let only = |here: &Packages, there: &Packages| {
            let only = here.iter().filter(|(package, _)| !there.contains_key(*package));
            only.map(|(package, version)| Named { package: package.clone(), version: version.clone() })
                .collect()
        };
        let both = after.iter().filter_map(|(package, after)| Some((package, before.get(package)?, after)));
        let upgraded = both.filter(|(_, before, after)| before != after).map(|(package, before, after)| {
            Upgraded { package: package.clone(), before: before.clone(), after: after.clone() }
        });
        Self { added: only(after, before), removed: only(before, after), upgraded: upgraded.collect() }
    }
}

/// The packages installed on a system; `None` when it has no such database.
///
/// # Errors
/// As [`FileSystem::read`].
pub fn installed(fs: &FileSystem) -> Result<Option<Packages>, FilesError> {
    let inode = match fs.resolve(STATUS_PATH, true) {
        Err(FilesError::NotFound { .. } | FilesError::NotADirectory { .. }) => return Ok(None),
        inode => inode?,
    };
    Ok(Some(parse(&fs.read_whole(&inode, MAX_STATUS_BYTES)?, MAX_PACKAGES)))
}

fn parse(status: &[u8], limit: usize) -> Packages {
    let mut packages: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let (mut name, mut version, mut architecture, mut is_installed) = Default::default();
    // An empty line ends a package, also the last one.
    for line in status.split(|byte| *byte == b'\n').chain([b"".as_slice()]) {
        let field = |field: &[u8]| {
            let value = line.strip_prefix(field)?.trim_ascii();
            (value.len() <= MAX_VALUE_BYTES).then(|| shown(value))
        };
        if line.is_empty() {
            let found: (String, String, String) =
                (std::mem::take(&mut name), std::mem::take(&mut version), std::mem::take(&mut architecture));
            if std::mem::take(&mut is_installed) && !found.0.is_empty() && packages.len() < limit {
                packages.entry(found.0).or_default().insert(found.2, found.1);
            }
        } else if let Some(value) = field(b"Package:") {
            name = value;
        } else if let Some(value) = field(b"Version:") {
            version = value;
        } else if let Some(value) = field(b"Architecture:") {
            architecture = value;
        } else if let Some(value) = field(b"Status:") {
            is_installed = value.ends_with(" installed");
        }
    }
    let mut found = Packages::new();
    for (name, versions) in packages {
        let is_alone = versions.len() == 1;
        for (architecture, version) in versions {
            let name = if is_alone { name.clone() } else { format!("{name}:{architecture}") };
            found.insert(name, version);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2-1\n\
        Description: a shell\n Package: not a field\n\n\
        Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
        Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36\n\n\
        Package: libc6\nStatus: install ok installed\nArchitecture: i386\nVersion: 2.36\n\n\
        Package: old\nStatus: install ok installed\nVersion: 1.0\n";

    #[test]
    fn a_list_made_to_fill_the_memory_is_cut_short() {
        let long = "x".repeat(MAX_VALUE_BYTES + 1);
        let status = format!("Package: {long}\nStatus: install ok installed\n\n");
        assert!(parse(status.as_bytes(), 10).is_empty());
        let many = (0..19).map(|number| format!("Package: {number}\nStatus: x installed\n\n"));
        assert_eq!(parse(many.collect::<String>().as_bytes(), 10).len(), 10);
    }

    #[test]
    fn packages_are_compared_by_name_and_version() {
        let before = parse(BEFORE.as_bytes(), MAX_PACKAGES);
        let names: Vec<&str> = before.keys().map(String::as_str).collect();
        assert_eq!(names, ["bash", "libc6:amd64", "libc6:i386", "old"]);
        let after = BEFORE.replace("5.2-1", "5.2-2").replace("Package: old", "Package: new");
        let changes = PackageChanges::between(&before, &parse(after.as_bytes(), MAX_PACKAGES));
        let upgraded =
            Upgraded { package: "bash".to_owned(), before: "5.2-1".to_owned(), after: "5.2-2".to_owned() };
        assert_eq!(changes.upgraded, [upgraded]);
        let names = |list: &[Named]| list.iter().map(|named| named.package.clone()).collect::<Vec<_>>();
        assert_eq!(
            (names(&changes.added), names(&changes.removed)),
            (vec!["new".into()], vec!["old".into()])
        );
        assert_eq!(PackageChanges::between(&before, &before), PackageChanges::default());
    }
}
