"""
What halting saves in decoding: 32 rows with counts spread evenly over 1..7, against 32 rows at the maximum of 16.

    python tests/benchmarks/bench_halted_decoding.py [--context 64 1024] [--runs 7]

Measures one decoding step on a cache of `--context` tokens; both sides alternate in one process. A skewed batch (one
row at 16, the others at 1) is measured, too. Then the script prints the bytes of a cache with `cache_recurrences`
"last" and "all".
"""

import argparse

import torch
from common import in_turns, machine

from modeling_recurrent import RecurrentDepthCache, RecurrentDepthConfig, RecurrentDepthForCausalLM


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, nargs="+", default=[64, 1024], help="tokens in the cache")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--most", type=int, default=16)
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()

    torch.manual_seed(0)
    config = RecurrentDepthConfig.llama_style(
        vocab_size=1000,
        hidden_size=args.width,
        intermediate_size=1376,
        num_attention_heads=8,
        num_recurrent_layers=4,
        max_recurrences=args.most,
    )
    model = RecurrentDepthForCausalLM(config).eval()
    spread = (torch.arange(args.rows) % 7 + 1)[torch.randperm(args.rows)]
    skewed = torch.ones(args.rows, dtype=torch.long)
    skewed[args.rows // 2] = args.most
    print(machine())
    print(f"{'context':>7} {'all s':>7} {'spread s':>8} {'ratio':>6} {'skewed s':>8} {'ratio':>6}")
    for context in args.context:
        with torch.no_grad():
            cache = RecurrentDepthCache(config)
            ids = torch.randint(0, 1000, (args.rows, context))
            # The content of the cache does not affect the time; the first step below fills the deeper slots.
            for part in ids.split(128, dim=1):
                model(part, past_key_values=cache, num_recurrences=1, logits_to_keep=1)
            token = torch.randint(0, 1000, (args.rows, 1))

            def step(depth, cache=cache, token=token):
                with torch.no_grad():
                    model(token, past_key_values=cache, num_recurrences=depth, logits_to_keep=1)
                    cache.crop(-1)

            sides = {"all": args.most, "spread": spread, "skewed": skewed}
            times = in_turns({name: (lambda d=depth: step(d)) for name, depth in sides.items()}, args.runs, warmup=2)
        print(
            f"{context:>7} {times['all']:>7.3f} {times['spread']:>8.3f} {times['spread'] / times['all']:>6.2f} "
            f"{times['skewed']:>8.3f} {times['skewed'] / times['all']:>6.2f}",
            flush=True,
        )
    kept = {}
    for which in ("all", "last"):
        with torch.no_grad():
            ids = torch.randint(0, 1000, (2, 128))
            output = model(ids, use_cache=True, cache_recurrences=which, num_recurrences=args.most)
        kept[which] = output.past_key_values.nbytes
    print(f"cache bytes at {args.most} recurrences: all {kept['all']:,}, last {kept['last']:,}, ", end="")
    print(f"ratio 1/{kept['all'] / kept['last']:.0f}")


if __name__ == "__main__":
    main()
