"""
`memreason attention`: where a model looks while it writes one solution, and how attention flows between its steps.

    memreason attention runs/strategy_qa --generations runs/strategy_qa/test.jsonl --index 3 --output_dir attention
"""

import json
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from memreason_hf.analysis import save_figure
from memreason_hf.analysis.attention_document import attention_document, map_shares, shares_table
from memreason_hf.analysis.attention_figures import attention_figure
from memreason_hf.analysis.attention_maps import read_attention
from memreason_hf.analysis.solution_tokens import encode_solution_tokens
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.model_parser import ModelParser
from memreason_hf.command_line.recipe_parser import RecipeSection
from memreason_hf.evaluation import describe_environment, describe_model
from memreason_hf.evaluation.solutions.answers import read_published
from memreason_hf.evaluation.solutions.generation_files import SETTINGS_SUFFIX, read_generations
from memreason_hf.files import check_places, whole_file, write_json
from memreason_hf.models.loading import choose_device, load_any_config, load_model, load_tokenizer
from memreason_hf.steps import KINDS
from modeling_recurrent import RecurrentDepthConfig


PROG = "memreason attention"
DESCRIPTION = """\
Runs a model over one solution and shows where each token looks. Prints the share of the attention of each kind of
tokens (question, memory, reason, answer, ...) that goes to each kind. A row is the mean over its tokens and sums to
100 %; beside it stands what attention spread evenly over all earlier tokens would give, because later steps have more
to look at. Many models look at the first token of a text whenever nothing else matters: it is a kind of its own,
"begin", where the tokenizer puts one.

By default everything is the mean over all layers and heads; --layer and --head choose one. They are counted from 1
(the library's attentions[0][:, 0] is layer 1, head 1). Of a recurrent-depth model there is one map a recurrence, the
mean over the layers in its loop; layers are counted through prelude, loop and coda.

Any causal language model will do whose tokenizer was saved with a scheme of steps. Weights that can be read
need eager attention, which the model is switched to; they are layers x recurrences x heads x tokens x tokens numbers.
"""
EPILOG = """\
examples:
  memreason attention runs/strategy_qa --generations runs/strategy_qa/test.jsonl --index 3 --output_dir attention
  memreason attention MODEL --generations published.json --index 0 --layer 2 --head 1 --output_dir attention
  memreason attention MODEL --text_file solution.txt --num_recurrences 8 --recurrence 8
  memreason attention MODEL --text "Question: Is it? <memory> It is. <answer> The answer is: True" --marks_apart

With --output_dir it writes attention.json (the schema: memreason_hf/analysis/attention_document.py; shares also for
every layer and head by itself), attention_weights.npz (the maps: weights, recurrences, ids) and a heat map for each
map as PNG and PDF: attention, or attention_recurrence_1 and so on.
"""
STEM = "attention"
_SUFFIXES = (".json", ".npz", ".png", ".pdf")
_PICTURE = re.compile(rf"{STEM}(_recurrence_\d+)?\.(png|pdf)")


@dataclass
class AttentionInputs:
    """The model and the text."""

    model: str | None = field(
        default=None,
        metadata={"help": "Folder written by training or save_pretrained, also an adapter's; or a name on the Hub."},
    )
    generations: str | None = field(
        default=None,
        metadata={"help": "File of solutions: JSON lines of memreason evaluate-steps, or the study's JSON lists."},
    )
    index: int | None = field(default=None, metadata={"help": "Which solution of the file, by its index from 0."})
    text: str | None = field(
        default=None, metadata={"help": "A question and its solution, in place of a file; the marks begin the steps."}
    )
    text_file: str | None = field(default=None, metadata={"help": "File with such a text."})
    tokenizer: str | None = field(
        default=None, metadata={"help": "Folder with the extended tokenizer, where it is not beside the model."}
    )
    base: str | None = field(
        default=None, metadata={"help": "An adapter's base model, where it is not the one that the adapter names."}
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Of the weights; auto: as saved, an adapter's base as in training."}
    )
    device: str | None = field(
        default=None, metadata={"help": "For example cpu or cuda:1. Default: cuda if there is."}
    )


