//! What is published can be read without Satchel: by the page `docs/format.md`, over HTTPS and from files.

mod reader;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use reader::{Reader, Tree};
use satchel_tests::model::open_for_writing;
use satchel_tests::{Access, Client, Publication, Rng, disk, require};
use tokio::runtime::Runtime;

const IMAGE_BYTES: u64 = 150 << 20;

/// The server's data plane.
struct Https {
    access: Access,
    client: reqwest::Client,
    runtime: Runtime,
}

impl Https {
    fn new(access: Access) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).no_proxy().build();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Self { access, client: client.expect("a client"), runtime: runtime.expect("a runtime") }
    }
}

impl Tree for Https {
    fn get(&self, path: &str, range: Option<(u64, u64)>) -> Vec<u8> {
        let url = format!("{}/v1/data/{path}", self.access.url);
        let mut request = self.client.get(&url).bearer_auth(&self.access.token);
        if let Some((start, end)) = range {
            request = request.header("range", format!("bytes={start}-{}", end - 1));
        }
        self.runtime.block_on(async {
            let response = request.send().await.expect("the server answers");
            let expected = if range.is_some() { 206 } else { 200 };
            assert_eq!(response.status().as_u16(), expected, "{url}");
            response.bytes().await.expect("the answer is whole").to_vec()
        })
    }
}

/// The same objects as files.
struct Files(PathBuf);

impl Tree for Files {
    fn get(&self, path: &str, range: Option<(u64, u64)>) -> Vec<u8> {
        let path = self.0.join(path);
        let Some((start, end)) = range else {
            return std::fs::read(&path)
                .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        };
        let file = std::fs::File::open(&path)
            .unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
        let mut bytes = vec![0; usize::try_from(end - start).expect("a part fits in memory")];
        file.read_exact_at(&mut bytes, start).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        bytes
    }
}

/// What a version of an image or desktop is listed as.
fn newest(client: &Client, arguments: &[&str]) -> serde_json::Value {
    let history = client.satchel(["--json", "history"].iter().chain(arguments)).ok().json();
    history[0].clone()
}

#[test]
fn an_image_is_read_over_https_by_whoever_knows_the_formats() {
    let published = Publication::new(1, IMAGE_BYTES);
    let version = newest(&published.publisher, &["--image", "golden"]);
    let images = published.publisher.satchel(["--json", "images"]).ok().json();
    let publisher = images[0]["publisher"].as_str().expect("an image has a publisher");
    // Whoever may use images may read them: this is not the publisher.
    let reader = Reader::new(Https::new(published.access()));
    let disk = published.publisher.directory().join("read.raw");
    let read = reader.read_version("image/golden", version["id"].as_str().unwrap(), publisher, &disk);
    disk::assert_same(&published.disk, &disk);
    assert_eq!(read.subject, serde_json::json!({"kind": "image", "image": "golden"}));
    assert!(read.packs >= 2, "{read:?}: more than one pack, or this tests little");
}

#[test]
fn a_servers_objects_are_a_static_tree() {
    let mut published = Publication::new(2, IMAGE_BYTES);
    let version = newest(&published.publisher, &["--image", "golden"]);
    let images = published.publisher.satchel(["--json", "images"]).ok().json();
    let publisher = images[0]["publisher"].as_str().expect("an image has a publisher").to_owned();
    let id = version["id"].as_str().unwrap();
    published.server.stop();
    let disk = published.publisher.directory().join("read.raw");
    Reader::new(Files(published.server.objects(""))).read_version("image/golden", id, &publisher, &disk);
    disk::assert_same(&published.disk, &disk);
}

#[test]
fn a_desktop_is_read_from_its_owners_and_its_images_objects() {
    require!(fuse);
    let published = Publication::new(3, 80 << 20);
    let laptop = published.machine("laptop");
    laptop.create("work", "golden", Some("70M"));
    let mount = laptop.mount("work");
    let mut rng = Rng::new(3);
    for path in [mount.system(), mount.home()] {
        let file = open_for_writing(&path);
        for _ in 0..20 {
            let mut bytes = vec![0; 30_000];
            rng.fill(&mut bytes);
            file.write_all_at(&bytes, rng.below(60 << 20)).unwrap();
        }
        file.sync_all().unwrap();
    }
    let _ = laptop.sync("work");
    let version = newest(&laptop, &["work"]);
    let reader = Reader::new(Https::new(published.access()));
    let key = version["key"].as_str().expect("a version has a key");
    let system = laptop.directory().join("system.raw");
    let read = reader.read_version("user/alice", version["id"].as_str().unwrap(), key, &system);
    assert_eq!(read.subject["desktop"], "work");
    disk::assert_same(&mount.system(), &system);
    disk::assert_same(&mount.home(), &Path::new(&system).with_extension("1"));
    // The chain leads back to the image, whose key the desktop names.
    let base = &read.manifest["base"];
    let golden = laptop.directory().join("golden.raw");
    let publisher = base["publisher"].as_str().expect("a base has a publisher");
    reader.read_version("image/golden", base["version"].as_str().unwrap(), publisher, &golden);
    disk::assert_same(&published.disk, &golden);
    mount.unmount();
}
