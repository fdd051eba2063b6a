//! Paths and queries that are not what they seem.

use axum::http::Uri;

use super::Fixture;

#[tokio::test]
async fn names_and_ids_are_read_strictly() {
    let fixture = Fixture::new().await;
    let alice = &fixture.tokens.alice;
    let id = fixture.image.pack.to_string();
    let cases = [
        (format!("/v1/data/image/debian/packs/{}", id.to_uppercase()), 400),
        (format!("/v1/data/image/debian/packs/{}", &id[1..]), 400),
        (format!("/v1/data/image/debian/packs/{id}0"), 400),
        (format!("/v1/data/image/debian/packs/{id}.sig"), 400),
        (format!("/v1/data/image/debian/packs/{id}%00"), 400),
        (format!("/v1/data/image/debian/packs/%{:02x}{}", id.as_bytes()[0], &id[1..]), 400),
        (format!("/v1/data/image/DEBIAN/packs/{id}"), 400),
        (format!("/v1/data/image/.debian/packs/{id}"), 400),
        (format!("/v1/data/image/../packs/{id}"), 400),
        (format!("/v1/data/image/%2e%2e/packs/{id}"), 400),
        (format!("/v1/data/image/..%2f..%2ftls/packs/{id}"), 400),
        (format!("/v1/data/image/{}/packs/{id}", "x".repeat(65)), 400),
        (format!("/v1/data/image/{}/packs/{id}", "x".repeat(64)), 404),
        (format!("/v1/data/team/debian/packs/{id}"), 400),
        (format!("/v1/data/image/debian/blobs/{id}"), 404),
        (format!("/v1/data/image/debian/packs/../packs/{id}"), 404),
        (format!("/v1/data/image/debian//packs/{id}"), 404),
        (format!("/v1/data/image//packs/{id}"), 400),
        (format!("/v1/data/image/debian/packs/{id}/"), 404),
        (format!("//v1/data/image/debian/packs/{id}"), 404),
        ("/v1/data/image/debian/packs/".to_owned(), 404),
        ("/v1/data/image/debian/manifests/.sig".to_owned(), 400),
        (format!("/v1/data/image/debian/manifests/{id}.SIG"), 400),
        (format!("/v1/data/image/debian/manifests/{id}.sig.sig"), 400),
        ("/v1/images/Debian".to_owned(), 400),
        ("/v1/images/debian%2fversions".to_owned(), 400),
        ("/v1/images/nowhere".to_owned(), 404),
        ("/v1/desktops/-".to_owned(), 400),
        ("/v1/../v1/server".to_owned(), 404),
    ];
    for (path, expected) in cases {
        let answer = fixture.get(&path, alice).await;
        assert_eq!(answer.status, expected, "{path}: {:?}", answer.body);
        answer.refused(expected, if expected == 400 { "bad_request" } else { "not_found" });
    }
    fixture.get(&format!("/v1/data/image/debian/packs/{id}"), alice).await.done(200);
}

#[tokio::test]
async fn nothing_is_written_outside_the_namespaces() {
    let fixture = Fixture::new().await;
    let before = fixture.files("").len();
    let (admin, bytes) = (&fixture.tokens.admin, &fixture.image.pack_bytes);
    let id = fixture.image.pack;
    for path in [
        format!("/v1/data/image/../packs/{id}"),
        format!("/v1/data/image/..%2f..%2f..%2fetc/packs/{id}"),
        format!("/v1/data/user/%2e%2e/packs/{id}"),
        format!("/v1/data/image/debian/packs/..%2f{id}"),
        format!("/v1/data/image/a%00b/packs/{id}"),
        format!("/v1/data/staging/x/packs/{id}"),
    ] {
        fixture.put(&path, admin, bytes).await.refused(400, "bad_request");
    }
    assert_eq!(fixture.files("").len(), before);
}

#[tokio::test]
async fn queries_are_read_strictly() {
    let fixture = Fixture::new().await;
    let alice = &fixture.tokens.alice;
    let many: String = (0..9).map(|n| format!("&also=image/i{n}")).collect();
    for query in
        ["limit=0", "limit=-1", "limit=x", "limit=", "before=0", "limit=1&limit=2", "channle=x", "limit"]
    {
        let answer = fixture.get(&format!("/v1/images/debian/versions?{query}"), alice).await;
        assert!(answer.refused(400, "bad_request").starts_with("query"), "{query}");
    }
    for query in ["also=debian", "also=user/alice", "also=image/..", "x=1", &many[1..]] {
        let answer = fixture.post(&format!("/v1/missing/user/alice/chunks?{query}"), alice, b"").await;
        assert!(answer.refused(400, "bad_request").starts_with("query"), "{query}");
    }
    fixture.get("/v1/server?x=1", alice).await.refused(400, "bad_request");
    let escaped = "/v1/missing/user/alice/chunks?also=image%2Fdebian&also=image/other";
    fixture.post(escaped, alice, b"").await.done(200);
}

#[tokio::test]
async fn an_absolute_address_is_the_same_path() {
    let fixture = Fixture::new().await;
    let uri: Uri = "https://other.example/v1/server".parse().unwrap();
    fixture.get(&uri.to_string(), &fixture.tokens.alice).await.done(200);
}

#[tokio::test]
async fn a_head_with_too_many_fields_is_refused() {
    let fixture = Fixture::new().await;
    let names: Vec<String> = (0..64).map(|n| format!("x-{n}")).collect();
    let headers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
    let alice = &fixture.tokens.alice;
    fixture.get_with("/v1/server", alice, &headers[..63]).await.done(200);
    fixture.get_with("/v1/server", alice, &headers).await.refused(431, "head_too_large");
}
