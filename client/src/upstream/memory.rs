//! A server in memory: data plane and commits, with a switch to lose the network. For tests.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use chunk_format::{
    ChunkId, ChunkPlace, Disk, FrameDecoder, FrameEncoder, Locator, Manifest, ManifestId, Namespace,
    PackBuilder, PackFooter, PackId, PackRef, PublicKey, SEGMENT_CHUNKS, Segment, SegmentId, Signature,
    Subject,
};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use reqwest::StatusCode;

use super::{CommitError, Upstream};
use crate::remote::{LeaseInfo, Placing, PresentIn, RemoteError, VersionInfo};
use crate::source::{ChunkSource, FailureKind, Object, ObjectBody, ObjectPath, SourceError};

/// A server in memory. Clones are the same server.
#[derive(Clone, Default)]
pub struct MemoryServer {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    objects: HashMap<String, Bytes>,
    chunks: HashMap<(Namespace, ChunkId), (PackRef, u32, u32)>,
    histories: BTreeMap<String, Vec<VersionInfo>>,
    subjects: Vec<Subject>,
    /// The keys of the machines that hold leases.
    leases: HashMap<String, PublicKey>,
    requests: u64,
    /// Requests left before the network goes away.
    network: Option<u64>,
    uploaded_chunks: u64,
}

impl MemoryServer {
    /// Requests answered so far.
    pub fn requests(&self) -> u64 {
        self.lock().requests
    }

    /// Chunks that came in packs so far.
    pub fn uploaded_chunks(&self) -> u64 {
        self.lock().uploaded_chunks
    }

    /// Takes the network away after this many more requests; `None` gives it back.
    pub fn lose_network_after(&self, requests: Option<u64>) {
        self.lock().network = requests;
    }

    /// Changes one byte of a stored object.
    pub fn damage(&self, path: &ObjectPath, at: usize) {
        let mut state = self.lock();
        if let Some(object) = state.objects.get_mut(&path.to_string()) {
            let mut bytes = object.to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 0x20;
            *object = bytes.into();
        }
    }

    /// Loses a stored object.
    pub fn lose(&self, path: &ObjectPath) {
        self.lock().objects.remove(&path.to_string());
    }

    /// Loses what users sent but for their versions, as a server does that is set back.
    pub fn lose_what_users_sent(&self) {
        let mut state = self.lock();
        state.chunks.retain(|(namespace, _), _| matches!(namespace, Namespace::Image(_)));
        state.objects.retain(|path, _| path.starts_with("image/") || path.contains("/manifests/"));
    }

    /// Stores an object as it is.
    pub fn store(&self, path: &ObjectPath, bytes: Vec<u8>) {
        self.lock().objects.insert(path.to_string(), bytes.into());
    }

    /// The paths of all objects.
    pub fn objects(&self) -> Vec<String> {
        self.lock().objects.keys().cloned().collect()
    }

    /// The versions of an image or desktop, oldest first.
    pub fn history(&self, subject: &Subject) -> Vec<VersionInfo> {
        self.lock().histories.get(&subject_key(subject)).cloned().unwrap_or_default()
    }

    /// What there are versions of, in the order of their first.
    pub fn subjects(&self) -> Vec<Subject> {
        self.lock().subjects.clone()
    }

    /// Gives the lease of a desktop to a machine, whoever had it; or to none.
    pub fn take_lease(&self, subject: &Subject, holder: Option<PublicKey>) {
        let mut state = self.lock();
        match holder {
            Some(holder) => state.leases.insert(subject_key(subject), holder),
            None => state.leases.remove(&subject_key(subject)),
        };
    }

    /// Ends a machine's lease of a desktop, if it has it.
    pub fn release_lease(&self, subject: &Subject, holder: &PublicKey) {
        let mut state = self.lock();
        let key = subject_key(subject);
        if state.leases.get(&key) == Some(holder) {
            state.leases.remove(&key);
        }
    }

