"""Flags and recipe keys of prompts: changes to the format of a model's prompts, and its demonstrations."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datasets import Dataset

from memreason_hf.checks import check_row, check_type
from memreason_hf.data.questions.demonstrations import (
    Demonstrations,
    GivenDemonstrations,
    SimilarDemonstrations,
    sentence_embedder,
)
from memreason_hf.data.questions.prompt_texts import read_template
from memreason_hf.data.questions.prompts import SELECTIONS, Demonstrated, PromptFormat
from memreason_hf.files import parse_json, portable_path, read_text
from memreason_hf.steps import NO_KIND


NO_TEMPLATE = "none"


@dataclass
class PromptArguments:
    """
    How questions are put to the model. What is not given stays as the model was trained, or as in the study.

    Args:
        chat_template (`bool`, *optional*): Use the chat template of the tokenizer.
        system (`str`, *optional*): The system text of the chat. An empty text is none.
        instruction (`str`, *optional*): A text before the first question, or at `{instruction}` of a template. An
            empty text is none.
        template (`str`, *optional*): `"alpaca"`, a text file with `{question}`, or `"none"`.
        enable_thinking (`bool`, *optional*): For chat templates that know it, such as that of Qwen3.
        demonstrations (`str`, *optional*): How demonstrations are chosen, one of `SELECTIONS`.
        demonstrations_file (`str`, *optional*): A file with the demonstrations, for `"given"`.
        embedding_model (`str`, *optional*): A model for sentence-transformers, for `"embedding"`.

    Raises:
        ValueError: two values contradict each other.
    """

    chat_template: bool | None = field(
        default=None, metadata={"help": "Put questions into the chat template of the tokenizer, as the user's turn."}
    )
    system: str | None = field(default=None, metadata={"help": "System text of the chat. An empty text is none."})
    instruction: str | None = field(
        default=None,
        metadata={"help": "Text before the first question, or at {instruction} of a template. Empty: none."},
    )
    template: str | None = field(
        default=None,
        metadata={"help": "alpaca, or a text file with {question} and perhaps {instruction}; none for no template."},
    )
    enable_thinking: bool | None = field(
        default=None, metadata={"help": "Argument of chat templates that know it, such as that of Qwen3."}
    )
    demonstrations: Literal[SELECTIONS] | None = field(
        default=None,
        metadata={
            "help": "How demonstrations are chosen from the training questions: random, the most similar ones by bm25 "
            "or by embedding, or given (--demonstrations_file). Default: random."
        },
    )
    demonstrations_file: str | None = field(
        default=None,
        metadata={"help": "Solved questions to show, as JSON lines with question, answer and steps of kind and text."},
    )
    embedding_model: str | None = field(
        default=None, metadata={"help": "Model for sentence-transformers, which compares questions for embedding."}
    )

    def __post_init__(self):
        if self.demonstrations_file is not None and self.demonstrations not in (None, "given"):
            raise ValueError(
                f"demonstrations_file={self.demonstrations_file!r} gives the demonstrations, but demonstrations="
                f"{self.demonstrations!r}. Leave one of them out."
            )
        if self.demonstrations == "given" and self.demonstrations_file is None:
            raise ValueError("demonstrations='given' needs demonstrations_file, a file of solved questions.")
        if self.embedding_model is not None and self.demonstrations not in (None, "embedding"):
            raise ValueError(
                f"embedding_model={self.embedding_model!r} is for demonstrations='embedding', but it is "
                f"{self.demonstrations!r}. Leave one of them out."
            )

    def changed(self, format: PromptFormat, *, num_demonstrations: int | None = None, **values) -> PromptFormat:
        """
        A format with what is given changed.

        Args:
            format: of the model.
            num_demonstrations: as given. Default: as in the format; all rows of `demonstrations_file`.
            values: further fields of the format, which the arguments override.

        Raises:
            ValueError: the result is impossible.
            OSError: a file does not exist.
        """
        if self.chat_template is False:
            values |= {"chat_template": False, "system": None, "enable_thinking": None}
        for name in ("chat_template", "system", "enable_thinking", "instruction"):
            if getattr(self, name) is not None:
                values[name] = getattr(self, name)
        if values.get("system") == "":
            values["system"] = None
        if values.get("style", format.style) == "steps" and not values.get("instruction", "given"):
            values["instruction"] = None
        if self.template is not None:
            instruction = values.get("instruction", format.instruction)
            values["template"] = None if self.template == NO_TEMPLATE else read_template(self.template, instruction)
        if self.demonstrations_file is not None:
            values["demonstrations"] = "given"
            if num_demonstrations is None:
                num_demonstrations = len(read_demonstrations(self.demonstrations_file))
        elif self.embedding_model is not None:
            values |= {"demonstrations": "embedding", "embedding_model": portable_path(self.embedding_model)}
        elif self.demonstrations is not None:
            values["demonstrations"] = self.demonstrations
        if num_demonstrations is not None:
            values["num_demonstrations"] = num_demonstrations
        changed = dataclasses.replace(format, **values)
        if not changed.num_demonstrations:
            for name in ("demonstrations", "demonstrations_file", "embedding_model"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} has no effect without demonstrations. Set num_demonstrations."
                    )
            return dataclasses.replace(changed, demonstrations="random", embedding_model=None, **_NO_CHOICE)
        return changed

    def choose(
        self, format: PromptFormat, train: Dataset | None, splits: str = ""
    ) -> Callable[[str], Demonstrated] | None:
        """
        What gives the demonstrations of a format; None for a format without them.

        Args:
            format: from `changed`.
            train: the training questions; None if the data have none.
            splits: the splits of the data, for a message.

        Raises:
            ValueError: the demonstrations cannot be made.
            ImportError: a library for them is not installed.
            OSError: a file does not exist.
        """
        count = format.num_demonstrations
        if not count:
            return None
        if format.demonstrations == "given":
            if self.demonstrations_file is None:
                raise ValueError(
                    f"The model was trained with {count} given demonstrations, which are not saved with it. Pass "
                    "--demonstrations_file, or --num_demonstrations 0."
                )
            return GivenDemonstrations(read_demonstrations(self.demonstrations_file), count)
        if train is None:
            raise ValueError(
                f"num_demonstrations={count}: demonstrations come from the split 'train', which the data do not have. "
                f"Its splits are {splits}. Pass --demonstrations_file, or --num_demonstrations 0."
            )
        if format.num_pool_items is not None:
            train = train.select(range(min(format.num_pool_items, len(train))))
        if format.demonstrations == "random":
            return Demonstrations(train, count, seed=format.demonstrations_seed)
        if format.demonstrations == "bm25":
            return SimilarDemonstrations(train, count)
        embed = sentence_embedder(self.embedding_model or format.embedding_model)
        return SimilarDemonstrations(train, count, embed=embed)


_NO_CHOICE = {"demonstrations_seed": 0, "num_pool_items": None}


def read_demonstrations(path: str) -> list[dict]:
    """
    Solved questions from a file: a JSON list, or JSON lines, of objects with `question`, `answer` and `steps`. A step
    is an object with `kind` and `text`, or a text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row is damaged; names its number.
    """
    check_type("demonstrations_file", path, str, "the path of a file")
    if not Path(path).is_file():
        raise FileNotFoundError(f"demonstrations_file={path!r}: no such file. Pass a file of solved questions.")
    try:
        text = read_text(path)
        # A text may hold other line breaks, such as U+2028.
        lines = [line for line in text.split("\n") if line.strip()]
        rows = parse_json(text) if text.lstrip()[:1] == "[" else [parse_json(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"demonstrations_file={path!r} must hold JSON lines or a JSON list ({error}).") from None
    if not rows:
        raise ValueError(f"demonstrations_file={path!r} holds no rows.")
    return [_solved_row(row, f"{path}, row {number}") for number, row in enumerate(rows, start=1)]


def _solved_row(row, where):
    try:
        check_row("row", row, ("question", "answer", "steps"))
        for name in ("question", "answer"):
            check_type(name, row[name], str, "a text")
        check_type("steps", row["steps"], list, "a list of steps")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
    steps = [{"kind": NO_KIND, "text": step} if isinstance(step, str) else step for step in row["steps"]]
    for step in steps:
        if not isinstance(step, Mapping) or not isinstance(step.get("text"), str) or "kind" not in step:
            raise ValueError(f"{where}: the step {step!r} must be a text, or an object with kind and text.")
    return {**row, "steps": steps}
