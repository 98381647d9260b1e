"""
What halting saves: 64 rows with counts spread evenly over 1..16, against all of them at 16.

    python tests/benchmarks/bench_halting.py [--rows 64] [--length 64] [--runs 9]

Both sides alternate in one process, with the same model (4 GPT-2 blocks of width 256) and rows. The mean count divided
by the maximum count is the share of the layer calls that remain, and so a lower bound of the time ratio.
"""

import argparse

import torch
from common import in_turns, machine

from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64, help="rows of the batch (default: 64)")
    parser.add_argument("--length", type=int, default=64, help="tokens of a row (default: 64)")
    parser.add_argument("--width", type=int, default=256, help="hidden size (default: 256)")
    parser.add_argument("--most", type=int, default=16, help="largest count (default: 16)")
    parser.add_argument("--runs", type=int, default=9, help="timed runs of each side (default: 9)")
    args = parser.parse_args()

    torch.manual_seed(0)
    config = RecurrentDepthConfig.gpt2_style(
        vocab_size=1000,
        hidden_size=args.width,
        num_attention_heads=args.width // 32,
        num_recurrent_layers=4,
        max_position_embeddings=max(1024, args.length),
    )
    model = RecurrentDepthForCausalLM(config).eval()
    ids = torch.randint(0, 1000, (args.rows, args.length))
    counts = (torch.arange(args.rows) % args.most + 1)[torch.randperm(args.rows)]

    def run(depth):
        with torch.no_grad():
            model(ids, num_recurrences=depth, logits_to_keep=1, use_cache=False)

    times = in_turns({"spread": lambda: run(counts), "all": lambda: run(args.most)}, args.runs)
    print(machine())
    print(f"{args.rows} rows x {args.length} tokens, width {args.width}, counts 1..{args.most}")
    print(f"spread {times['spread']:.3f} s, all at {args.most} {times['all']:.3f} s")
    print(f"ratio {times['spread'] / times['all']:.3f} (mean/maximum count {counts.float().mean() / args.most:.3f})")


if __name__ == "__main__":
    main()
