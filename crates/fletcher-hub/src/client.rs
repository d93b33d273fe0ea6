//! Requests to a hub: redirects that never carry the token to another host, failures turned into
//! errors that say whose fault they are, and patience.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ureq::http::header::{ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RANGE, RETRY_AFTER};
use ureq::http::uri::Uri;
use ureq::http::{Method, Request, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};
use ureq::{Agent, Body, Proxy};

use crate::config::{HubConfig, ProxyConfig, RetryConfig, TokenSource};
use crate::error::HubError;
use crate::name::ModelName;
use crate::progress::Progress;

const USER_AGENT: &str = concat!("fletcher/", env!("CARGO_PKG_VERSION"));
/// Python's package allows 10 seconds as well.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection over which nothing arrives for so long is dead.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// More redirects than any hub or content network chains.
const MAX_REDIRECTS: usize = 10;
/// The longest pause that a server can impose on us.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The header in which a hub says what a 401, 403 or 404 means.
const ERROR_CODE: &str = "x-error-code";

/// A connection to one hub, asking for one model.
pub(crate) struct Client<'a> {
    agent: Agent,
    config: &'a HubConfig,
    origin: Origin,
    token: Option<String>,
    model: &'a ModelName,
    progress: &'a dyn Progress,
}

/// One request; redirects may turn it into several.
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    pub(crate) url: &'a str,
    /// The first byte that is wanted; 0 for all of them.
    pub(crate) from_byte: u64,
    /// The file that is asked for, for the error; absent for the list of files.
    pub(crate) file: Option<&'a str>,
    /// Whether to follow a redirect to another host, or to return it.
    pub(crate) leave_hub: bool,
}

/// Scheme, host and port: what a token is confined to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let default_port = match scheme.as_str() {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        let host = uri.host()?.to_ascii_lowercase();
        Some(Self { scheme, host, port: uri.port_u16().unwrap_or(default_port) })
    }
}

impl<'a> Client<'a> {
    /// Prepares requests; sends none.
    pub(crate) fn new(
        config: &'a HubConfig,
        model: &'a ModelName,
        progress: &'a dyn Progress,
    ) -> Result<Self, HubError> {
        let origin = Origin::of(&config.endpoint).ok_or_else(|| HubError::BadSetting {
            setting: "HF_ENDPOINT",
            reason: format!("{:?} is no http or https address", config.endpoint),
        })?;
        let proxy = config.proxy.as_ref().map(make_proxy).transpose()?;
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(trusted(config.ca_file.as_deref())?)
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            // Without this line ureq would look for a proxy in the environment.
            .proxy(proxy)
            .user_agent(USER_AGENT)
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(SILENCE_TIMEOUT))
            .timeout_per_read(Some(SILENCE_TIMEOUT))
            .build()
            .new_agent();
        let token = read_token(&config.token)?;
        Ok(Self { agent, config, origin, token, model, progress })
    }

    /// The model that is asked for.
    pub(crate) fn model(&self) -> &'a ModelName {
        self.model
    }

    /// Whom to tell.
    pub(crate) fn progress(&self) -> &'a dyn Progress {
        self.progress
    }

    /// The address of a file at a commit.
    pub(crate) fn file_url(&self, commit: &str, file: &str) -> String {
        let file: Vec<String> = file.split('/').map(quote).collect();
        format!("{}/{}/resolve/{commit}/{}", self.config.endpoint, self.model.repo, file.join("/"))
    }

    /// The address of the description of the revision.
    pub(crate) fn revision_url(&self) -> String {
        let revision = quote(&self.model.revision);
        format!("{}/api/models/{}/revision/{revision}", self.config.endpoint, self.model.repo)
    }

    /// A fresh supply of patience.
    pub(crate) fn patience(&self) -> Patience<'a> {
        Patience { config: &self.config.retry, progress: self.progress, failures: 0 }
    }

    /// Sends a request and follows redirects. The answer has a status of 2xx; 416 (nothing left to
    /// send) where a range was asked for; or, unless `leave_hub`, 3xx to another host.
    pub(crate) fn ask(&self, ask: &Ask<'_>) -> Result<Response<Body>, HubError> {
        let mut url = ask.url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(ask, &url)?;
            let status = response.status();
            if status.is_success() || (status.as_u16() == 416 && ask.from_byte > 0) {
                return Ok(response);
            }
            if !status.is_redirection() {
                return Err(self.refusal(ask, &url, &response));
            }
            let target = header(&response, LOCATION.as_str())
                .and_then(|location| join_url(&url, location))
                .ok_or_else(|| bad_answer(&url, "a redirect without a target"))?;
            if !ask.leave_hub && Origin::of(&target).as_ref() != Some(&self.origin) {
                return Ok(response);
            }
            url = target;
        }
        Err(bad_answer(ask.url, "too many redirects"))
    }

    fn send(&self, ask: &Ask<'_>, url: &str) -> Result<Response<Body>, HubError> {
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(url)
            // Lengths and ranges are to count the file's own bytes.
            .header(ACCEPT_ENCODING, "identity");
        if ask.from_byte > 0 {
            request = request.header(RANGE, format!("bytes={}-", ask.from_byte));
        }
        if let Some(token) = &self.token
            && Origin::of(url).as_ref() == Some(&self.origin)
        {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(()).map_err(|error| bad_answer(url, &error.to_string()))?;
        self.agent.run(request).map_err(|error| network_error(url, error))
    }

    /// What a status of 4xx or 5xx means.
    fn refusal(&self, ask: &Ask<'_>, url: &str, response: &Response<Body>) -> HubError {
        let status = response.status().as_u16();
        let model = self.model.clone();
        let endpoint = self.config.endpoint.clone();
        let token_sent = self.token.is_some();
        let no_model = |model, endpoint| HubError::NoSuchModel { model, endpoint, token_sent };
        match (header(response, ERROR_CODE), status) {
            (Some("RepoNotFound"), _) => no_model(model, endpoint),
            (Some("RevisionNotFound"), _) => HubError::NoSuchRevision { model, endpoint },
            (_, 401 | 403) => HubError::AccessDenied { model, endpoint, status, token_sent },
            (_, 404) => match ask.file {
                Some(file) => HubError::NoSuchFile { model, file: file.to_owned() },
                None => no_model(model, endpoint),
            },
            _ => HubError::Status {
                url: without_query(url),
                status,
                retry_after: header(response, RETRY_AFTER.as_str())
                    .and_then(|seconds| seconds.parse().ok())
                    .map(Duration::from_secs),
            },
        }
    }
}

