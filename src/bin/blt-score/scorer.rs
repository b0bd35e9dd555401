//! How well the model predicts texts of any length: window after window of the context, several at once.
//!
//! A text longer than the context is cut: when a window is full, the next begins with BOS and the last `overlap` bytes, which
//! are read again but not counted. Each byte is counted once. Short pieces are read together, so that the weights are read
//! once for all of them; what each gives is the same bits as alone.

use blt::error::Error;
use blt::session::{BYTES_PER_PASS, Position};
use blt::vocab::{BOS, Id};
use blt::{Session, batch};

use super::input::{Piece, Windows};

/// Most pieces that are read at once.
pub const MAX_LANES: usize = 16;
/// Ids in all from which on no further piece is read with them: then a pass is as fast as it gets.
pub const ENOUGH_IDS: usize = BYTES_PER_PASS;

/// What the model made of one id.
#[derive(Debug, Clone, Copy)]
pub struct ScoredId {
    /// The id.
    pub id: Id,
    /// Entropy in nats of the entropy model's prediction; NaN without an entropy model.
    pub entropy: f32,
    /// Surprisal in bits, -log2 p; `None` for an id with nothing before it.
    pub bits: Option<f64>,
    /// Whether it was the most probable of all.
    pub hit: bool,
    /// Whether it starts a patch.
    pub starts_patch: bool,
}

/// Sums over the ids counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Ids predicted.
    pub n: usize,
    /// Their surprisal in bits.
    pub bits: f64,
    /// How many were the most probable.
    pub hits: usize,
    /// Patches that start at an id counted or at a window's BOS.
    pub patches: usize,
    /// Ids in them: those counted, first ids and BOS included.
    pub patch_ids: usize,
    /// Windows begun.
    pub windows: usize,
}

impl Totals {
    fn add(&mut self, more: &Totals) {
        self.n += more.n;
        self.bits += more.bits;
        self.hits += more.hits;
        self.patches += more.patches;
        self.patch_ids += more.patch_ids;
        self.windows += more.windows;
    }

    /// Mean surprisal in bits; NaN if nothing was counted.
    pub fn bits_per_byte(&self) -> f64 {
        self.bits / self.n as f64
    }

    /// Mean number of ids in a patch; NaN if nothing was read.
    pub fn mean_patch_length(&self) -> f64 {
        self.patch_ids as f64 / self.patches as f64
    }

    /// Share of ids that were the most probable; NaN if nothing was counted.
    pub fn accuracy(&self) -> f64 {
        self.hits as f64 / self.n as f64
    }
}

/// What to do when the text outgrows the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    /// An error, for callers that need the results in one piece.
    Refuse,
    /// A new window with this many bytes of the old one.
    Restart {
        /// Bytes read again.
        overlap: usize,
    },
}

/// Sessions that are fed pieces of texts and asked for each id's probability before it.
#[derive(Debug)]
pub struct Scorer {
    /// At least one.
    lanes: Vec<Lane>,
    edge: Edge,
    totals: Totals,
}

/// A session and the piece that it reads.
#[derive(Debug)]
struct Lane {
    session: Session,
    piece: Piece,
    /// Ids of the present step.
    ids: Vec<Id>,
    /// What is read next, in the piece's text.
    at: usize,
    record: Record,
}

/// What has been found about a piece.
#[derive(Debug, Default)]
struct Record {
    totals: Totals,
    /// Each id, if they are shown.
    scored: Option<Vec<ScoredId>>,
    /// Logits after every id, (n, vocab), if asked for.
    logits: Option<Vec<f32>>,
}

impl Record {
    fn count(&mut self, scored: ScoredId) {
        let totals = &mut self.totals;
        if let Some(bits) = scored.bits {
            totals.n += 1;
            totals.bits += bits;
            totals.hits += usize::from(scored.hit);
        }
        totals.patches += usize::from(scored.starts_patch);
        totals.patch_ids += 1;
        if let Some(list) = &mut self.scored {
            list.push(scored);
        }
    }

    fn drain(&mut self, show: &mut impl FnMut(ScoredId)) {
        let scored = self.scored.iter_mut().flat_map(|list| list.drain(..));
        scored.for_each(show);
    }
}

/// What is wanted of a scorer.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Each id, as [`Scorer::score`] shows them.
    pub ids: bool,
    /// The logits after each id of a text in one piece.
    pub logits: bool,
}

