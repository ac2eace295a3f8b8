"""What every script here shares: offline, deterministic, models from local files only."""

import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch  # noqa: E402  (the variables above must be set before transformers is imported)
from peft import PeftModel  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.utils import logging  # noqa: E402

logging.disable_progress_bar()
warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT's own calls of names that transformers renames
torch.use_deterministic_algorithms(True)
torch.set_num_threads(1)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load(model_dir, dtype="fp32", attn="sdpa", **overrides):
    """A checkpoint in evaluation mode. `dtype` goes through the loader, so that rotary tables stay fp32 in bf16."""
    return AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=DTYPES[dtype], attn_implementation=attn, local_files_only=True, **overrides
    ).eval()


def load_adapter(model, adapter_dir, name="default", trainable=False):
    """`model` wrapped by PEFT with the adapter of a folder."""
    return PeftModel.from_pretrained(model, adapter_dir, adapter_name=name, is_trainable=trainable)


@torch.no_grad()
def logits(model, ids):
    """Logits f32 [batch, seq, vocab] of `ids` i64 [batch, seq], without a cache."""
    return model(input_ids=ids, use_cache=False).logits.float().contiguous()


def parse_ids(text):
    """`1,2,3` as i64 [1, 3]."""
    return torch.tensor([[int(part) for part in text.split(",")]])


def write_logits(model, ids, path):
    """Writes f32 [seq, vocab] under the key `logits`."""
    save_file({"logits": logits(model, ids)[0].contiguous()}, path)


def greedy(model, ids, steps):
    """The `steps` tokens that follow `ids` i64 [1, n], never stopping at an end token, and each step's logits [steps, vocab]."""
    model.generation_config.eos_token_id = None
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=steps,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[0, ids.shape[1] :], torch.cat(out.logits)
