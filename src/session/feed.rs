//! How sessions read: within their limits, in pieces, several of them together.

use smallvec::{SmallVec, smallvec};

use super::{Overflow, Position, Session};
use crate::error::{Error, Result};
use crate::model::sequence::{Failure, LogitRows, SequenceInput};
use crate::model::{Bolmo, MAX_BATCH, Model, NotFinite, Sequence, SequenceState, Trace};
use crate::ops::ScratchVec;
use crate::sampler::Sampler;
use crate::vocab::{BOS, Id};

/// Most rows of a pass that several sessions share, so that what a pass needs in memory stays small.
const MAX_ROWS: usize = 1024;

/// What one session reads.
pub(crate) struct FeedRequest<'a> {
    pub session: &'a mut Session,
    /// What is left to read.
    ids: &'a [Id],
    /// How many of them the present pass reads.
    n_now: usize,
    logits: LogitRows,
    trace: Option<&'a mut Trace>,
    show: Option<&'a mut dyn FnMut(Position<'_>)>,
    sampler: Option<&'a mut Sampler>,
    /// What will choose after this, if the text goes on: by it can be drafted.
    next_sampler: Option<&'a Sampler>,
    /// See [`SequenceInput`].
    draft: Option<usize>,
    draft_room: usize,
    chosen: Option<Id>,
    /// Whether limits hold and another thread can stop it. Going back must not be stopped halfway.
    bounded: bool,
    /// Whether the ids were written by the model.
    written: bool,
    /// Length of the session before.
    old_len: usize,
    result: Result<()>,
}

impl<'a> FeedRequest<'a> {
    /// Of ids within the session's limits; the logits after the last.
    pub fn new(session: &'a mut Session, ids: &'a [Id]) -> Self {
        let result = session.model.check_ids(ids, false);
        FeedRequest {
            old_len: session.len(),
            session,
            ids,
            n_now: 0,
            logits: LogitRows::Last,
            trace: None,
            show: None,
            sampler: None,
            next_sampler: None,
            draft: None,
            draft_room: 0,
            chosen: None,
            bounded: true,
            written: false,
            result,
        }
    }

    /// The ids were written: where ids carry flags, with those that they were chosen with.
    pub fn written(self) -> Self {
        FeedRequest {
            written: true,
            result: self.session.model.check_ids(self.ids, true),
            ..self
        }
    }

    /// Of ids that the session has read before.
    pub(super) fn again(session: &'a mut Session, ids: &'a [Id]) -> Self {
        FeedRequest {
            bounded: false,
            ..FeedRequest::new(session, ids)
        }
    }

