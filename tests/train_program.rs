//! The program `blt-train`: interrupted, killed, resumed, out of room, fine-tuning.
#![cfg(all(feature = "train", feature = "cli", unix))]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use blt::checkpoint::{Checkpoint, OpenOptions, write_native};
use blt::config::PatchingMode;
use blt::train::state::Saved;
use blt::{Model, Session, SessionOptions};
use blt_kernels::BlockFormat;
use common::folder::Folder;

/// The state before the last.
const PREVIOUS: &str = "state.previous.safetensors";

/// A folder with a text in it.
fn folder(name: &str) -> Folder {
    let folder = Folder::new(name);
    let lines = (0..400).map(|i| format!("{} little stars and {} moons\n", i * i % 97, i % 13));
    folder.write("text.txt", lines.collect::<String>());
    folder
}

fn program(temp: &Folder, stage: &[&str], out: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blt-train"));
    command.args(stage).current_dir(&temp.0).args(more);
    for (flag, value) in [
        ("--out", out),
        ("--data", "text.txt"),
        ("--patching", "space"),
        ("--seq-len", "256"),
        ("--batch", "512"),
        ("--threads", "2"),
        ("--preset", "toy"),
    ] {
        let is_size = flag == "--preset" && stage[0] == "finetune";
        if !more.contains(&flag) && !is_size {
            command.args([flag, value]);
        }
    }
    command
}

fn succeed(mut command: Command) -> Output {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    output
}

/// The message of a program that must fail: one line, exit code 1.
fn fail(command: Command) -> String {
    fail_with(1, command)
}

/// The same with another exit code.
fn fail_with(code: i32, mut command: Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{errors}");
    let last = errors.lines().last().unwrap_or_default().to_string();
    assert!(last.starts_with("blt-train: "), "{errors}");
    last
}

/// What the lines of a run's log have under a key, in order.
fn logged(temp: &Folder, run: &str, key: &str) -> Vec<f64> {
    let log = std::fs::read_to_string(temp.path(run).join("log.jsonl")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
    lines
        .filter_map(|line: serde_json::Value| line[key].as_f64())
        .collect()
}

/// A checkpoint that comes with the source.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn start(mut command: Command) -> Child {
    command.stderr(Stdio::null()).spawn().unwrap()
}

fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "no {}",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_run_that_is_killed_while_it_saves_goes_on_from_a_whole_checkpoint() {
    let temp = folder("kill");
    let state = temp.path("run/state.safetensors");
    let mut steps = 0;
    for round in 0..4u64 {
        let more: &[&str] = match round {
            0 => &["--steps", "100000", "--save-every", "1"],
            _ => &["--resume"],
        };
        let mut child = start(program(&temp, &["main"], "run", more));
        wait_for(&state);
        std::thread::sleep(Duration::from_millis(150 + 37 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let saved = Saved::open(&state).unwrap();
        assert!(
            saved.position.step >= steps,
            "{} after {steps}",
            saved.position.step
        );
        steps = saved.position.step;
    }
    assert!(steps > 0);
}

#[test]
fn ctrl_c_saves_and_resuming_gives_what_an_unbroken_run_gives() {
    let temp = folder("interrupt");
    let more = [
        "--steps",
        "60",
        "--dropout",
        "0.1",
        "--valid-every",
        "20",
        "--save-every",
        "1000",
    ];
    succeed(program(&temp, &["main"], "whole", &more));

    let signal = |mut child: Child, name: &str| {
        wait_for(&temp.path("broken/log.jsonl"));
        std::thread::sleep(Duration::from_millis(150));
        let pid = child.id().to_string();
        Command::new("kill").args([name, &pid]).status().unwrap();
        child.wait().unwrap().code()
    };
    let child = start(program(&temp, &["main"], "broken", &more));
    assert_eq!(signal(child, "-INT"), Some(130));
    let state = temp.path("broken/state.safetensors");
    let step = Saved::open(&state).unwrap().position.step;
    // Lines of steps after the state, and half a line: a killed run leaves them.
    let log = temp.path("broken/log.jsonl");
    let mut text = std::fs::read_to_string(&log).unwrap();
    text.push_str("{\"step\": 59, \"loss\": 0}\n{\"step");
    std::fs::write(&log, text).unwrap();
    let child = start(program(&temp, &["main"], "broken", &["--resume"]));
    let code = signal(child, "-TERM");
    assert!([Some(143), Some(0)].contains(&code), "{code:?}");
    assert!(Saved::open(&state).unwrap().position.step > step);
    succeed(program(
        &temp,
        &["main"],
        "broken",
        &["--resume", "--plot", "curve.svg"],
    ));
    let of = |run: &str| std::fs::read(temp.path(run).join("model.safetensors")).unwrap();
    assert!(of("whole") == of("broken"));
    assert!(
        std::fs::read_to_string(temp.path("curve.svg"))
            .unwrap()
            .starts_with("<svg")
    );
    for line in std::fs::read_to_string(temp.path("whole/log.jsonl"))
        .unwrap()
        .lines()
    {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["step"].is_u64(), "{line}");
    }
}

#[test]
fn the_whole_way_from_an_entropy_model_to_a_fine_tuned_model() {
    let temp = folder("way");
    let entropy = ["--steps", "20", "--lr", "1e-2"];
    succeed(program(&temp, &["entropy"], "entropy", &entropy));
    let main = [
        "--steps",
        "20",
        "--patching",
        "entropy",
        "--entropy-model",
        "entropy",
        "--hf",
        "hf",
    ];
    succeed(program(&temp, &["main"], "main", &main));
    let model = Model::open(temp.path("main/model.safetensors")).unwrap();
    assert!(model.has_entropy_model());

    // Adapters on the HF layout, merged into a normal file of the same shape.
    let lora = [
        "--steps",
        "5",
        "--patching",
        "entropy",
        "--lora-rank",
        "2",
        "--lr",
        "2e-3",
    ];
    succeed(program(&temp, &["finetune", "hf"], "tuned", &lora));
    let tuned = Model::open(temp.path("tuned/model.safetensors")).unwrap();
    assert_eq!(tuned.config(), model.config());
    let of = |run: &str| std::fs::read(temp.path(run).join("model.safetensors")).unwrap();
    assert!(of("main") != of("tuned"));

    // The checkpoint was validated before the first step.
    let log = std::fs::read_to_string(temp.path("tuned/log.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert!(
        first["step"] == 0 && first["valid_loss"].is_f64(),
        "{first}"
    );

    // All weights, cut another way.
    let space = ["--steps", "2", "--patching", "space"];
    succeed(program(
        &temp,
        &["finetune", "tuned/model.safetensors"],
        "again",
        &space,
    ));
}

#[test]
fn bolmo_models_are_refused_in_one_sentence() {
    let temp = folder("bolmo");
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bolmo-bwen");
    std::fs::create_dir_all(temp.path("bolmo/tokenizer")).unwrap();
    for (from, to) in [("model", "bolmo"), ("tokenizer", "bolmo/tokenizer")] {
        for file in std::fs::read_dir(case.join(from)).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), temp.path(to).join(file.file_name())).unwrap();
        }
    }
    for more in [&[][..], &["--lora-rank", "2"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blt-train"));
        command.args(["finetune", "bolmo", "--data", "text.txt", "--out", "tuned"]);
        command.current_dir(&temp.0).args(more);
        let message = fail(command);
        assert!(
            message.contains("Bolmo model cannot be trained"),
            "{message}"
        );
    }
    assert!(!temp.path("tuned").exists());
}

