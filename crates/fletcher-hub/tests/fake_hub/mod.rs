//! A hub on 127.0.0.1 that speaks the part of the Hugging Face HTTP API that models need, and that
//! misbehaves on demand. Weights redirect to a second port, which stands for the content network:
//! to a client it is another host.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The commit that every revision of the fake repository is at.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The only repository.
pub(crate) const REPO: &str = "org/name";

/// What to do instead of answering properly.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// A status, and the value of `X-Error-Code` if not empty.
    Status(u16, &'static str),
    /// Announce all bytes but close the connection after so many.
    CutAfter(usize),
    /// Send the whole file, asked for a range or not.
    IgnoreRange,
    /// Send other bytes of the same length.
    Garble,
    /// Answer with this header instead of the proper one of the same name.
    Header(&'static str, &'static str),
    /// Answer with this body.
    Body(&'static str),
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Whether it came to the second port.
    pub(crate) on_cdn: bool,
    /// `HEAD` or `GET`.
    pub(crate) method: String,
    /// The path with its query.
    pub(crate) path: String,
    /// The headers, names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// (end of "METHOD path", how often, fault), the first that matches wins.
    faults: Vec<(String, usize, Fault)>,
    requests: Vec<Request>,
    cdn: String,
}

/// A running hub. Its threads end with the test process.
pub(crate) struct FakeHub {
    state: Arc<Mutex<State>>,
    /// The address to configure as the endpoint.
    pub(crate) endpoint: String,
}

/// The checksum under which a hub announces a file.
pub(crate) fn etag(name: &str, content: &[u8]) -> String {
    let hex = |digest: &[u8]| digest.iter().map(|b| format!("{b:02x}")).collect::<String>();
    if is_large(name) {
        return hex(&Sha256::digest(content));
    }
    let header = format!("blob {}\0", content.len());
    hex(&Sha1::new().chain_update(header).chain_update(content).finalize())
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

impl FakeHub {
    /// Serves the files as the content of `org/name`.
    pub(crate) fn start(files: &[(&str, &[u8])]) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let endpoint = listen(&state, false);
        let cdn = listen(&state, true);
        let hub = Self { state, endpoint };
        hub.state().cdn = cdn;
        let files = files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec()));
        hub.state().files = files.collect();
        hub
    }

    /// Misbehaves the next `times` that a "METHOD path" ends with `suffix`.
    pub(crate) fn fail(&self, suffix: &str, times: usize, fault: Fault) -> &Self {
        self.state().faults.push((suffix.to_owned(), times, fault));
        self
    }

    /// The requests since the last call, in order of arrival.
    pub(crate) fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listen(state: &Arc<Mutex<State>>, on_cdn: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let state = Arc::clone(state);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = Arc::clone(&state);
            // A client that hangs up early is what some tests are about.
            thread::spawn(move || serve(stream, &state, on_cdn).ok());
        }
    });
    format!("http://{address}")
}

fn serve(stream: TcpStream, state: &Mutex<State>, on_cdn: bool) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let request = Request { on_cdn, method, path, headers };
    let answer = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.requests.push(request.clone());
        answer(&mut state, &request)
    };
    answer.send(stream, request.method == "HEAD")
}

#[derive(Default)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
    sent_bytes: Option<usize>,
}

impl Answer {
    fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.insert(name.to_owned(), value.to_string());
        self
    }

    fn send(mut self, mut stream: TcpStream, head_only: bool) -> std::io::Result<()> {
        self.headers.insert("Content-Length".into(), self.body.len().to_string());
        self.headers.insert("Connection".into(), "close".into());
        write!(stream, "HTTP/1.1 {} Whatever\r\n", self.status)?;
        for (name, value) in &self.headers {
            write!(stream, "{name}: {value}\r\n")?;
        }
        stream.write_all(b"\r\n")?;
        if head_only {
            return Ok(());
        }
        let sent_bytes = self.sent_bytes.unwrap_or(self.body.len());
        stream.write_all(&self.body[..sent_bytes])
    }
}

fn answer(state: &mut State, request: &Request) -> Answer {
    let fault = take_fault(state, request);
    if let Some(Fault::Status(status, code)) = fault {
        return Answer::status(status).with("X-Error-Code", code).with("Retry-After", 0);
    }
    let mut answer = proper_answer(state, request, matches!(fault, Some(Fault::IgnoreRange)));
    match fault {
        Some(Fault::CutAfter(bytes)) => answer.sent_bytes = Some(bytes),
        Some(Fault::Garble) => answer.body.iter_mut().for_each(|byte| *byte ^= 1),
        Some(Fault::Header(name, value)) => answer = answer.with(name, value),
        Some(Fault::Body(body)) => answer.body = body.into(),
        Some(Fault::Status(..) | Fault::IgnoreRange) | None => {}
    }
    answer
}

fn take_fault(state: &mut State, request: &Request) -> Option<Fault> {
    let line = format!("{} {}", request.method, request.path);
    let (_, times, fault) =
        state.faults.iter_mut().find(|(suffix, times, _)| *times > 0 && line.ends_with(suffix))?;
    *times -= 1;
    Some(fault.clone())
}

fn proper_answer(state: &State, request: &Request, ignore_range: bool) -> Answer {
    let path = request.path.as_str();
    if path.starts_with(&format!("/api/models/{REPO}/revision/")) {
        let names: Vec<String> =
            state.files.keys().map(|name| format!("{{\"rfilename\": \"{name}\"}}")).collect();
        let json = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{}]}}", names.join(", "));
        return Answer { body: json.into(), ..Answer::status(200) };
    }
    let prefix = if request.on_cdn { "/cdn/".into() } else { format!("/{REPO}/resolve/{COMMIT}/") };
    let name = path.strip_prefix(&prefix).and_then(|name| name.split('?').next());
    let Some((name, content)) = name.and_then(|name| state.files.get_key_value(name)) else {
        return Answer::status(404).with("X-Error-Code", "EntryNotFound");
    };
    let tag = format!("\"{}\"", etag(name, content));
    if is_large(name) && !request.on_cdn {
        return Answer::status(302)
            .with("X-Repo-Commit", COMMIT)
            .with("X-Linked-Etag", tag)
            .with("X-Linked-Size", content.len())
            .with("ETag", "\"of-the-redirect\"")
            .with("Location", format!("{}/cdn/{name}?signature=secret", state.cdn));
    }
    let range = request.headers.get("range").filter(|_| !ignore_range);
    let start = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
    let body = match start.and_then(|start| start.parse().ok()) {
        None => Answer { body: content.clone(), ..Answer::status(200) },
        Some(start) if start >= content.len() => return Answer::status(416),
        Some(start) => {
            let (last, all) = (content.len() - 1, content.len());
            Answer { body: content[start..].to_vec(), ..Answer::status(206) }
                .with("Content-Range", format!("bytes {start}-{last}/{all}"))
        }
    };
    body.with("ETag", tag).with("X-Repo-Commit", COMMIT)
}
