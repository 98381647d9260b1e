"""Annotated questions as training rows: the prompt, as at test time, then the solution, which alone has labels."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from memreason_hf.checks import check_int, check_row, check_sequence, check_type
from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.data.padding import pad_rows
from memreason_hf.data.questions.memory_reason import reference_solution
from memreason_hf.data.questions.prompts import Prompter, PromptFormat
from memreason_hf.messages import first_few
from memreason_hf.steps.tokenization import encode_solution, padding_id, read_scheme


TOO_LONG = ("refuse", "drop")


@dataclass
class EncodingReport:
    """
    The items of a split, and the rows made of them.

    Attributes:
        num_items: number of items.
        num_rows: number of rows.
        longest: tokens of the longest row.
        max_length: the maximum number of tokens that a row may have; None for no limit.
        too_long: positions of the items with more tokens; they are not among the rows.
        prompt: what the prompts consist of; empty for the question alone.
    """

    num_items: int = 0
    num_rows: int = 0
    longest: int = 0
    max_length: int | None = None
    too_long: list[int] = field(default_factory=list)
    prompt: str = ""

    def describe(self) -> str:
        """One line for a terminal."""
        line = f"{self.num_rows:,} of {self.num_items:,} training items, at most {self.longest:,} tokens"
        if self.too_long:
            line += f"; {len(self.too_long):,} dropped, longer than {self.max_length:,} with their solution"
        return f"{line}. Prompt: {self.prompt}." if self.prompt else f"{line}."


def encode_solutions(
    tokenizer: PreTrainedTokenizerBase,
    items: Iterable[Mapping],
    *,
    max_length: int | None = None,
    too_long: str = "refuse",
    demonstrations: Callable[[str], Sequence[tuple[str, Sequence]]] | None = None,
    prompter: Prompter | None = None,
) -> tuple[Dataset, EncodingReport]:
    """
    Encodes questions and their solutions.

    A row consists of the prompt, which the model sees at test time, the rest of the solution, and the end of text or
    of the assistant's turn. Everything after the prompt has labels.

    Args:
        tokenizer: an extended tokenizer.
        items: rows with `question`, `answer` and `steps`, as from `load_memory_reason`.
        max_length: the maximum number of tokens of a row; None for no limit.
        too_long: what to do with longer items: `"refuse"` (an error) or `"drop"`. Answers are never cut off.
        demonstrations: solved questions to put before a question, for example `Demonstrations(train, 4)`.
        prompter: makes the prompts. Default: one of the tokenizer's recorded format and `demonstrations`.

    Returns:
        A data set with the columns `input_ids` and `label_ids` (the next token, or -100 in the prompt) of equal
        length, and a report.

    Raises:
        ValueError: the tokenizer has no scheme or no end token, a step cannot be written in the scheme, items are too
            long, or no item is left; names the items.

    Example:

    ```python
    train, report = encode_solutions(tokenizer, load_memory_reason("data/strategy_qa")["train"], max_length=1024)
    print(report.describe())
    ```
    """
    check_sequence("items", items, "a list of questions with solutions")
    if max_length is not None:
        check_int("max_length", max_length, least=1)
    if too_long not in TOO_LONG:
        raise ValueError(f"too_long={too_long!r} must be one of {', '.join(TOO_LONG)}.")
    scheme = read_scheme(tokenizer)
    prompter = choose_prompter(tokenizer, prompter, demonstrations)
    if prompter.format.style != "steps":
        raise ValueError(
            f"style={prompter.format.style!r} is for models that are not trained on solutions. Train with "
            "style='steps'; a scheme with marks='none' writes steps without marks."
        )
    end = prompter.end_id
    if end is None:
        raise ValueError("The tokenizer has no end token, so no solution could end: set tokenizer.eos_token.")
    prefix = tokenizer.convert_tokens_to_ids(list(scheme.prefix_tokens))
    report = EncodingReport(max_length=max_length)
    if prompter.format != PromptFormat():
        report.prompt = prompter.format.describe()
    columns = {"input_ids": [], "label_ids": []}
    lengths = []
    for index, item in enumerate(items):
        report.num_items += 1
        check_row(f"item {index}", item, ("question", "steps", "answer"))
        try:
            prompt = prompter.prompt_ids(item["question"])
            solution = encode_solution(tokenizer, reference_solution(item))
        except (TypeError, ValueError) as error:
            raise ValueError(f"Training item {index}: {error}") from error
        # The prefix tokens at the end of the prompt belong to the solution.
        written = [*solution[len(prefix) :], end]
        length = len(prompt) + len(written)
        if max_length is not None and length > max_length:
            report.too_long.append(index)
            lengths.append(length)
            continue
        ids = prompt + written
        columns["input_ids"].append(ids)
        columns["label_ids"].append([*[IGNORED_LABEL] * (len(prompt) - 1), *written, IGNORED_LABEL])
        report.longest = max(report.longest, length)
    report.num_rows = len(columns["input_ids"])
    if report.too_long and (too_long == "refuse" or not report.num_rows):
        raise ValueError(
            f"{len(report.too_long):,} of {report.num_items:,} training items are longer than {max_length:,} tokens "
            f"with their solution (items {first_few(report.too_long)}; the longest has {max(lengths):,}). Raise "
            "max_length as far as the model's context allows, use fewer demonstrations, or leave these items out "
            "(too_long=drop); answers are not cut off."
        )
    if not report.num_rows:
        raise ValueError("There are no training items. Check the split and the limits on the data.")
    return Dataset.from_dict(columns), report


def choose_prompter(
    tokenizer: PreTrainedTokenizerBase,
    prompter: Prompter | None,
    demonstrations: Callable[[str], Sequence[tuple[str, Sequence]]] | None,
) -> Prompter:
    """
    The prompter that was given, or one of the tokenizer's recorded format.

    Raises:
        ValueError: both `prompter` and `demonstrations` are given, or the prompter has another tokenizer.
    """
    if prompter is None:
        return Prompter(tokenizer, demonstrations=demonstrations)
    check_type("prompter", prompter, Prompter, "a Prompter")
    if demonstrations is not None:
        raise ValueError("prompter and demonstrations are both given. Give the demonstrations to the Prompter.")
    if prompter.tokenizer is not tokenizer:
        raise ValueError("prompter has another tokenizer. Make it with the tokenizer that is given beside it.")
    return prompter


class StepCollator:
    """
    Makes a batch of rows from `encode_solutions`, padded on the right to the longest row.

    Called with a list of rows, it returns int64 tensors of shape `(batch, longest row)`: `input_ids`, `shift_labels`
    (the label at a position is compared with the logits at that position; -100: no label) and, only if a row was
    padded, `attention_mask`.

    Args:
        tokenizer: the tokenizer of the rows, which gives the padding token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.pad_token_id = padding_id(tokenizer)

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        return pad_rows(rows, self.pad_token_id, side="right")
