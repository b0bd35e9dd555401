//! `blt-score`: the figures, and the files it leaves behind.

use blt::vocab::{VOCAB_SIZE, encode};
use blt::{Model, SessionOptions};

use super::common::{self, bits, lengths};
use super::{MODEL, SCORE, call, file, json, models, output, temporary};

/// Sums of recorded single-precision surprisals against ours.
const BITS_TOLERANCE: f64 = 1e-4;

#[test]
fn scores_equal_the_reference() {
    let cases = common::cases();
    let mut checks = Vec::new();
    for case in &cases {
        let quirk = case.expected["max_patch_length"].is_number();
        for (model, more) in models(case) {
            let prompts = case.prompts().into_iter().take(2);
            for prompt in prompts.filter(|p| !quirk && p.ids().len() > 1) {
                let name = format!("{model}, {}", prompt.name());
                checks.push((name, (model.clone(), more.clone(), prompt)));
            }
        }
    }
    common::check_all(checks, |name, (model, more, prompt)| {
        let ids = file("reference.json", prompt.list("ids").to_string().as_bytes());
        let mut args = vec![model.as_str(), "--raw-ids", &ids, "--json"];
        args.extend(more.iter().map(String::as_str));
        let record = json(SCORE, &args);
        let found = record["bits_per_byte"].as_f64().unwrap();
        let expected = prompt.number("bits_per_token");
        let off = (found - expected).abs();
        assert!(off < BITS_TOLERANCE, "{name}: {found}, expected {expected}");
        assert_eq!(record["bytes"], prompt.ids().len() - 1, "{name}");
    });
}

#[test]
fn a_dump_holds_what_the_session_holds() {
    let text = "Dumped, byte by b\u{fc}te.\n".as_bytes();
    let (path, out) = (file("dump.txt", text), temporary("dump.safetensors"));
    let out_text = out.to_str().unwrap();
    let args = [MODEL, "-f", &path, "--separator", "", "--dump", out_text];
    output(SCORE, &args, b"");

    let model = Model::open(MODEL).unwrap();
    let mut session = common::session(&model, SessionOptions::default());
    let mut logits = Vec::new();
    let ids = encode(text, true);
    common::feed(&mut session, &ids, &mut logits);

    let bytes = std::fs::read(&out).unwrap();
    let dump = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<u32> {
        let data = dump.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4)
            .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    };
    let wide: Vec<u32> = ids.iter().map(|&id| id.into()).collect();
    assert_eq!(words("input_ids"), wide);
    assert_eq!(words("logits"), bits(&logits));
    assert_eq!(words("entropies"), bits(session.entropies()));
    let found: Vec<usize> = words("patch_lengths").iter().map(|&l| l as usize).collect();
    assert_eq!(found, session.patch_lengths());
    assert_eq!(found.iter().sum::<usize>(), ids.len() + 1);
    assert_eq!(
        dump.tensor("logits").unwrap().shape(),
        [ids.len(), VOCAB_SIZE]
    );
    // A dump is of one piece.
    let args = [
        MODEL,
        "-f",
        &path,
        "--dump",
        out.to_str().unwrap(),
        "--context",
        "9",
    ];
    assert_eq!(call(SCORE, &args, b"").status.code(), Some(1));
}

#[test]
fn every_byte_is_counted_once_in_windows_and_in_the_table() {
    let text = "Windows are cut where the context ends. ".repeat(5);
    let (path, csv) = (
        file("windows.txt", text.as_bytes()),
        temporary("windows.csv"),
    );
    let csv = csv.to_str().unwrap();
    let whole = json(SCORE, &[MODEL, "-f", &path, "--json"]);
    assert_eq!(whole["windows"], 1);
    for overlap in ["0", "7"] {
        let args = [
            MODEL,
            "-f",
            &path,
            "--json",
            "--context",
            "32",
            "--overlap",
            overlap,
            "--per-byte",
            csv,
        ];
        let record = json(SCORE, &args);
        assert_eq!(record["bytes"], text.len(), "overlap {overlap}");
        assert!(record["windows"].as_u64().unwrap() > 5);
        let table = std::fs::read_to_string(csv).unwrap();
        let mut lines = table.lines();
        assert_eq!(
            lines.next(),
            Some("position,byte,entropy,surprisal,patch_start")
        );
        let mut bits = 0.0;
        for (i, (line, byte)) in lines.by_ref().zip(text.bytes()).enumerate() {
            let fields: Vec<&str> = line.split(',').collect();
            assert_eq!(fields[..2], [i.to_string(), byte.to_string()], "{line}");
            assert!(
                fields[2].parse::<f64>().unwrap() >= 0.0 && ["0", "1"].contains(&fields[4]),
                "{line}"
            );
            bits += fields[3].parse::<f64>().unwrap();
        }
        assert_eq!(lines.next(), None);
        let mean = bits / text.len() as f64;
        assert!(
            (mean - record["bits_per_byte"].as_f64().unwrap()).abs() < 1e-5,
            "{mean}"
        );
    }
    // The first window is the beginning of the whole text.
    let start = json(
        SCORE,
        &[
            MODEL,
            "--json",
            "-f",
            &file("start.txt", &text.as_bytes()[..31]),
        ],
    );
    let cut = json(
        SCORE,
        &[
            MODEL,
            "--json",
            "--context",
            "32",
            "-f",
            &file("start.txt", &text.as_bytes()[..31]),
        ],
    );
    assert_eq!(start["bits_per_byte"], cut["bits_per_byte"]);
}

