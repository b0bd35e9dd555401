//! `blt-run`: the text, where it goes, how it ends.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use blt::vocab::{decode, id_to_byte};
use blt::{Model, Session, SessionOptions};
use serde_json::Value;

use super::{MODEL, RUN, SCORE, call, common, file, json, models, output, temporary};

/// Greedy, nothing but the text.
fn continued(model: &str, prompt: &[u8], more: &[&str]) -> Vec<u8> {
    let args = [&[model, "-f", "-", "--temp", "0", "--quiet"], more].concat();
    output(RUN, &args, prompt)
}

/// Every reference case through `blt-run`, as bytes: most of these texts are not UTF-8.
#[test]
fn greedy_text_equals_the_reference_byte_for_byte() {
    let mut checks = Vec::new();
    for case in common::cases() {
        // The last-position quirk of transformers (tests/data/README.md).
        if case.expected["max_patch_length"].is_number() {
            continue;
        }
        let greedy: Vec<_> = (case.prompts().into_iter())
            .filter(|p| p.has("greedy_ids") && p.ids()[0] == 1)
            .filter(|p| p.ids()[1..].iter().all(|&id| id_to_byte(id).is_some()))
            .take(2)
            .collect();
        for (model, more) in models(&case) {
            for prompt in &greedy {
                let ids = common::ids(prompt.list("greedy_ids"));
                let expected: Vec<_> = ids
                    .into_iter()
                    .take_while(|&id| id_to_byte(id).is_some())
                    .collect();
                let name = format!("{model}, {}", prompt.name());
                let check = (model.clone(), more.clone(), prompt.ids(), expected);
                checks.push((name, check));
            }
        }
    }
    common::check_all(checks, |name, (model, more, prompt, expected)| {
        let expected = decode(&expected);
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let count = expected.len().to_string();
        let args = [&["-n", &count], &more[..]].concat();
        assert_eq!(
            continued(&model, &decode(&prompt), &args),
            expected,
            "{name}"
        );
    });
}

/// Scripts that pass a flag of an earlier version still run, and say that it has no effect.
#[test]
fn removed_flags_are_ignored_with_a_notice() {
    let args = [
        MODEL,
        "-p",
        "--cublaslt",
        "-n",
        "5",
        "--temp",
        "0",
        "--quiet",
    ];
    let expected = call(RUN, &args, b"");
    assert!(expected.stderr.is_empty(), "a prompt is not a flag");
    let found = call(RUN, &[&args[..], &["--cublaslt"]].concat(), b"");
    assert_eq!(found.stdout, expected.stdout);
    let notice = String::from_utf8(found.stderr).unwrap();
    assert!(
        notice.starts_with("blt-run: --cublaslt is ignored: "),
        "{notice}"
    );
    assert_eq!(notice.lines().count(), 1, "{notice}");
}

#[test]
fn the_same_seed_gives_the_same_bytes_whatever_the_threads() {
    let args = [
        "-p",
        "seeds",
        "-n",
        "40",
        "--seed",
        "9",
        "--ignore-eos",
        "--quiet",
    ];
    let text = output(RUN, &[&[MODEL], &args[..]].concat(), b"");
    assert_eq!(text.len(), 40);
    for threads in ["1", "2", "3"] {
        let again = output(RUN, &[&[MODEL, "-t", threads], &args[..]].concat(), b"");
        assert_eq!(again, text, "{threads} threads");
    }
    for draft in ["0", "2", "16"] {
        let again = output(RUN, &[&[MODEL, "--draft", draft], &args[..]].concat(), b"");
        assert_eq!(again, text, "drafts of {draft}");
    }
    let record = json(
        RUN,
        &[&[MODEL, "--json", "--draft", "5"], &args[..]].concat(),
    );
    assert!(record["drafted_bytes"].as_u64() >= Some(39), "{record}");
    assert!(record["accepted_bytes"].as_u64() >= Some(8), "{record}");
    let hex: String = text.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(record["generated_hex"], Value::from(hex));
    assert_eq!(record["text"], Value::from(String::from_utf8_lossy(&text)));
    assert_eq!(record["generated_bytes"], 40);
    assert_eq!(record["prompt_bytes"], 5);
    assert_eq!(record["seed"], 9);
    assert_eq!(record["finish"], "length");
}

