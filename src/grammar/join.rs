//! Joins the rules of a grammar into the tables of an [`Automaton`].
//!
//! States from which nothing completes the rule are dead ends. Edges to them are removed here, so that whatever
//! remains allowed can be completed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::automaton::{Automaton, Call, Classes, DEAD, State, StateId};
use super::byte_set::ByteSet;

/// Most states and most edges, which keeps a hostile grammar's tables under about 40 MB.
pub const MAX_STATES: usize = 1 << 17;
const MAX_EDGES: usize = 1 << 23;

/// A rule before its states have been joined with those of the others. Its first state is state 0.
#[derive(Debug)]
pub struct Rule {
    /// Class of each byte: bytes of one class lead to the same state from everywhere.
    pub classes: [u8; 256],
    pub n_classes: usize,
    pub states: Vec<RuleState>,
}

/// A state of a rule that has not been joined with the others.
#[derive(Debug, Clone, Default)]
pub struct RuleState {
    /// For each class the state it leads to, or [`DEAD`].
    pub next: Vec<StateId>,
    /// Rules called, and the states of this rule where they return.
    pub calls: Vec<(usize, StateId)>,
    /// Whether the rule can end here.
    pub accepts: bool,
}

/// Why rules are not a grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// No text matches.
    Empty,
    /// A rule calls itself before it has matched a byte, or the same for the empty text.
    LeftRecursion,
    /// There are too many states.
    TooLarge,
}

impl Automaton {
    /// Joins rules; the first is where matching starts.
    pub fn new(rules: Vec<Rule>) -> Result<Self, Flaw> {
        let n_states: usize = rules.iter().map(|rule| rule.states.len()).sum();
        let n_edges: usize = (rules.iter().map(|rule| rule.states.len() * rule.n_classes)).sum();
        if n_states > MAX_STATES || n_edges > MAX_EDGES {
            return Err(Flaw::TooLarge);
        }
        let distances = distances(&rules);
        if distances[0][0] == DEAD {
            return Err(Flaw::Empty);
        }
        if is_left_recursive(&rules) {
            return Err(Flaw::LeftRecursion);
        }
        let mut bases = Vec::with_capacity(rules.len());
        let mut base = 0;
        for rule in &rules {
            bases.push(base);
            base += rule.states.len() as StateId;
        }
        let mut automaton = Automaton {
            rules: Vec::with_capacity(rules.len()),
            states: Vec::with_capacity(n_states),
            next: Vec::with_capacity(n_edges),
            calls: Vec::new(),
            max_detour: 0,
        };
        for (r, rule) in rules.iter().enumerate() {
            let mut members = vec![ByteSet::default(); rule.n_classes];
            for byte in 0..=255 {
                members[usize::from(rule.classes[usize::from(byte)])].insert(byte);
            }
            for (state, &distance) in rule.states.iter().zip(&distances[r]) {
                automaton.add(r, state, distance, &bases, &distances, &members);
            }
            automaton.rules.push(Classes {
                of_byte: rule.classes,
                members,
            });
        }
        Ok(automaton)
    }

    fn add(
        &mut self,
        rule: usize,
        state: &RuleState,
        distance: u32,
        bases: &[StateId],
        distances: &[Vec<u32>],
        members: &[ByteSet],
    ) {
        let row = self.next.len() as u32;
        let first_call = self.calls.len() as u32;
        let mut allowed = ByteSet::default();
        for (&next, bytes) in state.next.iter().zip(members) {
            let ends = next != DEAD && distances[rule][next as usize] != DEAD;
            self.next.push(match ends {
                true => bases[rule] + next,
                false => DEAD,
            });
            if ends {
                allowed.extend(bytes);
                let detour = distances[rule][next as usize].saturating_sub(distance);
                self.max_detour = self.max_detour.max(detour);
            }
        }
        for &(callee, back) in &state.calls {
            let rest = distances[rule][back as usize];
            let text = distances[callee][0];
            if rest != DEAD && text != DEAD {
                let detour = rest.saturating_add(text).saturating_sub(distance);
                self.max_detour = self.max_detour.max(detour);
                self.calls.push(Call {
                    start: bases[callee],
                    back: bases[rule] + back,
                });
            }
        }
        self.states.push(State {
            rule: rule as u32,
            row,
            calls: first_call..self.calls.len() as u32,
            distance,
            allowed,
        });
    }
}