    /// Stores a disk's content as chunks and segments; the disk as a manifest has it.
    ///
    /// # Panics
    /// When the content does not fit the formats: the test is wrong.
    #[expect(clippy::unwrap_used, reason = "for tests only; what is stored is the test's own")]
    pub fn store_disk(&self, namespace: &Namespace, template: &Disk, content: &[u8]) -> Disk {
        let mut encoder = FrameEncoder::new().unwrap();
        let mut ids = Vec::new();
        let mut builder = PackBuilder::new(template.chunk_size);
        for bytes in content.chunks(template.chunk_size.bytes()) {
            let mut chunk = bytes.to_vec();
            chunk.resize(template.chunk_size.bytes(), 0);
            let id = ChunkId::of_chunk(&chunk);
            let known = self.lock().chunks.contains_key(&(namespace.clone(), id));
            if !id.is_zero() && !known && !ids.contains(&id) {
                builder.add(id, &chunk, &mut encoder).unwrap();
            }
            ids.push(id);
        }
        if let Some(pack) = builder.seal() {
            self.lock().take_pack(namespace, pack.id, pack.bytes.into()).unwrap();
        }
        let place = PresentIn { namespace: namespace.clone(), also: None };
        let segments = ids
            .chunks(SEGMENT_CHUNKS)
            .map(|ids| {
                let segment = Segment::new(ids.to_vec()).unwrap();
                if !segment.id().is_zero() {
                    let frame = segment.encode(&mut encoder).unwrap();
                    self.lock().take_segment(&place, segment.id(), frame).unwrap();
                }
                segment.id()
            })
            .collect();
        Disk { segments, ..template.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request, or fails it when the network is gone.
    fn online(&self) -> Result<MutexGuard<'_, State>, RemoteError> {
        let mut state = self.lock();
        if let Some(left) = &mut state.network {
            if *left == 0 {
                return Err(refused(StatusCode::BAD_GATEWAY, "", "the network is gone"));
            }
            *left -= 1;
        }
        state.requests += 1;
        Ok(state)
    }
}

impl State {
    fn take_pack(&mut self, namespace: &Namespace, id: PackId, pack: Bytes) -> Result<(), RemoteError> {
        let damaged = |error: chunk_format::FormatError| {
            refused(StatusCode::UNPROCESSABLE_ENTITY, "damaged", &error.to_string())
        };
        id.verify(&pack).map_err(damaged)?;
        let footer = PackFooter::decode_pack(&pack).map_err(damaged)?;
        FrameDecoder::new()
            .and_then(|mut decoder| footer.verify_frames(&pack, &mut decoder))
            .map_err(damaged)?;
        let pack_len = u32::try_from(pack.len()).unwrap_or(u32::MAX);
        let pack_ref = PackRef { namespace: namespace.clone(), pack: id, pack_len };
        for entry in &footer.entries {
            self.uploaded_chunks += 1;
            self.chunks
                .entry((namespace.clone(), entry.chunk))
                .or_insert_with(|| (pack_ref.clone(), entry.offset, entry.frame_len));
        }
        self.objects.insert(format!("{namespace}/packs/{id}"), pack);
        Ok(())
    }

