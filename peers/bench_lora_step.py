"""LoRA training steps of a random Llama by transformers and PEFT, one for each line read from standard input.

A caller that sends a line, waits for the answer, and then runs a step of its own measures the two in pairs, under the
same load of the machine. The first line printed is {"ready": true, "parameters", "trainable", "idle_rss_bytes",
"load_peak_rss_bytes"}; then a line of JSON a step: {"seconds", "cpu_seconds", "loss", "tokens", "peak_rss_bytes"}. A step is
forward, backward, clipping at 1.0 and fused AdamW. Idle is before there is a model; the peak of the steps is counted
anew once the model stands, where the kernel allows that.

With --save it makes base/, adapter/ and ids.safetensors in a folder, prints {"saved"} and ends; with --load it steps
from such a folder, so that others can take the very same steps.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from common import DTYPES  # first: it turns the network off

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = parser.add_argument_group("model")
    sizes.add_argument("--hidden", type=int, default=768, help="default %(default)s")
    sizes.add_argument("--layers", type=int, default=12, help="default %(default)s")
    sizes.add_argument("--heads", type=int, default=12, help="default %(default)s")
    sizes.add_argument("--kv-heads", type=int, help="default: as --heads")
    sizes.add_argument("--intermediate", type=int, default=2048, help="default %(default)s")
    sizes.add_argument("--vocab", type=int, default=32000, help="default %(default)s")
    sizes.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the base; the adapter is fp32 (default fp32)")
    step = parser.add_argument_group("step")
    step.add_argument("--batch", type=int, default=4, help="rows (default %(default)s)")
    step.add_argument("--length", type=int, default=256, help="tokens a row (default %(default)s)")
    step.add_argument("--checkpointing", action="store_true", help="activation checkpointing of each layer")
    lora = parser.add_argument_group("adapter")
    lora.add_argument("--r", type=int, default=16, help="rank; alpha is twice that (default %(default)s)")
    lora.add_argument("--targets", default="q_proj,v_proj", help="comma-separated modules (default %(default)s)")
    lora.add_argument("--dropout", type=float, default=0.0, help="default %(default)s")
    lora.add_argument("--lr", type=float, default=1e-4, help="default %(default)s")
    files = parser.add_mutually_exclusive_group()
    files.add_argument("--save", type=Path, help="make the folder and end")
    files.add_argument("--load", type=Path, help="start from the folder, whose sizes win over the options above")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    return parser.parse_args()


def status(key):
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def idle():
    """Starts the threads and the kernels; what is resident then is the interpreter's and the libraries'."""
    torch.ones(64, 64) @ torch.ones(64, 64)
    return status("VmRSS")


def restart_peak():
    """Lets the peak begin from what is resident now. Some containers do not let a process do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def random_base(args):
    config = LlamaConfig(
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads or args.heads,
        intermediate_size=args.intermediate,
        vocab_size=args.vocab,
        max_position_embeddings=args.length,
    )
    return LlamaForCausalLM._from_config(config, dtype=DTYPES[args.dtype], attn_implementation="sdpa")


def new_adapter(base, args):
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=args.r,
        lora_alpha=2 * args.r,
        lora_dropout=args.dropout,
        target_modules=args.targets.split(","),
    )
    return get_peft_model(base, lora)


def build(args):
    """The model in training mode, its base frozen, with PEFT's adapters."""
    if args.load:
        base = AutoModelForCausalLM.from_pretrained(
            args.load / "base", dtype=DTYPES[args.dtype], attn_implementation="sdpa", local_files_only=True
        )
    else:
        base = random_base(args)
    base.config.use_cache = False
    if args.checkpointing:
        base.activation_checkpointing_enable()
        base.enable_input_require_grads()
    if args.load:
        model = PeftModel.from_pretrained(base, args.load / "adapter", is_trainable=True)
    else:
        model = new_adapter(base, args)
    return model.to(args.device).train()


def random_ids(args):
    return torch.randint(args.vocab, (args.batch, args.length))


def save(args):
    base = random_base(args)
    base.save_pretrained(args.save / "base")
    new_adapter(base, args).save_pretrained(args.save / "adapter")
    save_file({"ids": random_ids(args)}, args.save / "ids.safetensors")
    print(json.dumps({"saved": str(args.save)}), flush=True)


def main():
    args = parse_args()
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.save:
        save(args)
        return
    idle_rss = idle()
    model = build(args)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=args.lr, fused=True)
    ids = load_file(args.load / "ids.safetensors")["ids"] if args.load else random_ids(args)
    ids = ids.to(args.device)
    counts = {"parameters": sum(p.numel() for p in model.parameters()), "trainable": sum(p.numel() for p in params)}
    memory = {"idle_rss_bytes": idle_rss, "load_peak_rss_bytes": status("VmHWM")}
    restart_peak()
    print(json.dumps({"ready": True} | counts | memory), flush=True)
    for _ in sys.stdin:
        begin, cpu = time.perf_counter(), time.process_time()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss = loss.item()
        if args.device == "cuda":
            torch.cuda.synchronize()
        times = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
        step = {"loss": loss, "tokens": ids.numel(), "peak_rss_bytes": status("VmHWM")}
        print(json.dumps(times | step), flush=True)


if __name__ == "__main__":
    main()
