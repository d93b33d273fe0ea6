//! One text on all cores: its tokens are shared out, so that latency, too, uses the whole machine.
//!
//! Every operation but attention looks at one token, so each member of the team takes its part of
//! the tokens through the network in an arena of its own. For attention it hands its keys and
//! values over, the team meets, and each member takes over what the others have and answers its own
//! queries: one meeting a layer, because two buffers take turns. A token is computed as it would be
//! alone, to the bit: no sum is split.
//!
//! Nothing that a member writes again and again is read by another but what it hands over, past the
//! caches ([`fletcher_kernels::RowCopy`]): on a machine whose cores have no common cache, writing
//! what others had read was a third of a text's time.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use fletcher_core::backend::{Backend, BackendError, Epilogue, LinearOp, Slot};
use fletcher_core::encoder::{EncoderWeights, LayerWeights};
use fletcher_core::pack::PackedBatch;
use fletcher_kernels::{Barrier, Format};

use super::Cpu;
use super::arena::{Arena, State};
use super::encode::in_place;

/// A member with fewer tokens would keep the multipliers waiting for each other.
const MEMBER_TOKENS: usize = 4;
/// Operations below which one core is done before a sleeping one is awake: about 150 microseconds
/// of a core of 2022, in each number format. Waking one took up to 300 on a virtual machine.
fn least_work(format: Format) -> f64 {
    match format {
        Format::F32 => 15e6,
        Format::Bf16 => 30e6,
        Format::Int8 => 60e6,
    }
}

/// Helpers that look out are not waited for: a fraction of that work is worth sharing with them.
const LEAST_WORK_AWAKE: f64 = 1.0 / 8.0;
/// Texts that come this soon behind each other are worth a helper's looking out for the next one.
const CLOSE: Duration = Duration::from_micros(500);

/// But this often at most: on a busy machine it finds no core to do it on.
const ROUSE_EVERY: Duration = Duration::from_millis(10);

/// How fast texts that are alone follow each other; times are microseconds since the start.
#[derive(Debug)]
pub(super) struct Pace {
    start: Instant,
    /// When the last text was done.
    last_us: AtomicU64,
    /// When helpers may be roused again.
    rouse_us: AtomicU64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { start: Instant::now(), last_us: AtomicU64::new(0), rouse_us: AtomicU64::new(0) }
    }
}

impl Pace {
    fn now_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    fn done(&self) {
        self.last_us.store(self.now_us(), Ordering::Relaxed);
    }

    /// Whether helpers should look out for the next text; not true again for a while.
    fn rouses(&self) -> bool {
        let now = self.now_us();
        let since = now.saturating_sub(self.last_us.load(Ordering::Relaxed));
        let rouses =
            since < CLOSE.as_micros() as u64 && now >= self.rouse_us.load(Ordering::Relaxed);
        if rouses {
            let next = now + ROUSE_EVERY.as_micros() as u64;
            self.rouse_us.store(next, Ordering::Relaxed);
        }
        rouses
    }
}

/// More members would meet for longer than they compute.
pub(super) const MEMBERS_MAX: usize = 16;

/// The member that the caller is.
const LEADER: usize = 0;

/// What the members of the team compute in.
#[derive(Debug)]
pub(super) struct Shares {
    arenas: Vec<Mutex<Arena>>,
    outboxes: Vec<Outbox>,
}

/// What a member has for the others.
#[derive(Debug)]
struct Outbox {
    /// Keys and values of its tokens; layers take turns.
    keys_values: [RwLock<State>; 2],
    /// Their states at the end, for the leader.
    hidden: RwLock<State>,
}

impl Cpu {
    /// The encoder: alone on this thread, or with the team for one text while nothing else is going
    /// on. It leaves the states of the `chosen` tokens, one of each sequence, or of all.
    pub(super) fn encode_alone_or_shared(
        &self,
        arena: &mut Arena,
        model: &EncoderWeights<Self>,
        batch: &PackedBatch,
        chosen: Option<&[usize]>,
    ) -> Result<(), BackendError> {
        let others = self.active.fetch_add(1, Ordering::Relaxed);
        let members = self.team.members().min(batch.tokens() / MEMBER_TOKENS);
        let worth = || self.is_worth_sharing(model.spec.flops(batch.tokens()), members);
        let shared = match batch.rows() == 1 && members > 1 && others == 0 && worth() {
            true => {
                let chosen = chosen.and_then(|chosen| chosen.first().copied());
                self.encode_shared(arena, model, (batch, chosen), members)
            }
            false => Ok(false),
        };
        let result = match shared {
            Ok(true) => Ok(()),
            Ok(false) => self.encode_alone(arena, model, batch, chosen),
            Err(error) => Err(error),
        };
        if batch.rows() == 1 {
            self.pace.done();
        }
        self.active.fetch_sub(1, Ordering::Relaxed);
        result
    }

