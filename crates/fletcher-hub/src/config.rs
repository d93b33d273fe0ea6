//! Where the hub, its cache and its token are.
//!
//! The names and the precedence of the variables are those of Python's `huggingface_hub` (its
//! `constants.py`), so that both programs agree on one cache. The caller looks the variables up;
//! this crate reads no environment.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The public hub.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// How to reach a hub and where its files are kept.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// The hub's address without a trailing slash.
    pub endpoint: String,
    /// The folder that holds `models--org--name`; absent where neither a variable nor a home
    /// folder says where it is. Local folders work without one.
    pub cache_dir: Option<PathBuf>,
    /// How to prove who is asking.
    pub token: TokenSource,
    /// Whether to use only what is in the cache and send no request.
    pub offline: bool,
    /// The proxy for every request, if any.
    pub proxy: Option<ProxyConfig>,
    /// Certificates (PEM) to trust instead of the public authorities, as behind a proxy that
    /// inspects TLS or for a mirror with a certificate of its own.
    pub ca_file: Option<PathBuf>,
    /// How patiently to ask again.
    pub retry: RetryConfig,
}

/// Where the token comes from. A file is read only when a request needs it.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// Requests carry no token.
    None,
    /// The token itself.
    Value(String),
    /// A file that holds the token; it need not exist.
    File(PathBuf),
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Value(_) => f.write_str("Value(<hidden>)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// A proxy and the hosts that are reached without it.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// `http://[user:password@]host:port`.
    pub url: String,
    /// Hosts to reach directly: `example.com`, `.example.com`, `*`.
    pub except: Vec<String>,
}

impl fmt::Debug for ProxyConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The address may hold a password.
        f.debug_struct("ProxyConfig").field("except", &self.except).finish_non_exhaustive()
    }
}

/// How patiently a request is repeated after a dropped connection or an overloaded server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryConfig {
    /// Requests in a row that may bring nothing before giving up, the first included.
    pub attempts: u32,
    /// The pause before the second request; it doubles each time.
    pub first_pause: Duration,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { attempts: 5, first_pause: Duration::from_millis(500) }
    }
}

impl HubConfig {
    /// Reads the configuration from variables, as `lookup` finds them: `HF_ENDPOINT`,
    /// `HF_HUB_CACHE` (else `HUGGINGFACE_HUB_CACHE`, else `HF_HOME/hub`, else
    /// `XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`), `HF_TOKEN` (else the
    /// file `HF_TOKEN_PATH` or `HF_HOME/token`) unless `HF_HUB_DISABLE_IMPLICIT_TOKEN`,
    /// `HF_HUB_OFFLINE` (else `TRANSFORMERS_OFFLINE`), `HTTPS_PROXY` or `HTTP_PROXY` (else
    /// `ALL_PROXY`) with `NO_PROXY`, and `SSL_CERT_FILE` (else `REQUESTS_CA_BUNDLE`, else
    /// `CURL_CA_BUNDLE`). An empty variable counts as absent. Reads no file.
    pub fn from_vars(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let vars = Vars { lookup };
        let endpoint = vars.first(&["HF_ENDPOINT"]).unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let home = vars.path(&["HF_HOME"]).or_else(|| {
            let cache = vars.path(&["XDG_CACHE_HOME"]);
            let cache = cache.or_else(|| Some(vars.user_home()?.join(".cache")));
            Some(cache?.join("huggingface"))
        });
        Self {
            cache_dir: vars
                .path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
                .or_else(|| Some(home.as_ref()?.join("hub"))),
            token: vars.token(home.map(|home| home.join("token"))),
            offline: vars
                .first(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
                .is_some_and(|value| is_true(&value)),
            proxy: vars.proxy(&endpoint),
            ca_file: vars.path(&["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]),
            retry: RetryConfig::default(),
            endpoint,
        }
    }
}

/// The variables, with the conventions that they share.
struct Vars<F> {
    lookup: F,
}

impl<F: Fn(&str) -> Option<String>> Vars<F> {
    /// The first of `names` that is set and not empty.
    fn first(&self, names: &[&str]) -> Option<String> {
        names.iter().find_map(|name| (self.lookup)(name).filter(|value| !value.is_empty()))
    }

    fn path(&self, names: &[&str]) -> Option<PathBuf> {
        self.first(names).map(|value| self.expand(&value))
    }

    fn user_home(&self) -> Option<PathBuf> {
        self.first(&["HOME", "USERPROFILE"]).map(PathBuf::from)
    }

    /// Replaces a leading `~`, then `$NAME` and `${NAME}`; container images set `HF_HOME` to such
    /// values where no shell expands them. What names nothing stays as it is.
    fn expand(&self, value: &str) -> PathBuf {
        let tilde = value.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let value = match (tilde, self.user_home()) {
            (Some(rest), Some(home)) => format!("{}{rest}", home.display()),
            _ => value.to_owned(),
        };
        let mut parts = value.split('$');
        let mut expanded = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let braced = part.strip_prefix('{').and_then(|rest| rest.split_once('}'));
            let (name, rest) = braced.unwrap_or_else(|| {
                let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                part.split_at(end.unwrap_or(part.len()))
            });
            match (self.lookup)(name) {
                Some(value) if !name.is_empty() => expanded.extend([value.as_str(), rest]),
                _ => expanded.extend(["$", part]),
            }
        }
        PathBuf::from(expanded)
    }

    fn token(&self, default_file: Option<PathBuf>) -> TokenSource {
        if self.first(&["HF_HUB_DISABLE_IMPLICIT_TOKEN"]).is_some_and(|value| is_true(&value)) {
            return TokenSource::None;
        }
        if let Some(token) = self.first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]) {
            return TokenSource::Value(token);
        }
        self.path(&["HF_TOKEN_PATH"]).or(default_file).map_or(TokenSource::None, TokenSource::File)
    }

