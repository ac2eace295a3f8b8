//! GPTQ checkpoints of 4 bits: eight codes a word along the input features.

use crate::error::{Error, Result, length};
use crate::format::{Format, Quantized, sizes};
use crate::formats::int4::{Int4, Int4Scale, code_levels};
use crate::matrix::{Matrix, ScaleType, Structure};
use crate::view::elements;
use alloc::{borrow::Cow, format, vec, vec::Vec};
use half::f16;

/// How zero points are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum ZeroConvention {
    /// Each less one: `gptq`, the format of AutoGPTQ. Eight zero points are subtracted from as one word,
    /// as GPTQModel does, so that a zero point of 0 borrows from the next. AutoGPTQ reads nibble by nibble:
    /// it takes the 15 that is then stored for a zero point of 16, and gets the neighbour wrong. No other
    /// zero point has this trouble, nor has [`ZeroConvention::Exact`].
    #[default]
    MinusOne,
    /// As they are: `gptq_v2`.
    Exact,
}

impl ZeroConvention {
    fn read(self, word: i32) -> i32 {
        match self {
            Self::MinusOne => word.wrapping_add(0x1111_1111),
            Self::Exact => word,
        }
    }

    fn write(self, word: i32) -> i32 {
        match self {
            Self::MinusOne => word.wrapping_sub(0x1111_1111),
            Self::Exact => word,
        }
    }
}

/// A weight `[out, in]` as GPTQ checkpoints hold it: `value = (code − zero) · scale`.
///
/// | tensor | shape | |
/// |---|---|---|
/// | `qweight` | `[in ÷ 8, out]` | nibble `i mod 8` of a word, the lowest first, is input feature `i` |
/// | `qzeros` | `[groups, out ÷ 8]` | nibble `o mod 8` is output feature `o`, see [`ZeroConvention`] |
/// | `scales` | `[groups, out]` | |
/// | `g_idx` | `[in]` | each input feature's group; in order if there is none |
#[derive(Debug, Clone, PartialEq)]
pub struct Gptq<'a> {
    shape: [usize; 2],
    groups: usize,
    convention: ZeroConvention,
    qweight: Cow<'a, [i32]>,
    qzeros: Cow<'a, [i32]>,
    scales: Cow<'a, [f16]>,
    g_idx: Option<Cow<'a, [i32]>>,
}

/// The tensors of a [`Gptq`] layer.
#[derive(Debug, Clone, PartialEq)]
pub struct GptqTensors<'a> {
    /// Codes.
    pub qweight: Cow<'a, [i32]>,
    /// Zero points.
    pub qzeros: Cow<'a, [i32]>,
    /// Scales.
    pub scales: Cow<'a, [f16]>,
    /// Groups of the input features.
    pub g_idx: Option<Cow<'a, [i32]>>,
}

impl<'a> Gptq<'a> {
    /// A weight `[out, in]` from its tensors.
    ///
    /// # Errors
    /// A side that is not a multiple of 8, tensors of other lengths, a group that does not exist, a
    /// scale that is not finite.
    pub fn from_tensors(
        shape: [usize; 2],
        convention: ZeroConvention,
        tensors: GptqTensors<'a>,
    ) -> Result<Self> {
        let [rows, cols] = shape;
        let GptqTensors {
            qweight,
            qzeros,
            scales,
            g_idx,
        } = tensors;
        words("gptq", shape)?;
        length("qweight", elements(rows, cols)? / 8, qweight.len())?;
        let groups = scales.len() / rows.max(1);
        length("scales", groups * rows, scales.len())?;
        length("qzeros", groups * rows / 8, qzeros.len())?;
        finite(&scales)?;
        match &g_idx {
            Some(g_idx) => {
                length("g_idx", cols, g_idx.len())?;
                let lies = |group: &i32| usize::try_from(*group).is_ok_and(|group| group < groups);
                if let Some(index) = g_idx.iter().position(|group| !lies(group)) {
                    return Err(Error::Stored {
                        what: "g_idx",
                        index,
                        value: f64::from(g_idx[index]),
                        reason: "there is no such group",
                    });
                }
            }
            None => {
                group_size(cols, groups)?;
            }
        }
        Ok(Self {
            shape,
            groups,
            convention,
            qweight,
            qzeros,
            scales,
            g_idx,
        })
    }

