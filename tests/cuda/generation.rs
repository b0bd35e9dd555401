//! What a GPU does beyond reading: bytes chosen there and read ahead, sessions together, tables.

use blt::config::{Config, CrossAttentionConfig, TransformerConfig};
use blt::sampler::{Sampler, SamplerConfig};
use blt::tensor::DType;
use blt::{Device, GpuOptions, KvType, Model, Session, SessionOptions, TablePlace, batch};
use blt_kernels::BlockFormat;

use super::{assert_close, common, compare, on_gpu, read};

/// The text that a session goes on with, where each id is what a sampler on the CPU makes of the GPU's own
/// logits.
fn generated(session: &mut Session, sampler: &SamplerConfig, n_bytes: usize) -> Vec<u8> {
    let options = blt::GenerateOptions {
        max_bytes: Some(n_bytes),
        sampler: sampler.clone(),
        ..Default::default()
    };
    let mut on_cpu = Sampler::new(sampler.clone()).unwrap();
    let mut generator = session.generate(&options).unwrap();
    let mut text = Vec::new();
    while let Some(byte) = generator.next() {
        let byte = byte.unwrap();
        let session = generator.session();
        let expected = on_cpu.sample(session.logits(), session.ids());
        assert_eq!(
            blt::vocab::id_to_byte(expected),
            Some(byte),
            "{sampler:?}, byte {}",
            text.len()
        );
        text.push(byte);
    }
    generator.finish().unwrap();
    text
}

fn default_model() -> Model {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/default.safetensors");
    Model::open(path).unwrap()
}

#[test]
#[ignore = "needs a CUDA device"]
fn the_gpu_chooses_bytes_as_the_sampler_does() {
    let cpu = default_model();
    let settings = [
        SamplerConfig {
            ignore_eos: true,
            ..SamplerConfig::default()
        },
        SamplerConfig {
            temperature: 1.3,
            top_k: Some(9),
            top_p: None,
            min_p: None,
            seed: 3,
            ..SamplerConfig::default()
        },
        SamplerConfig {
            repeat_penalty: 1.2, // chosen by the host
            seed: 4,
            ..SamplerConfig::default()
        },
    ];
    for tables in [TablePlace::Device, TablePlace::Host] {
        let options = GpuOptions { tables };
        let gpu = cpu.on_device_with(Device::Cuda(0), options).unwrap();
        for sampler in &settings {
            let mut session = Session::new(&gpu, SessionOptions::default()).unwrap();
            session.feed(b"The old").unwrap();
            let text = generated(&mut session, sampler, 12);
            // What was read ahead is what would have been read; and it is dropped where it must be.
            let mut alone = Session::new(&cpu, SessionOptions::default()).unwrap();
            alone.feed(b"The old").unwrap();
            alone.feed(&text).unwrap();
            assert_eq!(session.patch_starts(), alone.patch_starts());
            assert_close("after a generated text", session.logits(), alone.logits());
            for session in [&mut session, &mut alone] {
                session.rewind(10).unwrap();
                session.feed(b" cat").unwrap();
            }
            assert_eq!(session.patch_starts(), alone.patch_starts());
            assert_close("another text after it", session.logits(), alone.logits());
        }
    }
}

/// Kernels of a byte that is generated, and of a patch that ends: five a layer, norms and gates within.
fn kernels(config: &Config) -> (usize, usize) {
    let crosses = |stack: &TransformerConfig, cross: &CrossAttentionConfig| match cross.all_layers {
        true => stack.n_layers,
        false => 1,
    };
    let written = crosses(&config.encoder, &config.encoder_cross);
    let read = crosses(&config.decoder, &config.decoder_cross);
    // Embedding, layers, output, entropy.
    let entropy = config
        .entropy
        .as_ref()
        .map_or(0, |e| 1 + 5 * e.n_layers + 2);
    // Embedding, layers, states and their keys and values.
    let encoder = 1 + 5 * config.encoder.n_layers + 3 * written;
    // States, layers, cross-attentions, norm, output, choice.
    let decoder = 1 + 5 * config.decoder.n_layers + 3 * read + 3;
    let projected = config.global.dim != config.cross_attn_k * config.encoder.dim;
    // Pooling, projections, cross-attentions, layers, keys and values.
    let ending =
        1 + 2 + usize::from(projected) + 3 * written + 5 * config.global.n_layers + 2 * read;
    (entropy + encoder + decoder, ending)
}

