//! NF4 and FP4 layers.

use super::TorchDtype;
use crate::files::error::{Error, Result};
use crate::files::tensors::{Safetensors, Tensor};
use crate::files::writer::NewTensor;
use crate::{FP4, Format, Fp4, Matrix, NF4, NestedAbsmax, Nf4, Quantized};
use safetensors::Dtype;
use serde::Deserialize;
use std::borrow::Cow;

/// A format of bitsandbytes with 4 bits: [`Nf4`] and [`Fp4`].
pub trait Bnb4Format: Format<Scale = f32, Tensor = ()> + sealed::Sealed {
    /// What codes stand for, as files say it.
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

macro_rules! bnb4_format {
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

bnb4_format!(Nf4, NF4);
bnb4_format!(Fp4, FP4_IN_FILES);

/// Code 8 is a negative zero, which bitsandbytes writes as a zero.
const FP4_IN_FILES: [f32; 16] = {
    let mut values = FP4;
    values[8] = 0.0;
    values
};

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

impl QuantState {
    fn elements(&self) -> Option<usize> {
        let mut shape = self.shape.iter();
        shape.try_fold(1_usize, |all, n| all.checked_mul(*n))
    }
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
    let state = file.get(&fp4).or_else(|| file.get(&nf4));
    let state = state.ok_or_else(|| Error::Missing {
        path: file.path().to_owned(),
        key: format!("{nf4} or __{}", Fp4::NAME),
    })?;
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
    let Some((elements, cols)) = parsed.elements().zip(parsed.shape.last().copied()) else {
        return Err(state.content(format!("the shape {:?} is not a matrix's", parsed.shape)));
    };
    if elements == 0 {
        return Err(state.content(format!("the shape {:?} is empty", parsed.shape)));
    }
    let rows = elements / cols;
    let storage = [Dtype::U8, Dtype::BF16, Dtype::F16, Dtype::F32];
    let weight = file.tensor(&key(""))?.of(&storage)?;
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
    let counts = parsed
        .elements()
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
/// given, of [`NestedAbsmax::new`].
///
/// # Errors
/// A nested absmax of another number of blocks.
pub fn tensors4<'a, F: Bnb4Format>(
    prefix: &str,
    matrix: &'a Quantized<'_, F>,
    dtype: TorchDtype,
    nested: Option<&'a NestedAbsmax<'_>>,
) -> Result<Vec<NewTensor<'a>>> {
    tensors(prefix, matrix, &matrix.shape(), dtype, nested)
}

impl Bnb4<'_> {
    /// The tensors of a layer `prefix`, as it was read.
    ///
    /// # Errors
    /// A nested absmax of another number of blocks.
    pub fn tensors(&self, prefix: &str) -> Result<Vec<NewTensor<'_>>> {
        let (shape, dtype, nested) = (&self.shape, self.dtype, self.nested.as_ref());
        match &self.matrix {
            Bnb4Matrix::Nf4(matrix) => tensors(prefix, matrix, shape, dtype, nested),
            Bnb4Matrix::Fp4(matrix) => tensors(prefix, matrix, shape, dtype, nested),
        }
    }
}

fn tensors<'a, F: Bnb4Format>(
    prefix: &str,
    matrix: &'a Quantized<'_, F>,
    shape: &[usize],
    dtype: TorchDtype,
    nested: Option<&'a NestedAbsmax<'_>>,
) -> Result<Vec<NewTensor<'a>>> {
    let key = |part: &str| format!("{prefix}.weight{part}");
    // A list of integers looks the same here and in Python.
    let mut state = format!(
        r#"{{"quant_type": "{}", "blocksize": {}, "dtype": "{}", "shape": {shape:?}"#,
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
        tensors.push(NewTensor::words(
            absmax,
            Dtype::F32,
            &[scales.len()],
            scales,
        ));
    }
    state.push('}');
    let name = key(&format!(".quant_state.bitsandbytes__{}", F::NAME));
    let shape = [state.len()];
    tensors.push(NewTensor::bytes(
        name,
        Dtype::U8,
        &shape,
        state.into_bytes(),
    ));
    Ok(tensors)
}