    /// Stores a matrix that was quantized in [`Int4`].
    ///
    /// # Errors
    /// A side that is not a multiple of 8; a zero point of 16; groups that do not divide a row.
    pub fn from_quantized(
        matrix: &Quantized<Int4>,
        convention: ZeroConvention,
    ) -> Result<Gptq<'static>> {
        let [rows, cols] = matrix.shape();
        words("gptq", [rows, cols])?;
        let [groups, size] = equal_groups(matrix)?;
        let mut qweight = vec![0_i32; rows * cols / 8];
        for row in 0..rows {
            for col in 0..cols {
                let code = i32::from(matrix.code(row, col));
                qweight[col / 8 * rows + row] |= code << (4 * (col % 8));
            }
        }
        let mut qzeros = vec![0_i32; groups * rows / 8];
        let mut scales = vec![f16::ZERO; groups * rows];
        for row in 0..rows {
            for group in 0..groups {
                let Int4Scale { scale, zero } = matrix.scales()[row * groups + group];
                scales[group * rows + row] = scale;
                qzeros[group * rows / 8 + row / 8] |= nibble(zero, group)? << (4 * (row % 8));
            }
        }
        qzeros
            .iter_mut()
            .for_each(|word| *word = convention.write(*word));
        Ok(Gptq {
            shape: [rows, cols],
            groups,
            convention,
            qweight: qweight.into(),
            qzeros: qzeros.into(),
            scales: scales.into(),
            g_idx: Some((0..cols).map(|col| (col / size) as i32).collect()),
        })
    }

    /// The matrix, with its groups in order. If `g_idx` is not in order, so neither are the columns:
    /// column `k` of the result is input feature `order[k]`.
    ///
    /// # Errors
    /// Groups of different sizes or of an odd one.
    pub fn to_quantized(&self) -> Result<(Quantized<'static, Int4>, Option<Vec<u32>>)> {
        let [rows, cols] = self.shape;
        let size = group_size(cols, self.groups)?;
        let order = self.order(size)?;
        let (format, mut codes) = int4([rows, cols], size)?;
        let (mut features, mut sorted) = (vec![0; cols], vec![0; cols]);
        // Rows are whole bytes: columns are a multiple of 8.
        for (row, codes) in codes.chunks_exact_mut((cols / 2).max(1)).enumerate() {
            self.codes(row, &mut features);
            match &order {
                Some(order) => {
                    for (code, col) in sorted.iter_mut().zip(order) {
                        *code = features[*col as usize];
                    }
                    pairs(&sorted, codes);
                }
                None => pairs(&features, codes),
            }
        }
        let scales = scales([rows, self.groups], |row, group| self.scale(row, group));
        let matrix = Quantized::from_parts(format, [rows, cols], (), codes, scales)?;
        Ok((matrix, order))
    }

    /// All values, row by row, in the order of the input features.
    pub fn dequantize(&self) -> Vec<f32> {
        let [rows, cols] = self.shape;
        let mut values = vec![0.0; rows * cols];
        for (row, values) in values.chunks_exact_mut(cols.max(1)).enumerate() {
            self.dequantize_row(row, values);
        }
        values
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Groups of a row.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// How zero points are stored.
    pub fn convention(&self) -> ZeroConvention {
        self.convention
    }

    /// The tensors.
    pub fn tensors(&self) -> GptqTensors<'_> {
        GptqTensors {
            qweight: Cow::Borrowed(&self.qweight),
            qzeros: Cow::Borrowed(&self.qzeros),
            scales: Cow::Borrowed(&self.scales),
            g_idx: self.g_idx.as_deref().map(Cow::Borrowed),
        }
    }

    /// The codes of a row, in the order of the input features.
    fn codes(&self, row: usize, codes: &mut [u8]) {
        let words = self.qweight.iter().skip(row).step_by(self.shape[0]);
        for (word, codes) in words.zip(codes.as_chunks_mut::<8>().0) {
            *codes = core::array::from_fn(|i| (word >> (4 * i) & 15) as u8);
        }
    }

    fn scale(&self, row: usize, group: usize) -> Int4Scale {
        let rows = self.shape[0];
        let word = self
            .convention
            .read(self.qzeros[group * rows / 8 + row / 8]);
        Int4Scale {
            scale: self.scales[group * rows + row],
            zero: (word >> (4 * (row % 8)) & 15) as u8,
        }
    }

    /// The columns sorted by group, if they are not.
    fn order(&self, size: usize) -> Result<Option<Vec<u32>>> {
        let Some(g_idx) = &self.g_idx else {
            return Ok(None);
        };
        let mut order: Vec<u32> = (0..g_idx.len() as u32).collect();
        order.sort_by_key(|col| g_idx[*col as usize]);
        let wrong = order
            .iter()
            .enumerate()
            .find(|(k, col)| g_idx[**col as usize] as usize != k / size);
        if let Some((_, col)) = wrong {
            return Err(Error::Stored {
                what: "g_idx",
                index: *col as usize,
                value: f64::from(g_idx[*col as usize]),
                reason: "groups are not all of one size",
            });
        }
        let sorted = order.iter().enumerate().all(|(k, col)| k == *col as usize);
        Ok((!sorted).then_some(order))
    }
}

