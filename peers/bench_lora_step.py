"""LoRA training steps of a random Llama by transformers and PEFT, one for each line read from standard input.

A caller that sends a line, waits for the answer, and then runs a step of its own measures the two in pairs, under the
same load of the machine. The first line printed is {"ready": true, "parameters", "trainable"}; then a line of JSON a
step: {"seconds", "loss", "tokens", "peak_rss_bytes"}. A step is forward, backward, clipping at 1.0 and fused AdamW.
"""

import argparse
import json
import resource
import sys
import time

from common import DTYPES  # first: it turns the network off

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


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
    step.add_argument("--batch", type=int, default=2, help="rows (default %(default)s)")
    step.add_argument("--length", type=int, default=256, help="tokens a row (default %(default)s)")
    step.add_argument("--checkpointing", action="store_true", help="activation checkpointing of each layer")
    lora = parser.add_argument_group("adapter")
    lora.add_argument("--r", type=int, default=16, help="rank; alpha is twice that (default %(default)s)")
    lora.add_argument("--targets", default="q_proj,v_proj", help="comma-separated modules (default %(default)s)")
    lora.add_argument("--dropout", type=float, default=0.0, help="default %(default)s")
    lora.add_argument("--lr", type=float, default=1e-4, help="default %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    return parser.parse_args()


def build(args):
    """The model in training mode, its base frozen, with PEFT's adapters."""
    config = LlamaConfig(
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads or args.heads,
        intermediate_size=args.intermediate,
        vocab_size=args.vocab,
        max_position_embeddings=args.length,
        use_cache=False,
    )
    base = LlamaForCausalLM._from_config(config, dtype=DTYPES[args.dtype], attn_implementation="sdpa")
    if args.checkpointing:
        base.activation_checkpointing_enable()
        base.enable_input_require_grads()
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=args.r,
        lora_alpha=2 * args.r,
        lora_dropout=args.dropout,
        target_modules=args.targets.split(","),
    )
    return get_peft_model(base, lora).to(args.device).train()


def main():
    args = parse_args()
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = build(args)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=args.lr, fused=True)
    ids = torch.randint(args.vocab, (args.batch, args.length), device=args.device)
    counts = {"parameters": sum(p.numel() for p in model.parameters()), "trainable": sum(p.numel() for p in params)}
    print(json.dumps({"ready": True} | counts), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss = loss.item()
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "loss": loss, "tokens": ids.numel(), "peak_rss_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
