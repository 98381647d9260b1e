"""
What happens when a visitor presses a button or moves a slider. Without Gradio, except for its updates of components.

Each handler returns or yields values for the components that `page` connects it with. Errors of a visitor become a
message in the place of the answer.
"""

from collections.abc import Iterator

from memreason_hf.serving.demo.answers import Answer, AnswerError, DemoModel
from memreason_hf.serving.demo.comparison import differing
from memreason_hf.serving.demo.controls import read_depth, read_sampling
from memreason_hf.serving.demo.rendering import AnswerView, lens_table, message, safe, token_name
from memreason_hf.serving.demo.sessions import Sessions


_MOST_CHOICES = 400


class Handlers:
    """
    The handlers of one page.

    Args:
        model: the model that answers.
    """

    empty = '<p class="mr-empty">The answer appears here, token by token.</p>'
    empty_lens = '<p class="mr-empty">After an answer: what the model would say after each recurrence.</p>'
    no_depth = message("This model has no recurrences: depth cannot be chosen, and is not shown.", "note")

    def __init__(self, model: DemoModel):
        self.model = model
        self.sessions = Sessions()
        self.view = AnswerView(model.scheme, model.options.has_depth, model.options.describe)

    # ---- One answer ----

    def press(self, request) -> None:
        """A visitor wants an answer, which may have to wait."""
        self.sessions.press(_session(request))

    def run(self, request, prompt, *values) -> Iterator[tuple]:
        """Yields the answer, the state, and the buttons."""
        try:
            depth, rest = read_depth(self.model.options, values)
            for answer in self._answers(request, prompt, depth, read_sampling(rest)):
                yield self.view.show(answer), answer, answer.ending is None
        except (ValueError, AnswerError) as error:
            yield message(error), None, False

    def run_both(self, request, prompt, *values) -> Iterator[tuple]:
        """Yields both answers, a line on their difference, and whether they are being written."""
        shown = [self.empty, self.empty]
        ended: list[Answer] = []
        try:
            first, rest = read_depth(self.model.options, values)
            second, rest = read_depth(self.model.options, rest)
            sampling = read_sampling(rest)
            for side, depth in enumerate((first, second)):
                for answer in self._answers(request, prompt, depth, sampling):
                    shown[side] = self.view.show(answer)
                    yield *shown, "", True
                ended.append(answer)
                if answer.ending == "stopped":
                    break
        except (ValueError, AnswerError) as error:
            shown[len(ended)] = message(error)
            yield *shown, "", False
            return
        if len(ended) < 2:
            yield *shown, "", False
            return
        marks = differing(*(_new_ids(answer) for answer in ended))
        shown = [self.view.show(answer, marks=own) for answer, own in zip(ended, marks, strict=True)]
        yield *shown, _difference(ended, marks), False

    def _answers(self, request, prompt, depth, sampling):
        session = _session(request)
        stop = self.sessions.begin(session)
        try:
            yield from self.model.answer(prompt, depth, sampling, stop)
        finally:
            stop.set()
            self.sessions.end(session, stop)

    def stop(self, request) -> None:
        """Stops the answer of a visitor at the next token."""
        self.sessions.stop(_session(request))

    def leave(self, request) -> None:
        """A visitor has closed the page."""
        self.sessions.leave(_session(request))

    # ---- The lens ----

    def choices(self, answer: Answer | None) -> list[tuple[str, int]]:
        """The positions that can be looked at, with their tokens; the last ones of a long text."""
        if answer is None:
            return []
        ids = answer.ids
        first = len(answer.prompt.ids)
        numbered = []
        for position in range(1, len(ids) + 1):
            name = token_name(self.model.tokenizer, ids[position]) if position < len(ids) else "(what comes next)"
            where = f"answer {position - first + 1}" if position >= first else f"prompt {position + 1}"
            numbered.append((f"{where}: {name}", position))
        own = numbered[first - 1 :]
        return [*own, *numbered[: first - 1]][:_MOST_CHOICES]

    def look(self, answer: Answer | None, position: int | None) -> tuple[str, str]:
        """The answer with the token framed, and the lens at its position."""
        if answer is None:
            return self.empty, self.empty_lens
        ids = answer.ids
        if position is None or not 1 <= position <= len(ids):
            return self.view.show(answer), self.empty_lens
        depths = [token.num_recurrences for piece in answer.prompt_pieces for token in piece.tokens]
        first = len(depths)
        # A new token was predicted where its own depth says; a token of the prompt, at the position before it.
        halted = answer.depths[position - first] if first <= position < len(ids) else None
        halted = depths[position - 1] if position < first and answer.ending is not None else halted
        deepest = max(answer.choice.recurrences, halted or 1)
        lens = self.model.look(ids, position, deepest)
        token = "" if lens.token_id is None else safe(token_name(self.model.tokenizer, lens.token_id))
        said = f", where the text has <b dir='auto'>{token}</b>" if token else ", after the end of the text"
        note = (
            f'<p class="mr-quiet">Token {position + 1}{said}. After recurrence r: what a run with num_recurrences=r '
            "says, in which every token before it takes r recurrences.</p>"
        )
        return self.view.show(answer, selected=position), note + lens_table(lens, self.model.tokenizer, halted)

    def start(self, answer: Answer | None) -> int | None:
        """The position that is looked at first: the first token of the answer."""
        return len(answer.prompt.ids) if answer is not None and answer.pieces else None


def _session(request):
    return getattr(request, "session_hash", None) or "none"


def _new_ids(answer):
    return answer.ids[len(answer.prompt.ids) :]


def _difference(answers, marks):
    first, second = (answer.mean_recurrences for answer in answers)
    count = sum(map(sum, marks))
    if not count:
        said = "Both depths give the same answer."
    else:
        said = f"The answers differ: {count} token{'s' if count != 1 else ''} underlined."
    ratio = second / first
    cost = f"The right one takes {ratio:.2f} times the recurrences a token of the left one."
    return f'<p class="mr-cost" role="status"><span><b>{said}</b></span><span>{cost}</span></p>'
