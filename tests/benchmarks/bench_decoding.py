"""
Decoding speed at equal width, heads, vocabulary and layer calls, against transformers' own looped model and a Llama.

    python tests/benchmarks/bench_decoding.py [--batch 1 8] [--prompt 64 1024] [--dtype float32 bfloat16]

Ours: 4 Llama-style layers applied 4 times. `hrm_text`: two stacks of 4 layers, 16 calls. Llama: 16 layers.
Width 512, MLP 1,376, 8 heads, vocabulary 32,000, random weights. `generate` continues from a cache with the prompt.
The time of a token is the time between two calls of a stopping criterion. The figures are medians over tokens and
runs; the models alternate in one process. The size of the weights is printed, too. For growth with the context, use
`--prompt 128 4096 --batch 1`.
"""

import argparse
import copy
import statistics
import time
from itertools import pairwise

import torch
from common import machine
from transformers import HrmTextConfig, HrmTextForCausalLM, LlamaConfig, LlamaForCausalLM, StoppingCriteria

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


class Clock(StoppingCriteria):
    """Never stops a text; records the time of each token."""

    def __init__(self):
        self.times = []

    def __call__(self, input_ids, scores, **kwargs):
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def prefill(model, ids):
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, return_dict_in_generate=True)
    return made.sequences, made.past_key_values


def seconds(model, start, new):
    """Seconds of each of `new` decoded tokens after a prompt that is in the cache."""
    ids, cache = start
    clock = Clock()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=copy.deepcopy(cache),
        max_new_tokens=new + 1,
        do_sample=False,
        stopping_criteria=[clock],
    )
    return [later - earlier for earlier, later in pairwise(clock.times)]


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
        whole = sum(p.numel() for p in model.parameters()) * 4 / 2**20
        # A loop cannot share embedding and head.
        ends = {*model.get_input_embeddings().parameters(), *model.get_output_embeddings().parameters()}
        layers = whole - sum(p.numel() for p in ends) * 4 / 2**20
        print(f"{name}: {whole:.0f} MiB of float32 weights, {layers:.0f} MiB without embedding and head")
    print(f"{'dtype':>9} {'batch':>5} {'prompt':>6}  " + "  ".join(f"{n:>9}" for n in models) + "  to hrm  to llama")
    for dtype in args.dtype:
        models = {name: model.to(getattr(torch, dtype)) for name, model in models.items()}
        for batch in args.batch:
            for prompt in args.prompt:
                ids = torch.randint(0, SIZES["vocab_size"], (batch, prompt), device=device)
                times = {name: [] for name in models}
                starts = {name: prefill(model, ids) for name, model in models.items()}
                for run in range(args.runs + 1):
                    for name, model in models.items():
                        times[name] += seconds(model, starts[name], args.new)[args.new * (not run) :]
                speeds = {name: batch / statistics.median(values) for name, values in times.items()}
                print(
                    f"{dtype:>9} {batch:>5} {prompt:>6}  "
                    + "  ".join(f"{speed:>9.1f}" for speed in speeds.values())
                    + f"  {speeds['ours'] / speeds['hrm_text']:>6.2f}  {speeds['ours'] / speeds['llama']:>8.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