#[test]
fn nothing_to_score_is_said() {
    let record = json(SCORE, &[MODEL, "-f", &file("nothing.txt", b""), "--json"]);
    assert_eq!(record["bytes"], 0);
    assert!(record["bits_per_byte"].is_null());
}

#[test]
fn the_page_is_well_formed_and_holds_the_text_whatever_it_is() {
    let hostile =
        b"<script>alert('&amp;\"')</script>\t\0\x1b[31m \xff\xc3 \xe2\x80\xae \xef\xbf\xbe ok]]>\n";
    let long = "A line that is read over and over again.\n".repeat(60);
    for (name, text, mode) in [
        ("hostile", &hostile[..], "entropy"),
        ("long", long.as_bytes(), "entropy"),
        ("bytes", hostile, "byte"),
        ("empty", b"", "entropy"),
    ] {
        let (path, out) = (file(&format!("{name} <page>"), text), temporary(name));
        let args = [
            MODEL,
            "-f",
            &path,
            "--separator",
            "",
            "--html",
            out.to_str().unwrap(),
            "--patching",
            mode,
        ];
        output(SCORE, &args, b"");
        let page = std::fs::read_to_string(out).unwrap();
        assert!(page.starts_with("<!DOCTYPE html>"), "{name}");
        check_well_formed(page.strip_prefix("<!DOCTYPE html>").unwrap());
        assert!(
            !page.contains("<script") && !page.contains("http"),
            "{name}"
        );
        assert!(
            !page.contains(['\0', '\x1b', '\u{202e}', '\u{fffe}']),
            "{name}"
        );
        let threshold = page.contains("class=\"threshold\"");
        assert_eq!(threshold, mode == "entropy" && !text.is_empty(), "{name}");
        let spans = page.matches("<span ").count();
        assert_eq!(spans > 0, !text.is_empty(), "{name}");
        if mode == "byte" {
            assert_eq!(spans, text.len());
        }
        assert_eq!(
            page.contains("The first 2000 bytes."),
            text.len() > 2000,
            "{name}"
        );
    }
}

/// Tags open and close in order, attributes are quoted, and only known entities occur.
fn check_well_formed(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        check_entities(&rest[..start]);
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        check_entities(tag);
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        assert!(!tag.contains('<'), "{tag}");
        match (tag.strip_prefix('/'), tag.ends_with('/')) {
            (Some(name), _) => assert_eq!(open.pop(), Some(name)),
            (None, true) => {}
            (None, false) => open.push(tag.split_whitespace().next().unwrap()),
        }
    }
    check_entities(rest);
    assert!(open.is_empty(), "{open:?}");
}

fn check_entities(text: &str) {
    for (at, _) in text.match_indices('&') {
        let known = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;", "&#160;"];
        assert!(
            known.iter().any(|e| text[at..].starts_with(e)),
            "{}",
            &text[at..]
        );
    }
}

#[test]
fn patch_lengths_of_a_dump_equal_the_reference() {
    let mut cases = common::cases().into_iter();
    let case = (cases.find(|c| c.folder.join("model").is_dir())).expect("a case in HF layout");
    let prompts = case.prompts();
    let prompt = prompts.iter().find(|p| p.has("patch_lengths")).unwrap();
    let ids = file(
        "reference-ids.json",
        prompt.list("ids").to_string().as_bytes(),
    );
    let out = temporary("reference.safetensors");
    let model = case.folder.join("model");
    let args = [
        model.to_str().unwrap(),
        "--raw-ids",
        &ids,
        "--dump",
        out.to_str().unwrap(),
    ];
    output(SCORE, &args, b"");
    let bytes = std::fs::read(out).unwrap();
    let dump = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = dump.tensor("patch_lengths").unwrap().data().to_vec();
    let found: Vec<usize> = (data.chunks_exact(4))
        .map(|b| i32::from_le_bytes(b.try_into().unwrap()) as usize)
        .collect();
    let starts = |lengths: &[usize]| -> Vec<usize> {
        let n = prompt.ids().len();
        let ends = lengths
            .iter()
            .scan(0, |sum, l| Some(std::mem::replace(sum, *sum + l)));
        let mut starts: Vec<usize> = ends.filter(|&s| s < n).collect();
        starts.dedup();
        starts
    };
    assert_eq!(
        starts(&found),
        starts(&lengths(prompt.list("patch_lengths"))),
        "{}",
        case.name
    );
}

