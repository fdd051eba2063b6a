//! A reader of versions that shares no code with Satchel: written after `docs/format.md`.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ed25519_dalek::{Signature, VerifyingKey};
use serde_json::Value;
use sha2::{Digest, Sha256};

const IDS_PER_SEGMENT: usize = 1024;
const ZERO_ID: [u8; 32] = [0; 32];

/// Objects by path, `image/NAME/packs/ID` for example.
pub(crate) trait Tree {
    /// Returns an object, or the bytes of it from the first number to before the second.
    fn get(&self, path: &str, range: Option<(u64, u64)>) -> Vec<u8>;
}

/// Reads versions from a tree.
pub(crate) struct Reader<T> {
    tree: T,
}

/// What was read.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) manifest: Value,
    pub(crate) subject: Value,
    pub(crate) packs: usize,
}

/// Where one chunk's frame lies.
struct Place {
    pack: String,
    offset: u64,
    len: u64,
}

impl<T: Tree> Reader<T> {
    pub(crate) fn new(tree: T) -> Self {
        Self { tree }
    }

    /// Reads the version `id` of `namespace`, signed by `key`, into `path`; its second disk beside that as `PATH.1`.
    pub(crate) fn read_version(&self, namespace: &str, id: &str, key: &str, path: &Path) -> Read {
        let manifest = self.tree.get(&format!("{namespace}/manifests/{id}"), None);
        assert_eq!(sha256(&manifest), unhex(id), "the manifest is not the one asked for");
        let signature = self.tree.get(&format!("{namespace}/manifests/{id}.sig"), None);
        check_signature(&manifest, &signature, key);
        let manifest: Value = serde_json::from_slice(&manifest).expect("a manifest is JSON");
        assert_eq!((&manifest["format"], &manifest["version"]), (&"satchel-manifest".into(), &1.into()));
        assert_eq!(manifest["features"]["incompatible"], serde_json::json!([]));
        let mut namespaces = vec![namespace.to_owned()];
        if let Some(image) = manifest["base"]["image"].as_str() {
            namespaces.push(format!("image/{image}"));
            // What the desktop did not change is its image's: only there.
            namespaces.reverse();
        }
        let mut packs = HashSet::new();
        let golden =
            manifest["base"]["version"].as_str().map(|version| self.segments_of(&namespaces[0], version));
        for (number, disk) in manifest["disks"].as_array().expect("a list").iter().enumerate() {
            let path = if number == 0 { path.to_owned() } else { path.with_extension(number.to_string()) };
            self.read_disk(namespace, &namespaces, golden.as_ref(), disk, &path, &mut packs);
        }
        Read { subject: manifest["subject"].clone(), manifest, packs: packs.len() }
    }

    fn segments_of(&self, namespace: &str, version: &str) -> HashSet<String> {
        let manifest = self.tree.get(&format!("{namespace}/manifests/{version}"), None);
        let manifest: Value = serde_json::from_slice(&manifest).expect("a manifest is JSON");
        let disks = manifest["disks"].as_array().expect("a list");
        disks.iter().flat_map(segment_ids).collect()
    }

    fn read_disk(
        &self,
        own: &str,
        namespaces: &[String],
        golden: Option<&HashSet<String>>,
        disk: &Value,
        path: &Path,
        packs: &mut HashSet<String>,
    ) {
        let (size, chunk_bytes) = (number(&disk["size_bytes"]), number(&disk["chunk_size_bytes"]));
        let file = File::create(path).expect("a file can be made");
        file.set_len(size).expect("a file can be sparse");
        let ids = segment_ids(disk);
        assert_eq!(ids.len() as u64, size.div_ceil(chunk_bytes * IDS_PER_SEGMENT as u64));
        for (segment, id) in ids.iter().enumerate() {
            if unhex(id) == ZERO_ID {
                continue;
            }
            let is_golden = golden.is_some_and(|golden| golden.contains(id));
            let namespace = if is_golden { &namespaces[0] } else { own };
            let chunks = unframe(&self.tree.get(&format!("{namespace}/segments/{id}"), None), 32_768);
            assert_eq!(sha256(&chunks), unhex(id), "the segment is not the one asked for");
            let locator = unframe(&self.tree.get(&format!("{namespace}/locators/{id}"), None), 114_732);
            let places = read_locator(&locator, id);
            for (position, chunk) in chunks.as_chunks::<32>().0.iter().enumerate() {
                let offset = (segment * IDS_PER_SEGMENT + position) as u64 * chunk_bytes;
                if *chunk == ZERO_ID || offset >= size {
                    assert!(!places.contains_key(&position), "what is zeros lies nowhere");
                    continue;
                }
                let place = &places[&position];
                assert!(place.len <= chunk_bytes + 1);
                let frame = self.tree.get(&place.pack, Some((place.offset, place.offset + place.len)));
                let bytes = unframe(&frame, usize::try_from(chunk_bytes).expect("small"));
                assert_eq!(sha256(&bytes), *chunk, "the chunk is not the one asked for");
                let inside = usize::try_from((size - offset).min(chunk_bytes)).expect("small");
                file.write_all_at(&bytes[..inside], offset).expect("a file can be written");
                packs.insert(place.pack.clone());
            }
        }
    }
}

