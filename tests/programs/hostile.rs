//! Hostile inputs to the programs. Every run ends in time, within its memory, with a documented exit code and a message
//! that names the file and what is wrong with it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{INFO, MODEL, RUN, SCORE, file, temporary};

#[cfg(feature = "train")]
const TRAIN: &str = env!("CARGO_BIN_EXE_blt-train");

/// Seconds a run may take.
const SECONDS: u64 = 20;
/// Kilobytes of address space a run may have.
const ADDRESS_SPACE: u64 = 4_000_000;
/// Exit codes that the programs document.
const CODES: [i32; 5] = [0, 1, 2, 130, 143];

/// A run of a program on a hostile input.
struct Case<'a> {
    program: &'a str,
    args: &'a [&'a str],
    code: i32,
    /// Parts of the message: the file, and the thing in it.
    says: &'a [&'a str],
}

/// What a run left.
struct Ran {
    code: Option<i32>,
    errors: String,
    /// Largest resident set seen, in bytes. It is sampled, so a short peak can be missed.
    peak: u64,
}

/// Runs a program with its address space limited and no input, and stops it when its time is over.
fn run(program: &str, args: &[&str]) -> Ran {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = temporary(&format!("hostile-{number}.err"));
    let limited = format!("ulimit -v {ADDRESS_SPACE}; exec \"$0\" \"$@\"");
    let mut child = Command::new("sh")
        .args(["-c", &limited, program])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&path).unwrap())
        .spawn()
        .unwrap();
    let (start, mut peak) = (Instant::now(), 0);
    let code = loop {
        peak = peak.max(resident(child.id()));
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if start.elapsed() > Duration::from_secs(SECONDS) {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{program} {args:?}: still running after {SECONDS} s");
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let errors = std::fs::read(&path).unwrap();
    Ran {
        code,
        errors: String::from_utf8_lossy(&errors).into_owned(),
        peak,
    }
}

/// The largest resident set so far of a process; 0 if it has ended.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse().ok());
    kilobytes.unwrap_or(0u64) * 1024
}

/// Runs the case and checks what every run must keep to.
fn check(case: &Case) -> Ran {
    let name = Path::new(case.program).file_stem().unwrap();
    let at = format!("{} {:?}", name.display(), case.args);
    let ran = run(case.program, case.args);
    let errors = &ran.errors;
    let code = ran
        .code
        .unwrap_or_else(|| panic!("{at}: ended by a signal: {errors}"));
    assert!(CODES.contains(&code), "{at}: exit code {code}: {errors}");
    assert_eq!(code, case.code, "{at}: {errors}");
    assert!(!errors.contains("panicked"), "{at}: {errors}");
    let raw = |c: char| c.is_control() && c != '\n';
    assert!(
        !errors.contains(raw),
        "{at}: control characters: {errors:?}"
    );
    if code != 0 {
        assert_eq!(errors.lines().count(), 1, "{at}: {errors}");
        let start = format!("{}: ", name.display());
        assert!(errors.starts_with(&start), "{at}: {errors}");
    }
    for part in case.says {
        assert!(errors.contains(part), "{at}: no \"{part}\" in {errors}");
    }
    ran
}

/// A copy of the small model whose configuration is `config`.
fn model_with_config(name: &str, config: &[u8]) -> PathBuf {
    let folder = temporary(name);
    std::fs::create_dir_all(&folder).unwrap();
    let weights = std::fs::read(Path::new(MODEL).join("model.safetensors")).unwrap();
    std::fs::write(folder.join("model.safetensors"), weights).unwrap();
    std::fs::write(folder.join("config.json"), config).unwrap();
    folder
}

fn config() -> String {
    std::fs::read_to_string(Path::new(MODEL).join("config.json")).unwrap()
}