#[test]
#[ignore = "needs a CUDA device"]
fn as_many_kernels_are_started_as_a_model_has_steps() {
    // What README.md says.
    let published = blt::cli::synthetic::config("1b").unwrap();
    assert_eq!(kernels(&published), (158, 149));
    let gpu = on_gpu(&default_model());
    let mut session = Session::new(&gpu, SessionOptions::default()).unwrap();
    session.feed(b"The old").unwrap();
    let options = blt::GenerateOptions {
        sampler: SamplerConfig {
            ignore_eos: true,
            ..SamplerConfig::default()
        },
        ..Default::default()
    };
    let mut generator = session.generate(&options).unwrap();
    let mut step = || {
        generator.next().unwrap().unwrap();
        (
            gpu.gpu_kernels().unwrap(),
            generator.session().patch_starts().len(),
        )
    };
    // The first byte is chosen by logits that are there, and nothing of it has been read ahead.
    step();
    let mut before = step();
    let (byte, patch) = kernels(gpu.config());
    let mut n_patches = 0;
    for _ in 0..40 {
        let now = step();
        let ended = now.1 - before.1;
        let started = (now.0.0 - before.0.0, now.0.1 - before.0.1);
        assert_eq!(started, (byte + ended * patch, ended * patch));
        (before, n_patches) = (now, n_patches + ended);
    }
    assert!(n_patches > 2);
}

#[test]
#[ignore = "needs a CUDA device"]
fn sessions_that_read_together_agree_with_the_cpu() {
    let cpu = default_model();
    let gpu = on_gpu(&cpu);
    let texts = [
        &b"Once upon a time"[..],
        b"A",
        b"The sun was hot. Tom and",
        b"She said",
    ];
    let run = |model: &Model| {
        let new = |kv| Session::new(model, SessionOptions::new().kv(kv)).unwrap();
        let of_both = KvType::ALL.into_iter().cycle();
        let mut sessions: Vec<Session> = of_both.take(texts.len()).map(new).collect();
        let mut feeds: Vec<(&mut Session, &[u8])> = sessions.iter_mut().zip(texts).collect();
        for result in batch::feed(&mut feeds) {
            result.unwrap();
        }
        let options = blt::GenerateOptions {
            max_bytes: Some(10),
            sampler: SamplerConfig::greedy(),
            ..Default::default()
        };
        let mut generators: Vec<_> = (sessions.iter_mut())
            .map(|session| session.generate(&options).unwrap())
            .collect();
        let mut generated = vec![Vec::new(); texts.len()];
        for round in 0..10 {
            // Not all every time.
            let going = generators.iter_mut().enumerate();
            let going = going.filter(|(i, _)| round % 3 != 1 || i % 2 == 0);
            let (numbers, mut going): (Vec<_>, Vec<_>) = going.unzip();
            for (i, byte) in numbers.into_iter().zip(batch::next_bytes(&mut going)) {
                generated[i].extend(byte.map(Result::unwrap));
            }
        }
        for generator in generators {
            generator.finish().unwrap();
        }
        (generated, sessions)
    };
    let (found, expected) = (run(&gpu), run(&cpu));
    assert_eq!(found.0, expected.0);
    for (found, expected) in found.1.iter().zip(&expected.1) {
        assert_eq!(found.patch_starts(), expected.patch_starts());
        assert_close("a session of a batch", found.logits(), expected.logits());
    }
}

/// Tables in every type, looked up by the device and by the host.
#[test]
#[ignore = "needs a CUDA device"]
fn tables_on_the_gpu_are_those_of_the_host() {
    let case = common::cases()
        .into_iter()
        .find(|c| c.name == "hf-gqa")
        .unwrap();
    let (_, checkpoint) = case.checkpoints().remove(0);
    let ids = &case.prompts()[0].ids()[..12];
    let plain = DType::FLOATS.map(|dtype| (dtype, dtype));
    let blocks = BlockFormat::ALL.map(|f| (DType::Tiles(f), DType::Table(f)));
    let packed = (DType::Bf12, DType::Bf12);
    for (matrix, table) in plain.into_iter().chain(blocks).chain([packed]) {
        let model = common::model(&common::converted(&checkpoint, matrix, table));
        let read = |tables| {
            let options = GpuOptions { tables };
            let gpu = model.on_device_with(Device::Cuda(0), options).unwrap();
            read(&gpu, ids, 1000)
        };
        let (device, host) = (read(TablePlace::Device), read(TablePlace::Host));
        compare(&format!("tables in {table}"), &device, &host);
    }
}
