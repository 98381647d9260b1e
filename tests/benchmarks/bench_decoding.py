"""
Decoding speed at equal width, heads, vocabulary and layer calls, against transformers' own looped model and a Llama.

    python tests/benchmarks/bench_decoding.py [--batch 1 8] [--prompt 64 1024] [--dtype float32 bfloat16]

Ours: 4 Llama-style layers applied 4 times. `hrm_text`: 4 layers in each of its two stacks, 16 calls. Llama: 16 layers.
Width 512, MLP 1,376, 8 heads, vocabulary 32,000, random weights. A decoded token's time is the difference between
generating 1 and `--new` + 1 tokens; medians of runs taken in turns in one process. Weights in memory are printed too.
"""

import argparse
import statistics
import time

import torch
from common import machine
from transformers import HrmTextConfig, HrmTextForCausalLM, LlamaConfig, LlamaForCausalLM

from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


SIZES = {"vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8}
UNENDING = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "max_position_embeddings": 8192}


def make_models():
    ours = RecurrentDepthConfig.llama_style(**SIZES, **UNENDING, num_recurrent_layers=4, num_recurrences=4)
    hrm = HrmTextConfig(**SIZES, **UNENDING, head_dim=64, num_hidden_layers=4, H_cycles=1, L_cycles=3, prefix_lm=False)
    llama = LlamaConfig(**SIZES, **UNENDING, num_hidden_layers=16)
    return {
        "ours": RecurrentDepthForCausalLM(ours),
        "hrm_text": HrmTextForCausalLM(hrm),
        "llama": LlamaForCausalLM(llama),
    }


def seconds(model, ids, new):
    start = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False)
    if ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--new", type=int, default=32, help="decoded tokens that are timed (default: 32)")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(machine())
    models = {name: model.eval().to(device) for name, model in make_models().items()}
    for name, model in models.items():
        print(f"{name}: {sum(p.numel() for p in model.parameters()) * 4 / 2**20:.0f} MiB of float32 weights")
    print(f"{'dtype':>9} {'batch':>5} {'prompt':>6}  " + "  ".join(f"{n:>9}" for n in models) + "  to hrm  to llama")
    for dtype in args.dtype:
        models = {name: model.to(getattr(torch, dtype)) for name, model in models.items()}
        for batch in args.batch:
            for prompt in args.prompt:
                ids = torch.randint(0, SIZES["vocab_size"], (batch, prompt), device=device)
                times = {name: [] for name in models}
                for run in range(args.runs + 1):
                    for name, model in models.items():
                        first, more = seconds(model, ids, 1), seconds(model, ids, args.new + 1)
                        if run:
                            times[name].append(more - first)
                speeds = {name: batch * args.new / statistics.median(values) for name, values in times.items()}
                print(
                    f"{dtype:>9} {batch:>5} {prompt:>6}  "
                    + "  ".join(f"{speed:>9.1f}" for speed in speeds.values())
                    + f"  {speeds['ours'] / speeds['hrm_text']:>6.2f}  {speeds['ours'] / speeds['llama']:>8.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
