"""The runs of `memreason evaluate-steps`: each one model with one style, checked before weights are read."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datasets import DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memreason_hf.adapters.base_files import block_digests, weight_files
from memreason_hf.adapters.folders import adapter_folder
from memreason_hf.command_line.depth_arguments import (
    check_has_recurrences,
    depth_settings,
    given_depth,
    schedule_by_kind,
)
from memreason_hf.command_line.model_flags import ModelFlags
from memreason_hf.data.questions.options import TRUE_FALSE
from memreason_hf.data.questions.prompt_arguments import PromptArguments
from memreason_hf.data.questions.prompt_texts import (
    INSTRUCTION,
    default_instruction,
    steps_instruction,
    template_places,
)
from memreason_hf.data.questions.prompts import STYLES, Prompter, PromptFormat, read_prompt_format
from memreason_hf.evaluation.solutions.generation_sampling import Sampling
from memreason_hf.messages import visible
from memreason_hf.steps import StepScheme
from memreason_hf.steps.depth import read_depths
from memreason_hf.steps.tokenization import SCHEME_KEY, extend_tokenizer


_NOT_IN_NAMES = re.compile(r"[^\w.=+-]+")
_DEFAULT_TEMPERATURE = 0.7


@dataclass
class StyleArguments:
    """Ways to ask, also for models that were not trained on steps."""

    style: list[str] | None = field(
        default=None,
        metadata={
            "help": "steps: in the scheme of the model, or of --marks. For models that were not trained on steps: "
            "chain_of_thought, or direct (the answer alone). Several are compared. Default: steps."
        },
    )
    marks: Literal["words", "tokens", "none"] | None = field(
        default=None,
        metadata={
            "help": "How steps are marked by a model that was not trained on steps: words (Memory: ...), tokens (with "
            "the embeddings of these words), or none."
        },
    )
    kinds: str | None = field(
        default=None,
        metadata={
            "help": "The kinds of steps that --marks words or tokens marks, separated by commas: search,compute. "
            "Default: memory,reason."
        },
    )
    kind_words: str | None = field(
        default=None,
        metadata={
            "help": "The words by which --marks words or tokens shows these kinds: search=look up,compute=calculate. "
            "Default: the names of the kinds."
        },
    )
    compare: list[str] | None = field(
        default=None,
        metadata={"help": "More models to evaluate on the same questions, each a folder or name, or TITLE=MODEL."},
    )
    show_prompt: bool = field(default=False, metadata={"help": "Print the prompt of the first question."})

    def __post_init__(self):
        self.style = ["steps"] if self.style is None else list(self.style)
        for style in self.style:
            if style not in STYLES:
                raise ValueError(f"style={style!r} must be one of {', '.join(STYLES)}.")
        if not self.style or len(set(self.style)) < len(self.style):
            raise ValueError(f"style={' '.join(self.style)!r} must name each style once.")
        if self.marks is not None and "steps" not in self.style:
            raise ValueError(f"marks={self.marks!r} marks the steps of --style steps, which is not given.")
        for name in ("kinds", "kind_words"):
            if getattr(self, name) is not None and self.marks not in ("words", "tokens"):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} are those of --marks words or tokens, which are not given. A "
                    f"model that was trained on steps has the {name} of its own scheme."
                )

    def models(self, first: ModelFlags) -> list[tuple[str, ModelFlags]]:
        """
        The title and the flags of every model.

        Raises:
            ValueError: two models have the same title.
        """
        models = [(first.short_name, first)]
        for entry in self.compare or []:
            title, found, path = entry.partition("=")
            # A folder may have such a name itself.
            is_titled = bool(found) and not Path(entry).exists()
            flags = dataclasses.replace(
                first, model=path if is_titled else entry, revision=None, tokenizer=None, base=None
            )
            models.append((title if is_titled else flags.short_name, flags))
        titles = [title for title, _ in models]
        for title in titles:
            if titles.count(title) > 1:
                raise ValueError(f"compare: two models are called {title!r}. Give titles: --compare TITLE=MODEL.")
        return models


@dataclass
class DrawingArguments:
    """Several solutions of each question, drawn at random."""

    num_samples: int = field(
        default=1,
        metadata={
            "help": "Solutions of each question. Above 1 they are drawn at random, and the accuracy of one, the "
            "majority of their answers (self-consistency) and pass@k are reported."
        },
    )
    temperature: float | None = field(
        default=None,
        metadata={"help": f"Divides the logits before a draw. Default: {_DEFAULT_TEMPERATURE} for several samples."},
    )
    top_k: int | None = field(default=None, metadata={"help": "Draw from the k most probable tokens only."})
    top_p: float | None = field(
        default=None, metadata={"help": "Draw from the most probable tokens whose probabilities add up to this."}
    )

    def sampling(self, seed: int) -> Sampling | None:
        """
        How solutions are drawn; None for greedy ones.

        Raises:
            ValueError: a value is out of range, or has no effect.
        """
        if self.num_samples == 1 and self.temperature is None:
            for name in ("top_k", "top_p"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name}={getattr(self, name)} has no effect on greedy solutions. Pass --num_samples above 1 "
                        "or --temperature."
                    )
            return None
        temperature = _DEFAULT_TEMPERATURE if self.temperature is None else self.temperature
        return Sampling(self.num_samples, temperature, self.top_k, self.top_p, seed)


@dataclass
class SolutionRun:
    """
    One model with one style.

    Attributes:
        title: names the run in tables.
        flags: of the model.
        prompter: makes its prompts.
        generate_arguments: of depth.
        is_untrained: whether the model was not trained on the steps that it is asked for.
        settings: what the texts depend on in addition to the questions, without the weights.
        new_scheme: a scheme with tokens that the model has no rows for yet.
    """

    title: str
    flags: ModelFlags
    prompter: Prompter
    generate_arguments: dict
    is_untrained: bool
    settings: dict
    new_scheme: StepScheme | None = None

    @property
    def file_name(self) -> str:
        """A name for the run's file, without its suffix."""
        return _NOT_IN_NAMES.sub("_", self.title).strip("_.") or "model"

    def shown_prompt(self, question: str) -> str:
        """The prompt of a question, for a terminal."""
        return visible(self.prompter.text(question))

    def load(self) -> PreTrainedModel:
        """The model on its device. An adapter is not merged into its base, which would round it."""
        network = self.flags.load_model(self.flags.choose_device(), merge=False)
        if self.new_scheme is not None:
            extend_tokenizer(self.prompter.tokenizer, self.new_scheme, network)
        return network

    def all_settings(self) -> dict:
        """`settings` with the weights: the folder may hold others than before, of a run that went on."""
        place = self.flags.model, self.flags.revision
        if not (files := weight_files(*place)) and (folder := adapter_folder(*place, "model")) is not None:
            files = {path.name: path for path in folder.glob("adapter_model.*")}
        weights = {name: digest["blocks"] for name, digest in block_digests(files).items()}
        return {**self.settings, "weights": weights}


