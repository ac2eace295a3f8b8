//! compressed-tensors' `pack-quantized`: integers of 4 or 8 bits with a scale, and perhaps a zero point,
//! for each group of a row (compressed-tensors 0.20, `compressors/pack_quantized`).
//!
//! Of a weight `[rows, cols]` in `groups` groups a row, `n` codes to a word of 32 bits:
//!
//! | key | type | |
//! |---|---|---|
//! | `P.weight_packed` | I32 `[rows, ⌈cols/n⌉]` | signed codes plus 8 (or 128), the first of a word in its lowest bits; a row begins on a word |
//! | `P.weight_scale` | F32, F16 or BF16 `[rows, groups]` | 1 group: one scale a row |
//! | `P.weight_shape` | I64 or I32 `[2]` | rows, cols |
//! | `P.weight_zero_point` | I32 `[⌈rows/n⌉, groups]` | signed zero points, packed as codes are, but down the rows; only if asymmetric |
//! | `P.weight_g_idx` | I32 `[cols]` | each column's group, if they are not in order, which this crate refuses |
//!
//! `value = (code − zero) · scale`. How many bits a code has stands in the model's `config.json`; here it
//! follows from the packed width.

use super::error::Result;
use super::tensors::{Safetensors, Tensor};
use super::writer::NewTensor;
use crate::{Levels, Matrix, ScaleType, Structure};
use safetensors::Dtype;
use std::borrow::Cow;

/// A weight in compressed-tensors' packing: codes borrowed from the file, scales in f32.
#[derive(Debug, Clone, PartialEq)]
pub struct PackQuantized<'a> {
    rows: usize,
    cols: usize,
    bits: usize,
    groups: usize,
    /// The type that scales have in the file.
    dtype: Dtype,
    packed: Cow<'a, [u8]>,
    scales: Cow<'a, [f32]>,
    zeros: Option<Vec<i8>>,
}

/// Reads the layer `prefix`.
///
/// # Errors
/// A part that is not there, or of another type or shape; a width that is that of neither 4 nor 8 bits;
/// groups that do not divide a row, or whose columns are out of order; a scale that is not finite.
pub fn read<'a>(file: &Safetensors<'a>, prefix: &str) -> Result<PackQuantized<'a>> {
    let key = |name: &str| format!("{prefix}.{name}");
    let packed = file.tensor(&key("weight_packed"))?.of(&[Dtype::I32])?;
    let [rows, cols] = shape(file.tensor(&key("weight_shape"))?)?;
    let width = |bits: usize| cols.div_ceil(32 / bits);
    packed.refuse_empty([rows, cols])?;
    let bits = [4, 8]
        .into_iter()
        .find(|bits| packed.shape() == [rows, width(*bits)]);
    let bits = bits.ok_or_else(|| {
        let (four, eight) = (width(4), width(8));
        packed.misshapen(format!(
            "[{rows}, {four}] of 4 bits or [{rows}, {eight}] of 8, for a weight [{rows}, {cols}]"
        ))
    })?;
    let scale = file.tensor(&key("weight_scale"))?;
    let [_, groups] = scale.dims()?;
    let scale = scale.shaped(&[rows, groups])?;
    if groups == 0 || cols % groups != 0 {
        return Err(scale.misshapen(format!("groups that divide a row of {cols}")));
    }
    let scales = scale.clone().floats()?;
    if let Some(place) = scales.iter().position(|scale| !scale.is_finite()) {
        return Err(scale.content(format!("scale {place} is {}", scales[place])));
    }
    if let Some(order) = file.get(&key("weight_g_idx")) {
        let order = order.of(&[Dtype::I32])?.shaped(&[cols])?;
        let groups = order.words::<i32>();
        let size = cols / scale.shape()[1];
        let mut places = groups.iter().enumerate();
        if let Some((col, group)) = places.find(|(col, g)| usize::try_from(**g) != Ok(col / size)) {
            return Err(order.content(format!(
                "column {col} is in group {group}: columns out of order are not supported"
            )));
        }
    }
    let zeros = match file.get(&key("weight_zero_point")) {
        None => None,
        Some(zeros) => {
            let zeros = zeros.of(&[Dtype::I32])?;
            let zeros = zeros.shaped(&[rows.div_ceil(32 / bits), groups])?;
            let words = zeros.words::<i32>();
            let zero = |place: usize| {
                let (row, group) = (place / groups, place % groups);
                let word = words[row * bits / 32 * groups + group].cast_unsigned();
                signed((word >> (row * bits % 32)) as u8, bits)
            };
            Some((0..rows * groups).map(zero).collect())
        }
    };
    Ok(PackQuantized {
        rows,
        cols,
        bits,
        groups,
        dtype: scale.dtype(),
        packed: packed.data().into(),
        scales,
        zeros,
    })
}