/// Where `g_idx` is in order, or not there, this is the matrix of [`Gptq::to_quantized`], without a copy.
/// Elsewhere columns that share a scale are not neighbours, and [`Matrix::structure`] refuses; the values
/// of [`Matrix::dequantize_row`] are right for every `g_idx`.
impl Matrix for Gptq<'_> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn structure(&self) -> Result<Structure> {
        let size = group_size(self.shape[1], self.groups)?;
        let strays = |g_idx: &[i32]| {
            let mut groups = g_idx.iter().enumerate();
            groups.position(|(col, group)| *group as usize != col / size)
        };
        match self.g_idx.as_deref().and_then(strays) {
            None => Ok(structure(size)),
            Some(col) => Err(Error::Unsupported {
                operation: "pack",
                reason: format!(
                    "input feature {col} is not in group {}: to_quantized sorts input features",
                    col / size
                ),
            }),
        }
    }

    fn unpack_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32], shifts: &mut [f32]) {
        self.codes(row, codes);
        affine(self.groups, |group| self.scale(row, group), scales, shifts);
    }

    fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let size = self.shape[1].div_ceil(self.groups.max(1)).max(1);
        let steps = (0..self.groups).map(|group| step(self.scale(row, group)));
        let steps: Vec<(f32, f32)> = steps.collect();
        let words = self.qweight.iter().skip(row).step_by(self.shape[0]);
        for (at, (word, out)) in words.zip(out.as_chunks_mut::<8>().0).enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                let group = match &self.g_idx {
                    Some(g_idx) => g_idx[8 * at + i] as usize,
                    None => (8 * at + i) / size,
                };
                let (scale, zero) = steps[group];
                *out = ((word >> (4 * i) & 15) as f32 - zero) * scale;
            }
        }
    }
}

/// Of a matrix in groups of so many columns.
pub(crate) fn structure(group: usize) -> Structure {
    Structure {
        levels: code_levels(),
        nibbles: true,
        group,
        scales: ScaleType::F16,
        shifted: true,
        factor: 1.0,
    }
}

