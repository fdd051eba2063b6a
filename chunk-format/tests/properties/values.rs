//! Values of every structure, as proptest strategies.

#![allow(clippy::unwrap_used, reason = "these values are in range by construction")]

use std::collections::BTreeSet;

use chunk_format::{
    Architecture, Base, BootFacts, BootStream, ChunkId, ChunkIndex, ChunkPlace, ChunkSize, Disk, DiskRole,
    DiskSize, Features, Firmware, FrameEncoder, Locator, Manifest, ManifestId, Name, Namespace, PackBuilder,
    PackId, PackRef, Profile, ProfileEntry, SEGMENT_CHUNKS, SealedPack, SecretKey, Segment, SegmentId,
    StreamId, Subject, SystemMode, is_zero,
};
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

const SMALL_CHUNK_BYTES: usize = 4096;

/// A payload between the extremes: a short pattern repeated, with some bytes changed; or noise.
pub(crate) fn payload(len: usize) -> impl Strategy<Value = Vec<u8>> {
    let repeated = (vec(any::<u8>(), 1..64), vec((any::<Index>(), any::<u8>()), 0..200)).prop_map(
        move |(pattern, changes)| {
            let mut bytes: Vec<u8> = pattern.into_iter().cycle().take(len).collect();
            for (at, value) in changes {
                bytes[at.index(len)] = value;
            }
            bytes
        },
    );
    prop_oneof![3 => repeated, 1 => vec(any::<u8>(), len)]
}

pub(crate) fn chunk() -> impl Strategy<Value = Vec<u8>> {
    payload(SMALL_CHUNK_BYTES).prop_filter("the zero chunk is not stored", |chunk| !is_zero(chunk))
}

pub(crate) fn id_bytes() -> impl Strategy<Value = [u8; 32]> {
    prop_oneof![1 => Just([0; 32]), 9 => any::<[u8; 32]>()]
}

pub(crate) fn name() -> impl Strategy<Value = Name> {
    "[a-z0-9][a-z0-9._-]{0,63}".prop_map(|text| text.parse().unwrap())
}

pub(crate) fn namespace() -> impl Strategy<Value = Namespace> {
    prop_oneof![name().prop_map(Namespace::Image), name().prop_map(Namespace::User)]
}

pub(crate) fn chunk_size() -> impl Strategy<Value = ChunkSize> {
    (12u8..=22).prop_map(|log2| ChunkSize::from_log2(log2).unwrap())
}

pub(crate) fn pack() -> impl Strategy<Value = SealedPack> {
    vec(chunk(), 1..8).prop_map(|chunks| {
        let mut encoder = FrameEncoder::new().unwrap();
        let mut builder = PackBuilder::new(ChunkSize::new(SMALL_CHUNK_BYTES as u64).unwrap());
        for chunk in &chunks {
            builder.add(ChunkId::of_chunk(chunk), chunk, &mut encoder).unwrap();
        }
        builder.seal().unwrap()
    })
}

pub(crate) fn segment() -> impl Strategy<Value = Segment> {
    vec((any::<Index>(), any::<[u8; 32]>()), 1..100).prop_map(|ids| {
        let mut segment = Segment::zero();
        for (at, id) in ids {
            segment.set(at.index(SEGMENT_CHUNKS), ChunkId::from_bytes(id)).unwrap();
        }
        segment
    })
}

pub(crate) fn locator() -> impl Strategy<Value = Locator> {
    let pack_ref =
        (namespace(), any::<[u8; 32]>(), 1000u32..=32 << 20).prop_map(|(namespace, pack, pack_len)| {
            PackRef { namespace, pack: PackId::from_bytes(pack), pack_len }
        });
    let place = (any::<Index>(), any::<Index>(), any::<Index>());
    (any::<[u8; 32]>(), vec(pack_ref, 1..20), vec((any::<Index>(), place), 0..200)).prop_map(
        |(segment, packs, chosen)| {
            let mut places = vec![None; SEGMENT_CHUNKS];
            for (at, (pack, offset, frame_len)) in chosen {
                let pack = pack.index(packs.len());
                let pack_len = packs[pack].pack_len as usize;
                let offset = 16 + offset.index(pack_len - 16 - 2);
                let frame_len = 2 + frame_len.index((pack_len - offset - 1).min((4 << 20) - 1));
                places[at.index(SEGMENT_CHUNKS)] = Some(ChunkPlace {
                    pack: u16::try_from(pack).unwrap(),
                    offset: u32::try_from(offset).unwrap(),
                    frame_len: u32::try_from(frame_len).unwrap(),
                });
            }
            Locator::new(SegmentId::from_bytes(segment), packs, places).unwrap()
        },
    )
}

