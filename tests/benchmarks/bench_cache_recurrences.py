"""
What `cache_recurrences="last"` saves and costs: bytes of the cache, and answers of a trained model.

    python tests/benchmarks/bench_cache_recurrences.py runs/quickstart [--recurrences 16]

MODEL is the folder of a `memreason quickstart`, with its data inside. Chains are fed token by token, as in decoding,
so that every token attends to the cache: with "all" to the keys and values of the same recurrence, with "last" to
those of each token's last recurrence.
"""

import argparse
from pathlib import Path

import torch
from common import machine
from transformers import AutoModelForCausalLM

import modeling_recurrent  # noqa: F401 - registers the architecture
from memreason_hf.data.chains.multi_hop import encode_chains, load_multi_hop, load_multi_hop_tokenizer, select_chains
from modeling_recurrent import RecurrentDepthCache


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a memreason quickstart")
    parser.add_argument("--recurrences", type=int, default=16, help="fixed depth (default: 16)")
    parser.add_argument("--hops", type=int, nargs="+", default=[2, 4, 8, 12, 16])
    args = parser.parse_args()

    folder = str(Path(args.model) / "data")
    model = AutoModelForCausalLM.from_pretrained(args.model).eval()
    tokenizer = load_multi_hop_tokenizer(folder)
    chains = select_chains(load_multi_hop(folder)["test"], kind="test")
    print(machine())
    print(f"{'hops':>4} {'all %':>6} {'last %':>6} {'all bytes':>10} {'last bytes':>10} {'ratio':>6}")
    for hops in args.hops:
        rows = encode_chains(select_chains(chains, hops=[hops]), tokenizer)
        ids = torch.tensor(rows["input_ids"][:])
        answers = torch.tensor([labels[-1] for labels in rows["label_ids"]])
        accuracy, size = {}, {}
        for kept in ("all", "last"):
            cache = RecurrentDepthCache(model.config, cache_recurrences=kept)
            with torch.no_grad():
                for token in ids.split(1, dim=1):
                    output = model(token, past_key_values=cache, num_recurrences=args.recurrences)
            accuracy[kept] = (output.logits[:, -1].argmax(-1) == answers).float().mean().item()
            size[kept] = cache.nbytes
        print(
            f"{hops:>4} {100 * accuracy['all']:>6.1f} {100 * accuracy['last']:>6.1f} {size['all']:>10,} "
            f"{size['last']:>10,} {size['all'] / size['last']:>6.1f}"
        )


if __name__ == "__main__":
    main()
