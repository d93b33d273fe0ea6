//! What every dialect calls: texts in, vectors out, one answer per text.
//!
//! ```text
//! Request ─tokenise→ rows ─cache→ rows left ─batcher→ vectors ─dimensions→ Answer
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use fletcher_core::embedder::{EmbedError, EmbedOptions, Embedder, INLINE_TEXTS, Prompt};
use fletcher_core::head;
use fletcher_core::text::{Overlong, TextError, TokenIds};
use rayon::prelude::*;

use crate::answer::{Answer, Assembled, Hidden, Prepared, Timings};
use crate::background::Background;
use crate::batcher::{Batcher, Lane, Reservation, Work};
use crate::cache::{Key, VectorCache};
use crate::context::Context;
use crate::error::{ItemError, RequestError, ServeError};
use crate::inputs::{Input, Inputs, Item};
use crate::metrics::Metrics;
use crate::trace::Value;

/// Texts of up to so many bytes in all are tokenised on the thread that has them: shorter than
/// handing them to another.
const INLINE_BYTES: usize = 2048;
/// Requests for token states (`/embed_all`) that may wait for the engine at once; these do not go
/// through the queue.
const HIDDEN_REQUESTS: usize = 32;

/// How a [`Service`] behaves.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// Tokens that may wait before requests are refused.
    pub queue_tokens: usize,
    /// How long a request may take when it does not say so itself.
    pub deadline: Duration,
    /// Size of the cache of vectors in bytes; 0 for none.
    pub cache_bytes: u64,
    /// Requests of up to so many texts are interactive, larger ones bulk, unless they say.
    pub interactive_rows: usize,
    /// Most texts of a request.
    pub max_rows: usize,
    /// What to do with over-long texts when a request does not say.
    pub overlong: Overlong,
    /// What to put before each text when a request does not say.
    pub prompt: Prompt,
    /// The name under which the model is served; the model's own when absent.
    pub served_name: Option<String>,
    /// Other names that requests may use for it; `*` for any.
    pub aliases: Vec<String>,
    /// What the model runs on, for those who ask.
    pub device: String,
    /// The number format that it computes in, as TEI names them.
    pub dtype: String,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            queue_tokens: 1 << 20,
            deadline: Duration::from_secs(60),
            cache_bytes: 0,
            interactive_rows: 8,
            max_rows: 65_536,
            overlong: Overlong::Truncate,
            prompt: Prompt::Default,
            served_name: None,
            aliases: Vec::new(),
            device: "cpu".into(),
            dtype: "float32".into(),
        }
    }
}

/// How one request wants its vectors.
#[derive(Debug, Clone, Default)]
pub struct RequestOptions {
    /// What to put before each text; `None` for the server's choice.
    pub prompt: Option<Prompt>,
    /// What to do with over-long texts; `None` for the server's choice.
    pub overlong: Option<Overlong>,
    /// Unit length or not; `None` for what the model does.
    pub normalize: Option<bool>,
    /// Keep so many leading dimensions.
    pub dimensions: Option<usize>,
    /// Which queue to stand in; `None` to go by size.
    pub lane: Option<Lane>,
    /// How long the answer may take; `None` for the server's choice.
    pub deadline: Option<Duration>,
    /// The request, for those who watch it.
    pub(crate) context: Option<Arc<Context>>,
    /// Wait for room in the queue instead of being refused: for dialects with flow control.
    pub patient: bool,
}

/// The engine behind all dialects. Cheap to clone.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("model", &self.0.name).finish_non_exhaustive()
    }
}

struct Inner {
    embedder: Arc<Embedder>,
    batcher: Batcher,
    cache: Option<VectorCache>,
    metrics: Arc<Metrics>,
    config: ServiceConfig,
    name: String,
    fingerprint: String,
    ready: AtomicBool,
    background: Background,
    hidden: tokio::sync::Semaphore,
}