/// Decides how often and after which pauses a request is repeated.
pub(crate) struct Patience<'a> {
    config: &'a RetryConfig,
    progress: &'a dyn Progress,
    /// Failures in a row.
    failures: u32,
}

impl Patience<'_> {
    /// Repeats `attempt` until it succeeds, fails for good, or patience is at its end.
    pub(crate) fn retry<T>(
        mut self,
        mut attempt: impl FnMut() -> Result<T, HubError>,
    ) -> Result<T, HubError> {
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(error) => self.pause(error)?,
            }
        }
    }

    /// Something arrived, so the next failure is a first one again.
    pub(crate) fn restore(&mut self) {
        self.failures = 0;
    }

    /// Waits before the next attempt, or returns the error when another one is pointless.
    pub(crate) fn pause(&mut self, error: HubError) -> Result<(), HubError> {
        self.failures += 1;
        if !error.is_outage() || self.failures >= self.config.attempts {
            return Err(error);
        }
        let doubled = 2_u32.saturating_pow(self.failures - 1);
        let pause = match &error {
            HubError::Status { retry_after: Some(seconds), .. } => *seconds,
            _ => self.config.first_pause.saturating_mul(doubled),
        };
        self.progress.notice(&format!("{error}; trying again"));
        thread::sleep(pause.min(MAX_PAUSE));
        Ok(())
    }
}

fn read_token(source: &TokenSource) -> Result<Option<String>, HubError> {
    let token = match source {
        TokenSource::None => return Ok(None),
        TokenSource::Value(token) => token.clone(),
        TokenSource::File(path) => match fs::read_to_string(path) {
            Ok(token) => token,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(HubError::io("read the token in", path, error)),
        },
    };
    let token = token.trim();
    if !token.chars().all(|c| c.is_ascii_graphic()) {
        let reason = "a token has only printable ASCII characters".to_owned();
        return Err(HubError::BadSetting { setting: "HF_TOKEN", reason });
    }
    Ok((!token.is_empty()).then(|| token.to_owned()))
}

