//! Fetching from a hub, against one on 127.0.0.1 that misbehaves on demand.

mod fake_hub;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use fake_hub::{COMMIT, FakeHub, Fault, REPO, Request, etag};
use fletcher_hub::{
    FolderError, HubConfig, HubError, ModelFolder, Progress, ProxyConfig, RetryConfig, Silent,
    TokenSource, resolve,
};
use tempfile::TempDir;

const WEIGHTS: &str = "model.safetensors";

/// Content that no two positions share, so that a misplaced resumption shows.
fn weights() -> Vec<u8> {
    (0_u32..50_000).flat_map(u32::to_le_bytes).collect()
}

/// A plain transformers model, with much beside it that must stay where it is.
fn plain_model() -> FakeHub {
    FakeHub::start(&[
        (WEIGHTS, &weights()),
        ("config.json", b"{\"model_type\": \"bert\"}"),
        ("tokenizer.json", b"{}"),
        ("vocab.txt", b""),
        ("README.md", b"# A model"),
        ("pytorch_model.bin", b"pickle"),
        ("onnx/model.onnx", b"onnx"),
        ("onnx/config.json", b"{}"),
    ])
}

struct Cache {
    dir: TempDir,
}

impl Cache {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    fn config(&self, endpoint: &str) -> HubConfig {
        HubConfig {
            endpoint: endpoint.to_owned(),
            cache_dir: Some(self.dir.path().to_owned()),
            token: TokenSource::None,
            offline: false,
            proxy: None,
            ca_file: None,
            retry: RetryConfig { attempts: 3, first_pause: Duration::from_millis(1) },
        }
    }

    fn offline(&self, endpoint: &str) -> HubConfig {
        HubConfig { offline: true, ..self.config(endpoint) }
    }

    fn resolve(&self, hub: &FakeHub) -> Result<ModelFolder, HubError> {
        resolve(REPO, &self.config(&hub.endpoint), &Silent)
    }

    fn repo(&self) -> PathBuf {
        self.dir.path().join("models--org--name")
    }

    fn partial_weights(&self) -> PathBuf {
        self.repo().join("blobs").join(etag(WEIGHTS, &weights()) + ".incomplete")
    }

    /// Writes the partial file that an interrupted run leaves.
    fn leave_partial_weights(&self, content: &[u8]) {
        let path = self.partial_weights();
        fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        fs::write(path, content).expect("a partial file");
    }
}

/// An address at which nobody listens.
fn dead_endpoint() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("an address"))
}

fn assert_weights_whole(folder: &ModelFolder) {
    assert_eq!(folder.weight_files("").expect("weights"), [WEIGHTS]);
    assert!(folder.map(WEIGHTS).expect("a mapping") == weights(), "the bytes differ");
}

/// The ranges with which the weights were asked for, one item per request for them.
fn weight_ranges(requests: &[Request]) -> Vec<Option<&str>> {
    let on_cdn = requests.iter().filter(|request| request.on_cdn);
    on_cdn.map(|request| request.headers.get("range").map(String::as_str)).collect()
}

/// Records what it is told.
#[derive(Default)]
struct Recorder(Mutex<Vec<String>>);

impl Recorder {
    fn push(&self, line: String) {
        self.0.lock().expect("no panic while recording").push(line);
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no panic while recording").clone()
    }

    /// The bytes that were reported since the last start.
    fn last_file_bytes(&self) -> u64 {
        let lines = self.lines();
        let since_start = lines.iter().rev().take_while(|line| !line.starts_with("start"));
        since_start.filter_map(|line| line.parse::<u64>().ok()).sum()
    }
}

impl Progress for Recorder {
    fn start(&self, file: &str, total_bytes: Option<u64>) {
        self.push(format!("start {file} {total_bytes:?}"));
    }
    fn advance(&self, bytes: u64) {
        self.push(bytes.to_string());
    }
    fn finish(&self) {
        self.push("finish".to_owned());
    }
    fn notice(&self, message: &str) {
        self.push(format!("notice {message}"));
    }
}

