"""
`memreason quickstart`: everything once, in minutes on a CPU.

    memreason quickstart
"""

import dataclasses
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import modeling_recurrent  # noqa: F401 - registers the architecture with the Auto classes
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.commands import evaluate, sweep, train
from memreason_hf.data.chains.multi_hop import load_multi_hop, select_chains
from memreason_hf.evaluation import read_results
from memreason_hf.messages import visible
from memreason_hf.tables import format_table


PROG = "memreason quickstart"
DESCRIPTION = """\
Builds a small world of chained facts and trains a looped layer on chains of at most 8 hops. Then lets it decide its
depth on chains of up to 100 hops, reads its accuracy after every recurrence up to --max_recurrences, and loads it from
its folder. The same command again resumes a run that was stopped; after a finished run it only repeats the evaluation.
"""
EPILOG = """\
examples:
  memreason quickstart
  memreason quickstart --output_dir runs/other_seed --seed 1
  memreason quickstart --output_dir runs/longer --max_steps 3000      # any flag of memreason train, see --help_all

It writes the data to DATA_PATH, the model to OUTPUT_DIR, and evaluation.json, depth_sweep.json and the figures
depth_sweep.png and depth_margins.png to OUTPUT_DIR/results.
"""
# Far beyond the depths of training, where overthinking would show.
LATE = 96


@dataclass
class QuickstartArguments:
    """Where everything goes, and how deep the evaluation reads."""

    output_dir: str = field(default="runs/quickstart", metadata={"help": "Folder for the model and the results."})
    data_path: str | None = field(
        default=None,
        metadata={"help": "Folder of the data set, which is built if it does not exist. Default: OUTPUT_DIR/data."},
    )
    max_recurrences: int = field(default=128, metadata={"help": "Last recurrence that the evaluation reads."})


# These flags of `memreason train` have another meaning here.
_OWN_FIELDS = {"training": ("output_dir",), "data": ("path", "kind"), "model": ("max_recurrences",)}


def make_parser() -> CommandParser:
    _, recipe = train.make_parser().parse_recipe(["quickstart"])
    training = [
        dataclasses.replace(
            section, shown=(), left_out=_OWN_FIELDS.get(section.name, ()), defaults=recipe[section.name]
        )
        for section in train.SECTIONS
    ]
    sections = [Section("quickstart", QuickstartArguments, "quickstart"), *training]
    return CommandParser(sections, recipe=None, prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Runs the quickstart; returns the exit code: 0, or 130 after Ctrl-C in training."""
    with user_errors(PROG):
        parser = make_parser()
        _, flags = parser.parse_recipe(argv)
        values = {name: {**section.defaults, **flags[name]} for name, section in parser.sections.items()}
        return _quickstart(QuickstartArguments(**values.pop("quickstart")), values)


def _quickstart(arguments, values):
    start = time.perf_counter()
    if arguments.max_recurrences < 1:
        raise ValueError(f"max_recurrences={arguments.max_recurrences} must be at least 1.")
    folder = Path(arguments.output_dir)
    data, results = Path(arguments.data_path or folder / "data"), folder / "results"

    _headline("1/4  Data and training: chains of at most 8 hops")
    values["training"]["output_dir"], values["data"]["path"] = str(folder), str(data)
    code = train.train(values, PROG)
    if code:
        return code

    common = [str(folder), "--data", str(data), "--output_dir", str(results), "--overwrite"]
    common += ["--max_recurrences", str(arguments.max_recurrences)]
    _headline("2/4  Adaptive halting: every chain stops when its answer has settled")
    evaluate.main(common)
    _headline("3/4  Depth sweep: the answer after every recurrence, in one pass")
    sweep.main([*common, "--halting_results", str(results / "evaluation.json")])

    _headline("4/4  Loaded through AutoModelForCausalLM")
    print(_one_answer(folder, data))
    print("\n" + _closing_table(read_results(results / "evaluation.json"), read_results(results / "depth_sweep.json")))
    print(f"\nThe quickstart took {time.perf_counter() - start:.0f} s. Look at {results / 'depth_sweep.png'}.")
    return 0


def _headline(text):
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def _one_answer(folder, data):
    """The answer to the longest test chain, by the model as a user would load it."""
    chains = select_chains(load_multi_hop(str(data))["test"], kind="test")
    chain = chains[max(range(len(chains)), key=chains["hops"].__getitem__)]
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    output = model(**tokenizer(chain["input_text"], return_tensors="pt"), logits_to_keep=1)
    answer = visible(tokenizer.decode(output.logits[0, -1].argmax()))
    return (
        f"{type(model).__name__} with {sum(p.numel() for p in model.parameters()):,} parameters. A chain of "
        f"{chain['hops']} hops: it answers {answer} after {int(output.num_recurrences[0])} recurrences; the right "
        f"answer is {chain['entities'][-1]}."
    )


def _closing_table(evaluation, sweep):
    rows = []
    for adaptive, fixed in zip(evaluation["groups"], sweep["groups"]):
        # A chain that is only answered later cannot be overthought by then.
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
