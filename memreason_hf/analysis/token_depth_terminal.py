"""Text with a depth per token, for a terminal: in colours, with numbers, or as it is."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TextIO

from rich.color import Color, ColorSystem
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

from memreason_hf.analysis.token_depths import DepthScale, GeneratedText, Piece, map_color, text_color
from memreason_hf.messages import visible


Mode = Literal["color", "numbers", "none"]

# Depth is lightness, an order that all common kinds of colour blindness keep. The colours are backgrounds with black
# or white text: readable whatever the colours of the terminal are, and blanks show, too.
_MAP = "viridis"
_DIM = Style(dim=True)
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
# Fewer colours cannot show an order.
_COLOR_SYSTEMS = {"256": ColorSystem.EIGHT_BIT, "truecolor": ColorSystem.TRUECOLOR}


@dataclass(frozen=True)
class TerminalView:
    """
    Shows texts with the depths of their tokens.

    Args:
        mode: `"color"` puts a background behind each token, `"numbers"` its recurrences after it, `"none"` shows the
            text alone.
        console: where texts are shown. Control characters of a text reach it only if it is not a terminal and the
            mode is `"none"`: what a model writes must not steer a terminal, but a file holds the exact text.

    Example:
        >>> view = TerminalView.open(sys.stdout)  # doctest: +SKIP
        >>> view.show_all(texts)  # doctest: +SKIP
    """

    mode: Mode
    console: Console

    @classmethod
    def open(cls, stream: TextIO, mode: Mode | Literal["auto"] = "auto") -> "TerminalView":
        """
        A view on `stream`. The variables TERM, COLORTERM and NO_COLOR tell how many colours a terminal has.

        Args:
            mode: `"auto"` means colours on a terminal that has at least 256, numbers on another terminal, and text
                alone elsewhere. With `"color"` there are at least 256 colours, whatever the stream.
        """
        console = Console(file=stream, force_terminal=stream.isatty(), force_jupyter=False)
        has_colors = console.color_system in _COLOR_SYSTEMS and not console.no_color
        if mode == "auto":
            mode = ("color" if has_colors else "numbers") if stream.isatty() else "none"
        if console.options.ascii_only and hasattr(stream, "reconfigure"):
            # A character that the stream cannot encode must not end the command.
            stream.reconfigure(errors="replace")
        if mode == "color" and not has_colors:
            console = Console(
                file=stream, force_terminal=True, force_jupyter=False, color_system="256", no_color=False
            )
        return cls(mode, console)

    def show_all(self, texts: Sequence[GeneratedText]) -> None:
        """All texts with a blank line between two of them, and a legend at the end."""
        scale = DepthScale.over(texts, prompts=False)
        for index, text in enumerate(texts):
            if index:
                self._print([Segment("\n")])
            self._print([*self._prompt(text.prompt), *self._pieces(text.pieces, scale), Segment("\n")])
        if self.mode != "none":
            self._print([Segment("\n")])
            self.show_legend(scale)

    def show_prompt(self, prompt: str) -> None:
        """The prompt of a text that is about to be streamed, dimmed where there are colours."""
        self._print(self._prompt(prompt))

    def show_piece(self, piece: Piece, scale: DepthScale) -> None:
        """One piece of a text that is streamed."""
        self._print(self._pieces([piece], scale))

    def end_stream(self, scale: DepthScale) -> None:
        """The legend, below the text that was streamed."""
        self._print([Segment("\n\n")])
        self.show_legend(scale)

    def show_legend(self, scale: DepthScale) -> None:
        """What colours or numbers mean, wrapped at the width of the console; nothing for text alone."""
        if self.mode == "numbers":
            legend = f"The number after a token is its recurrences: token{self._number(scale.most)}."
            self.console.print(Text(legend))
        elif self.mode == "color":
            cells = [Text(f" {depth} ", self._style(scale, depth)) for depth in scale.legend()]
            self.console.print(Text(" ").join([*cells, Text("recurrences")]))

    def _print(self, segments: Iterable[Segment]):
        # Segments are not wrapped, cropped or searched for markup. Nothing is written for an empty list.
        self.console.print(Segments(segments), crop=False, no_wrap=True)

    def _prompt(self, prompt):
        if self.mode == "color":
            return _by_line(visible(prompt), _DIM)
        return [Segment(self._plain(prompt))]

    def _pieces(self, pieces, scale):
        segments = []
        for piece in pieces:
            text = self._plain(piece.text)
            if self.mode == "color":
                # A line end has no background.
                text = text.replace("\n", " \n" if self.console.options.ascii_only else "↵\n")
                segments += _by_line(text, self._style(scale, piece.num_recurrences)) if text else []
            elif self.mode == "numbers" and text:
                # After the word and before the line end.
                body = text.rstrip("\n")
                segments.append(Segment(body + self._number(piece.num_recurrences) + text[len(body) :]))
            else:
                segments.append(Segment(text))
        return segments

    def _plain(self, text):
        return visible(text) if self.mode != "none" or self.console.is_terminal else text

    def _number(self, depth):
        return f"[{depth}]" if self.console.options.ascii_only else str(depth).translate(_SUPERSCRIPTS)

    def _style(self, scale, depth):
        system = _COLOR_SYSTEMS[self.console.color_system]
        background = Color.from_rgb(*map_color(_MAP, scale.position(depth))).downgrade(system)
        # Chosen for the colour that the terminal shows.
        return Style(color=Color.from_rgb(*text_color(background.get_truecolor())), bgcolor=background)


def _by_line(text, style):
    """The lines of a text in a style, which ends before each line end: some terminals fill the rest of the line."""
    segments = []
    for index, line in enumerate(text.split("\n")):
        segments += [Segment("\n")] * (index > 0) + ([Segment(line, style)] if line else [])
    return segments


class DepthStreamer:
    """
    A streamer for `generate` that hands on the pieces of one row as soon as their tokens and depths are known.

    Args:
        read (callable): `(token id, recurrences)` -> the pieces that are complete now, as `PieceReader.add`.
        write (callable): called with each piece.
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