impl Service {
    /// Starts the engine's threads. The service is not ready before [`Self::probe`].
    pub fn start(embedder: Embedder, config: ServiceConfig) -> Self {
        let name = config.served_name.clone().unwrap_or_else(|| embedder.model().name().to_owned());
        let fingerprint = embedder.model().fingerprint().to_owned();
        let metrics = Arc::new(Metrics::new(&name, &fingerprint));
        let embedder = Arc::new(embedder);
        let background = Background::start(embedder.threads());
        let cache = (config.cache_bytes > 0)
            .then(|| VectorCache::new(config.cache_bytes, embedder.dim(), metrics.clone()));
        Self(Arc::new(Inner {
            batcher: Batcher::start(embedder.clone(), config.queue_tokens, metrics.clone()),
            embedder,
            cache,
            metrics,
            config,
            name,
            fingerprint,
            ready: AtomicBool::new(false),
            background,
            hidden: tokio::sync::Semaphore::new(HIDDEN_REQUESTS),
        }))
    }

    /// Embeds a text, and is ready if that works.
    ///
    /// # Errors
    /// When there is no vector.
    pub async fn probe(&self) -> Result<(), ServeError> {
        let inputs = Inputs::Items(vec![Item::Text("probe".into())]);
        let answer = self.embed(inputs, RequestOptions::default()).await;
        let message = |error: RequestError| ServeError::Probe { message: error.to_string() };
        answer.and_then(Answer::strict).map_err(message)?;
        self.0.ready.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether requests are served.
    pub fn is_ready(&self) -> bool {
        self.0.ready.load(Ordering::Acquire)
    }

    /// Is no longer ready, so that no more clients are sent here; requests are still served.
    pub fn retire(&self) {
        self.0.ready.store(false, Ordering::Release);
    }

    /// Takes no new requests; those in the queue are still answered.
    pub fn close(&self) {
        self.retire();
        self.0.batcher.close();
    }

    /// Completes when a device has failed a block, with the reason; its requests were told too.
    pub async fn device_failure(&self) -> String {
        self.0.batcher.failure().await
    }

    /// The engine.
    pub fn embedder(&self) -> &Embedder {
        &self.0.embedder
    }

    /// The counters.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// The configuration.
    pub fn config(&self) -> &ServiceConfig {
        &self.0.config
    }

    /// The name under which the model is served.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The model's fingerprint.
    pub fn fingerprint(&self) -> &str {
        &self.0.fingerprint
    }

    /// What an Arrow schema says about its vectors, as `fletcher embed` writes it.
    pub fn schema_metadata(&self, dim: usize, normalized: bool) -> [(String, String); 4] {
        [
            ("fletcher.model".into(), self.name().into()),
            ("fletcher.fingerprint".into(), self.fingerprint().into()),
            ("fletcher.dim".into(), dim.to_string()),
            ("fletcher.normalized".into(), normalized.to_string()),
        ]
    }

    /// Whether vectors have unit length under these options.
    pub fn is_normalized(&self, options: &RequestOptions) -> bool {
        options.normalize.unwrap_or_else(|| self.0.embedder.model().head().normalized())
    }

    /// Checks that a request means the model that is served.
    ///
    /// # Errors
    /// When it names another one: vectors of another model are not what it asked for.
    pub fn check_model(&self, name: Option<&str>) -> Result<(), RequestError> {
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(()) };
        let bare = name.strip_suffix(":latest").unwrap_or(name);
        // A folder or hub name may be long; its last part is what clients are set up with.
        let last = |name: &'_ str| name.rsplit('/').next().unwrap_or_default().to_owned();
        let model = self.0.embedder.model().name();
        let own = [
            self.name().to_owned(),
            model.to_owned(),
            last(self.name()),
            last(model),
            "default".into(),
        ];
        let alias = |alias: &String| alias == "*" || alias == name || alias == bare;
        let is_own = |name: &str| own.iter().any(|own| own == name);
        if is_own(name) || is_own(bare) || self.0.config.aliases.iter().any(alias) {
            return Ok(());
        }
        let message = format!("the model `{name}` is not served here; `{}` is", self.name());
        Err(RequestError::NotFound { message })
    }

    /// The first of these prompts that the model has; the server's choice if it has none.
    pub fn prompt_for(&self, names: &[&str]) -> Option<Prompt> {
        let known = &self.0.embedder.model().prompts().by_name;
        let name = names.iter().find(|name| known.contains_key(**name))?;
        Some(Prompt::Named((*name).to_owned()))
    }

    /// Whether the queue has room. Looked at before a body is parsed, so that refusing is cheap.
    ///
    /// # Errors
    /// When the queue is full or closed.
    pub fn check_room(&self) -> Result<(), RequestError> {
        self.0.batcher.check_room()
    }

