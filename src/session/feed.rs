//! How sessions read ids: within their limits, in passes, several sessions together.

use smallvec::SmallVec;

use super::{Overflow, Position, Session};
use crate::error::{Error, Result};
use crate::model::sequence::{Failure, IdChoice, LogitRows, SequenceInput, SequenceOutput};
use crate::model::{MAX_BATCH, SequenceState, Trace};
use crate::vocab::{BOS, Id};

/// Most rows of a pass that several sessions share, so that what a pass needs in memory stays small.
const MAX_ROWS: usize = 1024;

/// Ids for one session to read.
pub(crate) struct FeedRequest<'a> {
    session: &'a mut Session,
    /// Ids that have not been read.
    ids: &'a [Id],
    /// How many of them the present pass reads.
    n_now: usize,
    logits: LogitRows,
    trace: Option<&'a mut Trace>,
    show: Option<&'a mut dyn FnMut(Position<'_>)>,
    /// How the next id may be chosen on the device, and what it chose.
    choice: Option<IdChoice>,
    chosen: Option<Id>,
    /// Whether limits hold and another thread can stop it. Going back must not be stopped halfway.
    bounded: bool,
    /// Whether the model wrote the ids.
    written: bool,
    /// Length of the session before.
    old_len: usize,
    result: Result<()>,
}

impl<'a> FeedRequest<'a> {
    /// Reads ids within the session's limits and computes the logits after the last.
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
            choice: None,
            chosen: None,
            bounded: true,
            written: false,
            result,
        }
    }

    /// Reads ids that the model wrote: where ids carry flags, with those that they were chosen with.
    pub fn written(self) -> Self {
        FeedRequest {
            written: true,
            result: self.session.model.check_ids(self.ids, true),
            ..self
        }
    }

    /// Reads ids that the session has read before.
    pub(super) fn again(session: &'a mut Session, ids: &'a [Id]) -> Self {
        FeedRequest {
            bounded: false,
            ..FeedRequest::new(session, ids)
        }
    }

    /// Shows what each position gave.
    pub fn showing(self, show: &'a mut dyn FnMut(Position<'_>)) -> Self {
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

    /// Lets the device choose the next id, if it can.
    pub(super) fn choosing(self, choice: Option<IdChoice>) -> Self {
        FeedRequest { choice, ..self }
    }

    /// Reads all ids. On an error the session is as it was before, unless the context had slid.
    pub fn run(self) -> Result<()> {
        let mut requests = [self];
        run_together(&mut requests);
        let [request] = requests;
        request.finish().map(|_| ())
    }

    /// The result: the next id, if the device has chosen it. On an error the session is as it was before,
    /// unless the context had slid.
    pub fn finish(self) -> Result<Option<Id>> {
        if self.result.is_err() && self.bounded && self.session.len() > self.old_len {
            self.session.rewind(self.old_len)?;
        }
        self.result?;
        Ok(self.chosen)
    }

    fn is_unfinished(&self) -> bool {
        self.result.is_ok() && !self.ids.is_empty()
    }

    /// Decides how many ids the next pass reads, at most `share`. An id that has been computed ahead
    /// needs no pass.
    fn begin_pass(&mut self, share: usize) -> Result<()> {
        if self.bounded {
            self.check_limits()?;
        }
        let session = &mut *self.session;
        if let (&[id], LogitRows::Last, None) = (self.ids, self.logits, &self.trace)
            && session.lookahead.is_next(id)
        {
            self.ids = &[];
            session.logits.clear();
            session.logits.extend_from_slice(session.lookahead.read());
            return Ok(());
        }
        session.drop_lookahead();
        self.n_now = self.ids.len().min(share);
        if self.bounded && matches!(session.options.overflow, Overflow::Slide { .. }) {
            self.n_now = self.n_now.min(session.room());
        }
        session.check_memory(self.n_now)
    }

    /// Makes room in the context if that can slide.
    fn check_limits(&mut self) -> Result<()> {
        let session = &mut *self.session;
        if session.canceller().withdraw() {
            return Err(Error::Cancelled);
        }
        let Overflow::Slide { keep } = session.options.overflow else {
            return session.check_bytes(session.len() + self.ids.len());
        };
        while session.room() == 0 {
            session.slide(keep)?;
        }
        Ok(())
    }

    fn input(&mut self) -> SequenceInput<'_, SequenceState> {
        let is_last = self.n_now == self.ids.len();
        SequenceInput {
            state: &mut self.session.state,
            ids: &self.ids[..self.n_now],
            written: self.written,
            logits: match self.logits {
                LogitRows::Last if !is_last => LogitRows::None,
                logits => logits,
            },
            trace: self.trace.as_deref_mut(),
            choice: self.choice.filter(|_| is_last),
        }
    }

    /// Takes the output of the pass.
    fn end_pass(&mut self, output: &SequenceOutput<'_>) -> Result<()> {
        self.ids = &self.ids[self.n_now..];
        let session = &mut *self.session;
        let n_closed = session.n_closed();
        if n_closed > session.max_patches {
            return Err(Error::ContextFull {
                unit: "patches",
                limit: session.max_patches,
                needed: n_closed,
            });
        }
        self.chosen = output.chosen;
        let rows = (output.logits).chunks_exact(session.model.config().n_logits());
        let first = session.state.n_settled() - rows.len();
        let is_last = first + rows.len() == session.len();
        if let (Some(last), true) = (rows.clone().next_back(), is_last || self.show.is_none()) {
            session.logits.clear();
            session.logits.extend_from_slice(last);
        }
        let Some(show) = &mut self.show else {
            return Ok(());
        };
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
        match self.ids.is_empty() {
            true => session.refresh_logits(),
            false => Ok(()),
        }
    }
}

