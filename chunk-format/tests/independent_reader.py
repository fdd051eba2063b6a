#!/usr/bin/env python3
"""Reads the golden store as docs/format.md describes it, sharing no code with the Rust library.

Usage: independent_reader.py DIRECTORY

Checks signatures, walks from each manifest to the bytes of its disks, verifies every id on the way, and prints what it
found, one fact a line. Exit code: 0 done, 1 something does not verify, 77 no zstd to be had (reason on stderr).
"""

import hashlib
import json
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ZERO_ID = bytes(32)
STREAM_HISTORY = 32 << 20
SEGMENT_CHUNKS = 1024
MAX_SEGMENTS = 65536
NAME_CHARACTERS = set("abcdefghijklmnopqrstuvwxyz0123456789._-")


class Refused(Exception):
    """Bytes that are not what they should be."""


def check(condition, reason):
    if not condition:
        raise Refused(reason)


# --- zstd: the standard library's (3.14), the zstandard package, or the command ---


def find_zstd():
    try:
        from compression import zstd

        return zstd.decompress
    except ImportError:
        pass
    try:
        import zstandard

        return zstandard.ZstdDecompressor().decompress
    except ImportError:
        pass
    if shutil.which("zstd"):
        return lambda body: subprocess.run(
            ["zstd", "--decompress", "--stdout", "--quiet"], input=body, capture_output=True, check=True
        ).stdout
    print("no zstd: install python3-zstandard or zstd", file=sys.stderr)
    sys.exit(77)


zstd_decompress = find_zstd()


def zstd_decompress_after(history, body):
    """Decompresses a frame whose raw content dictionary is what came before it."""
    try:
        from compression import zstd

        return zstd.decompress(body, zstd.ZstdDict(history, is_raw=True).as_prefix)
    except ImportError:
        pass
    try:
        import zstandard

        kind = zstandard.DICT_TYPE_RAWCONTENT
        dictionary = zstandard.ZstdCompressionDict(history, dict_type=kind)
        return zstandard.ZstdDecompressor(dict_data=dictionary).decompress(body)
    except ImportError:
        pass
    with tempfile.NamedTemporaryFile() as before:
        before.write(history)
        before.flush()
        command = ["zstd", "--decompress", "--stdout", "--quiet", f"--patch-from={before.name}"]
        return subprocess.run(command, input=body, capture_output=True, check=True).stdout


