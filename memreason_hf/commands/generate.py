"""
`memreason generate`: text, and how many recurrences each of its tokens took.

    memreason generate runs/quickstart --prompt "<e_1><r_2><r_0>" --halting_criterion kl_entropy
    memreason generate MODEL --prompts questions.txt --max_new_tokens 100 --html depths.html --json depths.json
"""

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from memreason_hf.analysis.token_depth_page import render_page
from memreason_hf.analysis.token_depth_terminal import DepthStreamer, TerminalView, render_texts, terminal_colors
from memreason_hf.analysis.token_depths import (
    DepthScale,
    GeneratedText,
    PieceReader,
    depth_statistics,
    depths_document,
)
from memreason_hf.command_line.depth_arguments import DepthArguments, depth_settings, describe_depth
from memreason_hf.command_line.errors import INTERRUPTED, user_errors
from memreason_hf.command_line.model_parser import ModelParser
from memreason_hf.command_line.recipe_parser import RecipeSection
from memreason_hf.evaluation import describe_environment, describe_model
from memreason_hf.files import check_places, whole_file
from memreason_hf.models.loading import choose_device, load_model, load_model_config, load_tokenizer


PROG = "memreason generate"
DESCRIPTION = """\
Goes on with prompts and shows how many recurrences each token took. On a terminal every token stands on the colour of
its depth, as it comes if there is one prompt; where there are no colours (or NO_COLOR is set) its number follows it.
In a pipe or a file there is the text alone. --html writes a page to look at, --json everything to compute with.

With a halting criterion each token stops by itself: not before min_recurrences, at the latest at max_recurrences.
Without --halting_criterion the model's own config decides; --num_recurrences asks for a fixed depth. Each flag is
named like the field of the config, and like the argument of model.generate(), that it stands for.

Prompts: --prompt TEXT ..., or --prompts FILE with one a line, or else all that is piped in, as one prompt.
"""
EPILOG = """\
examples:
  memreason generate runs/quickstart --prompt "<e_1><r_2><r_0>" --max_new_tokens 4
  memreason generate MODEL --prompt "Once upon a time" --halting_criterion kl --kl_threshold 0.05 --html depths.html
  memreason generate MODEL --prompts questions.txt --num_recurrences 8 --json depths.json
  memreason generate MODEL --prompt "Once" --do_sample --temperature 0.8 --top_p 0.95 --seed 1
  memreason generate MODEL --prompt "Once" "Twice" --depths color --overwrite --html depths.html

The schema of the JSON file is in memreason_hf/analysis/token_depths.py.
"""


