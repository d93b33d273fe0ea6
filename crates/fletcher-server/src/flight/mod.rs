//! Arrow Flight: batches with texts in, the same batches with vectors out.
//!
//! | call | descriptor or ticket | what happens |
//! |---|---|---|
//! | `DoExchange` | path `embed` \[model\] \[options\] | each batch comes back with a column of vectors |
//! | `DoPut` | path dataset \[options\] | batches are embedded and stored; each is acknowledged |
//! | `DoGet` | ticket: dataset | what is stored |
//! | `GetFlightInfo`, `ListFlights`, `GetSchema` | dataset | what there is |
//! | `DoAction` | `models`, `health`, `drop_dataset` | |
//!
//! Options are JSON (`column`, `vector_column`, `prompt_name`, `truncate`, `normalize`,
//! `dimensions`, `on_error`): the last path element when it begins with `{`, the header
//! `x-fletcher-options`, or the app metadata of the schema message. A batch's own app metadata
//! comes back with it.

pub(crate) mod messages;

use std::pin::Pin;

use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo,
    HandshakeRequest, HandshakeResponse, PollInfo, PutResult, Result as ActionResult, SchemaAsIpc,
    SchemaResult, Ticket,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request, Response, Status, Streaming};

use self::messages::{Incoming, Opening, Outgoing};
use crate::batcher::Lane;
use crate::columns::{ColumnOptions, Plan};
use crate::datasets::Dataset;
use crate::error::RequestError;
use crate::grpc::call_options;
use crate::http::App;
use crate::service::RequestOptions;

/// Batches of one stream in the engine at once: the next is tokenised while one is computed.
pub(crate) const BATCHES_AHEAD: usize = 3;

/// The Flight service.
#[derive(Clone)]
pub(crate) struct FlightEmbed {
    app: App,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl FlightEmbed {
    pub(crate) fn new(app: App) -> Self {
        Self { app }
    }

    /// Settles how a stream's batches are embedded.
    fn plan(
        &self,
        opening: &Opening,
        metadata: &MetadataMap,
        extensions: &Extensions,
        path_json: Option<&str>,
    ) -> Result<Plan, Status> {
        let header = metadata.get("x-fletcher-options").map(|value| value.to_str().unwrap_or("?"));
        let options = match path_json.or(header) {
            Some(text) => ColumnOptions::parse(text.as_bytes())?,
            None if !opening.app_metadata.is_empty() => {
                ColumnOptions::parse(&opening.app_metadata)?
            }
            None => ColumnOptions::default(),
        };
        let mut plan = options.plan(&self.app.service, &opening.schema)?;
        let call = call_options(metadata, extensions)?;
        plan.options = RequestOptions {
            lane: call.lane.or(Some(Lane::Bulk)),
            deadline: call.deadline,
            context: call.context,
            // The stream's own flow control holds the client back.
            patient: true,
            ..plan.options
        };
        Ok(plan)
    }

    fn info(&self, name: &str, dataset: &Dataset) -> Result<FlightInfo, Status> {
        let ticket = Ticket { ticket: Bytes::copy_from_slice(name.as_bytes()) };
        FlightInfo::new()
            .try_with_schema(&dataset.schema)
            .map(|info| {
                info.with_descriptor(FlightDescriptor::new_path(vec![name.to_owned()]))
                    .with_endpoint(FlightEndpoint::new().with_ticket(ticket))
                    .with_total_records(dataset.rows as i64)
                    .with_total_bytes(dataset.bytes as i64)
                    .with_ordered(true)
            })
            .map_err(|error| Status::internal(error.to_string()))
    }

    fn dataset(&self, descriptor: &FlightDescriptor) -> Result<(String, Dataset), Status> {
        let [name] = &path(descriptor)?[..] else {
            return Err(Status::invalid_argument("the path must be a dataset's name"));
        };
        Ok((name.clone(), self.app.datasets.get(name)?))
    }
}

/// The elements of a descriptor's path.
fn path(descriptor: &FlightDescriptor) -> Result<Vec<String>, Status> {
    match descriptor.r#type() {
        DescriptorType::Path if !descriptor.path.is_empty() => Ok(descriptor.path.clone()),
        _ => Err(Status::invalid_argument("a descriptor with a path is needed, e.g. [\"embed\"]")),
    }
}

