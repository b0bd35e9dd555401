//! The tables of a grammar: finite automata over bytes that call each other.
//!
//! A grammar without recursion is one rule: a deterministic automaton. A recursive one has a rule for each
//! recursive definition; an edge that calls a rule is taken by a text of that rule, after which matching
//! continues in the state where the edge ends. What remains to be matched is then a stack of states
//! (see `matcher`).
//!
//! Each state knows its *distance*: the fewest bytes that complete its rule. Every state has one, so whatever is
//! allowed can be completed. `join.rs` makes the tables.

use std::ops::Range;

use super::byte_set::ByteSet;

/// Index of a state in the tables.
pub type StateId = u32;

/// Where no edge leads.
pub const DEAD: StateId = StateId::MAX;

/// An edge that a text of another rule takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// First state of the rule that is called.
    pub start: StateId,
    /// Where matching continues after it.
    pub back: StateId,
}

/// The rules of a grammar, joined. Matching starts in state 0.
#[derive(Debug)]
pub struct Automaton {
    pub(super) rules: Vec<Classes>,
    pub(super) states: Vec<State>,
    pub(super) next: Vec<StateId>,
    pub(super) calls: Vec<Call>,
    pub(super) max_detour: u32,
}

/// The bytes of a rule in classes: bytes of one class lead to the same state from everywhere.
#[derive(Debug)]
pub(super) struct Classes {
    pub of_byte: [u8; 256],
    pub members: Vec<ByteSet>,
}

/// A state of the joined rules.
#[derive(Debug)]
pub(super) struct State {
    pub rule: u32,
    /// Where the state's row of `next` begins.
    pub row: u32,
    pub calls: Range<u32>,
    pub distance: u32,
    pub allowed: ByteSet,
}

impl Automaton {
    /// Number of bytes of the shortest text.
    pub fn shortest(&self) -> usize {
        self.distance(0) as usize
    }

    /// The fewest bytes that complete the state's rule; 0 if the rule can end here.
    pub fn distance(&self, state: StateId) -> u32 {
        self.states[state as usize].distance
    }

    /// How much one edge increases the distance at most.
    pub fn max_detour(&self) -> u32 {
        self.max_detour
    }

    /// The bytes that lead from a state to another.
    pub fn allowed(&self, state: StateId) -> &ByteSet {
        &self.states[state as usize].allowed
    }

    /// The rules that can be called in a state.
    pub fn calls(&self, state: StateId) -> &[Call] {
        let Range { start, end } = self.states[state as usize].calls;
        &self.calls[start as usize..end as usize]
    }

    /// Where a byte leads, or [`DEAD`].
    pub fn next(&self, state: StateId, byte: u8) -> StateId {
        let state = &self.states[state as usize];
        let class = self.rules[state.rule as usize].of_byte[usize::from(byte)];
        self.next[state.row as usize + usize::from(class)]
    }

    /// The edges of a state that bytes take: the bytes, and where they lead.
    pub fn edges(&self, state: StateId) -> impl Iterator<Item = (&ByteSet, StateId)> {
        let state = &self.states[state as usize];
        let members = &self.rules[state.rule as usize].members;
        let row = &self.next[state.row as usize..][..members.len()];
        (members.iter().zip(row.iter().copied())).filter(|&(_, next)| next != DEAD)
    }

    /// Bytes of memory.
    pub fn n_bytes(&self) -> usize {
        size_of_val(&self.states[..]) + size_of_val(&self.next[..]) + size_of_val(&self.calls[..])
    }
}
