//! bitsandbytes: NF4, FP4 and LLM.int8 as its layers save them (bitsandbytes 0.50,
//! `QuantState.as_dict(packed=True)` and `Linear8bitLt._save_to_state_dict`).
//!
//! 4 bit, of a layer `P` with `n` weights in blocks of `b`:
//!
//! | key | type | |
//! |---|---|---|
//! | `P.weight` | U8 `[⌈n/2⌉, 1]` | codes, the first of two in the high half; also in BF16, F16 or F32 of as many bytes (`bnb_4bit_quant_storage`) |
//! | `P.weight.absmax` | F32 `[⌈n/b⌉]` | of each block; U8 if nested |
//! | `P.weight.quant_map` | F32 `[16]` | the table of the codes |
//! | `P.weight.nested_absmax` | F32 `[⌈n/b/256⌉]` | nested only |
//! | `P.weight.nested_quant_map` | F32 `[256]` | nested only |
//! | `P.weight.quant_state.bitsandbytes__nf4`, or `__fp4` | U8 | JSON: quant_type, blocksize, dtype, shape, and nested_blocksize, nested_dtype, nested_offset |
//!
//! Nested, the absmax of a block is `nested_quant_map[code] · nested_absmax + nested_offset`, rounded
//! after each operation.
//!
//! LLM.int8: `P.weight` I8 `[out, in]`, `P.SCB` F32 `[out]` (each row's absmax), `P.weight_format` U8,
//! 0 for rows; older files have none.

use super::error::{Error, Result};
use super::nested::NestedAbsmax;
use super::tensors::{Safetensors, Tensor};
use super::words::words;
use super::writer::NewTensor;
use crate::{FP4, Format, Fp4, LlmInt8, Matrix, NF4, Nf4, Quantized};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The type that weights had before they were quantized, and have again when a peer dequantizes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TorchDtype {
    /// 32 bits.
    #[serde(rename = "float32")]
    F32,
    /// 16 bits.
    #[serde(rename = "float16")]
    F16,
    /// 16 bits, the upper half of an f32.
    #[serde(rename = "bfloat16")]
    BF16,
}

impl TorchDtype {
    /// Its name in torch.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        }
    }
}

/// A format of bitsandbytes with 4 bits: [`Nf4`] and [`Fp4`].
pub trait Bnb4Format: Format<Scale = f32, Tensor = ()> + sealed::Sealed {
    /// What codes stand for.
    const MAP: [f32; 16];

    #[doc(hidden)]
    fn with_block(block: usize) -> crate::Result<Self>;
    #[doc(hidden)]
    fn block(&self) -> usize;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for crate::Nf4 {}
    impl Sealed for crate::Fp4 {}
}

macro_rules! format {
    ($name:ident, $map:ident) => {
        impl Bnb4Format for $name {
            const MAP: [f32; 16] = $map;

            fn with_block(block: usize) -> crate::Result<Self> {
                Self::new(block)
            }

            fn block(&self) -> usize {
                $name::block(self)
            }
        }
    };
}

format!(Nf4, NF4);
format!(Fp4, FP4);

/// The matrix of a 4-bit layer, in whichever of the formats.
#[derive(Debug, Clone, PartialEq)]
pub enum Bnb4Matrix<'a> {
    /// `quant_type` nf4.
    Nf4(Quantized<'a, Nf4>),
    /// `quant_type` fp4.
    Fp4(Quantized<'a, Fp4>),
}

impl<'a> Bnb4Matrix<'a> {
    /// The matrix of whatever format.
    pub fn into_matrix(self) -> Box<dyn Matrix + 'a> {
        match self {
            Self::Nf4(matrix) => Box::new(matrix),
            Self::Fp4(matrix) => Box::new(matrix),
        }
    }
}

/// A 4-bit layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Bnb4<'a> {
    /// Codes, borrowed, and absmax, borrowed where it is plain and aligned. A weight of more or fewer
    /// than two dimensions is one of rows of its last.
    pub matrix: Bnb4Matrix<'a>,
    /// What the weights were.
    pub dtype: TorchDtype,
    /// The weight's shape.
    pub shape: Vec<usize>,
    /// How absmax is stored, if it is nested: [`tensors4`] takes it, to write what was read.
    pub nested: Option<NestedAbsmax<'a>>,
}

