//! Every version: its manifest, its signature, its row, and all its segments.

use chunk_format::{
    ID_BYTES, MAX_MANIFEST_BYTES, MAX_SIGNATURE_BYTES, Manifest, Namespace, SegmentId, Signature, Subject,
};

use super::{ADVICE_DATABASE, ADVICE_SIGNATURE, ADVICE_VERSION, Check, Part, VerifyError};
use crate::database::chunks::{self, IdTable};
use crate::database::namespaces::{self, NamespaceId};
use crate::database::versions::{self, VersionRow, VersionRowId};
use crate::database::{Connection, failed};
use crate::storage::{Object, ObjectKey, StorageError};

const ROWS_AT_ONCE: u32 = 64;

impl Check<'_> {
    pub(super) async fn versions(&mut self) -> Result<(), VerifyError> {
        let total = versions::count(self.database.readers()).await?;
        self.progress.begin(Part::Versions, total);
        let mut after = VersionRowId(0);
        loop {
            let rows = versions::list_after(self.database.readers(), after, ROWS_AT_ONCE).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.row;
            for row in rows {
                self.version(&row).await?;
                self.report.versions += 1;
                self.progress.advance(1);
            }
        }
    }

    async fn version(&mut self, row: &VersionRow) -> Result<(), VerifyError> {
        self.reachable()?;
        let mut connection = self.database.readers().acquire().await.map_err(failed("answer"))?;
        let (namespace, series) = versions::series_of(&mut *connection, row.row).await?;
        let label = match &namespace {
            Namespace::Image(_) => format!("image {series} version {} ({})", row.sequence, row.id),
            Namespace::User(user) => format!("desktop {user}/{series} version {} ({})", row.sequence, row.id),
        };
        let subject = match &namespace {
            Namespace::Image(_) => Subject::Image { image: series },
            Namespace::User(user) => Subject::Desktop { owner: user.clone(), desktop: series },
        };
        let (manifest, bytes) = match self.manifest(&namespace, row).await {
            Ok(read) => read,
            Err(_) if was_pruned(&mut connection, row).await? => return Ok(()),
            Err((object, problem)) => {
                let holders = self.holders_of_unread(&mut connection, &namespace, row).await?;
                let key = ObjectKey { namespace, object };
                let finding = self.find(&key, problem, ADVICE_VERSION);
                self.report.findings[finding].affects.insert(label);
                self.note_unread(&holders, &key);
                return Ok(());
            }
        };
        if let Err((object, problem)) = self.signature(&namespace, row).await
            && !was_pruned(&mut connection, row).await?
        {
            let key = ObjectKey { namespace: namespace.clone(), object };
            self.find(&key, problem, ADVICE_SIGNATURE);
        }
        let mut problems = row_problems(row, &manifest, &subject);
        if let Err(error) = row.signature.verify("the manifest", &bytes) {
            problems.push(format!("its signature: {error}"));
        }
        if let Some(base) = &manifest.base {
            let image = Namespace::Image(base.image.clone());
            let found = versions::find(&mut *connection, &image, base.version).await?;
            if found.map(|found| found.row) != row.base {
                problems.push("its base is another than the manifest's".to_owned());
            }
        }
        let holders = holders(&mut connection, &namespace, &manifest).await?;
        let segments = stored_segments(&manifest);
        let missing = chunks::missing(&mut connection, IdTable::Segments, &holders, segments.clone()).await?;
        if !missing.is_empty() {
            problems.push(format!("{} of its segments have no row", missing.len()));
        }
        if !problems.is_empty() && was_pruned(&mut connection, row).await? {
            return Ok(());
        }
        drop(connection);
        if !missing.is_empty() {
            // Nobody looked which packs these need.
            let packs: Vec<_> = self.bad_packs.values().map(|bad| bad.finding).collect();
            for finding in packs {
                self.unsure(finding, format!("{} segments of {label} have no row", missing.len()));
            }
        }
        if !problems.is_empty() {
            let finding = self.find("database", format!("{label}: {}", problems.join("; ")), ADVICE_DATABASE);
            self.report.findings[finding].affects.insert(label.clone());
        }
        self.note_bad_segments(&holders, &segments, &label);
        Ok(())
    }

    /// Names this version in every finding that keeps it from being read whole.
    fn note_bad_segments(&mut self, holders: &[NamespaceId], segments: &[[u8; ID_BYTES]], label: &str) {
        if self.bad_segments.is_empty() {
            return;
        }
        for segment in segments {
            let id = SegmentId::from_bytes(*segment);
            for holder in holders {
                let Some(bad) = self.bad_segments.get_mut(&(*holder, id)) else { continue };
                bad.affects.insert(label.to_owned());
                for finding in &bad.findings {
                    self.report.findings[*finding].affects.insert(label.to_owned());
                }
            }
        }
    }

    /// Says of every finding that a version may need whose manifest cannot be read that it is not known whether it does.
    fn note_unread(&mut self, holders: &[NamespaceId], manifest: &ObjectKey) {
        let bad = self.bad_segments.iter().filter(|((holder, _), _)| holders.contains(holder));
        let findings: Vec<_> = bad.flat_map(|(_, bad)| bad.findings.iter().copied()).collect();
        for finding in findings {
            self.unsure(finding, format!("{manifest} cannot be read"));
        }
    }

    /// Where the segments of a version may lie whose manifest cannot be read.
    async fn holders_of_unread(
        &self,
        connection: &mut Connection,
        namespace: &Namespace,
        row: &VersionRow,
    ) -> Result<Vec<NamespaceId>, VerifyError> {
        let base = match row.base {
            Some(base) => Some(versions::series_of(&mut *connection, base).await?.0),
            None if matches!(namespace, Namespace::User(_)) => {
                return Ok(self.names.keys().copied().collect());
            }
            None => None,
        };
        rows_of(connection, std::iter::once(namespace).chain(&base)).await
    }

    /// Reads and checks a manifest, and gives its bytes, too; or says what is wrong with it.
    async fn manifest(
        &self,
        namespace: &Namespace,
        row: &VersionRow,
    ) -> Result<(Manifest, bytes::Bytes), (Object, String)> {
        let object = Object::Manifest(row.id);
        let bytes = self.read_whole(namespace, object, MAX_MANIFEST_BYTES).await?;
        let wrong = |error: chunk_format::FormatError| (object, error.to_string());
        row.id.verify(&bytes).map_err(wrong)?;
        let manifest = Manifest::decode(&bytes).map_err(wrong)?;
        Ok((manifest, bytes))
    }

    /// Reads a signature and compares it with the version's row, which is what clients are answered from.
    async fn signature(&self, namespace: &Namespace, row: &VersionRow) -> Result<(), (Object, String)> {
        let object = Object::ManifestSignature(row.id);
        let line = self.read_whole(namespace, object, MAX_SIGNATURE_BYTES).await?;
        let wrong = |error: chunk_format::FormatError| (object, error.to_string());
        if Signature::decode(&line).map_err(wrong)? != row.signature {
            return Err((object, "it is another signature than the one that was committed".to_owned()));
        }
        Ok(())
    }

    pub(super) async fn read_whole(
        &self,
        namespace: &Namespace,
        object: Object,
        limit_bytes: usize,
    ) -> Result<bytes::Bytes, (Object, String)> {
        let key = ObjectKey { namespace: namespace.clone(), object };
        self.storage.read(&key, limit_bytes as u64 + 1).await.map_err(|error| match error {
            StorageError::NotFound { .. } => (object, format!("it is missing: {error}")),
            error => (object, crate::cause::chain(&error)),
        })
    }
}

