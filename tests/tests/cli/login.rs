//! Wrong tokens, wrong certificates, no server.

use satchel_tests::wait::{self, PATIENCE};
use satchel_tests::{Access, Client, Publication, TestServer, require};

use super::{IMAGE_BYTES, alter, assert_refused};

fn login(client: &Client, access: &Access) -> satchel_tests::Output {
    let Access { url, token, fingerprint } = access;
    client.satchel(["login", url, "--token", token, "--fingerprint", fingerprint])
}

#[test]
fn a_wrong_token_is_refused_and_the_old_one_stays() {
    let published = Publication::new(1, IMAGE_BYTES);
    let (laptop, access) = (published.machine("laptop"), published.access());
    let wrong = Access { token: "satchel_wrong".to_owned(), ..access };
    assert_refused(
        login(&laptop, &wrong),
        &["token"],
        &["get a new token from the server's operator", "satchel-server token DIR", "satchel login"],
    );
    let _ = laptop.satchel(["images"]).ok();
    // Tokens that are none at all: with spaces, line ends, nothing.
    for token in ["", " ", "a b", "a\nb", "ü"] {
        let refused = login(&laptop, &Access { token: token.to_owned(), ..published.access() });
        assert_refused(refused, &["token"], &["get a new token"]);
    }
    let _ = laptop.satchel(["images"]).ok();
}

