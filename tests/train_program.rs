//! The program `blt-train`: interrupted, killed, resumed, fine-tuning.
#![cfg(all(feature = "train", feature = "cli", unix))]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use blt::Model;
use blt::train::state::Saved;

struct Temp(PathBuf);

impl Temp {
    /// A folder with a text in it.
    fn new(name: &str) -> Temp {
        let folder =
            std::env::temp_dir().join(format!("blt-program-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let lines = (0..400).map(|i| format!("{} little stars and {} moons\n", i * i % 97, i % 13));
        std::fs::write(folder.join("text.txt"), lines.collect::<String>()).unwrap();
        Temp(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn program(temp: &Temp, stage: &[&str], out: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blt-train"));
    command.args(stage).current_dir(&temp.0);
    command.args([
        "--data",
        "text.txt",
        "--preset",
        "toy",
        "--patching",
        "space",
        "--out",
        out,
    ]);
    command.args([
        "--seq-len",
        "256",
        "--batch",
        "512",
        "--warmup",
        "2",
        "--threads",
        "2",
    ]);
    command.args(more);
    command
}

fn succeed(mut command: Command) -> Output {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    output
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
    let temp = Temp::new("kill");
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
    let temp = Temp::new("interrupt");
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

    let child = start(program(&temp, &["main"], "broken", &more));
    wait_for(&temp.path("broken/log.jsonl"));
    std::thread::sleep(Duration::from_millis(150));
    let pid = child.id().to_string();
    Command::new("kill").args(["-INT", &pid]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "Ctrl-C is no failure: {:?}",
        output.status
    );
    wait_for(&temp.path("broken/state.safetensors"));
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
    let temp = Temp::new("way");
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
    let lora = ["--steps", "5", "--patching", "entropy", "--lora-rank", "2"];
    succeed(program(&temp, &["finetune", "hf"], "tuned", &lora));
    let tuned = Model::open(temp.path("tuned/model.safetensors")).unwrap();
    assert_eq!(tuned.config(), model.config());
    let of = |run: &str| std::fs::read(temp.path(run).join("model.safetensors")).unwrap();
    assert!(of("main") != of("tuned"));

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
fn wrong_usage_is_one_line_and_exit_code_2() {
    let temp = Temp::new("usage");
    for (args, expected) in [
        (&["dance"][..], "entropy, main, finetune"),
        (&["finetune"], "checkpoint"),
        (&["main", "--dance", "1"], "dance"),
        (&["main", "--steps"], "after --steps"),
        (&["main", "--steps", "x"], "steps"),
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
    assert!(String::from_utf8_lossy(&help.stdout).contains("--lora-rank"));
}
