"""
`memreason generate`: text, and how many recurrences each of its tokens took.

    memreason generate runs/quickstart --prompt "<e_1><r_2><r_0>" --halting_criterion kl_entropy
    memreason generate MODEL --prompts questions.txt --max_new_tokens 100 --html depths.html --json depths.json
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from memreason_hf.analysis.text_generation import TextGenerator, check_positions, encode_prompts
from memreason_hf.analysis.token_depth_page import render_page
from memreason_hf.analysis.token_depth_terminal import TerminalView
from memreason_hf.analysis.token_depths import DepthScale, depth_statistics, depths_document
from memreason_hf.command_line.depth_arguments import DEPTH, depth_settings, describe_depth, given_depth
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.model_flags import model_section
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.command_line.prompts import PromptArguments, read_prompts
from memreason_hf.command_line.sampling_arguments import SamplingArguments, describe_sampling, sampling_settings
from memreason_hf.evaluation import describe_environment, describe_model, write_results
from memreason_hf.file_sets import reserved, writing_together
from memreason_hf.files import check_places, whole_file


PROG = "memreason generate"
DESCRIPTION = """\
Continues prompts and shows how many recurrences each token took. On a terminal, the background of a token has the
colour of its depth; a single prompt is continued token by token. Without colours (or if NO_COLOR is set), the number
follows the token. A pipe or a file receives the text alone. --html writes a web page, --json a data file.

With a halting criterion each token halts on its own, from min_recurrences on, and at max_recurrences at the latest.
Without --halting_criterion, the model's config decides; --num_recurrences fixes the depth. Each flag has the name of
the field of the config, and of the argument of model.generate(), that it sets.

Prompts come from --prompt TEXT ..., or from --prompts FILE with one prompt per line. Otherwise all of standard input
is one prompt.
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
class CacheArguments:
    """Depth settings of generation alone."""

    cache_recurrences: Literal["all", "last"] | None = field(
        default=None,
        metadata={
            "help": "Recurrences whose keys and values are cached: all, or only the last one, which takes less memory "
            "and approximates the model."
        },
    )
    draft_recurrences: int | None = field(
        default=None,
        metadata={
            "help": "Recurrences of a draft, which is verified at full depth: faster, with the same text. Needs a "
            "fixed num_recurrences. Default: no drafts."
        },
    )


@dataclass
class GenerationOutput:
    """What is shown and written."""

    depths: Literal["auto", "color", "numbers", "none"] = field(
        default="auto",
        metadata={
            "help": "How depths are printed. auto: as colours on a terminal that has them, as numbers on another "
            "terminal, not at all elsewhere."
        },
    )
    html: str | None = field(default=None, metadata={"help": "File for a page with every token on its colour."})
    json: str | None = field(default=None, metadata={"help": "File for tokens, ids, depths and settings."})
    overwrite: bool = field(default=False, metadata={"help": "Replace files that exist."})

    def check(self) -> None:
        """
        Refuses files that cannot be written, before anything is loaded.

        Raises:
            ValueError, OSError: both files are the same, or one exists and `overwrite` is false.
        """
        paths = self.paths()
        if len({path.resolve() for path in paths}) < len(paths):
            raise ValueError(f"html={self.html!r} and json={self.json!r} are the same file. Pass two different files.")
        check_places(paths, overwrite=self.overwrite)

    def paths(self) -> list[Path]:
        """The files that are written."""
        return [Path(path) for path in (self.html, self.json) if path is not None]


SECTIONS = [
    model_section(batch_size=8, left_out=("no_progress",)),
    Section("prompts", PromptArguments, "prompts", key="inputs"),
    DEPTH,
    Section("cache", CacheArguments, "depth of keys, values and drafts", key="halting"),
    Section("sampling", SamplingArguments, "choice of tokens"),
    Section("output", GenerationOutput, "output"),
]


