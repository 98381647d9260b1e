"""
The parts of the page that show what a model says, as HTML.

Everything that a model, a vocabulary or a visitor wrote is escaped by `safe`: markup in it is shown and does not run,
and characters that would turn the direction of a text around are shown by their names.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from transformers import PreTrainedTokenizerBase

from memreason_hf.analysis.solution_tokens import token_label
from memreason_hf.analysis.token_depths import DepthScale, Piece
from memreason_hf.messages import visible
from memreason_hf.serving.demo.answers import Answer
from memreason_hf.serving.demo.lens import Lens
from memreason_hf.steps import StepScheme


_ENDINGS = {"eos": "ended by the model", "length": "cut off by max_new_tokens", "stopped": "stopped"}
_WHERE = "Tokens of a prompt: at their own position. Later tokens: where they were predicted."
_CHART_WIDTH, _CHART_HEIGHT = 640, 120
_MOST_LINES = 4
_MOST_POINTS = 200


def safe(text: object) -> str:
    """
    A text as HTML: escaped, and what cannot be seen made visible.

    Example:
        >>> safe("<b>\\u202e&")
        '&lt;b&gt;[U+202E]&amp;'
    """
    return escape(visible(str(text)))


def message(text: object, kind: str = "error") -> str:
    """A message in the place of an answer; `kind` is `"error"` or `"note"`."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="mr-message mr-{kind}" role="{role}">{safe(text)}</div>'


def heading(name: str, description: str) -> str:
    """The top of the page."""
    title, text = safe(name), safe(description)
    return f'<header class="mr-head"><h1 dir="auto">{title}</h1><p class="mr-quiet">{text}</p></header>'


def legend(scale: DepthScale, kinds: Sequence[str], has_depth: bool) -> str:
    """What the colours mean."""
    parts = []
    if has_depth:
        cells = "".join(f'<span class="mr-t d{depth}">{depth}</span>' for depth in scale.legend())
        parts.append(f'<span>Recurrences <span class="mr-cells">{cells}</span></span>')
        parts.append('<label><input type="checkbox" id="mr-numbers"> show numbers</label>')
    parts += [f'<span class="mr-kind k-{safe(kind)}">{safe(kind)}</span>' for kind in kinds]
    if has_depth:
        parts.append(f'<span class="mr-quiet">{_WHERE}</span>')
    return f'<div class="mr-legend">{"".join(parts)}</div>' if parts else ""


