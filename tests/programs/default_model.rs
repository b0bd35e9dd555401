//! The model that programs run when none is named.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{BENCH, INFO, MODEL, RUN, SCORE, temporary};

/// What `blt-info --json` says of the model that it finds in this environment, from a folder that has
/// nothing to do with the sources.
fn info(variables: &[(&str, &Path)]) -> Value {
    let mut command = Command::new(INFO);
    command.arg("--json").current_dir(std::env::temp_dir());
    for name in ["BLT_MODEL", "XDG_DATA_HOME", "HOME"] {
        command.env_remove(name);
    }
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{variables:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_variable_comes_first_then_the_data_folder_then_the_built_in_model() {
    let built_in = info(&[]);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default.safetensors");
    let named = info(&[("BLT_MODEL", &file)]);
    for key in ["config", "parameters", "parts"] {
        assert_eq!(built_in[key], named[key], "{key}");
    }
    assert_eq!(built_in["files"][0]["bytes"], named["files"][0]["bytes"]);

    // A data folder without a model changes nothing; with one, it is used.
    let home = temporary("home");
    let data = home.join(".local/share");
    let _ = std::fs::remove_dir_all(&home);
    std::fs::create_dir_all(data.join("blt")).unwrap();
    assert_eq!(info(&[("HOME", &home)]), built_in);
    let folder = data.join("blt/default");
    std::fs::create_dir(&folder).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new(MODEL).join(name), folder.join(name)).unwrap();
    }
    let installed = folder.join("model.safetensors");
    let found = |variables: &[(&str, &Path)]| {
        PathBuf::from(info(variables)["files"][0]["path"].as_str().unwrap())
    };
    assert_eq!(found(&[("HOME", &home)]), installed);
    assert_eq!(found(&[("XDG_DATA_HOME", &data)]), installed);
    assert_eq!(found(&[("HOME", &home), ("BLT_MODEL", &file)]), file);
}

#[test]
fn programs_name_no_file_of_the_build_folder() {
    for program in [RUN, SCORE, INFO, BENCH] {
        let bytes = std::fs::read(program).unwrap();
        for folder in ["models", "tests"] {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/").to_owned() + folder;
            let found = bytes.windows(path.len()).any(|w| w == path.as_bytes());
            assert!(!found, "{program} holds {path}");
        }
    }
}
