"""
`memreason patch`: at which recurrence and position the answer of a model hangs.

    memreason patch runs/quickstart --data runs/quickstart/data --hops 8 --max_recurrences 12 --output_dir results
    memreason patch runs/quickstart --first "<e_1><r_0><r_2>" --second "<e_4><r_0><r_2>"
"""

import dataclasses
import random
import sys
from dataclasses import dataclass, field
from typing import Literal

import torch

from memreason_hf.analysis.inside.figures import patch_figure
from memreason_hf.analysis.inside.patch_document import patch_document, patch_table
from memreason_hf.analysis.inside.patching import PARTS, patch_effects, top_answers
from memreason_hf.checks import check_choice
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.inside_inputs import InsideArguments, check_depth, encode_text, token_texts
from memreason_hf.command_line.model_flags import model_section
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.command_line.results_folder import OUTPUT, ResultsFolder
from memreason_hf.evaluation import describe_environment
from memreason_hf.evaluation.text.results import describe_text_model
from memreason_hf.messages import visible


PROG = "memreason patch"
DESCRIPTION = """\
Patches activations between two chains, or two texts, with the same number of tokens. The model runs on the first one.
After recurrence t, what it holds at one position is replaced by what it holds there in its run on the second one, and
the run goes on. The effect is 0 if the answer does not move, and 1 if the model answers as for the second text. Every
position and every recurrence are tried, and all positions at once.

--part state replaces the state. A loop that adds its input again (input_injection) goes on reading the tokens of the
first text: --part input replaces this input in all later recurrences, and --part both replaces both; then a patch of
all positions gives exactly the answer to the second text.

From a data set, pairs are drawn at random from chains of one hop count which the model answers correctly. With --pairs
same_relations the second chain has the relations of the first and the start of the other one; with --pairs any it is
the other chain itself, so that most patches mix two chains and lead to a third answer (an effect near 0.5 that does
not flip the answer). Effects are means over the pairs. The answer to a chain is the model's own.
"""
EPILOG = """\
examples:
  memreason patch runs/quickstart --data runs/quickstart/data --hops 8 --max_recurrences 12 --output_dir results
  memreason patch runs/quickstart --data runs/quickstart/data --hops 4 --part both --pairs any
  memreason patch runs/quickstart --first "<e_1><r_0><r_2>" --second "<e_4><r_0><r_2>" --max_recurrences 8
  memreason patch converted --first "The capital of France is" --second "The capital of Spain is"

With --output_dir it writes patch.json (its schema: memreason_hf/analysis/inside/patch_document.py) and the picture
patch, as PNG and PDF.
"""
# Patches cost recurrences squared, so that the config's maximum may take long.
_MOST_BY_DEFAULT = 16
_UNUSED = ("index", "text", "text_file", "max_tokens")


@dataclass
class PatchFlags:
    """What is patched."""

    first: str | None = field(default=None, metadata={"help": "The text that the model runs on, instead of chains."})
    second: str | None = field(default=None, metadata={"help": "The text that patches come from."})
    pairs: Literal["same_relations", "any"] = field(
        default="same_relations",
        metadata={"help": "Whether the two chains differ in their start only, or are any two of the data set."},
    )
    num_pairs: int = field(default=16, metadata={"help": "Pairs of chains that are drawn, at most."})
    max_recurrences: int | None = field(
        default=None,
        metadata={
            "help": "The recurrence at which the answer is read. Default: max_recurrences of the config, at most "
            f"{_MOST_BY_DEFAULT}."
        },
    )
    part: str = field(default="state", metadata={"help": f"What is replaced: {', '.join(PARTS)}."})
    seed: int = field(default=0, metadata={"help": "Of the choice of pairs."})


