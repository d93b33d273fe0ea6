//! The program as a user runs it: what is printed, what is written, and how it ends.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder that is removed with its content.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn golden(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    root.join(name).display().to_string()
}

fn fletcher(args: &[&str]) -> Output {
    fletcher_with_input(args, b"")
}

fn fletcher_with_input(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fletcher"))
        .args(args)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("piped");
    // The program may end before it has read everything, as it does on a bad argument.
    let _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().expect("the program ends")
}

#[track_caller]
fn check(output: &Output, code: i32, stderr_has: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "stderr: {stderr}");
    for part in stderr_has {
        assert!(stderr.contains(part), "{part:?} is not in: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

fn json_lines(bytes: &[u8]) -> Vec<serde_json::Value> {
    let text = std::str::from_utf8(bytes).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn texts_as_arguments() {
    let output = fletcher(&["embed", "The quick brown fox", "A fast auburn animal"]);
    check(&output, 0, &[]);
    let rows = json_lines(&output.stdout);
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["id"], 0);
    assert_eq!(rows[1]["text"], "A fast auburn animal");
    let vector = rows[0]["embedding"].as_array().expect("a vector");
    let norm: f64 = vector.iter().map(|v| v.as_f64().unwrap().powi(2)).sum();
    assert_eq!(vector.len(), 128);
    assert!((norm - 1.0).abs() < 1e-5, "{norm}");
}

#[test]
fn lines_from_standard_input_keep_their_order() {
    let input: String = (0..5000).map(|i| format!("line number {i}\n")).collect();
    let output = fletcher_with_input(&["embed"], input.as_bytes());
    check(&output, 0, &[]);
    let rows = json_lines(&output.stdout);
    assert_eq!(rows.len(), 5000);
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(row["text"], format!("line number {i}"));
    }
}

#[test]
fn other_keys_stay_as_they_were() {
    let input = b"{\"z\":1e400,\"text\":\"a\",\"big\":12345678901234567890123}\n{\"text\":\"b\"}\n";
    let output = fletcher_with_input(&["embed", "-i", "-", "--input-format", "jsonl"], input);
    check(&output, 0, &[]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        text.starts_with("{\"z\":1e400,\"text\":\"a\",\"big\":12345678901234567890123,"),
        "{text}"
    );
}

#[test]
fn every_input_through_every_output() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("in.jsonl"), "{\"text\":\"one\",\"n\":1}\n{\"text\":\"two\",\"n\":2}\n")
        .unwrap();
    std::fs::write(path("in.csv"), "text,n\none,1\n\"two, \"\"quoted\"\"\",2\n").unwrap();
    std::fs::write(path("in.txt"), "one\r\ntwo\n").unwrap();
    let run = |from: &str, to: &str| {
        let output = fletcher(&["embed", "-i", &path(from), "-o", &path(to)]);
        check(&output, 0, &[]);
        assert!(Path::new(&path(to)).exists(), "{from} to {to}");
    };
    run("in.jsonl", "in.parquet");
    run("in.jsonl", "in.arrow");
    for (index, from) in
        ["in.jsonl", "in.csv", "in.txt", "in.parquet", "in.arrow"].iter().enumerate()
    {
        for to in ["jsonl", "parquet", "arrow", "arrows", "npy"] {
            // A file that has a vector already needs another name for the new one.
            let vector = if index > 2 { "second" } else { "vector" };
            let (from, to) = (path(from), path(&format!("out{index}.{to}")));
            let named = ["--vector-column", vector];
            let named = if to.ends_with("npy") { &[][..] } else { &named[..] };
            let args = [&["embed", "-i", &from, "-o", &to], named].concat();
            check(&fletcher(&args), 0, &[]);
            assert!(std::fs::metadata(&to).unwrap().len() > 100, "{from} to {to}");
        }
    }
    let left: Vec<PathBuf> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left.len(), 5 + 25, "nothing temporary is left: {left:?}");
}

