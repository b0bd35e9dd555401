//! One model, several threads, each with its own text:
//! cargo run --release --example share_model -- MODEL PROMPT...

use std::error::Error;
use std::thread;

use blt::{GenerateOptions, Model, Session, SessionOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let Some(model) = args.next() else {
        return Err("usage: share_model MODEL PROMPT...".into());
    };
    // One engine thread for each of our threads: many texts at once need no more.
    let model = Model::options().threads(1).open(model)?;
    let prompts: Vec<String> = args.collect();
    let texts: Vec<blt::Result<String>> = thread::scope(|scope| {
        let mut threads = Vec::new();
        for prompt in &prompts {
            threads.push(scope.spawn(|| go_on(&model, prompt)));
        }
        let join = |thread: thread::ScopedJoinHandle<_>| thread.join().expect("no panic");
        threads.into_iter().map(join).collect()
    });
    for (prompt, text) in prompts.iter().zip(texts) {
        println!("{prompt}{}\n", text?);
    }
    Ok(())
}

fn go_on(model: &Model, prompt: &str) -> blt::Result<String> {
    let mut session = Session::new(model, SessionOptions::new())?;
    session.feed(prompt.as_bytes())?;
    session
        .generate(&GenerateOptions::new().max_bytes(200))?
        .strings()
        .collect()
}
