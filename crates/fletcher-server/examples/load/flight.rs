//! Flight's `DoExchange` as a client sees it.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray as _, RecordBatch, StringArray};
use arrow::datatypes::Float32Type;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightData, FlightDescriptor};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tonic::transport::Channel;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A batch with one column of texts.
pub(crate) fn batch(texts: &[String]) -> Result<RecordBatch, Failure> {
    let column: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
    Ok(RecordBatch::try_from_iter([("text", column)])?)
}

/// The frames of a stream that asks for vectors.
pub(crate) async fn frames(
    path: &[&str],
    batches: Vec<RecordBatch>,
) -> Result<Vec<FlightData>, Failure> {
    let path = path.iter().map(ToString::to_string).collect();
    let encoded = FlightDataEncoderBuilder::new()
        .with_flight_descriptor(Some(FlightDescriptor::new_path(path)))
        .build(stream::iter(batches.into_iter().map(Ok)));
    Ok(encoded.try_collect().await?)
}

/// A connection to a server.
pub(crate) async fn connect(address: &str) -> Result<FlightServiceClient<Channel>, Failure> {
    let channel = Channel::from_shared(format!("http://{address}"))?
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(32 << 20)
        .connect()
        .await?;
    Ok(FlightServiceClient::new(channel).max_decoding_message_size(usize::MAX))
}

/// Sends frames and counts the bytes that come back.
pub(crate) async fn exchange(
    mut client: FlightServiceClient<Channel>,
    frames: Vec<FlightData>,
) -> Result<usize, Failure> {
    let mut answers = client.do_exchange(stream::iter(frames)).await?.into_inner();
    let mut bytes = 0;
    while let Some(frame) = answers.message().await? {
        bytes += frame.data_body.len();
    }
    Ok(bytes)
}

/// The vectors of some texts.
pub(crate) async fn vectors(address: &str, texts: &[String]) -> Result<Vec<Vec<f32>>, Failure> {
    let mut client = connect(address).await?;
    let frames = frames(&["embed"], vec![batch(texts)?]).await?;
    let answers = client.do_exchange(stream::iter(frames)).await?.into_inner();
    let answers = answers.map_err(Into::into);
    let mut batches = FlightRecordBatchStream::new_from_flight_data(answers);
    let mut vectors = Vec::new();
    while let Some(batch) = batches.next().await {
        vectors.extend(rows(&batch?));
    }
    Ok(vectors)
}

/// The column of vectors, row by row.
pub(crate) fn rows(batch: &RecordBatch) -> Vec<Vec<f32>> {
    let Some(column) = batch.column_by_name("vector") else { return Vec::new() };
    let list = column.as_fixed_size_list();
    (0..batch.num_rows())
        .map(|row| list.value(row).as_primitive::<Float32Type>().values().to_vec())
        .collect()
}
