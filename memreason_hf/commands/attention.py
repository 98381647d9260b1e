"""
`memreason attention`: where a model looks while it writes one solution, and how attention flows between its steps.

    memreason attention runs/strategy_qa --generations runs/strategy_qa/test.jsonl --index 3 --output_dir attention
"""

import dataclasses
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from memreason_hf.analysis.attention_document import attention_document, map_shares, shares_table
from memreason_hf.analysis.attention_figures import map_side
from memreason_hf.analysis.attention_files import AttentionFiles, Pictures
from memreason_hf.analysis.attention_grid import attention_grid, choose_maps
from memreason_hf.analysis.attention_maps import read_attention
from memreason_hf.analysis.shown_tokens import UNITS, show_tokens
from memreason_hf.analysis.solution_tokens import BEGIN, PLAN, QUESTION, encode_solution_tokens
from memreason_hf.command_line.depth_arguments import DEPTH, check_has_recurrences, given_depth
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.model_flags import model_section
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.command_line.solution_text import SolutionTextArguments, read_solution_text
from memreason_hf.evaluation import describe_environment, describe_model
from memreason_hf.messages import visible
from memreason_hf.steps import kind_order


PROG = "memreason attention"
DESCRIPTION = """\
Runs a model over one solution and shows where each token looks. Prints the share of the attention of each kind of
tokens (question, memory, reason, answer, ...) that goes to each kind. A row is the mean over its tokens and sums to
100 %. The line "even" is what attention spread evenly over all earlier tokens would give, because later steps have
more to look at. Many models look at the first token of a text whenever nothing else matters, so where the tokenizer
puts a token at the beginning it is a kind of its own, "begin".

By default everything is the mean over all layers and heads; --layer and --head choose one. They are counted from 1
(the library's attentions[0][:, 0] is layer 1, head 1). A recurrent-depth model has one map for each recurrence, the
mean over the layers in its loop; layers are counted through prelude, loop and coda.

The model can be any causal language model whose tokenizer was saved with a scheme of steps. Attention weights can only
be read from eager attention, which the model is switched to. They are layers x recurrences x heads x tokens x tokens
numbers.
"""
EPILOG = """\
examples:
  memreason attention runs/strategy_qa --generations runs/strategy_qa/test.jsonl --index 3 --output_dir attention
  memreason attention MODEL --generations published.json --index 0 --layer 2 --head 1 --output_dir attention
  memreason attention MODEL --text_file solution.txt --num_recurrences 8 --recurrence 8
  memreason attention MODEL --text_file solution.txt --steps 2-4,answer --marks_apart --output_dir attention
  memreason attention MODEL --text_file solution.txt --grid --grid_layers 1 16 32 --output_dir attention
  memreason attention MODEL --text "Question: Is it? <memory> It is. <answer> The answer is: True" --marks_apart

With --output_dir it writes attention.json (the schema: memreason_hf/analysis/attention_document.py; shares also for
every layer and head by itself), attention_weights.npz (the maps: weights, recurrences, ids) and a heat map for each
map as PNG and PDF: attention, or attention_recurrence_1 and so on. The heat maps show words; what goes to the tokens
of a word is added up, and a word attends as its tokens do on average. All step tokens have labels. --steps crops the
heat maps to some of the steps, --unit token shows tokens, and --grid adds attention_grid, a small map for each layer,
recurrence and head. The table, attention.json and attention_weights.npz are always of all tokens.
"""


@dataclass
class AttentionChoice:
    """What is shown."""

    layer: int | None = field(
        default=None, metadata={"help": "Show one layer, from 1. Default: the mean over all layers."}
    )
    head: int | None = field(
        default=None, metadata={"help": "Show one head, from 1. Default: the mean over all heads."}
    )
    recurrence: int | None = field(
        default=None,
        metadata={"help": "Recurrent-depth models: show one recurrence, from 1. Default: a map for each recurrence."},
    )
    marks_apart: bool = field(
        default=False,
        metadata={
            "help": "Count the tokens that mark the steps as a kind of their own, not as part of their steps, also in "
            "the heat maps."
        },
    )
    unit: str = field(
        default="word", metadata={"help": "What the heat maps show: words or tokens.", "choices": list(UNITS)}
    )
    steps: str | None = field(
        default=None,
        metadata={
            "help": "Heat maps of these steps only: numbers, ranges, and kinds or begin, question and plan, for "
            "example 2-4,answer. Default: the whole text."
        },
    )
    grid: bool = field(default=False, metadata={"help": "Also draw one picture of all layers and heads."})
    grid_layers: list[int] | None = field(
        default=None, metadata={"help": "The layers of the grid, from 1. Default: all."}
    )
    grid_heads: list[int] | None = field(
        default=None, metadata={"help": "The heads of the grid, from 1. Default: all."}
    )

    def check(self, output_dir: str | None) -> None:
        """
        Checks what does not depend on the model.

        Raises:
            ValueError: something about pictures that are not drawn.
        """
        pictures = {
            "unit": self.unit if self.unit != "word" else None,
            "steps": self.steps,
            "grid": self.grid or None,
        }
        given = [f"{name}={value!r}" for name, value in pictures.items() if value is not None]
        if given and output_dir is None:
            raise ValueError(f"{', '.join(given)}: this is about pictures. Add --output_dir, where they are written.")
        for name in ("grid_layers", "grid_heads"):
            if getattr(self, name) is not None and not self.grid:
                raise ValueError(f"{name}={getattr(self, name)} chooses maps of the grid. Add --grid.")


