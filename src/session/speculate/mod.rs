//! Self-speculation: several bytes from one reading of the weights, the same bytes as without it.
//!
//! Spec section 13, after "Fast Byte Latent Transformer" (arXiv:2605.08044). The local encoder and
//! decoder continue the text beyond the end of the patch, on the last patch that is closed ([`propose`]).
//! Then the entropy model reads the drafted bytes at once, the global transformer the patches that it
//! cuts them into, and the decoder, again, the bytes whose patch has changed ([`verify`]). A drafted byte
//! is accepted if the sampler, with the same random numbers, chooses it by the logits that result; the
//! first that is not ends the draft ([`accept`]). Since a row's arithmetic is the same whatever rows are
//! computed with it, the bits are those of reading byte by byte.
//!
//! Nobody sees this from outside. The state of the session holds the accepted bytes, the [`Lookahead`]
//! counts those that have not been asked for, and reading any other byte drops them.

mod lookahead;
mod policy;

use smallvec::SmallVec;

use super::Session;
use super::feed::{FeedRequest, run_together};
use crate::error::Result;
use crate::model::sequence::{Failure, SequenceInput};
use crate::model::{Mark, Model, SequenceState};
use crate::sampler::Sampler;
use crate::vocab::{EOS, Id, VOCAB_SIZE};

pub(super) use lookahead::Lookahead;
pub(crate) use policy::DraftPolicy;
pub use policy::{DraftCounts, MAX_DRAFT};

/// A session that is to read the id chosen last, and to choose the next.
pub(crate) struct GenerationStep<'a> {
    pub session: &'a mut Session,
    /// `None` if the session has read everything.
    pub unread: Option<Id>,
    pub sampler: &'a mut Sampler,
    pub policy: DraftPolicy,
    /// Most bytes that will be asked for.
    pub room: usize,
}

