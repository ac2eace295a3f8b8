//! How recorded adapters are compared, on top of what nn's tests share.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used)]

#[path = "../../../nn/tests/common/mod.rs"]
pub mod nn;

use ferrotune_lora::{merge, peft, set_active, unmerge};
use ferrotune_nn::libtorch::tch::Kind;
use ferrotune_nn::{Adapters, Ctx, Decoder};
use nn::{Expected, FP32, close, load, logits, logits_under};
use std::path::{Path, PathBuf};

/// The models that peers/adapters.py makes adapters for.
pub const MODELS: [&str; 2] = ["llama", "qwen2"];
/// Its cases with one adapter, and the one with two.
pub const CASES: [&str; 3] = ["qv", "rslora", "regex"];
pub const NAMED: &str = "named";

/// A recorded adapter's folder.
pub fn adapter_dir(model: &str, case: &str) -> PathBuf {
    nn::fixtures()
        .join(model)
        .join("adapters")
        .join(case)
        .join("adapter")
}

/// The base of `fixture` in fp32 with the adapters of `case`.
pub fn adapted(fixture: &Path, case: &str) -> Decoder {
    let mut model = load(fixture.join("model"), Kind::Float);
    let dir = fixture.join("adapters").join(case).join("adapter");
    peft::load(&mut model, peft::DEFAULT, &dir).unwrap();
    if case == NAMED {
        peft::load(&mut model, "extra", &peft::folder(&dir, "extra")).unwrap();
    }
    model
}

/// One recorded adapter: its logits, those after merging, unmerged again, and the base under it.
pub fn check_recorded_adapter(fixture: &Path, case: &str) {
    let what = format!("{}/{case}", fixture.file_name().unwrap().to_string_lossy());
    let expected = Expected::open(
        fixture
            .join("adapters")
            .join(case)
            .join("expected.safetensors"),
    );
    let ids = expected.get("ids");
    let base = logits(&load(fixture.join("model"), Kind::Float), &ids);
    let off = Ctx {
        adapters: Adapters::Off,
        ..Ctx::eval()
    };
    let mut model = adapted(fixture, case);
    let alone = close(&what, &logits(&model, &ids), &expected.get("logits"), FP32);
    assert_eq!(
        logits_under(&model, &ids, &off),
        base,
        "{what} switched off"
    );
    merge(&mut model, peft::DEFAULT).unwrap();
    let merged = close(&what, &logits(&model, &ids), &expected.get("merged"), FP32);
    unmerge(&mut model, peft::DEFAULT).unwrap();
    close(&what, &logits(&model, &ids), &expected.get("logits"), FP32);
    close(&what, &logits_under(&model, &ids, &off), &base, FP32);
    eprintln!("{what}: {alone:?}, merged {merged:?}");
}

/// Two adapters: each alone and both together, chosen on the model and by the context.
pub fn check_recorded_pair(fixture: &Path) {
    let what = format!("{}/{NAMED}", fixture.file_name().unwrap().to_string_lossy());
    let expected = Expected::open(fixture.join("adapters/named/expected.safetensors"));
    let ids = expected.get("ids");
    for (names, suffix) in [
        (&["default"][..], ""),
        (&["extra"], ".extra"),
        (&["default", "extra"], ".default+extra"),
    ] {
        let mut model = adapted(fixture, NAMED);
        let right = expected.get(&format!("logits{suffix}"));
        let chosen = Adapters::Named(names.iter().map(|name| (*name).to_owned()).collect());
        let ctx = Ctx {
            adapters: chosen,
            ..Ctx::eval()
        };
        close(&what, &logits_under(&model, &ids, &ctx), &right, FP32);
        set_active(&mut model, names).unwrap();
        close(&what, &logits(&model, &ids), &right, FP32);
        for name in names {
            merge(&mut model, name).unwrap();
        }
        close(
            &what,
            &logits(&model, &ids),
            &expected.get(&format!("merged{suffix}")),
            FP32,
        );
    }
}