    /// Whether a text of so many operations is done sooner by the team. One that is too small to
    /// wake the helpers for is shared while they look out, which they are made to when texts come
    /// one right behind the other.
    fn is_worth_sharing(&self, operations: f64, members: usize) -> bool {
        let least = least_work(self.format);
        if self.shares_small || operations >= least {
            return true;
        }
        if operations < least * LEAST_WORK_AWAKE {
            return false;
        }
        let looks_out = self.team.looks_out(members);
        if !looks_out && self.pace.rouses() {
            self.team.rouse(members);
        }
        looks_out
    }

    /// Returns whether the team was free.
    fn encode_shared(
        &self,
        arena: &mut Arena,
        model: &EncoderWeights<Self>,
        (batch, chosen): (&PackedBatch, Option<usize>),
        members: usize,
    ) -> Result<bool, BackendError> {
        let mut shares = match arena.shares.take() {
            Some(shares) => shares,
            None => Box::new(self.shares(arena)?),
        };
        let tokens = batch.tokens();
        let start = |member: usize| tokens * member / members;
        let parts: Vec<_> = (0..members).map(|member| start(member)..start(member + 1)).collect();
        let barrier = Barrier::new(members);
        let failed: Mutex<Result<(), BackendError>> = Mutex::new(Ok(()));
        let ran = self.team.try_run(members, &|member| {
            let _guard = barrier.guard();
            // Its own alone; poisoned only when an earlier call panicked, which left plain numbers.
            let mut own = shares.arenas[member].lock().unwrap_or_else(|e| e.into_inner());
            let outboxes = &shares.outboxes[..members];
            let part = Part { model, batch, chosen, member, parts: &parts, outboxes };
            if let Err(error) = self.encode_part(&mut own, &part, &barrier) {
                *failed.lock().unwrap_or_else(|e| e.into_inner()) = Err(error);
            }
        });
        failed.into_inner().unwrap_or_else(|e| e.into_inner())?;
        if ran {
            let columns = 0..arena.spec.hidden;
            arena.tokens = if chosen.is_some() { 1 } else { tokens };
            let hidden = &mut arena.slot(Slot::Hidden).state;
            let wanted = |part: &Range<usize>| match chosen {
                Some(token) => 0..usize::from(part.contains(&token)),
                None => part.clone(),
            };
            let own = shares.arenas[LEADER].get_mut().unwrap_or_else(|e| e.into_inner());
            let own = &own.slot(Slot::Hidden).state;
            hidden.take_over(wanted(&parts[LEADER]), columns.clone(), own);
            for (part, outbox) in parts.iter().zip(&mut shares.outboxes).skip(LEADER + 1) {
                let theirs = outbox.hidden.get_mut().unwrap_or_else(|e| e.into_inner());
                hidden.take_over(wanted(part), columns.clone(), theirs);
            }
        }
        arena.shares = Some(shares);
        Ok(ran)
    }

    fn shares(&self, arena: &Arena) -> Result<Shares, BackendError> {
        let (spec, max_tokens) = (&arena.spec, arena.max_tokens);
        // Any number of members from two on may share a text, so each must hold half of one.
        let own = max_tokens.div_ceil(2);
        let state = |narrow, columns| Ok(RwLock::new(State::new(narrow, own, columns)?));
        let keys_values = || state(self.format != Format::F32, 2 * spec.context_width());
        let members = 0..self.team.members();
        let arenas = members.clone().map(|_| {
            Ok(Mutex::new(Arena::new(&self.kernels, self.format, spec, own, max_tokens)?))
        });
        let outboxes = members.map(|_| {
            let keys_values = [keys_values()?, keys_values()?];
            Ok(Outbox { keys_values, hidden: state(false, spec.hidden)? })
        });
        let arenas = arenas.collect::<Result<_, BackendError>>()?;
        Ok(Shares { arenas, outboxes: outboxes.collect::<Result<_, BackendError>>()? })
    }