/// Documents are those of training: a total over several files, folders and JSON lines is the sum over the documents.
#[test]
fn documents_are_scored_one_by_one() {
    let stories = ["Once upon a time", "A dog and a cat ran", "The sun was out"];
    let score = |args: &[&str]| {
        let record = json(SCORE, &[&[MODEL, "--json", "--quiet"], args].concat());
        let n = record["bytes"].as_u64().unwrap();
        (
            record["bits_per_byte"].as_f64().unwrap() * n as f64,
            n,
            record["documents"].as_u64().unwrap(),
        )
    };
    let alone: Vec<_> = (stories.iter().enumerate())
        .map(|(i, story)| score(&["-f", &file(&format!("story-{i}.txt"), story.as_bytes())]))
        .collect();
    let expected: (f64, u64) = (
        alone.iter().map(|s| s.0).sum(),
        alone.iter().map(|s| s.1).sum(),
    );
    let check = |args: &[&str]| {
        let (bits, n, documents) = score(args);
        assert_eq!((n, documents), (expected.1, 3), "{args:?}");
        assert!(
            (bits - expected.0).abs() < 1e-6 * bits,
            "{args:?}: {bits}, expected {}",
            expected.0
        );
    };
    let together = file(
        "stories.txt",
        format!("{}\n", stories.join("\n<|endoftext|>\n")).as_bytes(),
    );
    check(&["-f", &together]);
    let paragraphs = file("paragraphs.txt", stories.join("\n***\n").as_bytes());
    check(&["-f", &paragraphs, "--separator", "***"]);
    let lines = |key: &str| -> String {
        let line = |story: &&str| format!("{{\"id\": [1], {key:?}: {story:?}}}\n");
        stories.iter().map(line).collect()
    };
    check(&["-f", &file("stories.jsonl", lines("text").as_bytes())]);
    check(&[
        "-f",
        &file("tales.jsonl", lines("tale").as_bytes()),
        "--text-key",
        "tale",
    ]);
    let folder = temporary("stories");
    std::fs::create_dir_all(&folder).unwrap();
    for (i, story) in stories.iter().enumerate() {
        std::fs::write(folder.join(format!("{i}.txt")), story).unwrap();
    }
    let folder = folder.to_str().unwrap();
    check(&["-f", folder]);
    check(&[
        "-f",
        &format!("{folder}/0.txt"),
        "-f",
        &format!("{folder}/1.txt"),
        "-f",
        &format!("{folder}/2.txt"),
    ]);
    // Read together, each byte gets what it gets alone.
    let table = |args: &[&str]| -> Vec<String> {
        let path = temporary("stories.csv");
        let out = ["--quiet", "--per-byte", path.to_str().unwrap()];
        output(SCORE, &[&[MODEL], args, &out].concat(), b"");
        let table = std::fs::read_to_string(path).unwrap();
        let rest_of = |line: &str| line.split_once(',').unwrap().1.to_owned();
        table.lines().skip(1).map(rest_of).collect()
    };
    let many: Vec<String> = (0..20)
        .map(|i| format!("{} {}", stories[i % 3], "and on ".repeat(i * i)))
        .collect();
    let separate: Vec<String> = (many.iter())
        .flat_map(|story| table(&["-f", &file("one.txt", story.trim_end().as_bytes())]))
        .collect();
    let joined = many
        .iter()
        .map(|story| story.trim_end())
        .collect::<Vec<_>>();
    let joined = file("many.txt", joined.join("\n<|endoftext|>\n").as_bytes());
    assert!(table(&["-f", &joined]) == separate);
    // So do windows: those of a short context are read together, too.
    let book = file("book.txt", many.concat().as_bytes());
    let windows = table(&["-f", &book, "--context", "65"]);
    let chunks = many.concat().into_bytes();
    let separate: Vec<String> = (chunks.chunks(64).enumerate())
        .flat_map(|(i, chunk)| {
            let path = file(&format!("chunk-{i}"), chunk);
            table(&["-f", &path, "--separator", "", "--context", "65"])
        })
        .collect();
    assert!(windows == separate);
    // As one document the separators count too.
    let (_, n, documents) = score(&["-f", &together, "--separator", ""]);
    assert_eq!(
        (n, documents),
        (std::fs::metadata(&together).unwrap().len(), 1)
    );
    let dump = temporary("stories.safetensors");
    let refused = call(
        SCORE,
        &[MODEL, "-f", &together, "--dump", dump.to_str().unwrap()],
        b"",
    );
    assert!(String::from_utf8_lossy(&refused.stderr).contains("one with --dump"));
    let zipped = file("stories.txt.gz", b"\x1f\x8b\x08\0");
    let refused = call(SCORE, &[MODEL, "-f", &zipped], b"");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("gzip -dk"));
}