#[test]
fn a_tied_model_stays_tied_and_adapters_are_for_finetune() {
    let temp = folder("tied");
    let main = ["--steps", "3", "--tied", "true", "--dtype", "f32"];
    succeed(program(&temp, &["main"], "main", &main));
    let tune = ["finetune", "main/model.safetensors"];
    let more = ["--steps", "3", "--dtype", "f32", "--lr", "1e-3"];
    succeed(program(&temp, &tune, "tuned", &more));
    let embedding = |run: &str, name: &str| {
        let path = temp.path(run).join("model.safetensors");
        let checkpoint = Checkpoint::open(&path, &OpenOptions::default()).unwrap();
        let shape = [260, checkpoint.config().encoder.dim];
        checkpoint.tensor(name, &shape).unwrap().to_f32_vec()
    };
    for run in ["main", "tuned"] {
        assert!(
            embedding(run, "encoder.tok_embeddings") == embedding(run, "decoder.output"),
            "{run}"
        );
    }
    assert!(embedding("main", "decoder.output") != embedding("tuned", "decoder.output"));

    let lora = program(&temp, &["main"], "lora", &["--lora-rank", "2"])
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&lora.stderr);
    assert!(
        message.contains("--lora-rank: expected it with finetune"),
        "{message}"
    );
    assert_eq!(lora.status.code(), Some(2));
}

#[test]
fn patches_are_cut_every_way_there_is() {
    let temp = folder("patching");
    succeed(program(&temp, &["entropy"], "entropy", &["--steps", "5"]));
    for (mode, more) in [
        ("byte", &[][..]),
        ("space", &[]),
        ("static", &["--patch-size", "3"]),
        ("entropy", &["--entropy-model", "entropy"]),
    ] {
        let all = [
            &["--patching", mode, "--steps", "3", "--log-every", "1"],
            more,
        ]
        .concat();
        let out = format!("main-{mode}");
        succeed(program(&temp, &["main"], &out, &all));
        let length = logged(&temp, &out, "mean_patch_length")[2];
        let expected = match mode {
            "byte" => 0.9..1.1,
            "static" => 2.9..3.1,
            _ => 1.5..9.0,
        };
        assert!(expected.contains(&length), "{mode}: {length}");
        let model = Model::open(temp.path(&out).join("model.safetensors")).unwrap();
        assert_eq!(
            model.config().patcher.mode,
            mode.parse::<PatchingMode>().unwrap()
        );
        let mut session = Session::new(&model, SessionOptions::default()).unwrap();
        session.feed(b"7 little stars and 3 moons").unwrap();
        assert!(session.logits().iter().all(|l| l.is_finite()), "{mode}");
    }
}

#[test]
fn differential_attention_learns_and_goes_on() {
    let temp = folder("differential");
    let settings = "diff_attention = [\"all\"]\ndiff_norm = [\"encoder\", \"entropy\"]\n\
                    steps = 40\nlr = 1e-2\nlog_every = 1\ndtype = \"f32\"\n";
    std::fs::write(temp.path("run.toml"), settings).unwrap();
    let config = ["--config", "run.toml"];
    succeed(program(&temp, &["entropy"], "entropy", &config));
    let main = [
        &config[..],
        &["--patching", "entropy", "--entropy-model", "entropy"],
    ]
    .concat();
    succeed(program(&temp, &["main"], "main", &main));
    let model = Model::open(temp.path("main/model.safetensors")).unwrap();
    let c = model.config();
    let stacks = [
        c.entropy.as_ref().unwrap(),
        &c.encoder,
        &c.global,
        &c.decoder,
    ];
    let norms = stacks.map(|stack| stack.differential.as_ref().unwrap().head_norm);
    assert_eq!(norms, [true, true, false, false]);
    let tune = [
        "--lr",
        "2e-3",
        "--steps",
        "10",
        "--patching",
        "entropy",
        "--log-every",
        "1",
        "--dtype",
        "f32",
    ];
    succeed(program(
        &temp,
        &["finetune", "main/model.safetensors"],
        "tuned",
        &tune,
    ));
    for (run, below) in [("entropy", 0.6), ("main", 0.6), ("tuned", 1.0)] {
        let losses = logged(&temp, run, "loss");
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(last < below * first, "{run}: {first} to {last}");
    }
    let went_on = logged(&temp, "tuned", "loss")[0] / logged(&temp, "main", "loss")[39];
    assert!((0.8..1.2).contains(&went_on), "{went_on}");

    let hf = [&main[..], &["--steps", "1", "--hf", "hf"]].concat();
    let message = fail(program(&temp, &["main"], "hf-run", &hf));
    assert!(message.contains("no differential attention"), "{message}");
    assert!(
        !temp.path("hf-run/log.jsonl").exists(),
        "refused before the work"
    );
}

