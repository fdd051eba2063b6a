use super::*;

pub(crate) fn sample() -> Manifest {
    Manifest {
        features: Features::default(),
        subject: Subject::Desktop { owner: "alice".parse().unwrap(), desktop: "work".parse().unwrap() },
        base: Some(Base {
            image: "debian".parse().unwrap(),
            channel: Some("stable".parse().unwrap()),
            version: ManifestId::of(b"golden"),
        }),
        parent: Some(ManifestId::of(b"parent")),
        sequence: 2,
        created_ms: 1_764_000_000_000,
        machine: "laptop".to_owned(),
        note: None,
        disks: vec![
            Disk {
                role: DiskRole::System,
                size: DiskSize::new(128 << 20).unwrap(),
                chunk_size: ChunkSize::DEFAULT,
                segments: vec![SegmentId::of(b"a"), SegmentId::ZERO],
            },
            Disk {
                role: DiskRole::Home,
                size: DiskSize::new(512).unwrap(),
                chunk_size: ChunkSize::DEFAULT,
                segments: vec![SegmentId::ZERO],
            },
        ],
        boot: BootFacts { firmware: Firmware::Bios, architecture: Architecture::X86_64 },
    }
}

fn edited(edit: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let mut value: serde_json::Value = serde_json::from_slice(&sample().encode().unwrap()).unwrap();
    edit(&mut value);
    serde_json::to_vec(&value).unwrap()
}

#[test]
fn a_manifest_reads_back() {
    let bytes = sample().encode().unwrap();
    assert_eq!(Manifest::decode(&bytes).unwrap(), sample());
}

#[test]
fn unknown_features_are_judged_by_their_class() {
    let with = |class: &str| edited(|json| json["features"][class] = serde_json::json!(["encrypted-chunks"]));
    Manifest::decode(&with("compatible")).unwrap().check_writable().unwrap();
    assert!(Manifest::decode(&with("read_only_compatible")).unwrap().check_writable().is_err());
    let error = Manifest::decode(&with("incompatible")).unwrap_err().to_string();
    assert!(error.contains("encrypted-chunks"), "{error}");
}

#[test]
fn unknown_versions_are_refused_before_anything_else_is_read() {
    let bytes = br#"{"format":"satchel-manifest","version":2,"disks":"elsewhere"}"#;
    assert!(matches!(
        Manifest::decode(bytes).unwrap_err(),
        FormatError::UnsupportedVersion { found: 2, supported: 1, .. }
    ));
}

#[test]
fn each_field_out_of_range_is_named() {
    type Edit = fn(&mut serde_json::Value);
    let cases: [(&str, Edit); 11] = [
        ("format", |json| json["format"] = "tarball".into()),
        ("sequence", |json| json["sequence"] = 0.into()),
        ("sequence", |json| json["sequence"] = 1.into()),
        ("base", |json| json["base"] = serde_json::Value::Null),
        ("machine", |json| json["machine"] = "a\u{7}b".into()),
        ("note", |json| json["note"] = "x".repeat(2000).into()),
        ("disks", |json| json["disks"] = serde_json::json!([])),
        ("role", |json| json["disks"][1]["role"] = "system".into()),
        ("segments", |json| json["disks"][0]["size_bytes"] = 512.into()),
        ("size_bytes", |json| json["disks"][0]["size_bytes"] = 1000.into()),
        ("chunk_size_bytes", |json| json["disks"][0]["chunk_size_bytes"] = 1000.into()),
    ];
    for (field, edit) in cases {
        let error = Manifest::decode(&edited(edit)).unwrap_err().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
}

#[test]
fn unknown_fields_are_ignored() {
    let bytes = edited(|json| json["colour"] = "blue".into());
    assert_eq!(Manifest::decode(&bytes).unwrap(), sample());
}

#[test]
fn what_cannot_be_read_is_not_written() {
    let mut manifest = sample();
    manifest.disks[0].segments.pop();
    assert!(manifest.encode().is_err());
}
