"""
`memreason quickstart`: everything once, in minutes on a CPU.

    memreason quickstart
"""

import argparse
import sys
import time
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import modeling_recurrent  # noqa: F401 - registers the architecture with the Auto classes
from memreason_hf.command_line.errors import user_errors
from memreason_hf.commands import evaluate, sweep, train
from memreason_hf.data.chains.multi_hop import load_multi_hop, select_chains
from memreason_hf.evaluation import read_results
from memreason_hf.tables import format_table


PROG = "memreason quickstart"
DESCRIPTION = """\
Builds a small world of chained facts, trains a looped layer on chains of at most 8 hops, lets it decide its depth on
chains of up to 100, reads its accuracy after every recurrence up to --max_recurrences, and loads it back from its
folder. The same command again goes on where it was stopped; of a finished run it only repeats the evaluation.
"""
EPILOG = """\
examples:
  memreason quickstart
  memreason quickstart --output_dir runs/other_seed --seed 1
  memreason quickstart --output_dir runs/longer --max_steps 3000      # any flag of `memreason train`

It writes the data to DATA_PATH, the model to OUTPUT_DIR, and evaluation.json, depth_sweep.json and the pictures
depth_sweep.png and depth_margins.png to OUTPUT_DIR/results.
"""
# Where overthinking would show: far beyond what training has seen.
LATE = 96


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # Both spellings, as of any flag: one that is not read here is read by `memreason train`, for the training alone.
    parser.add_argument(
        "--output_dir",
        "--output-dir",
        default="runs/quickstart",
        help="Everything goes here. (default: %(default)s)",
    )
    parser.add_argument(
        "--data_path", "--data-path", help="Folder of the data set; built if there is none. (default: OUTPUT_DIR/data)"
    )
    parser.add_argument(
        "--max_recurrences",
        "--max-recurrences",
        type=int,
        default=128,
        help="The last recurrence that is read. (default: %(default)s)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments, train_flags = make_parser().parse_known_args(argv)
    with user_errors(PROG):
        return _quickstart(arguments, train_flags)


def _quickstart(arguments, train_flags):
    start = time.perf_counter()
    if arguments.max_recurrences < 1:
        raise ValueError(f"max_recurrences={arguments.max_recurrences} must be at least 1.")
    folder = Path(arguments.output_dir)
    data, results = Path(arguments.data_path or folder / "data"), folder / "results"

    _headline("1/4  Data and training: chains of at most 8 hops")
    code = train.main(["quickstart", "--output_dir", str(folder), "--data_path", str(data), *train_flags])
    if code:
        return code

    common = [str(folder), "--data", str(data), "--output_dir", str(results), "--overwrite"]
    deepest = str(arguments.max_recurrences)
    _headline("2/4  Adaptive halting: every chain stops when its answer has settled")
    evaluate.main([*common, "--max_recurrences", deepest])
    _headline("3/4  Depth sweep: the answer after every recurrence, in one pass")
    sweep.main([*common, "--max_recurrences", deepest, "--halting_results", str(results / "evaluation.json")])

    _headline("4/4  Loaded back through AutoModelForCausalLM")
    print(_one_answer(folder, data))
    print("\n" + _closing_table(read_results(results / "evaluation.json"), read_results(results / "depth_sweep.json")))
    print(f"\nAll of it took {time.perf_counter() - start:.0f} s. Look at {results / 'depth_sweep.png'}.")
    return 0


def _headline(text):
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def _one_answer(folder, data):
    """The longest test chain, answered by the model as anybody would load it."""
    chains = select_chains(load_multi_hop(str(data))["test"], kind="test")
    chain = chains[max(range(len(chains)), key=chains["hops"].__getitem__)]
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    output = model(**tokenizer(chain["input_text"], return_tensors="pt"), logits_to_keep=1)
    answer = tokenizer.decode(output.logits[0, -1].argmax())
    return (
        f"{type(model).__name__} with {sum(p.numel() for p in model.parameters()):,} parameters. A chain of "
        f"{chain['hops']} hops: it answers {answer} after {int(output.num_recurrences[0])} recurrences; right is "
        f"{chain['entities'][-1]}."
    )


def _closing_table(evaluation, sweep):
    rows = []
    for adaptive, fixed in zip(evaluation["groups"], sweep["groups"]):
        # A chain that needs more recurrences than that has not begun to be overthought.
        reached = fixed["best_recurrence"] <= LATE <= len(fixed["accuracy"])
        late = fixed["accuracy"][LATE - 1] if reached else None
        rows.append(
            [
                str(adaptive["group"]),
                f"{100 * fixed['best_accuracy']:.1f}",
                str(fixed["best_recurrence"]),
                "-" if late is None else f"{100 * late:.1f}",
                f"{100 * adaptive['accuracy']:.1f}",
                f"{adaptive['recurrences']['mean']:.1f}",
            ]
        )
    return format_table(["hops", "best %", "at recurrence", f"at {LATE} %", "adaptive %", "mean recurrences"], rows)


if __name__ == "__main__":
    sys.exit(main())
