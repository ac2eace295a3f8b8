"""LoRA adapters made, run, merged and trained by PEFT on the models of models.py."""

import copy
import json

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from common import load, load_adapter, logits
from models import TOLERANCE, normal, relative, write_json
from train_adapter import ADAMW, train

QV = dict(r=4, lora_alpha=10, target_modules=["q_proj", "v_proj"])

# case: {adapter name: options}. PEFT writes `default` to the folder itself and any other to a sub-folder of its name.
ADAPTERS = {
    "qv": {"default": QV},
    "rslora": {
        "default": dict(
            r=4, lora_alpha=6, use_rslora=True, target_modules="all-linear",
            rank_pattern={"q_proj": 6, r"layers\.[01]\.mlp\.down_proj": 2},
            alpha_pattern={"v_proj": 3, r"layers\.1\.self_attn\.q_proj": 9},
        )
    },
    "regex": {
        "default": dict(r=3, lora_alpha=5, target_modules=r".*\.layers\.[12]\.(self_attn\.[ko]_proj|mlp\.up_proj)")
    },
    "named": {"default": QV, "extra": dict(r=2, lora_alpha=3, target_modules=["v_proj", "gate_proj"])},
}  # fmt: skip
CASES = {name: list(ADAPTERS) for name in ("llama", "qwen2")}
TRAIN_SHAPE = (20, 4, 16)  # [steps, batch, seq]


@torch.no_grad()
def randomize(model, rng):
    """A and B random: PEFT's own B is zero, and a zero adapter proves nothing."""
    for name, param in model.named_parameters():
        if "lora_A" in name:
            param.copy_(normal(rng, param.shape, 1 / param.shape[1] ** 0.5))
        elif "lora_B" in name:
            param.copy_(normal(rng, param.shape, 0.05))


def save(model, folder):
    """Writes every adapter, without the model card and in an order that does not depend on the hash seed."""
    model.save_pretrained(folder, save_embedding_layers=False)
    folder.joinpath("README.md").unlink(missing_ok=True)
    for path in folder.rglob("adapter_config.json"):
        config = json.loads(path.read_text())
        if isinstance(config["target_modules"], list):
            config["target_modules"].sort()
        path.write_text(json.dumps(config, indent=2, sort_keys=True))


def make_adapter(name, case, out, ids, rng):
    """Writes `out/adapters/<case>/adapter` and, beside it, `expected.safetensors`."""
    folder = out / "adapters" / case
    options = ADAPTERS[case]
    base = load(out / "model")
    base.name_or_path = name  # what PEFT records, instead of the path
    base_logits = logits(base, ids)
    configs = {key: LoraConfig(task_type="CAUSAL_LM", **kwargs) for key, kwargs in options.items()}
    model = get_peft_model(base, configs.pop("default"))
    for key, config in configs.items():
        model.add_adapter(key, config)
    randomize(model, rng)
    model.eval()
    save(model, folder / "adapter")

    expected = {}
    for active in [[key] for key in options] + ([list(options)] if len(options) > 1 else []):
        model.base_model.set_adapter(active)
        adapted = logits(model, ids)
        merged = logits(copy.deepcopy(model).merge_and_unload(safe_merge=True), ids)
        assert relative(adapted, base_logits) > 0.3, f"{name}/{case}: the adapter hardly changes the logits"
        assert relative(merged, adapted) < TOLERANCE / 4
        suffix = "" if active == ["default"] else "." + "+".join(active)
        expected |= {f"logits{suffix}": adapted, f"merged{suffix}": merged}
    save_file({"ids": ids} | expected, folder / "expected.safetensors")

    reread = load_adapter(load(out / "model"), folder / "adapter").eval()
    assert torch.equal(logits(reread, ids), expected["logits"]), "the saved adapter is not the one that ran"


def training_data(rng):
    """Rows that can be learnt (each token mostly decides the next, of 16) whose label counts differ within a batch."""
    steps, batch, seq = TRAIN_SHAPE
    words = torch.randperm(320, generator=rng)[:16]
    place = torch.randint(0, 16, (steps, batch), generator=rng)
    places = []
    for _ in range(seq):
        places.append(place)
        noise = (torch.rand(place.shape, generator=rng) < 0.1).long()
        place = (5 * place + 3 + noise) % 16
    ids = words[torch.stack(places, dim=-1)]
    labels = ids.clone()
    for step in labels:
        answer_starts = torch.randperm(seq - 4, generator=rng)[:batch] + 1
        for row, start in zip(step, answer_starts, strict=True):
            row[:start] = -100
        step[0, -2:] = -100
    return ids, labels


def make_training(name, out, rng):
    """Trains the adapter `qv` on fresh data: `out/train/{data.safetensors, losses.json, final/}`."""
    folder = out / "train"
    start = out / "adapters" / "qv" / "adapter"
    ids, labels = training_data(rng)

    def run(attn):
        model = load_adapter(load(out / "model", attn=attn), start, trainable=True)
        return model, list(train(model, ids, labels))

    model, steps = run("sdpa")
    losses, norms = map(list, zip(*steps, strict=True))
    save(model, folder / "final")
    save_file({"ids": ids, "labels": labels}, folder / "data.safetensors")

    # A second order of rounding shows what another correct implementation may differ by.
    _, eager = run("eager")
    noise = max(abs(loss - other) for loss, (other, _) in zip(losses, eager, strict=True))
    fall = sum(losses[:4]) / 4 - sum(losses[-4:]) / 4
    write_json(
        folder / "losses.json",
        {"adamw": ADAMW, "losses": losses, "grad_norms": norms, "eager_vs_sdpa": noise, "fall": fall},
    )
    print(f"{name}/train: {losses[0]:.3f} to {losses[-1]:.3f}, fall {fall:.3f}, eager against sdpa {noise:.1e}")
    assert fall > 0.5
    assert noise < TOLERANCE / 4