#[test]
fn fetches_a_model_and_nothing_else_into_the_layout_of_the_hub() {
    let (hub, cache) = (plain_model(), Cache::new());
    let recorder = Recorder::default();
    let folder = resolve(REPO, &cache.config(&hub.endpoint), &recorder).expect("a model");

    assert_weights_whole(&folder);
    assert_eq!(folder.name(), REPO);
    assert_eq!(folder.read_small("tokenizer.json").expect("readable").as_deref(), Some(&b"{}"[..]));
    assert_eq!(folder.read_small("vocab.txt").expect("readable").as_deref(), Some(&b""[..]));
    for skipped in ["README.md", "pytorch_model.bin", "onnx/model.onnx", "onnx/config.json"] {
        assert_eq!(folder.read_small(skipped).expect("readable"), None, "{skipped}");
    }

    let repo = cache.repo();
    assert_eq!(folder.root(), repo.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(repo.join("refs/main")).expect("a ref"), COMMIT);
    let link = fs::read_link(folder.root().join(WEIGHTS)).expect("a link");
    assert_eq!(link, Path::new("../../blobs").join(etag(WEIGHTS, &weights())));
    let blobs = fs::read_dir(repo.join("blobs")).expect("blobs");
    let names = blobs.map(|blob| blob.expect("an entry").file_name().into_string());
    assert!(names.flatten().all(|name| !name.contains('.')), "only complete blobs remain");

    assert!(recorder.lines().contains(&format!("start {WEIGHTS} Some(200000)")));
    assert_eq!(recorder.last_file_bytes(), 200_000, "weights come last and are counted whole");

    hub.take_requests();
    cache.resolve(&hub).expect("a model");
    let requests = hub.take_requests();
    assert_eq!(requests.len(), 1, "only the revision is asked for again: {requests:?}");
}

