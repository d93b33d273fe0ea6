//! Threads that share one piece of work: for a single text, whose latency every core should
//! shorten.
//!
//! Spawning a thread, or waking one that sleeps, takes as long as a small encoder needs for a short
//! text. So the helpers of a [`Team`] stay, and before they sleep they look out for the next call
//! for a while that is as long as a call. Members meet at a [`Barrier`] that does not sleep either.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, TryLockError};
use std::thread::{self, JoinHandle, Thread};

/// Rounds of looking before the thread lets others run: some ten microseconds.
const LOOKS: usize = 2_000;
/// Times that a helper lets others run before it sleeps: about as long as a short text takes.
const YIELDS: usize = 50;
/// Looks within which a helper that looks out, and is not kept from it, shows that it does.
const BEATS: usize = 16;

/// A call's work: the member's number tells its part.
type Work<'a> = dyn Fn(usize) + Sync + 'a;

/// What the leader and its helpers share.
struct State {
    /// The work of the present call. Written by the leader while no helper runs.
    work: UnsafeCell<Option<*const Work<'static>>>,
    /// Helpers that have not finished the present call.
    running: AtomicUsize,
    /// What a helper's panic said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    quit: AtomicBool,
}

// SAFETY: `work` is written by the leader only while `running` is 0, and read by a helper only
// between a change of its `calls` and its decrement of `running`; both are ordered by those
// atomics. What it points to is `Sync`.
unsafe impl Sync for State {}
// SAFETY: as above.
unsafe impl Send for State {}

/// A leader's helpers. They start with the first call.
pub struct Team {
    members: usize,
    state: Arc<State>,
    /// Held by the leader of the present call.
    leader: Mutex<()>,
    helpers: OnceLock<Vec<Helper>>,
}

struct Helper {
    handle: Option<JoinHandle<()>>,
    thread: Thread,
    bell: Arc<Bell>,
}

/// How a leader gets one helper's attention.
#[derive(Default)]
struct Bell {
    /// Counts the calls that the helper is needed for.
    calls: AtomicUsize,
    /// Whether it has to be woken.
    asleep: AtomicBool,
    /// Asks it to look out for a call, though there is none yet.
    roused: AtomicBool,
    /// Counts its looks.
    beats: AtomicUsize,
}

impl Bell {
    /// The helper has looked.
    fn beat(&self) {
        // Only the helper writes.
        let beats = self.beats.load(Ordering::Relaxed).wrapping_add(1);
        self.beats.store(beats, Ordering::Relaxed);
    }

    /// Whether the helper is looking.
    fn beats(&self) -> bool {
        let before = self.beats.load(Ordering::Relaxed);
        (0..BEATS).any(|_| {
            spin_loop();
            self.beats.load(Ordering::Relaxed) != before
        })
    }
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Team({})", self.members)
    }
}

impl Team {
    /// A team of `members`, the caller of [`Self::try_run`] among them.
    pub fn new(members: usize) -> Self {
        let state = Arc::new(State {
            work: UnsafeCell::new(None),
            running: AtomicUsize::new(0),
            panic: Mutex::new(None),
            quit: AtomicBool::new(false),
        });
        Self { members: members.max(1), state, leader: Mutex::new(()), helpers: OnceLock::new() }
    }

    /// The most members that a call can have.
    pub fn members(&self) -> usize {
        self.members
    }

    /// Whether the helpers of a call with so many members look out for one this very moment, so
    /// that it begins at once.
    pub fn looks_out(&self, members: usize) -> bool {
        let helpers = self.helpers.get().map_or(&[][..], |helpers| helpers);
        let helpers = members.checked_sub(1).and_then(|count| helpers.get(..count));
        helpers.is_some_and(|helpers| helpers.iter().all(|helper| helper.bell.beats()))
    }

    /// Has the helpers of a call with so many members look out for one soon.
    pub fn rouse(&self, members: usize) {
        let helpers = self.helpers.get_or_init(|| self.start());
        for helper in helpers.iter().take(members.saturating_sub(1)) {
            if helper.bell.asleep.load(Ordering::SeqCst) {
                helper.bell.roused.store(true, Ordering::SeqCst);
                helper.thread.unpark();
            }
        }
    }