    /// Shows what each position gave.
    pub(super) fn showing(self, show: &'a mut dyn FnMut(Position<'_>)) -> Self {
        FeedRequest {
            logits: LogitRows::All,
            show: Some(show),
            ..self
        }
    }

    /// Records the intermediate tensors.
    pub(super) fn traced(self, trace: &'a mut Trace) -> Self {
        FeedRequest {
            trace: Some(trace),
            ..self
        }
    }

    /// Chooses the id that comes next, the first of at most `left`. `draft` is how many bytes are drafted at
    /// a time; `None`: as many as pays.
    pub fn choosing(self, sampler: &'a mut Sampler, draft: Option<usize>, left: usize) -> Self {
        FeedRequest {
            sampler: Some(sampler),
            draft,
            draft_room: left,
            ..self
        }
    }

    /// Drafts what a sampler would go on with.
    #[cfg(feature = "capi")]
    pub fn drafting(self, sampler: &'a Sampler, draft: Option<usize>) -> Self {
        FeedRequest {
            next_sampler: Some(sampler),
            draft,
            draft_room: usize::MAX, // how much more will be asked for is not known
            ..self
        }
    }

    /// Reads all ids. On an error the session is as it was before, unless the context had slid.
    pub fn run(self) -> Result<()> {
        let mut requests = [self];
        run_together(&mut requests);
        let [request] = requests;
        request.finish().map(|_| ())
    }

    /// What came of it: the id chosen, if there is a sampler.
    pub fn finish(self) -> Result<Option<Id>> {
        if self.result.is_err() && self.bounded && self.session.len() > self.old_len {
            self.session.rewind(self.old_len)?;
        }
        self.result?;
        let session = self.session;
        let choose = |sampler: &mut Sampler| sampler.sample(session.logits(), session.ids());
        Ok(self.chosen.or_else(|| self.sampler.map(choose)))
    }

    fn goes_on(&self) -> bool {
        self.result.is_ok() && !self.ids.is_empty()
    }

    /// Decides how many ids the next pass reads, at most `share`.
    fn begin_pass(&mut self, share: usize) -> Result<()> {
        let session = &mut *self.session;
        self.n_now = self.ids.len().min(share);
        if !self.bounded {
            return Ok(());
        }
        if session.canceller().withdraw() {
            return Err(Error::Cancelled);
        }
        let Overflow::Slide { keep } = session.options.overflow else {
            return session.check_bytes(session.len() + self.ids.len());
        };
        loop {
            self.n_now = self.ids.len().min(share).min(session.room());
            if self.n_now > 0 {
                return Ok(());
            }
            session.slide(keep)?;
        }
    }

    fn part(&mut self) -> SequenceInput<'_> {
        let more = self.n_now < self.ids.len();
        let session = &mut *self.session;
        let draft_room = self.draft_room.min(session.room());
        let SequenceState::Blt(state) = &mut session.state else {
            unreachable!("the model is a BLT");
        };
        SequenceInput {
            state,
            ids: &self.ids[..self.n_now],
            logits: match self.logits {
                LogitRows::Last if more => LogitRows::None,
                logits => logits,
            },
            trace: self.trace.as_deref_mut(),
            sampler: (self.sampler.as_deref().or(self.next_sampler)).filter(|_| !more),
            draft: self.draft,
            draft_room,
            chosen: None,
        }
    }

    fn sequence(&mut self) -> Sequence<'_> {
        let more = self.n_now < self.ids.len();
        let SequenceState::Bolmo(state, _) = &mut self.session.state else {
            unreachable!("the model is a Bolmo model");
        };
        Sequence {
            state,
            ids: &self.ids[..self.n_now],
            written: self.written,
            logits: match self.logits {
                LogitRows::Last if more => LogitRows::None,
                logits => logits,
            },
            trace: self.trace.as_deref_mut(),
        }
    }

    /// Takes the logits of the pass, and the id that was chosen with them.
    fn end_pass(&mut self, logits: &[f32], chosen: Option<Id>) -> Result<()> {
        self.ids = &self.ids[self.n_now..];
        let session = &mut *self.session;
        session.state.count_entropies();
        let n_closed = session.state.n_closed();
        if n_closed > session.max_patches {
            return Err(Error::ContextFull {
                unit: "patches",
                limit: session.max_patches,
                needed: n_closed,
            });
        }
        if let (Some(sampler), Some(_)) = (&mut self.sampler, chosen) {
            self.chosen = chosen;
            sampler.skip();
        }
        let rows = logits.chunks_exact(session.model.config().n_logits());
        let first = session.state.n_settled() - rows.len();
        if let (Some(last), true) = (
            rows.clone().next_back(),
            first + rows.len() == session.len() || self.show.is_none(),
        ) {
            session.logits.clear();
            session.logits.extend_from_slice(last);
        }
        if let Some(show) = &mut self.show {
            for (position, logits) in (first..).zip(rows) {
                show(Position {
                    position,
                    id: session.ids()[position],
                    entropy: session.entropies()[position],
                    next_starts_patch: (session.patch_starts())
                        .binary_search(&(position + 1))
                        .is_ok(),
                    logits,
                });
            }
            if self.ids.is_empty() {
                return session.guess_logits();
            }
        }
        Ok(())
    }
}

/// Reads the ids of all, every pass for all of them at once.
pub(crate) fn run_together(requests: &mut [FeedRequest<'_>]) {
    let Some(first) = requests.first() else {
        return;
    };
    let model = first.session.model.clone();
    for request in requests.iter_mut() {
        if !request.session.model.is_same(&model) {
            let message =
                "expected all of one model, with the same threads and device, found others";
            request.result = Err(Error::argument("sessions", message));
        }
    }
    loop {
        let n_going = requests.iter().filter(|r| r.goes_on()).count();
        let share = (MAX_ROWS / n_going.max(1)).clamp(1, MAX_BATCH);
        for request in requests.iter_mut().filter(|r| r.goes_on()) {
            request.result = request.begin_pass(share);
        }
        if !requests.iter().any(|r| r.goes_on()) {
            return;
        }
        let going = requests.iter_mut().filter(|r| r.goes_on());
        let (result, chosen) = match model.bolmo() {
            None => pass(&model, going),
            Some(bolmo) => (
                bolmo_pass(&model, bolmo, going),
                smallvec![None; requests.len()],
            ),
        };
        let mut going = requests.iter_mut().filter(|r| r.goes_on());
        match result {
            Ok(logits) => {
                for (request, (logits, chosen)) in going.zip(logits.into_iter().zip(chosen)) {
                    request.result = request.end_pass(&logits, chosen);
                }
            }
            // The others try again without it.
            Err(Failure::Sequence(i, error)) => {
                let to_blame = going.nth(i).expect("there is a request for each part");
                to_blame.result = Err(error);
            }
            Err(Failure::Device(message)) => {
                for request in going {
                    request.result = Err(Error::Device(message.clone()));
                }
            }
        }
    }
}

/// The logits of each request of a pass.
type Logits<'m> = SmallVec<[ScratchVec<'m, f32>; 1]>;

