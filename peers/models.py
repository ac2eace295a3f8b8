"""Random small checkpoints and what transformers computes with them."""

import copy
import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, Qwen2Config

from common import DTYPES, greedy, load, logits

VOCAB = 320
SEGMENTS = (7, 5, 12)  # of row 0, each run alone
LENGTH = sum(SEGMENTS)
PROMPT, STEPS = 8, 64
TOLERANCE = 1e-4  # of the logits' standard deviation, in fp32

SHARED = dict(
    vocab_size=VOCAB, num_hidden_layers=3, max_position_embeddings=128, bos_token_id=1, eos_token_id=2
)  # fmt: skip

# name: (config, spelling of config.json, dtype on disk, largest shard)
VARIANTS = {
    "llama": (
        LlamaConfig(
            **SHARED, hidden_size=64, intermediate_size=112, num_attention_heads=4, num_key_value_heads=2,
            rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        "new", "fp32", "1GB",
    ),
    # The scaling's original length is so short that 24 positions see its three bands.
    "llama3": (
        LlamaConfig(
            **SHARED, hidden_size=64, head_dim=24, intermediate_size=112, num_attention_heads=4, num_key_value_heads=2,
            rms_norm_eps=1e-5, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            },
        ),
        "old", "fp32", "1GB",
    ),
    "qwen2": (
        Qwen2Config(
            **SHARED, hidden_size=48, intermediate_size=104, num_attention_heads=6, num_key_value_heads=2,
            rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        "new", "fp32", "150KB",
    ),
    "qwen2_tied": (
        Qwen2Config(
            **SHARED, hidden_size=64, intermediate_size=112, num_attention_heads=4, num_key_value_heads=2,
            rms_norm_eps=1e-6, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        "old", "bf16", "1GB",
    ),
}  # fmt: skip


def normal(rng, shape, sd):
    return torch.randn(shape, generator=rng) * sd


@torch.no_grad()
def randomize(model, rng):
    """Every parameter random: queries and keys large, so that attention is sharp; the head such that logits have sd > 1;
    the branches small beside the stream, so that bf16's own rounding stays near 1 %, but not where the head is the
    embedding: there every token would predict itself."""
    branch = 1.3 if model.config.tie_word_embeddings else 0.7
    for name, param in model.named_parameters():
        fan_in = param.shape[-1]
        if name.endswith("norm.weight"):
            value = 1 + normal(rng, param.shape, 0.3)
        elif name.endswith(".bias"):
            value = normal(rng, param.shape, 0.3)
        elif "embed_tokens" in name or "lm_head" in name:
            value = normal(rng, param.shape, 1.5 / fan_in**0.5)
        elif "q_proj" in name or "k_proj" in name:
            value = normal(rng, param.shape, 1.4 / fan_in**0.5)
        else:
            value = normal(rng, param.shape, branch / fan_in**0.5)
        param.copy_(value)


def respell(config, spelling):
    """config.json in the spelling of transformers 5 (`new`) or in that of most checkpoints on the Hub (`old`)."""
    config = dict(config)
    rope = config.pop("rope_parameters")
    dtype = config.pop("dtype")
    if spelling == "new":
        config |= {"rope_parameters": rope, "dtype": dtype}
    else:
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        config |= {
            "rope_theta": rope["rope_theta"],
            "rope_scaling": None if rope["rope_type"] == "default" else scaling,
            "torch_dtype": dtype,
        }
    return dict(sorted(config.items()))


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def with_config(model_dir, edit, **options):
    """The checkpoint loaded under an edited config."""
    config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
    edit(config)
    return load(model_dir, config=config, **options)


@torch.no_grad()
def kv_interleaved(model):
    """The model as one would compute it that maps query head h to key head h % kv, not to h // (heads / kv).

    Same as permuting query heads: slot s of the right order takes the head that the wrong order would put there.
    """
    model = copy.deepcopy(model)
    heads, kv = model.config.num_attention_heads, model.config.num_key_value_heads
    order = torch.arange(heads).view(heads // kv, kv).T.flatten()
    for layer in model.model.layers:
        q, o = layer.self_attn.q_proj, layer.self_attn.o_proj
        for rows in filter(lambda rows: rows is not None, (q.weight, q.bias)):
            rows.copy_(rows.unflatten(0, (heads, -1))[order].flatten(0, 1))
        o.weight.copy_(o.weight.unflatten(1, (heads, -1))[:, order].flatten(1, 2))
    return model


def relative(a, b):
    """The largest difference, in standard deviations of `b`."""
    return ((a - b).abs().max() / b.std()).item()


def relative_rms(a, b):
    """The standard deviation of the difference, in standard deviations of `b`."""
    return ((a - b).std() / b.std()).item()


def sharpness(model_dir, ids):
    """Mean of each query's largest attention weight, and the same if attention were uniform, over the row's second half."""
    with torch.no_grad():
        maps = load(model_dir, attn="eager")(input_ids=ids, output_attentions=True).attentions
    half = LENGTH // 2
    uniform = (1 / torch.arange(half + 1, LENGTH + 1)).mean().item()
    return torch.stack(maps)[..., half:, :].amax(-1).mean().item(), uniform


def find_greedy(model, rng, tries=50):
    """A prompt whose greedy tokens are varied and whose every choice is clear, so that rounding cannot flip it."""
    for _ in range(tries):
        prompt = torch.randint(3, VOCAB, (1, PROMPT), generator=rng)
        tokens, steps = greedy(model, prompt, STEPS)
        top = steps.topk(2, dim=-1).values
        margin = (top[:, 0] - top[:, 1]).min().item()
        distinct = tokens.unique().numel()
        if distinct >= 16 and margin > 2e-3:
            return prompt[0], tokens, {"distinct": distinct, "min_margin": margin}
    raise AssertionError(f"no prompt of {tries} gives 16 distinct tokens with clear margins")


def check_spelling(model_dir, other_config, ids, expected):
    """transformers reads the other spelling of the config too, with the very same logits."""
    with tempfile.TemporaryDirectory() as tmp:
        copied = Path(tmp, "model")
        shutil.copytree(model_dir, copied)
        shutil.copy(other_config, copied / "config.json")
        assert torch.equal(logits(load(copied), ids), expected), f"{other_config} changes the logits"


def make_model(name, out, rng):
    """Writes `out/model`, `out/config.other.json`, `out/expected.safetensors`, `out/facts.json`; returns the model's ids."""
    config, spelling, disk_dtype, max_shard_size = VARIANTS[name]
    model_dir = out / "model"
    fresh = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    randomize(fresh, rng)
    fresh.to(DTYPES[disk_dtype]).save_pretrained(model_dir, max_shard_size=max_shard_size)
    written = json.loads((model_dir / "config.json").read_text())
    write_json(model_dir / "config.json", respell(written, spelling))
    other = out / "config.other.json"
    write_json(other, respell(written, "old" if spelling == "new" else "new"))

    model = load(model_dir)
    ids = torch.randint(3, VOCAB, (2, LENGTH), generator=rng)
    right = logits(model, ids)
    in_bf16 = load(model_dir, "bf16")
    assert in_bf16.model.rotary_emb.inv_freq.dtype == torch.float32
    right_bf16 = logits(in_bf16, ids)
    eager_bf16 = logits(load(model_dir, "bf16", "eager"), ids)
    segments = [logits(model, row[None])[0] for row in ids[0].split(SEGMENTS)]
    prompt, tokens, greedy_facts = find_greedy(model, rng)
    check_spelling(model_dir, other, ids, right)

    def double_rope_base(config):
        config.rope_parameters["rope_theta"] *= 2

    def large_eps(config):
        config.rms_norm_eps = 1e-3

    def no_scaling(config):
        config.rope_parameters = {"rope_type": "default", "rope_theta": config.rope_parameters["rope_theta"]}

    wrong = {
        "rope_theta_doubled": relative(logits(with_config(model_dir, double_rope_base), ids), right),
        "rms_norm_eps_1e-3": relative(logits(with_config(model_dir, large_eps), ids), right),
        "kv_interleaved": relative(logits(kv_interleaved(model), ids), right),
    }
    if config.rope_parameters["rope_type"] != "default":
        wrong["rope_scaling_dropped"] = relative(logits(with_config(model_dir, no_scaling), ids), right)
    sharp, uniform = sharpness(model_dir, ids)
    facts = {
        "logits_std": right.std().item(),
        "mean_max_attention": sharp,
        "mean_max_attention_if_uniform": uniform,
        "wrong": wrong,
        "fp32_eager_vs_sdpa": relative(logits(load(model_dir, attn="eager"), ids), right),
        "bf16_eager_vs_sdpa": {"max": relative(eager_bf16, right_bf16), "rms": relative_rms(eager_bf16, right_bf16)},
        "bf16_vs_fp32": {"max": relative(right_bf16, right), "rms": relative_rms(right_bf16, right)},
        "greedy": greedy_facts,
    }
    print(name, json.dumps(facts, indent=2))
    assert facts["logits_std"] >= 1
    assert sharp > 4 * uniform
    assert all(difference > 10 * TOLERANCE for difference in wrong.values())
    assert facts["fp32_eager_vs_sdpa"] < TOLERANCE / 4
    assert facts["bf16_eager_vs_sdpa"]["rms"] < 2e-2

    save_file(
        {
            "ids": ids,
            "logits.f32": right,
            "logits.bf16": right_bf16,
            "packed.logits": torch.cat(segments),
            "packed.cu_seqlens": torch.tensor([0, *SEGMENTS]).cumsum(0),
            "greedy.prompt": prompt,
            "greedy.ids": tokens,
        },
        out / "expected.safetensors",
    )
    write_json(out / "facts.json", facts)
    return ids