    fn proxy(&self, endpoint: &str) -> Option<ProxyConfig> {
        let names: &[&str] = if endpoint.starts_with("https:") {
            &["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
        } else {
            &["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]
        };
        let url = self.first(names)?;
        let except = self.first(&["NO_PROXY", "no_proxy"]).unwrap_or_default();
        let except = except.split(',').map(str::trim).filter(|host| !host.is_empty());
        Some(ProxyConfig { url, except: except.map(str::to_owned).collect() })
    }
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].iter().any(|truth| value.eq_ignore_ascii_case(truth))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The variables that are set, by name.
    type Set<'a> = &'a [(&'a str, &'a str)];

    fn config(vars: Set<'_>) -> HubConfig {
        HubConfig::from_vars(|name| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_cache_is_where_python_looks() {
        let cases: &[(Set<'_>, Option<&str>)] = &[
            (&[("HOME", "/h")], Some("/h/.cache/huggingface/hub")),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], Some("/x/huggingface/hub")),
            (&[("HOME", "/h"), ("HF_HOME", "/f")], Some("/f/hub")),
            (&[("HOME", "/h"), ("HF_HOME", "~/f")], Some("/h/f/hub")),
            (&[("HOME", "/h"), ("HF_HOME", "~other/f")], Some("~other/f/hub")),
            (&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")], Some("/c")),
            (&[("HF_HUB_CACHE", ""), ("HF_HOME", "/f")], Some("/f/hub")),
            (&[("HUGGINGFACE_HUB_CACHE", "/l"), ("HF_HOME", "/f")], Some("/l")),
            (&[("D", "/d"), ("HF_HUB_CACHE", "$D/a${D}b")], Some("/d/a/db")),
            (&[("HF_HUB_CACHE", "/a$/${X}/$Y-z")], Some("/a$/${X}/$Y-z")),
            (&[], None),
        ];
        for (vars, expected) in cases {
            assert_eq!(config(vars).cache_dir, expected.map(PathBuf::from), "{vars:?}");
        }
    }

    #[test]
    fn the_token_comes_from_a_variable_before_a_file() {
        let file = |path: &str| TokenSource::File(path.into());
        let cases: &[(Set<'_>, TokenSource)] = &[
            (&[], TokenSource::None),
            (&[("HF_HOME", "/f")], file("/f/token")),
            (&[("HF_HOME", "/f"), ("HF_TOKEN_PATH", "/t")], file("/t")),
            (&[("HF_HOME", "/f"), ("HF_TOKEN", "a")], TokenSource::Value("a".into())),
            (&[("HUGGING_FACE_HUB_TOKEN", "b")], TokenSource::Value("b".into())),
            (&[("HF_TOKEN", "a"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], TokenSource::None),
            (
                &[("HF_TOKEN", "a"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "0")],
                TokenSource::Value("a".into()),
            ),
        ];
        for (vars, expected) in cases {
            assert_eq!(config(vars).token, *expected, "{vars:?}");
        }
        let shown = format!("{:?}", config(&[("HF_TOKEN", "secret")]));
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn offline_understands_the_words_that_python_does() {
        for (value, offline) in
            [("1", true), ("true", true), ("YES", true), ("On", true), ("0", false), ("no", false)]
        {
            assert_eq!(config(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
        }
        assert!(config(&[("TRANSFORMERS_OFFLINE", "1")]).offline);
        assert!(!config(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]).offline);
    }

    #[test]
    fn endpoint_proxy_and_certificates() {
        assert_eq!(config(&[]).endpoint, "https://huggingface.co");
        assert_eq!(config(&[("HF_ENDPOINT", "http://mirror/hf/")]).endpoint, "http://mirror/hf");

        let vars = [("HTTPS_PROXY", "http://u:pw@p:1"), ("NO_PROXY", "a.org, .b.org,")];
        let proxy = config(&vars).proxy;
        let expected = ProxyConfig {
            url: "http://u:pw@p:1".into(),
            except: vec!["a.org".into(), ".b.org".into()],
        };
        assert_eq!(proxy.as_ref(), Some(&expected));
        assert!(!format!("{proxy:?}").contains("pw"));
        let plain = config(&[("HF_ENDPOINT", "http://m"), ("HTTPS_PROXY", "http://p")]);
        assert_eq!(config(&[("SSL_CERT_FILE", "/ca.pem")]).ca_file, Some(PathBuf::from("/ca.pem")));
        assert_eq!(plain.proxy, None, "the proxy for TLS is not the one for plain HTTP");
    }
}
