//! Scaled dot-product attention for encoders, decoders and cross-attention, and the KV cache.

use crate::{Error, Result};
use ferrotune_libtorch::tch::{Kind, Tensor, no_grad_guard};
use ferrotune_libtorch::{Context, autograd};

/// Who may look at whom.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// Everyone at everyone: encoders, cross-attention.
    Full,
    /// The last query sees every key, the one before all but the last, and so on.
    Causal,
    /// Several sequences in one row: each sees itself only, causally. `cu_seqlens` are their
    /// boundaries, from 0 to the row's length.
    Packed(&'a [i64]),
    /// `bool` (true may look) or an additive float, broadcast to `[batch, heads, queries, keys]`.
    Tensor(&'a Tensor),
}

/// softmax(q kᵀ / √head_dim) v, by libtorch's fused kernels (Vaswani et al., 2017).
///
/// # Shapes
/// `q [batch, heads, queries, head_dim]`, `k` and `v [batch, kv_heads, keys, head_dim]`; query head
/// `h` reads key head `h / (heads / kv_heads)`. Returns `[batch, heads, queries, head_dim]`.
///
/// # Errors
/// Shapes that do not fit, more queries than keys under `Causal`, or boundaries that do not cover
/// the row.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask<'_>) -> Result<Tensor> {
    let (q_size, k_size, v_size) = (q.size(), k.size(), v.size());
    let (queries, keys) = match (&q_size[..], &k_size[..]) {
        (&[batch, heads, queries, dim], &[k_batch, kv_heads, keys, k_dim])
            if (batch, dim) == (k_batch, k_dim)
                && kv_heads > 0
                && heads % kv_heads == 0
                && k_size == v_size =>
        {
            (queries, keys)
        }
        _ => {
            return Err(Error::Invalid(format!(
                "attention over q {q_size:?}, k {k_size:?}, v {v_size:?}"
            )));
        }
    };
    match mask {
        Mask::Full => fused(q, k, v, None, false),
        Mask::Tensor(mask) if mask.kind() == Kind::Bool => fused(q, k, v, Some(mask), false),
        Mask::Tensor(mask) => fused(q, k, v, Some(&mask.f_to_kind(q.kind())?), false),
        Mask::Causal if queries > keys => Err(Error::Invalid(format!(
            "{queries} queries but only {keys} keys under a causal mask"
        ))),
        Mask::Causal if queries == 1 => fused(q, k, v, None, false),
        Mask::Causal if queries == keys => fused(q, k, v, None, true),
        Mask::Causal => {
            let all = Tensor::f_ones([queries, keys], (Kind::Bool, q.device()))?;
            fused(q, k, v, Some(&all.f_tril(keys - queries)?), false)
        }
        Mask::Packed(bounds) => {
            check_bounds(bounds, keys)?;
            if queries != keys {
                return Err(Error::Invalid(format!(
                    "{queries} queries but {keys} keys in a packed row"
                )));
            }
            let count = bounds.len() as i64 - 1;
            let longest = lengths(bounds).max().unwrap_or(0);
            if count >= MANY && count * longest <= MOST_PADDING * keys {
                padded(q, k, v, bounds, longest)
            } else {
                one_by_one(q, k, v, bounds)
            }
        }
    }
}

/// So many packed sequences go side by side into one call, unless the padding would grow the row by
/// more than this factor. A step of 24 sequences of 20 tokens takes a third of the time then; a few
/// long ones are faster one by one.
const MANY: i64 = 8;
const MOST_PADDING: i64 = 2;

fn lengths(bounds: &[i64]) -> impl Iterator<Item = i64> {
    bounds.windows(2).map(|pair| pair[1] - pair[0])
}

/// Says that `bounds` cut a row of `length` tokens into sequences.
pub(crate) fn check_bounds(bounds: &[i64], length: i64) -> Result<()> {
    let covers = bounds.first() == Some(&0) && bounds.last() == Some(&length);
    if !covers || lengths(bounds).any(|length| length <= 0) {
        return Err(Error::Invalid(format!(
            "cu_seqlens {bounds:?} do not cut a row of {length} tokens into sequences"
        )));
    }
    Ok(())
}