@dataclass
class GenerationInputs:
    """The model, the prompts, and how they are run."""

    model: str | None = field(
        default=None, metadata={"help": "Folder written by training or save_pretrained, or a name on the Hub."}
    )
    prompt: list[str] | None = field(default=None, metadata={"help": "One or more texts to go on with."})
    prompts: str | None = field(
        default=None, metadata={"help": "A file with one prompt a line; lines without text are skipped."}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Folder with the tokenizer, where it is not beside the model."}
    )
    batch_size: int = field(
        default=8, metadata={"help": "Prompts at once. Changes the speed; texts only where they are drawn at random."}
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
class GenerationDepth(DepthArguments):
    """`DepthArguments`, and what else of depth only generation has."""

    cache_recurrences: Literal["all", "last"] | None = field(
        default=None,
        metadata={
            "help": "Which keys and values are kept: of all recurrences, or of the last one only (less memory, an "
            "approximation). Default: the model's."
        },
    )
    draft_recurrences: int | None = field(
        default=None,
        metadata={"help": "Draft tokens with so few recurrences, verify them with the full depth: faster, same text."},
    )


@dataclass
class SamplingArguments:
    """How tokens are chosen, by the names of `GenerationConfig`."""

    max_new_tokens: int = field(default=64, metadata={"help": "The most tokens behind a prompt."})
    do_sample: bool = field(
        default=False, metadata={"help": "Draw tokens at random, in place of the most probable one."}
    )
    temperature: float | None = field(default=None, metadata={"help": "Above 1 draws flatter, below 1 sharper."})
    top_k: int | None = field(default=None, metadata={"help": "Draw from the k most probable tokens; 0: from all."})
    top_p: float | None = field(
        default=None, metadata={"help": "Draw from the most probable tokens that together have this probability."}
    )
    seed: int | None = field(default=None, metadata={"help": "Makes drawn texts repeatable. Default: a new one."})


@dataclass
class GenerationOutput:
    """What is shown and written."""

    depths: Literal["auto", "color", "numbers", "none"] = field(
        default="auto",
        metadata={"help": "How depths are printed; auto: colors or numbers on a terminal, none elsewhere."},
    )
    html: str | None = field(default=None, metadata={"help": "File for a page with every token on its colour."})
    json: str | None = field(default=None, metadata={"help": "File for tokens, ids, depths and settings."})
    overwrite: bool = field(default=False, metadata={"help": "Replace files that are there already."})


INPUTS = RecipeSection("inputs", GenerationInputs, "model and prompts (section inputs of a recipe)")
DEPTH = RecipeSection("halting", GenerationDepth, "depth (section halting of a recipe)")
SAMPLING = RecipeSection("sampling", SamplingArguments, "choice of tokens (section sampling of a recipe)")
OUTPUT = RecipeSection("output", GenerationOutput, "output (section output of a recipe)")


def make_parser() -> ModelParser:
    return ModelParser([INPUTS, DEPTH, SAMPLING, OUTPUT], prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Generates; returns the exit code: 0, or 130 after Ctrl-C. Expected errors end the program with code 2."""
    try:
        with user_errors(PROG):
            return _generate(*make_parser().parse_sections(argv))
    except KeyboardInterrupt:
        print(f"\n{PROG}: stopped; no file was written.", file=sys.stderr)
        return INTERRUPTED


def _generate(inputs, depth, sampling, output):
    _check_files(output)
    _check(inputs, depth, sampling)
    config = load_model_config(inputs.model, inputs.base)
    settings, arguments = depth_settings(config, depth)
    device = choose_device(inputs.device)
    prompts = read_prompts(inputs)
    tokenizer = load_tokenizer(inputs.model, inputs.tokenizer, config)
    rows = encode_prompts(tokenizer, prompts)
    _check_positions(config, rows, sampling.max_new_tokens)
    model = load_model(inputs.model, inputs.dtype, base=inputs.base).to(device)

    settings |= {"cache_recurrences": depth.cache_recurrences or config.cache_recurrences}
    for name in ("cache_recurrences", "draft_recurrences"):
        if getattr(depth, name) is not None:
            arguments[name] = settings[name] = getattr(depth, name)
    chosen, sampled = _sampling(model, sampling)
    settings |= {**sampled, "batch_size": inputs.batch_size}
    if sampled["seed"] is not None:
        torch.manual_seed(sampled["seed"])
    writer = _Writer(model, tokenizer, {**arguments, **chosen})

    view = _view(output.depths)
    start = time.perf_counter()
    # Beams are no text before the last token.
    grows = (model.generation_config.num_beams or 1) == 1
    if len(prompts) == 1 and sys.stdout.isatty() and view.mode != "none" and grows:
        texts = [_stream(writer, prompts[0], rows[0], view, _bounds(settings))]
        seconds = time.perf_counter() - start
    else:
        size = inputs.batch_size
        texts = []
        for first in range(0, len(prompts), size):
            texts += writer.write(prompts[first : first + size], rows[first : first + size])
        seconds = time.perf_counter() - start
        print(render_texts(texts, view, DepthScale.over(texts, prompts=False)), flush=True)

    statistics = depth_statistics(texts)
    print(
        f"{sum(len(text.depths) for text in texts)} tokens in {seconds:.1f} s, {statistics['minimum']} to "
        f"{statistics['maximum']} recurrences (mean {statistics['mean']:.1f}); {describe_depth(settings)}",
        file=sys.stderr,
    )
    name = "/".join(Path(inputs.model).parts[-2:])
    if output.html is not None:
        page = render_page(texts, title=name, description=_describe(settings))
        _write(output.html, page, output.overwrite)
    if output.json is not None:
        described = describe_model(model, inputs.model)
        del described["trained_hops"]
        document = depths_document(texts, described, settings, seconds, describe_environment(device))
        _write(output.json, json.dumps(document, ensure_ascii=False, indent=1) + "\n", output.overwrite)
    return 0


def _check_files(output):
    paths = [Path(path) for path in (output.html, output.json) if path is not None]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"html={output.html!r} and json={output.json!r} are one file: give each its own.")
    check_places(paths, overwrite=output.overwrite)


def _check(inputs, depth, sampling):
    """Refuses values before anything is loaded."""
    for name, values in (("batch_size", inputs), ("max_new_tokens", sampling), ("draft_recurrences", depth)):
        value = getattr(values, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if sampling.temperature is not None and sampling.temperature <= 0:
        raise ValueError(f"temperature={sampling.temperature} must be above 0; leave do_sample out for the limit.")
    if sampling.top_k is not None and sampling.top_k < 0:
        raise ValueError(f"top_k={sampling.top_k} must be at least 0, which draws from all tokens.")
    if sampling.top_p is not None and not 0 < sampling.top_p <= 1:
        raise ValueError(f"top_p={sampling.top_p} must be a probability above 0.")


def read_prompts(inputs: GenerationInputs) -> list[str]:
    """
    The prompts that the flags name, or what is piped in, as one prompt without its last line end.

    Raises:
        ValueError, OSError: none, two sources, a file that is not there or no text.
    """
    if inputs.prompt is not None and inputs.prompts is not None:
        raise ValueError(f"prompt and prompts={inputs.prompts!r} are both given: give one of them.")
    if inputs.prompt is not None:
        for prompt in inputs.prompt:
            if any("\ud800" <= character <= "\udfff" for character in prompt):
                raise ValueError(f"prompt={prompt!r} is no text in UTF-8.")
        return inputs.prompt
    name = inputs.prompts or "the standard input"
    if inputs.prompts is None and (sys.stdin is None or sys.stdin.isatty()):
        raise ValueError("no prompt: give --prompt TEXT, --prompts FILE, or pipe a text in.")
    try:
        if inputs.prompts is None:
            text = sys.stdin.read().removesuffix("\n")
            if not text:
                raise ValueError("no prompt: nothing was piped in; give --prompt TEXT or --prompts FILE.")
            return [text]
        prompts = [line for line in Path(inputs.prompts).read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} holds no text in UTF-8 ({error}).") from None
    if not prompts:
        raise ValueError(f"prompts={inputs.prompts!r} holds no prompt.")
    return prompts


def encode_prompts(tokenizer, prompts: list[str]) -> list[list[int]]:
    """
    The ids of each prompt.

    Raises:
        ValueError: a prompt without tokens, or one that the vocabulary cannot express.
    """
    rows = []
    for prompt in prompts:
        shown = repr(prompt if len(prompt) <= 60 else prompt[:57] + "...")
        try:
            row = tokenizer(prompt)["input_ids"]
        except Exception as error:  # a word outside a vocabulary without an unknown token is a bare Exception
            raise ValueError(f"prompt={shown}: the tokenizer cannot read it ({error}).") from error
        if not row:
            raise ValueError(f"prompt={shown} has no tokens: there is nothing to go on with.")
        rows.append(row)
    return rows


def _check_positions(config, rows, max_new_tokens):
    # The last new token is not read again.
    prompt = max(map(len, rows))
    longest = prompt + max_new_tokens - 1
    if config.position_embedding_type == "learned" and longest > config.max_position_embeddings:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} behind a prompt of {prompt} tokens needs {longest} positions, but the "
            f"model has learned max_position_embeddings={config.max_position_embeddings}: ask for fewer."
        )


def _sampling(model, sampling):
    """The arguments of `generate`, and the settings that they and the model's generation config make."""
    names = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p")
    chosen = {name: getattr(sampling, name) for name in names if getattr(sampling, name) is not None}
    settings = {name: chosen.get(name, getattr(model.generation_config, name)) for name in names}
    if settings["do_sample"]:
        seed = torch.seed() % 2**32 if sampling.seed is None else sampling.seed
        return chosen, {**settings, "seed": seed}
    idle = [name for name in ("temperature", "top_k", "top_p", "seed") if getattr(sampling, name) is not None]
    if idle:
        raise ValueError(f"{idle[0]}={getattr(sampling, idle[0])} changes nothing without --do_sample: add that flag.")
    return chosen, {**settings, "temperature": None, "top_k": None, "top_p": None, "seed": None}


class _Writer:
    """A model with its tokenizer, and what `generate` is asked for."""

    def __init__(self, model, tokenizer, arguments):
        self.model, self.tokenizer, self.arguments = model, tokenizer, arguments
        ends = model.generation_config.eos_token_id
        # Models trained without a generation config end where their tokenizer does.
        ends = tokenizer.eos_token_id if ends is None else ends
        self.ends = set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
        known = (model.generation_config.pad_token_id, tokenizer.pad_token_id, *sorted(self.ends), 0)
        # Behind the attention mask any id will do.
        self.pad = next(token_id for token_id in known if token_id is not None)
        self.hidden = {tokenizer.bos_token_id, tokenizer.pad_token_id, *self.ends} - {None}

    def reader(self) -> PieceReader:
        return PieceReader(self.tokenizer, self.hidden)

    def write(self, prompts, rows, streamer=None) -> list[GeneratedText]:
        """Goes on with the prompts, whose ids are `rows`, in one batch."""
        width = max(map(len, rows))
        ids = torch.tensor([[self.pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        output = self.model.generate(
            ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            pad_token_id=self.pad,
            eos_token_id=sorted(self.ends) or None,
            return_dict_in_generate=True,
            # Whatever the model's generation config says: the texts are matched with their prompts.
            num_return_sequences=1,
            streamer=streamer,
            **self.arguments,
        )
        sequences = output.sequences[:, width:].tolist()
        depths, prompt_depths = output.num_recurrences.tolist(), output.prompt_recurrences.tolist()
        return [self._text(*row, width) for row in zip(prompts, rows, prompt_depths, sequences, depths)]

    def _text(self, prompt, row, prompt_depths, new, depths, width):
        end = next((place for place, token_id in enumerate(new) if token_id in self.ends), None)
        new = new if end is None else new[: end + 1]
        reader = self.reader()
        prompt_pieces = reader.read(row, prompt_depths[width - len(row) :])
        return GeneratedText(prompt, prompt_pieces, reader.read(new, depths), "length" if end is None else "eos")


def _stream(writer, prompt, row, view, scale):
    """Writes the continuation of one prompt as it comes."""
    reader = writer.reader()
    reader.read(row, [1] * len(row))

    def write(piece):
        print(view.piece(piece, scale), end="", flush=True)

    print(view.prompt(prompt), end="", flush=True)
    (text,) = writer.write([prompt], [row], DepthStreamer(reader.add, write))
    for piece in reader.finish():
        write(piece)
    print(f"\n\n{view.legend(scale)}", flush=True)
    return text


def _bounds(settings):
    """The scale of depths that are still to come."""
    if settings["num_recurrences"] is not None:
        return DepthScale(settings["num_recurrences"], settings["num_recurrences"])
    return DepthScale(settings["min_recurrences"], settings["max_recurrences"])


def _view(depths):
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    unicode = encoding.startswith("utf")
    if not unicode and hasattr(sys.stdout, "reconfigure"):
        # A text that the terminal cannot show is no reason to lose the rest.
        sys.stdout.reconfigure(errors="replace")
    colors = terminal_colors(sys.stdout, os.environ)
    if depths == "auto":
        depths = ("color" if colors else "numbers") if sys.stdout.isatty() else "none"
    return TerminalView(depths, colors or 256, unicode)


def _describe(settings):
    parts = [describe_depth(settings)]
    if settings["num_recurrences"] is None:
        parts.append(f"by {settings['halting_granularity']}")
    if settings["do_sample"]:
        names = ("temperature", "top_k", "top_p", "seed")
        parts.append("sampled, " + ", ".join(f"{n} {settings[n]}" for n in names if settings[n] is not None))
    else:
        parts.append("greedy")
    return "; ".join(parts)


def _write(path, text, overwrite):
    with whole_file(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"Wrote {path}.", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
