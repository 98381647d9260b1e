"""Text with a depth per token, for a terminal: in colours, with numbers, or as it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TextIO

from memreason_hf.analysis.token_depths import DepthScale, GeneratedText, Piece, map_color, text_color, visible


# Depth is light, an order that all common kinds of colour blindness keep. Backgrounds, with black or white on them:
# readable whatever colours the terminal has, and blanks show, too.
_MAP = "viridis"
_RESET = "\x1b[0m"
_DIM = "\x1b[2m"
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
# The levels of red, green and blue in the colour cube of terminals with 256 colours, and where the cube begins.
_CUBE_LEVELS = (0, 95, 135, 175, 215, 255)
_CUBE_START = 16

ALL_COLORS = 2**24


def terminal_colors(stream: TextIO, environment: Mapping[str, str]) -> int:
    """
    How many colours `stream` shows: 2**24, 256, or 0 for a file, a terminal with fewer, or where NO_COLOR is set.
    """
    if not stream.isatty() or environment.get("NO_COLOR"):
        return 0
    terminal = environment.get("TERM", "")
    if environment.get("COLORTERM") in ("truecolor", "24bit") or terminal.endswith("-direct"):
        return ALL_COLORS
    return 256 if "256color" in terminal else 0


@dataclass(frozen=True)
class TerminalView:
    """
    How pieces are shown.

    Args:
        mode: `"color"` puts a background behind each token, `"numbers"` its recurrences after it, `"none"` leaves the
            text as it is.
        colors: how many there are, 256 or 2**24.
        unicode: whether the output can hold any character; numbers are in brackets if it cannot.
    """

    mode: Literal["color", "numbers", "none"]
    colors: int = ALL_COLORS
    unicode: bool = True

    def prompt(self, prompt: str) -> str:
        """The prompt, set back where colours can do that."""
        if self.mode == "none":
            return prompt
        return _by_line(visible(prompt), _DIM) if self.mode == "color" else visible(prompt)

    def piece(self, piece: Piece, scale: DepthScale) -> str:
        """One piece of the continuation."""
        if self.mode == "none" or not piece.text:
            return piece.text
        text = visible(piece.text)
        if self.mode == "numbers":
            # Behind the word, before the line end.
            body = text.rstrip("\n")
            return body + self._number(piece.num_recurrences) + text[len(body) :]
        return _by_line(self._show_line_ends(text), self._code(scale, piece.num_recurrences))

    def text(self, text: GeneratedText, scale: DepthScale) -> str:
        """Prompt and continuation."""
        return self.prompt(text.prompt) + "".join(self.piece(piece, scale) for piece in text.pieces)

    def legend(self, scale: DepthScale) -> str:
        """One line that says what colours or numbers mean; nothing for text alone."""
        if self.mode == "none":
            return ""
        if self.mode == "numbers":
            return f"Behind each token its recurrences, as in token{self._number(scale.most)}."
        cells = "".join(f"{self._code(scale, depth)} {depth} {_RESET}" for depth in scale.legend())
        return f"{cells} recurrences"

    def _number(self, depth):
        return str(depth).translate(_SUPERSCRIPTS) if self.unicode else f"[{depth}]"

    def _show_line_ends(self, text):
        # A line end has no background of its own.
        return text.replace("\n", "↵\n" if self.unicode else " \n")

    def _code(self, scale, depth):
        background = map_color(_MAP, scale.position(depth))
        if self.colors >= ALL_COLORS:
            red, green, blue = background
            black = text_color(background) == (0, 0, 0)
            return f"\x1b[38;2;{'0;0;0' if black else '255;255;255'};48;2;{red};{green};{blue}m"
        steps = [min(range(6), key=lambda i, part=part: abs(_CUBE_LEVELS[i] - part)) for part in background]
        nearest = tuple(_CUBE_LEVELS[i] for i in steps)
        index = _CUBE_START + 36 * steps[0] + 6 * steps[1] + steps[2]
        black = text_color(nearest) == (0, 0, 0)
        return f"\x1b[38;5;{16 if black else 231};48;5;{index}m"


def _by_line(text, code):
    # A background that is open at the end of a line fills the rest of it on some terminals.
    return "\n".join(f"{code}{line}{_RESET}" if line else "" for line in text.split("\n"))


def render_texts(texts: Sequence[GeneratedText], view: TerminalView, scale: DepthScale) -> str:
    """All texts, a blank line between two, with a legend at the end."""
    shown = [view.text(text, scale) for text in texts]
    legend = view.legend(scale)
    return "\n\n".join([*shown, legend] if legend else shown)


class DepthStreamer:
    """
    A streamer for `generate` that writes the pieces of one row as soon as their tokens and depths are there.

    Args:
        read (callable): `(token id, recurrences)` -> pieces that are whole now, as `PieceReader.add`.
        write (callable): takes a piece.
    """

    def __init__(self, read: Callable[[int, int], list[Piece]], write: Callable[[Piece], None]):
        self.read = read
        self.write = write
        self._prompt_is_next = True
        self._ids: list[int] = []
        self._depths: list[int] = []

    def put(self, value) -> None:
        """Called by `generate` with the prompt, then with new ids."""
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        self._ids += value.flatten().tolist()
        self._flush()

    def put_recurrences(self, value) -> None:
        """Called by `generate` with the depths of new tokens, before or after their ids."""
        self._depths += value.flatten().tolist()
        self._flush()

    def end(self) -> None:
        """Called by `generate` after the last token."""

    def _flush(self):
        while self._ids and self._depths:
            for piece in self.read(self._ids.pop(0), self._depths.pop(0)):
                self.write(piece)