    /// Runs `work(0)` on this thread and `work(1)` to `work(members - 1)` on helpers, all at the
    /// same time, and returns when all have. Returns `false`, having run nothing, while another
    /// call is going on, or when there are not so many threads to be had.
    ///
    /// # Panics
    /// When a member panics, after all have ended.
    pub fn try_run(&self, members: usize, work: &Work<'_>) -> bool {
        let _leader = match self.leader.try_lock() {
            Ok(leader) => leader,
            // An earlier call panicked; it had ended by then.
            Err(TryLockError::Poisoned(leader)) => leader.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let helpers = self.helpers.get_or_init(|| self.start());
        let Some(helpers) = members.checked_sub(1).and_then(|count| helpers.get(..count)) else {
            return false;
        };
        let state = &*self.state;
        let work_ptr: *const Work<'_> = work;
        // SAFETY: only the lifetime changes. Helpers use the pointer before they count `running`
        // down, and this function, panicking or not, returns only when that is 0.
        let erased =
            unsafe { std::mem::transmute::<*const Work<'_>, *const Work<'static>>(work_ptr) };
        // SAFETY: `running` is 0 and the leader's lock is held, so nobody else looks at it.
        unsafe { *state.work.get() = Some(erased) }
        state.running.store(helpers.len(), Ordering::Relaxed);
        for helper in helpers {
            helper.bell.calls.fetch_add(1, Ordering::SeqCst);
            if helper.bell.asleep.load(Ordering::SeqCst) {
                helper.thread.unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| work(0)));
        wait_until(|| state.running.load(Ordering::Acquire) == 0);
        let theirs = state.panic.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
        true
    }

    /// As many helpers as the system grants.
    fn start(&self) -> Vec<Helper> {
        let start = |index: usize| {
            let (state, bell) = (self.state.clone(), Arc::new(Bell::default()));
            let own = bell.clone();
            let name = format!("fletcher-team-{index}");
            let builder = thread::Builder::new().name(name);
            let handle = builder.spawn(move || help(&state, &own, index)).ok()?;
            let thread = handle.thread().clone();
            Some(Helper { handle: Some(handle), thread, bell })
        };
        (1..self.members).map_while(start).collect()
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.state.quit.store(true, Ordering::SeqCst);
        for helper in self.helpers.get_mut().into_iter().flatten() {
            helper.thread.unpark();
            // A helper catches its panics, so it ends well.
            let _ = helper.handle.take().map(JoinHandle::join);
        }
    }
}

/// A helper's life.
fn help(state: &State, bell: &Bell, index: usize) {
    let mut seen = 0;
    loop {
        let news =
            || bell.calls.load(Ordering::SeqCst) != seen || state.quit.load(Ordering::SeqCst);
        let looks = || {
            bell.beat();
            news()
        };
        if !look_out(looks) {
            bell.asleep.store(true, Ordering::SeqCst);
            // Looked at again behind the flag: a leader that missed it has counted before.
            while !news() && !bell.roused.swap(false, Ordering::SeqCst) {
                thread::park();
            }
            bell.asleep.store(false, Ordering::SeqCst);
            if !news() {
                continue;
            }
        }
        if state.quit.load(Ordering::SeqCst) {
            return;
        }
        seen = seen.wrapping_add(1);
        // SAFETY: the count has changed and `running` still counts this helper, so the leader has
        // written the work and waits.
        if let Some(work) = unsafe { *state.work.get() } {
            // SAFETY: the leader keeps the work alive until `running` is 0.
            let result = catch_unwind(AssertUnwindSafe(|| unsafe { (*work)(index) }));
            if let Err(panic) = result {
                *state.panic.lock().unwrap_or_else(|e| e.into_inner()) = Some(panic);
            }
        }
        state.running.fetch_sub(1, Ordering::Release);
    }
}

/// Looks for a while whether `done`; tells whether it was.
fn look_out(done: impl Fn() -> bool) -> bool {
    for _ in 0..YIELDS {
        for _ in 0..LOOKS {
            if done() {
                return true;
            }
            spin_loop();
        }
        thread::yield_now();
    }
    false
}

/// Looks until `done`.
fn wait_until(done: impl Fn() -> bool) {
    while !look_out(&done) {}
}

/// Where the members of a call meet.
#[derive(Debug)]
pub struct Barrier {
    members: usize,
    arrived: OwnLines<AtomicUsize>,
    /// Looked at by all who wait, and so not beside what those that come write.
    round: OwnLines<AtomicUsize>,
    broken: AtomicBool,
}

/// A value that shares no cache line, nor the pair of lines that some CPUs fetch together.
#[derive(Debug)]
#[repr(align(128))]
struct OwnLines<T>(T);

impl Barrier {
    /// For so many members.
    pub fn new(members: usize) -> Self {
        Self {
            members,
            arrived: OwnLines(AtomicUsize::new(0)),
            round: OwnLines(AtomicUsize::new(0)),
            broken: AtomicBool::new(false),
        }
    }

