"""Makes fixtures/quant/, what the real quantizers do with given inputs on the CPU. README.md has the layout.

bnb4, bnb8, torchao and gguf.safetensors hold codes and scales of inputs that are hard to get right: `normal` (rows of
very different size), `ties` (halfway between two codes), `zeros` (whole blocks of them), `tiny` (down to denormals),
`bf16` and `f16`. An input is `CASE/x`, what a peer made of it `CASE/METHOD.part`. files/ holds checkpoints as their
writers write them, each with the f32 weights that check_quant.py's reader of it gives.
"""

import argparse
import shutil
import zlib
from pathlib import Path

from check_quant import AWQ_ORDER, PEERS, ct_scheme  # first: it sets up the environment

import bitsandbytes as bnb
import gguf
import numpy as np
import torch
from bitsandbytes import functional as F
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.torch import save_file
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, nvfp4_quantize, per_tensor_amax_to_scale
from torchao.quantization import quant_primitives as affine

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
ROWS, COLS = 6, 192


def midpoints(levels):
    """The values halfway between neighbours, of f32 levels in any order."""
    levels = torch.unique(levels)
    return (levels[1:] + levels[:-1]) / 2


def signed(levels):
    return torch.cat([-levels, levels])


def fp8_levels(dtype):
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    return codes[codes.isfinite()]


def ties(rng, middles, peak, block, rows=ROWS, cols=COLS):
    """Blocks that start with their largest value, `peak` times a factor, and go on with `middles` times that factor.

    The factor is a power of two in every other block, so that the ties are exact there; elsewhere they are as near as
    rounding leaves them.
    """
    blocks = rows * cols // block
    factor = torch.exp2(torch.randint(-4, 5, (blocks, 1), generator=rng).float())
    factor[1::2] *= 1 + torch.rand(factor[1::2].shape, generator=rng)
    x = middles[torch.randint(len(middles), (blocks, block), generator=rng)]
    x[:, 0] = peak * (1 - 2 * torch.randint(2, (blocks,), generator=rng))
    return (x * factor).reshape(rows, cols).contiguous()


def inputs(rng, rows=ROWS, cols=COLS):
    """The cases that every peer gets, apart from `ties`, which depends on its codes."""
    normal = torch.randn(rows, cols, generator=rng)
    normal[1] *= 1e-4
    normal[2] *= 1e3
    zeros = torch.randn(rows, cols, generator=rng)
    zeros[0] = 0
    zeros[1] = -0.0
    zeros[2, : cols // 2] = 0
    zeros[3, ::2] = 0
    tiny = torch.randn(rows, cols, generator=rng)
    for row, size in enumerate([1e-36, 1e-38, 1e-40, 1e-44, 1e-30, 1e-20][:rows]):
        tiny[row] *= size
    return {
        "normal": normal,
        "zeros": zeros,
        "tiny": tiny,
        "bf16": normal.to(torch.bfloat16),
        "f16": normal.to(torch.float16),
    }


def save(path, tensors):
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})


# bitsandbytes


def bnb4_case(out, case, x, quant_type, block, nested):
    """`codes` u8 [ceil(n / 2)], the first of two in the high nibble; `absmax`; `dq` in x's shape and dtype.

    Nested: `absmax` u8, `nested_absmax` f32 for each 256 of them and `offset` f32 [1], all of the signed map.
    """
    flat = x.reshape(-1)  # the CPU kernel dequantizes rows wrongly that end inside a block of more than 64
    codes, state = F.quantize_4bit(flat, blocksize=block, quant_type=quant_type, compress_statistics=nested)
    name = f"{case}/{quant_type}.{block}{'.nested' if nested else ''}"
    out[f"{name}.codes"] = codes.reshape(-1)
    out[f"{name}.absmax"] = state.absmax
    out[f"{name}.dq"] = F.dequantize_4bit(codes, state).reshape(x.shape)
    if nested:
        out[f"{name}.nested_absmax"] = state.state2.absmax
        out[f"{name}.offset"] = state.offset.reshape(1)