impl Scorer {
    /// A scorer of what follows BOS, or of ids as they are if the session's options say `no_bos`.
    ///
    /// # Errors
    /// [`Error::Argument`] if the overlap leaves no room for anything else.
    pub fn new(session: Session, edge: Edge, wanted: Wanted) -> Result<Self, Error> {
        let record = Record {
            totals: Totals::default(),
            scored: wanted.ids.then(Vec::new),
            logits: wanted.logits.then(Vec::new),
        };
        let lane = Lane::new(session, record);
        let room = lane.session.max_bytes().min(lane.max_patches());
        if let Edge::Restart { overlap } = edge
            && overlap + 1 >= room
        {
            return Err(Error::argument(
                "overlap",
                format!("expected less than the context of {room} less BOS, found {overlap}"),
            ));
        }
        Ok(Scorer {
            lanes: vec![lane],
            edge,
            totals: Totals::default(),
        })
    }

    /// The first session; it holds the last window of a text in one piece.
    pub fn session(&self) -> &Session {
        &self.lanes[0].session
    }

    /// The sums so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Logits after every id of the session, (n, vocab); empty unless they were asked for.
    pub fn logits(&self) -> &[f32] {
        self.lanes[0].record.logits.as_deref().unwrap_or_default()
    }

    /// Where texts are cut, if that does not depend on their patches: a context that holds a patch for each byte is full
    /// when its bytes are.
    pub fn windows(&self) -> Option<Windows> {
        let n_bytes = self.session().max_bytes();
        match self.edge {
            Edge::Restart { overlap } if self.lanes[0].max_patches() >= n_bytes => Some(Windows {
                first: n_bytes - 1,
                later: n_bytes - 1 - overlap,
                overlap,
            }),
            _ => None,
        }
    }

    /// Reads pieces, all at once, and shows what the model made of each id, in order. `go_on` is told how many ids have been
    /// read and may stop the work, which returns false: only the ids before the first that has not been read then count.
    ///
    /// # Errors
    /// [`Error::Argument`] for a second document if the results are wanted in one piece; as [`Session::feed_ids`].
    pub fn score(
        &mut self,
        pieces: Vec<Piece>,
        mut go_on: impl FnMut(u64) -> bool,
        mut show: impl FnMut(ScoredId),
    ) -> Result<bool, Error> {
        let n = pieces.len();
        if self.edge == Edge::Refuse && (n > 1 || self.totals.windows > 0) {
            return Err(Error::argument(
                "documents",
                "expected one with --dump, found another; --separator \"\" reads a file as one document",
            ));
        }
        for (i, piece) in pieces.into_iter().enumerate() {
            if i == self.lanes.len() {
                self.lanes.push(self.lanes[0].another()?);
            }
            self.lanes[i].begin(piece);
        }
        let lanes = &mut self.lanes[..n];
        let mut complete = true;
        loop {
            begin_windows(lanes, self.edge)?;
            if lanes.iter().all(Lane::is_done) {
                break;
            }
            step(lanes)?;
            if let [only] = lanes {
                only.record.drain(&mut show);
            }
            if !go_on(lanes.iter().map(|lane| lane.n_read() as u64).sum()) {
                complete = false;
                break;
            }
        }
        for lane in lanes {
            self.totals.add(&lane.record.totals);
            lane.record.drain(&mut show);
            if !lane.is_done() {
                break;
            }
        }
        Ok(complete)
    }
}

impl Lane {
    fn new(session: Session, record: Record) -> Lane {
        Lane {
            session,
            piece: Piece::empty(),
            ids: Vec::new(),
            at: 0,
            record,
        }
    }

    /// A lane like this one, with a session of its own.
    fn another(&self) -> Result<Lane, Error> {
        let record = Record {
            scored: self.record.scored.as_ref().map(|_| Vec::new()),
            ..Record::default()
        };
        let session = Session::new(self.session.model(), self.session.options().clone())?;
        Ok(Lane::new(session, record))
    }

    fn begin(&mut self, piece: Piece) {
        self.session.reset();
        self.record.totals = Totals::default();
        self.at = piece.range.start;
        self.piece = piece;
    }

    fn is_done(&self) -> bool {
        self.at == self.piece.range.end
    }