#[derive(Deserialize)]
struct QuantState {
    quant_type: String,
    blocksize: usize,
    dtype: TorchDtype,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

/// The keys of a layer's quant_state.
fn state_keys(prefix: &str) -> [String; 2] {
    [Nf4::NAME, Fp4::NAME].map(|name| format!("{prefix}.weight.quant_state.bitsandbytes__{name}"))
}

/// Whether a file has a 4-bit layer of this prefix.
pub fn has4(file: &Safetensors, prefix: &str) -> bool {
    state_keys(prefix).iter().any(|key| file.get(key).is_some())
}

/// Reads the 4-bit layer `prefix`.
///
/// # Errors
/// A part that is not there, or of another type or shape; a quant_state that is not JSON or says
/// something else than the parts; a quant_map that is not the format's; absmax that is not finite.
pub fn read4<'a>(file: &Safetensors<'a>, prefix: &str) -> Result<Bnb4<'a>> {
    let [nf4, fp4] = state_keys(prefix);
    let state = file.get(&fp4).map_or_else(|| file.tensor(&nf4), Ok)?;
    let state = state.of(&[Dtype::U8])?;
    let parsed: QuantState = serde_json::from_slice(state.data())
        .map_err(|error| state.content(format!("not a quant_state: {error}")))?;
    let (shape, dtype) = (parsed.shape.clone(), parsed.dtype);
    let kind = parsed.quant_type.as_str();
    let expected = state.key().rsplit("__").next().unwrap_or_default();
    if kind != expected {
        return Err(state.content(format!("quant_type is {kind:?}, the key says {expected:?}")));
    }
    let nested = match file.get(&format!("{prefix}.weight.nested_absmax")) {
        Some(absmax) => Some(read_nested(file, prefix, &state, &parsed, absmax)?),
        None => None,
    };
    let matrix = if kind == Nf4::NAME {
        Bnb4Matrix::Nf4(read(file, prefix, &state, &parsed, nested.as_ref())?)
    } else {
        Bnb4Matrix::Fp4(read(file, prefix, &state, &parsed, nested.as_ref())?)
    };
    Ok(Bnb4 {
        matrix,
        dtype,
        shape,
        nested,
    })
}

fn read<'a, F: Bnb4Format>(
    file: &Safetensors<'a>,
    prefix: &str,
    state: &Tensor<'a>,
    parsed: &QuantState,
    nested: Option<&NestedAbsmax<'a>>,
) -> Result<Quantized<'a, F>> {
    let key = |part: &str| format!("{prefix}.weight{part}");
    let map = file.tensor(&key(".quant_map"))?.of(&[Dtype::F32])?;
    let map = map.shaped(&[16])?;
    if let Some(code) = (0..16).find(|code| map.words::<f32>()[*code] != F::MAP[*code]) {
        let (found, expected) = (map.words::<f32>()[code], F::MAP[code]);
        return Err(map.content(format!(
            "code {code} stands for {found}, in {} it stands for {expected}",
            F::NAME
        )));
    }
    let format = F::with_block(parsed.blocksize).map_err(|error| state.matrix(error))?;
    let elements = parsed.shape.iter();
    let elements = elements.try_fold(1_usize, |all, n| all.checked_mul(*n));
    let Some((elements, cols)) = elements.zip(parsed.shape.last().copied()) else {
        return Err(state.content(format!("the shape {:?} is not a matrix's", parsed.shape)));
    };
    let rows = elements.checked_div(cols).unwrap_or(0);
    let storage = [Dtype::U8, Dtype::BF16, Dtype::F16, Dtype::F32];
    let weight = file.tensor(&key(""))?.of(&storage)?;
    weight.refuse_empty([rows, cols])?;
    if weight.data().len() != elements.div_ceil(2) {
        let bytes = elements.div_ceil(2);
        return Err(weight.misshapen(format!(
            "{bytes} bytes for a weight of the shape {:?}",
            parsed.shape
        )));
    }
    let absmax = file.tensor(&key(".absmax"))?;
    let blocks = elements.div_ceil(parsed.blocksize);
    let scales = match nested {
        Some(nested) => Cow::Owned(nested.expand()),
        None => absmax.clone().of(&[Dtype::F32])?.shaped(&[blocks])?.words(),
    };
    Quantized::from_parts(format, [rows, cols], (), weight.data(), scales)
        .map_err(|error| absmax.matrix(error))
}

fn read_nested<'a>(
    file: &Safetensors<'a>,
    prefix: &str,
    state: &Tensor<'a>,
    parsed: &QuantState,
    absmax: Tensor<'a>,
) -> Result<NestedAbsmax<'a>> {
    let (Some(block), Some(offset)) = (parsed.nested_blocksize, parsed.nested_offset) else {
        return Err(state.content(format!(
            "without nested_blocksize or nested_offset, beside {}",
            absmax.key()
        )));
    };
    let codes = file.tensor(&format!("{prefix}.weight.absmax"))?;
    let codes = codes.of(&[Dtype::U8])?;
    let map = file.tensor(&format!("{prefix}.weight.nested_quant_map"))?;
    let map = map.of(&[Dtype::F32])?.shaped(&[256])?;
    let blocks = |n: usize, block: usize| Some(n).filter(|_| block > 0).map(|n| n.div_ceil(block));
    let elements = parsed.shape.iter();
    let elements = elements.try_fold(1_usize, |all, n| all.checked_mul(*n));
    let counts = elements
        .and_then(|n| blocks(n, parsed.blocksize))
        .and_then(|n| Some([n, blocks(n, block)?]));
    let Some([outer, inner]) = counts else {
        return Err(state.content(format!(
            "the shape {:?} in blocks of {} and {block}",
            parsed.shape, parsed.blocksize
        )));
    };
    let codes = codes.shaped(&[outer])?;
    let absmax = absmax.of(&[Dtype::F32])?.shaped(&[inner])?;
    let nested = NestedAbsmax {
        codes: codes.data().into(),
        absmax: absmax.words(),
        map: map.words(),
        offset: offset as f32,
        block,
    };
    nested.check().map_err(|error| absmax.matrix(error))?;
    Ok(nested)
}