fn one_by_one(q: &Tensor, k: &Tensor, v: &Tensor, bounds: &[i64]) -> Result<Tensor> {
    let parts = bounds
        .windows(2)
        .map(|pair| {
            let part = |t: &Tensor| t.f_narrow(2, pair[0], pair[1] - pair[0]);
            fused(&part(q)?, &part(k)?, &part(v)?, None, true)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_cat(&parts, 2)?)
}

/// All sequences in one call, each filled up to `longest` with tokens behind its end: no query of
/// its own sees those, and what they compute is dropped, so their gradients are zero too.
fn padded(q: &Tensor, k: &Tensor, v: &Tensor, bounds: &[i64], longest: i64) -> Result<Tensor> {
    let (batch, heads, row, dim) = q.size4()?;
    let count = bounds.len() as i64 - 1;
    let (mut there, mut back) = (Vec::new(), Vec::with_capacity(row as usize));
    for (i, pair) in (0..).zip(bounds.windows(2)) {
        there.extend((pair[0]..pair[0] + longest).map(|token| token.min(pair[1] - 1)));
        back.extend(i * longest..i * longest + pair[1] - pair[0]);
    }
    let index = |list: &[i64]| Tensor::f_from_slice(list)?.f_to_device(q.device());
    let (there, back) = (index(&there)?, index(&back)?);
    // [batch, heads, row, dim] to [batch * count, heads, longest, dim]
    let spread = |t: &Tensor| {
        t.f_transpose(1, 2)?
            .f_index_select(1, &there)?
            .f_view([batch * count, longest, -1, dim])?
            .f_transpose(1, 2)
    };
    let y = fused(&spread(q)?, &spread(k)?, &spread(v)?, None, true)?;
    Ok(y.f_transpose(1, 2)?
        .f_reshape([batch, count * longest, heads, dim])?
        .f_index_select(1, &back)?
        .f_transpose(1, 2)?)
}

fn fused(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    causal: bool,
) -> Result<Tensor> {
    let grouped = q.size4()?.1 != k.size4()?.1;
    Ok(
        Tensor::f_scaled_dot_product_attention(q, k, v, mask, 0.0, causal, None, grouped)
            .on("attention", &[q, k, v])?,
    )
}

/// Keys and values of earlier tokens, a pair of buffers a layer.
#[derive(Debug, Default)]
pub struct KvCache {
    layers: Vec<Option<LayerCache>>,
    capacity: i64,
}

#[derive(Debug)]
struct LayerCache {
    k: Tensor,
    v: Tensor,
    len: i64,
}

impl KvCache {
    /// A cache with room for `capacity` tokens; it doubles when that is not enough.
    pub fn new(capacity: i64) -> Self {
        Self {
            layers: Vec::new(),
            capacity: capacity.max(1),
        }
    }

    /// The number of tokens held.
    pub fn len(&self) -> i64 {
        self.layers
            .iter()
            .flatten()
            .map(|layer| layer.len)
            .min()
            .unwrap_or(0)
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: i64) {
        for layer in self.layers.iter_mut().flatten() {
            layer.len = layer.len.min(len.max(0));
        }
    }

    /// Adds `k` and `v [batch, kv_heads, seq, head_dim]` to a layer and returns all it holds, as
    /// views into the buffers.
    ///
    /// # Errors
    /// Another batch, head count, width or dtype than before, or tensors that a graph tracks: the
    /// cache would cut their gradients off.
    pub fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        if autograd::enabled() && (k.requires_grad() || v.requires_grad()) {
            return Err(Error::Invalid(
                "a KV cache passes no gradients on: run under no_grad".to_owned(),
            ));
        }
        let _guard = no_grad_guard();
        let (batch, heads, new, dim) = k.size4()?;
        if self.layers.len() <= layer {
            self.layers.resize_with(layer + 1, || None);
        }
        let slot = &mut self.layers[layer];
        let held = slot.as_ref().map(|cache| {
            let (batch, heads, _, dim) = cache.k.size4().unwrap_or_default();
            (batch, heads, dim, cache.k.kind())
        });
        if k.size() != v.size() || held.is_some_and(|held| held != (batch, heads, dim, k.kind())) {
            return Err(Error::Invalid(format!(
                "keys {:?} {:?} and values {:?} for a cache of [batch, kv_heads, head_dim], dtype {held:?}",
                k.size(),
                k.kind(),
                v.size()
            )));
        }
        let len = slot.as_ref().map_or(0, |cache| cache.len);
        while self.capacity < len + new {
            self.capacity *= 2;
        }
        let size = [batch, heads, self.capacity, dim];
        let grow = |like: &Tensor, old: Option<&Tensor>| -> Result<Tensor> {
            let grown = Tensor::f_empty(size, (like.kind(), like.device()))?;
            if let Some(old) = old {
                let kept = old.f_narrow(2, 0, len)?;
                grown.f_narrow(2, 0, len)?.f_copy_(&kept)?;
            }
            Ok(grown)
        };
        let cache = match slot.take() {
            Some(cache) if cache.k.size4()?.2 >= len + new => cache,
            old => LayerCache {
                k: grow(k, old.as_ref().map(|old| &old.k))?,
                v: grow(v, old.as_ref().map(|old| &old.v))?,
                len,
            },
        };
        let cache = slot.insert(cache);
        for (buffer, new_part) in [(&cache.k, k), (&cache.v, v)] {
            buffer
                .f_narrow(2, len, new)?
                .f_copy_(new_part)
                .on("cache", &[buffer, new_part])?;
        }
        cache.len = len + new;
        Ok((
            cache.k.f_narrow(2, 0, cache.len)?,
            cache.v.f_narrow(2, 0, cache.len)?,
        ))
    }
}
