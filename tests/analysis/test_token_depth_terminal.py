"""Depths on a terminal: colours, numbers, and nothing that steers it."""

import re
from io import StringIO

import pytest
import torch
from depth_texts import piece, sample_text
from rich.console import Console

from memreason_hf.analysis.token_depth_terminal import DepthStreamer, TerminalView
from memreason_hf.analysis.token_depths import DepthScale, GeneratedText


ANSI = re.compile(r"\x1b\[[0-9;]*m")
SCALE = DepthScale(1, 16)
CODES = {
    "256": r"\x1b\[38;5;(16|231);48;5;\d+m",
    "truecolor": r"\x1b\[38;2;(0;0;0|255;255;255);48;2;\d+;\d+;\d+m",
}
CONTROLS = "".join(chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t")


class Stream(StringIO):
    def __init__(self, is_terminal, encoding="utf-8"):
        super().__init__()
        self.is_terminal, self._encoding = is_terminal, encoding

    def isatty(self):
        return self.is_terminal

    @property
    def encoding(self):
        return self._encoding


@pytest.fixture
def variables(monkeypatch):
    """Sets the variables that tell of colours; others are removed."""

    def set_variables(**values):
        for name in ("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    set_variables(TERM="xterm-256color")
    return set_variables


def show(mode, act, colors="256", is_terminal=True, encoding="utf-8", width=80):
    """What `act` writes to a view of a terminal."""
    stream = Stream(is_terminal, encoding)
    color_system = colors if is_terminal or mode == "color" else None
    console = Console(file=stream, force_terminal=is_terminal, color_system=color_system, no_color=False, width=width)
    act(TerminalView(mode, console))
    return stream.getvalue()


def texts(*depths):
    """Shows the sample text, once or several times."""
    return lambda view: view.show_all([sample_text()] * (depths or (1,))[0])


@pytest.mark.parametrize(
    ("is_terminal", "values", "mode", "colors"),
    [
        (True, {"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "color", "truecolor"),
        (True, {"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": ""}, "color", "truecolor"),
        (True, {"TERM": "screen-256color"}, "color", "256"),
        (True, {"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": "1"}, "numbers", None),
        (True, {"TERM": "xterm"}, "numbers", None),
        (True, {"TERM": "dumb"}, "numbers", None),
        (True, {}, "numbers", None),
        (False, {"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "none", None),
        # Others may want colours in a file; here it holds the text alone.
        (False, {"TERM": "xterm-256color", "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}, "none", None),
    ],
)
def test_how_depths_are_shown(is_terminal, values, mode, colors, variables):
    variables(**values)
    view = TerminalView.open(Stream(is_terminal))
    assert view.mode == mode
    if mode == "color":
        assert view.console.color_system == colors and not view.console.no_color
    view.show_all([sample_text()])
    if mode == "none":
        assert view.console.file.getvalue() == f"{sample_text().prompt}{sample_text().text}\n"
    # The sample itself holds the code of red, which a file keeps.
    codes = set(ANSI.findall(view.console.file.getvalue())) - {"\x1b[31m"}
    assert bool(codes) is (mode == "color")


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("values", [{"NO_COLOR": "1", "TERM": "xterm"}, {"TERM": "dumb"}])
def test_colors_can_be_asked_for_anywhere(is_terminal, values, variables):
    variables(**values)
    view = TerminalView.open(Stream(is_terminal), "color")
    view.show_all([sample_text()])
    assert re.search(CODES["256"], view.console.file.getvalue())


@pytest.mark.parametrize("colors", ["256", "truecolor"])
def test_colors(colors):
    shown = show("color", texts(), colors)
    text, legend = shown.rsplit("\n\n", 1)
    assert all(line == "" or line.endswith("\x1b[0m") for line in text.split("\n"))
    assert ANSI.sub("", text) == "a <b>\n</span><script>日x↵\n↵\n␛[31m␀"
    # No line ends with an open colour, nothing but colours steers the terminal.
    for line in shown.split("\n"):
        assert ANSI.findall(line)[-1:] in ([], ["\x1b[0m"])
        assert "\x1b" not in ANSI.sub("", line)
    codes = [
        show("color", lambda view, depth=depth: view.show_piece(piece("x", (1, "x", depth)), SCALE), colors)
        for depth in (1, 4, 16)
    ]
    assert len(set(codes)) == 3
    assert all(re.fullmatch(CODES[colors] + r"x\x1b\[0m", code) for code in codes)
    assert ANSI.sub("", legend).split() == [*map(str, range(1, 17)), "recurrences"]
    # The prompt is dimmed.
    assert text.startswith("\x1b[2ma <b>\x1b[0m\n")


def test_numbers():
    shown = show("numbers", texts())
    assert shown.startswith("a <b>\n</span><script>³日⁹x¹⁶\n\n␛[31m␀¹\n\n")
    assert shown.endswith("token¹⁶.\n") and "\x1b" not in shown
    third = sample_text().pieces[2]
    assert show("numbers", lambda view: view.show_piece(third, SCALE), encoding="ascii") == "x[16]\n\n"


def test_a_file_holds_the_text_as_it_is():
    text = sample_text()
    whole = text.prompt + text.text
    assert "\x1b[31m\x00" in whole
    assert show("none", texts(), is_terminal=False) == f"{whole}\n"
    assert show("none", texts(2), is_terminal=False) == f"{whole}\n\n{whole}\n"


def test_text_alone_on_a_terminal_has_no_control_characters():
    shown = show("none", texts())
    assert shown == "a <b>\n</span><script>日x\n\n␛[31m␀\n"


@pytest.mark.parametrize("mode", ["color", "numbers", "none"])
@pytest.mark.parametrize("streamed", [True, False])
def test_no_control_character_reaches_a_terminal(mode, streamed):
    hostile = f"a{CONTROLS}\x1b]0;title\x07\x1b[2J\u009b31m\tb"
    text = GeneratedText(hostile, (), (piece(hostile, (1, "x", 3)),), "length")

    def stream(view):
        view.show_prompt(text.prompt)
        view.show_piece(text.pieces[0], SCALE)
        view.end_stream(SCALE)

    shown = ANSI.sub("", show(mode, stream if streamed else lambda view: view.show_all([text])))
    assert not set(shown) & set(CONTROLS)
    assert shown.count("]0;title␇") == 2
    # Control: a file gets all of them.
    assert set(CONTROLS) <= set(show("none", lambda view: view.show_all([text]), is_terminal=False))


def test_a_long_text_is_neither_wrapped_nor_cut_nor_marked_up():
    long = "[bold]not markup[/bold] :smile: 'quoted' 123 " + "x" * 500 + "   "
    for mode, expected in (("none", long), ("numbers", f"{long}³")):
        shown = show(mode, lambda view: view.show_piece(piece(long, (1, "x", 3)), SCALE), width=20)
        assert shown == expected


def test_several_texts_and_one_legend():
    shown = show("numbers", texts(2))
    assert shown.count("The number after a token is its recurrences") == 1 and shown.endswith("¹⁶.\n")
    assert shown.count("a <b>") == 2


@pytest.mark.parametrize("width", [20, 33, 120])
def test_the_legend_respects_the_width(width):
    shown = ANSI.sub("", show("color", lambda view: view.show_legend(DepthScale(1, 500)), width=width))
    lines = shown.split("\n")
    assert max(map(len, lines)) <= width and (len(lines) > 2) is (width < 120)
    assert shown.split() == [*map(str, DepthScale(1, 500).legend()), "recurrences"]


def test_a_stream_that_cannot_encode_a_character():
    changes = []
    stream = Stream(True, "latin-1")
    stream.reconfigure = lambda **values: changes.append(values)
    view = TerminalView.open(stream, "numbers")
    view.show_piece(piece("x", (1, "x", 16)), SCALE)
    assert stream.getvalue() == "x[16]" and changes == [{"errors": "replace"}]


@pytest.mark.parametrize("depth_first", [True, False])
def test_streamer_pairs_tokens_with_depths(depth_first):
    read, written = [], []
    streamer = DepthStreamer(lambda *pair: read.append(pair) or [pair], written.append)
    streamer.put(torch.tensor([[5, 6, 7]]))
    for ids, depths in (([1], [[4]]), ([2, 3], [[5, 6]])):
        calls = [(streamer.put_recurrences, depths), (streamer.put, ids)]
        for give, values in calls if depth_first else reversed(calls):
            give(torch.tensor(values))
    streamer.put_recurrences(torch.tensor([[9]]))
    streamer.end()
    assert read == written == [(1, 4), (2, 5), (3, 6)]