#[test]
fn modules_and_shards_are_followed() {
    let modules = br#"[
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        {"idx": 3, "name": "3", "path": "3_Normalize", "type": "a.b.Normalize"}
    ]"#;
    let index = br#"{"weight_map": {"a": "model-1-of-2.safetensors",
        "b": "model-2-of-2.safetensors", "c": "model-1-of-2.safetensors"}}"#;
    let hub = FakeHub::start(&[
        ("modules.json", modules),
        ("config.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("model-1-of-2.safetensors", b"one"),
        ("model-2-of-2.safetensors", b"two"),
        ("1_Pooling/config.json", b"{\"pooling\": 1}"),
        ("2_Dense/config.json", b"{}"),
        ("2_Dense/model.safetensors", b"dense"),
        ("9_Other/config.json", b"{}"),
    ]);
    let cache = Cache::new();
    let folder = cache.resolve(&hub).expect("a model");
    let shards = ["model-1-of-2.safetensors", "model-2-of-2.safetensors"];
    assert_eq!(folder.weight_files("").expect("shards"), shards);
    assert_eq!(folder.weight_files("2_Dense").expect("weights"), ["2_Dense/model.safetensors"]);
    assert_eq!(&folder.map("model-2-of-2.safetensors").expect("a mapping")[..], b"two");
    assert!(folder.read_small("1_Pooling/config.json").expect("readable").is_some());
    assert!(folder.read_small("9_Other/config.json").expect("readable").is_none());
    let link = fs::read_link(folder.root().join("1_Pooling/config.json")).expect("a link");
    assert!(link.starts_with("../../../blobs"), "{link:?}");

    // Offline, the same list says what is missing.
    let config = cache.offline(&dead_endpoint());
    resolve(REPO, &config, &Silent).expect("a model");
    for file in ["model-2-of-2.safetensors", "2_Dense/config.json"] {
        fs::remove_file(folder.root().join(file)).expect("a link to remove");
    }
    match resolve(REPO, &config, &Silent) {
        Err(HubError::NotInCache { missing, .. }) => {
            assert_eq!(missing, ["model-2-of-2.safetensors", "2_Dense/config.json"]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_dropped_connection_is_resumed_at_the_byte() {
    let (hub, cache) = (plain_model(), Cache::new());
    hub.fail("model.safetensors?signature=secret", 1, Fault::CutAfter(70_000));
    let recorder = Recorder::default();
    let folder = resolve(REPO, &cache.config(&hub.endpoint), &recorder).expect("a model");
    assert_weights_whole(&folder);
    assert_eq!(weight_ranges(&hub.take_requests()), [None, Some("bytes=70000-")]);
    assert_eq!(recorder.last_file_bytes(), 200_000);
    let notices: Vec<_> =
        recorder.lines().into_iter().filter(|line| line.starts_with("notice")).collect();
    assert!(matches!(&notices[..], [one] if one.contains("trying again")), "{notices:?}");
    assert!(!notices[0].contains("secret"), "a signature is shown: {notices:?}");
}

#[test]
fn progress_restores_patience() {
    let (hub, cache) = (plain_model(), Cache::new());
    // More drops than attempts, but each connection brings something.
    hub.fail("model.safetensors?signature=secret", 10, Fault::CutAfter(10_000));
    assert_weights_whole(&cache.resolve(&hub).expect("a model"));
    assert_eq!(weight_ranges(&hub.take_requests()).len(), 11);
}

#[test]
fn the_next_run_continues_an_interrupted_one() {
    let (hub, cache) = (plain_model(), Cache::new());
    hub.fail("model.safetensors?signature=secret", 1, Fault::CutAfter(70_000));
    let once = RetryConfig { attempts: 1, first_pause: Duration::ZERO };
    let config = HubConfig { retry: once, ..cache.config(&hub.endpoint) };
    let error = resolve(REPO, &config, &Silent).expect_err("one attempt is not enough");
    assert!(matches!(error, HubError::Network { .. }), "{error:?}");
    assert_eq!(fs::metadata(cache.partial_weights()).expect("a partial file").len(), 70_000);
    assert!(!cache.repo().join("refs/main").exists(), "an incomplete snapshot is not remembered");

    hub.take_requests();
    assert_weights_whole(&resolve(REPO, &config, &Silent).expect("a model"));
    assert_eq!(weight_ranges(&hub.take_requests()), [Some("bytes=70000-")]);
    assert!(!cache.partial_weights().exists());
}

#[test]
fn partial_files_of_every_length_end_whole() {
    /// What it is, what it holds, and the ranges that are then asked for.
    type Case<'a> = (&'a str, &'a [u8], &'a [Option<&'a str>]);
    let whole = weights();
    let longer = [&whole[..], b"more"].concat();
    let cases: [Case<'_>; 5] = [
        ("empty", &[], &[None]),
        ("one byte", &whole[..1], &[Some("bytes=1-")]),
        ("all but one", &whole[..199_999], &[Some("bytes=199999-")]),
        ("all, not yet renamed", &whole, &[]),
        ("longer than the file", &longer, &[None]),
    ];
    for (case, partial, ranges) in cases {
        let (hub, cache) = (plain_model(), Cache::new());
        cache.leave_partial_weights(partial);
        assert_weights_whole(&cache.resolve(&hub).expect(case));
        assert_eq!(weight_ranges(&hub.take_requests()), ranges, "{case}");
    }
}

#[test]
fn a_server_that_cannot_resume_sends_all_again() {
    let faults = [
        ("the whole file", Fault::IgnoreRange),
        ("another part", Fault::Header("Content-Range", "bytes 5-199999/200000")),
        ("nothing left", Fault::Status(416, "")),
    ];
    for (case, fault) in faults {
        let (hub, cache) = (plain_model(), Cache::new());
        cache.leave_partial_weights(&weights()[..70_000]);
        hub.fail("model.safetensors?signature=secret", 1, fault);
        let recorder = Recorder::default();
        let folder = resolve(REPO, &cache.config(&hub.endpoint), &recorder).expect(case);
        assert_weights_whole(&folder);
        assert_eq!(recorder.last_file_bytes(), 200_000, "{case}: the bar begins anew");
    }
}

#[test]
fn the_token_never_leaves_the_hub() {
    let (hub, cache) = (plain_model(), Cache::new());
    let token_file = cache.dir.path().join("token");
    fs::write(&token_file, "hf_from_file\n").expect("a token file");
    let sources = [
        (TokenSource::Value("hf_secret".to_owned()), Some("Bearer hf_secret")),
        (TokenSource::File(token_file), Some("Bearer hf_from_file")),
        (TokenSource::File(cache.dir.path().join("absent")), None),
        (TokenSource::None, None),
    ];
    for (token, expected) in sources {
        let cache = Cache::new();
        let config = HubConfig { token, ..cache.config(&hub.endpoint) };
        resolve(REPO, &config, &Silent).expect("a model");
        let requests = hub.take_requests();
        assert!(requests.iter().any(|request| request.on_cdn));
        for request in requests {
            let sent = request.headers.get("authorization").map(String::as_str);
            let expected = expected.filter(|_| !request.on_cdn);
            assert_eq!(sent, expected, "{request:?}");
        }
    }
}

#[test]
fn refusals_say_whose_fault_they_are() {
    const REVISION: &str = "/revision/main";
    const FILE: &str =
        "HEAD /org/name/resolve/0123456789abcdef0123456789abcdef01234567/config.json";
    let cases = [
        (REVISION, Fault::Status(401, "RepoNotFound"), "has no model org/name"),
        (REVISION, Fault::Status(404, ""), "if it is private, set HF_TOKEN"),
        (REVISION, Fault::Status(404, "RevisionNotFound"), "has no revision \"main\""),
        (REVISION, Fault::Status(401, ""), "set HF_TOKEN"),
        (REVISION, Fault::Status(400, ""), "HTTP status 400"),
        (REVISION, Fault::Status(503, ""), "HTTP status 503"),
        (REVISION, Fault::Body("<html>"), "not a description of a model"),
        (REVISION, Fault::Body(r#"{"sha": "../..", "siblings": []}"#), "is no commit"),
        (FILE, Fault::Status(403, "GatedRepo"), "accept its licence at http://127.0.0.1:"),
        (FILE, Fault::Status(404, "EntryNotFound"), "org/name has no file config.json"),
        (FILE, Fault::Header("ETag", "\"../../../evil\""), "no usable ETag"),
        (FILE, Fault::Header("ETag", "\"\""), "no usable ETag"),
    ];
    for (suffix, fault, expected) in cases {
        let (hub, cache) = (plain_model(), Cache::new());
        hub.fail(suffix, usize::MAX, fault.clone());
        let error = cache.resolve(&hub).expect_err("a refusal").to_string();
        assert!(error.contains(expected), "{fault:?}: {error}");
    }
}

#[test]
fn an_overloaded_server_is_asked_again_and_a_refusing_one_is_not() {
    for (status, asked) in [(500, 3), (503, 3), (429, 3), (401, 1), (404, 1)] {
        let (hub, cache) = (plain_model(), Cache::new());
        hub.fail("/revision/main", 2, Fault::Status(status, ""));
        let succeeded = cache.resolve(&hub).is_ok();
        assert_eq!(succeeded, asked == 3, "{status}");
        let requests = hub.take_requests();
        let asked_revision = requests.iter().filter(|r| r.path.ends_with("/revision/main"));
        assert_eq!(asked_revision.count(), asked, "{status}");
    }
    // The same holds for files, on both hosts.
    for suffix in ["/vocab.txt", "?signature=secret"] {
        let (hub, cache) = (plain_model(), Cache::new());
        hub.fail(suffix, 2, Fault::Status(502, ""));
        assert_weights_whole(&cache.resolve(&hub).expect("a model"));
    }
}

#[test]
fn damaged_bytes_are_deleted_and_fetched_anew_by_the_next_run() {
    let config_request = format!("GET /{REPO}/resolve/{COMMIT}/config.json");
    for (file, request) in
        [(WEIGHTS, "model.safetensors?signature=secret"), ("config.json", config_request.as_str())]
    {
        let (hub, cache) = (plain_model(), Cache::new());
        hub.fail(request, 1, Fault::Garble);
        let error = cache.resolve(&hub).expect_err("a wrong checksum");
        assert!(matches!(error, HubError::Checksum { .. }), "{file}: {error:?}");
        assert!(error.to_string().starts_with(&format!("{file} arrived damaged")), "{error}");

        let blobs = fs::read_dir(cache.repo().join("blobs")).expect("blobs").flatten();
        let mut names = blobs.map(|entry| entry.file_name());
        assert!(names.all(|name| !name.to_string_lossy().ends_with(".incomplete")), "{file}");
        assert!(!cache.repo().join("snapshots").join(COMMIT).join(file).exists(), "{file}");
        assert_weights_whole(&cache.resolve(&hub).expect("the second run succeeds"));
    }
}

#[test]
fn a_proxy_is_used_except_where_it_is_not_to_be() {
    let hub = plain_model();
    for (except, reached) in [(vec![], false), (vec!["127.0.0.1".to_owned()], true)] {
        let cache = Cache::new();
        let proxy = Some(ProxyConfig { url: dead_endpoint(), except });
        let config = HubConfig { proxy, ..cache.config(&hub.endpoint) };
        assert_eq!(resolve(REPO, &config, &Silent).is_ok(), reached);
    }
}

#[test]
fn offline_uses_the_cache_and_names_what_it_lacks() {
    let (hub, cache) = (plain_model(), Cache::new());
    let offline = cache.offline(&hub.endpoint);
    let error = resolve(REPO, &offline, &Silent).expect_err("nothing is cached").to_string();
    let folder = cache.repo();
    for part in ["HF_HUB_OFFLINE", "revision \"main\" of org/name", &folder.to_string_lossy()] {
        assert!(error.contains(part), "{error}");
    }
    assert!(hub.take_requests().is_empty());

    cache.resolve(&hub).expect("a model");
    hub.take_requests();
    let by_commit = format!("{REPO}@{COMMIT}");
    for spec in [REPO, &by_commit] {
        let folder = resolve(spec, &offline, &Silent).expect("a cached model");
        assert_weights_whole(&folder);
        assert_eq!(folder.name(), spec);
    }
    assert!(resolve("org/name@v2", &offline, &Silent).is_err(), "another revision");
    assert!(hub.take_requests().is_empty());
}

#[test]
fn a_complete_commit_needs_no_request_and_a_partial_one_is_completed() {
    let (hub, cache) = (plain_model(), Cache::new());
    let spec = format!("{REPO}@{COMMIT}");
    let config = cache.config(&hub.endpoint);
    let folder = resolve(&spec, &config, &Silent).expect("a model");
    assert!(!cache.repo().join("refs").exists(), "a commit is its own memory");
    hub.take_requests();
    resolve(&spec, &config, &Silent).expect("a model");
    assert!(hub.take_requests().is_empty());

    fs::remove_file(folder.root().join("config.json")).expect("a link to remove");
    resolve(&spec, &config, &Silent).expect("a model");
    let gets = hub.take_requests().into_iter().filter(|request| request.method == "GET");
    assert_eq!(gets.count(), 1, "the blob is there, so only the list and the tag are asked for");
    assert!(folder.root().join("config.json").is_file());
}

#[test]
fn the_cache_stands_in_for_a_hub_that_does_not_answer() {
    let (hub, cache) = (plain_model(), Cache::new());
    let dead = cache.config(&dead_endpoint());
    let error = resolve(REPO, &dead, &Silent).expect_err("neither hub nor cache");
    assert!(matches!(error, HubError::Network { .. }), "{error:?}");

    cache.resolve(&hub).expect("a model");
    let recorder = Recorder::default();
    assert_weights_whole(&resolve(REPO, &dead, &recorder).expect("a cached model"));
    let lines = recorder.lines();
    assert!(matches!(&lines[..], [line] if line.contains("using the copy in the cache")));

    // A refusal is an answer: access may have been withdrawn.
    hub.fail("/revision/main", 1, Fault::Status(401, ""));
    assert!(matches!(cache.resolve(&hub), Err(HubError::AccessDenied { .. })));
}

#[test]
#[cfg(unix)]
fn what_python_has_downloaded_is_found() {
    let cache = Cache::new();
    let repo = cache.repo();
    let snapshot = repo.join("snapshots").join(COMMIT);
    for folder in [repo.join("refs/refs/pr"), repo.join("blobs"), snapshot.clone()] {
        fs::create_dir_all(folder).expect("folders");
    }
    fs::write(repo.join("refs/refs/pr/1"), COMMIT).expect("a ref");
    for (name, content) in [(WEIGHTS, weights()), ("config.json", b"{}".to_vec())] {
        let tag = etag(name, &content);
        fs::write(repo.join("blobs").join(&tag), content).expect("a blob");
        std::os::unix::fs::symlink(format!("../../blobs/{tag}"), snapshot.join(name))
            .expect("a link");
    }
    let spec = format!("{REPO}@refs/pr/1");
    let folder = resolve(&spec, &cache.offline(&dead_endpoint()), &Silent).expect("a model");
    assert_weights_whole(&folder);

    // Online, what is there is not fetched again, and what is not is.
    let hub = plain_model();
    resolve(&spec, &cache.config(&hub.endpoint), &Silent).expect("a model");
    let requests = hub.take_requests();
    assert!(requests[0].path.ends_with("/revision/refs%2Fpr%2F1"), "{:?}", requests[0].path);
    assert!(weight_ranges(&requests).is_empty());
    assert!(folder.read_small("tokenizer.json").expect("readable").is_some());
}

#[test]
fn processes_at_the_same_time_fetch_each_file_once() {
    let (hub, cache) = (plain_model(), Cache::new());
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| cache.resolve(&hub))).collect();
        for run in runs {
            assert_weights_whole(&run.join().expect("no panic").expect("a model"));
        }
    });
    assert_eq!(weight_ranges(&hub.take_requests()).len(), 1);
}

#[test]
fn other_formats_are_refused_before_anything_is_fetched() {
    let pickled: &[(&str, &[u8])] = &[("config.json", b"{}"), ("pytorch_model.bin", b"pickle")];
    let bare: &[(&str, &[u8])] = &[("config.json", b"{}")];
    for (files, named) in [(pickled, "pytorch_model.bin"), (bare, "has no weights at all")] {
        let (hub, cache) = (FakeHub::start(files), Cache::new());
        let error = cache.resolve(&hub).expect_err("no safetensors");
        assert!(matches!(error, HubError::NoSafetensors { .. }), "{error:?}");
        assert!(error.to_string().contains(named), "{error}");
        assert_eq!(hub.take_requests().len(), 1);
    }
}

#[test]
fn a_list_of_shards_cannot_leave_the_folder() {
    let hub = FakeHub::start(&[
        ("config.json", b"{}"),
        ("model.safetensors.index.json", br#"{"weight_map": {"a": "../../x.safetensors"}}"#),
    ]);
    let error = Cache::new().resolve(&hub).expect_err("a shard outside");
    assert!(matches!(error, HubError::Folder(FolderError::BadIndex { .. })), "{error:?}");
}

#[test]
fn a_folder_wins_and_a_path_is_never_asked_for() {
    let cache = Cache::new();
    let config = cache.config(&dead_endpoint());
    let local = cache.dir.path().join("model");
    fs::create_dir(&local).expect("a folder");
    let spec = local.to_str().expect("UTF-8");
    assert_eq!(resolve(spec, &config, &Silent).expect("a folder").root(), local);

    let file = local.join("file");
    fs::write(&file, "x").expect("a file");
    let absent = local.join("absent");
    let cases = [
        (file.to_str().expect("UTF-8"), "is not a folder"),
        (absent.to_str().expect("UTF-8"), "no such folder"),
        ("./no/such", "no such folder: ./no/such"),
        ("~/no-such", "no such folder: ~/no-such"),
        ("a/b/c", "no such folder: a/b/c"),
        ("minilm", "org/name[@revision]"),
        ("", "org/name[@revision]"),
        ("org/na--me", "org/name[@revision]"),
    ];
    for (spec, expected) in cases {
        let error = resolve(spec, &config, &Silent).expect_err(spec).to_string();
        assert!(error.contains(expected), "{spec}: {error}");
    }
}

#[test]
fn unusable_settings_are_named() {
    let (hub, cache) = (plain_model(), Cache::new());
    let good = cache.config(&hub.endpoint);
    let no_certificate = cache.dir.path().join("ca.pem");
    fs::write(&no_certificate, "no certificate").expect("a file");
    let proxy = |url: &str| ProxyConfig { url: url.to_owned(), except: vec![] };
    let cases = [
        (HubConfig { endpoint: "hub.org".into(), ..good.clone() }, "HF_ENDPOINT"),
        (HubConfig { endpoint: "ftp://hub.org".into(), ..good.clone() }, "HF_ENDPOINT"),
        (HubConfig { token: TokenSource::Value("a\nb".into()), ..good.clone() }, "HF_TOKEN"),
        (HubConfig { proxy: Some(proxy("x://y")), ..good.clone() }, "HTTPS_PROXY"),
        (HubConfig { ca_file: Some(no_certificate), ..good.clone() }, "SSL_CERT_FILE"),
        (HubConfig { cache_dir: None, ..good.clone() }, "HF_HUB_CACHE"),
    ];
    for (config, setting) in cases {
        let error = resolve(REPO, &config, &Silent).expect_err(setting).to_string();
        assert!(error.contains(setting), "{error}");
        assert!(!error.contains("a\nb"), "a secret is shown");
    }
}
