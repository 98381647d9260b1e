"""
The tokens of one solution as its model reads it, each with the step that it belongs to.

    solution = encode_solution_tokens(tokenizer, text, question=question)
    solution.kinds()        # "begin", "question", "question", "memory", ...

The text is changed only where a step begins: its mark is replaced by that of the tokenizer's scheme, at the start of a
line. So a text of another scheme (`<rag_0>`, spaces between tokens, other counts) gets the marks that the model knows.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from memreason_hf.analysis.words import find_words
from memreason_hf.data.questions.prompts import PromptFormat, lone_prompter
from memreason_hf.evaluation.solutions.answers import end_of_question
from memreason_hf.messages import REPLACEMENT_CHARACTER
from memreason_hf.steps import KINDS, QUESTION_MARKER, StepScheme, kind_order
from memreason_hf.steps.marks import split_at
from memreason_hf.steps.tokenization import begin_ids, encode_plain, plain_encoding, read_scheme


BEGIN, QUESTION, PLAN, MARKS = "begin", "question", "plan", "marks"
# What a token can belong to, in the order of a text, with the kinds of the study; `marks` only if they are counted
# apart.
TOKEN_KINDS = (BEGIN, QUESTION, PLAN, *KINDS, MARKS)
_LINE_END = re.compile(r"[^\S\n]*\n?")


@dataclass(frozen=True)
class TokenSpan:
    """
    Neighbouring tokens that belong together: the BOS token (`begin`), the question, or one step.

    Attributes:
        kind: one of `TOKEN_KINDS` except `marks`, or a kind that the scheme names.
        start, end: index of the first token, and index after the last token.
        number: the number of the step, counted from 1; None for `begin` and the question. Plans are counted apart
            from steps, so that a plan has the number of the step that it announces.
        text: the text of the question or the step, without its mark.
    """

    kind: str
    start: int
    end: int
    number: int | None = None
    text: str = ""


@dataclass(frozen=True)
class SolutionTokens:
    """
    The tokens of a solution.

    Attributes:
        ids: the id of each token.
        labels: a short text for each token, for figures.
        spans: the spans of the text, which cover all tokens in order.
        is_mark: whether each token belongs to the mark of a step.
        truncated: whether the text ended inside the tokens of a step, which are left out.
        step_kinds: the kinds of the scheme.
        word_starts: index of the first token of each word, in order; a step token is a word. Empty if words are not
            known.
        word_labels: the text of each word.
    """

    ids: tuple[int, ...]
    labels: tuple[str, ...]
    spans: tuple[TokenSpan, ...]
    is_mark: tuple[bool, ...]
    truncated: bool = False
    step_kinds: tuple[str, ...] = KINDS
    word_starts: tuple[int, ...] = ()
    word_labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def kinds(self, marks_apart: bool = False) -> list[str]:
        """The kind of each token. With `marks_apart` the marks of all steps are a kind of their own."""
        kinds = [span.kind for span in self.spans for _ in range(span.start, span.end)]
        if not marks_apart:
            return kinds
        return [MARKS if is_mark else kind for kind, is_mark in zip(kinds, self.is_mark)]


def encode_solution_tokens(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    question: str | None = None,
    prompt_format: PromptFormat | None = None,
) -> SolutionTokens:
    """
    Encodes a question and its solution as in generation: the BOS token if the tokenizer has one, the question as plain
    text or in the prompt's template, then the solution, in which only step tokens are special. Blanks before a mark
    are removed.

    Args:
        tokenizer: an extended tokenizer.
        text: a solution, with or without its question.
        question: the start of the text. By default it is everything before the first mark; if the scheme does not mark
            kinds, it is the first line if that begins with `Question:`.
        prompt_format: the prompt that the question stands in; its demonstrations are left out. Default: the one that
            was recorded in the tokenizer.

    Raises:
        ValueError: the tokenizer has no scheme or is slow and has no offsets, or the text does not begin with the
            question or has no step.
    """
    scheme = read_scheme(tokenizer)
    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} ({type(tokenizer).__name__}) has no offsets of tokens: use the "
            "fast tokenizer of the model."
        )
    question, solution = _split(scheme, text, question)
    steps, stop = scheme.locate(solution)
    if not steps:
        raise ValueError(
            f"The text {solution[:80]!r} has no step: a step begins a line with its mark, as in "
            f"{(scheme.mark(scheme.kinds[0]) + ' …').lstrip()!r}."
        )
    marked, places = _with_own_marks(scheme, solution[:stop], steps)
    solution_ids, offsets = _encode(tokenizer, scheme, marked)
    begin, head, asked, asked_offsets = _encode_question(tokenizer, scheme, question, prompt_format)
    first = len(begin) + len(head)

    # A token belongs to the step of its last character, because it can begin with the blank after a mark.
    lasts = list(accumulate((max(start, end - 1) for start, end in offsets), max))
    starts = [start for start, _ in places]
    owners = [max(bisect_right(starts, last) - 1, 0) for last in lasts]
    question_text = (question or "").removeprefix(QUESTION_MARKER)
    spans = [TokenSpan(BEGIN, 0, len(begin)), TokenSpan(QUESTION, len(begin), first, None, question_text)]
    numbers = {True: 0, False: 0}
    for index, step in enumerate(steps):
        numbers[step.is_plan] += 1
        start, end = first + bisect_left(owners, index), first + bisect_right(owners, index)
        kind = PLAN if step.is_plan else step.kind
        spans.append(TokenSpan(kind, start, end, numbers[step.is_plan], solution[step.text_start : step.end]))
    is_mark = [False] * first + [places[owner][0] <= last < places[owner][1] for owner, last in zip(owners, lasts)]
    ids = (*begin, *head, *solution_ids)
    labels = tuple(token_label(tokenizer, token_id) for token_id in ids)
    special = set(tokenizer.all_special_ids)
    is_apart = [token_id in special for token_id in ids[:first]] + is_mark[first:]
    parts = ((asked, asked_offsets, len(begin)), (marked, offsets, first))
    words = [(index, labels[index]) for index in range(len(begin))]
    for part, part_offsets, before in parts:
        words += find_words(part, part_offsets, labels[before:], is_apart[before:], before)
    return SolutionTokens(
        ids=ids,
        labels=labels,
        spans=tuple(span for span in spans if span.end > span.start),
        is_mark=tuple(is_mark),
        truncated=stop < len(solution),
        step_kinds=scheme.all_kinds,
        word_starts=tuple(start for start, _ in words),
        word_labels=tuple(label for _, label in words),
    )


def token_kind_order(kinds: Iterable[str]) -> list[str]:
    """What tokens belong to in the order of `TOKEN_KINDS`, each once. Kinds that a user names come after `reason`."""
    present = dict.fromkeys(kinds)
    before = [kind for kind in (BEGIN, QUESTION, PLAN) if kind in present]
    after = [kind for kind in (MARKS,) if kind in present]
    return [*before, *kind_order(kind for kind in present if kind not in (*before, *after)), *after]


def token_label(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """A short text for a token, without blanks around it; a token of blanks and line breaks becomes signs."""
    name = tokenizer.convert_ids_to_tokens(token_id)
    text = tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if not text or REPLACEMENT_CHARACTER in text:
        # Part of a character, so its name in the vocabulary is shown.
        return name or f"<{token_id}>"
    return text.strip() or "".join({"\n": "⏎", "\t": "→"}.get(character, "␣") for character in text)


def _split(scheme: StepScheme, text: str, question: str | None) -> tuple[str | None, str]:
    """The question, or None, and the solution."""
    if question is not None:
        end = end_of_question(text, question)
        if end is None:
            raise ValueError(f"The text {text[:80]!r} does not begin with the question {question[:80]!r}.")
        # The line break after a question belongs to it, see `question_text`.
        return question, text[_LINE_END.match(text, end).end() :]
    if scheme.has_kinds:
        spans, _ = scheme.locate(text)
        end = next((span.start for span in spans if span.mark_end > span.start), None)
        if end is None:
            raise ValueError(
                f"The text {text[:80]!r} has no marked step, such as a line that begins with "
                f"{scheme.mark(scheme.kinds[0])!r}, so the end of the question is unknown."
            )
    else:
        end = text.find("\n") + 1 if text.startswith(QUESTION_MARKER.strip()) else 0
    head = text[:end].lstrip()
    return (head.removesuffix("\n") if head.endswith("\n") else head.rstrip()) or None, text[end:]


def _encode_question(tokenizer, scheme, question, format):
    """The ids before the question and of it in its prompt, and of the latter the text and the place of each token."""
    begin = begin_ids(tokenizer)
    prompter = None if question is None else lone_prompter(tokenizer, format)
    if prompter is None or prompter.format.is_default:
        asked = "" if question is None else scheme.question_text(question)
        if not asked:
            return begin, [], "", []
        encoded = plain_encoding(tokenizer, asked, return_offsets_mapping=True)
        return begin, encode_plain(tokenizer, asked), asked, encoded["offset_mapping"]
    ids = prompter.prompt_ids(question.removeprefix(QUESTION_MARKER))
    # What begins the solution in a prompt stands in its text.
    ids = ids[: len(ids) - len(prompter.start_ids())]
    begin = begin if ids[: len(begin)] == begin else []
    ids = ids[len(begin) :]
    pieces = [tokenizer.decode([id_], skip_special_tokens=False, clean_up_tokenization_spaces=False) for id_ in ids]
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if encoded["input_ids"] == ids:
        return begin, ids, text, encoded["offset_mapping"]
    # Special strings of a question are plain text here, which their own tokenization does not give again.
    ends = list(accumulate(map(len, pieces)))
    return begin, ids, "".join(pieces), list(zip([0, *ends], ends))


def _with_own_marks(scheme, text, spans) -> tuple[str, list[tuple[int, int]]]:
    """The text with the marks of the scheme, and for each step the positions where it begins and its mark ends."""
    parts, places, length, read = [], [], 0, 0
    has_lines = "\n" in text
    for span in spans:
        mark = ""
        if span.mark_end > span.start:
            # A random mark depends on nothing that the text shows, so that it stays as it is.
            mark = text[span.start : span.mark_end] if scheme.random_marks else scheme.mark(span.kind)
            mark = mark or "".join(scheme.prefix_tokens)
        before = text[read : span.start]
        if not has_lines and before:
            # The text is one line, but the scheme begins a line with every step.
            before = before.rstrip() + "\n"
        for part in (before, mark):
            parts.append(part)
            length += len(part)
        places.append((length - len(mark), length))
        read = span.mark_end
    return "".join([*parts, text[read:]]), places


def _encode(tokenizer, scheme: StepScheme, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of a text in which only step tokens are special, and the range of characters of each."""
    foreign = [token for token in tokenizer.all_special_tokens if token not in scheme.tokens]
    if not any(token in text for token in foreign):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]
    # Piece by piece, as `encode_solution` does.
    ids, offsets, start = [], [], 0
    for piece in split_at(text, scheme.tokens):
        if piece in scheme.tokens:
            ids.append(tokenizer.convert_tokens_to_ids(piece))
            offsets.append((start, start + len(piece)))
        else:
            ids += encode_plain(tokenizer, piece)
            encoded = plain_encoding(tokenizer, piece, return_offsets_mapping=True)
            offsets += [(start + first, start + last) for first, last in encoded["offset_mapping"]]
        start += len(piece)
    return ids, offsets
