//! One turn: read a prompt, generate, show bytes as they come.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use blt::session::BYTES_PER_PASS;
use blt::vocab::id_to_byte;
use blt::{FinishReason, GenerateOptions, Overflow, Session};

use super::Args;
use blt::cli::args::Failure;
use blt::cli::output::TextOut;
use blt::cli::progress::Progress;
use blt::cli::{interrupt, terminal};

/// Bytes of a prompt that are shown, its last.
const MAX_SHOWN: usize = 1000;

/// A session and where its text goes.
#[derive(Debug)]
pub struct Runner {
    pub session: Session,
    pub generate: GenerateOptions,
    /// `None` with `--json`.
    out: Option<TextOut>,
    patches: Option<PatchMarks>,
    echo: bool,
    /// Whether the prompt is shown dim before the text: people read along.
    shows_prompt: bool,
    quiet: bool,
    /// Whether the text ends when the context is full, because no length was asked for.
    fills_context: bool,
    /// Whether another turn follows, which continues after the last byte of this one.
    continues: bool,
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
        let is_terminal = std::io::stdout().is_terminal();
        Runner {
            shows_prompt: is_terminal && !args.interactive && !args.echo && !args.show_patches,
            fills_context: args.n_bytes.is_none(),
            session,
            generate,
            out: (!args.json).then(TextOut::new),
            patches: args.show_patches.then(|| PatchMarks::new(colour)),
            echo: args.echo,
            quiet: args.quiet || args.json,
            continues: args.interactive,
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
        match &mut self.out {
            Some(out) if self.shows_prompt => {
                let colour = terminal::has_colour(&std::io::stdout());
                let (dim, plain) = if colour {
                    (terminal::DIM, terminal::PLAIN)
                } else {
                    ("", "")
                };
                out.write_raw(dim.as_bytes())?;
                out.write(&prompt[prompt.len().saturating_sub(MAX_SHOWN)..])?;
                out.write_raw(plain.as_bytes())?;
            }
            _ if self.echo => self.show_prompt(prompt, first)?,
            _ => {}
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
        let mut is_full = false;
        while let Some(byte) = generator.next() {
            let byte = match byte {
                Err(blt::Error::ContextFull { .. }) if self.fills_context => {
                    is_full = true;
                    break;
                }
                byte => byte?,
            };
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
            _ if is_full => Some("context"),
            Some(FinishReason::Eos) => Some("eos"),
            Some(FinishReason::StopString) => Some("stop"),
            Some(FinishReason::MaxBytes) => Some("length"),
            None => None,
        };
        if self.continues {
            generator.finish()?;
        }
        Ok(())
    }

    /// Whether the text needs a line feed before the next turn's.
    pub fn needs_separator(&self) -> bool {
        let last = self.session.ids().last().copied().and_then(id_to_byte);
        last.is_some_and(|byte| !byte.is_ascii_whitespace())
    }

    /// Whether the text on standard output would run into what follows on standard error.
    pub fn needs_line_end(&self) -> bool {
        let is_terminal = std::io::stdout().is_terminal();
        self.out.is_some() && !is_terminal && terminal::is_one_stream()
    }

    fn end_text(&mut self) -> Result<(), Failure> {
        let Some(out) = &mut self.out else {
            return Ok(());
        };
        if let Some(marks) = &mut self.patches {
            marks.end(out)?;
        }
        if self.continues && !out.is_terminal() {
            out.write_raw(b"\n")?;
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