#[test]
fn bad_rows_end_the_run_with_their_place() {
    let folder = folder();
    let out = folder.path().join("out.parquet").display().to_string();
    let jsonl: &[&str] = &["embed", "-i", "-", "--input-format", "jsonl", "-o", &out];
    let csv: &[&str] = &["embed", "-i", "-", "--input-format", "csv", "-o", &out];
    let overlong: &[&str] = &["embed", "--overlong", "error", "-o", &out];
    let long = "word ".repeat(600);
    let cases: [(&[&str], &[u8], &[&str]); 7] = [
        (jsonl, b"{\"text\":\"a\"}\n{\"text\": oops}\n", &["line 2", "not valid JSON"]),
        (jsonl, b"{\"text\":\"a\"}\n{\"body\":\"b\"}\n", &["line 2", "text"]),
        (jsonl, b"{\"text\":null}\n", &["line 1", "null"]),
        (jsonl, b"{\"text\":\"a\"}\n[1]\n", &["line 2", "not a JSON object"]),
        (csv, b"id,body\n1,a\n", &["no column \"text\"", "\"body\""]),
        (jsonl, b"{\"text\":\"\xff\"}\n", &["line 1", "UTF-8"]),
        (overlong, long.as_bytes(), &["row 1", "at most 512"]),
    ];
    for (args, input, expected) in cases {
        check(&fletcher_with_input(args, input), 2, expected);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{args:?}");
    }
}

#[test]
fn skipped_rows_keep_their_place() {
    let input =
        b"{\"text\":\"a\",\"n\":1}\n{oops\n{\"text\":null,\"n\":3}\n{\"text\":\"d\",\"n\":4}\n";
    let args = ["embed", "-i", "-", "--input-format", "jsonl", "--on-error", "skip"];
    let output = fletcher_with_input(&args, input);
    check(&output, 0, &[]);
    let rows = json_lines(&output.stdout);
    assert_eq!(rows.len(), 4);
    for (row, good) in rows.iter().zip([true, false, false, true]) {
        assert_eq!(row["embedding"].is_array(), good, "{row}");
        assert_eq!(row["error"].is_string(), !good, "{row}");
    }
    assert_eq!(rows[2]["n"], 3);
}

#[test]
fn bad_usage_and_missing_files() {
    let folder = folder();
    let truncated = folder.path().join("cut.parquet").display().to_string();
    std::fs::write(&truncated, b"PAR1 and nothing else").unwrap();
    let cases: [(&[&str], &[&str]); 19] = [
        // Before a model is looked for.
        (&["embed", "-m", "./none", "-o", "absent/out.npy", "x"], &["no folder absent"]),
        (&["embed", "-m", "./none", "-o", "out.xyz", "x"], &["unknown format \"xyz\""]),
        (&["embed", "-m", "./none", "--column", "body", "x"], &["--column"]),
        (&["embed", "-m", "./none", "--column", "body"], &["plain texts", "--input-format"]),
        (&["bench", "-m", "./none", "--json", "absent/r.json"], &["no folder absent"]),
        (&["bench", "-m", "./none", "--html", "."], &["it is a folder"]),
        (&["embed", "-m", "./no-such-folder", "x"], &["no such folder"]),
        (&["embed", "-m", "nonsense", "x"], &["names no model", "org/name"]),
        (&["embed", "-i", "no-such-file.jsonl"], &["no-such-file.jsonl", "No such file"]),
        (&["embed", "-i", &truncated], &["cut.parquet", "damaged"]),
        (&["embed", "-i", "x.weird"], &["x.weird", "No such file"]),
        (&["embed", "-i", "/dev/null"], &["unknown format"]),
        (&["embed", "--prompt", "query", "x"], &["no prompt named `query`"]),
        (&["embed", "--dimensions", "129", "x"], &["dimensions", "128"]),
        (&["embed", "--threads", "0", "x"], &["--threads"]),
        (&["embed", "--threads", "100000", "x"], &["--threads", "4096"]),
        (&["verify", "--reference", "x", "--tolerance", "nan"], &["--tolerance", "a number"]),
        (&["embed", "--device", "gpu", "x"], &["`gpu` is not a device", "cuda", "cpu"]),
        (&["embed", "--device", "cuda:63", "x"], &["cuda:63 cannot be used", "fletcher info"]),
    ];
    for (args, expected) in cases {
        check(&fletcher(args), 2, expected);
    }
}

/// The reference is sentence-transformers' own answer for `models/fletcher-tiny`.
#[test]
fn the_default_model_gives_pythons_vectors() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let reference = root.join("tests/default/reference.jsonl").display().to_string();
    let args = ["verify", "--reference", &reference, "--tolerance", "5e-6"];
    let embedded = fletcher(&args);
    check(&embedded, 0, &[]);
    let folder = root.join("models/fletcher-tiny").display().to_string();
    let from_folder = fletcher(&[&args[..], &["-m", &folder]].concat());
    check(&from_folder, 0, &[]);
    // The same but for the name in the first line, the fingerprint included.
    let after_name = |output: Output| {
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_once('\n').unwrap().1.to_owned()
    };
    assert_eq!(after_name(embedded), after_name(from_folder));
}