@dataclass(frozen=True)
class AnswerView:
    """
    Shows answers of one model.

    Args:
        scheme: of the steps that it writes, or None.
        has_depth: whether the model has recurrences.
        describe: a depth in a few words.
    """

    scheme: StepScheme | None
    has_depth: bool
    describe: Callable[[object], str]

    def show(self, answer: Answer, *, selected: int | None = None, marks: Sequence[bool] = ()) -> str:
        """
        A prompt and its answer.

        Args:
            selected: index in the text of a token to frame.
            marks: tokens of the answer that stand out because another answer lacks them.
        """
        head = len(answer.prompt.ids) - answer.prompt.lead
        question, lead = _split(answer.prompt_pieces, head)
        knows_prompt = self.has_depth and answer.ending is not None
        before = _spans(_placed(question, 0), knows_prompt, selected)
        pieces = [*_placed(lead, head), *_placed(answer.pieces, len(answer.prompt.ids))]
        body = self._body(pieces, len(lead), knows_prompt, selected, marks)
        writing = '<span class="mr-cursor" aria-hidden="true"></span>' if answer.ending is None else ""
        note = message(answer.prompt.note, "note") if answer.prompt.note else ""
        return (
            f'{note}<div class="mr-prompt"><h3>Prompt</h3><div class="mr-text" dir="auto">{before}</div></div>'
            f'<div class="mr-answer"><h3>Answer</h3><div class="mr-text" dir="auto">{body}{writing}</div></div>'
            f"{self._profile(answer)}{self.cost(answer)}"
        )

    def cost(self, answer: Answer) -> str:
        """How long an answer is, how deep, and how long it took."""
        count = len(answer.depths)
        if not count:
            return f'<p class="mr-cost">{safe(self.describe(answer.choice)) if self.has_depth else ""}</p>'
        parts = [f"<b>{count}</b> token{'s' if count != 1 else ''}"]
        if self.has_depth:
            parts.append(f"<b>{answer.mean_recurrences:.1f}</b> recurrences a token")
            parts.append(f"<b>{100 * answer.share_of_deepest:.1f} %</b> of the deepest ({answer.deepest})")
        parts.append(f"<b>{answer.seconds:.2f} s</b>, first token after {answer.first_seconds or 0:.2f} s")
        if answer.ending is not None:
            parts.append(_ENDINGS[answer.ending])
        if self.has_depth:
            parts.append(safe(self.describe(answer.choice)))
        return f'<p class="mr-cost">{"".join(f"<span>{part}</span>" for part in parts)}</p>'

    def _body(self, pieces, num_lead, knows_prompt, selected, marks):
        """The tokens of the answer, in a box for each step if the model writes steps."""
        flags = [False] * num_lead + _of_pieces([piece for _, piece in pieces[num_lead:]], marks)
        shown = [
            _span(place, piece, self.has_depth if index >= num_lead else knows_prompt, selected, flags[index])
            for index, (place, piece) in enumerate(pieces)
        ]
        if self.scheme is None:
            return "".join(shown)
        text = "".join(piece.text for _, piece in pieces)
        spans, stop = self.scheme.locate(text)
        boxes: dict[int, list[str]] = {}
        end = 0
        for (_, piece), html in zip(pieces, shown, strict=True):
            end += len(piece.text)
            # A token belongs to the step of its last character; those after the last step have not become one yet.
            last = max(end - 1, 0)
            owner = max((i for i, span in enumerate(spans) if span.start <= last), default=-1)
            boxes.setdefault(len(spans) if last >= stop else owner, []).append(html)
        return "".join(_box(spans, owner, "".join(boxes[owner])) for owner in sorted(boxes))

    def _profile(self, answer):
        """The depth of each token of the answer as the height of a bar."""
        if not self.has_depth or len(answer.depths) < 2:
            return ""
        scale = DepthScale(1, answer.deepest)
        bars = "".join(
            f'<i class="d{token.num_recurrences}" title="{safe(token.token)}: {token.num_recurrences}" '
            f'style="height:{8 + 92 * scale.position(token.num_recurrences):.0f}%"></i>'
            for piece in answer.pieces
            for token in piece.tokens
        )
        low, high = min(answer.depths), max(answer.depths)
        label = f"Recurrences of each token, {low} to {high}"
        return f'<div class="mr-profile" role="img" aria-label="{label}">{bars}</div>'


def _box(spans, owner, html):
    if not 0 <= owner < len(spans):
        return f'<div class="mr-step">{html}</div>'
    kind = "plan" if spans[owner].is_plan else spans[owner].kind
    return f'<div class="mr-step k-{kind}"><span class="mr-kind k-{kind}">{kind}</span>{html}</div>'


def _split(pieces, head):
    """Pieces of the first `head` tokens, and the others."""
    first, rest, count = [], [], 0
    for piece in pieces:
        (first if count < head else rest).append(piece)
        count += len(piece.tokens)
    return first, rest


def _placed(pieces, start):
    """Each piece with the index in the text of its first token."""
    placed = []
    for piece in pieces:
        placed.append((start, piece))
        start += len(piece.tokens)
    return placed


def _of_pieces(pieces, marks):
    """For each piece, whether any of its tokens is marked."""
    flags, start = [], 0
    for piece in pieces:
        flags.append(any(marks[start : start + len(piece.tokens)]))
        start += len(piece.tokens)
    return flags


def _spans(placed, has_depth, selected):
    return "".join(_span(place, piece, has_depth, selected, False) for place, piece in placed)


def _span(place: int, piece: Piece, has_depth: bool, selected: int | None, marked: bool) -> str:
    depth = piece.num_recurrences
    names = "; ".join(
        f"{token.token} (id {token.id})" + (f": {token.num_recurrences} recurrences" if has_depth else "")
        for token in piece.tokens
    )
    shown = safe(piece.text).replace("\n", '<i class="mr-end">↵</i>\n')
    classes = ["mr-t"]
    if not piece.text:
        classes.append("mr-mark")
        shown = safe(" ".join(token.token for token in piece.tokens))
    # The last line break stands outside, so that the number comes before it.
    end = "\n" if shown.endswith("\n") else ""
    classes += [f"d{depth}"] if has_depth else []
    classes += ["mr-selected"] if selected is not None and place <= selected < place + len(piece.tokens) else []
    classes += ["mr-differs"] if marked else []
    number = f' data-depth="{depth}"' if has_depth else ""
    return (
        f'<span class="{" ".join(classes)}" data-pos="{place}"{number} title="{safe(names)}">'
        f"{shown.removesuffix(end)}</span>{end}"
    )