    /// Embeds texts.
    ///
    /// # Errors
    /// When the request as a whole cannot be served; see [`RequestError`].
    pub async fn embed(
        &self,
        inputs: Inputs,
        options: RequestOptions,
    ) -> Result<Answer, RequestError> {
        let (start, clock) = (Instant::now(), SystemTime::now());
        let deadline = start + options.deadline.unwrap_or(self.0.config.deadline);
        let dim = self.dim_for(&options)?;
        let count = inputs.len();
        if count > self.0.config.max_rows {
            let limit = self.0.config.max_rows;
            let message = format!("{count} texts are more than a request's limit of {limit}");
            return Err(RequestError::TooLarge { message });
        }
        let lane = options.lane.unwrap_or(match count <= self.0.config.interactive_rows {
            true => Lane::Interactive,
            false => Lane::Bulk,
        });
        // Refused now or not at all: tokenising takes a while when there is much to do.
        let mut reservation = match options.patient {
            true => None,
            false => Some(self.0.batcher.reserve(lane, deadline, self.about_tokens(&inputs))?),
        };
        let prepared = self.prepare(inputs, &options, lane).await?;
        let tokenize = start.elapsed();
        self.0.metrics.tokenize_seconds.observe(tokenize.as_secs_f64());

        let mut answer = Assembled::new(prepared, self.0.embedder.dim());
        let terms = Terms { options: &options, lane, deadline };
        self.fill(&mut answer, &terms, &mut reservation).await?;
        drop(reservation);
        self.0.metrics.queued(lane, answer.queue.as_secs_f64());
        if let Some(trace) = options.context.as_ref().and_then(|context| context.trace.as_ref()) {
            let texts = vec![("fletcher.texts", Value::Int(count as i64))];
            let lane = vec![("fletcher.lane", Value::Text(lane.name().into()))];
            let queued = clock + tokenize;
            trace.stage("tokenise", clock, tokenize, texts);
            trace.stage("queue", queued, answer.queue, lane);
            trace.stage("encode", queued + answer.queue, answer.inference, Vec::new());
        }
        let values = self.finish(&mut answer, &options, dim);
        let failed = answer.rows.iter().filter(|row| row.is_err()).count();
        self.0.metrics.count_rows("error", failed);
        self.0.metrics.count_rows("ok", count - failed);
        let answer = Answer {
            dim,
            values,
            rows: answer.rows,
            characters: answer.characters,
            timings: Timings {
                total: start.elapsed(),
                tokenize,
                queue: answer.queue,
                inference: answer.inference,
            },
        };
        if let Some(context) = &options.context {
            context.add(count, answer.tokens());
        }
        Ok(answer)
    }

    /// The encoder's state for every token of each text.
    ///
    /// # Errors
    /// When a text has no tokens, or the request cannot be served.
    pub async fn hidden(
        &self,
        inputs: Inputs,
        options: RequestOptions,
    ) -> Result<Hidden, RequestError> {
        let start = Instant::now();
        self.check_room()?;
        // These run beside the queue, so their number is bounded here.
        let permit = self
            .0
            .hidden
            .try_acquire()
            .map_err(|_| RequestError::Overloaded { retry_after: Duration::from_secs(1) })?;
        let deadline = start + options.deadline.unwrap_or(self.0.config.deadline);
        let prepared = self.prepare(inputs, &options, Lane::Interactive).await?;
        let tokenize = start.elapsed();
        let mut rows = Vec::with_capacity(prepared.rows.len());
        for (index, row) in prepared.rows.into_iter().enumerate() {
            let ids = row.map_err(|error| RequestError::Item { index, error })?.ids;
            if ids.is_empty() {
                let error = ItemError::Text { message: "the text has no tokens".into() };
                return Err(RequestError::Item { index, error });
            }
            rows.push(ids);
        }
        let embedder = self.0.embedder.clone();
        let states = blocking(move || {
            let state = |ids: &Vec<u32>| {
                // Between two texts, because what is in the encoder is not interrupted.
                if Instant::now() > deadline {
                    return Err(RequestError::Deadline);
                }
                let engine = |message| RequestError::Engine { message };
                let values = embedder.hidden(&[ids]).map_err(|e| engine(e.to_string()))?;
                match values.iter().all(|value| value.is_finite()) {
                    true => Ok((ids.len(), values)),
                    false => Err(engine("a state is not finite".into())),
                }
            };
            rows.iter().map(state).collect::<Result<Vec<_>, _>>()
        })
        .await??;
        drop(permit);
        if let Some(context) = &options.context {
            context.add(states.len(), states.iter().map(|(tokens, _)| tokens).sum());
        }
        let timings = Timings { total: start.elapsed(), tokenize, ..Timings::default() };
        Ok(Hidden { width: self.0.embedder.model().spec().hidden, states, timings })
    }

