//! Options that contradict each other or can do nothing: refused by name, with what to do.

use std::process::{Command, Output, Stdio};

fn fletcher(args: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fletcher"))
        .args(args)
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("the program runs")
}

#[track_caller]
fn refused(args: &[&str], env: &[(&str, &str)], says: &[&str]) {
    let output = fletcher(args, env);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?} {env:?}: {stderr}");
    for part in says {
        assert!(stderr.contains(part), "{args:?} {env:?}: {part:?} is not in: {stderr}");
    }
    assert!(output.stdout.is_empty(), "{args:?}");
}

#[test]
fn an_option_that_cannot_apply_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("a.txt"), "a\n").unwrap();
    let (npy, text) = (path("o.npy"), path("a.txt"));
    for (args, says) in [
        (&["embed", "hi", "--input-format", "csv"][..], "--input-format"),
        (&["embed", "hi", "--column", "c"], "--column"),
        (&["embed", "hi", "-o", &npy, "--vector-column", "x"], "--vector-column x: npy has no"),
        (&["embed", "hi", "--device", "cpu", "--device-memory", "9"], "--device-memory does"),
        (&["bench", "--text", &text, "--column", "c"], "--column c"),
        (
            &["bench", "--latency-tokens", "513"],
            "--latency-tokens 513: the model takes at most 512",
        ),
        (&["serve", "--forward-timeout", "3"], "--forward-timeout does nothing here"),
        (&["serve", "--max-bodies-mb", "3"], "--max-bodies-mb 3; set both"),
    ] {
        refused(args, &[], &[says]);
    }
    assert!(!folder.path().join("o.npy").exists());
}

#[test]
fn a_folder_is_called_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    refused(&["embed", "hi", "-o", path], &[], &[path, "is a folder", "name a file in it"]);
    refused(&["embed", "hi", "-o", "."], &[], &["is a folder"]);
    for args in [["embed", "-i", path], ["bench", "--text", path], ["verify", "--reference", path]]
    {
        refused(&args, &[], &[path, "is a folder"]);
    }
}

/// What belongs together is looked at wherever it was said; clap asks it of typed options alone.
#[test]
fn halves_of_a_pair_in_the_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fletcher.toml");
    for (text, says) in [
        ("tls-client-ca = 'ca.pem'", "--tls-client-ca"),
        ("tls-cert = 'a.pem'", "--tls-key"),
        ("forward = 'grpc://127.0.0.1:1'", "--dataset"),
        ("dataset = 'd'", "--forward"),
        ("prompt = 'a'\nprefix = 'b'", "--prefix"),
    ] {
        std::fs::write(&file, text).unwrap();
        refused(&["serve", "--config", file.to_str().unwrap()], &[], &[says]);
    }
}

#[test]
fn an_empty_variable_counts_as_absent() {
    let empty = ["FLETCHER_MODEL", "FLETCHER_THREADS", "FLETCHER_DEVICE", "FLETCHER_PRECISION"];
    let output = fletcher(&["embed", "hi"], &empty.map(|name| (name, "")));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let empty = ["FLETCHER_CONFIG", "FLETCHER_MAX_ROWS", "FLETCHER_HTTP", "OTEL_SERVICE_NAME"];
    let plain = fletcher(&["serve", "--print-config"], &[]);
    let shown = fletcher(&["serve", "--print-config"], &empty.map(|name| (name, "")));
    assert_eq!(String::from_utf8_lossy(&shown.stdout), String::from_utf8_lossy(&plain.stdout));
    // A variable that is there for every run of a machine may do nothing in some.
    let args = ["embed", "hi", "--device", "cpu"];
    assert!(fletcher(&args, &[("FLETCHER_DEVICE_MEMORY", "9")]).status.success());
}

/// A secret that was not filled in must not open the server to everybody.
#[test]
fn an_empty_secret_is_refused() {
    for name in ["FLETCHER_API_KEY", "FLETCHER_API_KEY_FILE", "FLETCHER_TLS_CLIENT_CA"] {
        refused(&["serve"], &[(name, "")], &[name, "is empty", "unset it"]);
    }
    assert!(fletcher(&["embed", "hi"], &[("FLETCHER_API_KEY", "")]).status.success());
}
