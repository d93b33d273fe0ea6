//! Flight's frames to batches and back. Frames keep their app metadata: a client may number its
//! batches there.

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions};
use arrow_flight::{FlightData, FlightDescriptor};
use bytes::Bytes;
use futures_util::{Stream, stream};
use tonic::{Status, Streaming};

use crate::error::RequestError;
use crate::grpc::unreadable;
use crate::ipc::Decoder;

/// What the first frame of a stream says.
pub(crate) struct Opening {
    pub(crate) descriptor: FlightDescriptor,
    pub(crate) schema: SchemaRef,
    pub(crate) app_metadata: Bytes,
}

/// The batches after the first frame.
pub(crate) struct Incoming {
    frames: Streaming<FlightData>,
    decoder: Decoder,
}

impl Incoming {
    /// Reads up to the schema.
    pub(crate) async fn open(mut frames: Streaming<FlightData>) -> Result<(Opening, Self), Status> {
        let missing =
            || Status::invalid_argument("the stream must begin with a descriptor and a schema");
        let first = frames.message().await.map_err(unreadable)?.ok_or_else(missing)?;
        let descriptor = first.flight_descriptor.ok_or_else(missing)?;
        let (mut header, mut body) = (first.data_header, first.data_body);
        let mut app_metadata = first.app_metadata;
        if header.is_empty() {
            // Some clients send the descriptor alone.
            let second = frames.message().await.map_err(unreadable)?.ok_or_else(missing)?;
            (header, body) = (second.data_header, second.data_body);
            app_metadata = if app_metadata.is_empty() { second.app_metadata } else { app_metadata };
        }
        let mut decoder = Decoder::default();
        decoder.message(&header, body).map_err(malformed)?;
        let schema = decoder.schema().cloned().ok_or_else(missing)?;
        Ok((Opening { descriptor, schema, app_metadata }, Self { frames, decoder }))
    }

    /// The batches, each with its app metadata.
    pub(crate) fn stream(self) -> impl Stream<Item = Result<(RecordBatch, Bytes), Status>> + Send {
        stream::unfold(Some(self), |incoming| async move {
            let mut incoming = incoming?;
            match incoming.next().await {
                Ok(batch) => batch.map(|batch| (Ok(batch), Some(incoming))),
                Err(status) => Some((Err(status), None)),
            }
        })
    }

    async fn next(&mut self) -> Result<Option<(RecordBatch, Bytes)>, Status> {
        while let Some(frame) = self.frames.message().await.map_err(unreadable)? {
            if frame.data_header.is_empty() {
                // App metadata alone: nothing to embed.
                continue;
            }
            let batch =
                self.decoder.message(&frame.data_header, frame.data_body).map_err(malformed)?;
            if let Some(batch) = batch {
                return Ok(Some((batch, frame.app_metadata)));
            }
        }
        Ok(None)
    }
}

fn malformed(error: arrow::error::ArrowError) -> Status {
    RequestError::invalid(format!("the data are malformed: {error}")).into()
}

/// Encodes batches of one schema.
pub(crate) struct Outgoing {
    generator: IpcDataGenerator,
    dictionaries: DictionaryTracker,
    options: IpcWriteOptions,
}

impl Outgoing {
    /// Also gives the frame of the schema, which goes first.
    pub(crate) fn new(schema: &Schema) -> (Self, FlightData) {
        let mut outgoing = Self {
            generator: IpcDataGenerator::default(),
            dictionaries: DictionaryTracker::new(false),
            options: IpcWriteOptions::default(),
        };
        let schema = outgoing.generator.schema_to_bytes_with_dictionary_tracker(
            schema,
            &mut outgoing.dictionaries,
            &outgoing.options,
        );
        (outgoing, schema.into())
    }

    /// The frames of a batch: its new dictionaries, then itself.
    pub(crate) fn batch(
        &mut self,
        batch: &RecordBatch,
        app_metadata: Bytes,
    ) -> Result<Vec<FlightData>, Status> {
        let (dictionaries, batch) = self
            .generator
            .encode(batch, &mut self.dictionaries, &self.options, &mut Default::default())
            .map_err(|error| Status::internal(error.to_string()))?;
        let mut frames: Vec<FlightData> = dictionaries.into_iter().map(FlightData::from).collect();
        frames.push(FlightData { app_metadata, ..FlightData::from(batch) });
        Ok(frames)
    }
}
