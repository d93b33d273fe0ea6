//! gRPC: tei.v1, Arrow Flight, health and reflection on one listener.

mod budget;
mod tei;

/// The messages and services of `proto/tei.proto`, as `cargo xtask proto` made them.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod proto {
    include!("generated/tei.rs.in");
}

use std::time::Duration;

use axum::Router;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Code, Extensions, Status};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::error::{ErrorKind, RequestError};
use crate::flight::FlightEmbed;
use crate::http::{App, header_options, layered};
use crate::service::{RequestOptions, Service};
use arrow_flight::flight_service_server::FlightServiceServer;

use proto::embed_server::EmbedServer;
use proto::info_server::InfoServer;
use proto::tokenize_server::TokenizeServer;

/// The contract in the form that reflection serves.
const DESCRIPTORS: &[u8] = include_bytes!("generated/tei.bin");
/// Services whose health can be asked; the empty name is the server's.
const SERVICES: [&str; 5] =
    ["", "tei.v1.Info", "tei.v1.Embed", "tei.v1.Tokenize", "arrow.flight.protocol.FlightService"];
/// How often readiness is looked at.
const READY_LOOK: Duration = Duration::from_millis(200);

/// Every service of the gRPC side, and what sets their health.
pub(crate) fn router(app: &App) -> (Router, HealthReporter) {
    let (reporter, health) = tonic_health::server::health_reporter();
    let limit = app.config.body_bytes;
    let tei = tei::Tei::new(app.service.clone());
    // The descriptors are our own; a test serves them.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let mut routes = Routes::new(InfoServer::new(tei.clone()))
        .add_service(EmbedServer::new(tei.clone()).max_decoding_message_size(limit))
        .add_service(TokenizeServer::new(tei).max_decoding_message_size(limit))
        .add_service(
            FlightServiceServer::new(FlightEmbed::new(app.clone()))
                .max_decoding_message_size(limit)
                .max_encoding_message_size(usize::MAX),
        )
        .add_service(health);
    if let Ok(service) = reflection().build_v1() {
        routes = routes.add_service(service);
    }
    if let Ok(service) = reflection().build_v1alpha() {
        routes = routes.add_service(service);
    }
    let router = routes.prepare().into_axum_router();
    let router = router.layer(axum::middleware::from_fn_with_state(app.clone(), budget::count));
    (layered(router, app), reporter)
}

/// Keeps the health service in step with the service's readiness; never ends.
pub(crate) async fn report_health(reporter: HealthReporter, service: Service) {
    let mut last = None;
    loop {
        let ready = service.is_ready();
        if last.replace(ready) != Some(ready) {
            let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            for name in SERVICES {
                reporter.set_service_status(name, status).await;
            }
        }
        tokio::time::sleep(READY_LOOK).await;
    }
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        let code = match error.kind() {
            ErrorKind::Overloaded => Code::ResourceExhausted,
            ErrorKind::Unavailable => Code::Unavailable,
            ErrorKind::Deadline | ErrorKind::Slow => Code::DeadlineExceeded,
            ErrorKind::Invalid | ErrorKind::Text | ErrorKind::Empty | ErrorKind::TooLarge => {
                Code::InvalidArgument
            }
            ErrorKind::NotFound => Code::NotFound,
            ErrorKind::Engine => Code::Internal,
        };
        let mut status = Status::new(code, error.to_string());
        if let RequestError::Overloaded { retry_after } = error {
            let seconds = retry_after.as_secs().max(1).into();
            status.metadata_mut().insert("retry-after", seconds);
        }
        status
    }
}

/// What the library says of messages that cannot be read. It says so with the code of the server's
/// own failures. (A wrong compression flag stays that: there gRPC's specification demands it.)
const UNREADABLE: [&str; 3] =
    ["failed to decode Protobuf message", "Unexpected EOF", "Missing request message"];

/// Whether the client's bytes are the cause of this status.
fn is_unreadable(status: &Status) -> bool {
    let begins = |words: &&str| status.message().starts_with(words);
    status.code() == Code::Internal && UNREADABLE.iter().any(begins)
}

/// The client's bytes, named as the cause if they are.
pub(crate) fn unreadable(status: Status) -> Status {
    match is_unreadable(&status) {
        true => Status::invalid_argument(format!("a message is malformed: {}", status.message())),
        false => status,
    }
}

/// What a call says in its metadata: the lane, and gRPC's own deadline.
pub(crate) fn call_options(
    metadata: &MetadataMap,
    extensions: &Extensions,
) -> Result<RequestOptions, Status> {
    let headers = metadata.clone().into_headers();
    let mut options = header_options(&headers)?;
    options.context = extensions.get().cloned();
    let timeout = headers.get("grpc-timeout").and_then(|value| timeout(value.to_str().ok()?));
    options.deadline = options.deadline.or(timeout);
    Ok(options)
}

/// gRPC's notation: up to eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        assert_eq!(timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(timeout("2H"), Some(Duration::from_secs(7200)));
        for text in ["", "m", "1", "1x", "123456789S", "-1S", "é"] {
            assert_eq!(timeout(text), None, "{text}");
        }
    }
}