    fn take_segment(&mut self, place: &PresentIn, id: SegmentId, frame: Vec<u8>) -> Result<(), RemoteError> {
        let internal = |error: chunk_format::FormatError| {
            refused(StatusCode::UNPROCESSABLE_ENTITY, "damaged", &error.to_string())
        };
        let segment = FrameDecoder::new()
            .and_then(|mut decoder| Segment::decode(&frame, id, &mut decoder))
            .map_err(internal)?;
        let mut packs: Vec<PackRef> = Vec::new();
        let mut places = Vec::new();
        for chunk in segment.chunks() {
            if chunk.is_zero() {
                places.push(None);
                continue;
            }
            let Some((pack, offset, frame_len)) =
                place.readable().find_map(|ns| self.chunks.get(&(ns, *chunk)))
            else {
                return Err(refused(StatusCode::CONFLICT, "chunks_missing", "chunks are missing"));
            };
            let at = packs.iter().position(|known| known == pack).unwrap_or_else(|| {
                packs.push(pack.clone());
                packs.len() - 1
            });
            let pack = u16::try_from(at).unwrap_or(u16::MAX);
            places.push(Some(ChunkPlace { pack, offset: *offset, frame_len: *frame_len }));
        }
        let locator = Locator::new(id, packs, places)
            .and_then(|locator| locator.encode(&mut FrameEncoder::new()?))
            .map_err(internal)?;
        self.objects.insert(format!("{}/locators/{id}", place.namespace), locator.into());
        self.objects.insert(format!("{}/segments/{id}", place.namespace), frame.into());
        Ok(())
    }

    fn take_version(
        &mut self,
        subject: &Subject,
        placing: Placing<'_>,
        bytes: Vec<u8>,
        signature: &Signature,
    ) -> Result<VersionInfo, CommitError> {
        let refuse = |reason: String| refused(StatusCode::UNPROCESSABLE_ENTITY, "damaged", &reason);
        signature.verify("manifest", &bytes).map_err(|error| refuse(error.to_string()))?;
        let manifest = Manifest::decode(&bytes).map_err(|error| refuse(error.to_string()))?;
        let id = ManifestId::of(&bytes);
        let history = self.histories.entry(subject_key(subject)).or_default();
        if let Some(known) = history.iter().find(|version| version.id == id) {
            return Ok(known.clone());
        }
        let head = history.last();
        let holder = self.leases.get(&subject_key(subject)).filter(|holder| **holder != signature.key);
        if let (Some(holder), Some(head)) = (holder, head) {
            let lease = LeaseInfo {
                key: *holder,
                machine: "another machine".to_owned(),
                since_ms: 0,
                renewed_ms: 0,
                expires_ms: 0,
                version: head.clone(),
                wanted: None,
                refusal: None,
            };
            return Err(CommitError::LeaseHeld { lease: Box::new(lease) });
        }
        let begins_fork = head.is_none() && placing.fork_of.is_some();
        if !begins_fork && manifest.parent != head.map(|head| head.id) {
            return Err(match head {
                Some(head) => CommitError::HeadMoved { head: Box::new(head.clone()) },
                None => CommitError::Gone,
            });
        }
        let is_next = begins_fork || manifest.sequence == head.map_or(1, |head| head.sequence + 1);
        if !is_next || manifest.subject != *subject {
            return Err(refuse("the manifest does not follow its parent".to_owned()).into());
        }
        let version = VersionInfo {
            id,
            sequence: manifest.sequence,
            parent: manifest.parent,
            created_ms: manifest.created_ms,
            committed_ms: manifest.created_ms,
            machine: manifest.machine.clone(),
            note: manifest.note.clone(),
            key: signature.key,
            size_bytes: manifest.disks.iter().map(|disk| disk.size.bytes()).sum(),
            stored_bytes: None,
            golden: None,
            pruned_ms: None,
        };
        history.push(version.clone());
        if history.len() == 1 {
            self.subjects.push(subject.clone());
        }
        let namespace = subject.namespace();
        self.objects.insert(format!("{namespace}/manifests/{id}"), bytes.into());
        self.objects.insert(format!("{namespace}/manifests/{id}.sig"), signature.encode().into());
        Ok(version)
    }
}

impl PresentIn {
    fn readable(&self) -> impl Iterator<Item = Namespace> + '_ {
        std::iter::once(&self.namespace).chain(&self.also).cloned()
    }
}