/// The public authorities, compiled in, unless the user trusts others.
fn trusted(ca_file: Option<&Path>) -> Result<RootCerts, HubError> {
    let Some(path) = ca_file else { return Ok(RootCerts::WebPki) };
    let pem = fs::read(path).map_err(|source| HubError::io("read", path, source))?;
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            // A bundle may hold keys and comments as well.
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        let reason = format!("{} holds no certificate in PEM format", path.display());
        return Err(HubError::BadSetting { setting: "SSL_CERT_FILE", reason });
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

fn make_proxy(config: &ProxyConfig) -> Result<Proxy, HubError> {
    let bad_setting = |error: ureq::Error| HubError::BadSetting {
        setting: "HTTPS_PROXY",
        reason: error.to_string(),
    };
    // The parsed address is taken apart again because only the builder knows of exceptions.
    let parsed = Proxy::new(&config.url).map_err(bad_setting)?;
    let mut builder = Proxy::builder(parsed.protocol()).host(parsed.host()).port(parsed.port());
    if let Some(user) = parsed.username() {
        builder = builder.username(user);
    }
    if let Some(password) = parsed.password() {
        builder = builder.password(password);
    }
    let builder = config.except.iter().fold(builder, |builder, host| builder.no_proxy(host));
    builder.build().map_err(bad_setting)
}

/// The text of a header, if it is there and readable.
pub(crate) fn header<'r>(response: &'r Response<Body>, name: &str) -> Option<&'r str> {
    response.headers().get(name)?.to_str().ok()
}

/// An answer that no hub gives.
pub(crate) fn bad_answer(url: &str, reason: &str) -> HubError {
    HubError::BadAnswer { url: without_query(url), reason: reason.to_owned() }
}

/// A connection that failed or broke.
pub(crate) fn network_error(url: &str, error: ureq::Error) -> HubError {
    HubError::Network { url: without_query(url), source: Box::new(error) }
}

/// The queries of content networks hold signatures, which belong into no message.
fn without_query(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or(url).to_owned()
}

/// Percent-encodes one segment of a path.
fn quote(segment: &str) -> String {
    let mut quoted = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                quoted.push(char::from(byte));
            }
            _ => quoted.push_str(&format!("%{byte:02X}")),
        }
    }
    quoted
}

/// The address that a redirect from `base` leads to: absolute, of the same scheme, of the same
/// host, or beside `base`.
fn join_url(base: &str, location: &str) -> Option<String> {
    if Origin::of(location).is_some() {
        return Some(location.to_owned());
    }
    let uri: Uri = base.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    if location.starts_with("//") {
        return Some(format!("{scheme}:{location}"));
    }
    if location.starts_with('/') {
        return Some(format!("{scheme}://{authority}{location}"));
    }
    let (folder, _) = uri.path().rsplit_once('/')?;
    Some(format!("{scheme}://{authority}{folder}/{location}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved() {
        let base = "https://hub:8443/org/name/resolve/main/a.json?x=1";
        let cases = [
            ("https://cdn/b?sig=1", Some("https://cdn/b?sig=1")),
            ("//cdn/b", Some("https://cdn/b")),
            ("/api/b?x", Some("https://hub:8443/api/b?x")),
            ("b", Some("https://hub:8443/org/name/resolve/main/b")),
        ];
        for (location, expected) in cases {
            assert_eq!(join_url(base, location).as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn a_token_stays_with_scheme_host_and_port() {
        let hub = Origin::of("https://hub.org").expect("a valid address");
        let cases = [
            ("https://hub.org:443/x", true),
            ("https://HUB.org/x", true),
            ("http://hub.org/x", false),
            ("https://hub.org:8443/x", false),
            ("https://cdn.hub.org/x", false),
            ("https://hub.org@evil.org/x", false),
            ("ftp://hub.org/x", false),
        ];
        for (url, same) in cases {
            assert_eq!(Origin::of(url) == Some(hub.clone()), same, "{url}");
        }
    }

    #[test]
    fn segments_are_quoted() {
        assert_eq!(quote("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(quote("a b~ü"), "a%20b~%C3%BC");
    }

    #[test]
    fn messages_hold_no_signature() {
        let error = bad_answer("https://cdn/b?sig=secret#f", "odd");
        assert!(!error.to_string().contains("secret"));
    }
}