/// Guards against a model that opens but means nothing.
#[test]
fn the_default_model_knows_what_is_near() {
    let texts = [
        "How do I bake bread at home?",
        "Mix flour, water, salt and yeast, let the dough rise, and put the loaf into a hot oven.",
        "The central bank raised interest rates to slow inflation.",
    ];
    let output = fletcher(&[&["embed"], &texts[..]].concat());
    check(&output, 0, &[]);
    let vectors: Vec<Vec<f64>> = json_lines(&output.stdout)
        .iter()
        .map(|row| serde_json::from_value(row["embedding"].clone()).unwrap())
        .collect();
    let cosine = |a: usize, b: usize| -> f64 {
        vectors[a].iter().zip(&vectors[b]).map(|(x, y)| x * y).sum()
    };
    let (near, far) = (cosine(0, 1), cosine(0, 2));
    assert!(near > 0.4 && far < 0.2, "near {near}, far {far}");
}

/// Breaks a copy of a model folder.
type Edit = Box<dyn Fn(&Path)>;

#[test]
fn broken_models_name_file_and_tensor() {
    let folder = folder();
    let copy = |edit: &dyn Fn(&Path)| {
        let to = folder.path().join("model");
        let _ = std::fs::remove_dir_all(&to);
        copy_folder(Path::new(&golden("bert")), &to);
        edit(&to);
        to.display().to_string()
    };
    let config = |key: &'static str, value: &'static str| {
        move |to: &Path| {
            let file = to.join("config.json");
            let mut json: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            json[key] = serde_json::from_str(value).unwrap();
            std::fs::write(file, json.to_string()).unwrap();
        }
    };
    let write = |name: &'static str, bytes: &'static [u8]| {
        move |to: &Path| std::fs::write(to.join(name), bytes).unwrap()
    };
    let remove = |name: &'static str| move |to: &Path| std::fs::remove_file(to.join(name)).unwrap();
    let cases: Vec<(Edit, &[&str])> = vec![
        (Box::new(config("num_attention_heads", "0")), &["config.json", "num_attention_heads"]),
        (Box::new(config("num_attention_heads", "5")), &["num_attention_heads", "divisor"]),
        (Box::new(config("num_hidden_layers", "1000000000")), &["num_hidden_layers"]),
        (Box::new(config("num_hidden_layers", "3")), &["encoder.layer.2", "missing"]),
        (Box::new(config("intermediate_size", "65")), &["shape", "intermediate.dense.weight"]),
        (Box::new(config("hidden_size", "64")), &["1_Pooling/config.json", "must be 64"]),
        (Box::new(config("vocab_size", "100")), &["up to 511", "embeds only 100 tokens"]),
        (Box::new(config("type_vocab_size", "0")), &["type_vocab_size", "at least 1"]),
        (Box::new(config("model_type", "\"gpt9\"")), &["gpt9", "modernbert"]),
        (Box::new(config("hidden_act", "\"mystery\"")), &["hidden_act", "mystery"]),
        (Box::new(write("config.json", b"{\"a\":")), &["config.json", "not valid JSON"]),
        (Box::new(write("config.json", b"[]")), &["config.json", "an object"]),
        (
            Box::new(write("model.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}")),
            &["model.safetensors"],
        ),
        (Box::new(write("model.safetensors", b"")), &["model.safetensors"]),
        (Box::new(write("tokenizer.json", b"{}")), &["tokenizer.json"]),
        (Box::new(write("modules.json", b"{}")), &["modules.json"]),
        (Box::new(remove("config.json")), &["config.json", "no such file"]),
        (Box::new(remove("model.safetensors")), &["model.safetensors"]),
        (Box::new(remove("1_Pooling/config.json")), &["1_Pooling/config.json"]),
    ];
    for (edit, expected) in cases {
        let model = copy(&edit);
        check(&fletcher(&["embed", "-m", &model, "x"]), 2, expected);
    }
}

/// Damage anywhere in a Parquet file is an error with one message, whatever the reader does.
#[test]
fn damaged_parquet_is_one_clear_error() {
    let folder = folder();
    let good = folder.path().join("good.parquet").display().to_string();
    check(&fletcher(&["embed", "some text", "another", "-o", &good]), 0, &[]);
    let bytes = std::fs::read(&good).unwrap();
    let bad = folder.path().join("bad.parquet").display().to_string();
    for at in (4..bytes.len()).step_by(bytes.len() / 40) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0xff;
        std::fs::write(&bad, damaged).unwrap();
        let output = fletcher(&["embed", "-i", &bad, "--vector-column", "second"]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!stderr.contains("panicked"), "byte {at}: {stderr}");
        // Damage that no checksum covers may go unnoticed; what is noticed is the input's fault.
        match output.status.code() {
            Some(0) => {}
            code => assert_eq!(code, Some(2), "byte {at}: {stderr}"),
        }
    }
}