@dataclass
class AttentionChoice:
    """What is shown."""

    layer: int | None = field(default=None, metadata={"help": "One layer, from 1. Default: the mean over all."})
    head: int | None = field(default=None, metadata={"help": "One head, from 1. Default: the mean over all."})
    num_recurrences: int | None = field(
        default=None, metadata={"help": "Recurrent-depth models: how many run. Default: the model's."}
    )
    recurrence: int | None = field(
        default=None, metadata={"help": "Recurrent-depth models: only this one, from 1. Default: one map for each."}
    )
    marks_apart: bool = field(
        default=False,
        metadata={"help": "Count the tokens of the steps' marks as a kind of their own, not to their steps."},
    )


@dataclass
class AttentionOutput:
    """Where results go."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for numbers and pictures. Default: only the table is printed."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace files that are there already."})


INPUTS = RecipeSection("inputs", AttentionInputs, "model and text (section inputs of a recipe)")
ATTENTION = RecipeSection("attention", AttentionChoice, "what is shown (section attention of a recipe)")
OUTPUT = RecipeSection("output", AttentionOutput, "results (section output of a recipe)")


def make_parser() -> ModelParser:
    return ModelParser([INPUTS, ATTENTION, OUTPUT], prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Shows attention; returns the exit code. A wrong flag or input ends the program with code 2 and one message."""
    with user_errors(PROG):
        return _attention(*make_parser().parse_sections(argv))


