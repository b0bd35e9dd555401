//! The README's lines of blt-quantize, as they are written, on the default model.

use std::path::Path;
use std::process::Command;

#[test]
fn the_readme_s_commands_run() {
    let readme = include_str!("../../README.md");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/default.safetensors");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let lines = readme
        .lines()
        .filter_map(|l| l.strip_prefix("$ blt-quantize MODEL "));
    let mut n = 0;
    for line in lines {
        let args: Vec<&str> = line
            .split(" #")
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let output = folder.join(args[0]);
        let _ = std::fs::remove_file(&output);
        let run = Command::new(env!("CARGO_BIN_EXE_blt-quantize"))
            .arg(&model)
            .args(args)
            .current_dir(folder)
            .output()
            .unwrap();
        assert!(
            run.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&run.stderr)
        );
        let ratio =
            output.metadata().unwrap().len() as f64 / model.metadata().unwrap().len() as f64;
        // How much is gained depends on the rows' lengths, which are short here.
        assert!(ratio < 1.0, "{line}: {ratio} of the model's size");
        n += 1;
    }
    assert!(n >= 2, "found {n} commands of blt-quantize");
}