#[test]
fn absurd_positions_are_refused() {
    let folder = folder();
    let model = folder.path().join("model");
    copy_folder(Path::new(&golden("nomic-native")), &model);
    let file = model.join("config.json");
    let mut json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    json["max_position_embeddings"] = serde_json::json!(1u64 << 40);
    std::fs::write(&file, json.to_string()).unwrap();
    let model = model.display().to_string();
    check(&fletcher(&["embed", "-m", &model, "x"]), 2, &["max_position_embeddings"]);
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn verify_passes_on_the_right_model_and_fails_on_another() {
    let reference = format!("{}/reference.jsonl", golden("mpnet"));
    let right = fletcher(&["verify", "-m", &golden("mpnet"), "--reference", &reference]);
    check(&right, 0, &[]);
    let text = String::from_utf8(right.stdout).unwrap();
    assert!(text.contains("invariant    yes") && text.ends_with("verified\n"), "{text}");
    let wrong = golden("mpnet");
    let args = ["verify", "-m", &wrong, "--prefix", "x ", "--reference", &reference];
    check(&fletcher(&args), 1, &["not those of"]);
}

/// Also where a Vulkan driver is installed that would rather ask a desktop.
#[test]
fn info_says_nothing_aside() {
    let program = env!("CARGO_BIN_EXE_fletcher");
    let output = Command::new(program).arg("info").env_remove("XDG_RUNTIME_DIR").output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// The machine's facts help whoever wonders why a model does not open.
#[test]
fn info_tells_the_machine_even_without_a_model() {
    let output = fletcher(&["info", "-m", "./no-such-folder"]);
    check(&output, 2, &["no such folder"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("device cpu"));
}

/// `fletcher info | head -1` is no failure, but a failed verification is one whoever reads.
#[test]
#[cfg(unix)]
fn results_survive_readers_that_leave() {
    let model = golden("mpnet");
    let reference = format!("{model}/reference.jsonl");
    let cases: [(&[&str], i32); 3] = [
        (&["info"], 0),
        (&["serve", "--print-config"], 0),
        (&["verify", "-m", &model, "--prefix", "x ", "--reference", &reference], 1),
    ];
    for (args, code) in cases {
        let mut child = Command::new(env!("CARGO_BIN_EXE_fletcher"))
            .args(args)
            .env_clear()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        check(&output, code, &[]);
    }
}

#[test]
fn info_tells_the_models_facts() {
    let output = fletcher(&["info", "-m", &golden("nomic-native")]);
    check(&output, 0, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["NomicBERT", "fingerprint", "prompt", "(default)", "device cpu", "threads"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

/// Columns from a pipe pass through a temporary file, and an npy to one.
#[test]
#[cfg(unix)]
fn a_temporary_folder_that_is_none_is_named() {
    for args in [&["embed", "--input-format", "parquet"][..], &["embed", "--output-format", "npy"]]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_fletcher"))
            .args(args)
            .env_clear()
            .env("TMPDIR", "/no/such/folder")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(!output.status.success());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("/no/such/folder"), "{args:?}: {stderr}");
    }
}

/// `head -1` takes one line and leaves.
#[test]
#[cfg(unix)]
fn a_closed_pipe_ends_quietly() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fletcher"))
        .args(["embed", "-i", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    drop(child.stdout.take());
    let feed = std::thread::spawn(move || {
        for _ in 0..20_000 {
            if stdin.write_all(b"some text\n").is_err() {
                return;
            }
        }
    });
    let output = child.wait_with_output().unwrap();
    feed.join().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("error"));
}

/// Nobody reads the output, so the first signal cannot take effect; the second must.
#[test]
#[cfg(unix)]
fn a_second_signal_ends_a_stalled_run() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fletcher"))
        .args(["embed", "-i", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feed =
        std::thread::spawn(
            move || {
                while stdin.write_all("a text\n".repeat(1000).as_bytes()).is_ok() {}
            },
        );
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    std::thread::sleep(std::time::Duration::from_millis(500));
    let status = loop {
        let kill = ["-INT", &child.id().to_string()].map(str::to_owned);
        Command::new("kill").args(kill).status().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(200));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(std::time::Instant::now() < deadline, "the signals had no effect");
    };
    assert_eq!(status.code(), Some(130));
    feed.join().unwrap();
}

/// A stop signal in the middle of a run leaves nothing behind.
#[test]
#[cfg(unix)]
fn an_interrupted_run_leaves_nothing() {
    let folder = folder();
    let out = folder.path().join("out.parquet");
    let mut child = Command::new(env!("CARGO_BIN_EXE_fletcher"))
        .args(["embed", "-i", "-", "-o", &out.display().to_string()])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all("a text\n".repeat(10_000).as_bytes()).unwrap();
    // The temporary file shows that the run is under way; its input stays open.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while std::fs::read_dir(folder.path()).unwrap().count() == 0 {
        assert!(std::time::Instant::now() < deadline, "the run did not begin");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    check(&output, 130, &["nothing was left"]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// `nohup` and the shells' like: a run goes on when its terminal closes.
#[test]
#[cfg(unix)]
fn a_hangup_that_is_ignored_stays_ignored() {
    let program = env!("CARGO_BIN_EXE_fletcher");
    let mut child = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" embed -i -", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    let rows = "a text\n".repeat(10_000);
    stdin.write_all(&rows.as_bytes()[..rows.len() / 2]).unwrap();
    // Its first line shows that the run is under way.
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
    let feed = std::thread::spawn(move || std::io::read_to_string(stdout).unwrap());
    let kill = Command::new("kill").args(["-HUP", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    stdin.write_all(&rows.as_bytes()[rows.len() / 2..]).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    check(&output, 0, &[]);
    assert_eq!(feed.join().unwrap().lines().count(), 9_999);
}

/// `ulimit -f`: the write fails as on a full disk, and the unfinished output is removed.
#[test]
#[cfg(unix)]
fn a_file_that_may_grow_no_more_is_an_error() {
    let folder = folder();
    let input = folder.path().join("in.txt");
    std::fs::write(&input, "a text\n".repeat(2_000)).unwrap();
    let output = Command::new("sh")
        .args(["-c", "ulimit -f 100; exec \"$0\" embed -i \"$1\" -o out.jsonl"])
        .arg(env!("CARGO_BIN_EXE_fletcher"))
        .arg(&input)
        .current_dir(folder.path())
        .output()
        .unwrap();
    check(&output, 1, &["cannot write out.jsonl", "too large"]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn bench_measures_and_writes_its_report() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (json, html, texts) = (at("r.json"), at("r.html"), at("texts.txt"));
    std::fs::write(&texts, "The quick brown fox\nA fast auburn animal\n").unwrap();
    let measured = "--sizes 8,40 --batch-size 4 --seq-len 16 --rounds 1 --latency --threads 2";
    let mut args = vec!["bench", "--latency-tokens", "16", "--soak", "1s", "--text", &texts];
    args.extend(["--json", &json, "--html", &html].into_iter().chain(measured.split(' ')));
    let output = fletcher(&args);
    check(&output, 0, &[]);
    let table = String::from_utf8_lossy(&output.stdout);
    for part in ["vectors/s", "texts/s", "p99", "soak"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["sizes"]["runs"][1]["rows"], 40);
    assert_eq!(report["text"]["texts"], 2);
    assert!(report["text"]["stages"]["tokenise"].as_f64().unwrap() > 0.0);
    assert_eq!(report["latency"][0]["tokens"], 16);
    assert!(!report["command"].as_str().unwrap().contains(folder.path().to_str().unwrap()));
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.contains("<svg") && page.trim_end().ends_with("</html>"));
    check(&fletcher(&["bench", "--seq-len", "100000"]), 2, &["at most"]);
}

#[test]
fn bench_answers_a_pair() {
    let requests = concat!(
        "{\"set\":\"t\",\"texts\":[\"a fox\",\"an animal\"]}\n{\"run\":\"t\"}\n{\"one\":\"t\"}\n",
        "{\"set\":\"i\",\"ids\":[[2,5,3]]}\n{\"run\":\"i\"}\n{\"vectors\":\"i\"}\n",
    );
    let output = fletcher_with_input(&["bench", "--pair", "--seq-len", "16"], requests.as_bytes());
    check(&output, 0, &[]);
    let lines: Vec<&[u8]> = output.stdout.splitn(7, |&byte| byte == b'\n').collect();
    let answers: Vec<serde_json::Value> =
        lines[..6].iter().map(|line| serde_json::from_slice(line).unwrap()).collect();
    assert_eq!(answers[0]["rows"], 2);
    assert!(answers[1]["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(answers[2]["ms"].as_array().unwrap().len(), 2);
    assert_eq!(answers[5]["rows"], 1);
    assert_eq!(lines[6].len() as u64, 4 * answers[5]["dim"].as_u64().unwrap());
    let lost = fletcher_with_input(&["bench", "--pair", "--seq-len", "16"], b"{\"run\":\"x\"}\n");
    check(&lost, 2, &["nothing is set as `x`"]);
}