/// A code of 4 or 8 bits, of a byte whose other bits may be anything.
fn signed(code: u8, bits: usize) -> i8 {
    match bits {
        4 => (code & 15).cast_signed() - 8,
        _ => (code ^ 0x80).cast_signed(),
    }
}

fn shape(tensor: Tensor) -> Result<[usize; 2]> {
    let tensor = tensor.of(&[Dtype::I64, Dtype::I32])?.shaped(&[2])?;
    let words: Vec<i64> = match tensor.dtype() {
        Dtype::I32 => tensor
            .words::<i32>()
            .iter()
            .map(|n| i64::from(*n))
            .collect(),
        _ => tensor.words().into_owned(),
    };
    match (usize::try_from(words[0]), usize::try_from(words[1])) {
        (Ok(rows), Ok(cols)) => Ok([rows, cols]),
        _ => Err(tensor.content(format!("{words:?} is not a shape"))),
    }
}

impl PackQuantized<'static> {
    /// Quantizes a matrix to 4 bits with one scale for each `group` columns, symmetric, as
    /// compressed-tensors does: codes from −8 to 7, `scale = amax ÷ 7.5`, ties to even.
    ///
    /// Worst error: half a step, 1/15 of amax, which is also what the largest positive value loses.
    ///
    /// # Errors
    /// A group that does not divide the rows; a value that is not finite.
    pub fn quantize<T: crate::Element>(view: crate::View<T>, group: usize) -> crate::Result<Self> {
        let (rows, cols) = (view.rows(), view.cols());
        if group == 0 || cols == 0 || cols % group != 0 {
            return Err(crate::Error::Block {
                format: "int4",
                block: group,
                cols,
                reason: "does not divide the row",
            });
        }
        let groups = cols / group;
        let mut scales = Vec::with_capacity(rows * groups);
        let bytes = row_bytes(cols, 4);
        let mut packed = vec![0; rows * bytes];
        for row in 0..rows {
            let out = &mut packed[row * bytes..][..bytes];
            for (g, values) in view.row(row).chunks(group).enumerate() {
                let mut amax = 0.0_f32;
                for (i, value) in values.iter().enumerate() {
                    let (value, col) = (value.to_f32(), g * group + i);
                    if !value.is_finite() {
                        let index = row * cols + col;
                        return Err(crate::Error::NonFinite {
                            index,
                            row,
                            col,
                            value,
                        });
                    }
                    amax = amax.max(value.abs());
                }
                // What the peer stores for a group of zeros.
                let scale = Some(amax / 7.5).filter(|scale| *scale > 0.0);
                let scale = scale.unwrap_or(f32::EPSILON);
                for (i, value) in values.iter().enumerate() {
                    let code = (value.to_f32() / scale).round_ties_even().clamp(-8.0, 7.0);
                    let col = g * group + i;
                    out[col / 2] |= ((code + 8.0) as u8) << (4 * (col % 2));
                }
                scales.push(scale);
            }
        }
        Ok(Self {
            rows,
            cols,
            bits: 4,
            groups,
            dtype: Dtype::F32,
            packed: packed.into(),
            scales: scales.into(),
            zeros: None,
        })
    }
}

/// Bytes of a row of codes.
fn row_bytes(cols: usize, bits: usize) -> usize {
    cols.div_ceil(32 / bits) * 4
}

