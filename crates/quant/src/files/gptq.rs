//! GPTQ with 4 bits, as AutoGPTQ and GPTQModel save it. Of a weight `[out, in]` in `G` groups of input
//! features:
//!
//! | key | type | |
//! |---|---|---|
//! | `P.qweight` | I32 `[in ÷ 8, out]` | codes, see [`Gptq`] |
//! | `P.qzeros` | I32 `[G, out ÷ 8]` | zero points |
//! | `P.scales` | F16 `[G, out]` | |
//! | `P.g_idx` | I32 `[in]` | the group of each input feature; in order where it is not there |
//!
//! Whether `qzeros` holds zero points, or zero points less one, stands in the model's configuration
//! (`checkpoint_format`) and not in the file: [`ZeroConvention`].

use super::error::Result;
use super::tensors::Safetensors;
use super::words;
use super::writer::NewTensor;
use crate::{Gptq, GptqTensors, ZeroConvention};
use safetensors::Dtype;

/// Reads the layer `prefix`; parts that are aligned are borrowed.
///
/// # Errors
/// A part that is not there, or of another type or shape (of 2, 3 or 8 bits, for instance); groups that
/// there are not; a scale that is not finite.
pub fn read<'a>(
    file: &Safetensors<'a>,
    prefix: &str,
    convention: ZeroConvention,
) -> Result<Gptq<'a>> {
    let part = |name: &str| file.tensor(&format!("{prefix}.{name}"));
    let qweight = part("qweight")?.of(&[Dtype::I32])?;
    let [words, out] = qweight.dims()?;
    qweight.refuse_empty([words, out])?;
    // Eight times a length in memory, of 4 bytes each, does not overflow.
    let inputs = 8 * words;
    let qzeros = part("qzeros")?.of(&[Dtype::I32])?;
    let [groups, _] = qzeros.dims()?;
    if groups == 0 || out % 8 != 0 {
        return Err(qzeros.misshapen(format!("[groups, {out} ÷ 8], for 4 bits")));
    }
    let qzeros = qzeros.shaped(&[groups, out / 8])?;
    let scales = part("scales")?.of(&[Dtype::F16])?.shaped(&[groups, out])?;
    let g_idx = file.get(&format!("{prefix}.g_idx"));
    let g_idx = match g_idx {
        Some(g_idx) => Some(g_idx.of(&[Dtype::I32])?.shaped(&[inputs])?),
        None => None,
    };
    let tensors = GptqTensors {
        qweight: qweight.words(),
        qzeros: qzeros.words(),
        scales: scales.words(),
        g_idx: g_idx.as_ref().map(|g_idx| g_idx.words()),
    };
    Gptq::from_tensors([out, inputs], convention, tensors).map_err(|error| match &g_idx {
        Some(g_idx) if matches!(error, crate::Error::Stored { what: "g_idx", .. }) => {
            g_idx.matrix(error)
        }
        _ => scales.matrix(error),
    })
}

/// The tensors of a layer `prefix`.
pub fn tensors<'a>(prefix: &str, matrix: &'a Gptq<'_>) -> Vec<NewTensor<'a>> {
    let key = |name: &str| format!("{prefix}.{name}");
    let [out, inputs] = matrix.shape();
    let groups = matrix.groups();
    let parts = matrix.tensors();
    let int = |name: &str, shape: &[usize], data| {
        NewTensor::bytes(key(name), Dtype::I32, shape, words::cow_bytes(data))
    };
    let scales = words::cow_bytes(parts.scales);
    let mut tensors = vec![
        int("qweight", &[inputs / 8, out], parts.qweight),
        int("qzeros", &[groups, out / 8], parts.qzeros),
        NewTensor::bytes(key("scales"), Dtype::F16, &[groups, out], scales),
    ];
    tensors.extend(parts.g_idx.map(|g_idx| int("g_idx", &[inputs], g_idx)));
    tensors
}