def _attention(inputs, choice, output):
    folder = None if output.output_dir is None else Path(output.output_dir)
    if folder is not None:
        # Before any work is done; which maps there will be is not known yet.
        there = [path for suffix in _SUFFIXES for path in sorted(folder.glob(f"{STEM}*{suffix}"))]
        check_places([*there, folder / f"{STEM}.json"], overwrite=output.overwrite)
    for name in ("layer", "head", "num_recurrences", "recurrence"):
        value = getattr(choice, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: they are counted from 1.")
    text, question, source = read_text(inputs)
    device = choose_device(inputs.device)
    model, tokenizer = load_text_model(inputs, choice)
    solution = encode_solution_tokens(tokenizer, text, question=question)
    attention = read_attention(model.to(device), solution.ids, num_recurrences=choice.num_recurrences)
    maps = attention.select(choice.layer, choice.head, choice.recurrence)
    shares = map_shares(maps, solution.kinds(choice.marks_apart))

    name = "/".join(Path(inputs.model).parts[-2:])
    shown = _describe(attention, choice)
    depth = "" if attention.num_recurrences is None else f", {attention.num_recurrences} recurrences"
    print(f"{name} over {source}: {_describe_text(solution)}\n{shown}{depth}; shares of attention in percent\n")
    print(shares_table(shares))
    if folder is None:
        print("\nNothing was written: --output_dir DIR keeps the numbers and the pictures.")
        return 0

    described = describe_model(model, inputs.model)
    del described["trained_hops"]
    settings = {name: getattr(choice, name) for name in ("layer", "head", "recurrence")}
    document = attention_document(
        solution,
        attention,
        shares,
        marks_apart=choice.marks_apart,
        model=described,
        settings={**settings, "num_recurrences": attention.num_recurrences},
        environment=describe_environment(device),
    )
    _write(folder, solution, maps, document, f"{name}\n{shown}", output.overwrite)
    # Pictures of other recurrences that were there before are not of this text.
    for path in set(there) - set(_picture_files(folder, maps)):
        if _PICTURE.fullmatch(path.name):
            path.unlink()
    return 0


def read_text(inputs: AttentionInputs) -> tuple[str, str | None, str]:
    """
    The text that the flags name, its question where that is known, and what the text is called.

    Raises:
        ValueError, OSError: no text or several, no index, no solution of this index, a damaged file.
    """
    given = [name for name in ("generations", "text", "text_file") if getattr(inputs, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise ValueError(f"give one text, by --generations FILE --index N, --text or --text_file; there is {found}.")
    if given != ["generations"] and inputs.index is not None:
        raise ValueError(f"index={inputs.index} names a solution of --generations, which is not given.")
    if inputs.text is not None:
        return inputs.text, None, "the text"
    path = Path(inputs.text_file or inputs.generations)
    try:
        if inputs.text_file is not None:
            return path.read_text(encoding="utf-8"), None, path.name
        return *_read_solution(path, inputs.index), f"solution {inputs.index} of {path.name}"
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} holds no text in UTF-8 ({error}).") from None


def _read_solution(path, index):
    if path.read_bytes().lstrip()[:1] == b"[":
        texts, _ = read_published(path)
        solutions = {i: (text, None) for i, text in enumerate(texts)}
    else:
        solutions = {i: (line["text"], line["question"]) for i, line in read_generations(path).items()}
    if not solutions:
        raise ValueError(f"{path} holds no solution.")
    places = f"{len(solutions)} solutions, of index {min(solutions)} to {max(solutions)}"
    if index is None:
        raise ValueError(f"index is not given: {path} holds {places}; choose one by --index.")
    if index not in solutions:
        raise ValueError(f"index={index} is not in {path}, which holds {places}.")
    text, question = solutions[index]
    if not isinstance(text, str) or not isinstance(question, str | None):
        raise ValueError(f"{path}: text and question of solution {index} must be texts.")
    _note_demonstrations(path)
    return text, question


def _note_demonstrations(path):
    """Solved questions that stood before the texts are not among their lines."""
    try:
        settings = json.loads(path.with_name(path.name + SETTINGS_SUFFIX).read_text(encoding="utf-8"))
        number = settings["num_demonstrations"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if number:
        print(
            f"{PROG}: note: these solutions were generated behind {number} solved questions, which are left out here.",
            file=sys.stderr,
        )


def load_text_model(inputs: AttentionInputs, choice: AttentionChoice):
    """
    The model and its tokenizer.

    Raises:
        ValueError, OSError: what is missing, damaged or does not match.
    """
    config = load_any_config(inputs.model, inputs.base)
    if not isinstance(config, RecurrentDepthConfig):
        given = {name: getattr(choice, name) for name in ("num_recurrences", "recurrence")}
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{name}={value}: model={inputs.model!r} is a {config.model_type!r} model, without recurrences."
                )
    tokenizer = load_tokenizer(inputs.model, inputs.tokenizer, config)
    # Attention between steps is set on what the model is loaded with, and `read_attention` leaves it alone then.
    return load_model(inputs.model, inputs.dtype, base=inputs.base, attn_implementation="eager"), tokenizer


def _describe(attention, choice):
    layers = f"layer {choice.layer} of {attention.num_layers}"
    if choice.layer is None:
        looped = {entry.layer for entry in attention.layers if entry.recurrence is not None}
        layers = f"mean over {len(looped)} looped layers" if looped else f"mean over {attention.num_layers} layers"
    heads = f"mean over {attention.num_heads} heads" if choice.head is None else f"head {choice.head}"
    return f"{layers}, {heads}"


def _describe_text(solution):
    counts = Counter(span.kind for span in solution.spans)
    steps = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
    cut = "; it ends inside the marks of a step, which are left out" if solution.truncated else ""
    return f"{len(solution)} tokens; steps: {steps}{cut}"


def _picture_files(folder, maps):
    stems = [STEM if shown.recurrence is None else f"{STEM}_recurrence_{shown.recurrence}" for shown in maps]
    return [folder / f"{stem}{suffix}" for stem in stems for suffix in (".png", ".pdf")]


def _write(folder, solution, maps, document, title, overwrite):
    """The pictures, the maps, then the document: where it is, all are."""
    written = []
    for shown in maps:
        line = title
        if shown.recurrence is not None:
            line = f"{title}, recurrence {shown.recurrence} of {document['settings']['num_recurrences']}"
        paths = _picture_files(folder, [shown])
        save_figure(attention_figure(solution, shown, title=line), paths, overwrite=overwrite)
        written += paths
    written += [folder / f"{STEM}_weights.npz", folder / f"{STEM}.json"]
    with whole_file(written[-2], overwrite=overwrite) as temporary:
        np.savez_compressed(
            temporary,
            weights=np.stack([shown.weights for shown in maps]),
            recurrences=np.array([shown.recurrence or 0 for shown in maps]),
            ids=np.array(solution.ids),
        )
    write_json(written[-1], document, overwrite=overwrite, ensure_ascii=False, indent=1)
    print(f"\nWrote {', '.join(map(str, written))}.")


if __name__ == "__main__":
    sys.exit(main())
