use super::features::MAX_FEATURES;
use super::*;

pub(crate) fn sample() -> Manifest {
    Manifest {
        features: Features::default(),
        subject: Subject::Desktop { owner: "alice".parse().unwrap(), desktop: "work".parse().unwrap() },
        base: Some(Base {
            image: "debian".parse().unwrap(),
            channel: Some("stable".parse().unwrap()),
            publisher: crate::SecretKey::from_bytes(&[9; 32]).public(),
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
        system_mode: None,
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

fn refusal(edit: impl FnOnce(&mut serde_json::Value)) -> String {
    Manifest::decode(&edited(edit)).unwrap_err().to_string()
}

/// The sample's bytes with one text replaced by another: what an edited JSON value cannot hold.
fn replaced(from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(sample().encode().unwrap()).unwrap();
    assert_eq!(text.matches(from).count(), 1, "{from}");
    text.replace(from, to).into_bytes()
}

#[test]
fn arrays_do_not_stand_for_objects() {
    use serde_json::json;
    let id = ManifestId::of(b"golden").to_string();
    type Edit<'a> = Box<dyn Fn(&mut serde_json::Value) + 'a>;
    let edits: [Edit<'_>; 6] = [
        Box::new(|json| json["boot"] = json!(["bios", "x86_64"])),
        Box::new(|json| json["features"] = json!([[], [], []])),
        Box::new(|json| json["base"] = json!(["debian", "stable", id])),
        Box::new(|json| json["subject"] = json!(["desktop", "alice", "work"])),
        Box::new(|json| json["disks"][1] = json!(["home", 512, 65_536, ["0".repeat(64)]])),
        Box::new(|json| *json = json!(["satchel-manifest", 1, {}])),
    ];
    for (at, edit) in edits.iter().enumerate() {
        let error = refusal(|json| edit(json));
        assert!(error.contains("expected an object"), "{at}: {error}");
    }
}

#[test]
fn objects_and_numbers_do_not_stand_for_names() {
    use serde_json::json;
    assert!(refusal(|json| json["boot"]["firmware"] = json!({"bios": null})).contains("string"));
    assert!(refusal(|json| json["disks"][0]["role"] = json!(0)).contains("string"));
    assert!(refusal(|json| json["subject"]["kind"] = json!(1)).contains("string"));
    assert!(refusal(|json| json["sequence"] = json!(2.0)).contains("u64"));
}

#[test]
fn a_field_given_twice_is_refused() {
    for (from, to) in [
        ("\"sequence\": 2", "\"sequence\": 2, \"sequence\": 3"),
        ("\"sequence\": 2", "\"sequence\": 2, \"\\u0073equence\": 3"),
        ("\"version\": 1", "\"version\": 1, \"version\": 1"),
        ("\"owner\": \"alice\"", "\"owner\": \"alice\", \"owner\": \"bob\""),
        ("\"firmware\": \"bios\"", "\"firmware\": \"bios\", \"firmware\": \"uefi\""),
    ] {
        let error = Manifest::decode(&replaced(from, to)).unwrap_err().to_string();
        assert!(error.contains("duplicate field"), "{to}: {error}");
    }
}

#[test]
fn a_subject_has_the_fields_of_its_kind_only() {
    let error = refusal(|json| json["subject"]["image"] = "debian".into());
    assert!(error.contains("subject"), "{error}");
    assert!(refusal(|json| json["subject"]["kind"] = "image".into()).contains("subject"));
    assert!(refusal(|json| json["subject"]["kind"] = "disk".into()).contains("unknown variant"));
}

#[test]
fn deep_and_wide_json_is_refused_without_taking_memory_or_stack() {
    let deep = replaced("\"sequence\": 2", &format!("\"x\": {}, \"sequence\": 2", "[".repeat(1 << 20)));
    assert!(Manifest::decode(&deep).is_err());
    let names = vec!["\"x\""; 1 << 20].join(",");
    for class in ["compatible", "incompatible"] {
        let wide = replaced(&format!("\"{class}\": []"), &format!("\"{class}\": [{names}]"));
        let error = Manifest::decode(&wide).unwrap_err().to_string();
        assert!(error.contains("a list of at most 64"), "{error}");
    }
    let disk = "{\"role\":\"home\",\"size_bytes\":512,\"chunk_size_bytes\":4096,\"segments\":[]}";
    let disks = edited(|json| json["disks"] = serde_json::json!([]));
    let text = String::from_utf8(disks).unwrap();
    let wide = text.replace("\"disks\":[]", &format!("\"disks\":[{}]", [disk; 5].join(",")));
    let error = Manifest::decode(wide.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("a list of at most 4"), "{error}");
}

#[test]
fn bytes_that_are_not_utf_8_are_refused_even_in_fields_unknown() {
    let mut bytes = replaced("\"sequence\": 2", "\"x\": \"?\", \"sequence\": 2");
    let at = bytes.iter().position(|byte| *byte == b'?').unwrap();
    Manifest::decode(&bytes).unwrap();
    bytes[at] = 0xff;
    let error = Manifest::decode(&bytes).unwrap_err().to_string();
    assert!(error.contains("is not UTF-8"), "{error}");
    let with_bom = [b"\xef\xbb\xbf", &sample().encode().unwrap()[..]].concat();
    assert!(Manifest::decode(&with_bom).is_err());
}

#[test]
fn nothing_follows_the_manifest() {
    let bytes = sample().encode().unwrap();
    assert!(Manifest::decode(&[&bytes[..], b"{}"].concat()).is_err());
    assert!(Manifest::decode(&[&bytes[..], b"\0"].concat()).is_err());
    for len in 0..bytes.len() - 2 {
        assert!(Manifest::decode(&bytes[..len]).is_err(), "{len}");
    }
}

#[test]
fn messages_do_not_repeat_foreign_text_as_it_is() {
    let error = refusal(|json| json["disks"][0]["role"] = format!("\u{1b}[2J{}", "x".repeat(10_000)).into());
    assert!(error.contains("\\u{1b}[2J"), "{error}");
    assert!(error.len() < 600, "{} bytes", error.len());
}

#[test]
fn text_for_people_cannot_turn_a_line_around() {
    for bad in ["a\u{202e}b", "a\u{2066}b", "a\u{2028}b", "a\u{85}b", "\u{feff}", "a\nb"] {
        assert!(refusal(|json| json["machine"] = bad.into()).contains("machine"), "{bad:?}");
        assert!(refusal(|json| json["note"] = bad.into()).contains("note"), "{bad:?}");
    }
    let mut manifest = sample();
    manifest.machine = "Büro-PC 机器 👩‍💻".to_owned();
    assert_eq!(Manifest::decode(&manifest.encode().unwrap()).unwrap(), manifest);
}

#[test]
fn numbers_stay_exact_in_every_json_reader() {
    type Edit = fn(&mut Manifest, u64);
    let edits: [(&str, Edit); 2] = [
        ("sequence", |manifest, number| manifest.sequence = number),
        ("created_ms", |manifest, number| manifest.created_ms = number),
    ];
    for (field, edit) in edits {
        let mut manifest = sample();
        edit(&mut manifest, MAX_EXACT);
        assert_eq!(Manifest::decode(&manifest.encode().unwrap()).unwrap(), manifest);
        edit(&mut manifest, MAX_EXACT + 1);
        assert!(manifest.encode().unwrap_err().to_string().contains(field));
    }
}

#[test]
fn features_are_names_and_unknown_ones_are_not_written() {
    let mut manifest = sample();
    manifest.features.compatible = vec!["thumbnails".to_owned()];
    assert_eq!(Manifest::decode(&manifest.encode().unwrap()).unwrap(), manifest);
    manifest.features.compatible = vec!["Thumb nails".to_owned()];
    assert!(manifest.encode().is_err());
    manifest.features.compatible = vec!["x".to_owned(); MAX_FEATURES + 1];
    assert!(manifest.encode().is_err());
    manifest.features = Features { incompatible: vec!["encrypted-chunks".to_owned()], ..Features::default() };
    assert!(manifest.encode().is_err());
}

#[test]
fn the_longest_manifest_fits_its_limit() {
    let mut manifest = sample();
    for disk in &mut manifest.disks {
        disk.size = DiskSize::new(u64::from(MAX_SEGMENTS_PER_DISK) * ChunkSize::DEFAULT.segment_span_bytes())
            .unwrap();
        disk.segments = vec![SegmentId::of(b"a"); MAX_SEGMENTS];
    }
    let bytes = manifest.encode().unwrap();
    assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
}

#[test]
fn a_system_mode_is_written_only_where_there_is_one() {
    let plain = String::from_utf8(sample().encode().unwrap()).unwrap();
    assert!(!plain.contains("system_mode"), "{plain}");
    assert_eq!(sample().mode(), SystemMode::Own);
    for mode in [SystemMode::Renew, SystemMode::Keep, SystemMode::Own] {
        let manifest = Manifest { system_mode: Some(mode), ..sample() };
        let bytes = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains(&format!("\"system_mode\": \"{mode}\"")), "{text}");
        let other = text.replace(&format!("\"{mode}\""), "\"never\"");
        assert!(Manifest::decode(other.as_bytes()).is_err());
    }
}