    /// The length of the vectors under these options.
    ///
    /// # Errors
    /// When the model's are shorter.
    pub fn dim_for(&self, options: &RequestOptions) -> Result<usize, RequestError> {
        let own = self.0.embedder.dim();
        match options.dimensions {
            None => Ok(own),
            Some(dim) if (1..=own).contains(&dim) => Ok(dim),
            Some(dim) => Err(RequestError::invalid(format!(
                "dimensions is {dim}, but must be from 1 to the model's {own}"
            ))),
        }
    }

    /// About how many tokens there will be: four bytes each, and two around each text.
    fn about_tokens(&self, inputs: &Inputs) -> usize {
        let most = self.0.embedder.model().max_tokens();
        (inputs.bytes() / 4).min(inputs.len() * most) + 2 * inputs.len()
    }

    async fn prepare(
        &self,
        inputs: Inputs,
        options: &RequestOptions,
        lane: Lane,
    ) -> Result<Prepared, RequestError> {
        let embed = EmbedOptions {
            prompt: options.prompt.clone().unwrap_or_else(|| self.0.config.prompt.clone()),
            overlong: options.overlong.unwrap_or(self.0.config.overlong),
        };
        let unnormalized = self.leaves_norm_out(options);
        let (service, cached) = (self.clone(), self.0.cache.is_some());
        let small = inputs.bytes() <= INLINE_BYTES;
        let work = move || {
            let prompt = service.0.embedder.prompt_text(&embed.prompt)?.to_owned();
            let texts: Vec<&str> = inputs.texts().collect();
            let (rows, skip) = match lane {
                Lane::Interactive => {
                    let tokens = service.0.embedder.tokenize(&texts, &embed)?;
                    (tokens.rows, tokens.skip)
                }
                Lane::Bulk => tokenize_in_parts(&service.0.embedder, &texts, &embed)?,
            };
            let mut tokenized = rows.into_iter();
            let missing = || ItemError::Text { message: "the text is null".into() };
            let mut row = |index: usize| match inputs.get(index) {
                Input::Text(_) => match tokenized.next() {
                    Some(row) => Ok(row?),
                    None => Err(missing()),
                },
                Input::Ids(ids) => {
                    service.0.embedder.check_ids(ids)?;
                    Ok(TokenIds { ids: ids.to_vec(), truncated: false, total: ids.len() })
                }
                Input::Null => Err(missing()),
            };
            let rows = (0..inputs.len()).map(&mut row).collect();
            let flags = [u8::from(unnormalized), embed.overlong as u8];
            let key = |index: usize| match inputs.get(index) {
                Input::Text(text) => {
                    Key::new(&[b"text", &flags, prompt.as_bytes(), text.as_bytes()])
                }
                Input::Ids(ids) => {
                    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
                    Key::new(&[b"ids", &flags, &bytes])
                }
                Input::Null => Key::new(&[b"null"]),
            };
            let keys = if cached { (0..inputs.len()).map(key).collect() } else { Vec::new() };
            let characters = texts.iter().map(|text| text.chars().count()).sum();
            Ok::<_, RequestError>(Prepared { rows, keys, skip, characters })
        };
        match (small, lane) {
            (true, _) => work(),
            (false, Lane::Interactive) => blocking(work).await?,
            (false, Lane::Bulk) => self.0.background.run(work).await?,
        }
    }

    /// Whether the model's last normalisation must be left out for these options.
    fn leaves_norm_out(&self, options: &RequestOptions) -> bool {
        options.normalize == Some(false) && self.0.embedder.model().head().normalized()
    }

