"""
Looping a family's own layers against our blocks: the same Llama with the same weights, depth and batches.

    python tests/benchmarks/bench_families.py [--batch 1 8] [--prompt 64] [--runs 7]

Both sides have 4 Llama layers applied 4 times, width 512, MLP 1,376, 8 heads, vocabulary 32,000. Ours have fused
projections; the family's are `LlamaDecoderLayer` of transformers. Decoding: the time of a token of `generate` from a
cache with the prompt. Training: forward and backward pass and AdamW over a batch of 4 x 256 tokens, losses on all
tokens. Medians over runs that alternate in one process. Before anything is timed, the logits of both sides are
compared.
"""

import argparse
import statistics

import torch
from bench_decoding import SIZES, UNENDING, prefill, seconds
from common import in_turns, machine
from transformers import LlamaConfig, LlamaForCausalLM

from memreason_hf.models import convert_decoder
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


LAYERS, RECURRENCES = 4, 4


def make_models():
    """Our blocks and the family's, with the same weights."""
    llama = LlamaForCausalLM(LlamaConfig(**SIZES, **UNENDING, num_hidden_layers=LAYERS))
    places = {"prelude": 0, "loop": LAYERS, "coda": 0}
    family = convert_decoder(llama, **places, input_injection="none", num_recurrences=RECURRENCES)
    config = RecurrentDepthConfig.llama_style(
        **SIZES, **UNENDING, num_recurrent_layers=LAYERS, num_recurrences=RECURRENCES
    )
    ours = RecurrentDepthForCausalLM(config)
    state = llama.state_dict()
    for name in ours.state_dict():
        if "qkv_proj" in name:
            parts = [state[name.replace("qkv", part)] for part in "qkv"]
        elif "gate_up" in name:
            parts = [state[name.replace("gate_up", part)] for part in ("gate", "up")]
        else:
            parts = [state[name]]
        ours.state_dict()[name].copy_(torch.cat(parts))
    return {"ours": ours.eval(), "family": family}


def training_step(model, ids):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step():
        model.train()
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, nargs="+", default=[64])
    parser.add_argument("--new", type=int, default=32, help="decoded tokens that are timed (default: 32)")
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()

    torch.manual_seed(0)
    print(machine())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {name: model.to(device) for name, model in make_models().items()}
    ids = torch.randint(0, SIZES["vocab_size"], (2, 40), device=device)
    with torch.no_grad():
        ours, family = (model(ids).logits for model in models.values())
    print(f"largest difference of logits: {(ours - family).abs().max():.1e} of {ours.abs().max():.1f}")
    for batch in args.batch:
        for prompt in args.prompt:
            ids = torch.randint(0, SIZES["vocab_size"], (batch, prompt), device=device)
            starts = {name: prefill(model, ids) for name, model in models.items()}
            times = {name: [] for name in models}
            for run in range(args.runs + 1):
                for name, model in models.items():
                    times[name] += seconds(model, starts[name], args.new)[args.new * (not run) :]
            ours, family = (1000 * statistics.median(values) for values in times.values())
            print(
                f"decoding, batch {batch}, prompt {prompt}: ours {ours:.1f} ms, family {family:.1f} ms a token, "
                f"ratio {family / ours:.2f}",
                flush=True,
            )
    ids = torch.randint(0, SIZES["vocab_size"], (4, 256), device=device)
    ours, family = in_turns({name: training_step(model, ids) for name, model in models.items()}, args.runs).values()
    print(f"training step: ours {ours:.2f} s, family {family:.2f} s, ratio {family / ours:.2f}")


if __name__ == "__main__":
    main()