    fn n_read(&self) -> usize {
        self.at - self.piece.range.start
    }

    /// How many ids surely fit into this window: an id closes at most one patch.
    fn room(&self) -> usize {
        let n_closed = self.session.patch_starts().len().saturating_sub(1);
        let bytes = (self.session.max_bytes()).saturating_sub(self.session.len());
        bytes.min(self.max_patches().saturating_sub(n_closed))
    }

    fn max_patches(&self) -> usize {
        let of_model = self.session.model().config().max_patches;
        self.session.options().max_patches.unwrap_or(of_model)
    }
}

/// Begins a window where a piece begins or the window is full: reads BOS, unless ids are taken as they are, and what is read
/// again.
fn begin_windows(lanes: &mut [Lane], edge: Edge) -> Result<(), Error> {
    let mut begun: Vec<&mut Lane> = Vec::new();
    for lane in lanes {
        let is_first = lane.record.totals.windows == 0;
        if !is_first && (lane.is_done() || lane.room() > 0) {
            continue;
        }
        let n_again = match (is_first, edge) {
            (true, _) => lane.piece.n_again,
            (false, Edge::Restart { overlap }) => overlap,
            (false, Edge::Refuse) => {
                return Err(Error::ContextFull {
                    unit: "bytes",
                    limit: lane.session.len(),
                    needed: lane.session.len() + 1,
                });
            }
        };
        lane.session.reset();
        lane.ids.clear();
        let totals = &mut lane.record.totals;
        totals.windows += 1;
        if !lane.session.options().no_bos {
            totals.patches += 1;
            totals.patch_ids += 1;
            lane.ids.push(BOS);
        }
        lane.ids.extend(lane.piece.ids(lane.at - n_again..lane.at));
        begun.push(lane);
    }
    feed(begun, |_, _, _| {})
}

/// Reads the next ids of every lane.
fn step(lanes: &mut [Lane]) -> Result<(), Error> {
    let mut reading: Vec<&mut Lane> = lanes.iter_mut().filter(|lane| !lane.is_done()).collect();
    for lane in &mut reading {
        let rest = lane.piece.range.end - lane.at;
        let n = rest.min(lane.room()).min(BYTES_PER_PASS);
        lane.ids = lane.piece.ids(lane.at..lane.at + n);
        lane.at += n;
        let session = &lane.session;
        lane.record.count(guess_at(
            lane.ids[0],
            session.logits(),
            session.entropies().last().copied().unwrap_or(f32::NAN),
            session.patch_starts().last() == Some(&session.len()),
        ));
    }
    feed(reading, |record, position, next| {
        if let Some(next) = next {
            record.count(guess_at(
                next,
                position.logits,
                position.entropy,
                position.next_starts_patch,
            ));
        }
    })
}

/// Reads the ids of every lane together. `take` is told what each position gave and the id after it, if that is one of them.
fn feed(
    lanes: Vec<&mut Lane>,
    mut take: impl FnMut(&mut Record, &Position<'_>, Option<Id>),
) -> Result<(), Error> {
    let (mut feeds, mut reading) = (Vec::new(), Vec::new());
    for lane in lanes {
        let Lane {
            session,
            ids,
            record,
            ..
        } = lane;
        reading.push((session.len(), &ids[..], record));
        feeds.push((session, &ids[..]));
    }
    let results = batch::feed_ids_with(&mut feeds, |i, position| {
        let (first, ids, record) = &mut reading[i];
        if let Some(kept) = &mut record.logits {
            kept.extend_from_slice(position.logits);
        }
        let next = ids.get(position.position - *first + 1).copied();
        take(record, &position, next);
    });
    results.into_iter().collect()
}

/// What logits say about the id that came; in double precision, for sums over millions.
fn guess_at(id: Id, logits: &[f32], entropy: f32, starts_patch: bool) -> ScoredId {
    let at = usize::from(id);
    let (bits, hit) = match logits.get(at) {
        None => (None, false),
        Some(&own) => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
            let nats = f64::from(max) - f64::from(own) + sum.ln();
            let best = logits.iter().position(|&l| l == max);
            (Some(nats / std::f64::consts::LN_2), best == Some(at))
        }
    };
    ScoredId {
        id,
        entropy,
        bits,
        hit,
        starts_patch,
    }
}
