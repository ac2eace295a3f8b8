//! GPTQ with 4 bits, as AutoGPTQ and GPTQModel save it. Of a weight `[out, in]` in `G` groups of input
//! channels:
//!
//! | key | type | |
//! |---|---|---|
//! | `P.qweight` | I32 `[in ÷ 8, out]` | eight neighbours along `in` to a word, the first in its lowest bits |
//! | `P.qzeros` | I32 `[G, out ÷ 8]` | eight neighbours along `out` to a word |
//! | `P.scales` | F16 `[G, out]` | F32 and BF16 are read too |
//! | `P.g_idx` | I32 `[in]` | the group of each input channel; in order where it is not there |
//!
//! `value = (code − zero) · scale`. Whether `qzeros` holds zero points, or zero points less one, stands in
//! the model's configuration and not in the file: [`ZeroPoints`].

use super::error::{Error, Result};
use super::int4::{Grouped, Rounded, matrix, nibble, round_to_nearest, word};
use super::tensors::Safetensors;
use super::writer::NewTensor;
use crate::{Element, View};
use safetensors::Dtype;
use std::borrow::Cow;

/// What `qzeros` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ZeroPoints {
    /// Zero points less one (`checkpoint_format` `gptq`, and all older files). A zero point of 0, which
    /// this cannot hold, is read as 16.
    #[default]
    LessOne,
    /// Zero points (`checkpoint_format` `gptq_v2`).
    Exact,
}

/// A GPTQ layer's parts, checked against each other; those that are aligned are borrowed.
#[derive(Debug, Clone, PartialEq)]
pub struct GptqParts<'a> {
    pub(crate) out: usize,
    pub(crate) inputs: usize,
    pub(crate) groups: usize,
    pub(crate) zero_points: ZeroPoints,
    pub(crate) qweight: Cow<'a, [i32]>,
    pub(crate) qzeros: Cow<'a, [i32]>,
    pub(crate) scales: Cow<'a, [f32]>,
    /// The type that scales have in the file.
    pub(crate) dtype: Dtype,
    pub(crate) g_idx: Option<Cow<'a, [i32]>>,
}

/// Reads the layer `prefix`.
///
/// # Errors
/// A part that is not there, or of another type or shape (of 2, 3 or 8 bits, for instance); groups that
/// do not divide the input channels, or that there are not; a scale that is not finite.
pub fn read<'a>(
    file: &Safetensors<'a>,
    prefix: &str,
    zero_points: ZeroPoints,
) -> Result<GptqParts<'a>> {
    let part = |name: &str| file.tensor(&format!("{prefix}.{name}"));
    let qweight = part("qweight")?.of(&[Dtype::I32])?;
    let [words, out] = qweight.dims()?;
    qweight.refuse_empty([words, out])?;
    // Eight times a length in memory, of 4 bytes each, does not overflow.
    let inputs = 8 * words;
    let qzeros = part("qzeros")?.of(&[Dtype::I32])?;
    let [groups, _] = qzeros.dims()?;
    if groups == 0 || inputs % groups != 0 || out % 8 != 0 {
        return Err(qzeros.misshapen(format!(
            "[groups, {out} ÷ 8], where groups divide {inputs} input channels"
        )));
    }
    let qzeros = qzeros.shaped(&[groups, out / 8])?;
    let scales = part("scales")?.shaped(&[groups, out])?;
    let values = scales.clone().floats()?;
    if let Some(place) = values.iter().position(|scale| !scale.is_finite()) {
        return Err(scales.content(format!("scale {place} is {}", values[place])));
    }
    let g_idx = match file.get(&format!("{prefix}.g_idx")) {
        None => None,
        Some(g_idx) => {
            let g_idx = g_idx.of(&[Dtype::I32])?.shaped(&[inputs])?;
            let order = g_idx.words::<i32>();
            let known = |group: &i32| usize::try_from(*group).is_ok_and(|group| group < groups);
            if let Some(channel) = order.iter().position(|group| !known(group)) {
                let group = order[channel];
                return Err(g_idx.content(format!(
                    "channel {channel} is in group {group}, there are {groups}"
                )));
            }
            Some(order)
        }
    };
    Ok(GptqParts {
        out,
        inputs,
        groups,
        zero_points,
        qweight: qweight.words(),
        qzeros: qzeros.words(),
        scales: values,
        dtype: scales.dtype(),
        g_idx,
    })
}

impl GptqParts<'_> {
    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.out, self.inputs]
    }

    /// Input channels of a group.
    pub fn group(&self) -> usize {
        self.inputs / self.groups
    }

    /// The group of an input channel.
    pub fn group_of(&self, channel: usize) -> usize {
        let order = self.g_idx.as_ref();
        order.map_or(channel / self.group(), |order| order[channel] as usize)
    }

    /// Whether the groups' channels are neighbours.
    pub fn is_in_order(&self) -> bool {
        (0..self.inputs).all(|channel| self.group_of(channel) == channel / self.group())
    }

    /// The code of a weight.
    pub fn code(&self, row: usize, channel: usize) -> u8 {
        nibble(self.qweight[channel / 8 * self.out + row], channel % 8)
    }

    /// The zero point of a group of a row.
    pub fn zero(&self, row: usize, group: usize) -> u8 {
        let stored = nibble(self.qzeros[group * (self.out / 8) + row / 8], row % 8);
        match self.zero_points {
            ZeroPoints::LessOne => stored + 1,
            ZeroPoints::Exact => stored,
        }
    }

    /// The scale of a group of a row.
    pub fn scale(&self, row: usize, group: usize) -> f32 {
        self.scales[group * self.out + row]
    }

    /// The tensors of a layer `prefix`, as they were read.
    pub fn tensors<'a>(&'a self, prefix: &str) -> Vec<NewTensor<'a>> {
        let key = |name: &str| format!("{prefix}.{name}");
        let (out, groups) = (self.out, self.groups);
        let scales = super::words::floats(&self.scales, self.dtype);
        let words = [self.inputs / 8, out];
        let mut tensors = vec![
            NewTensor::words(key("qweight"), Dtype::I32, &words, &self.qweight),
            NewTensor::words(key("qzeros"), Dtype::I32, &[groups, out / 8], &self.qzeros),
            NewTensor::bytes(key("scales"), self.dtype, &[groups, out], scales),
        ];
        if let Some(g_idx) = &self.g_idx {
            let shape = [self.inputs];
            tensors.push(NewTensor::words(key("g_idx"), Dtype::I32, &shape, g_idx));
        }
        tensors
    }
}