def prepare_runs(
    model: ModelFlags,
    styles: StyleArguments,
    prompts: PromptArguments,
    dataset: DatasetDict,
    rows: Sequence[Mapping],
    *,
    num_demonstrations: int | None,
    seed: int,
    depth: object,
    by_kind: object,
) -> list[SolutionRun]:
    """
    Every model with every style, in order, with their tokenizers and prompts.

    Args:
        model: flags of the first model.
        dataset: gives demonstrations, from its training split.
        rows: the questions to solve.
        num_demonstrations: as given; None for what a model was trained with.
        seed: of the choice of demonstrations.
        depth, by_kind: the flags of depth.

    Raises:
        ValueError, OSError: a model, its tokenizer or its prompts are impossible.
    """
    runs = []
    models = styles.models(model)
    for title, flags in models:
        for style in styles.style:
            parts = [title] if len(models) > 1 or len(styles.style) == 1 else []
            parts += [style] if len(styles.style) > 1 else []
            tokenizer, arguments, new_scheme = _tokenizer(flags, style, styles, depth, by_kind)
            is_untrained = new_scheme is not None or style != "steps"
            format = _format(tokenizer, prompts, style, new_scheme, rows, num_demonstrations, seed)
            demonstrations = prompts.choose(format, dataset.get("train"), ", ".join(dataset))
            prompter = Prompter(tokenizer, format, demonstrations)
            _check_kinds(prompter.scheme, flags, rows)
            # A template or a chat template that loses a question is found before weights are read.
            for row in rows:
                prompter.prompt_ids(row["question"])
            runs.append(
                SolutionRun(
                    title=", ".join(parts),
                    flags=flags,
                    prompter=prompter,
                    generate_arguments=arguments,
                    is_untrained=is_untrained,
                    settings=_settings(flags, prompter, demonstrations, depth, by_kind),
                    new_scheme=new_scheme if new_scheme is not None and new_scheme.tokens else None,
                )
            )
    names = [run.file_name for run in runs]
    for run in runs:
        if names.count(run.file_name) > 1:
            raise ValueError(f"compare: two runs would write {run.file_name}.jsonl. Give other titles: TITLE=MODEL.")
    return runs


def _check_kinds(scheme: StepScheme, flags: ModelFlags, rows: Sequence[Mapping]) -> None:
    """Refuses data whose steps have kinds that a scheme cannot show, before anything is generated."""
    kinds = dict.fromkeys(step["kind"] for row in rows for step in row.get("steps") or ())
    unknown = [kind for kind in kinds if kind not in scheme.all_kinds]
    if unknown and (scheme.has_kinds or scheme.ordered):
        raise ValueError(
            f"The reference steps of the data are of the kinds {', '.join(kinds)}, but the scheme of model="
            f"{flags.model!r} has {', '.join(scheme.kinds)}. Pass data with these kinds or without steps, or for a "
            f"model that was not trained on steps --kinds {','.join(unknown)}."
        )


