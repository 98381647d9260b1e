"""Annotated questions as training rows: the prompt, as at test time, then the solution, which alone has labels."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from memreason_hf.checks import check_int, check_row, check_sequence
from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.data.padding import pad_rows
from memreason_hf.data.questions.memory_reason import reference_solution
from memreason_hf.messages import first_few
from memreason_hf.steps.tokenization import encode_prompt, encode_solution, padding_id, read_scheme


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
    """

    num_items: int = 0
    num_rows: int = 0
    longest: int = 0
    max_length: int | None = None
    too_long: list[int] = field(default_factory=list)

    def describe(self) -> str:
        """One line for a terminal."""
        line = f"{self.num_rows:,} of {self.num_items:,} training items, at most {self.longest:,} tokens"
        if self.too_long:
            line += f"; {len(self.too_long):,} dropped, longer than {self.max_length:,} with their solution"
        return f"{line}."


def encode_solutions(
    tokenizer: PreTrainedTokenizerBase,
    items: Iterable[Mapping],
    *,
    max_length: int | None = None,
    too_long: str = "refuse",
    demonstrations: Callable[[str], Sequence[tuple[str, Sequence]]] | None = None,
) -> tuple[Dataset, EncodingReport]:
    """
    Encodes questions and their solutions.

    A row consists of the prompt (`encode_prompt`), which the model sees at test time, the rest of the solution, and
    the end of text. Everything after the prompt has labels.

    Args:
        tokenizer: an extended tokenizer.
        items: rows with `question`, `answer` and `steps`, as from `load_memory_reason`.
        max_length: the maximum number of tokens of a row; None for no limit.
        too_long: what to do with longer items: `"refuse"` (an error) or `"drop"`. Answers are never cut off.
        demonstrations: solved questions to put before a question, for example `Demonstrations(train, 4)`.

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
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError("The tokenizer has no end token, so no solution could end: set tokenizer.eos_token.")
    prefix = tokenizer.convert_tokens_to_ids(list(scheme.prefix_tokens))
    report = EncodingReport(max_length=max_length)
    columns = {"input_ids": [], "label_ids": []}
    lengths = []
    for index, item in enumerate(items):
        report.num_items += 1
        check_row(f"item {index}", item, ("question", "steps", "answer"))
        try:
            solved = demonstrations(item["question"]) if demonstrations else ()
            prompt = encode_prompt(tokenizer, item["question"], solved)
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