/// The tensors of a 4-bit layer `prefix`, of a weight `[rows, cols]`; absmax nested if `nested` is
/// given, of [`NestedAbsmax::new`] or of a layer that was read.
///
/// # Errors
/// A nested absmax of another number of blocks.
pub fn tensors4<'a, F: Bnb4Format>(
    prefix: &str,
    matrix: &'a Quantized<'_, F>,
    dtype: TorchDtype,
    nested: Option<&'a NestedAbsmax<'_>>,
) -> Result<Vec<NewTensor<'a>>> {
    let key = |part: &str| format!("{prefix}.weight{part}");
    let [rows, cols] = matrix.shape();
    let mut state = format!(
        r#"{{"quant_type": "{}", "blocksize": {}, "dtype": "{}", "shape": [{rows}, {cols}]"#,
        F::NAME,
        matrix.format().block(),
        dtype.name()
    );
    let codes = matrix.codes();
    let map: &'static [f32; 16] = &F::MAP;
    let mut tensors = vec![
        NewTensor::bytes(key(""), Dtype::U8, &[codes.len(), 1], codes),
        NewTensor::words(key(".quant_map"), Dtype::F32, &[16], map),
    ];
    let scales = matrix.scales();
    let absmax = key(".absmax");
    if let Some(nested) = nested {
        let (found, blocks) = (nested.codes.len(), scales.len());
        if found != blocks {
            let reason = format!("{found} nested for {blocks} blocks");
            return Err(Error::unwritable(&absmax, reason));
        }
        let offset = serde_json::json!(f64::from(nested.offset));
        state += &format!(
            r#", "nested_blocksize": {}, "nested_dtype": "float32", "nested_offset": {offset}"#,
            nested.block
        );
        let count = nested.absmax.len();
        let name = key(".nested_absmax");
        tensors.extend([
            NewTensor::bytes(absmax, Dtype::U8, &[blocks], &*nested.codes),
            NewTensor::words(name, Dtype::F32, &[count], &nested.absmax),
            NewTensor::words(key(".nested_quant_map"), Dtype::F32, &[256], &nested.map),
        ]);
    } else {
        tensors.push(NewTensor::words(absmax, Dtype::F32, &[scales.len()], scales));
    }
    state.push('}');
    let name = key(&format!(".quant_state.bitsandbytes__{}", F::NAME));
    let shape = [state.len()];
    tensors.push(NewTensor::bytes(name, Dtype::U8, &shape, state.into_bytes()));
    Ok(tensors)
}

/// Reads the LLM.int8 layer `prefix`.
///
/// # Errors
/// A part that is not there, or of another type or shape; a weight_format other than that of rows; SCB
/// that is not finite.
pub fn read8<'a>(file: &Safetensors<'a>, prefix: &str) -> Result<Quantized<'a, LlmInt8>> {
    let weight = file.tensor(&format!("{prefix}.weight"))?.of(&[Dtype::I8])?;
    let [rows, cols] = weight.dims()?;
    weight.refuse_empty([rows, cols])?;
    let scb = file.tensor(&format!("{prefix}.SCB"))?.of(&[Dtype::F32])?;
    let scb = scb.shaped(&[rows])?;
    if let Some(format) = file.get(&format!("{prefix}.weight_format")) {
        let format = format.of(&[Dtype::U8])?;
        if format.data() != [0] {
            let found = format.data().first().copied().unwrap_or_default();
            return Err(format.content(format!(
                "{found}: this crate reads 0, row by row, and none of the GPU's layouts"
            )));
        }
    }
    let scales = words::<f32>(scb.data());
    Quantized::from_parts(LlmInt8, [rows, cols], (), weight.data(), scales)
        .map_err(|error| scb.matrix(error))
}

/// The tensors of an LLM.int8 layer `prefix`.
pub fn tensors8<'a>(prefix: &str, matrix: &'a Quantized<'_, LlmInt8>) -> Vec<NewTensor<'a>> {
    let name = |part: &str| format!("{prefix}.{part}");
    let (codes, scales) = (matrix.codes(), matrix.scales());
    vec![
        NewTensor::bytes(name("weight"), Dtype::I8, &matrix.shape(), codes),
        NewTensor::words(name("SCB"), Dtype::F32, &[scales.len()], scales),
        NewTensor::bytes(name("weight_format"), Dtype::U8, &[], vec![0]),
    ]
}