impl Upstream for MemoryServer {
    fn missing_chunks<'a>(
        &'a self,
        place: &'a PresentIn,
        ids: &'a [ChunkId],
    ) -> BoxFuture<'a, Result<Vec<bool>, RemoteError>> {
        Box::pin(async move {
            let state = self.online()?;
            Ok(ids
                .iter()
                .map(|id| !place.readable().any(|ns| state.chunks.contains_key(&(ns, *id))))
                .collect())
        })
    }

    fn missing_segments<'a>(
        &'a self,
        place: &'a PresentIn,
        ids: &'a [SegmentId],
    ) -> BoxFuture<'a, Result<Vec<bool>, RemoteError>> {
        Box::pin(async move {
            let state = self.online()?;
            let here = |ns: Namespace, id| state.objects.contains_key(&format!("{ns}/segments/{id}"));
            Ok(ids.iter().map(|id| !place.readable().any(|ns| here(ns, id))).collect())
        })
    }

    fn is_removed(&self, _version: ManifestId) -> BoxFuture<'_, Result<bool, RemoteError>> {
        Box::pin(async move { self.online().map(|_| false) })
    }

    fn put_pack<'a>(
        &'a self,
        namespace: &'a Namespace,
        id: PackId,
        pack: Bytes,
    ) -> BoxFuture<'a, Result<(), RemoteError>> {
        Box::pin(async move { self.online()?.take_pack(namespace, id, pack) })
    }

    fn put_segment<'a>(
        &'a self,
        place: &'a PresentIn,
        id: SegmentId,
        frame: Vec<u8>,
    ) -> BoxFuture<'a, Result<(), RemoteError>> {
        Box::pin(async move { self.online()?.take_segment(place, id, frame) })
    }

    fn commit<'a>(
        &'a self,
        subject: &'a Subject,
        placing: Placing<'a>,
        manifest: Vec<u8>,
        signature: &'a Signature,
    ) -> BoxFuture<'a, Result<VersionInfo, CommitError>> {
        Box::pin(async move {
            let version = self.online()?.take_version(subject, placing, manifest, signature)?;
            // The answer may be lost after the commit was done.
            drop(self.online()?);
            Ok(version)
        })
    }

    fn head<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Result<Option<VersionInfo>, RemoteError>> {
        Box::pin(async move {
            Ok(self.online()?.histories.get(&subject_key(subject)).and_then(|h| h.last().cloned()))
        })
    }
}

impl ChunkSource for MemoryServer {
    fn origin(&self) -> String {
        "memory".to_owned()
    }

    fn get<'a>(
        &'a self,
        path: &'a ObjectPath,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
        Box::pin(async move {
            let error = |kind, cause: &str| SourceError {
                origin: self.origin(),
                object: path.to_string(),
                kind,
                retry_after: None,
                cause: cause.into(),
            };
            let state = self.online().map_err(|_| error(FailureKind::Unreachable, "the network is gone"))?;
            let Some(object) = state.objects.get(&path.to_string()) else {
                return Err(error(FailureKind::NotFound, "no such object"));
            };
            let part = match range {
                None => object.clone(),
                Some(range) => {
                    let bound = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(object.len());
                    object.slice(bound(range.start)..bound(range.end))
                }
            };
            // In pieces, as a network delivers it.
            let pieces: Vec<_> = (0..part.len())
                .step_by(10_000)
                .map(|at| Ok(part.slice(at..(at + 10_000).min(part.len()))))
                .collect();
            Ok(stream::iter(pieces).boxed())
        })
    }
}

/// The objects a namespace's version refers to, for tests that damage them.
impl From<(Namespace, Object)> for ObjectPath {
    fn from((namespace, object): (Namespace, Object)) -> Self {
        Self { namespace, object }
    }
}

fn subject_key(subject: &Subject) -> String {
    match subject {
        Subject::Image { image } => format!("image/{image}"),
        Subject::Desktop { owner, desktop } => format!("{owner}/{desktop}"),
    }
}

fn refused(status: StatusCode, code: &str, message: &str) -> RemoteError {
    RemoteError::Refused {
        status,
        code: code.to_owned(),
        message: message.to_owned(),
        details: serde_json::Value::Null,
        retry_after_s: None,
    }
}
