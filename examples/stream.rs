//! Continues a prompt: cargo run --release --example stream -- MODEL PROMPT [N_BYTES [SEED]]

use std::error::Error;
use std::io::Write;

use blt::{GenerateOptions, Model, Session, SessionOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, prompt, rest @ ..] = &args[..] else {
        return Err("usage: stream MODEL PROMPT [N_BYTES [SEED]]".into());
    };
    let number = |i: usize, default| rest.get(i).map_or(Ok(default), |n| n.parse());
    let options = GenerateOptions::new()
        .max_bytes(number(0, 200)? as usize)
        .seed(number(1, 0)?);

    let model = Model::open(model)?;
    let mut session = Session::new(&model, SessionOptions::new())?;
    write!(session, "{prompt}")?;
    let mut out = std::io::stdout();
    for text in session.generate(&options)?.strings() {
        write!(out, "{}", text?)?;
        out.flush()?; // each character as it comes
    }
    Ok(writeln!(out)?)
}