fn segment_ids(disk: &Value) -> Vec<String> {
    let ids = disk["segments"].as_array().expect("a list");
    ids.iter().map(|id| id.as_str().expect("an id").to_owned()).collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}

/// Where the chunks of a segment lie, by position.
fn read_locator(bytes: &[u8], segment: &str) -> HashMap<usize, Place> {
    let mut at = Cursor { bytes, at: 0 };
    assert_eq!(at.take(8), b"SATLOCA\x1a");
    assert_eq!(at.number(2), 1);
    assert_eq!(at.take(32), unhex::<32>(segment));
    let packs: Vec<(String, u64)> = (0..at.number(2))
        .map(|_| {
            let name_len = usize::try_from(at.number(1)).expect("small");
            let kind = ["image", "user"][usize::try_from(at.number(1)).expect("small")];
            let name = String::from_utf8(at.take(name_len).to_vec()).expect("a name is text");
            let pack = hex(at.take(32));
            (format!("{kind}/{name}/packs/{pack}"), at.number(4))
        })
        .collect();
    let mut column = |width| -> Vec<u64> { (0..IDS_PER_SEGMENT).map(|_| at.number(width)).collect() };
    let (pack_of, gaps, lens) = (column(2), column(4), column(4));
    assert_eq!(at.at, bytes.len(), "nothing follows");
    let mut ends = vec![0; packs.len()];
    let mut places = HashMap::new();
    for position in 0..IDS_PER_SEGMENT {
        if pack_of[position] == 0xffff {
            assert_eq!((gaps[position], lens[position]), (0, 0));
            continue;
        }
        let number = usize::try_from(pack_of[position]).expect("small");
        let (pack, pack_len) = &packs[number];
        let offset = (ends[number] + gaps[position]) & 0xffff_ffff;
        ends[number] = (offset + lens[position]) & 0xffff_ffff;
        assert!(offset >= 16 && ends[number] <= *pack_len);
        places.insert(position, Place { pack: pack.clone(), offset, len: lens[position] });
    }
    places
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        self.at += len;
        &self.bytes[self.at - len..self.at]
    }

    fn number(&mut self, width: usize) -> u64 {
        self.take(width).iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

/// Takes a payload of at most `limit` bytes out of its frame.
fn unframe(frame: &[u8], limit: usize) -> Vec<u8> {
    match frame[0] {
        0 => frame[1..].to_vec(),
        1 => zstd::bulk::decompress(&frame[1..], limit).expect("a frame of zstd"),
        other => panic!("a frame has coding {other}"),
    }
}

fn check_signature(bytes: &[u8], line: &[u8], key: &str) {
    let line = std::str::from_utf8(line).expect("a signature is text");
    let words: Vec<&str> = line.trim_end_matches('\n').split(' ').collect();
    let ["satchel-signature-v1", signer, signature] = words.as_slice() else {
        panic!("a signature has three words, not {line:?}")
    };
    assert_eq!(*signer, key, "signed by someone else");
    let key: [u8; 32] = unhex(signer.strip_prefix("ed25519:").expect("an Ed25519 key"));
    let signature = Signature::from_bytes(&unhex(signature));
    VerifyingKey::from_bytes(&key)
        .and_then(|key| key.verify_strict(bytes, &signature))
        .expect("the signature holds");
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex<const N: usize>(text: &str) -> [u8; N] {
    assert_eq!(text.len(), 2 * N, "{text}");
    std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hexadecimal digits"))
}
