//! Measures how well a model predicts a text.
//!
//! This file: arguments, the loop, the figures. `scorer` does the measuring; `csv`, `page` and
//! `dump` are the files it can leave behind.

mod csv;
mod dump;
mod flags;
mod input;
mod page;
mod scorer;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use blt::checkpoint::Checkpoint;
use blt::documents::Format;
use blt::program_args;
use blt::{Model, Session, SessionOptions};
use serde_json::json;

use blt::cli::args::{self, Failure};
use blt::cli::model::{self, patcher_config};
use blt::cli::output::{self, Inputs};
use blt::cli::progress::Progress;
use blt::cli::{interrupt, memory, units};
use csv::CsvWriter;
use input::{Input, Piece};
use page::Page;
use scorer::{ENOUGH_IDS, Edge, MAX_LANES, Scorer, Totals, Wanted};

program_args! {
    /// Measure how well a Byte Latent Transformer predicts a text: bits per byte, perplexity per byte, accuracy, mean
    /// patch length.
    #[argh(
        help_triggers("-h", "--help"),
        example = "blt-score MODEL -f book.txt",
        example = "blt-score MODEL -f page.txt --html page.html",
        example = "blt-score MODEL -f stories.txt -f more/ -f web.jsonl",
        note = "Texts are cut into documents as in training: at lines that hold only the separator, whose line ends \
                belong to no document, and one for each line of a .jsonl file. The figures are totals.\n\
                Each document is read after BOS. A text longer than the context is split into windows. Each further \
                window starts with BOS and the last --overlap bytes of the previous one, which are read again but \
                not counted. Every byte of a document is counted once.\n\
                Bits per byte is the mean of -log2 p(byte). Patches include the one that holds BOS.\n\
                --per-byte columns: position, byte, entropy (nats, of the entropy model before it reads the \
                byte), surprisal (bits), patch_start.\n\
                --dump tensors: input_ids I32 (n), entropies F32 (n), patch_lengths I32 (with the next byte, so \
                their sum is n + 1), logits F32 (n, 260); n includes BOS.\n\
                --json prints one object: bits_per_byte, perplexity, accuracy, bytes, patches, \
                mean_patch_length, windows, seconds, bytes_per_second, peak_memory_bytes, interrupted. \
                Values that cannot be computed are null.\n\
                A Bolmo model gives three figures. Causal and joint are code lengths. Folded is not, because each \
                patch end has seen the byte after it. --json: bits_per_byte (causal), joint_bits_per_byte, \
                folded_bits_per_byte. The text must fit into the context.\n\
                Ctrl-C prints the figures of what has been read and exits with code 130 (SIGTERM: 143).",
        error_code(1, "Failed; standard error says why."),
        error_code(2, "Wrong usage."),
        error_code(130, "Ended by Ctrl-C; 143 by SIGTERM.")
    )]
    struct Args [model checkpoint compute patches] {
        /// the text: a file, a .jsonl file, a folder, or - for standard input; may be given several times
        #[argh(option, short = 'f', arg_name = "path", from_str_fn(blt::cli::bytes::path))]
        file: Vec<PathBuf>,

        /// the line between documents (default: <|endoftext|>; empty: a file is one document)
        #[argh(
            option,
            arg_name = "text",
            default = "blt::documents::SEPARATOR.into()",
            from_str_fn(blt::cli::bytes::text)
        )]
        separator: String,

        /// the key of the texts in .jsonl files (default: text)
        #[argh(
            option,
            arg_name = "key",
            default = "blt::documents::TEXT_KEY.into()",
            from_str_fn(blt::cli::bytes::text)
        )]
        text_key: String,

        /// a JSON list of ids to score instead of a text, read without BOS
        #[argh(option, arg_name = "file", from_str_fn(blt::cli::bytes::path))]
        raw_ids: Option<PathBuf>,

        /// bytes of a window that the next one reads again (default: 0)
        #[argh(option, arg_name = "bytes", default = "0")]
        overlap: usize,

        /// maximum bytes in a window, BOS included (default: the model's own limit)
        #[argh(option, arg_name = "bytes")]
        context: Option<usize>,

        /// write one line per byte to this CSV file; - is standard output, as for --html and --dump, and the figures
        /// then go to standard error
        #[argh(option, arg_name = "file", from_str_fn(blt::cli::bytes::path))]
        per_byte: Option<PathBuf>,

        /// write a page that shows the text cut into patches, and the entropy curve
        #[argh(option, arg_name = "file", from_str_fn(blt::cli::bytes::path))]
        html: Option<PathBuf>,

        /// write ids, entropies, patch lengths and logits to this safetensors file
        #[argh(option, arg_name = "file", from_str_fn(blt::cli::bytes::path))]
        dump: Option<PathBuf>,

        /// show no progress
        #[argh(switch)]
        quiet: bool,

        /// print one JSON object
        #[argh(switch)]
        json: bool,
    }
}

