//! Parts of bitsandbytes' layers that lie.

use crate::refused::{Q, floats, of_type, refused, text};
use ferrotune_quant::files::{NewTensor, Scheme};
use safetensors::Dtype;

#[test]
fn bitsandbytes() {
    let file = "bnb_nf4";
    let key = |part: &str| format!("{Q}.weight{part}");
    let changed = refused::<fn(&mut NewTensor)>;
    let refused = |part: &str, edit: fn(&mut NewTensor), words: &[&str]| {
        let key = key(part);
        let words: Vec<&str> = words.iter().copied().chain([key.as_str()]).collect();
        refused(file, Scheme::Nf4, &key, edit, &words);
    };
    let state = ".quant_state.bitsandbytes__nf4";
    refused("", |t| of_type(t, Dtype::I8), &["I8, expected U8"]);
    refused(
        "",
        |t| {
            t.shape[0] -= 1;
            t.data.to_mut().pop();
        },
        &["2048 bytes", "[2047, 1]"],
    );
    refused(
        ".absmax",
        |t| of_type(t, Dtype::F16),
        &["F16, expected F32"],
    );
    refused(
        ".absmax",
        |t| {
            t.shape = vec![63];
            t.data.to_mut().truncate(252);
        },
        &["[63]", "[64]"],
    );
    refused(".absmax", |t| floats(t, 3, f32::NAN), &["scale 3 is NaN"]);
    refused(
        ".absmax",
        |t| floats(t, 63, f32::NEG_INFINITY),
        &["scale 63 is -inf"],
    );
    refused(
        ".quant_map",
        |t| floats(t, 5, -0.18),
        &["code 5 stands for -0.18"],
    );
    refused(
        ".quant_map",
        |t| {
            t.shape = vec![15];
            t.data.to_mut().truncate(60);
        },
        &["[15]", "[16]"],
    );
    refused(state, |t| text(t, "64", "48"), &["block of 48"]);
    refused(state, |t| text(t, "64", "0"), &["block of 0"]);
    refused(state, |t| text(t, "nf4", "fp4"), &["\"fp4\"", "\"nf4\""]);
    refused(state, |t| text(t, "bfloat16", "float64"), &["float64"]);
    refused(state, |t| text(t, "{", ""), &["not a quant_state"]);
    refused(
        state,
        |t| text(t, "[32, 128]", "null"),
        &["not a quant_state"],
    );
    refused(state, |t| text(t, "[32, 128]", "[]"), &["[]"]);
    refused(
        state,
        |t| text(t, "[32, 128]", "[4294967296, 4294967296]"),
        &["4294967296"],
    );
    refused(state, |t| text(t, "[32, 128]", "[0, 128]"), &["[0, 128]"]);
    changed(
        file,
        Scheme::Nf4,
        &key(state),
        |t| text(t, "[32, 128]", "[64, 128]"),
        &[
            "q_proj.weight has the shape [2048, 1]",
            "4096 bytes",
            "[64, 128]",
        ],
    );
}

#[test]
fn bitsandbytes_nested_and_int8() {
    let nested = |part: &str, edit: fn(&mut NewTensor), words: &[&str]| {
        let key = format!("{Q}.weight{part}");
        refused("bnb_nf4_nested", Scheme::Nf4Nested, &key, edit, words);
    };
    let state = ".quant_state.bitsandbytes__nf4";
    nested(
        ".absmax",
        |t| of_type(t, Dtype::I8),
        &["weight.absmax is I8"],
    );
    nested(
        ".absmax",
        |t| {
            t.shape = vec![63];
            t.data.to_mut().pop();
        },
        &["[63]", "[64]"],
    );
    nested(
        ".nested_absmax",
        |t| floats(t, 0, f32::INFINITY),
        &["nested absmax 0 is inf"],
    );
    nested(
        ".nested_absmax",
        |t| {
            t.shape = vec![2];
            t.data.to_mut().extend([0; 4]);
        },
        &["[2]", "[1]"],
    );
    nested(
        ".nested_quant_map",
        |t| floats(t, 9, f32::NAN),
        &["nested code 9 is NaN"],
    );
    nested(
        ".nested_quant_map",
        |t| {
            t.shape = vec![255];
            t.data.to_mut().truncate(1020);
        },
        &["[256]"],
    );
    nested(
        state,
        |t| text(t, "\"nested_blocksize\": 256", "\"nested_blocksize\": 0"),
        &["blocks of 64 and 0"],
    );
    nested(
        state,
        |t| text(t, "nested_offset", "other"),
        &["without nested_blocksize or nested_offset"],
    );
    nested(
        state,
        |t| text(t, "0.328399658203125", "1e300"),
        &["nested offset 0 is inf"],
    );
    let int8 = |part: &str, edit: fn(&mut NewTensor), words: &[&str]| {
        refused(
            "bnb_int8",
            Scheme::Int8,
            &format!("{Q}.{part}"),
            edit,
            words,
        );
    };
    int8(
        "weight",
        |t| of_type(t, Dtype::U8),
        &["q_proj.weight is U8, expected I8"],
    );
    int8(
        "weight",
        |t| t.shape = vec![2048],
        &["[2048]", "2 dimensions"],
    );
    int8(
        "weight",
        |t| t.shape = vec![64, 32],
        &["SCB", "[32]", "[64]"],
    );
    int8(
        "SCB",
        |t| floats(t, 31, f32::NAN),
        &["SCB: scale 31 is NaN"],
    );
    int8(
        "weight_format",
        |t| t.data = vec![2].into(),
        &["weight_format: 2"],
    );
}