impl GptqParts<'static> {
    /// Rounds each weight `[out, in]` to the nearest of 16 levels, in groups of neighbours: what GPTQ
    /// does without calibration. Scales are f16.
    ///
    /// # Errors
    /// Sides that are not multiples of 8, a group that does not divide `in`, a value that is not finite or
    /// too large for f16.
    pub fn quantize<T: Element>(
        weight: View<T>,
        group: usize,
        zero_points: ZeroPoints,
    ) -> Result<Self> {
        let shape = [weight.rows(), weight.cols()];
        let rounded = round_to_nearest(weight, group);
        let rounded = rounded.map_err(|error| Error::quantize("qweight", error))?;
        let order: Vec<usize> = (0..shape[1]).map(|channel| channel / group).collect();
        let Rounded {
            codes,
            zeros,
            scales,
        } = &rounded;
        Self::pack(shape, codes, zeros, scales, &order, zero_points)
    }

    /// Parts from codes `[out, in]`, zero points (1 to 16 for [`ZeroPoints::LessOne`], 0 to 15 else) and
    /// scales, both `[out, groups]`, and the group of each input channel.
    ///
    /// # Errors
    /// Sides that are not multiples of 8, slices of another length, codes, zero points or groups that
    /// the packing cannot hold; scales that are not finite.
    pub fn pack(
        [out, inputs]: [usize; 2],
        codes: &[u8],
        zeros: &[u8],
        scales: &[f32],
        g_idx: &[usize],
        zero_points: ZeroPoints,
    ) -> Result<Self> {
        let refuse = |reason: String| Err(Error::unwritable("qweight", reason));
        let groups = scales.len().checked_div(out).unwrap_or(0);
        let lengths = Some(codes.len()) == out.checked_mul(inputs)
            && zeros.len() == scales.len()
            && scales.len() == out * groups
            && g_idx.len() == inputs;
        let sides = out % 8 == 0 && inputs % 8 == 0 && groups > 0 && inputs % groups == 0;
        if !lengths || !sides || inputs == 0 {
            let (codes, zeros, scales) = (codes.len(), zeros.len(), scales.len());
            return refuse(format!(
                "{codes} codes, {zeros} zero points, {scales} scales and {} channels do not make a \
                 matrix [{out}, {inputs}] of multiples of 8 in equal groups",
                g_idx.len()
            ));
        }
        let less = u8::from(zero_points == ZeroPoints::LessOne);
        if codes.iter().any(|code| *code > 15)
            || zeros.iter().any(|zero| zero.wrapping_sub(less) > 15)
            || g_idx.iter().any(|group| *group >= groups)
            || scales.iter().any(|scale| !scale.is_finite())
        {
            return refuse("a code, zero point, group or scale out of its range".into());
        }
        let qweight = (0..inputs / 8).flat_map(|w| {
            (0..out).map(move |row| word((0..8).map(|k| codes[row * inputs + 8 * w + k])))
        });
        let qzeros = (0..groups).flat_map(|group| {
            let zero = move |row: usize| zeros[row * groups + group] - less;
            (0..out / 8).map(move |w| word((0..8).map(|k| zero(8 * w + k))))
        });
        let transposed =
            (0..groups).flat_map(|group| (0..out).map(move |row| scales[row * groups + group]));
        Ok(Self {
            out,
            inputs,
            groups,
            zero_points,
            qweight: qweight.collect(),
            qzeros: qzeros.collect(),
            scales: transposed.collect(),
            dtype: Dtype::F16,
            // Fewer groups than an i32 counts: each has a scale.
            g_idx: Some(g_idx.iter().map(|group| *group as i32).collect()),
        })
    }
}

impl Grouped for GptqParts<'_> {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn group(&self) -> usize {
        GptqParts::group(self)
    }

    fn group_of(&self, channel: usize) -> usize {
        GptqParts::group_of(self, channel)
    }

    fn is_in_order(&self) -> bool {
        GptqParts::is_in_order(self)
    }

    fn half_scales(&self) -> bool {
        self.dtype == Dtype::F16
    }

    fn code(&self, row: usize, channel: usize) -> u8 {
        GptqParts::code(self, row, channel)
    }

    fn zero(&self, row: usize, group: usize) -> u8 {
        GptqParts::zero(self, row, group)
    }

    fn scale(&self, row: usize, group: usize) -> f32 {
        GptqParts::scale(self, row, group)
    }
}

matrix!(GptqParts);
