//! From sockets to requests: one accept loop for every protocol, with limits on all that a client
//! can leave half done.
//!
//! A client that closes its sending side is taken for gone, because one that is gone looks the
//! same, and its work is cancelled.

use std::future::Future;
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt as _;

use crate::error::ServeError;
use crate::guarded_io::{GuardedIo, Patience};
use crate::metrics::Metrics;
use crate::tls::Tls;
use crate::unread_body;

/// Headers of one request: enough for proxies and traces, and what hyper keeps in one block.
const HEADERS_MAX: usize = 100;
/// Bytes of all headers.
const HEADER_BYTES: usize = 64 << 10;
/// Streams of one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;
/// HTTP/2 flow control: enough for a batch of texts to arrive without waiting for a round trip.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// After a failed accept (mostly: no file descriptors left), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `host:port`; port 0 lets the system choose.
    Tcp(String),
    /// `unix:PATH`.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.is_empty() {
                true => Err("`unix:` needs a path".into()),
                false => Ok(Address::Unix(path.into())),
            };
        }
        let text = text.trim_start_matches("http://").trim_end_matches('/');
        match text.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>())) {
            Some((host, Ok(_))) if !host.is_empty() => Ok(Address::Tcp(text.into())),
            _ => Err(format!("`{text}` is neither HOST:PORT nor unix:PATH")),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp(address) => f.write_str(address),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What a listener allows.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// Connections at once; more wait in the system's queue.
    pub connections: usize,
    /// For the TLS handshake, the first byte, and the head of each request, the wait for the next
    /// request included.
    pub head: Duration,
    /// While a client does not take what is sent to it.
    pub write: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        let (head, write) = (Duration::from_secs(30), Duration::from_secs(60));
        Self { connections: 4096, head, write }
    }
}

/// A socket that listens.
pub(crate) struct Listener {
    socket: Socket,
    /// As given, with the port that was chosen.
    pub(crate) address: Address,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    pub(crate) async fn bind(address: &Address) -> Result<Self, ServeError> {
        let failed = |error: std::io::Error| ServeError::Listen {
            address: address.to_string(),
            message: error.to_string(),
        };
        match address {
            Address::Tcp(text) => {
                let socket = TcpListener::bind(text).await.map_err(failed)?;
                let address = Address::Tcp(socket.local_addr().map_err(failed)?.to_string());
                Ok(Self { socket: Socket::Tcp(socket), address })
            }
            Address::Unix(path) => {
                // A socket that nobody answers on is left over from a process that was killed. A
                // file refuses connections, too, and stays.
                let stale = tokio::net::UnixStream::connect(path).await;
                if matches!(&stale, Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused) {
                    let kind = std::fs::symlink_metadata(path).map_err(failed)?.file_type();
                    if !kind.is_socket() {
                        let message = "it is there already, and no socket; name another path";
                        return Err(failed(std::io::Error::other(message)));
                    }
                    std::fs::remove_file(path).map_err(failed)?;
                }
                let socket = UnixListener::bind(path).map_err(failed)?;
                Ok(Self { socket: Socket::Unix(socket), address: address.clone() })
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            // It may be gone already; there is nobody to tell.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// How to serve a listener's connections.
#[derive(Clone)]
pub(crate) struct Serving {
    pub(crate) router: Router,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) limits: ConnectionLimits,
    pub(crate) metrics: Arc<Metrics>,
    /// Turns true when no more connections are to be taken.
    pub(crate) stop: watch::Receiver<bool>,
    /// How long open requests may go on after that.
    pub(crate) drain: Duration,
}

/// Accepts connections until told to stop, then waits for the open requests.
pub(crate) async fn serve(listener: Listener, serving: Serving) {
    let slots = Arc::new(Semaphore::new(serving.limits.connections));
    let graceful = GracefulShutdown::new();
    let mut tasks = JoinSet::new();
    let mut stop = serving.stop.clone();
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let slot = slots.clone().acquire_owned().await.ok();
            (slot, listener.socket.accept().await)
        };
        let (slot, stream) = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = accepted => accepted,
        };
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while tasks.try_join_next().is_some() {}
        let (watcher, serving) = (graceful.watcher(), serving.clone());
        tasks.spawn(async move {
            serving.metrics.connections.inc();
            match stream {
                Stream::Tcp(stream) => serving.connection(stream, watcher).await,
                Stream::Unix(stream) => serving.connection(stream, watcher).await,
            }
            serving.metrics.connections.dec();
            drop(slot);
        });
    }
    drop(listener);
    let finish = async {
        graceful.shutdown().await;
        while tasks.join_next().await.is_some() {}
    };
    if tokio::time::timeout(serving.drain, finish).await.is_err() {
        tracing::warn!("requests were cut off at the end of the drain time");
    }
}

enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

impl Socket {
    async fn accept(&self) -> std::io::Result<Stream> {
        match self {
            Socket::Tcp(socket) => {
                let (stream, _) = socket.accept().await?;
                // Answers are written whole; waiting for more to send only adds latency.
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Socket::Unix(socket) => Ok(Stream::Unix(socket.accept().await?.0)),
        }
    }
}

type Watcher = hyper_util::server::graceful::Watcher;

impl Serving {
    async fn connection<T>(&self, stream: T, watcher: Watcher)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let patience = Patience { greeting: self.limits.head, write: self.limits.write };
        let stream = GuardedIo::new(stream, patience);
        let Some(tls) = &self.tls else { return self.http(stream, watcher).await };
        match tokio::time::timeout(self.limits.head, tls.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => self.http(GuardedIo::new(stream, patience), watcher).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn http<T>(&self, stream: T, watcher: Watcher)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEADER_BYTES.max(64 << 10));
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(self.limits.head)
            .keep_alive_timeout(self.limits.head)
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADER_BYTES as u32)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let service = self.router.clone().map_request(unread_body::take);
        let service = TowerToHyperService::new(service);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        if let Err(error) = watch(watcher, connection.into_owned()).await {
            tracing::debug!(error = %Cause(&*error), "a connection broke off");
        }
    }
}

fn watch<C: hyper_util::server::graceful::GracefulConnection>(
    watcher: Watcher,
    connection: C,
) -> impl Future<Output = C::Output> {
    watcher.watch(connection)
}

/// An error with its causes.
pub(crate) struct Cause<'a>(pub(crate) &'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for text in ["127.0.0.1:80", "[::1]:0", "localhost:8080", "unix:/run/f.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "8080", ":80", "host", "host:port", "host:70000", "unix:"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
