//! AWQ with 4 bits, as AutoAWQ's GEMM layers have it. Of a weight `[out, in]` in `G` groups of input
//! channels that are neighbours:
//!
//! | key | type | |
//! |---|---|---|
//! | `P.qweight` | I32 `[in, out ÷ 8]` | eight neighbours along `out` to a word: place `k` from the lowest bits holds neighbour `[0, 2, 4, 6, 1, 3, 5, 7][k]` |
//! | `P.qzeros` | I32 `[G, out ÷ 8]` | zero points, in the same order |
//! | `P.scales` | F16 `[G, out]` | F32 and BF16 are read too |
//!
//! `value = (code − zero) · scale`.

use super::error::{Error, Result};
use super::int4::{Grouped, matrix, nibble, round_to_nearest, word};
use super::tensors::Safetensors;
use super::writer::NewTensor;
use crate::{Element, View};
use safetensors::Dtype;
use std::borrow::Cow;

/// The neighbour in each place of a word.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
/// The place of each neighbour.
const PLACE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// An AWQ layer's parts, checked against each other; those that are aligned are borrowed.
#[derive(Debug, Clone, PartialEq)]
pub struct AwqParts<'a> {
    pub(crate) out: usize,
    pub(crate) inputs: usize,
    pub(crate) groups: usize,
    pub(crate) qweight: Cow<'a, [i32]>,
    pub(crate) qzeros: Cow<'a, [i32]>,
    pub(crate) scales: Cow<'a, [f32]>,
    /// The type that scales have in the file.
    pub(crate) dtype: Dtype,
}

/// Reads the layer `prefix`.
///
/// # Errors
/// A part that is not there, or of another type or shape; groups that do not divide the input channels;
/// a scale that is not finite.
pub fn read<'a>(file: &Safetensors<'a>, prefix: &str) -> Result<AwqParts<'a>> {
    let part = |name: &str| file.tensor(&format!("{prefix}.{name}"));
    let qweight = part("qweight")?.of(&[Dtype::I32])?;
    let [inputs, words] = qweight.dims()?;
    qweight.refuse_empty([words, inputs])?;
    // Eight times a length in memory, of 4 bytes each, does not overflow.
    let out = 8 * words;
    let qzeros = part("qzeros")?.of(&[Dtype::I32])?;
    let [groups, _] = qzeros.dims()?;
    if groups == 0 || inputs % groups != 0 {
        return Err(qzeros.misshapen(format!(
            "[groups, {words}], where groups divide {inputs} input channels"
        )));
    }
    let qzeros = qzeros.shaped(&[groups, words])?;
    let scales = part("scales")?.shaped(&[groups, out])?;
    let values = scales.clone().floats()?;
    if let Some(place) = values.iter().position(|scale| !scale.is_finite()) {
        return Err(scales.content(format!("scale {place} is {}", values[place])));
    }
    Ok(AwqParts {
        out,
        inputs,
        groups,
        qweight: qweight.words(),
        qzeros: qzeros.words(),
        scales: values,
        dtype: scales.dtype(),
    })
}

impl AwqParts<'_> {
    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.out, self.inputs]
    }

    /// Input channels of a group.
    pub fn group(&self) -> usize {
        self.inputs / self.groups
    }

    /// The code of a weight.
    pub fn code(&self, row: usize, channel: usize) -> u8 {
        let word = self.qweight[channel * (self.out / 8) + row / 8];
        nibble(word, PLACE[row % 8])
    }

    /// The zero point of a group of a row.
    pub fn zero(&self, row: usize, group: usize) -> u8 {
        let word = self.qzeros[group * (self.out / 8) + row / 8];
        nibble(word, PLACE[row % 8])
    }

    /// The scale of a group of a row.
    pub fn scale(&self, row: usize, group: usize) -> f32 {
        self.scales[group * self.out + row]
    }

    /// The tensors of a layer `prefix`.
    pub fn tensors<'a>(&'a self, prefix: &str) -> Vec<NewTensor<'a>> {
        let key = |name: &str| format!("{prefix}.{name}");
        let (words, groups) = (self.out / 8, self.groups);
        let scales = super::words::floats(&self.scales, self.dtype);
        let shape = [self.inputs, words];
        vec![
            NewTensor::words(key("qweight"), Dtype::I32, &shape, &self.qweight),
            NewTensor::words(key("qzeros"), Dtype::I32, &[groups, words], &self.qzeros),
            NewTensor::bytes(key("scales"), self.dtype, &[groups, self.out], scales),
        ]
    }
}

