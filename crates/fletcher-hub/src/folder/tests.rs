//! Tests of the folder: limits, names, shards, and errors that say what is there.

use std::fs;

use super::*;

/// Names and contents.
type Files<'a> = &'a [(&'a str, &'a [u8])];

fn folder(files: Files<'_>) -> (tempfile::TempDir, ModelFolder) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (name, content) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        fs::write(path, content).expect("a file");
    }
    let folder = ModelFolder::open(dir.path()).expect("a folder");
    (dir, folder)
}

/// Makes a file look large without filling the disk.
fn stretch(folder: &ModelFolder, name: &str, size_bytes: u64) {
    let file = File::create(folder.root().join(name)).expect("a file");
    file.set_len(size_bytes).expect("a sparse file");
}

#[test]
fn small_files_are_read_up_to_their_limit() {
    let (_dir, folder) = folder(&[("1_Pooling/config.json", b"{}")]);
    let nested = folder.read_small("1_Pooling/config.json").expect("readable");
    assert_eq!(nested.as_deref(), Some(&b"{}"[..]));
    for absent in ["config.json", "2_Dense/config.json", "1_Pooling/config.json/x"] {
        assert_eq!(folder.read_small(absent).expect("absent is no error"), None, "{absent}");
    }

    stretch(&folder, "config.json", SMALL_FILE_LIMIT_BYTES);
    let content = folder.read_small("config.json").expect("at the limit").expect("a file");
    assert_eq!(content.len() as u64, SMALL_FILE_LIMIT_BYTES);
    for (name, limit) in [
        ("config.json", SMALL_FILE_LIMIT_BYTES),
        ("tokenizer.json", LARGE_FILE_LIMIT_BYTES),
        ("1_Pooling/vocab.txt", LARGE_FILE_LIMIT_BYTES),
    ] {
        stretch(&folder, name, limit + 1);
        let error = folder.read_small(name).expect_err(name);
        assert!(
            matches!(error, FolderError::TooLarge { limit_bytes, .. } if limit_bytes == limit),
            "{error:?}"
        );
    }
}

#[test]
fn names_stay_inside_and_are_regular_files() {
    let (_dir, folder) = folder(&[("1_Pooling/config.json", b"{}")]);
    for name in ["../x", "/etc/hostname", "a/../../x", ""] {
        let is_bad = |error| matches!(error, FolderError::BadName { .. });
        assert!(folder.read_small(name).is_err_and(is_bad), "{name}");
        assert!(folder.map(name).is_err_and(is_bad), "{name}");
    }
    let not_a_file = |error| matches!(error, FolderError::NotAFile { .. });
    assert!(folder.read_small("1_Pooling").is_err_and(not_a_file));
    assert!(folder.map("1_Pooling").is_err_and(not_a_file));
    assert!(folder.weight_files("../x").is_err_and(|e| matches!(e, FolderError::BadName { .. })));
}

#[test]
fn pointers_of_git_lfs_are_named() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    let (_dir, folder) = folder(&[(SINGLE_WEIGHTS, pointer), ("tokenizer.json", pointer)]);
    let is_pointer = |error| matches!(error, FolderError::LfsPointer { .. });
    assert!(folder.map(SINGLE_WEIGHTS).is_err_and(is_pointer));
    assert!(folder.read_small("tokenizer.json").is_err_and(is_pointer));
}

#[test]
fn mapped_bytes_outlive_the_folder() {
    let (dir, folder) = folder(&[(SINGLE_WEIGHTS, b"weights"), ("empty", b"")]);
    let bytes = folder.map(SINGLE_WEIGHTS).expect("a mapping");
    assert!(folder.map("empty").expect("an empty file").is_empty());
    let error = folder.map("absent").expect_err("absent");
    assert!(matches!(error, FolderError::FileNotFound { .. }), "{error:?}");
    drop((folder, dir));
    assert_eq!(&bytes[..], b"weights");
}

#[test]
fn weights_are_one_file_or_the_shards_of_an_index() {
    let index = br#"{"metadata": {}, "weight_map": {"x": "b.safetensors", "y": "a.safetensors"}}"#;
    let shards: Files<'_> = &[
        ("2_Dense/model.safetensors.index.json", index),
        ("2_Dense/a.safetensors", b"a"),
        ("2_Dense/b.safetensors", b"b"),
    ];
    let (_dir, sharded) = folder(shards);
    let names = ["2_Dense/a.safetensors", "2_Dense/b.safetensors"];
    assert_eq!(sharded.weight_files("2_Dense").expect("shards"), names);

    fs::remove_file(sharded.root().join(names[1])).expect("a shard to remove");
    match sharded.weight_files("2_Dense") {
        Err(FolderError::MissingShard { shard, .. }) => assert_eq!(shard, names[1]),
        other => panic!("{other:?}"),
    }
    fs::write(sharded.root().join("2_Dense/model.safetensors"), "w").expect("a file");
    let single = sharded.weight_files("2_Dense").expect("one file");
    assert_eq!(single, ["2_Dense/model.safetensors"], "one file goes before shards");
}

#[test]
fn an_index_must_list_shards_inside_the_folder() {
    for json in [
        "",
        "[]",
        "{}",
        r#"{"weight_map": {}}"#,
        r#"{"weight_map": {"x": 1}}"#,
        r#"{"weight_map": {"x": "../a.safetensors"}}"#,
        r#"{"weight_map": {"x": "/a.safetensors"}}"#,
        r#"{"weight_map": {"x": "pytorch_model-1-of-2.bin"}}"#,
    ] {
        let (_dir, folder) = folder(&[(WEIGHTS_INDEX, json.as_bytes())]);
        let error = folder.weight_files("").expect_err(json);
        assert!(matches!(error, FolderError::BadIndex { .. }), "{json}: {error:?}");
        assert!(error.to_string().contains(WEIGHTS_INDEX), "{error}");
    }
}

#[test]
fn absent_weights_are_explained_by_what_is_there() {
    let cases: [(Files<'_>, &[&str]); 3] = [
        (&[("config.json", b"{}")], &["has no weights", SINGLE_WEIGHTS]),
        (&[("pytorch_model.bin", b"x")], &["pytorch_model.bin", "save_pretrained"]),
        (&[("tf_model.h5", b"x"), ("onnx/model.onnx", b"x")], &["tf_model.h5, onnx/model.onnx"]),
    ];
    for (files, parts) in cases {
        let (_dir, folder) = folder(files);
        let error = folder.weight_files("").expect_err("no weights").to_string();
        for part in parts {
            assert!(error.contains(part), "{error}");
        }
    }
}

#[test]
fn what_is_no_folder_is_refused() {
    let (dir, _) = folder(&[("file", b"x")]);
    let open = |name: &str| ModelFolder::open(dir.path().join(name)).expect_err(name);
    assert!(matches!(open("absent"), FolderError::NotFound { .. }));
    assert!(matches!(open("file"), FolderError::NotAFolder { .. }));
}
