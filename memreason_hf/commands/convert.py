"""
`memreason convert`: makes a pretrained decoder recurrent, and measures that one recurrence is the source.

    memreason convert TinyLlama/TinyLlama-1.1B-Chat-v1.0 runs/looped --prelude 4 --loop 8 --coda 4
"""

import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Literal

from memreason_hf.command_line.conversions import print_written, progress_reporter
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.models.conversion import published_loops  # noqa: F401 - registers their reader
from memreason_hf.models.conversion.adapters import convert_adapter
from memreason_hf.models.conversion.folders import check_places_apart, convert_folder, convert_other
from memreason_hf.models.conversion.layers import plan_layers
from memreason_hf.models.conversion.readers import find_reader
from memreason_hf.models.conversion.source import is_adapter, open_source


PROG = "memreason convert"
DESCRIPTION = """\
Turns a pretrained decoder (Llama, Mistral, Qwen, SmolLM, OLMo, Gemma, Phi-3, GPT-2 and others) into a recurrent-depth
model whose layers are the decoder's own. Some of its layers run before the loop (prelude), some in it, some after it
(coda), and some may be dropped. One recurrence then computes what the source computes; the way back into the loop is a
gate for each channel that starts closed, so that deeper recurrences start from there when the model is trained on.

--prelude, --loop and --coda take numbers of layers or ranges, counted from 0. As numbers, the prelude takes the first
layers, the coda the last, and the loop those just before the coda; layers between prelude and loop are dropped. With
--loop as a range alone, all layers before and after it are kept. By default no layer is dropped and the middle half is
looped.

The folder has the weights, the code that loads them, the tokenizer with its chat template, the generation config and
conversion.json. The command loads it again and compares its logits with those of the source in float32: without
padding, with padding on either side, cached and in generate. The differences are printed and written into
conversion.json; 0.0 is expected. If a difference is larger than rounding, nothing is written.

Published loops are read as they are, with their own prelude, loop and coda.

No code that comes with a source is ever run.
"""
EPILOG = """\
examples:
  memreason convert TinyLlama/TinyLlama-1.1B-Chat-v1.0 runs/looped --prelude 4 --loop 8 --coda 4
  memreason convert models/llama runs/looped --prelude 0-3 --loop 10-17 --coda 18-21    # the same of 22 layers
  memreason convert Qwen/Qwen3-0.6B runs/looped --loop 8-19                             # keeps all layers
  memreason convert models/llama runs/retrofitted --prelude 4 --loop 8 --coda 4 --input_injection concat \
--state_init normal
  memreason convert adapters/chat runs/chat --base runs/looped       # a LoRA adapter of the source, renamed

A published LoRA adapter of the source fits the result as it is where no layer was dropped and the family calls its
layers model.layers (all but GPT-2 and GPT-NeoX). Otherwise --base renames it.
"""


