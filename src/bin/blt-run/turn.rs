//! One turn: read a prompt, generate, show bytes as they come.

use std::time::{Duration, Instant};

use blt::session::BYTES_PER_PASS;
use blt::{FinishReason, GenerateOptions, Overflow, Session};

use super::Args;
use blt::cli::args::Failure;
use blt::cli::output::TextOut;
use blt::cli::progress::Progress;
use blt::cli::{interrupt, terminal};

/// A session and where its text goes.
#[derive(Debug)]
pub struct Runner {
    pub session: Session,
    pub generate: GenerateOptions,
    /// `None` with `--json`.
    out: Option<TextOut>,
    patches: Option<PatchMarks>,
    echo: bool,
    quiet: bool,
    /// Whether another turn follows, which continues from the last byte of this one.
    goes_on: bool,
}

/// What a turn did.
#[derive(Debug, Default)]
pub struct Turn {
    /// Bytes of the prompt that were read.
    pub prompt_bytes: usize,
    /// How long reading the prompt took.
    pub prompt_time: Duration,
    /// The bytes shown.
    pub generated: Vec<u8>,
    /// How long they took.
    pub generate_time: Duration,
    /// Why it ended; `None` for an error.
    pub finish: Option<&'static str>,
}

impl Turn {
    /// Whether there is anything to report.
    pub fn has_begun(&self) -> bool {
        self.finish.is_some() || !self.generated.is_empty()
    }
}

impl Runner {
    pub fn new(args: &Args, generate: GenerateOptions, session: Session) -> Self {
        let colour = terminal::has_colour(&std::io::stdout());
        Runner {
            session,
            generate,
            out: (!args.json).then(TextOut::new),
            patches: args.show_patches.then(|| PatchMarks::new(colour)),
            echo: args.echo,
            quiet: args.quiet || args.json,
            goes_on: args.interactive,
        }
    }

    /// Runs a turn. What was done before an error is in the turn all the same.
    pub fn run(&mut self, prompt: &[u8]) -> (Turn, Result<(), Failure>) {
        let mut turn = Turn::default();
        let mut result = self.read(prompt, &mut turn);
        if let Ok(true) = result {
            result = self.generate(&mut turn).map(|()| true);
        }
        let ended = self.end_text();
        (turn, result.map(|_| ()).and(ended))
    }

    /// Reads the prompt; false if Ctrl-C came.
    fn read(&mut self, prompt: &[u8], turn: &mut Turn) -> Result<bool, Failure> {
        let start = Instant::now();
        let mut progress = Progress::new("reading", Some(prompt.len() as u64), self.quiet);
        let mut result = self.session.begin();
        let first = self.session.len();
        result = result.and_then(|()| self.check_room(prompt.len()));
        // Ctrl-C is looked at between passes.
        for piece in prompt.chunks(BYTES_PER_PASS) {
            if result.is_err() || interrupt::requested() {
                break;
            }
            result = self.session.feed(piece);
            if result.is_ok() {
                turn.prompt_bytes += piece.len();
            }
            turn.prompt_time = start.elapsed();
            progress.set(turn.prompt_bytes as u64);
        }
        progress.finish();
        result?;
        if self.echo {
            self.show_prompt(prompt, first)?;
        }
        let complete = !interrupt::requested();
        if !complete {
            turn.finish = Some("interrupted");
        }
        Ok(complete)
    }

    /// Refuses a prompt that does not fit before hours go into the part that does.
    fn check_room(&self, n_bytes: usize) -> blt::Result<()> {
        let needed = self.session.len() + n_bytes;
        let limit = self.session.max_bytes();
        match self.session.options().overflow {
            Overflow::Error if needed > limit => Err(blt::Error::ContextFull {
                unit: "bytes",
                limit,
                needed,
            }),
            _ => Ok(()),
        }
    }

    fn show_prompt(&mut self, prompt: &[u8], first: usize) -> Result<(), Failure> {
        let Some(out) = &mut self.out else {
            return Ok(());
        };
        let Some(marks) = &mut self.patches else {
            return out.write(prompt);
        };
        let starts = self.session.patch_starts();
        for (i, byte) in prompt.iter().enumerate() {
            if starts.binary_search(&(first + i)).is_ok() {
                marks.start(out)?;
            }
            out.write(&[*byte])?;
        }
        Ok(())
    }

    fn generate(&mut self, turn: &mut Turn) -> Result<(), Failure> {
        let start = Instant::now();
        let mut position = self.session.len();
        let mut n_slides = self.session.n_slides();
        let mut generator = self.session.generate(&self.generate)?;
        let mut interrupted = false;
        while let Some(byte) = generator.next() {
            let byte = byte?;
            turn.generated.push(byte);
            turn.generate_time = start.elapsed();
            if let Some(out) = &mut self.out {
                if let Some(marks) = &mut self.patches {
                    // After a slide positions count from the new beginning.
                    if generator.session().n_slides() != n_slides {
                        n_slides = generator.session().n_slides();
                        position = generator.session().len();
                    }
                    if generator
                        .session()
                        .patch_starts()
                        .binary_search(&position)
                        .is_ok()
                    {
                        marks.start(out)?;
                    }
                    position += 1;
                }
                out.write(&[byte])?;
            }
            if interrupt::requested() {
                interrupted = true;
                break;
            }
        }
        turn.finish = match generator.finish_reason() {
            _ if interrupted => Some("interrupted"),
            Some(FinishReason::Eos) => Some("eos"),
            Some(FinishReason::StopString) => Some("stop"),
            Some(FinishReason::MaxBytes) => Some("length"),
            None => None,
        };
        if self.goes_on {
            generator.finish()?;
        }
        Ok(())
    }

    fn end_text(&mut self) -> Result<(), Failure> {
        let Some(out) = &mut self.out else {
            return Ok(());
        };
        if let Some(marks) = &mut self.patches {
            marks.end(out)?;
        }
        out.finish()
    }
}

/// Shows where patches start.
#[derive(Debug)]
struct PatchMarks {
    colour: bool,
    n_started: usize,
}

impl PatchMarks {
    /// White on blue, white on purple, in turn: they tell from the text and from each other on dark
    /// and light terminals.
    const COLOURS: [&str; 2] = ["\x1b[97;48;5;24m", "\x1b[97;48;5;53m"];

    fn new(colour: bool) -> Self {
        PatchMarks {
            colour,
            n_started: 0,
        }
    }

    fn start(&mut self, out: &mut TextOut) -> Result<(), Failure> {
        let mark = match (self.colour, self.n_started) {
            (true, n) => Self::COLOURS[n % 2],
            (false, 0) => "[",
            (false, _) => "][",
        };
        self.n_started += 1;
        out.write_raw(mark.as_bytes())
    }

    fn end(&mut self, out: &mut TextOut) -> Result<(), Failure> {
        let mark = match (self.colour, self.n_started) {
            (true, _) => "\x1b[0m",
            (false, 0) => "",
            (false, _) => "]",
        };
        self.n_started = 0;
        out.write_raw(mark.as_bytes())
    }
}
