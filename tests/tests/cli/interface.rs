//! Clients and servers of different versions.

use satchel_tests::{Client, Fault, FaultyHttps, Publication, Rule, require};

use super::{IMAGE_BYTES, assert_refused};

fn behind_a_proxy(published: &Publication) -> (FaultyHttps, Client) {
    let proxy = FaultyHttps::start(&published.server.url(), published.server.fingerprint());
    let laptop = published.machine("laptop");
    laptop.login(&published.access().through_faulty(&proxy));
    laptop.create("work", "golden", Some("16M"));
    (proxy, laptop)
}

#[test]
fn a_server_that_speaks_another_version_is_named() {
    require!(fuse);
    let published = Publication::new(70, IMAGE_BYTES);
    let (proxy, laptop) = behind_a_proxy(&published);
    for version in [0, 2, 99] {
        proxy.heal();
        proxy.inject(Rule::new(Fault::AnswerAs(version)));
        let said = [proxy.url(), "interface version 1".to_owned(), format!("says: {version}")];
        let said: Vec<&str> = said.iter().map(String::as_str).collect();
        for command in [
            ["images"].as_slice(),
            &["desktops"],
            &["history", "work"],
            &["create", "other", "--image", "golden"],
        ] {
            assert_refused(laptop.satchel(command), &said, &["update the older one"]);
        }
        let access = published.access().through_faulty(&proxy);
        let login = ["login", &access.url, "--token", &access.token, "--fingerprint", &access.fingerprint];
        assert_refused(laptop.satchel(login), &said, &["update the older one"]);
    }
    proxy.heal();
    let _ = laptop.satchel(["images"]).ok();
}

#[test]
fn a_server_that_refuses_this_version_says_which_side_to_update() {
    require!(fuse);
    let published = Publication::new(71, IMAGE_BYTES);
    let (proxy, laptop) = behind_a_proxy(&published);
    for (version, side) in [(0, "client"), (99, "server")] {
        proxy.heal();
        // The real server's own answer to such a client.
        proxy.inject(Rule::new(Fault::AskAs(version)));
        let refused = laptop.satchel(["images"]).exited(1);
        super::assert_clean(&refused.stderr);
        let error = refused.stderr.lines().next().unwrap_or_default();
        assert!(error.starts_with("error: ") && error.contains("update"), "{error}");
        assert!(error.contains(side), "version {version}: {error}");
    }
}

#[test]
fn a_desktop_that_is_here_is_used_though_the_server_cannot_be() {
    require!(fuse);
    let published = Publication::new(72, IMAGE_BYTES);
    let (proxy, laptop) = behind_a_proxy(&published);
    let mount = laptop.mount("work");
    published.content.assert_in(&mount.system());
    mount.unmount();
    proxy.inject(Rule::new(Fault::AnswerAs(2)));
    let mut mount = laptop.mount("work");
    published.content.assert_in(&mount.system());
    let said = mount.process().stderr();
    assert!(said.contains("warning: ") && said.contains("interface version"), "{said}");
    mount.unmount();
}
