//! `fletcher serve` as a process of its own, with ports that the system chose.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::http::{self, Connection};
use crate::measure;
use crate::options::Options;

/// How long a start may take: a model may be large.
const START: Duration = Duration::from_secs(60);

/// A server that ends with its owner.
pub(crate) struct Server {
    child: Child,
    log: PathBuf,
    pub(crate) http: String,
    pub(crate) grpc: String,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Server {
    pub(crate) async fn start(options: &Options, more: &[&str]) -> Result<Self, Failure> {
        let number = std::process::id();
        let log = std::env::temp_dir().join(format!("fletcher-load-{number}.log"));
        let child = Command::new(&options.program)
            .args(["serve", "--http", "127.0.0.1:0", "--flight", "127.0.0.1:0"])
            .args(["--log-format", "json", "--log-level", "info", "-m", &options.model])
            .args(more)
            .args(&options.serve)
            .stdin(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .map_err(|error| format!("{}: {error}", options.program.display()))?;
        let mut server = Self { child, log, http: String::new(), grpc: String::new() };
        let begin = Instant::now();
        loop {
            let said = server.log();
            if said.contains("\"message\":\"ready\"") {
                break;
            }
            if server.child.try_wait()?.is_some() || begin.elapsed() > START {
                return Err(format!("the server did not become ready: {said}").into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let said = server.log();
        let mut addresses = said.lines().filter_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            line["address"].as_str().map(str::to_owned)
        });
        server.http = addresses.next().ok_or("no address of HTTP")?;
        server.grpc = addresses.next().ok_or("no address of gRPC")?;
        Ok(server)
    }

    /// Everything that the server logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn cpu_seconds(&self) -> f64 {
        measure::cpu_seconds(self.child.id())
    }

    /// Resident memory in MiB, now and at most.
    pub(crate) fn resident_mib(&self) -> (f64, f64) {
        measure::resident_mib(self.child.id())
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|ended| ended.is_none())
    }

    /// A number of `/metrics`, by the series' whole name.
    pub(crate) async fn metric(&self, series: &str) -> Result<f64, Failure> {
        let mut connection = Connection::open(&self.http).await?;
        let reply = connection.ask(&http::get("/metrics")).await?;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
        Ok(value.unwrap_or(0.0))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; the log is of no use to anybody else.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.log);
    }
}