fn main() -> ExitCode {
    args::main("blt-score", run)
}

fn run(args: Args) -> Result<(), Failure> {
    let mut input = match (&args.file[..], &args.raw_ids) {
        ([], Some(path)) => Input::raw_ids(path)?,
        ([], None) | (_, Some(_)) => {
            let found = if args.file.is_empty() {
                "neither"
            } else {
                "both"
            };
            return Err(Failure::Usage(format!(
                "expected one of -f and --raw-ids, found {found}"
            )));
        }
        (paths, None) => Input::files(paths, format(&args))?,
    };
    if args.overlap > 0 && (args.raw_ids.is_some() || args.dump.is_some()) {
        return Err(Failure::usage(
            "--overlap: expected neither --raw-ids nor --dump, which have one window",
        ));
    }
    interrupt::watch()?;
    let options = args.model_options();
    let checkpoint = model::open(&options, args.model.as_deref())?;
    let figures_aside = check_outputs(&args, &checkpoint)?;
    let model = model::load(&options, &checkpoint)?;
    if model.choices().has_flags() {
        return flags::run(&args, &model, input);
    }
    let mut scorer = scorer(&args, &model)?;
    let mut csv_file = args
        .per_byte
        .as_deref()
        .map(CsvWriter::create)
        .transpose()?;
    let mut page = (args.html.is_some()).then(|| Page::new(input.name(), scorer.session()));

    let start = Instant::now();
    let mut progress = Progress::new("scoring", input.total, args.quiet);
    let mut done = 0;
    let mut interrupted = false;
    loop {
        let mut pieces = next_pieces(&mut input, &scorer)?;
        if pieces.is_empty() {
            if scorer.totals().windows > 0 {
                break;
            }
            pieces.push(Piece::empty());
        }
        let n_ids: usize = pieces.iter().map(|piece| piece.range.len()).sum();
        let complete = scorer.score(
            pieces,
            |read| {
                progress.set(done + read);
                !interrupt::requested()
            },
            |scored| {
                if let Some(csv_file) = &mut csv_file {
                    csv_file.add(scored);
                }
                if let Some(page) = &mut page {
                    page.add(scored);
                }
            },
        )?;
        if let Some(csv_file) = &mut csv_file {
            csv_file.check()?;
        }
        done += n_ids as u64;
        if !complete {
            interrupted = true;
            break;
        }
    }
    progress.finish();
    let time = start.elapsed();

    let totals = scorer.totals();
    if let Some(csv_file) = csv_file {
        csv_file.finish()?;
    }
    if let (Some(page), Some(path)) = (page, &args.html) {
        output::write(path, page.render(&totals).as_bytes())?;
    }
    if let Some(path) = &args.dump {
        dump::write(path, &scorer)?;
    }
    let report = match args.json {
        true => record(&totals, input.n_documents, time, interrupted),
        false => figures(&totals, input.n_documents, time),
    };
    if figures_aside {
        blt::err!("{report}");
    } else {
        let mut out = std::io::stdout().lock();
        (out.write_all(report.as_bytes()).and_then(|()| out.flush()))
            .map_err(Failure::of_output)?;
    }
    match interrupted {
        false => Ok(()),
        true => Err(Failure::Interrupted(format!(
            "interrupted: the figures are those of the first {} bytes",
            totals.n
        ))),
    }
}

