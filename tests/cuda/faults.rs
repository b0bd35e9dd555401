//! What goes wrong with GPUs, as far as the emulated driver can be told to: each time one sentence that
//! names the thing, what was expected and what was found, and the CPU only where it was asked for.

use std::process::{Command, Output};

use blt::{Device, Session, SessionOptions};

use super::common;

const RUN: &str = env!("CARGO_BIN_EXE_blt-run");
const INFO: &str = env!("CARGO_BIN_EXE_blt-info");
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/hf-gqa/model");

/// A variable of the environment that the emulated driver reads, and its value.
type Setting<'a> = (&'a str, &'a str);

/// The driver loses the device at the n-th launch.
const LOST: &str = "BLT_EMULATED_LOST";
/// The n-th allocation fails.
const ALLOCATION: &str = "BLT_EMULATED_ALLOCATION";

fn call(program: &str, args: &[&str], settings: &[Setting]) -> Output {
    let mut command = Command::new(program);
    command.args(args).envs(settings.iter().copied());
    if settings.is_empty() {
        // The emulated driver is found through it.
        command.env_remove("LD_LIBRARY_PATH");
    }
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads and writes a few bytes on a device.
fn generate(device: &str, settings: &[Setting]) -> Output {
    let options = [
        "-p",
        "The quick",
        "-n",
        "6",
        "--temp",
        "0",
        "--device",
        device,
    ];
    call(RUN, &[&[MODEL][..], &options].concat(), settings)
}

struct Case {
    settings: &'static [Setting<'static>],
    /// Parts of the one line on standard error.
    says: &'static [&'static str],
}

/// Everything that can be wrong from the start.
const CASES: &[Case] = &[
    Case {
        settings: &[],
        says: &["no CUDA driver", "libcuda.so.1", "use the CPU"],
    },
    Case {
        settings: &[("BLT_EMULATED_VERSION", "11080")],
        says: &[
            "CUDA driver",
            "expected one for CUDA 12.0 or later, found one for 11.8",
        ],
    },
    Case {
        settings: &[("BLT_EMULATED_DEVICES", "0")],
        says: &["cuda:0", "found 0 of them"],
    },
    Case {
        settings: &[("BLT_EMULATED_CAPABILITY", "75")],
        says: &[
            "cuda:0 (emulation",
            "expected compute capability 8.0 or later, found 7.5",
        ],
    },
    Case {
        settings: &[
            ("BLT_EMULATED_IMAGE", "209"),
            ("BLT_EMULATED_CAPABILITY", "100"),
        ],
        says: &[
            "kernels for device cuda:0",
            "expected a driver for CUDA 12.8 or later, found one for 12.0",
            "capability 10.0",
            "no kernel image is available",
        ],
    },
    Case {
        settings: &[("BLT_EMULATED_IMAGE", "222")],
        says: &["kernels for device cuda:0", "CUDA 12.0 or later", "PTX"],
    },
    Case {
        settings: &[("BLT_EMULATED_MEMORY", "100000")],
        says: &[
            "memory of device cuda:0",
            "expected",
            "of 100000 free",
            "smaller format",
        ],
    },
];

#[test]
#[ignore = "needs the emulated CUDA driver"]
fn faults_from_the_start_are_told_and_auto_takes_the_cpu() {
    let expected = generate("cpu", &[("BLT_EMULATED_DEVICES", "0")]);
    assert!(expected.status.success(), "{}", text(&expected.stderr));
    for Case { settings, says } in CASES {
        let failed = generate("cuda", settings);
        let message = text(&failed.stderr);
        assert_eq!(failed.status.code(), Some(1), "{settings:?}: {message}");
        assert_eq!(message.lines().count(), 1, "{settings:?}: {message}");
        for part in *says {
            assert!(
                message.contains(part),
                "{settings:?}: no \"{part}\" in {message}"
            );
        }
        assert_eq!(text(&failed.stdout), "", "{settings:?}");

        let fell_back = generate("auto", settings);
        let message = text(&fell_back.stderr);
        assert!(fell_back.status.success(), "{settings:?}: {message}");
        assert_eq!(fell_back.stdout, expected.stdout, "{settings:?}");
        assert!(
            message.contains("computing on the CPU: "),
            "{settings:?}: {message}"
        );
        for part in *says {
            assert!(
                message.contains(part),
                "{settings:?}: no \"{part}\" in {message}"
            );
        }
    }
    let settings = [("BLT_EMULATED_DEVICES", "1")];
    let on_gpu = generate("auto", &settings);
    let message = text(&on_gpu.stderr);
    assert!(message.contains("computing on emulation"), "{message}");
    assert_eq!(on_gpu.stdout, expected.stdout);
    let absent = generate("cuda:3", &settings);
    let message = text(&absent.stderr);
    assert_eq!(absent.status.code(), Some(1), "{message}");
    assert!(
        message.contains("cuda:3") && message.contains("found 1 of them"),
        "{message}"
    );
}

