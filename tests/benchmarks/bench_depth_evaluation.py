"""
What reading depth costs on a trained model: a sweep against one run, adaptive halting against the fixed maximum.

    python tests/benchmarks/bench_depth_evaluation.py runs/quickstart [--sweep 40] [--runs 5]

MODEL is the folder of a `memreason quickstart`, with its data inside. The sweep reads the answer after every
recurrence 1..40, the run at 40 only the last one. Adaptive evaluation may take up to the model's max_recurrences. The
mean number of recurrences divided by that maximum, weighted by the tokens of the rows, is the share of the work that
remains. The sides alternate in one process.
"""

import argparse
from pathlib import Path

import torch
from common import in_turns, machine
from transformers import AutoModelForCausalLM

import modeling_recurrent  # noqa: F401 - registers the architecture
from memreason_hf.data.chains.multi_hop import encode_chains, load_multi_hop, load_multi_hop_tokenizer, select_chains
from memreason_hf.evaluation import predict_answers, sweep_depth
from memreason_hf.training import ChainCollator


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a memreason quickstart")
    parser.add_argument("--sweep", type=int, default=40, help="recurrences of the sweep (default: 40)")
    parser.add_argument("--rows", type=int, default=50, help="rows a hop count (default: 50)")
    parser.add_argument("--batch", type=int, default=64, help="rows of a forward (default: 64)")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each side (default: 5)")
    args = parser.parse_args()

    folder = str(Path(args.model) / "data")
    model = AutoModelForCausalLM.from_pretrained(args.model)
    tokenizer = load_multi_hop_tokenizer(folder)
    chains = select_chains(load_multi_hop(folder)["test"], kind="test")
    seen, kept = {}, []
    for index, hops in enumerate(chains["hops"]):
        seen[hops] = seen.get(hops, 0) + 1
        if seen[hops] <= args.rows:
            kept.append(index)
    rows = encode_chains(chains.select(kept), tokenizer)
    common = {"batch_size": args.batch}
    collator = ChainCollator(tokenizer.pad_token_id)

    print(machine())
    print(f"{len(rows)} rows, hops {sorted(seen)}")
    times = in_turns(
        {
            "sweep": lambda: sweep_depth(model, rows, collator, max_recurrences=args.sweep, **common),
            "run": lambda: predict_answers(model, rows, collator, num_recurrences=args.sweep, **common),
        },
        args.runs,
    )
    print(
        f"sweep over 1..{args.sweep} {times['sweep']:.2f} s, one run at {args.sweep} {times['run']:.2f} s: "
        f"ratio {times['sweep'] / times['run']:.2f}"
    )

    most = model.config.max_recurrences
    times = in_turns(
        {
            "adaptive": lambda: predict_answers(model, rows, collator, **common),
            "fixed": lambda: predict_answers(model, rows, collator, num_recurrences=most, **common),
        },
        max(args.runs // 2, 1),
    )
    taken = torch.tensor(predict_answers(model, rows, collator, **common).num_recurrences).double()
    tokens = torch.tensor([len(ids) for ids in rows["input_ids"]]).double()
    share, plain = (taken * tokens).sum() / (most * tokens.sum()), taken.mean() / most
    ratio = times["adaptive"] / times["fixed"]
    print(f"adaptive {times['adaptive']:.2f} s, fixed at {most} {times['fixed']:.2f} s: ratio {ratio:.3f}")
    print(f"mean over maximum recurrences {plain:.3f}, weighted by tokens {share:.3f}")
    print(f"the time ratio is {ratio / share:.2f} times the latter")


if __name__ == "__main__":
    main()