def make_parser() -> CommandParser:
    sections = [
        model_section(batch_size=64),
        Section("rows", InsideArguments, "chains", key="inputs", left_out=_UNUSED),
        Section("patch", PatchFlags, "patches"),
        dataclasses.replace(OUTPUT, left_out=("trained_hops",)),
    ]
    return CommandParser(sections, model=True, prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Patches; returns the exit code. A wrong flag or input ends the program with code 2 and one message."""
    with user_errors(PROG):
        model, rows, flags, output = make_parser().parse_sections(argv)
        folder = ResultsFolder(output, "patch", ["patch"])
        with folder.reserved():
            return _patch(model, rows, flags, folder)


def _check(rows, flags):
    if (flags.first is None) != (flags.second is None):
        missing = "second" if flags.second is None else "first"
        raise ValueError(f"{missing} is not given: a patch needs two texts. Pass --first and --second.")
    if (flags.first is None) == (rows.data is None):
        what = "neither is given"
        if rows.data is not None:
            what = f"data={rows.data!r} and first={flags.first!r} are given"
        raise ValueError(f"Pass chains by --data DIR --hops N, or two texts by --first and --second; {what}.")
    if rows.data is None:
        rows.refuse_choice_of_chains(f"first={flags.first!r}")
    else:
        rows.check()
    check_choice("part", flags.part, PARTS)
    check_depth("num_pairs", flags.num_pairs, 1)


def _patch(model, rows, flags, folder):
    model.check()
    _check(rows, flags)
    config = model.load_recurrent_config()
    default = min(config.max_recurrences, _MOST_BY_DEFAULT)
    last = check_depth("max_recurrences", flags.max_recurrences, default)
    tokenizer = model.load_tokenizer(config)
    group = None if rows.data is None else rows.load(tokenizer, config, single=True)[0]
    given = None if rows.data is not None else _given_pair(tokenizer, flags)
    network = model.load_model()
    first, second, left_out = given or _draw_pairs(network, group, flags, last, model.batch_size)
    found = patch_effects(
        network,
        first,
        second,
        num_recurrences=last,
        part=flags.part,
        batch_size=model.batch_size,
        progress=not model.no_progress,
    )
    results = patch_document(
        found,
        _describe_pairs(network, tokenizer, first, second, last, model.batch_size),
        _tokens_of(tokenizer, first, second),
        model=describe_text_model(network, model.model),
        data={**rows.describe([]), "num_rows": 2 * len(first)},
        hops=None if group is None else group.name,
        settings={
            "num_recurrences": last,
            "part": flags.part,
            "pairs": None if group is None else flags.pairs,
            "batch_size": model.batch_size,
            "seed": flags.seed,
        },
        environment=describe_environment(network.device),
        num_left_out=left_out,
    )
    _show(model, results, folder)
    return 0


def _given_pair(tokenizer, flags):
    first, second = (encode_text(tokenizer, getattr(flags, name), name) for name in ("first", "second"))
    if first.shape != second.shape:
        raise ValueError(
            f"first has {first.shape[1]} tokens and second {second.shape[1]}, but a patch needs two texts with the "
            "same number of tokens. Choose words of equal length."
        )
    return first, second, 0


def _draw_pairs(network, group, flags, last, batch_size):
    """Pairs of rows that the model answers correctly, with different answers, and how many rows it does not."""
    ids = group.input_ids
    correct = top_answers(network, ids, last, batch_size) == group.entities[:, -1]
    rows = correct.nonzero().flatten().tolist()
    order = torch.tensor(random.Random(flags.seed).sample(rows, len(rows)), dtype=torch.long)
    # Each row with the next one: enough pairs remain where a few have the same answer.
    first, second = ids[order], ids[order.roll(-1)].clone()
    if flags.pairs == "same_relations":
        second[:, 1:] = first[:, 1:]
    if rows:
        answers = [top_answers(network, texts, last, batch_size) for texts in (first, second)]
        differ = (answers[0] != answers[1]).nonzero().flatten()[: flags.num_pairs]
        first, second = first[differ], second[differ]
    if not len(first):
        raise ValueError(
            f"There is no pair to patch: after {last} recurrences the model answers {len(rows)} of {len(group)} "
            f"chains of {group.name} hops correctly, and none of their pairs have different answers. Pass another "
            "--max_recurrences or --hops, or two texts by --first and --second."
        )
    return first, second, len(group) - len(rows)


def _describe_pairs(network, tokenizer, first, second, last, batch_size):
    answers = [top_answers(network, ids, last, batch_size).tolist() for ids in (first, second)]
    texts = [tokenizer.batch_decode(ids) for ids in (first, second)]
    names = [[tokenizer.decode([token]) for token in row] for row in answers]
    keys = ("first", "second", "first_answer", "second_answer")
    return [dict(zip(keys, values)) for values in zip(*texts, *names)]


def _tokens_of(tokenizer, first, second):
    if len(first) > 1:
        return None
    return tuple(token_texts(tokenizer, ids[0].tolist()) for ids in (first, second))


def _show(model, results, folder):
    pairs, settings = results["pairs"], results["settings"]
    what = f"{len(pairs)} pairs" if results["hops"] is None else f"{len(pairs)} pairs of {results['hops']} hops"
    if len(pairs) == 1:
        pair = pairs[0]
        what = f"{visible(pair['first_answer'])} against {visible(pair['second_answer'])}"
    title = f"{model.short_name}: {what}, {settings['part']} patched, answer at {settings['num_recurrences']}"
    print(f"{title}\n\n{patch_table(results)}\n")
    if results["num_left_out"]:
        print(f"{results['num_left_out']} chains were left out, because the model does not answer them correctly.")
    folder.write(results, {"patch": patch_figure(results, title=title)})


if __name__ == "__main__":
    sys.exit(main())