/// The next pieces to read at once: one that is long enough, or several.
fn next_pieces(input: &mut Input, scorer: &Scorer) -> Result<Vec<Piece>, Failure> {
    let windows = scorer.windows();
    let (mut pieces, mut n_ids) = (Vec::new(), 0);
    while pieces.len() < MAX_LANES && n_ids < ENOUGH_IDS {
        let Some(piece) = input.next_piece(windows)? else {
            break;
        };
        n_ids += piece.range.len() + piece.n_again;
        pieces.push(piece);
    }
    Ok(pieces)
}

/// Checks the files to be written. Whether one of them is standard output, so that the figures go elsewhere.
fn check_outputs(args: &Args, checkpoint: &Checkpoint) -> Result<bool, Failure> {
    let mut inputs = Inputs::of(checkpoint);
    let read = [
        &args.model,
        &args.config,
        &args.entropy_model,
        &args.tokenizer,
    ];
    let files = read.into_iter().chain([&args.raw_ids]).flatten();
    for input in files.chain(&args.file) {
        inputs.add(input);
    }
    let aside = inputs.check(&[
        ("--per-byte", args.per_byte.as_deref()),
        ("--html", args.html.as_deref()),
        ("--dump", args.dump.as_deref()),
    ])?;
    match aside && args.json {
        true => Err(Failure::usage(
            "--json: expected no other output on standard output, found one",
        )),
        false => Ok(aside),
    }
}

/// How documents are told apart.
fn format(args: &Args) -> Format {
    Format {
        separator: args.separator.clone(),
        text_key: args.text_key.clone(),
    }
}

fn scorer(args: &Args, model: &Model) -> Result<Scorer, Failure> {
    let shows_entropies = args.per_byte.is_some() || args.html.is_some() || args.dump.is_some();
    let shown = shows_entropies && model.has_entropy_model();
    let resets = args.entropy_reset.filter(|_| !shown);
    let session = Session::new(
        model,
        SessionOptions {
            no_bos: args.raw_ids.is_some(),
            patcher: patcher_config(model.config(), args.threshold, resets)?,
            entropies: shown,
            entropy_reset: args.entropy_reset,
            max_bytes: args.context,
            kv: args.kv,
            ..SessionOptions::default()
        },
    )?;
    // Ids as they are, and positions in a dump, have no meaning across windows.
    let edge = match args.raw_ids.is_some() || args.dump.is_some() {
        true => Edge::Refuse,
        false => Edge::Restart {
            overlap: args.overlap,
        },
    };
    let wanted = Wanted {
        ids: args.per_byte.is_some() || args.html.is_some(),
        logits: args.dump.is_some(),
    };
    Ok(Scorer::new(session, edge, wanted)?)
}

fn figures(totals: &Totals, n_documents: usize, time: Duration) -> String {
    if totals.n == 0 {
        return "nothing to score: no byte has another before it\n".into();
    }
    let bits = totals.bits_per_byte();
    let documents = match n_documents {
        0 | 1 => String::new(),
        n => format!(" in {} documents", units::count(n as u64)),
    };
    let windows = match totals.windows {
        n if n <= n_documents.max(1) => String::new(),
        n => format!(" in {} windows", units::count(n as u64)),
    };
    format!(
        "{bits:.4} bits per byte\n\
         {:.3} perplexity per byte\n\
         {:.2} % of bytes were the most probable\n\
         {} bytes{documents}{windows}, {} patches of {:.2} bytes\n\
         {}, {:.0} bytes/s\n",
        bits.exp2(),
        100.0 * totals.accuracy(),
        units::count(totals.n as u64),
        units::count(totals.patches as u64),
        totals.mean_patch_length(),
        units::duration(time),
        units::per_second(totals.n, time),
    )
}

fn record(totals: &Totals, n_documents: usize, time: Duration, interrupted: bool) -> String {
    let record = json!({
        "bits_per_byte": totals.bits_per_byte(),
        "perplexity": totals.bits_per_byte().exp2(),
        "accuracy": totals.accuracy(),
        "bytes": totals.n,
        "patches": totals.patches,
        "mean_patch_length": totals.mean_patch_length(),
        "documents": n_documents,
        "windows": totals.windows,
        "seconds": time.as_secs_f64(),
        "bytes_per_second": units::per_second(totals.n, time),
        "peak_memory_bytes": memory::peak_bytes(),
        "interrupted": interrupted,
    });
    format!("{record}\n")
}