    /// One member's tokens through all layers. A member that fails still comes to every meeting.
    fn encode_part(
        &self,
        own: &mut Arena,
        part: &Part<'_>,
        barrier: &Barrier,
    ) -> Result<(), BackendError> {
        let (model, tokens) = (part.model, part.tokens());
        own.tokens = tokens.len();
        self.embed_tokens(own, &model.embedding, part.batch, tokens.clone());
        let mut wanted = tokens.clone();
        let mut result = self.norm(own, in_place(&model.embedding_norm));
        for (index, layer) in model.layers.iter().enumerate() {
            let turn = index % 2;
            result = result.and_then(|()| self.hand_over(own, part, layer, turn));
            barrier.wait();
            wanted = part.wanted(index);
            if !wanted.is_empty() {
                let queries = wanted.clone();
                result = result.and_then(|()| self.answer(own, part, layer, (turn, queries)));
            }
        }
        result?;
        if wanted.is_empty() {
            return Ok(());
        }
        if let Some(norm) = &model.final_norm {
            self.norm(own, in_place(norm))?;
        }
        if part.member != LEADER {
            let mut outbox = part.outbox().hidden.write().unwrap_or_else(|e| e.into_inner());
            let columns = 0..own.spec.hidden;
            let rows = 0..own.tokens;
            own.slot(Slot::Hidden).state.hand_over(rows, columns, &mut outbox);
        }
        Ok(())
    }

    /// The member's queries, keys and values: in its arena, where all of the text's have their
    /// places, and keys and values for the others.
    fn hand_over(
        &self,
        own: &mut Arena,
        part: &Part<'_>,
        layer: &LayerWeights<Self>,
        turn: usize,
    ) -> Result<(), BackendError> {
        let tokens = part.tokens();
        let input = self.pre_norm(own, part.model, layer.attention_norm.as_ref())?;
        let (weight, output, epilogue) = (&layer.qkv, Slot::Qkv, Epilogue::Store);
        self.linear_at(own, LinearOp { weight, input, output, epilogue }, tokens.start);
        if let Some(rotary) = &layer.rotary {
            self.rotate(own, rotary, tokens.start, tokens.clone());
        }
        let outbox = &part.outbox().keys_values[turn];
        let mut outbox = outbox.write().unwrap_or_else(|e| e.into_inner());
        let columns = keys_values(own);
        own.slot(Slot::Qkv).state.hand_over(tokens, columns, &mut outbox);
        Ok(())
    }

    /// What follows from all keys and values for queries of the member's: the rest of the layer.
    fn answer(
        &self,
        own: &mut Arena,
        part: &Part<'_>,
        layer: &LayerWeights<Self>,
        (turn, queries): (usize, Range<usize>),
    ) -> Result<(), BackendError> {
        let columns = keys_values(own);
        let qkv = &mut own.slot(Slot::Qkv).state;
        for (member, (tokens, outbox)) in part.parts.iter().zip(part.outboxes).enumerate() {
            if member != part.member {
                let theirs = outbox.keys_values[turn].read().unwrap_or_else(|e| e.into_inner());
                qkv.take_over(tokens.clone(), columns.clone(), &theirs);
            }
        }
        let (keys, answers) = (0..part.batch.tokens(), 0..queries.len());
        self.attend_in(own, part.model, layer, (keys, queries.clone(), answers));
        if queries != part.tokens() {
            let first = part.tokens().start;
            own.keep(&queries.map(|token| token - first).collect::<Vec<_>>());
        }
        self.attention_output(own, part.model, layer)?;
        self.feed_forward_block(own, part.model, layer)
    }
}

/// One member's part of a text.
struct Part<'a> {
    model: &'a EncoderWeights<Cpu>,
    /// One text.
    batch: &'a PackedBatch,
    /// The token whose last state is wanted; `None`: all.
    chosen: Option<usize>,
    member: usize,
    /// Every member's tokens.
    parts: &'a [Range<usize>],
    /// Every member's.
    outboxes: &'a [Outbox],
}

impl Part<'_> {
    /// The member's tokens.
    fn tokens(&self) -> Range<usize> {
        self.parts[self.member].clone()
    }

    /// Those of the member's tokens whose states behind a layer somebody reads.
    fn wanted(&self, layer: usize) -> Range<usize> {
        match self.chosen.filter(|_| layer + 1 == self.model.layers.len()) {
            Some(token) if self.tokens().contains(&token) => token..token + 1,
            Some(_) => 0..0,
            None => self.tokens(),
        }
    }

    /// The member's outbox.
    fn outbox(&self) -> &Outbox {
        &self.outboxes[self.member]
    }
}

/// The columns of keys and values, behind those of queries.
fn keys_values(arena: &Arena) -> Range<usize> {
    arena.spec.context_width()..arena.spec.qkv_width()
}