/// A pass of a BLT; also the ids that a GPU has chosen.
fn pass<'m, 'a: 'r, 'r>(
    model: &'m Model,
    requests: impl Iterator<Item = &'r mut FeedRequest<'a>>,
) -> (Result<Logits<'m>, Failure>, SmallVec<[Option<Id>; 1]>) {
    let mut parts: SmallVec<[SequenceInput<'_>; 1]> = requests.map(|r| r.part()).collect();
    let result = model.forward(&mut parts);
    let chosen = parts.iter().map(|part| part.chosen).collect();
    (result, chosen)
}

/// A pass of a Bolmo model. On an error all states are as they were.
fn bolmo_pass<'m, 'a: 'r, 'r>(
    model: &'m Model,
    bolmo: &'m Bolmo,
    requests: impl Iterator<Item = &'r mut FeedRequest<'a>>,
) -> Result<Logits<'m>, Failure> {
    let mut requests: SmallVec<[&mut FeedRequest<'a>; 1]> = requests.collect();
    let before: SmallVec<[usize; 1]> = requests.iter().map(|r| r.session.len()).collect();
    let mut sequences: SmallVec<[Sequence<'_>; 1]> =
        requests.iter_mut().map(|r| r.sequence()).collect();
    let result = bolmo.forward(model.compute(), &mut sequences);
    drop(sequences);
    result.map_err(
        |NotFinite {
             part,
             what,
             position,
         }| {
            for (request, len) in requests.iter_mut().zip(before) {
                let session = &mut *request.session;
                match len {
                    0 => session.state = session.empty.clone(),
                    len => _ = session.state.rewind(model, len),
                }
            }
            Failure::Sequence(part, Error::NonFinite { what, position })
        },
    )
}

impl Session {
    /// The logits after the last byte, if they have to be guessed because it is pending; else nothing.
    pub(super) fn guess_logits(&mut self) -> Result<()> {
        let (Some(bolmo), SequenceState::Bolmo(state, _)) = (self.model.bolmo(), &mut self.state)
        else {
            return Ok(());
        };
        let sequence = Sequence {
            state,
            ids: &[],
            written: false,
            logits: LogitRows::Last,
            trace: None,
        };
        let logits = bolmo.forward(self.model.compute(), &mut [sequence]);
        let logits = logits
            .map_err(|NotFinite { what, position, .. }| Error::NonFinite { what, position })?;
        self.logits.clear();
        self.logits.extend_from_slice(&logits[0]);
        Ok(())
    }

    /// Begins anew with BOS and the last `keep` ids.
    fn slide(&mut self, keep: usize) -> Result<()> {
        let bos = !self.options.no_bos;
        // At least half of the context must become free, or every byte would slide.
        let room = self.max_bytes.min(self.max_patches) / 2;
        let keep = keep
            .min(self.len())
            .min(room.saturating_sub(usize::from(bos)));
        if room <= usize::from(bos) {
            return self.check_bytes(self.len() + 1);
        }
        let mut ids: Vec<Id> = bos.then_some(BOS).into_iter().collect();
        ids.extend_from_slice(&self.ids()[self.len() - keep..]);
        self.reset();
        self.n_slides += 1;
        FeedRequest::again(self, &ids).run()
    }

    /// Ids that surely fit, as a byte closes at most one patch.
    fn room(&self) -> usize {
        let bytes_left = self.max_bytes.saturating_sub(self.len());
        let patches_left = (self.max_patches).saturating_sub(self.state.n_closed());
        bytes_left.min(patches_left)
    }

    fn check_bytes(&self, needed: usize) -> Result<()> {
        if needed <= self.max_bytes {
            return Ok(());
        }
        Err(Error::ContextFull {
            unit: "bytes",
            limit: self.max_bytes,
            needed,
        })
    }
}
