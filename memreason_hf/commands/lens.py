"""
`memreason lens`: what a model would say at every position of a text after each recurrence.

    memreason lens runs/quickstart --data runs/quickstart/data --hops 8 --output_dir results
    memreason lens converted --text "The capital of France is" --output_dir results
"""

import dataclasses
import sys
from dataclasses import dataclass, field

from memreason_hf.analysis.inside.figures import lens_figure
from memreason_hf.analysis.inside.lens import lens_by_position
from memreason_hf.analysis.inside.lens_document import lens_document, lens_table
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.inside_inputs import InsideArguments, check_depth
from memreason_hf.command_line.model_flags import model_section
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.command_line.results_folder import OUTPUT, ResultsFolder
from memreason_hf.evaluation import describe_environment
from memreason_hf.evaluation.text.results import describe_text_model


PROG = "memreason lens"
DESCRIPTION = """\
Shows where and when an answer becomes readable. After each of the recurrences 1..max_recurrences it applies what
follows the loop (coda, norm, head) to the state of every token, in one pass: these are exactly the logits of a model
that stops there. Prints for each position from which recurrence on its target is the most probable token.

Chains: the target at a relation is the entity that is reached there. Several chains of one hop count are averaged;
--index shows one with its tokens. A second map shows which entity of the chain is read at the last position.
Text: the target at a token is the token that follows.

"readable from" is the first recurrence at which the target is the most probable token, "settled from" the one from
which on it stays so up to the last recurrence. The model must be a recurrent-depth model, also a converted one or an
adapter of one; a model without a loop has no recurrences to read.
"""
EPILOG = """\
examples:
  memreason lens runs/quickstart --data runs/quickstart/data --hops 8 --max_recurrences 16 --output_dir results
  memreason lens runs/quickstart --data runs/quickstart/data --hops 4 --index 0 --max_recurrences 8
  memreason lens converted --text "The capital of France is" --max_recurrences 8 --output_dir results

With --output_dir it writes lens.json (its schema: memreason_hf/analysis/inside/lens_document.py) and the picture lens,
as PNG and PDF.
"""


@dataclass
class LensFlags:
    """What is read."""

    max_recurrences: int | None = field(
        default=None, metadata={"help": "The last recurrence that is read. Default: max_recurrences of the config."}
    )
    top: int = field(default=3, metadata={"help": "Of one row, the most probable tokens that lens.json holds."})


def make_parser() -> CommandParser:
    sections = [
        model_section(),
        Section("rows", InsideArguments, "chains or text", key="inputs"),
        Section("lens", LensFlags, "lens"),
        dataclasses.replace(OUTPUT, left_out=("trained_hops",)),
    ]
    return CommandParser(sections, model=True, prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Reads; returns the exit code. A wrong flag or input ends the program with code 2 and one message."""
    with user_errors(PROG):
        model, rows, flags, output = make_parser().parse_sections(argv)
        folder = ResultsFolder(output, "lens", ["lens"])
        with folder.reserved():
            return _lens(model, rows, flags, folder)


def _lens(model, rows, flags, folder):
    model.check()
    rows.check()
    check_depth("top", flags.top, 1)
    config = model.load_recurrent_config()
    last = check_depth("max_recurrences", flags.max_recurrences, config.max_recurrences)
    tokenizer = model.load_tokenizer(config)
    (group,) = rows.load(tokenizer, config, single=True)
    network = model.load_model()
    reading = lens_by_position(
        network,
        group.input_ids,
        group.targets,
        num_recurrences=last,
        top=flags.top,
        batch_size=model.batch_size,
        progress=not model.no_progress,
    )
    results = lens_document(
        reading,
        group,
        lambda token: tokenizer.decode([token]),
        model=describe_text_model(network, model.model),
        data=rows.describe([group]),
        batch_size=model.batch_size,
        environment=describe_environment(network.device),
    )
    what = f"{len(group)} x {group.name} hops" if rows.data is not None else f"{len(group.tokens[0])} tokens of text"
    title = f"{model.short_name}: lens over {what}"
    share = "probability of the target" if len(group) == 1 else "share of rows with the target first"
    print(f"{title}, after 1 to {last} recurrences; {share}, in percent\n\n{lens_table(results)}\n")
    folder.write(results, {"lens": lens_figure(results, title=title)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
