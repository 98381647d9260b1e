"""
`memreason merge`: merges an adapter into its base and saves one whole model.

    memreason merge runs/strategy_qa models/strategy_qa
"""

import sys
import time
from dataclasses import dataclass, field
from typing import Literal

from memreason_hf.adapters.saving import BASE_CHECKS
from memreason_hf.command_line.conversions import progress_reporter
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.models.merging import merge_adapter


PROG = "memreason merge"
DESCRIPTION = """\
Merges an adapter of memreason finetune into its base model, and saves one whole model with its tokenizer and scheme.
The result loads with AutoModelForCausalLM, in every engine that knows the base, and without PEFT. The base and the
adapter stay as they are.

The modes lora, tokens and lora+tokens can be merged, also DoRA and rsLoRA, and adapters that were trained on a base in
8 or 4 bits: the updates are added to the base's own weights. Virtual prompt tokens (mode prompt) are inputs, and
cannot be merged.

The command loads the result again and compares its logits with those of the base with its adapter. What remains is
the rounding of the sums to --dtype.
"""
EPILOG = """\
examples:
  memreason merge runs/strategy_qa models/strategy_qa
  memreason merge runs/strategy_qa models/strategy_qa --dtype bfloat16 --overwrite
  memreason merge owner/adapter models/merged --revision v1.0 --base models/llama-2-7b
"""


@dataclass
class MergeArguments:
    """What is merged."""

    adapter: str = field(metadata={"help": "Folder of an adapter, or its name on the Hub (owner/name)."})
    out: str = field(metadata={"help": "Folder to write."})
    revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of an adapter on the Hub. Default: main."}
    )
    base: str | None = field(
        default=None, metadata={"help": "Folder or name on the Hub of the base. Default: where the adapter says."}
    )
    base_revision: str | None = field(
        default=None,
        metadata={"help": "Branch, tag or commit of the base on the Hub. Default: the commit that the adapter names."},
    )
    base_check: Literal[BASE_CHECKS] = field(
        default="blocks",
        metadata={
            "help": "How the base is recognised: by blocks of its files, by its whole files, or not at all, for a "
            "base that was saved again in another way."
        },
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Data type of the weights. auto: that of the base in training."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a folder that is not empty."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run Python code that comes with the base or tokenizer. Read it first."}
    )


SECTIONS = [Section("merge", MergeArguments, "merging")]


def make_parser() -> CommandParser:
    return CommandParser(
        SECTIONS, recipe=None, places=("adapter", "out"), prog=PROG, description=DESCRIPTION, epilog=EPILOG
    )


def main(argv: list[str] | None = None) -> int:
    """Merges an adapter; returns the exit code. Expected errors end the program with code 2, Ctrl-C with 130."""
    with user_errors(PROG, stopped="no half-written folder was left"):
        return _merge(*make_parser().parse_sections(argv))


def _merge(arguments):
    start = time.perf_counter()
    merged = merge_adapter(
        arguments.adapter,
        arguments.out,
        revision=arguments.revision,
        base=arguments.base,
        base_revision=arguments.base_revision,
        base_check=arguments.base_check,
        dtype=arguments.dtype,
        overwrite=arguments.overwrite,
        trust_remote_code=arguments.trust_remote_code,
        report=progress_reporter(),
    )
    print(
        f"Merged an adapter of the mode {merged.mode} into {merged.base}: {merged.num_parameters:,} parameters in "
        f"{merged.dtype}."
    )
    print(
        f"The largest difference of logits is {merged.difference:.3g}, the largest logit {merged.largest_logit:.3g}; "
        f"the most probable token is the same in {merged.agreement:.1%} of the places."
    )
    for note in merged.notes:
        print(f"Note: {note}")
    print(f"Wrote {arguments.out} in {time.perf_counter() - start:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
