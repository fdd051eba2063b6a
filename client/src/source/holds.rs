//! Whether a source has all of a golden version: looked at when a person adds it, who else learns at a start without a network
//! that the directory was another one, or an export that was not finished.

use std::collections::{BTreeMap, BTreeSet};

use chunk_format::{
    FrameDecoder, Locator, MAX_LOCATOR_BYTES, MAX_MANIFEST_BYTES, Manifest, ManifestId, Name, Namespace,
    PackId, PackRef, SegmentId, frame_len_max,
};

use super::{ChunkSource, Object, ObjectPath, SourceError, damaged, get_whole};

/// Looks whether a source has a golden version: its manifest, which an export writes last. A source that is on this machine is
/// looked through for all that the version needs.
///
/// # Errors
/// [`SourceError`]: the first thing that could not be had.
pub async fn has_version(
    source: &dyn ChunkSource,
    image: &Name,
    version: ManifestId,
    is_local: bool,
) -> Result<(), SourceError> {
    let namespace = Namespace::Image(image.clone());
    let path = |object| ObjectPath { namespace: namespace.clone(), object };
    let manifest = path(Object::Manifest(version));
    if source.hands_out_chunks() {
        // It has no such files; that it answers is all there is to learn.
        return source.probe(&manifest).await;
    }
    let bytes = get_whole(source, &manifest, MAX_MANIFEST_BYTES).await?;
    version.verify(&bytes).map_err(|error| damaged(source, &manifest, error))?;
    if !is_local {
        return Ok(());
    }
    let decoded = Manifest::decode(&bytes).map_err(|error| damaged(source, &manifest, error))?;
    let segments: BTreeSet<SegmentId> = decoded
        .disks
        .iter()
        .flat_map(|disk| disk.segments.iter().copied())
        .filter(|id| !id.is_zero())
        .collect();
    let mut packs: BTreeMap<PackId, PackRef> = BTreeMap::new();
    for id in segments {
        drop(source.get(&path(Object::Segment(id)), Some(0..1)).await?);
        let locator = path(Object::Locator(id));
        let frame = get_whole(source, &locator, frame_len_max(MAX_LOCATOR_BYTES)).await?;
        let decoded = FrameDecoder::new().and_then(|mut decoder| Locator::decode(&frame, id, &mut decoder));
        let decoded = decoded.map_err(|error| damaged(source, &locator, error))?;
        packs.extend(decoded.packs().iter().map(|pack| (pack.pack, pack.clone())));
    }
    for pack in packs.into_values() {
        let len = u64::from(pack.pack_len);
        let path = ObjectPath { namespace: pack.namespace, object: Object::Pack(pack.pack) };
        drop(source.get(&path, Some(len.saturating_sub(1)..len)).await?);
    }
    Ok(())
}