def _tokenizer(flags, style, styles, depth, by_kind):
    """The tokenizer of a model, the arguments of depth for `generate`, and a scheme that the model has not learned."""
    if flags.tokenizer is not None and adapter_folder(flags.model, flags.revision, "model") is not None:
        raise ValueError(
            f"tokenizer={flags.tokenizer!r}: model={flags.model!r} is an adapter, which is saved with its tokenizer. "
            "Leave --tokenizer out."
        )
    config = flags.load_config()
    given = given_depth(depth, by_kind)
    check_has_recurrences(config, flags.model, given)
    flags.choose_device()
    tokenizer = flags.load_tokenizer(config)
    new_scheme = _new_scheme(tokenizer, flags, style, styles)
    arguments = {}
    if by_kind.depth_by_kind is not None:
        arguments = schedule_by_kind(config, depth, by_kind.depth_by_kind, tokenizer)
    elif given:
        arguments = depth_settings(config, depth)[1]
    return tokenizer, arguments, new_scheme


def _new_scheme(tokenizer: PreTrainedTokenizerBase, flags, style, styles) -> StepScheme | None:
    """The scheme of `--marks`, recorded in the tokenizer; None where the model has its own, or needs none."""
    marks = styles.marks
    is_extended = tokenizer.init_kwargs.get(SCHEME_KEY) is not None
    if style != "steps" or (is_extended and marks is None):
        return None
    if is_extended:
        raise ValueError(
            f"marks={marks!r}: model={flags.model!r} was saved with a scheme of its own. Leave --marks out."
        )
    if marks is None:
        raise ValueError(
            f"model={flags.model!r}: its tokenizer has no scheme of steps. For a model that was not trained on steps, "
            "pass --style direct or --style chain_of_thought, or --marks words."
        )
    given = {"kinds": styles.kinds, "kind_words": styles.kind_words}
    kinds = {name: value for name, value in given.items() if value is not None}
    counts = {"num_prefix_tokens": 1, "num_step_tokens": 1} if marks == "tokens" else {}
    scheme = StepScheme(marks=marks, **counts, **kinds)
    extend_tokenizer(tokenizer, scheme)
    return scheme


def _format(tokenizer, prompts, style, new_scheme, rows, num_demonstrations, seed) -> PromptFormat:
    """The recorded format of a model, with what the flags and the style change."""
    recorded = read_prompt_format(tokenizer)
    values = {"style": style}
    given = prompts.changed(recorded, num_demonstrations=num_demonstrations, **values)
    chooses = num_demonstrations is not None or prompts.demonstrations is not None
    if chooses and given.num_demonstrations and given.demonstrations == "random":
        values["demonstrations_seed"] = seed
    if chooses:
        values["num_pool_items"] = None
    has_place = given.template is None or INSTRUCTION in template_places(given.template)
    if given.instruction is None and has_place:
        types = _answer_types(rows)
        if new_scheme is not None:
            values["instruction"] = steps_instruction(new_scheme, types)
        elif style != "steps":
            values["instruction"] = default_instruction(style, types)
    return prompts.changed(recorded, num_demonstrations=num_demonstrations, **values)


def _answer_types(rows) -> list[str]:
    """The types of the answers of some questions."""
    types = {}
    for row in rows:
        labels = {option["label"] for option in row["options"]}
        usual = "number" if not labels else "true_false" if labels == set(TRUE_FALSE) else "letters"
        types[row.get("answer_type") or usual] = None
    return list(types)


def _settings(flags, prompter, demonstrations, depth, by_kind):
    given = given_depth(depth, by_kind)
    if "depth_by_kind" in given:
        given["depth_by_kind"] = read_depths(given["depth_by_kind"])
    values = {**{name: place_name(getattr(flags, name)) for name in ("model", "tokenizer")}, "dtype": flags.dtype}
    format = prompter.format.to_dict()
    values["num_demonstrations"] = format.pop("num_demonstrations", 0)
    if values["num_demonstrations"]:
        values["seed"] = format.pop("demonstrations_seed", 0)
        values["demonstrations_digest"] = _digest(demonstrations)
    # A file of the prompt of the study has no entry.
    if format:
        values["prompt"] = format
    if flags.base is not None:
        values["base"] = place_name(flags.base)
    return {**values, "scheme": prompter.scheme.to_dict(), **given}


def _digest(demonstrations):
    """Changes with the solved questions that demonstrations are chosen from, which a prompt shows."""
    pool = [[question, [[step.kind, step.text] for step in steps]] for question, steps in demonstrations.pool]
    return hashlib.sha256(json.dumps(pool).encode()).hexdigest()


def place_name(place: str | None) -> str | None:
    """The name of a folder without those above it, which change with the current folder and say who works there."""
    return place if place is None or not Path(place).exists() else Path(place).resolve().name