@dataclass
class ConvertArguments:
    """From where to where."""

    source: str = field(
        metadata={
            "help": "Folder or name on the Hub (owner/name) of a decoder; or, with --base, folder of an adapter."
        }
    )
    out: str = field(metadata={"help": "Folder to write."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a source on the Hub."})
    base: str | None = field(
        default=None,
        metadata={"help": "SOURCE is a LoRA adapter of the source of this converted model: rename it to fit."},
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Data type of the weights. auto: as saved."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a folder that is not empty."})


@dataclass
class LayerArguments:
    """Which layers go where."""

    prelude: str | None = field(
        default=None, metadata={"help": "Layers before the loop: a number, or a range such as 0-3."}
    )
    loop: str | None = field(
        default=None, metadata={"help": "Layers in the loop: a number, or a range such as 10-17."}
    )
    coda: str | None = field(
        default=None, metadata={"help": "Layers after the loop: a number, or a range such as 18-21."}
    )


@dataclass
class RecurrenceArguments:
    """How the loop runs, by the names of the config's fields."""

    num_recurrences: int | None = field(
        default=None, metadata={"help": "Recurrences where a call does not say otherwise. Default: 1."}
    )
    max_recurrences: int | None = field(
        default=None, metadata={"help": "Most recurrences with a halting criterion. Default: that of the config."}
    )
    input_injection: Literal["gate", "none", "add", "concat"] | None = field(
        default=None,
        metadata={
            "help": "How the input of the loop enters it again before each recurrence after the first. gate: input + "
            "gate * (state - input); none: not at all; add: state + input; concat: a linear layer over both. "
            "Default: gate."
        },
    )
    injection_gate_init: float | None = field(
        default=None,
        metadata={
            "help": "Initial value of the gates. 0: each recurrence repeats the first. 1: plain repetition. "
            "Default: 0."
        },
    )
    state_init: Literal["embedding", "zeros", "normal"] | None = field(
        default=None,
        metadata={
            "help": "The first state: the input of the loop, zeros or noise. Only with the first is one recurrence "
            "exact. Default: embedding."
        },
    )
    state_norm: Literal["none", "layernorm", "rmsnorm"] | None = field(
        default=None, metadata={"help": "Norm of the state between recurrences. Default: none."}
    )
    recurrence_lora_rank: int | None = field(
        default=None,
        metadata={"help": "Rank of low-rank updates of the looped layers for each recurrence but the first."},
    )
    recurrence_lora_count: int | None = field(
        default=None, metadata={"help": "Recurrences with low-rank updates of their own; deeper ones share the last."}
    )


@dataclass
class CheckpointArguments:
    """What some published loops do not say about themselves."""

    num_attention_heads: int | None = field(
        default=None,
        metadata={"help": "Attention heads of a checkpoint (.pt) of the study. Default: 12."},
    )
    vocabulary: str | None = field(
        default=None, metadata={"help": "Folder of the vocab.json of a checkpoint of the study. Default: its own."}
    )


SECTIONS = [
    Section("convert", ConvertArguments, "conversion"),
    Section("layers", LayerArguments, "layers"),
    Section("recurrence", RecurrenceArguments, "loop"),
    Section("checkpoint", CheckpointArguments, "published loops"),
]


def make_parser() -> CommandParser:
    return CommandParser(
        SECTIONS, recipe=None, places=("source", "out"), prog=PROG, description=DESCRIPTION, epilog=EPILOG
    )


def main(argv: list[str] | None = None) -> int:
    """Converts; returns the exit code. Expected errors end the program with code 2, Ctrl-C with 130."""
    with user_errors(PROG, stopped="no half-written folder was left"):
        return _convert(*make_parser().parse_sections(argv))


def _convert(arguments, layers, recurrence, checkpoint):
    layer_flags, fields, checkpoint_flags = _given(layers), _given(recurrence), _given(checkpoint)
    check_places_apart(arguments.source, arguments.out, overwrite=arguments.overwrite)
    if arguments.base is not None:
        return _convert_adapter(arguments, {**layer_flags, **fields, **checkpoint_flags})
    start = time.perf_counter()
    other = find_reader(arguments.source)
    if other is not None:
        if arguments.revision is not None:
            layer_flags["revision"] = arguments.revision
        _refuse(layer_flags, f"is for decoders, but {arguments.source} is {other[1]}, which has its own layers")
        written = convert_other(
            *other,
            arguments.source,
            arguments.out,
            dtype=arguments.dtype,
            overwrite=arguments.overwrite,
            report=progress_reporter(),
            **fields,
            **checkpoint_flags,
        )
    else:
        _refuse(checkpoint_flags, f"is for published loops, but {arguments.source} is not one that is known")
        source = open_source(arguments.source, arguments.revision)
        plan = plan_layers(source.config.num_hidden_layers, **layer_flags)
        print(f"{source.config.num_hidden_layers} layers: {plan.describe()}", flush=True)
        written = convert_folder(
            source,
            arguments.out,
            plan,
            dtype=arguments.dtype,
            overwrite=arguments.overwrite,
            report=progress_reporter(),
            **fields,
        )
    print_written(written, arguments.out, time.perf_counter() - start)
    return 0


def _convert_adapter(arguments, fields):
    unused = {
        **fields,
        "revision": arguments.revision,
        "dtype": None if arguments.dtype == "auto" else arguments.dtype,
    }
    _refuse(
        {name: value for name, value in unused.items() if value is not None},
        f"is for decoders, but base={arguments.base!r} says that SOURCE is an adapter",
    )
    if not is_adapter(arguments.source):
        raise ValueError(
            f"base={arguments.base!r} is for adapters, but source={arguments.source!r} is not the folder of one."
        )
    check_places_apart(arguments.base, arguments.out, overwrite=arguments.overwrite, field="base")
    counts = convert_adapter(arguments.source, arguments.base, arguments.out, overwrite=arguments.overwrite)
    dropped = f"; {counts.left_out} were left out, because their layers were dropped" if counts.left_out else ""
    print(f"{counts.kept} modules with LoRA weights were renamed{dropped}.\nWrote {arguments.out}.")
    return 0


def _given(section):
    return {name: value for name, value in asdict(section).items() if value is not None}


def _refuse(flags, reason):
    for name, value in flags.items():
        raise ValueError(f"{name}={value!r} {reason}. Leave --{name} out.")


if __name__ == "__main__":
    sys.exit(main())
