//! The server's numbers for Prometheus.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::program::{Asker, Serving, init, run, text};
use crate::testing;

fn ask(address: &str, path: &str, host: &str) -> String {
    let mut answer = String::new();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The values of a scrape by name and labels; each must have been described before.
fn scrape(address: &str) -> HashMap<String, f64> {
    let answer = ask(address, "/metrics", address);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
    let mut values = HashMap::new();
    let mut described = Vec::new();
    for line in body.lines() {
        if let Some(described_now) = line.strip_prefix("# TYPE ") {
            described.push(described_now.split(' ').next().unwrap());
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(described.contains(&name.split('{').next().unwrap()), "{line}");
            assert!(values.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{line} twice");
        }
    }
    values
}

#[tokio::test]
async fn numbers_are_served_to_this_machine_alone() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("server");
    let token = init(&dir);
    let refused = run(&["serve", text(&dir), "--listen", "127.0.0.1:0", "--metrics", "0.0.0.0:0"]);
    assert_eq!(refused.status.code(), Some(1));
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(message.contains("no loopback address"), "{message}");

    let mut serving = Serving::start(&dir, &["--metrics", "127.0.0.1:0"]);
    let log = serving.log();
    let address = log.split("http://").nth(1).and_then(|rest| rest.split("/metrics").next()).unwrap();
    assert!(ask(address, "/metrics", "elsewhere.example.org").starts_with("HTTP/1.1 403"));
    assert!(ask(address, "/", address).starts_with("HTTP/1.1 404"));
    assert!(ask(address, "/metrics?x", "LOCALHOST").starts_with("HTTP/1.1 200"));
    let fresh = scrape(address);
    assert_eq!(fresh["satchel_server_connections"], 0.0);
    assert_eq!(fresh["satchel_server_packs"], 0.0);

    let asker = Asker::new(&dir, &serving, &token);
    let pack = testing::pack(0..3);
    let len = pack.bytes.len() as f64;
    let path = format!("/v1/data/image/debian/packs/{}", pack.id);
    assert_eq!(asker.put(&path, pack.bytes).await.unwrap(), 201);
    for _ in 0..2 {
        asker.get(&path).await.unwrap().bytes().await.unwrap();
    }
    assert_eq!(asker.get("/v1/images/none").await.unwrap().status(), 404);
    // A request counts when its answer is gone, which the next one does not wait for.
    let mut values = scrape(address);
    while values["satchel_server_requests_in_flight"] > 0.0 {
        values = scrape(address);
    }
    for (name, expected) in [
        ("requests_total{method=\"put\",status=\"2xx\"}", 1.0),
        ("requests_total{method=\"get\",status=\"2xx\"}", 2.0),
        ("requests_total{method=\"get\",status=\"4xx\"}", 1.0),
        ("requests_total{method=\"get\",status=\"5xx\"}", 0.0),
        ("received_bytes_total", len),
        ("connections", 1.0),
        ("uploads", 0.0),
        ("database_up", 1.0),
        ("packs", 1.0),
        ("pack_bytes", len),
    ] {
        assert_eq!(values[&format!("satchel_server_{name}")], expected, "{name}");
    }
    assert!(values["satchel_server_sent_bytes_total"] >= 2.0 * len);
    assert!(values["satchel_server_free_bytes"] > 0.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((0.0..600.0).contains(&(now - values["process_start_time_seconds"])));
    assert!(values["satchel_server_certificate_end_seconds"] > now);
    assert_eq!(serving.terminate().code(), Some(0));
}