def make_bnb4(rng):
    out = {"map/signed": F.create_dynamic_map(signed=True)}
    for quant_type in ("nf4", "fp4"):
        out[f"map/{quant_type}"] = F.get_4bit_type(quant_type, device="cpu")
    cases = inputs(rng)
    cases["tail"] = torch.randn(7, 50, generator=rng)  # 5 blocks of 64 and 30
    cases["odd"] = torch.randn(5, 37, generator=rng)  # the last byte holds one element
    cases["tail_zeros"] = torch.cat([torch.randn(64, generator=rng), torch.zeros(16)])
    for quant_type in ("nf4", "fp4"):
        cases[f"ties_{quant_type}"] = ties(rng, midpoints(out[f"map/{quant_type}"]), 1, 64)
    # 600 blocks of 32: three blocks of nested scales, the last of 88.
    cases["long"] = (torch.randn(600, 32, generator=rng) * torch.rand(600, 1, generator=rng)).to(torch.bfloat16)
    for case, x in cases.items():
        out[f"{case}/x"] = x
        for quant_type in ("nf4", "fp4"):
            if case.startswith("ties") and not case.endswith(quant_type):
                continue
            if case == "long":
                bnb4_case(out, case, x, quant_type, 32, True)
                continue
            for nested in (False, True):
                bnb4_case(out, case, x, quant_type, 64, nested)
            if case == "normal":
                for block in (32, 128, 256):
                    bnb4_case(out, case, x, quant_type, block, False)
    return out


def make_bnb8(rng):
    """Blocks of 256 by both maps: `signed.codes` u8, `signed.absmax` f32, `signed.dq`; `unsigned` of |x|.

    int8_vectorwise_quant of f16: `vector.codes` i8, `vector.stats` f32 (each row's absmax), `vector.dq` f32; with
    threshold 6, `vector6.`, and `vector6.outliers` i64, the columns (none where no value reaches 6).
    Products of Linear8bitLt: `CASE/x` [6, 64], the weight `CB` i8 [16, 64], `SCB` f32 [16], perhaps `bias`, `out`, and
    what x was quantized to.
    """
    maps = {"signed": F.create_dynamic_map(signed=True), "unsigned": F.create_dynamic_map(signed=False)}
    out = {f"map/{name}": code for name, code in maps.items()}
    cases = inputs(rng)
    cases["tail"] = torch.randn(300, generator=rng)
    for name, code in maps.items():
        cases[f"ties_{name}"] = ties(rng, midpoints(code), 1, 256, 4, 256)
    for case, x in cases.items():
        out[f"{case}/x"] = x
        for name, code in maps.items():
            if case.startswith("ties") and not case.endswith("_" + name):
                continue
            codes, state = F.quantize_blockwise(x if name == "signed" else x.abs(), code=code, blocksize=256)
            out[f"{case}/{name}.codes"] = codes
            out[f"{case}/{name}.absmax"] = state.absmax
            out[f"{case}/{name}.dq"] = F.dequantize_blockwise(codes, state)

    vectors = {f"{case}_vector": x.to(torch.float16) for case, x in inputs(rng, 6, 64).items() if case != "f16"}
    vectors["bf16_vector"] = vectors["bf16_vector"].to(torch.bfloat16)
    vectors["ties_vector"] = ties(rng, torch.arange(-127, 127) + 0.5, 127, 64, 6, 64).to(torch.float16)
    vectors["outliers_vector"] = outliers(rng, torch.float16)
    vectors["row_vector"] = outliers(rng, torch.float16)[2:3]
    for case, x in vectors.items():
        out[f"{case}/x"] = x
        for method, threshold in (("vector", 0.0), ("vector6", 6.0)):
            codes, stats, columns = F.int8_vectorwise_quant(x.clone(), threshold=threshold)
            out[f"{case}/{method}.codes"] = codes
            out[f"{case}/{method}.stats"] = stats
            out[f"{case}/{method}.dq"] = F.int8_vectorwise_dequant(codes, stats)
            if threshold:
                out[f"{case}/{method}.outliers"] = columns

    for dtype, name in ((torch.float16, "f16"), (torch.bfloat16, "bf16"), (torch.float32, "f32")):
        x = outliers(rng, dtype)
        for threshold, bias in ((6.0, False), (0.0, False), (6.0, True)):
            case = f"matmul_{name}{'_outliers' if threshold else ''}{'_bias' if bias else ''}"
            layer = bnb.nn.Linear8bitLt(64, 16, bias=bias, has_fp16_weights=False, threshold=threshold)
            layer.weight.data.copy_(torch.randn(16, 64, generator=rng) / 8)
            if bias:
                layer.bias.data.copy_(torch.randn(16, generator=rng))
                layer.bias.data = layer.bias.data.to(dtype)
            layer = layer.to("cpu").eval()
            with torch.no_grad():
                out[f"{case}/out"] = layer(x)
            codes, stats, columns = F.int8_vectorwise_quant(x.to(torch.float16), threshold=threshold)
            out |= {f"{case}/x": x, f"{case}/CB": layer.state.CB, f"{case}/SCB": layer.state.SCB}
            out |= {f"{case}/codes": codes, f"{case}/stats": stats}
            if bias:
                out[f"{case}/bias"] = layer.bias.data
            if threshold:
                out[f"{case}/outliers"] = columns
    return out