@dataclass
class AttentionOutput:
    """Where results go."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for numbers and figures. Default: only the table is printed."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace files that exist."})


def make_parser() -> CommandParser:
    # The model runs at a fixed depth, so of the depth flags it has the count only.
    left_out = tuple(set(DEPTH.hints) - {"num_recurrences"})
    sections = [
        model_section(left_out=("batch_size", "no_progress")),
        Section("text", SolutionTextArguments, "text", key="inputs"),
        dataclasses.replace(DEPTH, key="attention", left_out=left_out),
        Section("attention", AttentionChoice, "what is shown"),
        Section("output", AttentionOutput, "results"),
    ]
    return CommandParser(sections, model=True, prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Shows attention; returns the exit code. A wrong flag or input ends the program with code 2 and one message."""
    with user_errors(PROG):
        model, text_arguments, depth, choice, output = make_parser().parse_sections(argv)
        choice.check(output.output_dir)
        files = None
        if output.output_dir is not None:
            files = AttentionFiles(Path(output.output_dir), overwrite=output.overwrite)
        with nullcontext() if files is None else files.reserved():
            return _attention(model, text_arguments, depth, choice, files)


def _attention(model, text_arguments, depth, choice, files):
    numbers = {
        "layer": choice.layer,
        "head": choice.head,
        "num_recurrences": depth.num_recurrences,
        "recurrence": choice.recurrence,
    }
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    source = read_solution_text(text_arguments)
    if source.num_demonstrations:
        print(
            f"{PROG}: note: these solutions were generated after {source.num_demonstrations} solved questions, which "
            "are left out here.",
            file=sys.stderr,
        )
    device = model.choose_device()
    config = model.load_config()
    recurrences = given_depth(depth) | ({} if choice.recurrence is None else {"recurrence": choice.recurrence})
    check_has_recurrences(config, model.model, recurrences)
    solution = encode_solution_tokens(
        model.load_tokenizer(config), source.text, question=source.question, prompt_format=source.prompt_format
    )
    # Before the model runs.
    shown = show_tokens(solution, unit=choice.unit, steps=choice.steps)
    if files is not None:
        map_side(shown.solution)
    # Attention between steps is set on the loaded model, and `read_attention` leaves it as it is.
    network = model.load_model(device, attn_implementation="eager")
    attention = read_attention(
        network, solution.ids, num_recurrences=depth.num_recurrences, name=visible(source.field)
    )
    maps = attention.select(choice.layer, choice.head, choice.recurrence)
    shares = map_shares(maps, solution.kinds(choice.marks_apart))

    _print(f"{model.short_name} over {visible(source.source)}", solution, attention, choice, shares)
    if files is None:
        print("\nNothing was written. --output_dir DIR keeps the numbers and the figures.")
        return 0
    described = describe_model(network, model.model)
    del described["trained_hops"]
    document = attention_document(
        solution,
        attention,
        shares,
        marks_apart=choice.marks_apart,
        model=described,
        settings={**numbers, "num_recurrences": attention.num_recurrences},
        environment=describe_environment(device),
    )
    written = files.write(solution, maps, document, _pictures(model.short_name, attention, choice, shown))
    print(f"\nWrote {', '.join(map(str, written))}.")
    return 0


def _pictures(name, attention, choice, shown):
    part = "" if choice.steps is None else f", steps {visible(choice.steps)}"
    grid = None
    if choice.grid:
        rows, heads = choose_maps(
            attention, layers=choice.grid_layers, heads=choice.grid_heads, recurrence=choice.recurrence
        )
        grid = attention_grid(shown, rows, heads, title=f"{name}{part}", marks_apart=choice.marks_apart)
    title = f"{name}\n{_describe(attention, choice)}{part}"
    return Pictures(shown, title, choice.marks_apart, grid)


def _print(title, solution, attention, choice, shares):
    depth = "" if attention.num_recurrences is None else f", {attention.num_recurrences} recurrences"
    print(f"{title}: {_describe_text(solution)}")
    print(f"{_describe(attention, choice)}{depth}; shares of attention in percent\n")
    print(shares_table(shares))


def _describe(attention, choice):
    layers = f"layer {choice.layer} of {attention.num_layers}"
    if choice.layer is None:
        looped = {entry.layer for entry in attention.layers if entry.recurrence is not None}
        layers = f"mean over {len(looped)} looped layers" if looped else f"mean over {attention.num_layers} layers"
    heads = f"mean over {attention.num_heads} heads" if choice.head is None else f"head {choice.head}"
    return f"{layers}, {heads}"


def _describe_text(solution):
    counts = Counter(span.kind for span in solution.spans if span.kind not in (BEGIN, QUESTION, PLAN))
    steps = ", ".join(f"{counts[kind]} {kind}" for kind in kind_order(counts))
    cut = "; it ends inside the marks of a step, which are left out" if solution.truncated else ""
    return f"{len(solution)} tokens; steps: {steps}{cut}"


if __name__ == "__main__":
    sys.exit(main())