/// Options at the end of a path, and the path before them.
fn split_options(path: &[String]) -> (&[String], Option<&str>) {
    match path {
        [before @ .., last] if last.starts_with('{') => (before, Some(last)),
        _ => (path, None),
    }
}

#[tonic::async_trait]
impl FlightService for FlightEmbed {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoExchangeStream = Answers<FlightData>;
    type DoActionStream = Answers<ActionResult>;
    type ListActionsStream = Answers<ActionType>;

    /// Trades a Basic password that is an API key for that key as a bearer token, which is what
    /// Flight clients do at the start.
    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        let headers = request.metadata().clone().into_headers();
        if !self.app.keys.allow(&headers) {
            return Err(Status::unauthenticated("a valid API key is needed as the password"));
        }
        let answer = HandshakeResponse { protocol_version: 0, payload: Bytes::new() };
        let answer: Self::HandshakeStream = Box::pin(stream::iter([Ok(answer)]));
        let mut response = Response::new(answer);
        let key = crate::auth::presented(&headers);
        if let Some(token) = key.and_then(|key| format!("Bearer {key}").parse().ok()) {
            response.metadata_mut().insert("authorization", token);
        }
        Ok(response)
    }

    async fn list_flights(
        &self,
        _: Request<Criteria>,
    ) -> Result<Response<Self::ListFlightsStream>, Status> {
        let list = self.app.datasets.list();
        let infos: Vec<_> = list.iter().map(|(name, dataset)| self.info(name, dataset)).collect();
        Ok(Response::new(Box::pin(stream::iter(infos))))
    }

    async fn get_flight_info(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let (name, dataset) = self.dataset(request.get_ref())?;
        Ok(Response::new(self.info(&name, &dataset)?))
    }

    async fn poll_flight_info(
        &self,
        _: Request<FlightDescriptor>,
    ) -> Result<Response<PollInfo>, Status> {
        Err(Status::unimplemented("nothing here takes long enough to be polled"))
    }

    async fn get_schema(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<SchemaResult>, Status> {
        let (_, dataset) = self.dataset(request.get_ref())?;
        let schema = SchemaAsIpc::new(&dataset.schema, &Default::default()).try_into();
        schema
            .map(Response::new)
            .map_err(|error: arrow::error::ArrowError| Status::internal(error.to_string()))
    }

    async fn do_get(
        &self,
        request: Request<Ticket>,
    ) -> Result<Response<Self::DoGetStream>, Status> {
        let ticket = request.into_inner().ticket;
        let name = std::str::from_utf8(&ticket)
            .map_err(|_| Status::invalid_argument("the ticket must be a dataset's name"))?;
        let Dataset { schema, batches, .. } = self.app.datasets.get(name)?;
        let encoded = FlightDataEncoderBuilder::new()
            .with_schema(schema)
            .build(stream::iter(batches.into_iter().map(Ok)))
            .map_err(|error| Status::internal(error.to_string()));
        Ok(Response::new(Box::pin(encoded)))
    }

    async fn do_put(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoPutStream>, Status> {
        let (metadata, extensions, frames) = request.into_parts();
        let (opening, batches) = Incoming::open(frames).await?;
        let path = path(&opening.descriptor)?;
        let (path, options) = split_options(&path);
        let [dataset] = path else {
            return Err(Status::invalid_argument("the path must be a dataset's name"));
        };
        let plan = self.plan(&opening, &metadata, &extensions, options)?;
        let (app, dataset) = (self.app.clone(), dataset.clone());
        let embedded = batches.stream().map(move |incoming| {
            let (plan, app) = (plan.clone(), app.clone());
            async move {
                let (batch, _) = incoming?;
                Ok::<_, Status>(plan.embed(&app.service, batch, plan.options.clone()).await?)
            }
        });
        // Embedding runs ahead; storing, and with it the acknowledgement, keeps the order.
        let app = self.app.clone();
        let mut number = 0u64;
        let acks = embedded.buffered(BATCHES_AHEAD).and_then(move |embedded| {
            number += 1;
            let (app, dataset) = (app.clone(), dataset.clone());
            async move {
                let rows = embedded.batch.num_rows();
                app.datasets.append(&dataset, embedded).await?;
                let ack = json!({ "status": "acked", "batch_id": number, "rows": rows });
                Ok(PutResult { app_metadata: ack.to_string().into() })
            }
        });
        Ok(Response::new(Box::pin(until_error(acks))))
    }

    async fn do_exchange(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        let (metadata, extensions, frames) = request.into_parts();
        let (opening, batches) = Incoming::open(frames).await?;
        let path = path(&opening.descriptor)?;
        let (path, options) = split_options(&path);
        match path {
            [embed] if embed == "embed" => {}
            [embed, model] if embed == "embed" => self.app.service.check_model(Some(model))?,
            _ => {
                return Err(Status::invalid_argument(
                    "the path must be [\"embed\"] or [\"embed\", model]",
                ));
            }
        }
        let plan = self.plan(&opening, &metadata, &extensions, options)?;
        let (mut outgoing, schema) = Outgoing::new(&plan.schema);
        let app = self.app.clone();
        let embedded = batches.stream().map(move |incoming| {
            let (plan, app) = (plan.clone(), app.clone());
            async move {
                let (batch, app_metadata) = incoming?;
                let embedded = plan.embed(&app.service, batch, plan.options.clone()).await?;
                Ok::<_, Status>((embedded.batch, app_metadata))
            }
        });
        let messages = embedded.buffered(BATCHES_AHEAD).map(move |embedded| {
            let (batch, app_metadata) = embedded?;
            outgoing.batch(&batch, app_metadata)
        });
        let messages = messages.map_ok(|list| stream::iter(list.into_iter().map(Ok))).try_flatten();
        let all = stream::iter([Ok(schema)]).chain(messages);
        Ok(Response::new(Box::pin(until_error(all))))
    }

    async fn do_action(
        &self,
        request: Request<Action>,
    ) -> Result<Response<Self::DoActionStream>, Status> {
        let Action { r#type, body } = request.into_inner();
        let service = &self.app.service;
        let answer = match r#type.as_str() {
            "models" => json!([{
                "name": service.name(),
                "fingerprint": service.fingerprint(),
                "dimensions": service.embedder().dim(),
                "max_tokens": service.embedder().model().max_tokens(),
                "normalized": service.embedder().model().head().normalized(),
                "prompts": service.embedder().model().prompts().by_name.keys().collect::<Vec<_>>(),
            }]),
            "health" => json!({ "ready": service.is_ready() }),
            "drop_dataset" => {
                let name = std::str::from_utf8(&body)
                    .map_err(|_| Status::invalid_argument("the body must be a dataset's name"))?;
                self.app.datasets.remove(name)?;
                json!({ "dropped": name })
            }
            other => {
                let message =
                    format!("there is no action `{other}`; ListActions says which there are");
                return Err(RequestError::NotFound { message }.into());
            }
        };
        let result = ActionResult { body: answer.to_string().into() };
        Ok(Response::new(Box::pin(stream::iter([Ok(result)]))))
    }

    async fn list_actions(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListActionsStream>, Status> {
        let actions = [
            ("models", "The models that are served, as JSON"),
            ("health", "Whether the server is ready, as JSON"),
            ("drop_dataset", "Forget the dataset that the body names"),
        ];
        let describe = |(kind, description): (&str, &str)| {
            Ok(ActionType { r#type: kind.into(), description: description.into() })
        };
        Ok(Response::new(Box::pin(stream::iter(actions.map(describe)))))
    }
}

/// The stream up to its first error, that included.
fn until_error<T: Send + 'static>(
    stream: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
    let mut failed = false;
    stream.take_while(move |item| {
        let go_on = !failed;
        failed = item.is_err();
        std::future::ready(go_on)
    })
}