#[test]
#[ignore = "needs the emulated CUDA driver"]
fn devices_are_listed_or_their_absence_is_told() {
    let list = |settings: &[Setting]| {
        let output = call(INFO, &["--devices"], settings);
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let (code, found, _) = list(&[
        ("BLT_EMULATED_DEVICES", "2"),
        ("BLT_EMULATED_CAPABILITY", "121"),
    ]);
    assert_eq!((code, found.lines().count()), (Some(0), 2));
    assert!(
        found.contains("cuda:1  emulation on the CPU, compute capability 12.1"),
        "{found}"
    );
    let (code, found, _) = list(&[("BLT_EMULATED_DEVICES", "0")]);
    assert_eq!((code, found.as_str()), (Some(0), "no NVIDIA GPU\n"));
    let (code, found, message) = list(&[]);
    assert_eq!((code, found.as_str()), (Some(1), ""));
    assert!(message.contains("no CUDA driver"), "{message}");
    let (code, _, message) = list(&[("BLT_EMULATED_VERSION", "11080")]);
    assert_eq!(code, Some(1));
    assert!(message.contains("found one for 11.8"), "{message}");
}

/// Runs a test of this program again in a process of its own, with settings of the driver.
fn in_own_process(test: &str, settings: &[Setting]) -> String {
    let program = std::env::current_exe().unwrap();
    let name = format!("faults::{test}");
    let args = ["--exact", &name, "--ignored", "--nocapture"];
    let output = call(program.to_str().unwrap(), &args, settings);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{settings:?}: {out}{err}");
    assert!(out.contains("1 passed"), "{settings:?}: {out}{err}");
    out
}

#[test]
#[ignore = "needs the emulated CUDA driver"]
fn a_device_lost_on_the_way_is_an_error_from_then_on() {
    if std::env::var_os(LOST).is_some() {
        return lost_device();
    }
    for nth in ["1", "2", "3", "4", "9", "16"] {
        let test = "a_device_lost_on_the_way_is_an_error_from_then_on";
        in_own_process(test, &[(LOST, nth)]);
    }
}

fn lost_device() {
    let told = |result: Result<(), blt::Error>| {
        let message = result.unwrap_err().to_string();
        assert!(
            message.contains("device cuda:0 (emulation on the CPU)"),
            "{message}"
        );
        assert!(
            message.contains("lost to this process: start it anew"),
            "{message}"
        );
    };
    let model = common::case("hf-gqa").1;
    let gpu = match model.on_device(Device::Cuda(0)) {
        Ok(gpu) => gpu,
        Err(error) => return told(Err(error)),
    };
    let mut session = Session::new(&gpu, SessionOptions::default()).unwrap();
    let mut read = 0;
    let error = loop {
        match session.feed(b"a b") {
            Ok(_) => read += 3,
            Err(error) => break error,
        }
        assert!(read < 1000, "the device is never lost");
    };
    told(Err(error));
    for _ in 0..2 {
        told(session.feed(b"c").map(|_| ()));
        told(session.clone().feed(b"c").map(|_| ()));
        told(model.on_device(Device::Cuda(0)).map(|_| ()));
    }
    // The CPU goes on.
    let mut session = Session::new(&model, SessionOptions::default()).unwrap();
    session.feed(b"c").unwrap();
}

/// Single allocations find no memory: of the weights, of scratch, of caches, of a fork, of a cache that
/// grows.
#[test]
#[ignore = "needs the emulated CUDA driver"]
fn no_memory_is_an_error_and_the_session_stays_as_it_was() {
    if std::env::var_os(ALLOCATION).is_some() {
        return failed_allocation();
    }
    let places = ["1", "60", "130", "150", "170", "180", "190"];
    let refused = |nth: &&'static str| {
        let test = "no_memory_is_an_error_and_the_session_stays_as_it_was";
        let out = in_own_process(test, &[(ALLOCATION, nth)]);
        out.contains("refused: memory")
    };
    // How many allocations there are is the model's business, but not that these few are among them.
    assert!(places.iter().filter(|nth| refused(nth)).count() >= 4);
}

fn failed_allocation() {
    let told = |error: blt::Error| {
        let message = error.to_string();
        assert!(message.contains("memory of device cuda:0"), "{message}");
        assert!(
            message.contains("expected") && message.contains("found"),
            "{message}"
        );
        println!("refused: {message}");
    };
    let model = common::case("hf-gqa").1;
    let gpu = match model.on_device(Device::Cuda(0)) {
        Ok(gpu) => gpu,
        Err(error) => {
            told(error);
            model.on_device(Device::Cuda(0)).unwrap() // only that one allocation fails
        }
    };
    // Whatever fails is done again, and the result is that of a session to which nothing happened.
    let pieces: Vec<String> = (0..6).map(|i| format!("piece {i} of a text; ")).collect();
    let read = |stop_after: usize| {
        let mut session = Session::new(&gpu, SessionOptions::default()).unwrap();
        for (i, piece) in pieces.iter().enumerate() {
            let before = session.len();
            if let Err(error) = session.feed(piece.as_bytes()) {
                told(error);
                assert_eq!(session.len(), before);
                session.feed(piece.as_bytes()).unwrap();
            }
            if i == stop_after {
                let mut fork = session.clone();
                if let Err(error) = fork.feed(b"fork") {
                    told(error);
                    fork.feed(b"fork").unwrap();
                }
            }
        }
        (
            common::bits(session.logits()),
            session.patch_starts().to_vec(),
        )
    };
    let first = read(3);
    assert!(
        first == read(usize::MAX),
        "a failed allocation changed the result"
    );
}
