//! Which of some texts a model finds more natural: cargo run --release --example score -- MODEL TEXT...

use blt::{Model, Session, SessionOptions};

fn main() -> blt::Result<()> {
    let mut args = std::env::args().skip(1);
    let Some(model) = args.next() else {
        eprintln!("usage: score MODEL TEXT...");
        std::process::exit(2);
    };
    let model = Model::open(model)?;
    let empty = Session::new(&model, SessionOptions::new())?;
    for text in args {
        let score = empty.clone().score(text.as_bytes())?;
        println!("{:8.3} bits per byte  {text}", score.bits_per_byte());
    }
    Ok(())
}
