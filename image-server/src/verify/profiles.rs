//! Every boot profile and every object of a boot stream: hashed, its signature checked, its streams looked for.
//!
//! Only what counts at that moment is reported: gc deletes profiles that others have replaced, and streams that none names.

use std::collections::HashSet;

use chunk_format::{
    MAX_PROFILE_BYTES, MAX_SIGNATURE_BYTES, MAX_STREAM_BYTES, Namespace, Profile, Signature, StreamId,
};

use super::{ADVICE_PROFILE, Check, Part, VerifyError};
use crate::database::profiles::{self, ProfileRow, ProfileRowId, StreamRow, StreamRowId};
use crate::database::versions;
use crate::storage::{Object, ObjectKey};

const ROWS_AT_ONCE: u32 = 64;

impl Check<'_> {
    pub(super) async fn profiles(&mut self) -> Result<(), VerifyError> {
        let total = profiles::count(self.database.readers()).await?;
        self.progress.begin(Part::Profiles, total);
        let mut after = StreamRowId(0);
        loop {
            let rows = profiles::list_streams_after(self.database.readers(), after, ROWS_AT_ONCE).await?;
            let Some(last) = rows.last() else { break };
            after = last.row;
            self.know(rows.iter().map(|row| row.namespace)).await?;
            for row in rows {
                let namespace = self.name(row.namespace)?;
                let key = ObjectKey { namespace, object: Object::Stream(row.stream) };
                self.reachable()?;
                if let Err(problem) = self.stream(&key, &row).await
                    && self.stream_counts(&key.namespace, &row).await?
                {
                    self.find(&key, problem, ADVICE_PROFILE);
                }
                self.report.streams += 1;
                self.progress.advance(1);
            }
        }
        let mut after = ProfileRowId(0);
        loop {
            let rows = profiles::list_after(self.database.readers(), after, ROWS_AT_ONCE).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.row;
            for row in rows {
                self.profile(&row).await?;
                self.report.profiles += 1;
                self.progress.advance(1);
            }
        }
    }

    async fn stream(&self, key: &ObjectKey, row: &StreamRow) -> Result<(), String> {
        let bytes =
            self.read_whole(&key.namespace, key.object, MAX_STREAM_BYTES).await.map_err(|(_, p)| p)?;
        if bytes.len() as u64 != row.len_bytes {
            return Err(format!("it has {} bytes, the database says {}", bytes.len(), row.len_bytes));
        }
        let id: StreamId = row.stream;
        let hashed = tokio::task::spawn_blocking(move || id.verify(&bytes)).await;
        match hashed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn stream_counts(&self, namespace: &Namespace, row: &StreamRow) -> Result<bool, VerifyError> {
        Ok(profiles::stream_len(self.database.readers(), namespace, row.stream).await?.is_some())
    }

    async fn profile(&mut self, row: &ProfileRow) -> Result<(), VerifyError> {
        self.reachable()?;
        let problems = self.profile_problems(row).await?;
        if problems.is_empty() || !profiles::is_current(self.database.readers(), row.row).await? {
            return Ok(());
        }
        for (key, problem) in problems {
            self.find(&key, problem, ADVICE_PROFILE);
        }
        Ok(())
    }

    async fn profile_problems(&self, row: &ProfileRow) -> Result<Vec<(ObjectKey, String)>, VerifyError> {
        let (namespace, _) = versions::series_of(self.database.readers(), row.version).await?;
        let key = |object| ObjectKey { namespace: namespace.clone(), object };
        let object = Object::Profile(row.profile);
        let signed = Object::ProfileSignature(row.profile);
        let read = async {
            let bytes = self.read_whole(&namespace, object, MAX_PROFILE_BYTES).await?;
            let wrong = |error: chunk_format::FormatError| (object, error.to_string());
            row.profile.verify(&bytes).map_err(wrong)?;
            let profile = Profile::decode(&bytes).map_err(wrong)?;
            let line = self.read_whole(&namespace, signed, MAX_SIGNATURE_BYTES).await?;
            let unsigned = |error: chunk_format::FormatError| (signed, error.to_string());
            let signature = Signature::decode(&line).map_err(unsigned)?;
            signature.verify("the profile", &bytes).map_err(unsigned)?;
            // The same profile may have been signed and attached again, or begun to be.
            if signature.key != row.signature.key {
                return Err((
                    signed,
                    "it is signed with another key than the one that was attached".to_owned(),
                ));
            }
            Ok(profile)
        };
        let profile = match read.await {
            Ok(profile) => profile,
            Err((object, problem)) => return Ok(vec![(key(object), problem)]),
        };
        let mut problems = Vec::new();
        let version = versions::get(self.database.readers(), row.version).await?;
        if version.is_none_or(|version| version.id != profile.manifest) {
            problems.push((key(object), "it is the profile of another version".to_owned()));
        }
        let mut lost = HashSet::new();
        for stream in &profile.streams {
            let len = profiles::stream_len(self.database.readers(), &namespace, stream.id).await?;
            if len != Some(u64::from(stream.len_bytes)) {
                lost.insert(stream.id);
            }
        }
        if !lost.is_empty() {
            problems.push((key(object), format!("{} of its streams are not in the database", lost.len())));
        }
        Ok(problems)
    }
}