def outliers(rng, dtype):
    """[6, 64] with three columns that reach 6, one of them exactly, and a row that has one in its own column only."""
    x = torch.randn(6, 64, generator=rng).clamp(-5, 5)
    x[0, 3] = 6.0
    x[1, 3] = -20.0
    x[2, 17] = -6.0
    x[:, 40] *= 10
    x[5] *= 1e-3
    x[5, 17] = 5.996
    return x.to(dtype)


# torchao


def make_torchao(rng):
    """MX: `METHOD.codes` u8 (packed, the first of two in the low nibble, or fp8 bits), `.scale` u8 [rows, cols / 32].

    METHOD is mxfp4, e4m3 or e5m2 with `_floor` or `_rceil`. nvfp4: `codes`, `scale` (E4M3 bits, [rows, cols / 16]) and
    `tensor_scale` f32 [1] = amax / 2688. int8: `codes`, `scale` f32, `zero` i32, [1], [rows] or [rows, cols / 32].
    `dq` has x's shape, in f32; int8 has it for two cases only.
    """
    out = {}
    cases = inputs(rng)
    del cases["f16"]  # to_mx and nvfp4_quantize take f32 and bf16
    special = torch.randn(2, 192, generator=rng)
    special[0, 5], special[0, 40], special[1, 100] = float("nan"), float("inf"), -3e38
    elements = {"mxfp4": torch.float4_e2m1fn_x2, "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
    tie_cases = {
        "mxfp4": ties(rng, midpoints(signed(E2M1)), 6, 32),
        "e4m3": ties(rng, midpoints(fp8_levels(torch.float8_e4m3fn)), 448, 32),
        "e5m2": ties(rng, midpoints(fp8_levels(torch.float8_e5m2)) / 1024, 56, 32),
    }
    mx = cases | {"special": special} | {f"ties_{name}": x for name, x in tie_cases.items()}
    for case, x in mx.items():
        out[f"{case}/x"] = x
        for name, dtype in elements.items():
            if case.startswith("ties") and not case.endswith("_" + name):
                continue
            for mode in ("FLOOR", "RCEIL"):
                scale, codes = to_mx(x, dtype, 32, scaling_mode=ScaleCalculationMode[mode])
                key = f"{case}/{name}_{mode.lower()}"
                out[f"{key}.codes"] = codes.view(torch.uint8)
                out[f"{key}.scale"] = scale.view(torch.uint8)
                out[f"{key}.dq"] = to_dtype(codes, scale, dtype, 32, torch.float32)

    # The first block makes tensor_scale 1; then even blocks tie exactly and odd ones need a scale between two of E4M3.
    tie = ties(rng, midpoints(signed(E2M1)), 6, 16).reshape(-1, 16)
    between = midpoints(fp8_levels(torch.float8_e4m3fn).abs())[8:, None]
    tie[1::2] *= between[: len(tie[1::2])] * 6 / tie[1::2, :1].abs()
    tie[0] *= 448 * 6 / tie[0].abs().max()
    for case, x in (cases | {"ties_nvfp4": tie.reshape(ROWS, COLS).contiguous()}).items():
        out[f"{case}/x"] = x
        tensor_scale = per_tensor_amax_to_scale(x.abs().max())
        scale, codes = nvfp4_quantize(x, 16, tensor_scale)
        out[f"{case}/nvfp4.codes"] = codes
        out[f"{case}/nvfp4.scale"] = scale.view(torch.uint8)
        out[f"{case}/nvfp4.tensor_scale"] = tensor_scale.reshape(1)
        peer = NVFP4Tensor(codes, scale, 16, x.dtype, per_tensor_scale=tensor_scale)
        out[f"{case}/nvfp4.dq"] = peer.dequantize(torch.float32)

    # sym: [-127, 127]. sym128: the range [-128, 127] and the eps of Int8Tensor. asym: [-128, 127].
    int8_methods = {
        "sym": (affine.MappingType.SYMMETRIC, -127, None),
        "sym128": (affine.MappingType.SYMMETRIC, -128, torch.finfo(torch.float32).eps),
        "asym": (affine.MappingType.ASYMMETRIC, -128, None),
    }
    blocks = {"tensor": (ROWS, COLS), "row": (1, COLS), "group": (1, 32)}
    cases["ties_int8"] = ties(rng, torch.arange(-127, 127) + 0.5, 127, 32)
    cases["positive"] = torch.rand(ROWS, COLS, generator=rng) + 1
    for case, x in cases.items():
        out[f"{case}/x"] = x
        for method, (mapping, low, eps) in int8_methods.items():
            for granularity, block in blocks.items():
                if method == "sym128" and granularity != "row":
                    continue
                scale, zero = affine.choose_qparams_affine(
                    x, mapping, block, torch.int8, low, 127, eps=eps, scale_dtype=torch.float32
                )
                codes = affine.quantize_affine(x, block, scale, zero, torch.int8, low, 127)
                key = f"{case}/{method}_{granularity}"
                out[f"{key}.codes"] = codes
                out[f"{key}.scale"] = scale.reshape(-1) if granularity == "tensor" else scale.squeeze()
                out[f"{key}.zero"] = zero.reshape(out[f"{key}.scale"].shape)
                if case in ("normal", "ties_int8"):
                    out[f"{key}.dq"] = affine.dequantize_affine(codes, block, scale, zero, torch.int8, low, 127)
    return out


# gguf


def k_blocks(rng, kind, rows, blocks):
    """Random blocks of Q4_K or Q6_K, every bit of them but the f16 scales, which are small and finite."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    data = torch.randint(256, (rows, blocks, size), generator=rng, dtype=torch.uint8)
    at = {gguf.GGMLQuantizationType.Q4_K: (0, 2), gguf.GGMLQuantizationType.Q6_K: (208,)}[kind]
    for start in at:
        scale = (torch.rand(rows, blocks, 1, generator=rng) * 2 - 0.5) * 1e-3
        data[..., start : start + 2] = scale.to(torch.float16).view(torch.uint8)
    return data.reshape(rows, blocks * size).numpy()


def make_gguf(rng):
    """`METHOD.blocks` u8 [rows, bytes] and `METHOD.dq` f32: q8_0 and q4_0 of each case, q4_k and q6_k as `random/`."""
    kinds = gguf.GGMLQuantizationType
    out = {}
    cases = inputs(rng)
    del cases["bf16"]  # numpy has no bf16
    cases["ties_q8_0"] = ties(rng, torch.arange(-127, 127) + 0.5, 127, 32)
    cases["ties_q4_0"] = ties(rng, torch.arange(-8, 8) + 0.5, -8, 32)
    for case, x in cases.items():
        out[f"{case}/x"] = x
        for kind in (kinds.Q8_0, kinds.Q4_0):
            name = kind.name.lower()
            if case.startswith("ties") and not case.endswith(name):
                continue
            with np.errstate(all="ignore"):
                blocks = gguf.quants.quantize(x.numpy(), kind)
            out[f"{case}/{name}.blocks"] = torch.from_numpy(blocks)
            out[f"{case}/{name}.dq"] = torch.from_numpy(gguf.quants.dequantize(blocks, kind))
    for kind in (kinds.Q4_K, kinds.Q6_K):
        blocks = k_blocks(rng, kind, 3, 2)
        out[f"random/{kind.name.lower()}.blocks"] = torch.from_numpy(blocks)
        out[f"random/{kind.name.lower()}.dq"] = torch.from_numpy(gguf.quants.dequantize(blocks, kind))
    return out


# Checkpoints

LAYER = "model.layers.0."
Q, K = LAYER + "self_attn.q_proj", LAYER + "self_attn.k_proj"


def norm(rng):
    """An ordinary tensor beside the quantized ones."""
    return {LAYER + "input_layernorm.weight": (1 + torch.randn(64, generator=rng) / 8).to(torch.bfloat16)}


def state(modules):
    return {f"{prefix}.{k}": v for prefix, module in modules.items() for k, v in module.state_dict().items()}


def write_bnb4(path, rng, quant_type, nested):
    """q_proj [32, 128] from bf16, and k_proj [10, 96] from f16 with a bias, whose rows end inside blocks."""
    modules = {}
    for prefix, rows, cols, dtype, bias in ((Q, 32, 128, torch.bfloat16, False), (K, 10, 96, torch.float16, True)):
        layer = bnb.nn.Linear4bit(cols, rows, bias=bias, quant_type=quant_type, compress_statistics=nested)
        layer.weight.data = torch.randn(rows, cols, generator=rng).to(dtype) / 8
        if bias:
            layer.bias.data = torch.randn(rows, generator=rng).to(dtype)
        modules[prefix] = layer.to("cpu")
    save(path, state(modules) | norm(rng))


def write_bnb8(path, rng):
    modules = {}
    for prefix, rows, cols, bias in ((Q, 32, 64, False), (K, 10, 96, True)):
        layer = bnb.nn.Linear8bitLt(cols, rows, bias=bias, has_fp16_weights=False)
        layer.weight.data = torch.randn(rows, cols, generator=rng).to(torch.float16) / 8
        if bias:
            layer.bias.data = torch.randn(rows, generator=rng).to(torch.float16)
        modules[prefix] = layer.to("cpu")
    save(path, state(modules) | norm(rng))


def write_ct_pack(path, rng):
    """q_proj [24, 128] symmetric in groups of 32, bf16; k_proj [20, 256] with zero points in groups of 128, f16."""
    peer = BaseCompressor.get_value_from_registry("pack-quantized")
    out = norm(rng)
    for prefix, shape, group, dtype in ((Q, (24, 128), 32, torch.bfloat16), (K, (20, 256), 128, torch.float16)):
        weight = (torch.randn(shape, generator=rng) / 8 + 0.02).to(dtype)
        groups = weight.unflatten(1, (-1, group))
        like = {"weight_shape": torch.tensor(shape), "weight_scale": groups[..., 0]}
        scheme = ct_scheme(like if prefix == Q else like | {"weight_zero_point": None})
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
        part = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        out |= {f"{prefix}.{k}": v for k, v in peer.compress(part, scheme).items()}
    save(path, out)


def write_ct_nvfp4(path, rng):
    peer = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized")
    scheme = ct_scheme({"weight_global_scale": None})
    out = norm(rng)
    for prefix, shape in ((Q, (24, 128)), (K, (10, 64))):
        weight = (torch.randn(shape, generator=rng) / 8).to(torch.bfloat16)
        groups = weight.unflatten(1, (-1, 16))
        global_scale = generate_gparam(weight.amin(), weight.amax())
        scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights, global_scale)
        part = {"weight": weight, "weight_scale": scale, "weight_global_scale": global_scale}
        out |= {f"{prefix}.{k}": v for k, v in peer.compress(part, scheme).items()}
    save(path, out)


def write_mxfp4(path, rng):
    """Two experts of gpt-oss: gate_up_proj [2, 32, 64] and down_proj [2, 64, 32] as blocks of 16 bytes, and scales."""
    out = norm(rng)
    for name, shape in (("gate_up_proj", (2, 32, 64)), ("down_proj", (2, 64, 32))):
        prefix = f"{LAYER}mlp.experts.{name}"
        scale, codes = to_mx(torch.randn(shape, generator=rng) / 8, torch.float4_e2m1fn_x2, 32)
        out[prefix + "_blocks"] = codes.unflatten(-1, (-1, 16))
        out[prefix + "_scales"] = scale.view(torch.uint8)
        out[prefix + "_bias"] = torch.randn(shape[:2], generator=rng).to(torch.bfloat16)
    save(path, out)


def int4(rng, rows, cols, group, lowest=0):
    """Random codes [rows, cols], f16 scales and zero points from `lowest` to 15, both [rows, groups]."""
    groups = cols // group
    scale = (torch.rand(rows, groups, generator=rng) / 64 + 1 / 256).to(torch.float16)
    zero = torch.randint(lowest, 16, (rows, groups), generator=rng)
    zero[0, 0], zero[1, 0] = lowest, 15
    return torch.randint(16, (rows, cols), generator=rng), scale, zero


def pack_int4(codes):
    """Eight codes to an i32, the first in the lowest nibble: [rows, 8 n] as [rows, n]."""
    return (codes.unflatten(1, (-1, 8)) << torch.arange(0, 32, 4)).sum(-1).to(torch.int32)


def write_gptq(path, rng, v1):
    """q_proj [24, 128] in groups of 32, in order; k_proj [16, 64] with a shuffled g_idx, as act-order leaves it.

    Packed as GPTQModel does: qweight [in / 8, out], qzeros [groups, out / 8], scales [groups, out], g_idx [in]. No zero
    point is 0 in v1, where readers do not agree on it: GPTQModel takes 0x11111111 off a word, which borrows.
    """
    out = norm(rng)
    for prefix, rows, cols, group, shuffle in ((Q, 24, 128, 32, False), (K, 16, 64, 32, True)):
        g_idx = torch.arange(cols) // group
        if shuffle:
            g_idx = g_idx[torch.randperm(cols, generator=rng)]
        codes, scale, zero = int4(rng, rows, cols, group, lowest=int(v1))
        out[f"{prefix}.qweight"] = pack_int4(codes).T
        out[f"{prefix}.qzeros"] = pack_int4(zero.T - int(v1))
        out[f"{prefix}.scales"] = scale.T
        out[f"{prefix}.g_idx"] = g_idx.to(torch.int32)
    save(path, out)


def write_awq(path, rng):
    """Packed as AutoAWQ's WQLinear_GEMM does: qweight [in, out / 8], qzeros [groups, out / 8], scales [groups, out]."""

    def pack(codes):
        return pack_int4(codes.T.unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1))

    out = norm(rng)
    for prefix, rows, cols, group in ((Q, 24, 128, 32), (K, 16, 64, 64)):
        codes, scale, zero = int4(rng, rows, cols, group)
        out |= {f"{prefix}.qweight": pack(codes), f"{prefix}.qzeros": pack(zero), f"{prefix}.scales": scale.T}
    save(path, out)


