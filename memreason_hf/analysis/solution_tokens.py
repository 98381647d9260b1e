"""
The tokens of one solution as its model reads it, each with the step that it belongs to.

    solution = encode_solution_tokens(tokenizer, text, question=question)
    solution.kinds()        # "begin", "question", "question", "memory", ...

Only where a step begins is the text changed: its mark is written as the scheme of the tokenizer writes it, on a line
of its own. So a text of another scheme (`<rag_0>`, spaces between tokens, other counts) is read with the marks that
the model knows.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from memreason_hf.evaluation.solutions.answers import end_of_question
from memreason_hf.steps import KINDS, QUESTION_MARKER, StepScheme
from memreason_hf.steps.marks import split_at
from memreason_hf.steps.tokenization import begin_ids, encode_plain, read_scheme


BEGIN, QUESTION, PLAN, MARKS = "begin", "question", "plan", "marks"
# All that a token can belong to, in the order of a text; `marks` only where they are counted apart.
TOKEN_KINDS = (BEGIN, QUESTION, PLAN, *KINDS, MARKS)
_INCOMPLETE = "\ufffd"
_LINE_END = re.compile(r"[^\S\n]*\n?")


@dataclass(frozen=True)
class TokenSpan:
    """
    Neighbouring tokens that belong together: the begin of the text, the question, or one step.

    Attributes:
        kind: one of `TOKEN_KINDS` but `marks`.
        start, end: the first token and the one behind the last.
        number: of the step, counted from 1; None for what is no step. A plan is numbered like the steps it announces.
        text: of the question or the step, without its mark.
    """

    kind: str
    start: int
    end: int
    number: int | None = None
    text: str = ""


@dataclass(frozen=True)
class SolutionTokens:
    """
    Attributes:
        ids: of all tokens.
        labels: a short text for each, to be shown.
        spans: of all tokens, in their order, without gaps.
        is_mark: whether a token belongs to the mark of a step.
        truncated: the text ended inside the tokens of a step; these are left out.
    """

    ids: tuple[int, ...]
    labels: tuple[str, ...]
    spans: tuple[TokenSpan, ...]
    is_mark: tuple[bool, ...]
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def kinds(self, marks_apart: bool = False) -> list[str]:
        """What each token belongs to; the marks of all steps are a kind of their own if they are counted apart."""
        kinds = [span.kind for span in self.spans for _ in range(span.start, span.end)]
        if not marks_apart:
            return kinds
        return [MARKS if is_mark else kind for kind, is_mark in zip(kinds, self.is_mark)]


def encode_solution_tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, *, question: str | None = None
) -> SolutionTokens:
    """
    Encodes a question and its solution as they are generated: begin of text where the tokenizer puts one, the question
    as plain text, then the solution, in which only step tokens are special. Blanks before a mark are left out.

    Args:
        tokenizer: one that was extended.
        text: a solution, behind its question or alone.
        question: what the text begins with. Without it the question is all that stands before the first mark; where
            the scheme does not mark kinds, the first line if it begins with `Question:`.

    Raises:
        ValueError: a tokenizer without a scheme or without places of tokens (a slow one), a text that does not begin
            with the question, or that has no step.
    """
    scheme = read_scheme(tokenizer)
    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} ({type(tokenizer).__name__}) does not tell where in a text its "
            "tokens stand: use the fast tokenizer of the model."
        )
    asked, solution = _split(scheme, text, question)
    spans, stop = scheme.locate(solution)
    if not spans:
        raise ValueError(
            f"The text {solution[:80]!r} has no step: a step begins a line with its mark, as in "
            f"{(scheme.mark('memory') + ' …').lstrip()!r}."
        )
    written, places = _with_own_marks(scheme, solution[:stop], spans)
    ids, offsets = _encode(tokenizer, scheme, written)

    begin = begin_ids(tokenizer)
    head = encode_plain(tokenizer, scheme.question_text(asked)) if asked is not None else []
    said = (asked or "").removeprefix(QUESTION_MARKER)
    found = [TokenSpan(BEGIN, 0, len(begin)), TokenSpan(QUESTION, len(begin), len(begin) + len(head), None, said)]
    first = found[-1].end
    # The last character decides: a token can begin with the blank behind a mark.
    lasts = list(accumulate((max(start, end - 1) for start, end in offsets), max))
    starts = [start for start, _ in places]
    owners = [max(bisect_right(starts, last) - 1, 0) for last in lasts]
    numbers = {True: 0, False: 0}
    for index, span in enumerate(spans):
        numbers[span.is_plan] += 1
        mine = [position for position, owner in enumerate(owners) if owner == index]
        if mine:
            kind = PLAN if span.is_plan else span.kind
            said = solution[span.text_start : span.end]
            found.append(TokenSpan(kind, first + mine[0], first + mine[-1] + 1, numbers[span.is_plan], said))
    is_mark = [False] * first + [places[owner][0] <= last < places[owner][1] for owner, last in zip(owners, lasts)]
    ids = (*begin, *head, *ids)
    return SolutionTokens(
        ids=ids,
        labels=tuple(token_label(tokenizer, token_id) for token_id in ids),
        spans=tuple(span for span in found if span.end > span.start),
        is_mark=tuple(is_mark),
        truncated=stop < len(solution),
    )


def token_label(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """A token as it is shown by itself: without blanks around it, blanks and line ends alone as signs."""
    name = tokenizer.convert_ids_to_tokens(token_id)
    text = tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if not text or _INCOMPLETE in text:
        # Part of a character: its name in the vocabulary.
        return name or f"<{token_id}>"
    return text.strip() or "".join({"\n": "⏎", "\t": "→"}.get(character, "␣") for character in text)


def _split(scheme: StepScheme, text: str, question: str | None) -> tuple[str | None, str]:
    """The question, None if there is none, and the solution."""
    if question is not None:
        end = end_of_question(text, question)
        if end is None:
            raise ValueError(f"The text {text[:80]!r} does not begin with the question {question[:80]!r}.")
        # With the line end that `question_text` puts behind it.
        return question, text[_LINE_END.match(text, end).end() :]
    if scheme.has_kinds:
        spans, _ = scheme.locate(text)
        end = next((span.start for span in spans if span.mark_end > span.start), None)
        if end is None:
            raise ValueError(
                f"The text {text[:80]!r} has no marked step, such as a line that begins with "
                f"{scheme.mark('memory')!r}: nothing tells the question from the solution."
            )
    else:
        end = text.find("\n") + 1 if text.startswith(QUESTION_MARKER.strip()) else 0
    asked = text[:end].lstrip()
    return (asked.removesuffix("\n") if asked.endswith("\n") else asked.rstrip()) or None, text[end:]


def _with_own_marks(scheme, text, spans) -> tuple[str, list[tuple[int, int]]]:
    """The text with the marks of the scheme, and where each step begins in it and its mark ends."""
    parts, places, length, read = [], [], 0, 0
    has_lines = "\n" in text
    for span in spans:
        mark = ""
        if span.mark_end > span.start:
            mark = scheme.mark(span.kind) or "".join(scheme.prefix_tokens)
        before = text[read : span.start]
        if not has_lines and before:
            # All on one line: the scheme puts every step on its own.
            before = before.rstrip() + "\n"
        for part in (before, mark):
            parts.append(part)
            length += len(part)
        places.append((length - len(mark), length))
        read = span.mark_end
    return "".join([*parts, text[read:]]), places


def _encode(tokenizer, scheme: StepScheme, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of a text in which only step tokens are special, and the characters that each stands for."""
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
            encoded = tokenizer(
                piece, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
            )
            offsets += [(start + first, start + last) for first, last in encoded["offset_mapping"]]
        start += len(piece)
    return ids, offsets