#[test]
fn the_summary_goes_to_standard_error_without_colour() {
    let args = [
        MODEL,
        "-p",
        "hello",
        "-n",
        "8",
        "--ignore-eos",
        "--seed",
        "77",
        "--show-patches",
    ];
    let result = call(RUN, &args, b"");
    let summary = String::from_utf8(result.stderr).unwrap();
    let short = ["generated 8 bytes (length)", "seed 77"];
    for part in short {
        assert!(summary.contains(part), "{summary}");
    }
    assert!(!summary.contains("prompt"), "{summary}");
    let verbose = call(RUN, &[&args[..], &["--verbose"]].concat(), b"");
    let verbose = String::from_utf8(verbose.stderr).unwrap();
    for part in [&short[..], &["prompt 5 bytes", "patches of", "peak memory"]].concat() {
        assert!(verbose.contains(part), "{verbose}");
    }
    assert_eq!((summary.lines().count(), verbose.lines().count()), (1, 1));
    assert!(!summary.contains('\x1b') && !result.stdout.contains(&0x1b));
    assert!(
        call(RUN, &[&args[..], &["--quiet"]].concat(), b"")
            .stderr
            .is_empty()
    );
}

#[test]
fn prompts_come_as_text_as_files_and_from_standard_input() {
    let bytes = b"any bytes: \xff\x00\xc3(";
    let path = file("prompt.bin", bytes);
    let more = ["-n", "12", "--ignore-eos"];
    let from_stdin = continued(MODEL, bytes, &more);
    let args = [
        MODEL,
        "-f",
        &path,
        "--temp",
        "0",
        "--quiet",
        "-n",
        "12",
        "--ignore-eos",
    ];
    assert_eq!(output(RUN, &args, b""), from_stdin);
    let echoed = continued(MODEL, bytes, &[&more[..], &["--echo"]].concat());
    assert_eq!(echoed, [&bytes[..], &from_stdin].concat());
    let args = [&[MODEL, "--temp=0", "--quiet"], &more[..]].concat();
    assert_eq!(output(RUN, &args, bytes), from_stdin);
    let args = [
        MODEL,
        "--temp=0",
        "--quiet",
        "-n12",
        "--ignore-eos",
        "-f",
        "-",
    ];
    assert_eq!(output(RUN, &args, bytes), from_stdin);
    // Nothing at all is a prompt too: BOS.
    assert_eq!(continued(MODEL, b"", &more).len(), 12);
}

#[test]
fn stop_strings_end_the_text_and_are_left_out() {
    let whole = continued(MODEL, b"stop", &["-n", "200", "--ignore-eos"]);
    let at =
        (1..whole.len()).find(|&i| whole[i].is_ascii_graphic() && !whole[..i].contains(&whole[i]));
    let at = at.expect("an ASCII character in 200 bytes");
    let stop = char::from(whole[at]).to_string();
    let more = [
        "-n",
        "200",
        "--ignore-eos",
        "--stop",
        "never in there",
        "--stop",
        &stop,
    ];
    assert_eq!(continued(MODEL, b"stop", &more), whole[..at]);
}

#[test]
fn patches_are_shown_where_they_start() {
    let prompt = b"patches, shown ";
    let more = ["-n", "20", "--ignore-eos"];
    let text = [&prompt[..], &continued(MODEL, prompt, &more)].concat();
    let mut session =
        Session::new(&Model::open(MODEL).unwrap(), SessionOptions::default()).unwrap();
    session.feed(&text).unwrap();
    let mut expected = Vec::new();
    for (i, byte) in text.iter().enumerate() {
        if session.patch_starts().contains(&(i + 1)) {
            expected.extend_from_slice(if i == 0 { b"[" } else { b"][" });
        }
        expected.push(*byte);
    }
    expected.push(b']');
    let shown = continued(
        MODEL,
        prompt,
        &[&more[..], &["--echo", "--show-patches"]].concat(),
    );
    assert_eq!(shown, expected);
}

#[test]
fn lines_continue_one_text() {
    let more = ["-n", "9", "--ignore-eos"];
    let first = continued(MODEL, b"one line", &more);
    let ends_line = first.last().is_some_and(u8::is_ascii_whitespace);
    let separator: &[u8] = if ends_line { b"" } else { b"\n" };
    let second = continued(
        MODEL,
        &[b"one line", &first[..], separator, b"another"].concat(),
        &more,
    );
    let third_prompt = [b"one line", &first[..], separator, b"another", &second].concat();
    let third = continued(MODEL, &third_prompt, &more);
    let args = [&[MODEL, "-i", "--temp", "0", "--quiet"], &more[..]].concat();
    let text = output(RUN, &args, b"one line\nanother\r\n\n");
    assert_eq!(
        text,
        [first, second, third]
            .map(|text| [&text[..], b"\n"].concat())
            .concat()
    );
}

