//! The services of `tei.v1`. Streams are answered in order, with many texts in the queue at once.

use std::pin::Pin;

use fletcher_core::embedder::Prompt;
use futures_util::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::proto::{
    DecodeRequest, DecodeResponse, EmbedAllRequest, EmbedAllResponse, EmbedRequest, EmbedResponse,
    EncodeRequest, EncodeResponse, InfoRequest, InfoResponse, Metadata, ModelType, SimpleToken,
    TokenEmbedding, TruncationDirection, embed_server, info_server, tokenize_server,
};
use super::{call_options, unreadable};
use crate::answer::Timings;
use crate::http::tei::{Direction, decode_ids, overlong, tokens};
use crate::inputs::{Inputs, Item};
use crate::service::{RequestOptions, Service};

/// Texts of one stream that wait for their vectors at once.
pub(super) const STREAM_TEXTS: usize = 256;
/// Texts of one stream whose token states are computed or sent at once: these are large.
const STREAM_STATES: usize = 2;

/// All services of tei.v1 in front of the engine.
#[derive(Debug, Clone)]
pub(super) struct Tei {
    service: Service,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Tei {
    pub(super) fn new(service: Service) -> Self {
        Self { service }
    }

    async fn embed(
        &self,
        request: EmbedRequest,
        call: RequestOptions,
    ) -> Result<EmbedResponse, Status> {
        let direction = direction(request.truncation_direction());
        let options = RequestOptions {
            overlong: overlong(Some(request.truncate), direction),
            normalize: Some(request.normalize.unwrap_or(true)),
            dimensions: request.dimensions.map(|dimensions| dimensions as usize),
            prompt: request.prompt_name.map(Prompt::Named),
            ..call
        };
        let answer = self.service.embed(one(request.inputs), options).await?.strict()?;
        let metadata = metadata(answer.characters, answer.tokens(), answer.timings);
        Ok(EmbedResponse { embeddings: answer.values, metadata: Some(metadata) })
    }

    async fn embed_all(
        &self,
        request: EmbedAllRequest,
        call: RequestOptions,
    ) -> Result<EmbedAllResponse, Status> {
        let direction = direction(request.truncation_direction());
        let options = RequestOptions {
            overlong: overlong(Some(request.truncate), direction),
            prompt: request.prompt_name.map(Prompt::Named),
            ..call
        };
        let characters = request.inputs.chars().count();
        let hidden = self.service.hidden(one(request.inputs), options).await?;
        let (count, states) = hidden.states.first().ok_or(Status::internal("no states"))?;
        let state = |state: &[f32]| TokenEmbedding { embeddings: state.to_vec() };
        Ok(EmbedAllResponse {
            token_embeddings: states.chunks_exact(hidden.width).map(state).collect(),
            metadata: Some(metadata(characters, *count, hidden.timings)),
        })
    }

    async fn tokenize(&self, request: EncodeRequest) -> Result<EncodeResponse, Status> {
        let inputs = one(request.inputs);
        let (special, prompt) = (request.add_special_tokens, request.prompt_name);
        let lists = tokens(&self.service, inputs, special, prompt).await?;
        let place = |at: usize| u32::try_from(at).ok();
        let token = |token: crate::http::tei::Token| SimpleToken {
            id: token.id,
            text: token.text,
            special: token.special,
            start: token.bytes.as_ref().and_then(|bytes| place(bytes.start)),
            stop: token.bytes.as_ref().and_then(|bytes| place(bytes.end)),
        };
        Ok(EncodeResponse { tokens: lists.into_iter().flatten().map(token).collect() })
    }

    async fn decode(&self, request: DecodeRequest) -> Result<DecodeResponse, Status> {
        let DecodeRequest { ids, skip_special_tokens } = request;
        let texts = decode_ids(&self.service, vec![ids], skip_special_tokens).await?;
        Ok(DecodeResponse { text: texts.into_iter().next().unwrap_or_default() })
    }

    /// Answers a stream's requests in order, up to `ahead` of them at once. It ends at the first
    /// error, because nothing in an answer could say which text it belongs to.
    fn answer<Q, A, F>(
        &self,
        requests: Request<Streaming<Q>>,
        ahead: usize,
        work: impl Fn(Self, Q, RequestOptions) -> F + Send + 'static,
    ) -> Result<Response<Answers<A>>, Status>
    where
        Q: Send + 'static,
        A: Send + 'static,
        F: Future<Output = Result<A, Status>> + Send + 'static,
    {
        let call = RequestOptions {
            patient: true,
            ..call_options(requests.metadata(), requests.extensions())?
        };
        let this = self.clone();
        let each = requests.into_inner().map(move |request| {
            let started = request.map(|request| work(this.clone(), request, call.clone()));
            async move { started.map_err(unreadable)?.await }
        });
        let mut failed = false;
        let answers = each.buffered(ahead).take_while(move |answer| {
            let go_on = !failed;
            failed = answer.is_err();
            std::future::ready(go_on)
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

fn one(text: String) -> Inputs {
    Inputs::Items(vec![Item::Text(text)])
}

fn direction(direction: TruncationDirection) -> Direction {
    match direction {
        TruncationDirection::Right => Direction::Right,
        TruncationDirection::Left => Direction::Left,
    }
}

fn metadata(characters: usize, tokens: usize, timings: Timings) -> Metadata {
    let nanos = |duration: std::time::Duration| duration.as_nanos() as u64;
    Metadata {
        compute_chars: characters as u32,
        compute_tokens: tokens as u32,
        total_time_ns: nanos(timings.total),
        tokenization_time_ns: nanos(timings.tokenize),
        queue_time_ns: nanos(timings.queue),
        inference_time_ns: nanos(timings.inference),
    }
}

#[tonic::async_trait]
impl info_server::Info for Tei {
    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let (embedder, config) = (self.service.embedder(), self.service.config());
        Ok(Response::new(InfoResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            sha: None,
            docker_label: None,
            model_id: self.service.name().into(),
            model_sha: Some(self.service.fingerprint().into()),
            model_dtype: config.dtype.clone(),
            model_type: ModelType::Embedding.into(),
            max_concurrent_requests: config.queue_tokens as u32,
            max_input_length: embedder.model().max_tokens() as u32,
            max_batch_tokens: embedder.block_tokens() as u32,
            max_batch_requests: None,
            max_client_batch_size: config.max_rows as u32,
            tokenization_workers: embedder.threads() as u32,
        }))
    }
}

#[tonic::async_trait]
impl embed_server::Embed for Tei {
    async fn embed(
        &self,
        request: Request<EmbedRequest>,
    ) -> Result<Response<EmbedResponse>, Status> {
        let call = call_options(request.metadata(), request.extensions())?;
        Ok(Response::new(self.embed(request.into_inner(), call).await?))
    }

    type EmbedStreamStream = Answers<EmbedResponse>;

    async fn embed_stream(
        &self,
        requests: Request<Streaming<EmbedRequest>>,
    ) -> Result<Response<Self::EmbedStreamStream>, Status> {
        self.answer(requests, STREAM_TEXTS, |this, request, call| async move {
            this.embed(request, call).await
        })
    }

    async fn embed_all(
        &self,
        request: Request<EmbedAllRequest>,
    ) -> Result<Response<EmbedAllResponse>, Status> {
        let call = call_options(request.metadata(), request.extensions())?;
        Ok(Response::new(self.embed_all(request.into_inner(), call).await?))
    }

    type EmbedAllStreamStream = Answers<EmbedAllResponse>;

    async fn embed_all_stream(
        &self,
        requests: Request<Streaming<EmbedAllRequest>>,
    ) -> Result<Response<Self::EmbedAllStreamStream>, Status> {
        self.answer(requests, STREAM_STATES, |this, request, call| async move {
            this.embed_all(request, call).await
        })
    }
}

#[tonic::async_trait]
impl tokenize_server::Tokenize for Tei {
    async fn tokenize(
        &self,
        request: Request<EncodeRequest>,
    ) -> Result<Response<EncodeResponse>, Status> {
        Ok(Response::new(self.tokenize(request.into_inner()).await?))
    }

    type TokenizeStreamStream = Answers<EncodeResponse>;

    async fn tokenize_stream(
        &self,
        requests: Request<Streaming<EncodeRequest>>,
    ) -> Result<Response<Self::TokenizeStreamStream>, Status> {
        self.answer(requests, STREAM_TEXTS, |this, request, _| async move {
            this.tokenize(request).await
        })
    }

    async fn decode(
        &self,
        request: Request<DecodeRequest>,
    ) -> Result<Response<DecodeResponse>, Status> {
        Ok(Response::new(self.decode(request.into_inner()).await?))
    }

    type DecodeStreamStream = Answers<DecodeResponse>;

    async fn decode_stream(
        &self,
        requests: Request<Streaming<DecodeRequest>>,
    ) -> Result<Response<Self::DecodeStreamStream>, Status> {
        self.answer(
            requests,
            STREAM_TEXTS,
            |this, request, _| async move { this.decode(request).await },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::RequestError;

    #[test]
    fn refusals_have_grpc_codes() {
        let refused = Status::from(RequestError::Overloaded {
            retry_after: std::time::Duration::from_secs(3),
        });
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert_eq!(refused.metadata().get("retry-after").unwrap(), "3");
        assert_eq!(Status::from(RequestError::Deadline).code(), tonic::Code::DeadlineExceeded);
    }
}