/// The next id of each session. The sessions read together.
pub(crate) fn next_ids(steps: &mut [GenerationStep<'_>]) -> SmallVec<[Result<Id>; 1]> {
    let results = read(steps);
    let chosen = steps.iter_mut().zip(results).map(|(step, result)| {
        let (session, sampler) = (&*step.session, &mut *step.sampler);
        let chosen = result?.or_else(|| session.lookahead.choice(sampler));
        if chosen.is_some() {
            sampler.skip();
        }
        Ok(chosen.unwrap_or_else(|| sampler.sample(session.logits(), session.ids())))
    });
    chosen.collect()
}

/// Lets each session read its id, drafting where that pays: the next id, if the device has chosen it.
pub(crate) fn read(steps: &mut [GenerationStep<'_>]) -> SmallVec<[Result<Option<Id>>; 1]> {
    speculate(steps);
    let requests = steps.iter_mut().map(|step| {
        let chooses = step.session.model.chooses_ids();
        let choice = chooses.then(|| step.sampler.choice(VOCAB_SIZE)).flatten();
        FeedRequest::new(step.session, step.unread.as_slice())
            .written()
            .choosing(choice)
    });
    let mut requests: SmallVec<[FeedRequest<'_>; 1]> = requests.collect();
    run_together(&mut requests);
    requests.into_iter().map(FeedRequest::finish).collect()
}

/// A draft while it is made.
struct Draft<'a> {
    session: &'a mut Session,
    sampler: &'a Sampler,
    id: Id,
    length: usize,
    /// Where the text ended.
    mark: Mark,
    n_closed: usize,
    /// The first `n_kept` ids closed no patch.
    n_kept: usize,
}

/// Computes several bytes ahead for each session for which that pays.
fn speculate(steps: &mut [GenerationStep<'_>]) {
    let Some(model) = steps.first().map(|step| step.session.model.clone()) else {
        return;
    };
    let n_sequences = steps.len();
    let drafts = steps
        .iter_mut()
        .filter_map(|step| step.draft(&model, n_sequences));
    let mut drafts: SmallVec<[Draft<'_>; 1]> = drafts.collect();
    if drafts.is_empty() {
        return;
    }
    propose(&model, &mut drafts);
    let verified = verify(&model, &mut drafts);
    for draft in drafts {
        match &verified {
            Ok(()) => accept(&model, draft),
            // Whichever byte is to blame will be read again, without a draft.
            Err(_) => draft.undo(&model),
        }
    }
}

impl<'a> GenerationStep<'a> {
    /// Begins a draft, if it pays.
    fn draft(&mut self, model: &Model, n_sequences: usize) -> Option<Draft<'_>> {
        let (session, id) = (&mut *self.session, self.unread?);
        let mut networks = *model.draft_networks()?;
        if session.lookahead.is_next(id)
            || !session.model.is_same(model)
            || session.cancel.is_requested()
        {
            return None;
        }
        session.drop_lookahead();
        if !session.state.runs_entropy() {
            networks.entropy = 0.0;
        }
        let length = self.policy.draft_length(
            &networks,
            &session.lookahead.rate,
            session.n_closed() as f64 / session.len().max(1) as f64,
            n_sequences,
            self.room.min(session.room()),
        );
        if length < 2 {
            session.lookahead.rate.decay();
            return None;
        }
        Some(Draft {
            mark: session.state.mark(),
            n_closed: session.n_closed(),
            n_kept: 0,
            sampler: self.sampler,
            session,
            id,
            length,
        })
    }
}

/// Fills each draft with its certain id and those that the sampler chooses by guessed logits.
fn propose(model: &Model, drafts: &mut [Draft<'_>]) {
    for draft in drafts.iter_mut() {
        let ahead = &mut draft.session.lookahead;
        copy_into(&mut ahead.draft_sampler, draft.sampler);
    }
    loop {
        let open = drafts.iter_mut().filter_map(Draft::next_input);
        let mut inputs: SmallVec<[SequenceInput<'_, SequenceState>; 1]> = open.collect();
        if inputs.is_empty() {
            return;
        }
        let outputs = model.draft(&mut inputs);
        drop(inputs);
        let open = drafts.iter_mut().filter(|draft| draft.is_waiting());
        for (draft, output) in open.zip(outputs) {
            let (ahead, history) = (&mut draft.session.lookahead, draft.session.state.ids());
            ahead.logits.extend_from_slice(&output.logits);
            let sampler = ahead.draft_sampler.as_mut().expect("copied above");
            ahead.chosen.push(sampler.sample(&output.logits, history));
        }
    }
}

/// Makes the logits of all drafts exact.
fn verify(model: &Model, drafts: &mut [Draft<'_>]) -> Result<(), Failure> {
    let inputs = drafts.iter_mut().map(|draft| {
        let session = &mut *draft.session;
        SequenceInput::new(&mut session.state, &session.lookahead.ids)
    });
    let mut inputs: SmallVec<[SequenceInput<'_, SequenceState>; 1]> = inputs.collect();
    let verified = model.verify(&mut inputs)?;
    drop(inputs);
    for (draft, verified) in drafts.iter_mut().zip(verified) {
        draft.n_kept = verified.n_kept;
        let logits = &mut draft.session.lookahead.logits;
        logits.truncate(draft.n_kept * VOCAB_SIZE);
        logits.extend_from_slice(verified.logits.as_deref().unwrap_or_default());
    }
    Ok(())
}

/// Keeps the ids that the sampler chooses by exact logits. A logit that is not finite ends the draft
/// before its id.
fn accept(model: &Model, draft: Draft<'_>) {
    let Session {
        state,
        lookahead: ahead,
        ..
    } = &mut *draft.session;
    let first = state.ids().len() - ahead.ids.len();
    let n_drafted = ahead.ids.len();
    let rows = ahead.logits.chunks_exact(VOCAB_SIZE);
    let n_finite = rows.take_while(|row| row.iter().all(|l| l.is_finite()));
    let n_finite = n_finite.count();
    copy_into(&mut ahead.draft_sampler, draft.sampler);
    let sampler = ahead.draft_sampler.as_mut().expect("copied above");
    let mut n_accepted = 0;
    while n_accepted < n_finite {
        let n = n_accepted;
        if n < draft.n_kept {
            sampler.skip(); // chosen by the same logits
        } else {
            let logits = &ahead.logits[n * VOCAB_SIZE..][..VOCAB_SIZE];
            ahead.chosen[n] = sampler.sample(logits, &state.ids()[..=first + n]);
        }
        n_accepted += 1;
        if ahead.ids.get(n_accepted) != Some(&ahead.chosen[n]) {
            break;
        }
    }
    if n_accepted == 0 {
        return draft.undo(model);
    }
    ahead.ids.truncate(n_accepted);
    ahead.logits.truncate(n_accepted * VOCAB_SIZE);
    ahead.chosen.truncate(n_accepted);
    copy_into(&mut ahead.committed_sampler, draft.sampler);
    let rewound = state.rewind(model, first + n_accepted);
    assert!(rewound, "nothing is evicted while a draft is made");
    ahead.rate.record(n_accepted - 1, n_accepted < n_drafted);
    ahead.counts += DraftCounts {
        n_drafts: 1,
        n_drafted,
        n_accepted,
        n_patches: state.n_closed() - draft.n_closed,
        n_closing: usize::from(draft.n_kept < n_drafted),
    };
    state.evict(model);
}

impl Draft<'_> {
    /// The input of the next pass, with one id more; `None` if the draft is complete.
    fn next_input(&mut self) -> Option<SequenceInput<'_, SequenceState>> {
        let session = &mut *self.session;
        let ahead = &mut session.lookahead;
        let next = ahead.chosen.last().copied();
        if ahead.ids.len() == self.length || next == Some(EOS) {
            return None;
        }
        ahead.ids.push(next.unwrap_or(self.id));
        let last = ahead.ids.len() - 1;
        Some(SequenceInput::new(&mut session.state, &ahead.ids[last..]))
    }

    /// Whether the last id has no logits yet.
    fn is_waiting(&self) -> bool {
        self.session.lookahead.chosen.len() < self.session.lookahead.ids.len()
    }

    /// Goes back to the text before the draft.
    fn undo(self, model: &Model) {
        self.session.lookahead.clear();
        self.session.state.rollback(model, self.mark);
    }
}

/// Makes a copy that allocates nothing where there has been one before.
fn copy_into(copy: &mut Option<Sampler>, sampler: &Sampler) {
    match copy {
        Some(copy) => copy.clone_from(sampler),
        None => *copy = Some(sampler.clone()),
    }
}