pub(crate) fn disk(role: DiskRole) -> impl Strategy<Value = Disk> {
    (chunk_size(), 1u64..6, 0u64..1 << 20).prop_flat_map(move |(chunk_size, segments, less)| {
        let full_bytes = segments * chunk_size.segment_span_bytes();
        let size = DiskSize::new((full_bytes - less) / 512 * 512).unwrap();
        let segments = usize::try_from(size.segments(chunk_size).unwrap()).unwrap();
        vec(id_bytes().prop_map(SegmentId::from_bytes), segments).prop_map(move |segments| Disk {
            role,
            size,
            chunk_size,
            segments,
        })
    })
}

/// Text of all scripts, without the characters that would turn a line around.
pub(crate) fn text_for_people() -> impl Strategy<Value = String> {
    "[\\PC&&[^\u{61c}\u{200e}\u{200f}\u{2028}-\u{202e}\u{2066}-\u{2069}\u{feff}]]{0,30}"
}

pub(crate) fn features() -> impl Strategy<Value = Features> {
    let names = || vec(name().prop_map(String::from), 0..4);
    (names(), names()).prop_map(|(compatible, read_only_compatible)| Features {
        compatible,
        read_only_compatible,
        incompatible: Vec::new(),
    })
}

pub(crate) fn manifest() -> impl Strategy<Value = Manifest> {
    let subject_and_base = prop_oneof![
        name().prop_map(|image| (Subject::Image { image }, None)),
        (name(), name(), name(), option::of(name()), any::<[u8; 32]>()).prop_map(
            |(owner, desktop, image, channel, version)| {
                let publisher = SecretKey::from_bytes(&version).public();
                let base = Base { image, channel, version: ManifestId::from_bytes(version), publisher };
                (Subject::Desktop { owner, desktop }, Some(base))
            }
        ),
    ];
    let disks = (disk(DiskRole::System), option::of(disk(DiskRole::Home)))
        .prop_map(|(system, home)| [Some(system), home].into_iter().flatten().collect::<Vec<_>>());
    let firmware = prop_oneof![Just(Firmware::Bios), Just(Firmware::Uefi)];
    (
        features(),
        subject_and_base,
        option::of((any::<[u8; 32]>(), 2u64..1 << 53)),
        0u64..1 << 53,
        text_for_people(),
        option::of(text_for_people()),
        disks,
        firmware,
        option::of(select(vec![SystemMode::Renew, SystemMode::Keep, SystemMode::Own])),
    )
        .prop_map(
            |(features, (subject, base), parent, created_ms, machine, note, disks, firmware, system_mode)| {
                Manifest {
                    features,
                    subject,
                    base,
                    parent: parent.map(|(id, _)| ManifestId::from_bytes(id)),
                    sequence: parent.map_or(1, |(_, sequence)| sequence),
                    created_ms,
                    machine,
                    note,
                    disks,
                    boot: BootFacts { firmware, architecture: Architecture::X86_64 },
                    system_mode,
                }
            },
        )
}

pub(crate) fn profile() -> impl Strategy<Value = Profile> {
    let keys: fn() -> _ =
        || btree_set((0u8..4, 0u64..1 << 26), 0..200).prop_map(Vec::from_iter).prop_shuffle();
    (any::<[u8; 32]>(), keys(), vec(any::<Index>(), 0..5), any::<bool>(), 1u32..=16 << 20).prop_map(
        |(manifest, keys, cuts, streamed, len_bytes)| {
            let entries: Vec<_> = keys
                .into_iter()
                .map(|(disk, chunk)| ProfileEntry { disk, chunk: ChunkIndex(chunk) })
                .collect();
            let mut streams = Vec::new();
            if streamed && !entries.is_empty() {
                let ends: BTreeSet<_> = cuts.iter().map(|cut| cut.index(entries.len()) + 1).collect();
                let mut start = 0;
                for end in ends.into_iter().chain([entries.len()]).filter(|end| *end > 0) {
                    if end > start {
                        let id = StreamId::of(&end.to_le_bytes());
                        streams.push(BootStream {
                            id,
                            len_bytes,
                            entries: u32::try_from(end - start).unwrap(),
                        });
                        start = end;
                    }
                }
            }
            Profile { manifest: ManifestId::from_bytes(manifest), entries, streams }
        },
    )
}