def make_parser() -> CommandParser:
    return CommandParser(SECTIONS, model=True, prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Generates; returns the exit code. Expected errors end the program with code 2, Ctrl-C with 130."""
    with user_errors(PROG):
        sections = make_parser().parse_sections(argv)
        output = sections[-1]
        output.check()
        with reserved(output.paths(), overwrite=output.overwrite):
            return _generate(*sections)


def _generate(model, prompt_arguments, depth, cache, sampling, output):
    for flags in (model, sampling):
        flags.check()
    if cache.draft_recurrences is not None and cache.draft_recurrences < 1:
        raise ValueError(f"draft_recurrences={cache.draft_recurrences} must be at least 1.")
    config = model.load_recurrent_config()
    settings, arguments = depth_settings(config, depth)
    device = model.choose_device()
    prompts = read_prompts(prompt_arguments)
    tokenizer = model.load_tokenizer(config)
    rows = encode_prompts(tokenizer, prompts)
    check_positions(config, rows, sampling.max_new_tokens)
    network = model.load_model(device)

    settings |= {"cache_recurrences": config.cache_recurrences, **given_depth(cache)}
    chosen, sampled = sampling_settings(network.generation_config, sampling)
    settings |= {**sampled, "batch_size": model.batch_size}
    if sampled["seed"] is not None:
        torch.manual_seed(sampled["seed"])
    generator = TextGenerator(network, tokenizer, **arguments, **given_depth(cache), **chosen)

    start = time.perf_counter()
    texts = _show(generator, prompts, rows, TerminalView.open(sys.stdout, output.depths), settings)
    seconds = time.perf_counter() - start
    _print_summary(texts, settings, seconds)
    _write_files(output, texts, network, model, settings, seconds, device)
    return 0


def _write_files(output, texts, network, model, settings, seconds, device):
    with writing_together(output.paths(), overwrite=output.overwrite):
        if output.html is not None:
            page = render_page(texts, title=model.short_name, description=_describe(settings))
            with whole_file(output.html, overwrite=output.overwrite) as temporary:
                temporary.write_text(page, encoding="utf-8")
            print(f"Wrote {output.html}.", file=sys.stderr)
        if output.json is not None:
            described = describe_model(network, model.model)
            del described["trained_hops"]
            document = depths_document(texts, described, settings, seconds, describe_environment(device))
            write_results(output.json, document, overwrite=output.overwrite)
            print(f"Wrote {output.json}.", file=sys.stderr)


def _show(generator, prompts, rows, view, settings):
    """Generates and prints the texts: a single one token by token where depths are shown, others in batches."""
    if len(prompts) == 1 and sys.stdout.isatty() and view.mode != "none" and generator.streams:
        scale = _scale(settings)
        view.show_prompt(prompts[0])
        text = generator.stream(prompts[0], rows[0], lambda piece: view.show_piece(piece, scale))
        view.end_stream(scale)
        return [text]
    size = settings["batch_size"]
    texts = []
    for first in range(0, len(prompts), size):
        texts += generator.generate(prompts[first : first + size], rows[first : first + size])
    view.show_all(texts)
    return texts


def _scale(settings):
    """The depths that tokens can take, before there are any."""
    if settings["num_recurrences"] is not None:
        return DepthScale(settings["num_recurrences"], settings["num_recurrences"])
    return DepthScale(settings["min_recurrences"], settings["max_recurrences"])


def _print_summary(texts, settings, seconds):
    statistics = depth_statistics(texts)
    print(
        f"{sum(len(text.depths) for text in texts)} tokens in {seconds:.1f} s, {statistics['minimum']} to "
        f"{statistics['maximum']} recurrences (mean {statistics['mean']:.1f}); {describe_depth(settings)}",
        file=sys.stderr,
    )


def _describe(settings):
    parts = [describe_depth(settings)]
    if settings["num_recurrences"] is None:
        parts.append(f"by {settings['halting_granularity']}")
    return "; ".join([*parts, describe_sampling(settings)])


if __name__ == "__main__":
    sys.exit(main())
