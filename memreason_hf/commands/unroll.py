"""
`memreason unroll`: writes the loop of a converted model out as a plain decoder of its family.

    memreason unroll runs/looped plain --num_recurrences 4
"""

import sys
import time
from dataclasses import dataclass, field
from typing import Literal

from memreason_hf.command_line.conversions import print_written, progress_reporter
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.models.conversion.folders import unroll_folder


PROG = "memreason unroll"
DESCRIPTION = """\
Writes the loop of a model that was converted from a decoder out as a plain checkpoint of its family, for example a
LlamaForCausalLM. Its looped layers appear as often as they run, so the folder loads without this package and in every
engine that knows the family. The result has the size of a decoder of that depth.

The command loads the result again and compares its logits with those of the loop in float32: without padding, with
padding on either side, cached and in generate. The differences are printed and written into conversion.json.

A plain decoder cannot express what happens between recurrences: --num_recurrences above 1 needs a model with
input_injection="none", or with gates that are all 1, and without a norm of the state.
"""
EPILOG = """\
examples:
  memreason unroll runs/looped plain --num_recurrences 4
  memreason unroll runs/looped plain --num_recurrences 1          # the source again, without the dropped layers
  memreason unroll runs/looped plain --num_recurrences 8 --dtype bfloat16 --overwrite
"""


@dataclass
class UnrollArguments:
    """What is written out."""

    source: str = field(metadata={"help": "Folder of a recurrent model with the layers of a family."})
    out: str = field(metadata={"help": "Folder to write."})
    num_recurrences: int = field(metadata={"help": "How often the looped layers run."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Data type of the weights. auto: as saved."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a folder that is not empty."})


SECTIONS = [Section("unroll", UnrollArguments, "conversion")]


def make_parser() -> CommandParser:
    return CommandParser(
        SECTIONS, recipe=None, places=("source", "out"), prog=PROG, description=DESCRIPTION, epilog=EPILOG
    )


def main(argv: list[str] | None = None) -> int:
    """Writes a loop out; returns the exit code. Expected errors end the program with code 2, Ctrl-C with 130."""
    with user_errors(PROG, stopped="no half-written folder was left"):
        return _unroll(*make_parser().parse_sections(argv))


def _unroll(arguments):
    start = time.perf_counter()
    written = unroll_folder(
        arguments.source,
        arguments.out,
        arguments.num_recurrences,
        dtype=arguments.dtype,
        overwrite=arguments.overwrite,
        report=progress_reporter(),
    )
    print_written(written, arguments.out, time.perf_counter() - start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