# --- Ed25519, as RFC 8032 section 5.1.7 gives it ---

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
SQRT_MINUS_1 = pow(2, (P - 1) // 4, P)


def point_add(a, b):
    e = (a[1] - a[0]) * (b[1] - b[0]) % P
    f = (a[1] + a[0]) * (b[1] + b[0]) % P
    g = 2 * a[3] * b[3] * D % P
    h = 2 * a[2] * b[2] % P
    i, j, k, l = f - e, h - g, h + g, f + e
    return (i * j % P, k * l % P, j * k % P, i * l % P)


def point_multiply(scalar, point):
    result = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            result = point_add(result, point)
        point = point_add(point, point)
        scalar >>= 1
    return result


def points_equal(a, b):
    return (a[0] * b[2] - b[0] * a[2]) % P == 0 and (a[1] * b[2] - b[1] * a[2]) % P == 0


def point_from_bytes(encoded):
    y = int.from_bytes(encoded, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    check(y < P, "a point is out of range")
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * SQRT_MINUS_1 % P
    check((x * x - square) % P == 0 and not (x == 0 and sign), "a point is not on the curve")
    if x & 1 != sign:
        x = P - x
    return (x, y, 1, x * y % P)


BASE_POINT = point_from_bytes((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def verify_signature(key, message, signature):
    point_key, point_r = point_from_bytes(key), point_from_bytes(signature[:32])
    for point in (point_key, point_r):
        check(not points_equal(point_multiply(8, point), (0, 1, 1, 0)), "a point is weak")
    s = int.from_bytes(signature[32:], "little")
    check(s < ORDER, "the signature is not in its one form")
    h = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % ORDER
    right = point_add(point_r, point_multiply(h, point_key))
    check(points_equal(point_multiply(s, BASE_POINT), right), "the signature does not hold")


# --- the formats ---


def sha256(data):
    return hashlib.sha256(data).digest()


def read_id(text):
    check(len(text) == 64 and set(text) <= set("0123456789abcdef"), f"{text!r} is no id")
    return bytes.fromhex(text)


def read_name(text):
    check(1 <= len(text) <= 64 and set(text) <= NAME_CHARACTERS and text[0] not in "._-", f"{text!r} is no name")
    return text


class Fields:
    """Takes little-endian fields off the front of bytes."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def bytes(self, length):
        check(self.at + length <= len(self.data), "cut short")
        self.at += length
        return self.data[self.at - length : self.at]

    def numbers(self, layout):
        return struct.unpack("<" + layout, self.bytes(struct.calcsize("<" + layout)))

    def end(self):
        check(self.at == len(self.data), "too long")


def zstd_content_size(body):
    """Checks that bytes are one zstd frame of the kind stored here (RFC 8878, section 3.1.1)."""
    fields = Fields(body)
    check(fields.bytes(4) == b"\x28\xb5\x2f\xfd", "not a zstd frame")
    descriptor, = fields.numbers("B")
    single_segment = descriptor & 0x20
    check(descriptor & 0x08 == 0 and descriptor & 0x03 == 0, "a reserved bit or a dictionary")
    if not single_segment:
        window, = fields.numbers("B")
        base = 1 << (10 + (window >> 3))
        check(base + base // 8 * (window & 7) <= 8 << 20, "a window above 8 MiB")
    size_layout = {0: "B" if single_segment else "", 1: "H", 2: "I", 3: "Q"}[descriptor >> 6]
    check(size_layout, "no content size")
    size, = fields.numbers(size_layout)
    last = False
    while not last:
        header = int.from_bytes(fields.bytes(3), "little")
        last, kind, length = header & 1, header >> 1 & 3, header >> 3
        fields.bytes(1 if kind == 1 else length)
    fields.bytes(4 if descriptor & 0x04 else 0)
    fields.end()
    return size + 256 if size_layout == "H" else size


def decode_frame(frame, max_payload):
    check(1 <= len(frame) <= max_payload + 1, "a frame has a length no payload gives it")
    coding, body = frame[0], frame[1:]
    if coding == 0:
        return body
    check(coding == 1, "unknown coding")
    size = zstd_content_size(body)
    check(size <= max_payload, "a frame holds too much")
    payload = zstd_decompress(body)
    check(len(payload) == size, "a frame does not hold what it says")
    return payload


def decode_chunk(frame, chunk_id, chunk_size):
    chunk = decode_frame(frame, chunk_size)
    check(len(chunk) == chunk_size and any(chunk), "not a chunk of this disk, or the zero chunk")
    check(sha256(chunk) == chunk_id, "the chunk does not have its id")
    return chunk


def decode_segment(frame, segment_id):
    payload = decode_frame(frame, SEGMENT_CHUNKS * 32)
    check(len(payload) == SEGMENT_CHUNKS * 32 and any(payload), "not a segment")
    check(sha256(payload) == segment_id, "the segment does not have its id")
    return [payload[at : at + 32] for at in range(0, len(payload), 32)]


def decode_locator(frame, segment_id):
    fields = Fields(decode_frame(frame, 8 + 2 + 32 + 2 + 1024 * (2 + 64 + 32 + 4) + 1024 * 10))
    check(fields.bytes(8) == b"SATLOCA\x1a", "not a locator")
    version, = fields.numbers("H")
    check(version == 1 and fields.bytes(32) == segment_id, "a locator of another version or segment")
    pack_count, = fields.numbers("H")
    check(pack_count <= 1024, "too many packs")
    packs = []
    for _ in range(pack_count):
        name_length, kind = fields.numbers("BB")
        check(kind in (0, 1), "unknown kind of namespace")
        name = read_name(fields.bytes(name_length).decode("ascii", "replace"))
        packs.append((("image/", "user/")[kind] + name, fields.bytes(32), *fields.numbers("I")))
    pack_of_chunk = fields.numbers("1024H")
    gaps = fields.numbers("1024I")
    lengths = fields.numbers("1024I")
    fields.end()
    ends = [0] * pack_count
    places = []
    for pack, gap, length in zip(pack_of_chunk, gaps, lengths):
        if pack == 0xFFFF:
            check(gap == 0 and length == 0, "a chunk not stored has a place")
            places.append(None)
            continue
        check(pack < pack_count, "no such pack")
        offset = (ends[pack] + gap) % 2**32
        ends[pack] = (offset + length) % 2**32
        check(16 <= offset and 2 <= length and offset + length <= packs[pack][2], "a place outside its pack")
        places.append((packs[pack], offset, length))
    return places


def decode_pack(pack):
    check(80 <= len(pack) <= 32 << 20, "not the length of a pack")
    frames_length, chunks, version, log2 = struct.unpack("<QIHB", pack[-64:-49])
    check(pack[-8:] == b"SATPEND\x1a" and version == 1 and not any(pack[-49:-40]), "not the trailer of a pack")
    header = b"SATPACK\x1a" + struct.pack("<HB5x", 1, log2)
    check(pack[:16] == header and 12 <= log2 <= 22, "not the header of a pack")
    check(1 <= chunks <= min(16384, 2**30 >> log2), "too many chunks")
    check(len(pack) == 16 + frames_length + chunks * 36 + 64, "the parts do not add up")
    table = pack[16 + frames_length : -64]
    check(sha256(table + pack[-64:-40]) == pack[-40:-8], "the table is damaged")
    offset, entries = 16, []
    for chunk_id, length in struct.iter_unpack("<32sI", table):
        check(chunk_id != ZERO_ID and 2 <= length <= (1 << log2) + 1, "an entry is out of range")
        entries.append((chunk_id, offset, length))
        offset += length
    check(offset == 16 + frames_length, "the frames do not add up")
    check(len({chunk_id for chunk_id, _, _ in entries}) == chunks, "a chunk is there twice")
    for chunk_id, offset, length in entries:
        decode_chunk(pack[offset : offset + length], chunk_id, 1 << log2)
    return entries


def refuse_duplicates(pairs):
    result = dict(pairs)
    check(len(result) == len(pairs), "a field is there twice")
    return result


def decode_manifest(data):
    manifest = json.loads(data.decode("utf-8"), object_pairs_hook=refuse_duplicates)
    check(manifest["format"] == "satchel-manifest" and manifest["version"] == 1, "not a manifest of version 1")
    check(not manifest.get("features", {}).get("incompatible"), "unknown features")
    return manifest


def decode_profile(data):
    fields = Fields(data)
    check(fields.bytes(8) == b"SATPROF\x1a" and fields.numbers("H") == (1,), "not a profile of version 1")
    manifest_id = fields.bytes(32)
    entry_count, stream_count = fields.numbers("IH")
    streams = [(fields.bytes(32), *fields.numbers("II")) for _ in range(stream_count)]
    entries = [fields.numbers("BI") for _ in range(entry_count)]
    fields.end()
    check(len(set(entries)) == entry_count, "a chunk is there twice")
    check(not streams or sum(stream[2] for stream in streams) == entry_count, "the streams do not add up")
    return manifest_id, entries, streams


def decode_signature(line, message):
    text = line.decode("ascii").removesuffix("\n")
    prefix, key, signature = text.split(" ")
    check(prefix == "satchel-signature-v1" and key.startswith("ed25519:"), "not a signature")
    check(len(signature) == 128, "not a signature")
    verify_signature(read_id(key.removeprefix("ed25519:")), message, read_id(signature[:64]) + read_id(signature[64:]))
    return key


# --- the golden store ---


class Store:
    """The golden files, found by the ids their content has."""

    def __init__(self, directory):
        self.directory = directory
        self.packs = {sha256(data): data for data in map(self.read, ("pack-1.bin", "pack-raw-1.bin"))}

    def read(self, name):
        return (self.directory / name).read_bytes()

    def signed(self, name):
        data = self.read(name)
        key = decode_signature(self.read(name + ".sig"), data)
        print(f"{name} {sha256(data).hex()} signed by {key}")
        return data

    def chunk(self, place, chunk_id, chunk_size):
        (_, pack_id, pack_length), offset, length = place
        check(length <= chunk_size + 1, "a frame is longer than a chunk's can be")
        pack = self.packs.get(pack_id)
        check(pack is not None and len(pack) == pack_length, "no such pack")
        return decode_chunk(pack[offset : offset + length], chunk_id, chunk_size)


def read_disk(store, disk):
    size, chunk_size = disk["size_bytes"], disk["chunk_size_bytes"]
    segments = [read_id(text) for text in disk["segments"]]
    check(size > 0 and size % 512 == 0 and chunk_size in [1 << log2 for log2 in range(12, 23)], "not a disk")
    check(len(segments) == -(-size // (chunk_size * SEGMENT_CHUNKS)) <= MAX_SEGMENTS, "not as many segments as cover it")
    print(f"disk {disk['role']} size {size} chunk {chunk_size} segments {len(segments)}")
    content = hashlib.sha256()
    for segment_index, segment_id in enumerate(segments):
        if segment_id == ZERO_ID:
            chunks, places = [ZERO_ID] * SEGMENT_CHUNKS, [None] * SEGMENT_CHUNKS
        else:
            chunks = decode_segment(store.read("segment-1.bin"), segment_id)
            places = decode_locator(store.read("locator-1.bin"), segment_id)
        for position, (chunk_id, place) in enumerate(zip(chunks, places)):
            index = segment_index * SEGMENT_CHUNKS + position
            rest = size - index * chunk_size
            if rest <= 0:
                break
            if chunk_id == ZERO_ID:
                chunk = bytes(chunk_size)
            else:
                check(place is not None, "a stored chunk has no place")
                chunk = store.chunk(place, chunk_id, chunk_size)
                (namespace, pack_id, _), offset, length = place
                print(f"chunk {index} {chunk_id.hex()} {namespace}/packs/{pack_id.hex()} {offset}+{length}")
            content.update(chunk[: min(chunk_size, rest)])
    print(f"disk {disk['role']} sha256 {content.hexdigest()}")


def main():
    store = Store(Path(sys.argv[1]))
    for name in ("pack-1.bin", "pack-raw-1.bin"):
        for chunk_id, offset, length in decode_pack(store.read(name)):
            print(f"{name} {chunk_id.hex()} {offset}+{length}")
    for name in ("manifest-image-1.json", "manifest-desktop-1.json"):
        manifest = decode_manifest(store.signed(name))
        subject = manifest["subject"]
        owner = {"image": "image", "desktop": "owner"}[subject["kind"]]
        print(f"{subject['kind']} {read_name(subject[owner])} sequence {manifest['sequence']}")
        for disk in manifest["disks"]:
            read_disk(store, disk)
    manifest_id, entries, streams = decode_profile(store.signed("profile-1.bin"))
    print(f"profile of {manifest_id.hex()}")
    for disk, chunk in entries:
        print(f"touch {disk} {chunk}")
    for stream_id, length, entry_count in streams:
        print(f"stream {stream_id.hex()} {length} {entry_count}")
    history = b""
    for name in ("stream-1.bin", "stream-2.bin"):
        body = store.read(name)
        content = zstd_decompress_after(history, body) if history else zstd_decompress(body)
        print(f"{name} {sha256(body).hex()} holds {sha256(content).hex()}")
        history = (history + content)[-STREAM_HISTORY:]


if __name__ == "__main__":
    try:
        main()
    except (Refused, KeyError, ValueError, UnicodeError, struct.error, subprocess.CalledProcessError) as error:
        print(f"refused: {error!r}", file=sys.stderr)
        sys.exit(1)
