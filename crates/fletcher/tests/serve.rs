//! `fletcher serve` as an operator runs it: options, readiness, answers, signals.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn serve(args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fletcher"));
    command.arg("serve").args(args).env_clear().envs(env.iter().copied());
    command
}

fn printed(args: &[&str], env: &[(&str, &str)]) -> String {
    let output = serve(args, env).arg("--print-config").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn flags_before_environment_before_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fletcher.toml");
    std::fs::write(&file, "max-rows = 1\ncache-mb = 2\ndrain = 3\nhttp = '127.0.0.1:1'\n").unwrap();
    let config = ["--config", file.to_str().unwrap(), "--max-rows", "10"];
    let shown = printed(&config, &[("FLETCHER_MAX_ROWS", "20"), ("FLETCHER_CACHE_MB", "30")]);
    for line in ["max-rows = 10", "cache-mb = 30", "drain = 3", "http = [\"127.0.0.1:1\"]"] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    std::fs::write(&file, "max-rowz = 1").unwrap();
    let output = serve(&["--config", file.to_str().unwrap()], &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no option `max-rowz`"));
}

#[test]
fn mistakes_end_it_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("keys");
    std::fs::write(&empty, "# none\n").unwrap();
    let keys = empty.to_str().unwrap();
    for (args, says) in [
        (&["--http", "nowhere"][..], "HOST:PORT"),
        (&["--http", "256.0.0.1:80"], "cannot listen"),
        (&["--tls-cert", "a.pem"], "--tls-key"),
        (&["--tls-cert", "/none.pem", "--tls-key", "/none.pem"], "/none.pem"),
        (&["--api-key-file", empty.to_str().unwrap()], "holds no key"),
        (&["--api-key", "sha256:12"], "64 hexadecimal digits"),
        (&["--forward", "grpc://127.0.0.1:1"], "--dataset"),
        (&["--forward", "nowhere", "--dataset", "d"], "grpc://HOST:PORT"),
        (&["--forward", "grpc://h:1/path", "--dataset", "d"], "a host and a port alone"),
        (&["--forward", "grpc://u:p@h:1", "--dataset", "d"], "--forward-token"),
        (&["--forward", "grpc://h:1", "--dataset", ""], "name is empty"),
        (&["--forward", "grpc://h:1", "--dataset", "d", "--forward-ca", keys], "not encrypted"),
        (
            &["--forward", "grpc+tls://h:1", "--dataset", "d", "--forward-ca", keys],
            "no certificate",
        ),
        (&["--served-name", ""], "--served-name"),
        (&["--http", &format!("unix:{keys}")], "no socket"),
        (&["--deadline", "0"], "--deadline"),
        (&["--otlp-ratio", "2"], "from 0 to 1"),
        (&["--cors-origin", "example.org"], "https://example.org:8443"),
        (&["--cors-origin", "https://example.org/"], "https://example.org:8443"),
        (&["-m", "/nowhere"], "/nowhere"),
    ] {
        let args: Vec<&str> = ["--http", "127.0.0.1:0"]
            .iter()
            .filter(|_| args[0] != "--http")
            .chain(args)
            .copied()
            .collect();
        let output = serve(&args, &[]).current_dir(folder.path()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(says), "{args:?}: {stderr}");
    }
    assert_eq!(std::fs::read(&empty).unwrap(), b"# none\n", "a file is not taken for a socket");
}

#[test]
fn it_serves_logs_and_stops() {
    let mut child = serve(&["--http", "127.0.0.1:0", "--log-format", "json"], &[])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut next = |message: &str| loop {
        let line = log.next().expect("the log goes on").unwrap();
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        if line["message"] == message || line["path"] == message {
            return line;
        }
    };
    let address = next("listening")["address"].as_str().unwrap().to_owned();
    next("ready");
    let mut answer = ureq::post(format!("http://{address}/v1/embeddings"))
        .header("x-request-id", "test-7")
        .send(&br#"{"input":["a","b"]}"#[..])
        .unwrap();
    let body: serde_json::Value =
        serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
    assert_eq!(body["data"].as_array().unwrap().len(), 2);
    let line = next("/v1/embeddings");
    assert_eq!((&line["request_id"], &line["rows"]), (&"test-7".into(), &2.into()));
    let kill = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let deadline = Instant::now() + Duration::from_secs(20);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "it does not stop");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
}
