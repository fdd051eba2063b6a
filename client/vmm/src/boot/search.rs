//! The order in which a disk is looked through.

use super::bounded::SharedDisk;
use super::choice::{Choice, by_entries, by_grub, by_version};
use super::filesystem;
use super::load::{CandidateError, load};
use super::origin::{Place, shown};
use super::partitions::{Guid, Kind, partitions};
use super::volume::Volume;
use super::{BootError, BootPlan};

/// Volumes that are opened.
const MAX_VOLUMES: usize = 32;
/// Partitions that are told about when nothing was found.
const MAX_SEEN: usize = 16;
/// Kernels that are tried in one way.
const MAX_TRIES: usize = 8;

/// Looks for a kernel, on this thread.
pub(super) fn search(disk: &SharedDisk) -> Result<BootPlan, BootError> {
    let mut search = Search { volumes: Vec::new(), seen: Vec::new(), failed: None };
    search.open(disk)?;
    for way in [Search::entries, Search::grub, Search::newest] {
        for place in 0..search.volumes.len() {
            if let Some(plan) = way(&mut search, place) {
                return Ok(plan);
            }
        }
    }
    match search.failed {
        Some((chosen_by, source)) => Err(BootError::Unusable { chosen_by, source }),
        None => Err(BootError::NotFound(search.seen)),
    }
}

struct Search {
    volumes: Vec<Volume>,
    /// What was seen of the disk, in words.
    seen: Vec<String>,
    /// The first choice that came to nothing, and why.
    failed: Option<(String, CandidateError)>,
}

impl Search {
    /// Opens every file system that can be: a root by its type first, then a `/boot` by its type, then the rest.
    fn open(&mut self, disk: &SharedDisk) -> Result<(), BootError> {
        let mut partitions = partitions(disk.as_ref()).map_err(BootError::Disk)?;
        partitions.sort_by_key(|partition| match partition.kind {
            Kind::Gpt(Guid::LINUX_ROOT_X86_64) => 0,
            Kind::Gpt(Guid::XBOOTLDR) => 1,
            _ => 2,
        });
        for partition in &partitions {
            let opened =
                if self.volumes.len() < MAX_VOLUMES { Volume::open(disk, partition) } else { Ok(None) };
            let state = match (&opened, filesystem::name(disk.as_ref(), partition)) {
                (Ok(Some(_)), _) => "ext4".to_owned(),
                (Err(error), _) => format!("ext4 that cannot be read: {error}"),
                (Ok(None), Some(name @ "ext4")) => format!("{name} that cannot be read"),
                (Ok(None), Some(name)) => format!("{name}, which is not read"),
                (Ok(None), None) => "no known file system".to_owned(),
            };
            if self.seen.len() < MAX_SEEN {
                let kind = if partition.kind == Kind::Whole {
                    String::new()
                } else {
                    format!("{}: ", partition.kind)
                };
                self.seen.push(format!("{} ({kind}{})", Place::from(partition), shown(&state)));
            }
            self.volumes.extend(opened.ok().flatten());
        }
        Ok(())
    }

    fn entries(&mut self, place: usize) -> Option<BootPlan> {
        let choices = by_entries(&self.volumes, place);
        choices.into_iter().take(MAX_TRIES).find_map(|choice| self.attempt(&choice))
    }

    fn grub(&mut self, place: usize) -> Option<BootPlan> {
        by_grub(&self.volumes, place).into_iter().find_map(|(config, choice)| match choice {
            Ok(choice) => self.attempt(&choice),
            Err(error) => {
                self.fail(config, error);
                None
            }
        })
    }

    fn newest(&mut self, place: usize) -> Option<BootPlan> {
        let choices = by_version(&self.volumes, place);
        choices.into_iter().take(MAX_TRIES).find_map(|choice| self.attempt(&choice))
    }

    fn attempt(&mut self, choice: &Choice) -> Option<BootPlan> {
        match load(&self.volumes, choice) {
            Ok(plan) => {
                if let Some((chosen_by, _)) = &self.failed {
                    tracing::warn!(chosen_by, instead = %plan.origin, "the first choice of a kernel cannot be started");
                }
                Some(plan)
            }
            Err(error) => {
                let chosen_by = match (&choice.config, &choice.title) {
                    (Some(config), Some(title)) => format!("`{}` in {}", shown(title), shown(config)),
                    (Some(config), None) => shown(config),
                    (None, _) => shown(&choice.kernel),
                };
                self.fail(chosen_by, error);
                None
            }
        }
    }

    fn fail(&mut self, chosen_by: String, error: CandidateError) {
        self.failed.get_or_insert((chosen_by, error));
    }
}
