//! A server put together: sockets bound, then served until told to stop.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic_health::server::HealthReporter;

use crate::auth::ApiKeys;
use crate::datasets::Datasets;
use crate::error::ServeError;
use crate::forward::{Forward, ForwardConfig};
use crate::grpc;
use crate::http::{self, App, HttpConfig};
use crate::listen::{Address, ConnectionLimits, Listener, Serving, serve};
use crate::service::Service;
use crate::tls::{Tls, TlsFiles};
use crate::trace::{TraceConfig, Tracer};

/// How often the certificates' files are looked at.
const TLS_LOOK: Duration = Duration::from_secs(2);

/// How long stopping waits for the forwarding target.
const FORWARD_DRAIN: Duration = Duration::from_secs(5);

/// How long stopping waits for the collector of traces.
const TRACE_FLUSH: Duration = Duration::from_secs(2);

/// Everything about a server but its model.
#[derive(Debug, Clone, Default)]
pub struct ServerConfig {
    /// Where to serve HTTP.
    pub http: Vec<Address>,
    /// Where to serve gRPC: Flight and tei.v1.
    pub grpc: Vec<Address>,
    /// Limits and manners of HTTP.
    pub limits: HttpConfig,
    /// Limits on connections.
    pub connections: ConnectionLimits,
    /// Who may ask.
    pub keys: ApiKeys,
    /// Certificates; plain text when absent.
    pub tls: Option<TlsFiles>,
    /// How long open requests may go on after the stop signal.
    pub drain: Duration,
    /// Memory for datasets stored by clients.
    pub datasets_bytes: usize,
    /// Where to forward one dataset to.
    pub forward: Option<ForwardConfig>,
    /// Where to send traces.
    pub traces: Option<TraceConfig>,
}

/// A server whose sockets are bound.
pub struct Server {
    service: Service,
    listeners: Vec<(Listener, Router)>,
    health: Vec<HealthReporter>,
    forward: Option<Forward>,
    tracer: Option<Tracer>,
    tls: Option<Arc<Tls>>,
    config: ServerConfig,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

impl Server {
    /// Reads certificates and binds sockets, so that what is wrong with them is known at once.
    ///
    /// # Errors
    /// When one cannot be used.
    pub async fn bind(service: Service, config: ServerConfig) -> Result<Self, ServeError> {
        let tls = config.tls.clone().map(Tls::open).transpose()?.map(Arc::new);
        let forward = config.forward.clone();
        let forward = forward.map(|config| Forward::open(config, service.metrics().clone()));
        let forward = forward.transpose()?;
        let datasets = Datasets::new(config.datasets_bytes, forward.clone());
        let traces = config.traces.as_ref();
        let tracer = traces.map(|traces| Tracer::start(traces, service.metrics().clone()));
        let tracer = tracer.transpose()?;
        let (keys, limits) = (config.keys.clone(), config.limits.clone());
        let app = App::new(service.clone(), keys, limits, datasets, tracer.clone());
        let mut listeners = Vec::new();
        for address in &config.http {
            listeners.push((Listener::bind(address).await?, http::router(app.clone())));
        }
        let mut health = Vec::new();
        for address in &config.grpc {
            let (router, reporter) = grpc::router(&app);
            listeners.push((Listener::bind(address).await?, router));
            health.push(reporter);
        }
        if listeners.is_empty() {
            let message = "there is nothing to listen on: give --http or --flight".into();
            return Err(ServeError::Config { message });
        }
        Ok(Self { service, listeners, health, forward, tracer, tls, config })
    }

    /// Where the server listens, with the ports that the system chose.
    pub fn addresses(&self) -> Vec<Address> {
        self.listeners.iter().map(|(listener, _)| listener.address.clone()).collect()
    }

    /// Serves until `stop` completes, then lets open requests finish within the drain time.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let (stopping, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for (listener, router) in self.listeners {
            let serving = Serving {
                router,
                tls: self.tls.clone(),
                limits: self.config.connections,
                metrics: self.service.metrics().clone(),
                stop: stopped.clone(),
                drain: self.config.drain,
            };
            tasks.spawn(serve(listener, serving));
        }
        let mut watchers = JoinSet::new();
        for reporter in self.health {
            watchers.spawn(grpc::report_health(reporter, self.service.clone()));
        }
        if let Some(forward) = &self.forward {
            watchers.spawn(forward.clone().run());
        }
        if let Some(tls) = self.tls {
            watchers.spawn(watch_tls(tls));
        }
        stop.await;
        tracing::info!("stopping");
        self.service.retire();
        // Connections end after their open requests; those still get their vectors.
        let _ = stopping.send(true);
        while tasks.join_next().await.is_some() {}
        self.service.close();
        if let Some(forward) = &self.forward {
            // What is not acknowledged by then stays on disk for the next run.
            let _ = tokio::time::timeout(FORWARD_DRAIN, forward.drained()).await;
        }
        if let Some(tracer) = self.tracer {
            // A lost thread has nothing to flush.
            let _ = tokio::task::spawn_blocking(move || tracer.flush(TRACE_FLUSH)).await;
        }
    }
}

async fn watch_tls(tls: Arc<Tls>) {
    loop {
        tokio::time::sleep(TLS_LOOK).await;
        match tls.reload_if_changed() {
            Ok(false) => {}
            Ok(true) => tracing::info!("new certificates are in use"),
            Err(error) => tracing::error!(%error, "the old certificates stay in use"),
        }
    }
}
