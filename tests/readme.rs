//! The README as a newcomer uses it: its commands run, its output and its picture are what the programs print.
//! (Its Rust snippet is a doctest of the crate; `.ci/steps/c` runs the C and Python snippets of examples/README.md;
//! `quantize/tests/readme.rs` runs the lines of blt-quantize.)

// The example has a `main` of its own.
#[allow(dead_code)]
#[path = "../examples/picture.rs"]
mod picture;

use std::path::Path;
use std::process::{Command, Output, Stdio};

const README: &str = include_str!("../README.md");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const DEFAULT_MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/default.safetensors");

/// The commands of the README's console blocks, without prompts and comments.
fn commands() -> Vec<&'static str> {
    let blocks = README.split("```console\n").skip(1);
    blocks
        .flat_map(|block| block.split("```").next().unwrap().lines())
        .filter_map(|line| line.strip_prefix("$ "))
        .map(|line| line.split(" #").next().unwrap().trim())
        .collect()
}

/// Splits a command line at spaces outside of double quotes.
fn words(command: &str) -> Vec<String> {
    let quoted = command.split('"').enumerate();
    quoted.fold(vec![String::new()], |mut words, (i, piece)| {
        if i % 2 == 1 {
            words.last_mut().unwrap().push_str(piece);
            return words;
        }
        for (j, word) in piece.split(' ').enumerate() {
            if j > 0 {
                words.push(String::new());
            }
            words.last_mut().unwrap().push_str(word);
        }
        words
    })
}

fn program(name: &str) -> Option<&'static str> {
    match name {
        "blt-run" => Some(env!("CARGO_BIN_EXE_blt-run")),
        "blt-score" => Some(env!("CARGO_BIN_EXE_blt-score")),
        "blt-info" => Some(env!("CARGO_BIN_EXE_blt-info")),
        "blt-bench" => Some(env!("CARGO_BIN_EXE_blt-bench")),
        "blt-train" => Some(env!("CARGO_BIN_EXE_blt-train")),
        _ => None,
    }
}

fn run(program: &str, args: &[String], folder: &Path) -> Output {
    let output = (Command::new(program).args(args).current_dir(folder))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {args:?}: {:?}: {errors}",
        output.status
    );
    output
}

#[test]
fn the_first_command_prints_what_the_readme_shows() {
    let command = commands()[0];
    let args = command.strip_prefix("cargo run --release -- ").unwrap();
    let mut args = words(args);
    args.push("--quiet".into());
    let found = run(program("blt-run").unwrap(), &args, Path::new(ROOT)).stdout;
    let marked = "<!-- output of the first command -->\n```text\n";
    let shown = README.split(marked).nth(1).unwrap();
    let shown = shown.split("\n```").next().unwrap();
    assert_eq!(String::from_utf8_lossy(&found).trim_end(), shown);
}

/// Runs each program's lines in an empty folder with the files that they name.
#[test]
fn the_commands_run() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("readme");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["notes.txt", "book.txt", "page.txt"] {
        std::fs::write(folder.join(name), "One day, Tom went to the park.\n").unwrap();
    }
    std::fs::create_dir(folder.join("stories")).unwrap();
    std::fs::write(folder.join("stories/one.txt"), "Tom was happy.\n").unwrap();
    std::fs::write(folder.join("web.jsonl"), "{\"text\": \"Tom ran home.\"}\n").unwrap();
    let text = "One day, Tom went to the park. He was happy.\n<|endoftext|>\n".repeat(200);
    std::fs::write(folder.join("my.txt"), text).unwrap();

    let mut n_run = 0;
    for command in commands() {
        let words = words(command);
        let Some(program) = program(&words[0]) else {
            let known = ["cargo ", "blt-quantize "];
            assert!(known.iter().any(|k| command.starts_with(k)), "{command}");
            continue;
        };
        let model = |word: &String| match word.as_str() {
            "MODEL" => DEFAULT_MODEL.into(),
            _ => word.clone(),
        };
        let mut args: Vec<String> = words[1..].iter().map(model).collect();
        if words.get(1).is_some_and(|word| word == "finetune") {
            // A thousand steps take an hour.
            args.extend(["--steps", "2", "--batch", "512"].map(String::from));
        }
        let output = run(program, &args, &folder);
        if !command.contains(" -i") && !command.contains("finetune") {
            assert!(!output.stdout.is_empty(), "{command}: no output");
        }
        n_run += 1;
    }
    assert!(n_run >= 9, "found {n_run} commands of the programs");
    let page = std::fs::read_to_string(folder.join("page.html")).unwrap();
    assert!(page.contains("<h1>page.txt</h1>"), "{page}");
    assert!(folder.join("tuned/model.safetensors").exists());
}

#[test]
fn the_model_card_shows_what_blt_info_prints() {
    let args = ["models/default.safetensors".to_string()];
    let found = run(program("blt-info").unwrap(), &args, Path::new(ROOT)).stdout;
    let card = include_str!("../models/README.md");
    let shown = card
        .split("<!-- output of blt-info -->\n```text\n")
        .nth(1)
        .unwrap();
    let shown = shown.split("\n```").next().unwrap();
    assert_eq!(String::from_utf8_lossy(&found).trim_end(), shown);
}

#[test]
fn the_picture_is_what_the_example_draws() {
    let source = include_str!("../examples/picture.rs");
    let text = source.split("//!     \"").nth(1).unwrap();
    let text = text.split('"').next().unwrap();
    let model = blt::Model::open(DEFAULT_MODEL).unwrap();
    let drawn = picture::draw(&model, text).unwrap();
    assert!(
        drawn == include_str!("../docs/patches.svg"),
        "docs/patches.svg is out of date; run the command at the top of examples/picture.rs"
    );
}

/// Links to files of the repository, in every document, name a file that is there.
#[test]
fn links_lead_somewhere() {
    let documents = [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "benches/README.md",
        "docs/agreement.md",
        "docs/bolmo.md",
        "docs/gpu.md",
        "docs/training.md",
        "examples/README.md",
        "models/README.md",
    ];
    for document in documents {
        let path = Path::new(ROOT).join(document);
        let text = std::fs::read_to_string(&path).unwrap();
        let targets = text.split("](").skip(1).filter_map(|t| t.split(')').next());
        for target in targets.filter(|t| !t.starts_with("http") && !t.starts_with('#')) {
            let file = target.split('#').next().unwrap();
            let file = path.parent().unwrap().join(file);
            assert!(file.exists(), "{document}: {target} does not exist");
        }
    }
}
