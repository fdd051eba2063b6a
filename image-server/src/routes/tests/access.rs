//! Who may do what: every route with every kind of caller.

use axum::body::Body;
use axum::http::Method;
use chunk_format::{ProfileId, StreamId};

use super::{Answer, BOOT_STREAM, Fixture, request};
use crate::http::auth::Caller;
use crate::routes::table;
use crate::testing;

/// A request, and the status each caller gets: alice, bob, the publisher, another publisher, an admin.
struct Case {
    method: &'static str,
    route: &'static str,
    path: String,
    body: Vec<u8>,
    signature: String,
    expected: [u16; 5],
}

const ALL: [u16; 5] = [200; 5];
const ALICE: [u16; 5] = [200, 404, 404, 404, 404];
const NOBODY: [u16; 5] = [404; 5];
const NOTERS: [u16; 5] = [204, 404, 404, 404, 404];
const WRITERS: [u16; 5] = [403, 403, 200, 403, 200];

fn cases(fixture: &Fixture) -> Vec<Case> {
    let (image, desktop) = (&fixture.image, &fixture.desktop);
    let mut cases = Vec::new();
    let mut add = |method, route, path: String, body: &[u8], signature: &str, expected| {
        let (body, signature) = (body.to_vec(), signature.to_owned());
        cases.push(Case { method, route, path, body, signature, expected });
    };
    add("GET", "/v1/server", "/v1/server".to_owned(), b"", "", ALL);

    let packs = "/v1/data/{kind}/{name}/packs/{object}";
    let segments = "/v1/data/{kind}/{name}/segments/{object}";
    let locators = "/v1/data/{kind}/{name}/locators/{object}";
    let manifests = "/v1/data/{kind}/{name}/manifests/{object}";
    let profiles = "/v1/data/{kind}/{name}/profiles/{object}";
    let streams = "/v1/data/{kind}/{name}/streams/{object}";
    let (profile, profile_signature) = fixture.profile();
    let (profile_id, stream_id) = (ProfileId::of(&profile), StreamId::of(BOOT_STREAM));
    for (namespace, content, readers, writers) in
        [("image/debian", image, ALL, WRITERS), ("user/alice", desktop, ALICE, ALICE)]
    {
        let path = |class: &str, name: String| format!("/v1/data/{namespace}/{class}/{name}");
        for method in ["GET", "HEAD"] {
            add(method, packs, path("packs", content.pack.to_string()), b"", "", readers);
            add(method, segments, path("segments", content.segment.to_string()), b"", "", readers);
            add(method, locators, path("locators", content.segment.to_string()), b"", "", readers);
            add(method, manifests, path("manifests", content.version.to_string()), b"", "", readers);
            add(method, manifests, path("manifests", format!("{}.sig", content.version)), b"", "", readers);
            add(method, profiles, path("profiles", content.pack.to_string()), b"", "", NOBODY);
            let of_images = if namespace == "image/debian" { ALL } else { NOBODY };
            add(
                method,
                manifests,
                path("manifests", format!("{}.profile", content.version)),
                b"",
                "",
                of_images,
            );
            add(method, profiles, path("profiles", profile_id.to_string()), b"", "", of_images);
            add(method, profiles, path("profiles", format!("{profile_id}.sig")), b"", "", of_images);
            add(method, streams, path("streams", stream_id.to_string()), b"", "", of_images);
        }
        if namespace == "image/debian" {
            add("PUT", streams, path("streams", stream_id.to_string()), BOOT_STREAM, "", writers);
        }
        add("PUT", packs, path("packs", content.pack.to_string()), &content.pack_bytes, "", writers);
        let segment = path("segments", format!("{}?also=image/debian", content.segment));
        add("PUT", segments, segment, &content.segment_frame, "", writers);
        for (route, what) in [
            ("/v1/missing/{kind}/{name}/chunks", "chunks"),
            ("/v1/missing/{kind}/{name}/segments", "segments"),
        ] {
            add("POST", route, format!("/v1/missing/{namespace}/{what}"), &[7; 64], "", readers);
        }
    }

    let manifest = |content: &super::Published| content.manifest.encode().unwrap();
    for method in ["GET", "HEAD"] {
        add(method, "/v1/images", "/v1/images".to_owned(), b"", "", ALL);
        add(method, "/v1/images/{image}", "/v1/images/debian".to_owned(), b"", "", ALL);
        add(method, "/v1/images/{image}/versions", "/v1/images/debian/versions".to_owned(), b"", "", ALL);
        add(method, "/v1/desktops", "/v1/desktops".to_owned(), b"", "", ALL);
        add(method, "/v1/desktops/{desktop}", "/v1/desktops/work".to_owned(), b"", "", ALICE);
        // Nothing was removed; whose it is shows in the tests of removal.
        add(method, "/v1/removed/{version}", format!("/v1/removed/{}", desktop.version), b"", "", NOBODY);
        add(
            method,
            "/v1/desktops/{desktop}/versions",
            "/v1/desktops/work/versions".to_owned(),
            b"",
            "",
            ALICE,
        );
    }
    let lease = "/v1/desktops/{desktop}/lease";
    let key = chunk_format::SecretKey::from_bytes(&[9; 32]).public();
    let wish = serde_json::json!({
        "key": key, "machine": "laptop-a", "version": desktop.version
    });
    add("GET", lease, "/v1/desktops/work/lease".to_owned(), b"", "", ALICE);
    add("HEAD", lease, "/v1/desktops/work/lease".to_owned(), b"", "", ALICE);
    add("PUT", lease, "/v1/desktops/work/lease".to_owned(), wish.to_string().as_bytes(), "", ALICE);
    let path = format!("/v1/desktops/work/lease?key={key}");
    add("DELETE", lease, path, b"", "", [204, 404, 404, 404, 404]);
    let standing = serde_json::json!({ "key": key, "version": desktop.version }).to_string();
    let path = "/v1/desktops/work/standing".to_owned();
    add("PUT", "/v1/desktops/{desktop}/standing", path, standing.as_bytes(), "", NOTERS);
    let asked = br#"{"machine":"laptop-b"}"#;
    let path = "/v1/desktops/work/lease/wanted".to_owned();
    add("POST", "/v1/desktops/{desktop}/lease/wanted", path, asked, "", ALICE);
    let (route, path) = ("/v1/desktops/{desktop}/retention", "/v1/desktops/work/retention");
    for (method, body) in [("GET", &b""[..]), ("HEAD", b""), ("PUT", br#"{"keep_last":5}"#), ("DELETE", b"")]
    {
        add(method, route, path.to_owned(), body, "", ALICE);
    }
    for method in ["GET", "HEAD"] {
        let (route, path) = ("/v1/images/{image}/channels/{channel}", "/v1/images/debian/channels/stable");
        add(method, route, path.to_owned(), b"", "", ALL);
        add(method, "/v1/images/{image}/states", "/v1/images/debian/states".to_owned(), b"", "", WRITERS);
    }
    let to_first = format!("{{\"version\":\"{}\"}}", image.version);
    let route = "/v1/images/{image}/channels/{channel}";
    add("PUT", route, "/v1/images/debian/channels/stable".to_owned(), to_first.as_bytes(), "", WRITERS);
    let good = format!("{{\"version\":\"{}\",\"outcome\":\"good\",\"machine\":\"m\"}}", image.version);
    let route = "/v1/desktops/{desktop}/starts";
    add("POST", route, "/v1/desktops/work/starts".to_owned(), good.as_bytes(), "", NOTERS);
    let path = format!("/v1/images/debian/versions/{}/profile", image.version);
    let route = "/v1/images/{image}/versions/{version}/profile";
    add("PUT", route, path, &profile, &profile_signature, WRITERS);
    let (route, path) = ("/v1/images/{image}/versions", "/v1/images/debian/versions".to_owned());
    add("POST", route, path, &manifest(image), &image.signature, WRITERS);
    let (route, path) = ("/v1/desktops/{desktop}/versions", "/v1/desktops/work/versions".to_owned());
    add("POST", route, path, &manifest(desktop), &desktop.signature, [200, 403, 403, 403, 403]);
    // The last one: there is no such desktop then. Its lease was given back above.
    let path = format!("/v1/desktops/work?head={}&key={key}", desktop.version);
    add("DELETE", "/v1/desktops/{desktop}", path, b"", "", ALICE);
    cases
}

async fn ask(fixture: &Fixture, case: &Case, authorization: Option<&str>) -> Answer {
    let method = Method::from_bytes(case.method.as_bytes()).unwrap();
    let mut request = request(method, &case.path, "").header("content-length", case.body.len());
    if !case.signature.is_empty() {
        request = request.header("satchel-signature", &case.signature);
    }
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    fixture.ask(request.body(Body::from(case.body.clone())).unwrap()).await
}

#[tokio::test]
async fn every_route_answers_every_caller_as_the_table_says() {
    let fixture = Fixture::new().await;
    let tokens = &fixture.tokens;
    let callers = [&tokens.alice, &tokens.bob, &tokens.publisher, &tokens.foreign_publisher, &tokens.admin];
    for case in cases(&fixture) {
        for (token, expected) in callers.into_iter().zip(case.expected) {
            let answer = ask(&fixture, &case, Some(&format!("Bearer {token}"))).await;
            let who = callers.iter().position(|caller| *caller == token);
            assert_eq!(
                answer.status, expected,
                "{} {} by {who:?}: {:?}",
                case.method, case.path, answer.body
            );
        }
    }
}

#[tokio::test]
async fn without_a_good_token_every_route_is_401_and_tells_nothing_else() {
    let fixture = Fixture::new().await;
    let tokens = &fixture.tokens;
    let bearer = |token: &str| format!("Bearer {token}");
    let mut almost = tokens.admin.clone();
    almost.pop();
    let refused: [(Option<String>, &str); 11] = [
        (None, "is needed"),
        (Some(String::new()), "must be"),
        (Some("Bearer".to_owned()), "must be"),
        (Some("Bearer ".to_owned()), "must be"),
        (Some(format!("Basic {}", tokens.admin)), "must be"),
        (Some(tokens.admin.clone()), "must be"),
        (Some(bearer("x".repeat(300).as_str())), "must be"),
        (Some(bearer(&almost)), "not known"),
        (Some(bearer(&format!("{}x", tokens.admin))), "not known"),
        (Some(bearer(&tokens.expired)), "expired at 1970-01-01T00:16:40Z"),
        (Some(bearer(&tokens.revoked)), "revoked"),
    ];
    for case in cases(&fixture) {
        for (authorization, message) in &refused {
            let answer = ask(&fixture, &case, authorization.as_deref()).await;
            assert_eq!(answer.status, 401, "{} {} {authorization:?}", case.method, case.path);
            assert_eq!(answer.header("www-authenticate"), "Bearer");
            if case.method != "HEAD" {
                let found = answer.refused(401, "unauthorized");
                assert!(found.contains(message), "{found}");
            }
        }
    }
    for path in ["/", "/v1", "/v2/server", "/v1/images/", "/v1/data/image/debian", "/metrics", "/healthz/"] {
        assert_eq!(fixture.get(path, "").await.status, 401, "{path}");
        assert_eq!(fixture.get(&format!("{path}%2e"), "").await.status, 401, "{path}");
        fixture.get(path, &tokens.alice).await.refused(404, "not_found");
    }
}

/// A route or method that is added must be added to the cases above.
#[tokio::test]
async fn the_cases_above_are_all_routes_and_methods() {
    let fixture = Fixture::new().await;
    let cases = cases(&fixture);
    for route in table() {
        let concrete = cases.iter().find(|case| case.route == route.path);
        let concrete = concrete.unwrap_or_else(|| panic!("{} has no case", route.path));
        let path = concrete.path.split('?').next().unwrap();
        for method in ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "SATCHEL"] {
            let has_case = cases.iter().any(|case| case.route == route.path && case.method == method)
                // HEAD comes with GET.
                || method == "HEAD" && cases.iter().any(|case| case.route == route.path && case.method == "GET");
            let request = |token| request(Method::from_bytes(method.as_bytes()).unwrap(), path, token);
            let answer = fixture.ask(request(&fixture.tokens.admin).body(Body::empty()).unwrap()).await;
            assert_eq!(answer.status != 405, has_case, "{method} {path}: {}", answer.status);
            assert!(answer.status != 405 || !answer.header("allow").is_empty(), "{method} {path}");
            let answer = fixture.ask(request("").body(Body::empty()).unwrap()).await;
            assert_eq!(answer.status, 401, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn health_needs_no_token_and_nothing_else() {
    let fixture = Fixture::new().await;
    let answer = fixture.get("/healthz", "").await.done(200);
    assert_eq!(answer.body, &b"ok"[..]);
    fixture.post("/healthz", "", b"").await.refused(405, "method_not_allowed");
    fixture.app.database.close().await;
    fixture.get("/healthz", "").await.refused(500, "internal");
}

#[tokio::test]
async fn the_first_publisher_of_an_image_owns_it() {
    let fixture = Fixture::new().await;
    let tokens = &fixture.tokens;
    let path = format!("/v1/data/image/fresh/packs/{}", fixture.image.pack);
    let put = async |token: &str| fixture.put(&path, token, &fixture.image.pack_bytes).await;
    put(&tokens.alice).await.refused(403, "forbidden");
    // What is refused claims nothing.
    let damaged = fixture.put(&path, &tokens.publisher, b"no pack").await;
    damaged.refused(422, "damaged");
    put(&tokens.foreign_publisher).await.done(201);
    put(&tokens.publisher).await.refused(403, "forbidden");
    put(&tokens.foreign_publisher).await.done(200);
    put(&tokens.admin).await.done(200);
}

#[tokio::test]
async fn racing_for_a_new_image_has_one_winner() {
    let fixture = Fixture::new().await;
    let path = format!("/v1/data/image/fresh/packs/{}", fixture.image.pack);
    let put = |token| fixture.put(&path, token, &fixture.image.pack_bytes);
    let (one, other) = tokio::join!(put(&fixture.tokens.publisher), put(&fixture.tokens.foreign_publisher));
    let mut statuses = [one.status.as_u16(), other.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 403]);
}

/// Two people with the same bytes: neither learns of the other's, and each has their own.
#[tokio::test]
async fn a_hash_gives_no_access() {
    let fixture = Fixture::new().await;
    let bob = &fixture.tokens.bob;
    let desktop = &fixture.desktop;
    let ids = testing::chunk_id(100).as_bytes().to_vec();
    fixture.post("/v1/missing/user/alice/chunks", bob, &ids).await.refused(404, "not_found");
    let also = fixture.post("/v1/missing/user/bob/chunks?also=user/alice", bob, &ids).await;
    also.refused(400, "bad_request");
    let own = fixture.post("/v1/missing/user/bob/chunks?also=image/debian", bob, &ids).await.done(200);
    assert_eq!(own.body, &[1][..]);
    let path = format!("/v1/data/user/bob/segments/{}?also=image/debian", desktop.segment);
    let answer = fixture.put(&path, bob, &desktop.segment_frame).await;
    answer.refused(409, "chunks_missing");
    assert_eq!(answer.json()["error"]["missing"], 10);
    // The same words for what is there and what is not.
    let there = fixture.get(&format!("/v1/data/user/alice/packs/{}", desktop.pack), bob).await;
    let nowhere = fixture.get(&format!("/v1/data/user/nobody/packs/{}", desktop.pack), bob).await;
    let told = |answer: &Answer, user: &str| answer.refused(404, "not_found").replace(user, "X");
    assert_eq!(told(&there, "alice"), told(&nowhere, "nobody"));
}

#[tokio::test]
async fn the_callers_own_facts_are_told() {
    let fixture = Fixture::new().await;
    let facts = fixture.get("/v1/server", &fixture.tokens.alice).await.done(200).json();
    assert_eq!(facts["server"], fixture.app.identity.to_string());
    assert_eq!(facts["api"], 1);
    assert_eq!((&facts["user"], &facts["role"]), (&"alice".into(), &"user".into()));
    assert!(facts["expires_ms"].is_null());
}

#[tokio::test]
async fn a_tokens_use_is_noted_and_its_revocation_holds_at_once() {
    let fixture = Fixture::new().await;
    let used = |token: &crate::tokens::ListedToken| token.last_used_ms.is_some();
    fixture.app.tasks.close();
    fixture.app.tasks.wait().await;
    let listed = crate::tokens::list(fixture.dir.path()).await.unwrap();
    let alice = listed.iter().find(|token| token.user.as_str() == "alice" && used(token)).unwrap();
    assert!(!used(listed.iter().find(|token| token.user.as_str() == "bob").unwrap()));
    fixture.get("/v1/server", &fixture.tokens.alice).await.done(200);
    crate::tokens::revoke(fixture.dir.path(), alice.id).await.unwrap();
    fixture.get("/v1/server", &fixture.tokens.alice).await.refused(401, "unauthorized");
}

#[tokio::test]
async fn a_handler_outside_the_layer_gets_no_caller() {
    let mut parts = request(Method::GET, "/", "").body(()).unwrap().into_parts().0;
    let caller = <Caller as axum::extract::FromRequestParts<()>>::from_request_parts(&mut parts, &()).await;
    assert!(matches!(caller, Err(crate::http::error::ApiError::Internal(_))));
}

#[tokio::test]
async fn other_interface_versions_are_told_which_side_to_update() {
    let fixture = Fixture::new().await;
    let alice = &fixture.tokens.alice;
    let ask = async |version: &str| fixture.get_with("/v1/server", alice, &[("satchel-api", version)]).await;
    let answer = ask("1").await.done(200);
    assert_eq!(answer.header("satchel-api"), "1");
    assert_eq!(answer.header("x-request-id").len(), 16);
    let newer = ask("2").await;
    assert!(newer.refused(426, "api_version").ends_with("update the server"));
    assert_eq!(newer.json()["error"]["supported"], 1);
    assert!(ask("0").await.refused(426, "api_version").ends_with("update the client"));
    ask("latest").await.refused(400, "bad_request");
    // Refusals name it as well.
    assert_eq!(fixture.get("/v1/server", "").await.header("satchel-api"), "1");
}