impl PackQuantized<'_> {
    /// Bits of a code, 4 or 8.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// Columns that share a scale.
    pub fn group(&self) -> usize {
        self.cols / self.groups
    }

    /// Scales, row by row.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Zero points, row by row, if there are.
    pub fn zeros(&self) -> Option<&[i8]> {
        self.zeros.as_deref()
    }

    fn code(&self, row: usize, col: usize) -> i8 {
        let bytes = row_bytes(self.cols, self.bits);
        let byte = self.packed[row * bytes + col * self.bits / 8];
        signed(byte >> (col * self.bits % 8), self.bits)
    }

    fn zero(&self, row: usize, group: usize) -> i8 {
        let zeros = self.zeros.as_ref();
        zeros.map_or(0, |zeros| zeros[row * self.groups + group])
    }

    /// All values, row by row.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        for (row, out) in out.chunks_mut(self.cols).enumerate() {
            self.dequantize_row(row, out);
        }
        out
    }

    /// The tensors of a layer `prefix`, scales in the type they had in the file they are from, F32 if
    /// from none.
    pub fn tensors<'a>(&'a self, prefix: &str) -> Vec<NewTensor<'a>> {
        let key = |name: &str| format!("{prefix}.{name}");
        let (rows, groups, per_word) = (self.rows, self.groups, 32 / self.bits);
        let width = self.cols.div_ceil(per_word);
        let shape: Vec<u8> = [rows, self.cols]
            .iter()
            .flat_map(|n| (*n as i64).to_le_bytes())
            .collect();
        let scales = super::words::floats(&self.scales, self.dtype);
        let mut tensors = vec![
            NewTensor::bytes(
                key("weight_packed"),
                Dtype::I32,
                &[rows, width],
                &*self.packed,
            ),
            NewTensor::bytes(key("weight_scale"), self.dtype, &[rows, groups], scales),
            NewTensor::bytes(key("weight_shape"), Dtype::I64, &[2], shape),
        ];
        if let Some(zeros) = &self.zeros {
            let mut words = vec![0_u32; rows.div_ceil(per_word) * groups];
            for (place, zero) in zeros.iter().enumerate() {
                let (row, group) = (place / groups, place % groups);
                let code = (i32::from(*zero) + (1 << (self.bits - 1))).cast_unsigned();
                words[row / per_word * groups + group] |= code << (row % per_word * self.bits);
            }
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let shape = [rows.div_ceil(per_word), groups];
            let name = key("weight_zero_point");
            tensors.push(NewTensor::bytes(name, Dtype::I32, &shape, bytes));
        }
        tensors
    }
}

impl Matrix for PackQuantized<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    fn structure(&self) -> crate::Result<Structure> {
        Ok(Structure {
            levels: match self.bits {
                4 => Levels::Table {
                    values: core::array::from_fn(|code| code as f32 - 8.0),
                    steps: core::array::from_fn(|code| code as i8 - 8),
                    unit: 1.0,
                },
                _ => Levels::Int8,
            },
            nibbles: self.bits == 4,
            group: self.group(),
            scales: ScaleType::F32,
            shifted: self.zeros.is_some(),
            factor: 1.0,
        })
    }

    fn unpack_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32], shifts: &mut [f32]) {
        let bias = if self.bits == 4 { 8 } else { 0 };
        for (col, code) in codes.iter_mut().enumerate().take(self.cols) {
            *code = (self.code(row, col) + bias).cast_unsigned();
        }
        for (group, scale) in scales.iter_mut().enumerate().take(self.groups) {
            *scale = self.scales[row * self.groups + group];
            if let Some(shift) = shifts.get_mut(group) {
                *shift = -f32::from(self.zero(row, group)) * *scale;
            }
        }
    }

    /// `(code − zero) · scale`, rounded once.
    fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let size = self.group();
        for (col, out) in out.iter_mut().enumerate().take(self.cols) {
            let group = col / size;
            let level = i16::from(self.code(row, col)) - i16::from(self.zero(row, group));
            *out = f32::from(level) * self.scales[row * self.groups + group];
        }
    }
}
