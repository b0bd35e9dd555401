//! Prompts by cuBLASLt: the same logits as without it, and what can be wrong with the library.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use blt::tensor::DType;
use blt::vocab::Id;
use blt::{Device, GpuOptions, Model, Session, SessionOptions, batch};
use blt_kernels::BlockFormat;

use super::faults::{RUN, Setting, call, is_emulated, text};
use super::{assert_close, common, compare, for_each, have_device, on_gpu, read};

fn have_library() -> bool {
    let found = have_device() && blt::has_cublaslt();
    if !found {
        eprintln!("skipped: no cuBLASLt library");
    }
    found
}

fn with_library(model: &Model) -> Model {
    let options = GpuOptions {
        cublaslt: true,
        ..GpuOptions::default()
    };
    model.on_device_with(Device::Cuda(0), options).unwrap()
}

/// A reference case with matrices in a type, and ids to read.
fn model_and_ids(dtype: DType) -> (Model, Vec<Id>) {
    let (case, _) = common::case("hf-gqa");
    let (_, checkpoint) = case.checkpoints().remove(0);
    let model = common::model(&common::converted(&checkpoint, dtype, DType::F32));
    let mut random = common::Random(9);
    let ids = (0..150).map(|_| 4 + random.below(64) as Id);
    (model, ids.collect())
}

#[test]
fn prompts_agree_with_the_cpu() {
    if !have_library() {
        return;
    }
    for_each(&[DType::Bf16, DType::F16], |&dtype| {
        let (model, ids) = model_and_ids(dtype);
        let expected = read(&model, &ids, 1000);
        let gpu = with_library(&model);
        for piece in [1000, 40] {
            let what = format!("{dtype}, {piece} at once");
            compare(&what, &read(&gpu, &ids, piece), &expected);
        }
        // That is another order of sums, but for few rows, which our kernels multiply.
        let (found, own) = (
            |piece| read(&gpu, &ids[..60], piece).0,
            |piece| read(&on_gpu(&model), &ids[..60], piece).0,
        );
        assert_ne!(found(60), own(60), "{dtype}: the library is not used");
        assert_eq!(found(5), own(5), "{dtype}: few rows are not our kernels'");
    });
    // And with types that it is not for.
    for_each(&[DType::F32, DType::Tiles(BlockFormat::Q8_0)], |&dtype| {
        let (model, ids) = model_and_ids(dtype);
        let found = read(&with_library(&model), &ids[..60], 60);
        assert_eq!(found.0, read(&on_gpu(&model), &ids[..60], 60).0, "{dtype}");
    });
}

/// As many sessions as make a byte of each a product of many rows, in passes that are recorded as graphs; and a
/// prompt between them, which uses the same memory.
#[test]
fn many_sessions_agree_with_the_cpu() {
    if !have_library() {
        return;
    }
    let (cpu, ids) = model_and_ids(DType::Bf16);
    let gpu = with_library(&cpu);
    let run = |model: &Model| {
        let new = |_| Session::new(model, SessionOptions::default()).unwrap();
        let mut sessions: Vec<Session> = (0..40).map(new).collect();
        let feed = |sessions: &mut [Session], round: usize, n: usize| {
            let texts: Vec<Vec<u8>> = (0..sessions.len())
                .map(|i| {
                    let ids = ids[3 * i + round..][..n].iter();
                    ids.map(|&id| blt::vocab::id_to_byte(id).unwrap()).collect()
                })
                .collect();
            let texts = texts.iter().map(Vec::as_slice);
            let mut feeds: Vec<(&mut Session, &[u8])> = sessions.iter_mut().zip(texts).collect();
            for result in batch::feed(&mut feeds) {
                result.unwrap();
            }
        };
        (0..5).for_each(|round| feed(&mut sessions, round, 1));
        feed(&mut sessions[7..9], 5, 90);
        (5..9).for_each(|round| feed(&mut sessions, round, 1));
        sessions
    };
    for (i, (found, expected)) in run(&gpu).iter().zip(&run(&cpu)).enumerate() {
        assert_eq!(found.patch_starts(), expected.patch_starts(), "session {i}");
        let what = format!("session {i} of many");
        assert_close(&what, found.logits(), expected.logits());
    }
}

/// The folder of a library that the system would find.
fn folder_of(library: &str) -> PathBuf {
    let path = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path);
    folders.find(|f| f.join(library).exists()).unwrap()
}

#[test]
fn faults_of_the_library_are_told_and_nothing_takes_its_place() {
    if !is_emulated() || !have_library() {
        return;
    }
    let driver = "libcuda.so.1";
    let alone = std::env::temp_dir().join(format!("blt-no-cublaslt-{}", std::process::id()));
    std::fs::create_dir_all(&alone).unwrap();
    symlink(folder_of(driver).join(driver), alone.join(driver)).unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/default.safetensors");
    let run = |more: &[&str], settings: &[Setting]| {
        let prompt = "a prompt of more bytes than our own kernels would multiply";
        let args = [
            model, "-p", prompt, "-n", "1", "--temp", "0", "--device", "cuda",
        ];
        let args: Vec<&str> = args.iter().chain(more).copied().collect();
        let output = call(RUN, &args, settings);
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let without = [("LD_LIBRARY_PATH", alone.to_str().unwrap())];
    let cases: [(&[Setting], &[&str]); 4] = [
        (&without, &["no cuBLASLt library", "libcublasLt.so.12"]),
        (
            &[("BLT_EMULATED_CUBLASLT_VERSION", "12103")],
            &["cuBLASLt: expected version 120000", "found 12103"],
        ),
        (
            &[("BLT_EMULATED_CUBLASLT_CREATE", "1")],
            &["cuda:0", "cuBLASLt: starting it", "NOT_INITIALIZED"],
        ),
        (
            &[("BLT_EMULATED_CUBLASLT_MATMUL", "13")],
            &["cuda:0", "cuBLASLt: product of", "EXECUTION_FAILED"],
        ),
    ];
    for (settings, says) in cases {
        let (code, out, message) = run(&["--cublaslt"], settings);
        assert_eq!(
            (code, out.as_str()),
            (Some(1), ""),
            "{settings:?}: {message}"
        );
        assert_eq!(message.lines().count(), 1, "{settings:?}: {message}");
        for part in says {
            assert!(
                message.contains(part),
                "{settings:?}: no \"{part}\" in {message}"
            );
        }
        let (code, _, message) = run(&[], settings);
        assert_eq!(
            code,
            Some(0),
            "{settings:?}: asked for by nobody: {message}"
        );
    }
    std::fs::remove_dir_all(&alone).unwrap();
    let (code, found, _) = run(&["--cublaslt"], &[("BLT_EMULATED_DEVICES", "1")]);
    let (_, expected, _) = run(&[], &[("BLT_EMULATED_DEVICES", "1")]);
    assert_eq!((code, found), (Some(0), expected));
}