    /// Waits until every member has come. What they wrote before is seen behind.
    ///
    /// # Panics
    /// When a member has [broken](Self::guard) the barrier.
    pub fn wait(&self) {
        let round = self.round.0.load(Ordering::Acquire);
        if self.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.members {
            self.arrived.0.store(0, Ordering::Relaxed);
            self.round.0.fetch_add(1, Ordering::Release);
            return;
        }
        wait_until(|| {
            self.round.0.load(Ordering::Acquire) != round || self.broken.load(Ordering::Relaxed)
        });
        assert!(!self.broken.load(Ordering::Relaxed), "another member of the team panicked");
    }

    /// Breaks the barrier when it is dropped by a panic, so that the others do not wait forever.
    pub fn guard(&self) -> impl Drop + '_ {
        BreakOnPanic(self)
    }
}

struct BreakOnPanic<'a>(&'a Barrier);

impl Drop for BreakOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.broken.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_run_once_and_meet() {
        let team = Team::new(3);
        for call in 0..200 {
            let members = 1 + call % 3;
            let (counts, barrier) = ([const { AtomicUsize::new(0) }; 3], Barrier::new(members));
            let ran = team.try_run(members, &|index| {
                for round in 1..=5 {
                    counts[index].fetch_add(1, Ordering::Relaxed);
                    barrier.wait();
                    for count in &counts[..members] {
                        assert!(count.load(Ordering::Relaxed) >= round);
                    }
                    barrier.wait();
                }
            });
            assert!(ran);
            let counts = counts.map(|count| count.into_inner());
            assert_eq!(counts, std::array::from_fn(|index| if index < members { 5 } else { 0 }));
        }
        assert!(!team.try_run(4, &|_| {}));
    }

    #[test]
    fn roused_helpers_look_out_and_sleep_again() {
        let team = Team::new(2);
        assert!(!team.looks_out(2), "no helper has started");
        for _ in 0..2 {
            // Whoever has just fallen asleep may miss it.
            wait_until(|| {
                team.rouse(2);
                team.looks_out(2)
            });
            assert!(!team.looks_out(3), "there is one helper");
            assert!(team.try_run(2, &|_| {}));
            wait_until(|| !team.looks_out(2));
        }
    }

    #[test]
    fn a_second_call_is_refused_while_one_goes_on() {
        let team = Team::new(2);
        assert!(team.try_run(1, &|_| assert!(!team.try_run(1, &|_| {}))));
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_lives_on() {
        let team = Team::new(2);
        for bad in 0..2 {
            let barrier = Barrier::new(2);
            let call = || {
                team.try_run(2, &|index| {
                    let _guard = barrier.guard();
                    assert_ne!(index, bad, "as told");
                    barrier.wait();
                })
            };
            assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
        }
        assert!(team.try_run(2, &|_| {}));
    }
}
