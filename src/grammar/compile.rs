//! Syntax trees to tables, by way of the automata of `regex-automata`.
//!
//! A tree can call other trees: a call is written as the byte 0xFF and the number of the tree. No UTF-8
//! holds that byte, so trees that call must not match it otherwise.

use std::collections::HashMap;

use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::nfa::thompson::{self, WhichCaptures};
use regex_automata::util::primitives::StateID;
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind};
use regex_syntax::hir::Hir;

use super::automaton::{Automaton, DEAD};
use super::join::{Flaw, MAX_STATES, Rule, RuleState};
use crate::error::{Error, Result};

/// Most memory for an automaton of `regex-automata`, and for making it.
const MAX_NFA_BYTES: usize = 8 << 20;
const MAX_DFA_BYTES: usize = 64 << 20;

/// The byte that begins a call.
const CALL: u8 = 0xff;

/// Most trees that can be called.
pub const MAX_TREES: usize = 128;

/// A tree that is taken by a text of tree number `tree`.
pub fn call(tree: usize) -> Hir {
    assert!(tree < MAX_TREES);
    Hir::literal([CALL, tree as u8])
}

/// The automaton of a regular expression, matched from beginning to end.
pub fn regex(pattern: &str) -> Result<Automaton> {
    let parsed = (regex_syntax::ParserBuilder::new().utf8(false).build()).parse(pattern);
    let tree = parsed.map_err(|e| {
        // The last line says what is wrong; those before it draw the expression.
        let text = e.to_string();
        let reason = text.lines().last().unwrap_or_default();
        let reason = reason.strip_prefix("error: ").unwrap_or(reason);
        Error::argument(
            "regex",
            format!("expected a regular expression, found {pattern:?}: {reason}"),
        )
    })?;
    let rule = rule(&tree, None).and_then(|rule| Automaton::new(vec![rule]).map_err(flaw));
    rule.map_err(|what| Error::argument("regex", what))
}

/// The automaton of trees that call each other. A text matches if the first tree does.
pub fn trees(trees: &[Hir]) -> Result<Automaton, String> {
    let rules: Result<Vec<Rule>, String> = (trees.iter())
        .map(|tree| rule(tree, Some(trees.len())))
        .collect();
    Automaton::new(rules?).map_err(flaw)
}

fn flaw(flaw: Flaw) -> String {
    match flaw {
        Flaw::Empty => "expected something that a text can match, found nothing",
        Flaw::LeftRecursion => {
            "expected each definition to need a byte, found one that refers to itself first"
        }
        Flaw::TooLarge => "expected a smaller one, found too many states",
    }
    .into()
}

/// The rule of a tree that may call `n_trees` others.
fn rule(tree: &Hir, n_trees: Option<usize>) -> Result<Rule, String> {
    let too_large = |what: &dyn std::fmt::Display| format!("expected a smaller one, found {what}");
    let nfa_config = (thompson::Config::new())
        .utf8(false)
        .nfa_size_limit(Some(MAX_NFA_BYTES))
        .which_captures(WhichCaptures::None);
    let nfa = (thompson::Compiler::new().configure(nfa_config)).build_from_hir(tree);
    let nfa = nfa.map_err(|e| too_large(&e))?;
    let dfa_config = (dense::Config::new())
        .match_kind(MatchKind::All)
        .start_kind(StartKind::Anchored)
        .accelerate(false)
        .dfa_size_limit(Some(MAX_DFA_BYTES))
        .determinize_size_limit(Some(MAX_DFA_BYTES));
    let dfa = (dense::Builder::new().configure(dfa_config)).build_from_nfa(&nfa);
    let dfa = dfa.map_err(|e| too_large(&e))?;

    let start = start::Config::new().anchored(Anchored::Yes);
    let start = dfa.start_state(&start).map_err(|e| too_large(&e))?;
    let classes: [u8; 256] = std::array::from_fn(|byte| nfa.byte_classes().get(byte as u8));
    let mut representatives: Vec<u8> = Vec::new();
    for byte in 0..=255 {
        if usize::from(classes[usize::from(byte)]) == representatives.len() {
            representatives.push(byte);
        }
    }
    // States are numbered as they are found.
    let mut found = HashMap::from([(start, 0)]);
    let mut queue = vec![start];
    let mut states = Vec::new();
    let mut number = |id: StateID, queue: &mut Vec<StateID>| -> u32 {
        if dfa.is_dead_state(id) {
            return DEAD;
        }
        let next = found.len() as u32;
        *found.entry(id).or_insert_with(|| {
            queue.push(id);
            next
        })
    };
    while let Some(&id) = queue.get(states.len()) {
        let mut state = RuleState {
            accepts: dfa.is_match_state(dfa.next_eoi_state(id)),
            ..RuleState::default()
        };
        for &byte in &representatives {
            let next = dfa.next_state(id, byte);
            if let (CALL, Some(n_trees)) = (byte, n_trees) {
                state.next.push(DEAD);
                for tree in 0..n_trees {
                    let back = number(dfa.next_state(next, tree as u8), &mut queue);
                    if back != DEAD {
                        state.calls.push((tree, back));
                    }
                }
            } else {
                state.next.push(number(next, &mut queue));
            }
        }
        states.push(state);
        if states.len() > MAX_STATES {
            return Err(flaw(Flaw::TooLarge));
        }
    }
    Ok(Rule {
        classes,
        n_classes: representatives.len(),
        states,
    })
}