#[test]
fn a_run_that_gets_no_better_stops() {
    let temp = folder("patience");
    let more = [
        "--steps",
        "50",
        "--valid-every",
        "1",
        "--patience",
        "2",
        "--lr",
        "0",
    ];
    let output = succeed(program(&temp, &["main"], "run", &more));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("no better for 2 validations"), "{errors}");
    let saved = Saved::open(&temp.path("run/state.safetensors")).unwrap();
    assert_eq!((saved.position.step, saved.position.stale), (3, 2));
    let of = |name: &str| std::fs::read(temp.path("run").join(name)).unwrap();
    assert!(of("best.safetensors") == of("model.safetensors"));
}

#[test]
fn the_model_is_the_best_on_validation_unless_the_last_is_asked_for() {
    let temp = folder("best");
    // Good steps, then a learning rate at which everything that was learned is lost again.
    let good = ["--steps", "12", "--valid-every", "6", "--lr", "1e-2"];
    let bad = |keep| ["--resume", "--steps", "18", "--lr", "2", "--keep", keep];
    for keep in ["best", "last"] {
        let entropy = format!("entropy-{keep}");
        succeed(program(&temp, &["entropy"], &entropy, &good));
        succeed(program(&temp, &["entropy"], &entropy, &bad(keep)));
        let weights = |name: &str| {
            let saved = Saved::open(&temp.path(&entropy).join(name)).unwrap();
            let shape = [260, saved.config.entropy.as_ref().unwrap().dim];
            saved.param("entropy.output", &shape).unwrap()
        };
        let (chosen, best) = (weights("entropy.safetensors"), weights("best.safetensors"));
        assert_eq!(chosen == best, keep == "best");
        assert!(weights("state.safetensors") != best);

        let patching = ["--patching", "entropy", "--entropy-model", &entropy];
        let run = |more: &[&str]| {
            let more = [&patching, more].concat();
            succeed(program(&temp, &["main"], keep, &more));
        };
        run(&good);
        run(&[&bad(keep)[..], &["--hf", &format!("hf-{keep}")]].concat());
        let losses = logged(&temp, keep, "valid_loss");
        let saved = Saved::open(&temp.path(keep).join("state.safetensors")).unwrap();
        assert!(*losses.last().unwrap() > saved.position.best, "{losses:?}");
        let of = |name: &str| std::fs::read(temp.path(keep).join(name)).unwrap();
        let is_best = of("best.safetensors") == of("model.safetensors");
        assert_eq!(is_best, keep == "best");
        // The folder for transformers holds the same weights.
        let open = |path: &Path| Checkpoint::open(path, &OpenOptions::default()).unwrap();
        let native = open(&temp.path(keep).join("model.safetensors"));
        let hf = open(&temp.path(&format!("hf-{keep}")));
        let mut n_same = 0;
        for ((name, a), (_, b)) in native.tensors().zip(hf.tensors()) {
            if a.dtype() == b.dtype() {
                assert!(a.bytes() == b.bytes(), "{name}");
                n_same += 1;
            }
        }
        assert!(n_same > 20, "{n_same} matrices");
    }
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint_as_it_was() {
    let temp = folder("full");
    let more = ["--steps", "4", "--valid-every", "2"];
    succeed(program(&temp, &["main"], "run", &more));
    let files = || {
        let mut files: Vec<_> = std::fs::read_dir(temp.path("run"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().unwrap() != "jsonl" && !path.ends_with(PREVIOUS))
            .map(|path| (path.clone(), std::fs::read(path).unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = files();
    assert_eq!(before.len(), 3);
    // Files may not grow beyond 64 blocks, and the signal for that is ignored: writing fails, as it
    // does when there is no room.
    let more = [
        "--resume",
        "--steps",
        "8",
        "--save-every",
        "1",
        "--valid-every",
        "100",
    ];
    let on = program(&temp, &["main"], "run", &more);
    let mut limited = Command::new("sh");
    limited.current_dir(&temp.0);
    limited.args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\""]);
    limited.arg(on.get_program()).args(on.get_args());
    let message = fail(limited);
    assert!(
        message.contains("run/state.safetensors: File too large"),
        "{message}"
    );
    assert!(files() == before);
    succeed(on);
    let saved = Saved::open(&temp.path("run/state.safetensors")).unwrap();
    assert_eq!(saved.position.step, 8);
}

#[test]
fn the_same_text_trains_the_same_model_however_it_comes() {
    let temp = folder("sources");
    let text = std::fs::read_to_string(temp.path("text.txt")).unwrap();
    std::fs::create_dir_all(temp.path("folder/inner")).unwrap();
    std::fs::write(temp.path("folder/inner/a.txt"), &text).unwrap();
    std::fs::write(temp.path("folder/.hidden"), "not to be read").unwrap();
    let line = serde_json::json!({"text": text, "title": "stars"});
    std::fs::write(temp.path("text.jsonl"), format!("\n{line}\n")).unwrap();
    let mut models = Vec::new();
    for data in ["text.txt", "folder", "text.jsonl", "-"] {
        let more = ["--steps", "2", "--overwrite", "--data", data];
        let mut command = program(&temp, &["main"], "run", &more);
        command.stdin(std::fs::File::open(temp.path("text.txt")).unwrap());
        succeed(command);
        models.push(std::fs::read(temp.path("run/model.safetensors")).unwrap());
    }
    assert!(models.iter().all(|model| *model == models[0]));
    let more = ["--steps", "2", "--overwrite", "--valid", "folder"];
    succeed(program(&temp, &["main"], "run", &more));
    assert_ne!(
        std::fs::read(temp.path("run/model.safetensors")).unwrap(),
        models[0]
    );
}

#[test]
fn data_that_cannot_be_read_is_named() {
    let temp = folder("unreadable");
    std::fs::create_dir(temp.path("empty")).unwrap();
    std::fs::write(
        temp.path("bad.jsonl"),
        "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n",
    )
    .unwrap();
    std::fs::write(temp.path("nothing.txt"), "").unwrap();
    std::fs::write(temp.path("text.txt.gz"), b"\x1f\x8b\x08\0").unwrap();
    std::fs::write(temp.path("table.parquet"), b"PAR1").unwrap();
    std::os::unix::fs::symlink("nowhere", temp.path("dangling")).unwrap();
    for (data, code, expected) in [
        ("missing", 1, "No such file"),
        ("dangling", 1, "No such file"),
        ("empty", 2, "--data: expected text, found none in empty"),
        (
            "nothing.txt",
            2,
            "--data: expected text, found none in nothing.txt",
        ),
        ("/dev/zero", 1, "/dev/zero: expected text, found a device"),
        (
            "text.txt.gz",
            1,
            "gzip data; unpack it first: gzip -dk text.txt.gz",
        ),
        ("table.parquet", 1, "a Parquet table"),
        (
            "bad.jsonl",
            1,
            "line 2: expected an object with a string \"text\"",
        ),
    ] {
        let more = ["--steps", "2", "--data", data];
        let message = fail_with(code, program(&temp, &["main"], "run", &more));
        assert!(message.contains(expected), "{data}: {message}");
        assert!(!temp.path("run/state.safetensors").exists(), "{data}");
    }
}

#[test]
fn a_run_is_replaced_only_on_request_and_by_one_program() {
    let temp = folder("overwrite");
    let steps = ["--steps", "3", "--valid-every", "1"];
    succeed(program(&temp, &["main"], "run", &steps));
    let files = || {
        let list = std::fs::read_dir(temp.path("run")).unwrap();
        let read = list.map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = read
            .map(|path| (path.clone(), std::fs::read(path).unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = files();
    let message = fail(program(&temp, &["main"], "run", &steps));
    for expected in ["step 3 of 3 of main", "--resume", "--overwrite"] {
        assert!(message.contains(expected), "{message}");
    }
    // A request that fails takes nothing away.
    let wrong = ["--overwrite", "--data", "missing"];
    fail(program(&temp, &["main"], "run", &wrong));
    assert!(files() == before);
    let more = ["--steps", "2", "--valid-share", "0", "--overwrite"];
    succeed(program(&temp, &["main"], "run", &more));
    let names: Vec<_> = files().into_iter().map(|(path, _)| path).collect();
    let names: Vec<_> = names.iter().map(|path| path.file_name().unwrap()).collect();
    assert_eq!(
        names,
        ["log.jsonl", "model.safetensors", "state.safetensors"]
    );

    let long = ["--steps", "100000", "--overwrite", "--save-every", "1s"];
    let mut first = start(program(&temp, &["main"], "run", &long));
    // The first has taken the folder when the old model is gone.
    while temp.path("run/model.safetensors").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let message = fail(program(&temp, &["main"], "run", &["--resume"]));
    assert!(
        message.contains("run: another process is writing"),
        "{message}"
    );
    wait_for(&temp.path("run/state.safetensors"));
    wait_for(&temp.path("run").join(PREVIOUS));
    first.kill().unwrap();
    first.wait().unwrap();
    let step = |name: &str| {
        Saved::open(&temp.path("run").join(name))
            .unwrap()
            .position
            .step
    };
    assert!(step(PREVIOUS) <= step("state.safetensors"));

    let inputs: [(&[&str], &str); 3] = [
        (
            &["--out", "run", "--data", "run/log.jsonl", "--overwrite"],
            "which is read",
        ),
        (&["--out", "new", "--data", "."], "outside of the data"),
        (
            &["--out", "new", "--log", "text.txt"],
            "than those that are read",
        ),
    ];
    for (more, expected) in inputs {
        let output = program(&temp, &["main"], "run", more).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{more:?}: {message}");
        assert!(message.contains(expected), "{more:?}: {message}");
    }
    assert!(!temp.path("new").exists(), "made for nothing");
}

#[test]
fn a_run_continues_on_its_own_data() {
    let temp = folder("data");
    let text = std::fs::read_to_string(temp.path("text.txt")).unwrap();
    let set = ["--steps", "4", "--valid-share", "0.2"];
    succeed(program(&temp, &["main"], "run", &set));
    let (half, more) = (&text[..text.len() / 2], format!("{text}and more\n"));
    let resume = ["--resume", "--steps", "6"];
    for other in [half, &more, &text.replace('7', "8")] {
        std::fs::write(temp.path("text.txt"), other).unwrap();
        let message = fail_with(2, program(&temp, &["main"], "run", &resume));
        assert!(message.starts_with("blt-train: --data: "), "{message}");
        assert!(message.contains("--new-data"), "{message}");
    }
    // The same text elsewhere is the same.
    std::fs::write(temp.path("moved.txt"), &text).unwrap();
    let moved = [&resume[..], &["--data", "moved.txt"]].concat();
    succeed(program(&temp, &["main"], "run", &moved));
    std::fs::write(temp.path("text.txt"), half).unwrap();
    let new = ["--resume", "--steps", "8", "--new-data"];
    succeed(program(&temp, &["main"], "run", &new));
    let position = Saved::open(&temp.path("run/state.safetensors"))
        .unwrap()
        .position;
    assert_eq!(position.step, 8);
    succeed(program(
        &temp,
        &["main"],
        "run",
        &["--resume", "--steps", "9"],
    ));
}

/// A run survives a reader of standard error that goes away.
#[test]
fn nobody_needs_to_read_along() {
    let temp = folder("closed");
    let more = ["--steps", "6", "--log-every", "1"];
    let mut command = program(&temp, &["main"], "run", &more);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(temp.path("run/model.safetensors").exists());
}

#[test]
fn the_log_and_the_curves_can_go_to_standard_output() {
    let temp = folder("stdout");
    let more = ["--steps", "3", "--log-every", "1", "--quiet"];
    let log = [&more[..], &["--log", "-"]].concat();
    let output = succeed(program(&temp, &["main"], "log", &log)).stdout;
    let lines = String::from_utf8(output).unwrap();
    let steps = lines.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["step"].as_u64().unwrap()
    });
    assert_eq!(steps.collect::<Vec<_>>()[..2], [1, 2]);
    assert!(!temp.path("-").exists() && !temp.path("log/log.jsonl").exists());
    let plot = [&more[..], &["--plot", "-"]].concat();
    let output = succeed(program(&temp, &["main"], "plot", &plot)).stdout;
    assert!(output.starts_with(b"<svg") && !temp.path("-").exists());
    // A reader that goes away loses nothing of the run.
    let mut command = program(&temp, &["main"], "closed", &log);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
    assert!(temp.path("closed/model.safetensors").exists());
}

#[test]
fn every_layout_can_be_fine_tuned() {
    let temp = folder("layouts");
    for (name, entropy) in [
        ("hf-gqa/model", None),
        ("meta-bf16/consolidated", None),
        ("meta-space/hub", None),
        ("meta-threshadd/hub", Some("meta-threshadd/entropy_hub")),
    ] {
        let path = fixture(name).display().to_string();
        let options = OpenOptions {
            entropy_model: entropy.map(fixture),
            ..OpenOptions::default()
        };
        let source = Checkpoint::open(path.as_ref(), &options).unwrap();
        let mode = source.config().patcher.mode.name();
        let separate = entropy.map(|e| fixture(e).display().to_string());
        let tune = |out: &str, set: &[&str]| {
            let mut more = vec!["--patching", mode, "--dtype", "f32", "--log-every", "1"];
            more.push("--overwrite");
            if let Some(entropy) = &separate {
                more.extend(["--entropy-model", entropy]);
            }
            more.extend(set);
            succeed(program(&temp, &["finetune", &path], out, &more));
            let path = temp.path(out).join("model.safetensors");
            Checkpoint::open(&path, &OpenOptions::default()).unwrap()
        };
        // A learning rate of 0 changes nothing.
        let same = tune("same", &["--steps", "1", "--lr", "0"]);
        assert_eq!(same.config(), source.config(), "{name}");
        for (tensor, values) in source.tensors() {
            let found = same.tensor(tensor, values.shape()).unwrap();
            assert_eq!(found.to_f32_vec(), values.to_f32_vec(), "{name}: {tensor}");
        }
        tune("tuned", &["--steps", "8", "--lr", "1e-2"]);
        let losses = logged(&temp, "tuned", "loss");
        assert!(losses[7] < 0.9 * losses[0], "{name}: {losses:?}");
    }
}

#[test]
fn quantised_weights_are_refused_or_widened() {
    let temp = folder("quantised");
    let source = Checkpoint::open(&fixture("hf-gqa/model"), &OpenOptions::default()).unwrap();
    for format in [BlockFormat::Q8_0, BlockFormat::Q4K] {
        let quantised = common::quantized(&source, format);
        let tensors = quantised
            .tensors()
            .map(|(name, t)| (name.to_string(), t.clone()));
        write_native(&temp.path("quantised"), source.config(), tensors).unwrap();
        let tune = |more: &[&str]| {
            let set = [
                "--patching",
                "entropy",
                "--dtype",
                "f32",
                "--steps",
                "1",
                "--lr",
                "0",
                "--overwrite",
            ];
            program(
                &temp,
                &["finetune", "quantised"],
                "run",
                &[&set, more].concat(),
            )
        };
        let message = fail(tune(&[]));
        assert!(
            message.contains("--dequantize") && message.contains(format.name()),
            "{message}"
        );
        for more in [&["--dequantize"][..], &["--dequantize", "--lora-rank", "2"]] {
            succeed(tune(more));
            let path = temp.path("run/model.safetensors");
            let tuned = Checkpoint::open(&path, &OpenOptions::default()).unwrap();
            for (name, tensor) in quantised.tensors() {
                let found = tuned.tensor(name, tensor.shape()).unwrap();
                assert_eq!(found.to_f32_vec(), tensor.to_f32_vec(), "{name}");
            }
        }
    }
}

#[test]
fn bench_measures_training_beside_the_peak() {
    let temp = folder("bench");
    let mut command = Command::new(env!("CARGO_BIN_EXE_blt-train"));
    command.args(["bench", "--preset", "toy", "--steps", "2"]);
    command.args(["--batch", "512", "--seq-len", "128"]);
    command.current_dir(&temp.0);
    let output = succeed(command);
    let text = String::from_utf8(output.stdout).unwrap();
    let row = text.lines().find(|line| line.starts_with("f32")).unwrap();
    let numbers = row.split_whitespace().filter_map(|word| word.parse().ok());
    let numbers: Vec<f64> = numbers.collect(); // bytes/s, GFLOP/s, peak, three shares
    assert_eq!(numbers.len(), 6, "{row}");
    assert!(numbers[..2].iter().all(|&x| x > 0.0), "{row}");
    assert!(numbers[1] < numbers[2], "{row}");
    assert_eq!(std::fs::read_dir(&temp.0).unwrap().count(), 1); // text.txt
}

#[test]
fn wrong_usage_is_one_line_and_exit_code_2() {
    let temp = folder("usage");
    for (args, expected) in [
        (&["dance"][..], "entropy, main, finetune"),
        (&["finetune"], "checkpoint"),
        (&["main", "--dance", "1"], "--dance: unknown flag"),
        (&["main", "--stps=1"], "did you mean --steps?"),
        (&["main", "--lr", "11"], "--lr: expected 0 to 10"),
        (&["main", "--steps"], "--steps: expected a value"),
        (
            &["main", "--steps=1", "--steps=2"],
            "--steps: expected once",
        ),
        (&["main", "x"], "no further argument"),
        (&["main"], "--data: expected at least one"),
        (&["main", "--data=x", "--preset=huge"], "--preset: expected"),
        // Flags without effect.
        (
            &["main", "--dequantize"],
            "--dequantize: expected the stage finetune",
        ),
        (&["entropy", "--hf", "x"], "--hf: expected the stage main"),
        (
            &["entropy", "--local-dim", "64"],
            "--local-dim: expected the stage main",
        ),
        (
            &["main", "--entropy-dim", "64"],
            "--entropy-dim: expected the stage entropy",
        ),
        (
            &["main", "--patch-length", "3"],
            "--patch-length: expected the stage entropy",
        ),
        (
            &["main", "--valid=x", "--valid-share=0.1"],
            "--valid-share: expected no --valid",
        ),
        (
            &["main", "--cooldown", "0.2"],
            "--cooldown: expected --decay trapezoid",
        ),
        (
            &["main", "--lora-alpha", "4"],
            "--lora-alpha: expected --lora-rank",
        ),
        (
            &["bench", "--save-every", "4"],
            "--save-every: expected another stage",
        ),
        (&["bench", "--resume"], "--resume: expected another stage"),
        (
            &["main", "--data=x", "--patching=space", "--patch-size=4"],
            "--patch-size: expected --patching static",
        ),
        (
            &["main", "--data=x", "--patching=space", "--entropy-model=x"],
            "--entropy-model: expected --patching entropy",
        ),
        (
            &["main", "--data=x", "--log=-", "--plot=x.svg"],
            "--plot: expected --log to be a file",
        ),
        (&["main", "--resume", "--overwrite"], "found both"),
        (&["main", "--new-data"], "--resume"),
        (&["main", "--plot", "x.png"], ".svg or .html"),
        (&["main", "--save-every", "0s"], "as in 10m"),
        (
            &["main", "--steps", "x"],
            "--steps: expected a whole number",
        ),
        (
            &["finetune", "model", "--data=x", "--diff-attention", "all"],
            "--diff-attention: finetune takes the sizes from the checkpoint",
        ),
        (
            &["finetune", "model", "--data=x", "--preset", "tiny"],
            "--preset: ",
        ),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blt-train"));
        let output = command.args(args).current_dir(&temp.0).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {errors}");
        assert!(
            errors.lines().count() == 1 && errors.contains(expected),
            "{args:?}: {errors}"
        );
    }
    let help = Command::new(env!("CARGO_BIN_EXE_blt-train"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8_lossy(&help.stdout);
    for part in [
        "\nData:\n",
        "\nOptimiser:\n",
        "\nSizes:\n",
        "--lora-rank <value>   rank of the",
    ] {
        assert!(help.contains(part), "{part} in {help}");
    }
}
