//! The harness around the real server; what needs no program of ours is tested beside its code.

use std::time::Duration;

use satchel_tests::{Access, Event, Fault, FaultyHttps, Link, Rule, Shape, TestServer};

/// Asks the server who is asking, on a new connection; its answer's status and the user it names.
fn ask(access: &Access) -> Result<(u16, String), reqwest::Error> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    runtime.block_on(async {
        let client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).no_proxy().build()?;
        let response =
            client.get(format!("{}/v1/server", access.url)).bearer_auth(&access.token).send().await?;
        let status = response.status().as_u16();
        let body: serde_json::Value = serde_json::from_slice(&response.bytes().await?).unwrap_or_default();
        Ok((status, body["user"].as_str().unwrap_or_default().to_owned()))
    })
}

fn alice() -> (u16, String) {
    (200, "alice".to_owned())
}

#[test]
fn a_server_outlives_restarts_and_kills() {
    let mut server = TestServer::start();
    let access = server.access("alice", "user");
    assert_eq!(ask(&access).unwrap(), alice());
    server.verify();
    server.restart();
    assert_eq!(ask(&access).unwrap(), alice());
    server.kill9();
    assert!(ask(&access).unwrap_err().is_connect());
    server.start_again();
    assert_eq!(ask(&access).unwrap(), alice());
    server.verify();
    assert_eq!(ask(&Access { token: "wrong".to_owned(), ..access }).unwrap().0, 401);
}

#[test]
fn a_link_leads_to_the_server() {
    let server = TestServer::start();
    let link = Link::start(server.address(), Shape::symmetric(100_000_000, Duration::from_millis(20)));
    let access = server.access("alice", "user").through(&link);
    assert_eq!(ask(&access).unwrap(), alice());
    assert_eq!(link.counts().connections, 1);
    link.apply(Event::Refuse);
    assert!(ask(&access).unwrap_err().is_connect());
}

#[test]
fn a_faulty_proxy_leads_to_the_server() {
    let server = TestServer::start();
    let proxy = FaultyHttps::start(&server.url(), server.fingerprint());
    let access = server.access("alice", "user").through_faulty(&proxy);
    assert_ne!(access.fingerprint, server.fingerprint());
    assert_eq!(ask(&access).unwrap(), alice());
    proxy.inject(Rule::new(Fault::Status(503)).times(1));
    assert_eq!(ask(&access).unwrap().0, 503);
    assert_eq!(ask(&access).unwrap(), alice());
}