/// Whether a version was pruned since it was listed: what it needed may be gone, rightly.
async fn was_pruned(connection: &mut Connection, row: &VersionRow) -> Result<bool, VerifyError> {
    let now = versions::get(connection, row.row).await?;
    Ok(now.is_none_or(|version| version.pruned_ms.is_some()))
}

/// Where a version's segments may lie.
async fn holders(
    connection: &mut Connection,
    namespace: &Namespace,
    manifest: &Manifest,
) -> Result<Vec<NamespaceId>, VerifyError> {
    let base = manifest.base.as_ref().map(|base| Namespace::Image(base.image.clone()));
    rows_of(connection, std::iter::once(namespace).chain(&base)).await
}

/// The rows of namespaces, of those that have one.
async fn rows_of(
    connection: &mut Connection,
    namespaces: impl Iterator<Item = &Namespace>,
) -> Result<Vec<NamespaceId>, VerifyError> {
    let mut rows = Vec::new();
    for namespace in namespaces {
        rows.extend(namespaces::find(&mut *connection, namespace).await?.map(|row| row.id));
    }
    Ok(rows)
}

fn stored_segments(manifest: &Manifest) -> Vec<[u8; ID_BYTES]> {
    let all = manifest.disks.iter().flat_map(|disk| &disk.segments);
    let mut ids: Vec<[u8; ID_BYTES]> =
        all.filter(|segment| !segment.is_zero()).map(|segment| *segment.as_bytes()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// What a version's row says and its manifest does not.
fn row_problems(row: &VersionRow, manifest: &Manifest, subject: &Subject) -> Vec<String> {
    let size_bytes: u64 = manifest.disks.iter().map(|disk| disk.size.bytes()).fold(0, u64::saturating_add);
    let channel = manifest.base.as_ref().and_then(|base| base.channel.as_ref());
    let agree = [
        ("subject", manifest.subject == *subject),
        ("sequence", manifest.sequence == row.sequence),
        ("parent", manifest.parent == row.parent),
        ("time", manifest.created_ms == row.created_ms),
        ("machine", manifest.machine == row.machine),
        ("note", manifest.note == row.note),
        ("size", size_bytes == row.size_bytes),
        ("base channel", channel == row.base_channel.as_ref()),
    ];
    let differs = agree.into_iter().filter(|(_, same)| !same);
    differs.map(|(field, _)| format!("its {field} is another than the manifest's")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::image_manifest;

    #[test]
    fn segments_are_asked_for_once_and_zero_segments_not_at_all() {
        let segment = SegmentId::of(b"b");
        let manifest = image_manifest("debian", vec![segment, SegmentId::ZERO, segment]);
        assert_eq!(stored_segments(&manifest), [*segment.as_bytes()]);
    }
}