/// A scale and a zero point in f32.
pub(crate) fn step(Int4Scale { scale, zero }: Int4Scale) -> (f32, f32) {
    (scale.to_f32(), f32::from(zero))
}

/// The scale and shift of each group of a row.
pub(crate) fn affine(
    groups: usize,
    scale: impl Fn(usize) -> Int4Scale,
    scales: &mut [f32],
    shifts: &mut [f32],
) {
    for (group, place) in scales.iter_mut().enumerate().take(groups) {
        let (scale, zero) = step(scale(group));
        *place = scale;
        if let Some(place) = shifts.get_mut(group) {
            *place = -zero * scale;
        }
    }
}

/// Refuses matrices that words of eight nibbles do not hold.
pub(crate) fn words(format: &'static str, [rows, cols]: [usize; 2]) -> Result<()> {
    for side in [rows, cols] {
        if !side.is_multiple_of(8) {
            return Err(Error::Block {
                format,
                block: 8,
                cols,
                reason: if side == rows {
                    "must divide the rows"
                } else {
                    "must divide the columns"
                },
            });
        }
    }
    Ok(())
}

/// Columns of each of so many groups.
pub(crate) fn group_size(cols: usize, groups: usize) -> Result<usize> {
    if cols == 0 && groups == 0 {
        return Ok(1);
    }
    if groups == 0 || !cols.is_multiple_of(groups) {
        return Err(Error::Unsupported {
            operation: "int4 groups",
            reason: format!("{groups} groups in rows of {cols}"),
        });
    }
    Ok(cols / groups)
}

/// `[groups of a row, columns of each]` of a matrix whose groups are all of one size.
pub(crate) fn equal_groups(matrix: &Quantized<Int4>) -> Result<[usize; 2]> {
    let [rows, cols] = matrix.shape();
    let groups = matrix.scales().len() / rows.max(1);
    // With a shorter last group there may be a number of groups that divides the row all the same.
    match matrix.format().grouping().size() {
        Some(block) if block < cols && !cols.is_multiple_of(block) => Err(Error::Block {
            format: Int4::NAME,
            block,
            cols,
            reason: "does not divide a row, as the words of GPTQ and AWQ want it",
        }),
        _ => Ok([groups, group_size(cols, groups)?]),
    }
}

/// A zero point that a nibble can hold.
pub(crate) fn nibble(zero: u8, group: usize) -> Result<i32> {
    if zero < 16 {
        return Ok(i32::from(zero));
    }
    Err(Error::Stored {
        what: "zero point of group",
        index: group,
        value: f64::from(zero),
        reason: "four bits hold 0 to 15",
    })
}

pub(crate) fn finite(scales: &[f16]) -> Result<()> {
    match scales.iter().position(|scale| !scale.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Error::Stored {
            what: "scale",
            index,
            value: f64::from(scales[index].to_f32()),
            reason: "it is not finite",
        }),
    }
}

/// The format of groups of `size`, and room for its codes.
pub(crate) fn int4([rows, cols]: [usize; 2], size: usize) -> Result<(Int4, Vec<u8>)> {
    let format = Int4::new((size < cols).then_some(size), false)?;
    let [codes, _] = sizes(&format, rows, cols)?;
    Ok((format, vec![0; codes]))
}

/// A row's codes, given one a byte, two a byte.
pub(crate) fn pairs(codes: &[u8], out: &mut [u8]) {
    for (byte, pair) in out.iter_mut().zip(codes.as_chunks::<2>().0) {
        *byte = pair[0] | pair[1] << 4;
    }
}

/// Scales row by row.
pub(crate) fn scales(
    [rows, groups]: [usize; 2],
    scale: impl Fn(usize, usize) -> Int4Scale,
) -> Vec<Int4Scale> {
    let mut scales = Vec::with_capacity(rows * groups);
    for row in 0..rows {
        scales.extend((0..groups).map(|group| scale(row, group)));
    }
    scales
}