#[test]
fn a_conversation_outlives_the_end_of_a_text_and_the_context() {
    let records = |more: &[&str], lines: &str| -> Vec<Value> {
        let args = [&[MODEL, "-i", "--json", "--seed", "3"], more].concat();
        let text = String::from_utf8(output(RUN, &args, lines.as_bytes())).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    // A grammar ends each text; the next line begins a new one.
    let found = records(&["--regex", "[a-z]{3}"], "one\ntwo\n\n");
    assert_eq!(found.len(), 3);
    for record in &found {
        assert_eq!(
            (&record["finish"], &record["generated_bytes"]),
            (&"eos".into(), &3.into())
        );
    }
    assert_eq!(found[1]["patch_starts"][0], 0);
    let said = call(RUN, &[MODEL, "-i", "--regex", "[a-z]{3}"], b"one\n");
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("the end of the text"), "{said}");
    let lines = "a line of text\n".repeat(6);
    let found = records(&["--context", "40", "-n", "10", "--ignore-eos"], &lines);
    assert_eq!(found.len(), 6);
    assert!(found[5]["slides"].as_u64() > Some(0), "{found:?}");
    assert!(found.iter().all(|record| record["generated_bytes"] == 10));
}

#[test]
fn a_text_without_a_length_ends_with_the_model_or_the_context() {
    let args = [
        MODEL,
        "-p",
        "a",
        "--context",
        "40",
        "--ignore-eos",
        "--json",
    ];
    let record = json(RUN, &args);
    assert_eq!(record["finish"], "context");
    assert_eq!(record["generated_bytes"], 39);
    let starts = record["patch_starts"].as_array().unwrap();
    assert_eq!(starts[0], 0);
}

#[cfg(unix)]
#[test]
fn the_summary_has_a_line_of_its_own_in_a_shared_pipe() {
    let script = "\"$0\" \"$@\" 2>&1";
    let args = [
        "-c",
        script,
        RUN,
        MODEL,
        "-p",
        "a",
        "-n",
        "20",
        "--ignore-eos",
        "--seed",
        "1",
    ];
    let both = call("sh", &args, b"").stdout;
    let last = both
        .strip_suffix(b"\n")
        .unwrap()
        .rsplit(|&b| b == b'\n')
        .next()
        .unwrap();
    assert!(
        last.starts_with(b"generated 20 bytes"),
        "{}",
        String::from_utf8_lossy(last)
    );
}

/// On a terminal, without any argument, the built-in model tells a story.
#[cfg(all(target_os = "linux", feature = "default-model"))]
#[test]
fn a_terminal_is_told_a_story() {
    let command = format!("{RUN} -n 60 --temp 0");
    let Ok(result) = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env_remove("BLT_MODEL")
        .env_remove("NO_COLOR")
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output()
    else {
        eprintln!("skipped: there is no script(1) to make a terminal");
        return;
    };
    let shown = String::from_utf8(result.stdout).unwrap();
    assert!(
        shown.starts_with("\x1b[2mOnce upon a time\x1b[0m"),
        "{shown:?}"
    );
    let summary = shown.trim_end().lines().last().unwrap();
    assert!(
        summary.starts_with("\x1b[2mgenerated 60 bytes"),
        "{shown:?}"
    );
}

#[test]
fn a_full_context_is_an_error_or_slides() {
    let args = [
        MODEL,
        "-p",
        "0123456789",
        "--context",
        "20",
        "-n",
        "40",
        "--ignore-eos",
    ];
    let result = call(RUN, &args, b"");
    assert_eq!(result.status.code(), Some(1));
    let message = String::from_utf8(result.stderr).unwrap();
    assert!(
        message.contains("context: expected at most 20 bytes"),
        "{message}"
    );
    // What fitted is there: 20 positions less BOS and the prompt, and the byte after the last.
    assert_eq!(result.stdout.len(), 10);
    let record = json(RUN, &[&args[..], &["--slide", "8", "--json"]].concat());
    assert_eq!(record["generated_bytes"], 40);
    assert!(record["slides"].as_u64().unwrap() > 0);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let args = [
        MODEL,
        "-p",
        "a",
        "-n",
        "1000000",
        "--slide",
        "10",
        "--ignore-eos",
    ];
    let mut child = Command::new(RUN)
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 5];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let result = child.wait_with_output().unwrap();
    assert_eq!(result.status.code(), Some(0));
    assert!(result.stderr.is_empty());
}

