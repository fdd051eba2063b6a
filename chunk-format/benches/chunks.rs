//! What the formats cost for each chunk and each object: `cargo bench -p chunk-format`.

#![allow(missing_docs, reason = "criterion's macros make a public function without a comment")]

use std::hint::black_box;

use chunk_format::{
    ChunkId, ChunkPlace, ChunkSize, FrameDecoder, FrameEncoder, Locator, MAX_PACK_CHUNKS, PackBuilder,
    PackFooter, PackId, PackRef, SEGMENT_BYTES, SEGMENT_CHUNKS, Segment, is_zero,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const CHUNK_BYTES: usize = 64 << 10;

/// Bytes that compress about as program files do, by half: each word is one of a few hundred or a new one.
fn chunk(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut words = Vec::new();
    let mut bytes = Vec::with_capacity(CHUNK_BYTES);
    while bytes.len() < CHUNK_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if words.len() < 300 || state & 3 == 0 {
            words.push(state.to_le_bytes());
        }
        let at = usize::try_from(state >> 32).unwrap_or(0) % words.len();
        bytes.extend_from_slice(&words[at]);
    }
    bytes
}

fn hashing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("chunk");
    let (data, zeros) = (chunk(1), vec![0; CHUNK_BYTES]);
    group.throughput(Throughput::Bytes(CHUNK_BYTES as u64));
    group.bench_function("id_of_64_kib", |bencher| bencher.iter(|| ChunkId::of(black_box(&data))));
    group.bench_function("is_zero_64_kib", |bencher| bencher.iter(|| is_zero(black_box(&zeros))));
    group.finish();
}

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame");
    let data = chunk(1);
    let id = ChunkId::of(&data);
    let mut encoder = FrameEncoder::new().expect("zstd has memory");
    let mut decoder = FrameDecoder::new().expect("zstd has memory");
    let frame = encoder.encode(&data).expect("zstd has memory");
    let mut decoded = vec![0; CHUNK_BYTES];
    group.throughput(Throughput::Bytes(CHUNK_BYTES as u64));
    group.bench_function("encode", |bencher| {
        let mut out = Vec::new();
        bencher.iter(|| {
            out.clear();
            encoder.encode_to(black_box(&data), &mut out)
        });
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| decoder.decode_exact("chunk", black_box(&frame), &mut decoded));
    });
    group.bench_function("decode_and_verify", |bencher| {
        bencher.iter(|| decoder.decode_chunk(black_box(&frame), id, &mut decoded));
    });
    group.finish();
}

fn ids(count: u64) -> Vec<ChunkId> {
    (0..count).map(|number| ChunkId::of(&number.to_le_bytes())).collect()
}

fn segments(criterion: &mut Criterion) {
    let segment = Segment::new(ids(SEGMENT_CHUNKS as u64)).expect("1,024 ids are a segment");
    let mut encoder = FrameEncoder::new().expect("zstd has memory");
    let mut decoder = FrameDecoder::new().expect("zstd has memory");
    let (frame, id) = (segment.encode(&mut encoder).expect("zstd has memory"), segment.id());
    let mut group = criterion.benchmark_group("segment");
    group.throughput(Throughput::Bytes(SEGMENT_BYTES as u64));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| Segment::decode(black_box(&frame), id, &mut decoder));
    });
    group.finish();
}

fn packs(criterion: &mut Criterion) {
    let mut encoder = FrameEncoder::new().expect("zstd has memory");
    let mut builder = PackBuilder::new(ChunkSize::new(4096).expect("a chunk size"));
    let mut small = [7; 4096];
    for number in 0..MAX_PACK_CHUNKS as u64 {
        small[..8].copy_from_slice(&number.to_le_bytes());
        builder.add(ChunkId::of(&small), &small, &mut encoder).expect("the pack has room");
    }
    let pack = builder.seal().expect("the pack has chunks");
    let mut group = criterion.benchmark_group("pack");
    group.throughput(Throughput::Elements(MAX_PACK_CHUNKS as u64));
    group.bench_function("footer_decode_16384_chunks", |bencher| {
        bencher.iter(|| PackFooter::decode(black_box(&pack.bytes), pack.bytes.len() as u64));
    });
    group.finish();
}

fn locators(criterion: &mut Criterion) {
    let packs = (0..4u8)
        .map(|number| PackRef {
            namespace: "image/debian-12".parse().expect("a namespace"),
            pack: PackId::of(&[number]),
            pack_len: 16 << 20,
        })
        .collect();
    let mut offsets = [16u32; 4];
    let places = (0..SEGMENT_CHUNKS)
        .map(|at| {
            let pack = u16::try_from(at / 256).unwrap_or(0);
            let frame_len = 20_000 + u32::try_from(at * 7919 % 20_000).unwrap_or(0);
            let offset = offsets[usize::from(pack)];
            offsets[usize::from(pack)] += frame_len;
            Some(ChunkPlace { pack, offset, frame_len })
        })
        .collect();
    let segment = Segment::new(ids(SEGMENT_CHUNKS as u64)).expect("1,024 ids are a segment").id();
    let locator = Locator::new(segment, packs, places).expect("all places are in their packs");
    let mut encoder = FrameEncoder::new().expect("zstd has memory");
    let mut decoder = FrameDecoder::new().expect("zstd has memory");
    let frame = locator.encode(&mut encoder).expect("zstd has memory");
    let mut group = criterion.benchmark_group("locator");
    group.throughput(Throughput::Elements(SEGMENT_CHUNKS as u64));
    group.bench_function("encode", |bencher| bencher.iter(|| locator.encode(&mut encoder)));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| Locator::decode(black_box(&frame), segment, &mut decoder));
    });
    group.finish();
}

criterion_group!(benches, hashing, frames, segments, packs, locators);
criterion_main!(benches);