impl AwqParts<'static> {
    /// Rounds each weight `[out, in]` to the nearest of 16 levels, in groups: what AWQ does without
    /// calibration. Scales are f16.
    ///
    /// # Errors
    /// An `out` that is not a multiple of 8, a group that does not divide `in`, a value that is not
    /// finite or too large for f16.
    pub fn quantize<T: Element>(weight: View<T>, group: usize) -> Result<Self> {
        let shape = [weight.rows(), weight.cols()];
        let rounded = round_to_nearest(weight, group);
        let rounded = rounded.map_err(|error| Error::quantize("qweight", error))?;
        Self::pack(shape, &rounded.codes, &rounded.zeros, &rounded.scales)
    }

    /// Parts from codes `[out, in]`, and zero points and scales, both `[out, groups]`.
    ///
    /// # Errors
    /// An `out` that is not a multiple of 8, slices of another length, codes or zero points above 15,
    /// scales that are not finite.
    pub fn pack(
        [out, inputs]: [usize; 2],
        codes: &[u8],
        zeros: &[u8],
        scales: &[f32],
    ) -> Result<Self> {
        let refuse = |reason: String| Err(Error::unwritable("qweight", reason));
        let groups = scales.len().checked_div(out).unwrap_or(0);
        let lengths = Some(codes.len()) == out.checked_mul(inputs)
            && zeros.len() == scales.len()
            && scales.len() == out * groups;
        let sides = out % 8 == 0 && groups > 0 && inputs % groups == 0;
        if !lengths || !sides || inputs == 0 {
            let (codes, zeros, scales) = (codes.len(), zeros.len(), scales.len());
            return refuse(format!(
                "{codes} codes, {zeros} zero points and {scales} scales do not make a matrix \
                 [{out}, {inputs}] of a multiple of 8 rows in equal groups"
            ));
        }
        if codes.iter().chain(zeros).any(|code| *code > 15)
            || scales.iter().any(|scale| !scale.is_finite())
        {
            return refuse("a code, zero point or scale out of its range".into());
        }
        // Column by column of a row-major matrix [out, `width`].
        let packed = |codes: &[u8], width: usize| -> Vec<i32> {
            let words = (0..width).flat_map(|col| (0..out / 8).map(move |w| (col, w)));
            words
                .map(|(col, w)| word(ORDER.map(|i| codes[(8 * w + i) * width + col])))
                .collect()
        };
        let transposed =
            (0..groups).flat_map(|group| (0..out).map(move |row| scales[row * groups + group]));
        Ok(Self {
            out,
            inputs,
            groups,
            qweight: packed(codes, inputs).into(),
            qzeros: packed(zeros, groups).into(),
            scales: transposed.collect(),
            dtype: Dtype::F16,
        })
    }
}

impl Grouped for AwqParts<'_> {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn group(&self) -> usize {
        AwqParts::group(self)
    }

    fn group_of(&self, channel: usize) -> usize {
        channel / AwqParts::group(self)
    }

    fn is_in_order(&self) -> bool {
        true
    }

    fn half_scales(&self) -> bool {
        self.dtype == Dtype::F16
    }

    fn code(&self, row: usize, channel: usize) -> u8 {
        AwqParts::code(self, row, channel)
    }

    fn zero(&self, row: usize, group: usize) -> u8 {
        AwqParts::zero(self, row, group)
    }

    fn scale(&self, row: usize, group: usize) -> f32 {
        AwqParts::scale(self, row, group)
    }
}

matrix!(AwqParts);