#[cfg(unix)]
#[test]
fn signals_end_with_the_summary_and_their_code() {
    let args = [
        MODEL,
        "-p",
        "a",
        "-n",
        "1000000",
        "--slide",
        "10",
        "--ignore-eos",
    ];
    for (signal, number, code) in [("INT", 2, 130), ("TERM", 15, 143), ("HUP", 1, 129)] {
        let mut child = Command::new(RUN)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 5]).unwrap();
        let pid = child.id().to_string();
        let send = |signal: &str| {
            let kill = format!("kill -{signal} $0");
            let sent = Command::new("sh").args(["-c", &kill, &pid]).status();
            assert!(sent.unwrap().success());
        };
        send(signal);
        let is_ignored = is_ignored(number);
        if is_ignored {
            // As under nohup: it goes on.
            std::thread::sleep(Duration::from_millis(200));
            assert!(child.try_wait().unwrap().is_none(), "{signal} is ignored");
            send("TERM");
        }
        let code = if is_ignored { 143 } else { code };
        stdout.read_to_end(&mut Vec::new()).unwrap();
        let result = child.wait_with_output().unwrap();
        let summary = String::from_utf8(result.stderr).unwrap();
        assert_eq!(result.status.code(), Some(code), "{signal}: {summary}");
        assert!(summary.contains("(interrupted)"), "{summary}");
        assert_eq!(summary.lines().count(), 1, "{summary}");
    }
}

/// Whether this process was started with a signal ignored: its children ignore it too.
#[cfg(unix)]
fn is_ignored(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    (mask.unwrap_or(0) >> (number - 1)) & 1 == 1
}

/// A reader of standard error that goes away: the program does its work.
#[test]
fn a_closed_standard_error_is_no_failure() {
    let mut child = Command::new(RUN)
        .args([MODEL, "-p", "a", "-n", "200", "--ignore-eos"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    let result = child.wait_with_output().unwrap();
    assert_eq!(result.status.code(), Some(0));
    assert_eq!(result.stdout.len(), 200);
}

/// Paths, prompts and stop strings are bytes.
#[cfg(unix)]
#[test]
fn arguments_need_not_be_utf_8() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let raw = b"a\xff\x80\xc3b";
    let folder = temporary("not-utf-8").join(OsStr::from_bytes(raw));
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["config.json", "model.safetensors"] {
        let bytes = std::fs::read(Path::new(MODEL).join(name)).unwrap();
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    let run = |args: &[&OsStr]| {
        let output = Command::new(RUN).arg(&folder).args(args).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{errors}");
        output.stdout
    };
    let word = OsStr::new;
    let greedy = ["--temp", "0", "-n", "8", "--quiet"].map(word);
    let echoed = run(&[
        &[word("--echo"), word("-p"), OsStr::from_bytes(raw)],
        &greedy[..],
    ]
    .concat());
    assert!(echoed.starts_with(raw), "{echoed:?}");
    let escaped = run(&[
        &[
            word("--echo"),
            word("-e"),
            word("-p"),
            word(r"a\xff\x80\xc3b"),
        ],
        &greedy[..],
    ]
    .concat());
    assert_eq!(escaped, echoed);
    // The first generated byte as a stop string, whatever it is.
    let first = &echoed[raw.len()..raw.len() + 1];
    let stop = [
        word("-p"),
        OsStr::from_bytes(raw),
        word("--stop"),
        OsStr::from_bytes(first),
    ];
    assert!(run(&[&stop, &greedy[..]].concat()).is_empty());
    let stop = format!("\\x{:02x}", first[0]);
    let stop = [
        word("-e"),
        word("-p"),
        word(r"a\xff\x80\xc3b"),
        word("--stop"),
        word(&stop),
    ];
    assert!(run(&[&stop, &greedy[..]].concat()).is_empty());
    let wrong = call(RUN, &[MODEL, "-e", "-p", r"a\q"], b"");
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains(r"found \q"));
    // What is text must be UTF-8.
    for (program, flag) in [
        (RUN, "--regex"),
        (SCORE, "--separator"),
        (SCORE, "--text-key"),
    ] {
        let args = [word(MODEL), word(flag), OsStr::from_bytes(raw)];
        let wrong = Command::new(program).args(args).output().unwrap();
        assert_eq!(wrong.status.code(), Some(2), "{flag}");
        let message = String::from_utf8_lossy(&wrong.stderr).into_owned();
        assert!(
            message.contains(&format!("{flag}: expected UTF-8")),
            "{message}"
        );
    }
}
