//! Files that the programs write: what is in the way, what is never replaced, what stays after a failure.

use std::path::Path;

use super::{MODEL, SCORE, call, file, output, temporary};

/// The three files of blt-score, with an argument before the path.
const OUTPUTS: [&str; 3] = ["--per-byte", "--html", "--dump"];

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_input_is_never_an_output() {
    let folder = temporary("outputs-model");
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new(MODEL).join(name), folder.join(name)).unwrap();
    }
    let page = file("outputs-page.txt", b"not to be lost");
    let model = text(&folder);
    let (weights, config) = (folder.join("model.safetensors"), folder.join("config.json"));
    for flag in OUTPUTS {
        for path in [page.as_str(), text(&weights), text(&config)] {
            let before = std::fs::read(path).unwrap();
            let result = call(SCORE, &[model, "-f", &page, flag, path, "--quiet"], b"");
            let message = String::from_utf8(result.stderr).unwrap();
            assert_eq!(result.status.code(), Some(2), "{flag} {path}: {message}");
            assert!(message.contains("than those that are read"), "{message}");
            assert!(std::fs::read(path).unwrap() == before, "{flag} {path}");
        }
        let result = call(SCORE, &[model, "-f", &page, flag, model], b"");
        assert_eq!(result.status.code(), Some(1), "{flag}: a folder");
    }
    let both = ["--html", "both", "--per-byte", "both"];
    let result = call(SCORE, &[&[model, "-f", &page][..], &both].concat(), b"");
    assert_eq!(result.status.code(), Some(2));
}

#[test]
fn a_dash_is_standard_output() {
    let page = file("outputs-dash.txt", b"a text of a few words");
    for flag in OUTPUTS {
        let path = temporary("outputs-dash.out");
        output(SCORE, &[MODEL, "-f", &page, flag, text(&path)], b"");
        for dash in ["-", "/dev/stdout"] {
            let result = call(SCORE, &[MODEL, "-f", &page, flag, dash, "--quiet"], b"");
            assert_eq!(result.status.code(), Some(0));
            assert!(
                result.stdout == std::fs::read(&path).unwrap(),
                "{flag} {dash}"
            );
            let figures = String::from_utf8(result.stderr).unwrap();
            assert!(figures.contains("bits per byte"), "{figures}");
        }
        let result = call(SCORE, &[MODEL, "-f", &page, flag, "-", "--json"], b"");
        assert_eq!(
            result.status.code(),
            Some(2),
            "{flag}: two outputs on one stream"
        );
    }
}

#[cfg(unix)]
#[test]
fn devices_links_and_modes_stay_what_they_are() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    let page = file("outputs-kinds.txt", b"a text of a few words");
    let (target, link) = (temporary("outputs-target"), temporary("outputs-link"));
    let _ = std::fs::remove_file(&link);
    symlink(&target, &link).unwrap();
    for flag in OUTPUTS {
        output(SCORE, &[MODEL, "-f", &page, flag, "/dev/null"], b"");
        std::fs::write(&target, "old").unwrap();
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o600)).unwrap();
        output(SCORE, &[MODEL, "-f", &page, flag, text(&link)], b"");
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        let found = std::fs::metadata(&target).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        assert!(found.len() > 3, "{flag}");
    }
    let null = std::fs::metadata("/dev/null").unwrap();
    assert!(null.file_type().is_char_device());
}

/// Files may not grow beyond one block, and the signal for that is ignored: writing fails, as on a full disk.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_old_file() {
    let page = file(
        "outputs-full.txt",
        "a text of a few words ".repeat(40).as_bytes(),
    );
    let folder = temporary("outputs-full");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("out");
    std::fs::write(&path, "old").unwrap();
    for flag in OUTPUTS {
        let script = "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\"";
        let args = ["-c", script, SCORE, MODEL, "-f", &page, flag, text(&path)];
        let result = call("sh", &args, b"");
        let message = String::from_utf8(result.stderr).unwrap();
        assert_eq!(result.status.code(), Some(1), "{flag}: {message}");
        assert!(message.contains("out: File too large"), "{message}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old", "{flag}");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "{flag}");
    }
}