def token_name(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """A token by itself, as plain text for a list or, through `safe`, for HTML."""
    return visible(token_label(tokenizer, token_id))


def lens_table(lens: Lens, tokenizer: PreTrainedTokenizerBase, halted: int | None = None) -> str:
    """
    What the model would say after each recurrence: a chart of probabilities, and a table of the most probable tokens.

    Args:
        halted: the recurrence at which the answer was given.
    """
    names = {token_id: safe(token_name(tokenizer, token_id)) for step in lens.steps for token_id in step.ids}
    columns = len(lens.steps[0].ids)
    rows = []
    for step in lens.steps:
        cells = "".join(
            f'<td class="{"mr-hit" if token_id == lens.token_id else ""}" style="--p:{100 * probability:.1f}%">'
            f'<span dir="auto">{names[token_id]}</span> <small>{_percent(probability)}</small></td>'
            for token_id, probability in zip(step.ids, step.probabilities, strict=True)
        )
        here = step.recurrence == halted
        label = f"{step.recurrence}{'<em>here</em>' if here else ''}"
        rows.append(
            f'<tr class="{"mr-halted" if here else ""}"><th scope="row">{label}</th>{cells}'
            f"<td class='mr-number'>{step.entropy:.2f}</td></tr>"
        )
    head = "".join(f'<th scope="col">{"most probable" if i == 0 else f"{i + 1}."}</th>' for i in range(columns))
    return (
        f'{_chart(lens, names, halted)}<div class="mr-scroll" tabindex="0" role="region" '
        f'aria-label="Most probable tokens after each recurrence"><table class="mr-lens"><thead><tr>'
        f'<th scope="col">after</th>{head}<th scope="col">entropy</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _ticks(scale):
    """The labels of the axis of recurrences: powers of two, and the last one."""
    labels = [2**power for power in range(scale.most.bit_length()) if 2**power < 0.75 * scale.most]
    return "".join(
        f'<span style="left:{100 * scale.position(depth):.1f}%">{depth}</span>' for depth in (*labels, scale.most)
    )


def _percent(probability):
    return f"{100 * probability:.1f} %" if probability >= 0.001 else "&lt; 0.1 %"


def _chart(lens, names, halted):
    """Lines of probability over recurrences: the tokens that were the most probable ones at some recurrence."""
    if len(lens.steps) < 2:
        return ""
    last = lens.steps[-1].recurrence
    scale = DepthScale(1, last)
    every = math.ceil(len(lens.steps) / _MOST_POINTS)

    def across(recurrence):
        return scale.position(recurrence) * _CHART_WIDTH

    lines, keys = [], []
    for number, (token_id, curve) in enumerate(zip(lens.leaders[:_MOST_LINES], lens.curves)):
        points = [
            f"{across(place + 1):.1f},{_CHART_HEIGHT * (1 - curve[place]):.1f}"
            for place in (*range(0, last, every), last - 1)
        ]
        lines.append(f'<polyline class="mr-line l{number}" points="{" ".join(points)}"/>')
        keys.append(f'<span class="mr-key l{number}"><span dir="auto">{names[token_id]}</span></span>')
    if halted is not None and 1 <= halted <= last:
        lines.append(f'<line class="mr-here" x1="{across(halted):.1f}" x2="{across(halted):.1f}" y1="0" y2="120"/>')
    hidden = max(len(lens.leaders) - _MOST_LINES, 0)
    keys.append(f'<span class="mr-quiet">and {hidden} more</span>' if hidden else "")
    return (
        f'<div class="mr-keys">{"".join(keys)}</div><svg class="mr-chart" viewBox="-2 -4 {_CHART_WIDTH + 4} '
        f'{_CHART_HEIGHT + 8}" preserveAspectRatio="none" role="img" aria-label="Probability of the most probable '
        f'tokens after each recurrence, 1 to {last}"><path class="mr-grid" d="M0 0H{_CHART_WIDTH}M0 60H{_CHART_WIDTH}'
        f'M0 120H{_CHART_WIDTH}"/>{"".join(lines)}</svg>'
        f'<div class="mr-axis" aria-hidden="true">{_ticks(scale)}</div>'
    )