/// Reads the ids of all requests; each pass serves all sessions at once.
pub(crate) fn run_together(requests: &mut [FeedRequest<'_>]) {
    let Some(first) = requests.first() else {
        return;
    };
    let model = first.session.model.clone();
    for request in requests.iter_mut() {
        if !request.session.model.is_same(&model) {
            let message =
                "expected sessions of one model, with the same threads and device, found another";
            request.result = Err(Error::argument("sessions", message));
        }
    }
    loop {
        let n_unfinished = requests.iter().filter(|r| r.is_unfinished()).count();
        let share = (MAX_ROWS / n_unfinished.max(1)).clamp(1, MAX_BATCH);
        for request in requests.iter_mut().filter(|r| r.is_unfinished()) {
            request.result = request.begin_pass(share);
        }
        let unfinished = requests.iter_mut().filter(|r| r.is_unfinished());
        let mut inputs: SmallVec<[SequenceInput<'_, SequenceState>; 1]> =
            unfinished.map(|r| r.input()).collect();
        if inputs.is_empty() {
            return;
        }
        let result = model.run(&mut inputs);
        drop(inputs);
        let mut unfinished = requests.iter_mut().filter(|r| r.is_unfinished());
        match result {
            Ok(outputs) => {
                for (request, output) in unfinished.zip(&outputs) {
                    request.result = request.end_pass(output);
                }
            }
            // The other sequences try again without this one.
            Err(Failure::Sequence(i, error)) => {
                let to_blame = unfinished
                    .nth(i)
                    .expect("there is a request for each input");
                to_blame.result = Err(error);
            }
            Err(Failure::Device(message)) => {
                for request in unfinished {
                    request.result = Err(Error::Device(message.clone()));
                }
            }
        }
    }
}

impl Session {
    /// Takes the logits after the last id from a state that keeps them; otherwise they are there already.
    pub(super) fn refresh_logits(&mut self) -> Result<()> {
        if !self.state.keeps_logits() {
            return Ok(());
        }
        let input = SequenceInput {
            logits: LogitRows::Last,
            ..SequenceInput::new(&mut self.state, &[])
        };
        match self.model.run(&mut [input]) {
            Ok(outputs) => {
                self.logits.clear();
                self.logits.extend_from_slice(&outputs[0].logits);
                Ok(())
            }
            Err(Failure::Sequence(_, error)) => Err(error),
            Err(Failure::Device(message)) => Err(Error::Device(message)),
        }
    }

    /// Starts over with BOS and the last `keep` ids.
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

    /// Number of ids that are certain to fit: a byte closes at most one patch.
    pub(super) fn room(&self) -> usize {
        let bytes_free = self.max_bytes.saturating_sub(self.len());
        let patches_free = (self.max_patches).saturating_sub(self.n_closed());
        bytes_free.min(patches_free)
    }

    pub(super) fn check_bytes(&self, needed: usize) -> Result<()> {
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