def write_gguf(path, rng):
    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("sample")
    writer.add_block_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{name}")(f"sample.{name}", 7 if name[0] == "u" else -7)
    writer.add_float32("sample.float32", 0.1)
    writer.add_float64("sample.float64", 0.1)
    writer.add_bool("sample.bool", True)
    writer.add_string("sample.string", "größe\n")
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "", "▁a", "日本"])
    writer.add_array("sample.ints", [1, -2, 3])
    writer.add_array("sample.floats", [0.5, -1.25])
    writer.add_array("sample.bools", [True, False])
    writer.add_array("sample.nested", [[1, 2], [3]])

    def random(*shape):
        return (torch.randn(shape, generator=rng) / 8).numpy()

    writer.add_tensor("blk.0.attn_norm.weight", random(64))
    writer.add_tensor("token_embd.weight", random(10, 64).astype(np.float16))
    for name, kind in (("attn_q", kinds.Q8_0), ("attn_k", kinds.Q4_0)):
        writer.add_tensor(f"blk.0.{name}.weight", gguf.quants.quantize(random(5, 96), kind), raw_dtype=kind)
    for name, kind in (("ffn_up", kinds.Q4_K), ("ffn_down", kinds.Q6_K)):
        writer.add_tensor(f"blk.0.{name}.weight", k_blocks(rng, kind, 3, 2), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


FILES = {
    "bnb_nf4.safetensors": ("bnb4", lambda path, rng: write_bnb4(path, rng, "nf4", False)),
    "bnb_nf4_nested.safetensors": ("bnb4", lambda path, rng: write_bnb4(path, rng, "nf4", True)),
    "bnb_fp4.safetensors": ("bnb4", lambda path, rng: write_bnb4(path, rng, "fp4", False)),
    "bnb_int8.safetensors": ("bnb8", write_bnb8),
    "ct_pack_quantized.safetensors": ("ct", write_ct_pack),
    "ct_nvfp4.safetensors": ("ct", write_ct_nvfp4),
    "mxfp4_gpt_oss.safetensors": ("mxfp4", write_mxfp4),
    "gptq.safetensors": ("gptq", lambda path, rng: write_gptq(path, rng, True)),
    "gptq_v2.safetensors": ("gptq_v2", lambda path, rng: write_gptq(path, rng, False)),
    "awq.safetensors": ("awq", write_awq),
    "sample.gguf": ("gguf", write_gguf),
}


def main():
    fixtures = Path(__file__).resolve().parent.parent / "fixtures"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=fixtures, help="folder whose quant/ it replaces (default: fixtures)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other numbers (default 0)")
    args = parser.parse_args()

    def rng(what):
        """A generator for one part, so that a new part leaves the others as they were."""
        return torch.Generator().manual_seed(zlib.crc32(f"{args.seed}/quant/{what}".encode()))

    out = args.out / "quant"
    shutil.rmtree(out, ignore_errors=True)
    (out / "files").mkdir(parents=True)
    for name, make in (("bnb4", make_bnb4), ("bnb8", make_bnb8), ("torchao", make_torchao), ("gguf", make_gguf)):
        save(out / f"{name}.safetensors", make(rng(name)))
    for name, (kind, write) in FILES.items():
        path = out / "files" / name
        write(path, rng(name))
        save(path.with_suffix(".expected.safetensors"), PEERS[kind](path, torch.float32))


if __name__ == "__main__":
    main()