#[test]
fn devices_and_folders_are_no_models() {
    let folder = temporary("no-model");
    std::fs::create_dir_all(&folder).unwrap();
    let folder = folder.to_str().unwrap();
    let text = file("hostile.txt", b"a");
    for (args, file) in [
        (&["/dev/zero"][..], "/dev/zero"),
        (&["/dev/null"], "/dev/null"),
        (&[folder], folder),
        (&[MODEL, "--config", "/dev/zero"], "/dev/zero"),
        (&[MODEL, "--entropy-model", "/dev/zero"], "/dev/zero"),
        (&[MODEL, "--entropy-model", "/no/such"], "/no/such"),
    ] {
        for program in [INFO, RUN, SCORE] {
            let input = match program {
                RUN => &["-p", "a"][..],
                SCORE => &["-f", &text],
                _ => &[],
            };
            let args = &[args, input].concat();
            let says = &[file, "expected"][..usize::from(!file.starts_with("/no")) + 1];
            check(&Case {
                program,
                args,
                code: 1,
                says,
            });
        }
    }
}

#[test]
fn numbers_out_of_range_are_usage_errors() {
    for (option, value) in [
        ("-t", "100000"),
        ("-t", "-1"),
        ("-t", "99999999999999999999"),
        ("-n", "1e9"),
        ("--top-p", "inf"),
        ("--temp", "1e400"),
        ("--context", "0"),
    ] {
        let args = &[MODEL, "-p", "a", option, value];
        check(&Case {
            program: RUN,
            args,
            code: 2,
            says: &[&format!("{option}: expected")],
        });
    }
}

#[test]
fn damaged_configurations_are_named_with_their_file() {
    let deep = format!("{{\"a\":{}", "[".repeat(200_000));
    let with = |from: &str, to: &str| {
        let text = config();
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    };
    let wide = with("\"hidden_size\": 32", "\"hidden_size\": 4000000000");
    for (name, text, says) in [
        ("config-empty", String::new(), "JSON"),
        ("config-deep", deep, "JSON"),
        (
            "config-half",
            config()[..config().len() / 2].to_owned(),
            "JSON",
        ),
        ("config-list", "[1, 2]".to_owned(), "object"),
        ("config-wide", wide, "expected"),
    ] {
        let folder = model_with_config(name, text.as_bytes());
        let folder = folder.to_str().unwrap();
        let program = INFO;
        check(&Case {
            program,
            args: &[folder],
            code: 1,
            says: &[says],
        });
    }
}

/// Opening a file takes less than four times its size and this much more.
const ALLOWANCE: u64 = 64 << 20;

/// A safetensors file with this header and no tensors.
fn weights(name: &str, header: &str) -> PathBuf {
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    PathBuf::from(file(name, &bytes))
}

/// Files that parsers blow up: small elements, each of which takes a lot of memory once it is built.
#[test]
fn memory_stays_in_proportion_to_the_input() {
    let junk = |element: &str, n_bytes: usize| {
        let list = format!("{element},").repeat(n_bytes / (element.len() + 1));
        let config = config();
        let config = config.trim_end().strip_suffix('}').unwrap();
        format!("{config},\"junk\":[{list}0]}}")
    };
    let names = |n: usize, entry: &str| -> String {
        let entries: Vec<String> = (0..n).map(|i| format!("\"{i:x}\":{entry}")).collect();
        format!("{{{}}}", entries.join(","))
    };
    let tensor = "{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}";
    let header = |entry: &str, n_bytes: usize| names(n_bytes / (entry.len() + 8), entry);
    let nested = "[0],".repeat(3 << 20) + "0";
    let mut paths = Vec::new();
    for (i, element) in ["0", "[0]", "{\"\":0}", "\"\"", "[[[[0]]]]"]
        .iter()
        .enumerate()
    {
        for n_bytes in [900_000, 16 << 20] {
            let text = junk(element, n_bytes);
            paths.push(model_with_config(
                &format!("junk-{i}-{n_bytes}"),
                text.as_bytes(),
            ));
        }
    }
    paths.push(weights("many-tensors", &header(tensor, 15 << 20)));
    paths.push(weights(
        "many-axes",
        &format!(
            "{{\"a\":{{\"dtype\":\"U8\",\"shape\":[{}0]}}}}",
            "0,".repeat(7 << 20)
        ),
    ));
    paths.push(weights(
        "nested-type",
        &format!("{{\"a\":{{\"dtype\":[{nested}]}}}}"),
    ));
    paths.push(weights(
        "nested-metadata",
        &format!("{{\"__metadata__\":[{nested}]}}"),
    ));
    paths.push(weights(
        "many-texts",
        &format!("{{\"__metadata__\":{}}}", header("\"\"", 15 << 20)),
    ));
    let config = nested.replace('"', "\\\"");
    paths.push(weights(
        "nested-config",
        &format!(
            "{{\"__metadata__\":{{\"blt.format_version\":\"1\",\"blt.config\":\"[{config}]\"}}}}"
        ),
    ));
    for path in paths {
        let n_bytes: u64 = match path.is_dir() {
            true => std::fs::metadata(path.join("config.json")).unwrap().len(),
            false => std::fs::metadata(&path).unwrap().len(),
        };
        let ran = run(INFO, &[path.to_str().unwrap()]);
        assert_eq!(ran.code, Some(1), "{}: {}", path.display(), ran.errors);
        assert!(
            ran.errors.contains(path.to_str().unwrap()),
            "{}",
            ran.errors
        );
        let limit = 4 * n_bytes + ALLOWANCE;
        assert!(
            ran.peak <= limit,
            "{}: {} bytes, at most {limit}",
            path.display(),
            ran.peak
        );
        match path.is_dir() {
            true => std::fs::remove_dir_all(&path).unwrap(),
            false => std::fs::remove_file(&path).unwrap(),
        }
    }
}