/// For each state of each rule its distance; [`DEAD`] where nothing completes the rule.
///
/// Knuth's generalisation of Dijkstra's algorithm, a rule at a time: a call costs what is known of the
/// called rule, until no rule becomes shorter.
fn distances(rules: &[Rule]) -> Vec<Vec<u32>> {
    let mut distances: Vec<Vec<u32>> = (rules.iter())
        .map(|rule| vec![DEAD; rule.states.len()])
        .collect();
    let edges_back: Vec<Vec<Vec<EdgeBack>>> = rules.iter().map(edges_back).collect();
    loop {
        let texts: Vec<u32> = distances.iter().map(|states| states[0]).collect();
        for ((rule, edges), distances) in rules.iter().zip(&edges_back).zip(&mut distances) {
            let mut queue = BinaryHeap::new();
            distances.fill(DEAD);
            for (id, _) in rule.states.iter().enumerate().filter(|(_, s)| s.accepts) {
                distances[id] = 0;
                queue.push(Reverse((0, id)));
            }
            while let Some(Reverse((distance, id))) = queue.pop() {
                if distance > distances[id] {
                    continue;
                }
                for edge in &edges[id] {
                    let cost = edge.callee.map_or(1, |callee| texts[callee]);
                    let total = distance.saturating_add(cost);
                    if total < distances[edge.from] {
                        distances[edge.from] = total;
                        queue.push(Reverse((total, edge.from)));
                    }
                }
            }
        }
        if distances.iter().map(|states| states[0]).eq(texts) {
            return distances;
        }
    }
}

/// An edge, seen from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct EdgeBack {
    from: usize,
    /// The rule whose text takes the edge; a byte if `None`.
    callee: Option<usize>,
}

fn edges_back(rule: &Rule) -> Vec<Vec<EdgeBack>> {
    let mut edges = vec![Vec::new(); rule.states.len()];
    for (from, state) in rule.states.iter().enumerate() {
        let bytes = state.next.iter().map(|&next| (None, next));
        let calls = (state.calls.iter()).map(|&(callee, back)| (Some(callee), back));
        for (callee, to) in bytes.chain(calls).filter(|&(_, to)| to != DEAD) {
            let edge = EdgeBack { from, callee };
            let list: &mut Vec<EdgeBack> = &mut edges[to as usize];
            // Several classes often lead to the same state.
            if list.last() != Some(&edge) {
                list.push(edge);
            }
        }
    }
    edges
}

/// Whether matching can call rules for ever without matching a byte.
fn is_left_recursive(rules: &[Rule]) -> bool {
    let called: Vec<bool> = (0..rules.len())
        .map(|r| {
            (rules.iter().flat_map(|rule| &rule.states)).any(|s| s.calls.iter().any(|c| c.0 == r))
        })
        .collect();
    if (rules.iter().zip(called)).any(|(rule, called)| called && rule.states[0].accepts) {
        return true;
    }
    // Rules are removed while they call only removed ones at their start; what is left is a circle.
    let mut open: Vec<usize> = (0..rules.len()).collect();
    loop {
        let before = open.len();
        let is_open = |callee: usize, open: &[usize]| open.contains(&callee);
        let rest: Vec<usize> = (open.iter().copied())
            .filter(|&r| (rules[r].states[0].calls.iter()).any(|c| is_open(c.0, &open)))
            .collect();
        open = rest;
        if open.len() == before {
            return !open.is_empty();
        }
    }
}