#[test]
fn a_token_that_ends_while_a_desktop_is_in_use_is_replaced_by_a_login_beside_it() {
    require!(fuse);
    let published = Publication::new(4, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    laptop.create("work", "golden", Some("16M"));
    let mut mount = laptop.mount("work");
    let listed = published.server.run(&["token"], &["--list", "--json"]).ok().json();
    let newest = listed["tokens"].as_array().map_or(0, Vec::len);
    let _ = published.server.run(&["token"], &["--revoke", &newest.to_string()]).ok();
    let (content, system) = (published.content, mount.system());
    let reading = std::thread::spawn(move || content.assert_in(&system));
    wait::until("it is said that reads wait, and what helps", PATIENCE, || {
        let said = mount.process().stderr();
        (said.contains("refuses this machine") && said.contains("`satchel login`")).then_some(())
    });
    let _ = login(&laptop, &published.access()).ok();
    reading.join().expect("the read goes on");
    let _ = laptop.sync("work");
    mount.unmount();
}

#[test]
fn an_expired_and_a_revoked_token_say_which() {
    let mut published = Publication::new(2, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    published.server.stop();
    alter(&published.server, "UPDATE tokens SET expires_ms = 1".to_owned());
    published.server.start_again();
    assert_refused(laptop.satchel(["images"]), &["token", "expired"], &["get a new token", "satchel login"]);
    let listed = published.server.run(&["token"], &["--list", "--json"]).ok().json();
    let fresh = published.access();
    let _ = login(&laptop, &fresh).ok();
    let newest = listed["tokens"].as_array().map_or(0, Vec::len) + 1;
    let _ = published.server.run(&["token"], &["--revoke", &newest.to_string()]).ok();
    assert_refused(laptop.satchel(["images"]), &["token", "revoked"], &["get a new token", "satchel login"]);
}

#[test]
fn another_certificate_than_the_pinned_one_is_refused() {
    let server = TestServer::start();
    let laptop = Client::new("laptop");
    let access = server.access("alice", "user");
    let zeros = format!("SHA256:{}", "0".repeat(64));
    assert_refused(
        login(&laptop, &Access { fingerprint: zeros.clone(), ..access.clone() }),
        &[&server.url(), server.fingerprint(), &zeros, "another server in its place"],
        &["ask the server's operator", "--fingerprint"],
    );
    // No token went to a server that is not known.
    let said = login(&laptop, &Access { fingerprint: "SHA256:12".to_owned(), ..access.clone() }).exited(2);
    assert!(said.stderr.contains("fingerprint"), "{}", said.stderr);
    // Logged in, and then the server is another: every command says so.
    let _ = login(&laptop, &access).ok();
    let other = TestServer::start();
    let text = std::fs::read_to_string(laptop.state().join("server.json")).unwrap();
    std::fs::write(laptop.state().join("server.json"), text.replace(&server.url(), &other.url())).unwrap();
    assert_refused(
        laptop.satchel(["images"]),
        &[&other.url(), other.fingerprint(), server.fingerprint()],
        &["ask the server's operator"],
    );
}

#[test]
fn desktops_stay_their_users() {
    require!(fuse);
    let published = Publication::new(5, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    let zed = published.server.access("zed", "user");
    let _ = login(&laptop, &zed).ok();
    let _ = login(&laptop, &published.access()).ok();
    laptop.create("work", "golden", None);
    let mount = laptop.mount("work");
    mount.unmount();
    assert_refused(login(&laptop, &zed), &["belong to alice", "of zed"], &["a token of alice", "--state"]);
    let _ = laptop.satchel(["history", "work"]).ok();
    let _ = login(&laptop, &published.access()).ok();
}

#[test]
fn a_server_that_is_known_needs_no_fingerprint_again_and_another_in_its_place_is_refused() {
    let server = TestServer::start();
    let laptop = Client::new("laptop");
    let access = server.access("alice", "user");
    let again = |access: &Access| laptop.satchel(["login", &access.url, "--token", &access.token]);
    let _ = login(&laptop, &access).ok();
    let _ = again(&server.access("alice", "user")).ok();
    let _ = laptop.satchel(["images"]).ok();

    let other = TestServer::start();
    let pinned = std::fs::read_to_string(laptop.state().join("server.json")).unwrap();
    std::fs::write(laptop.state().join("server.json"), pinned.replace(&server.url(), &other.url())).unwrap();
    assert_refused(
        again(&other.access("alice", "user")),
        &[other.fingerprint(), server.fingerprint(), "another server in its place"],
        &["ask the server's operator"],
    );
}

#[test]
fn without_a_fingerprint_a_self_made_certificate_is_refused_with_what_to_compare() {
    let server = TestServer::start();
    let laptop = Client::new("laptop");
    let access = server.access("alice", "user");
    assert_refused(
        laptop.satchel(["login", &access.url, "--token", &access.token]),
        &[&server.url(), server.fingerprint(), "no authority"],
        &["`satchel-server fingerprint DIR`", &format!("--fingerprint {}", server.fingerprint())],
    );
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let mut published = Publication::new(3, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let (url, access) = (published.server.url(), published.access());
    published.server.stop();
    let unreachable = ["cannot reach", url.as_str()];
    let advice = ["is the server running there", "curl"];
    assert_refused(login(&laptop, &access), &unreachable, &advice);
    assert_refused(laptop.satchel(["images"]), &unreachable, &advice);
    assert_refused(laptop.satchel(["desktops"]), &unreachable, &advice);
    assert_refused(laptop.satchel(["history", "work"]), &unreachable, &advice);
    assert_refused(laptop.satchel(["create", "other", "--image", "golden"]), &unreachable, &advice);
    let directory = laptop.new_directory();
    let mount = ["mount".as_ref(), "work".as_ref(), directory.as_os_str()];
    assert_refused(
        laptop.satchel(mount),
        &["nothing of desktop work is on this machine yet", "cannot reach", &url],
        &advice,
    );
    let publish = ["publish".as_ref(), published.disk.as_os_str(), "--image".as_ref(), "golden".as_ref()];
    assert_refused(published.publisher.satchel(publish), &unreachable, &advice);
}

#[test]
fn an_address_that_is_none_is_named() {
    let laptop = Client::new("laptop");
    for (url, said) in [
        ("http://127.0.0.1:1", "https"),
        ("https://127.0.0.1:1/path", "host and port only"),
        ("ftp://host", "https"),
        ("", "no server address"),
        ("a b", "no server address"),
        ("https://127.0.0.1:99999", "port"),
    ] {
        assert_refused(laptop.satchel(["login", url, "--token", "t"]), &[&format!("`{url}`"), said], &[]);
    }
    assert_refused(
        laptop.satchel(["login", "host.invalid", "--token", "t"]),
        &["cannot reach", "https://host.invalid"],
        &["is the server running there"],
    );
}

#[test]
fn a_machine_that_is_not_logged_in_says_how() {
    let laptop = Client::new("laptop");
    for command in [
        ["images"].as_slice(),
        &["desktops"],
        &["create", "work", "--image", "golden"],
        &["sync", "work"],
        &["status", "work"],
        &["history", "work"],
        &["run", "work"],
        &["publish", "/dev/null", "--image", "golden"],
    ] {
        assert_refused(laptop.satchel(command), &["not logged in"], &["satchel login URL"]);
    }
}

#[test]
fn a_role_that_does_not_suffice_is_named() {
    let published = Publication::new(4, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    let publish = ["publish".as_ref(), published.disk.as_os_str(), "--image".as_ref(), "golden".as_ref()];
    assert_refused(laptop.satchel(publish), &["golden"], &["publish from the machine and user"]);
    let publish = ["publish".as_ref(), published.disk.as_os_str(), "--image".as_ref(), "mine".as_ref()];
    assert_refused(laptop.satchel(publish), &["role"], &["ask the server's operator"]);
    // Another publisher's image.
    let rival = Client::new("rival");
    rival.login(&published.server.access("eve", "publisher"));
    let publish = ["publish".as_ref(), published.disk.as_os_str(), "--image".as_ref(), "golden".as_ref()];
    assert_refused(rival.satchel(publish), &["golden", "signed by ed25519:"], &["publisher.key"]);
    let history = published.publisher.satchel(["--json", "history", "--image", "golden"]).ok().json();
    assert_eq!(history.as_array().map(Vec::len), Some(1));
    // Another person's desktop does not exist.
    laptop.create("work", "golden", Some("16M"));
    assert_refused(rival.satchel(["history", "work"]), &["there is no desktop work"], &["satchel desktops"]);
}