    /// Finds or computes the vector of every row that has tokens.
    async fn fill(
        &self,
        answer: &mut Assembled,
        terms: &Terms<'_>,
        reservation: &mut Option<Reservation>,
    ) -> Result<(), RequestError> {
        let pending: Vec<usize> =
            (0..answer.rows.len()).filter(|&r| answer.rows[r].is_ok()).collect();
        let Some(cache) = &self.0.cache else {
            return self.compute(answer, &pending, terms, reservation).await;
        };
        let lookup = cache.look_up(&pending, &answer.keys);
        for (row, stored) in &lookup.found {
            answer.set(*row, stored);
        }
        let own: Vec<usize> = lookup.duties.iter().map(|(row, _)| *row).collect();
        self.compute(answer, &own, terms, reservation).await?;
        for (row, duty) in lookup.duties {
            // A duty without a vector is dropped, and passes to whoever waits for it.
            if let Some(stored) = answer.stored(row) {
                let _ = duty.insert(stored);
            }
        }
        for row in lookup.elsewhere {
            let key = answer.keys[row];
            let waited = tokio::time::timeout_at(terms.deadline.into(), cache.wait(&key)).await;
            match waited.map_err(|_| RequestError::Deadline)? {
                Ok(stored) => answer.set(row, &stored),
                Err(duty) => {
                    self.compute(answer, &[row], terms, reservation).await?;
                    if let Some(stored) = answer.stored(row) {
                        let _ = duty.insert(stored);
                    }
                }
            }
        }
        for (row, earlier) in lookup.repeated {
            match answer.stored(earlier) {
                Some(stored) => answer.set(row, &stored),
                None => answer.rows[row] = answer.rows[earlier].clone(),
            }
        }
        cache.publish();
        Ok(())
    }

    /// Sends rows through the queue.
    async fn compute(
        &self,
        answer: &mut Assembled,
        rows: &[usize],
        terms: &Terms<'_>,
        reservation: &mut Option<Reservation>,
    ) -> Result<(), RequestError> {
        if rows.is_empty() {
            return Ok(());
        }
        let work = Work {
            rows: rows.iter().map(|&row| std::mem::take(&mut answer.ids[row])).collect(),
            skip: answer.skip,
            unnormalized: self.leaves_norm_out(terms.options),
            lane: terms.lane,
            deadline: terms.deadline,
        };
        let ticket = match terms.options.patient {
            true => self.0.batcher.submit_when_room(work).await?,
            false => self.0.batcher.submit_admitted(work, reservation.take()),
        };
        let computed = ticket.wait(terms.deadline).await?;
        answer.merge(rows, computed);
        Ok(())
    }

    /// Cuts vectors to the dimensions asked for, and gives them unit length where they should.
    fn finish(&self, answer: &mut Assembled, options: &RequestOptions, dim: usize) -> Vec<f32> {
        let own = self.0.embedder.model().head().normalized();
        let normalize = self.is_normalized(options) && (!own || dim < answer.dim);
        let mut values = match dim == answer.dim {
            true => std::mem::take(&mut answer.values),
            false => {
                answer.values.chunks_exact(answer.dim).flat_map(|v| &v[..dim]).copied().collect()
            }
        };
        if normalize {
            for (row, vector) in answer.rows.iter().zip(values.chunks_exact_mut(dim)) {
                if row.is_ok() {
                    head::normalize(vector);
                }
            }
        }
        values
    }
}

/// What holds for all of a request's rows.
struct Terms<'a> {
    options: &'a RequestOptions,
    lane: Lane,
    deadline: Instant,
}

/// Tokenises on the calling thread and on those of its pool that are free.
fn tokenize_in_parts(
    embedder: &Embedder,
    texts: &[&str],
    options: &EmbedOptions,
) -> Result<(Vec<Result<TokenIds, TextError>>, usize), EmbedError> {
    // So small that the embedder does not hand them to its own threads.
    let parts = texts.par_chunks(INLINE_TEXTS).map(|part| embedder.tokenize(part, options));
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    let skip = parts.first().map_or(0, |part| part.skip);
    Ok((parts.into_iter().flat_map(|part| part.rows).collect(), skip))
}

/// Runs what takes a while where it does not hold up the connections.
pub(crate) async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, RequestError> {
    let lost = |_| RequestError::Engine { message: "a task panicked; this is a bug".into() };
    tokio::task::spawn_blocking(work).await.map_err(lost)
}
