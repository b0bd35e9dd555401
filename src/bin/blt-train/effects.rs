//! Flags that would have no effect are errors. Settings of a file may be for several stages and are not checked.

use blt::cli::args::Failure;
use blt::config::PatchingMode;
use blt::train::settings::Settings;

use super::args::Args;

/// Settings that `bench` does not use.
const NOT_FOR_BENCH: [&str; 10] = [
    "out",
    "valid",
    "valid-share",
    "valid-every",
    "valid-bytes",
    "save-every",
    "log-every",
    "patience",
    "keep",
    "precision",
];

/// Beginnings of the sizes of everything but the entropy model.
const NOT_FOR_ENTROPY: [&str; 6] = [
    "local-", "global-", "encoder-", "decoder-", "cross-", "hash-",
];

/// Checks the flags that depend on the stage or on other settings.
///
/// # Errors
/// [`Failure::Usage`] naming the flag.
pub fn check(args: &Args, settings: &Settings) -> Result<(), Failure> {
    let stage = args.stage.as_str();
    let is_new = ["main", "bench"].contains(&stage);
    let of_stage = |expected: &str| format!("expected {expected}, found {stage}");
    let not_bench = "another stage than bench";
    for (flag, given, has_effect, expected) in [
        (
            "--dequantize",
            args.dequantize,
            stage == "finetune",
            "the stage finetune",
        ),
        (
            "--hf",
            args.hf.is_some(),
            ["main", "finetune"].contains(&stage),
            "the stage main or finetune",
        ),
        ("--resume", args.resume, stage != "bench", not_bench),
        ("--overwrite", args.overwrite, stage != "bench", not_bench),
        ("--plot", args.plot.is_some(), stage != "bench", not_bench),
        ("--log", args.log.is_some(), stage != "bench", not_bench),
    ] {
        if given && !has_effect {
            return Err(Failure::usage(format!("{flag}: {}", of_stage(expected))));
        }
    }
    for (name, _) in &args.set {
        let is_any = |starts: &[&str]| starts.iter().any(|start| name.starts_with(start));
        let message = match name.as_str() {
            name if stage == "bench" && NOT_FOR_BENCH.contains(&name) => of_stage(not_bench),
            "patch-length" if stage != "entropy" => of_stage("the stage entropy"),
            "entropy-model" if stage == "entropy" => of_stage("another stage"),
            _ if stage == "entropy" && is_any(&NOT_FOR_ENTROPY) => of_stage("the stage main"),
            "entropy-model" => continue,
            _ if is_new && is_any(&["entropy-"]) => of_stage("the stage entropy"),
            "valid-share" if !settings.valid.is_empty() => {
                "expected no --valid beside it, found one".into()
            }
            "cooldown" if settings.decay != "trapezoid" => {
                format!(
                    "expected --decay trapezoid with it, found {}",
                    settings.decay
                )
            }
            "lora-alpha" | "lora-targets" if settings.lora_rank == 0 => {
                "expected --lora-rank with it, found none".into()
            }
            _ => continue,
        };
        return Err(Failure::usage(format!("--{name}: {message}")));
    }
    Ok(())
}

/// Checks the flags that depend on how patches are cut.
///
/// # Errors
/// [`Failure::Usage`] naming the flag.
pub fn check_patching(args: &Args, mode: PatchingMode) -> Result<(), Failure> {
    for (name, needed) in [
        ("entropy-model", PatchingMode::Entropy),
        ("patch-size", PatchingMode::Static),
    ] {
        if mode != needed && args.set.iter().any(|(given, _)| given == name) {
            return Err(Failure::usage(format!(
                "--{name}: expected --patching {needed} with it, found {mode}"
            )));
        }
    }
    Ok(())
}