#[test]
fn inputs_that_never_end_are_refused() {
    let text = file("endless.txt", b"a");
    for (program, args) in [
        (RUN, &[MODEL, "-f", "/dev/zero"][..]),
        (RUN, &[MODEL, "-p", "a", "--json-schema", "/dev/zero"]),
        (SCORE, &[MODEL, "-f", "/dev/zero"]),
        (SCORE, &[MODEL, "--raw-ids", "/dev/zero"]),
        (SCORE, &[MODEL, "-f", &text, "--config", "/dev/zero"]),
    ] {
        check(&Case {
            program,
            args,
            code: 1,
            says: &["/dev/zero", "expected"],
        });
    }
}

#[cfg(feature = "train")]
#[test]
fn settings_that_cannot_work_are_named_before_anything_is_allocated() {
    let text = file("settings.txt", b"A text to train on.\n");
    let toml = file("deep.toml", "[".repeat(32 << 10).as_bytes());
    let out = temporary("settings-run");
    let out = out.to_str().unwrap();
    for (name, value, code, says) in [
        ("--hash-vocab", "100000000", 2, "--hash-vocab: expected"),
        ("--global-dim", "32768", 2, "--global-dim: expected"),
        ("--batch", "1000000000", 2, "--batch: expected"),
        ("--threads", "100000", 2, "--threads: expected"),
        ("--config", "/dev/zero", 1, "/dev/zero"),
        ("--config", &toml, 1, "line 1"),
        ("--data", "/dev/zero", 1, "/dev/zero"),
    ] {
        let mut args = vec!["main", "--patching", "space", "--out", out, name, value];
        if name != "--data" {
            args.extend(["--data", &text]);
        }
        let args = &args;
        let ran = check(&Case {
            program: TRAIN,
            args,
            code,
            says: &[says],
        });
        assert!(ran.peak < ALLOWANCE, "{args:?}: {} bytes", ran.peak);
    }
}

/// A file that is cut short while a program uses it ends the program with one sentence; `--load read` makes it safe.
#[test]
fn a_file_cut_short_under_a_program_is_one_sentence() {
    for load in ["map", "read"] {
        let folder = model_with_config(&format!("cut-{load}"), config().as_bytes());
        let path = folder.join("model.safetensors");
        let mut child = Command::new(SCORE)
            .args([folder.to_str().unwrap(), "-f", "-", "--load", load])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The program reads its input in blocks: it waits for the first with the model open.
        let stat = format!("/proc/{}/stat", child.id());
        let start = Instant::now();
        let sleeps = || std::fs::read_to_string(&stat).unwrap().contains(") S ");
        while start.elapsed() < Duration::from_millis(500) || !sleeps() {
            std::thread::sleep(Duration::from_millis(10));
        }
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(4096)
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(b"Once upon a time")
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        if load == "map" {
            assert_eq!(output.status.code(), Some(1), "{errors}");
            let line = "blt-score: a file in use was cut short";
            assert!(
                errors.starts_with(line) && errors.lines().count() == 1,
                "{errors}"
            );
        } else {
            assert_eq!(output.status.code(), Some(0), "{errors}");
        }
    }
}
