"""Texts of others, on a terminal, on a page and in a message."""

import io
import unicodedata

import pytest
from depth_texts import piece
from huggingface_hub.errors import StrictDataclassError

from memreason_hf.analysis.token_depth_page import render_page
from memreason_hf.analysis.token_depth_terminal import TerminalView
from memreason_hf.analysis.token_depths import GeneratedText
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.model_flags import ModelFlags
from memreason_hf.messages import describe_field_error, visible
from modeling_recurrent import RecurrentDepthConfig


CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"]
DIRECTIONS = [chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))]
HIDDEN = [*CONTROLS, *DIRECTIONS, "\u2028", "\u2029", "\U000e0041", "\ud800"]


@pytest.mark.parametrize("character", HIDDEN, ids=lambda c: f"U+{ord(c):04X}")
def test_characters_that_control_what_is_shown_become_visible(character):
    shown = visible(f"a{character}b")
    assert character not in shown and shown.startswith("a") and shown.endswith("b") and len(shown) > 2
    assert all(unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in shown)


def test_all_other_text_stays_exactly_as_it_is():
    text = "a\n\tb é 日本 \u200dzwj\u200c \u200f \U0001f469\u200d\U0001f680 नमस्ते $x_1$"
    assert visible(text) == text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def hostile_text():
    everything = "".join(HIDDEN[:-1])
    return GeneratedText("p", (piece("p", (1, "p", 2)),), (piece(everything, (2, everything, 3)),), "eos")


@pytest.mark.parametrize("mode", ["none", "numbers"])
def test_nothing_of_them_reaches_a_terminal(mode):
    stream = Terminal()
    TerminalView.open(stream, mode).show_all([hostile_text()])
    assert not set(HIDDEN) & set(stream.getvalue())


def test_a_pipe_receives_the_exact_text():
    stream = io.StringIO()
    TerminalView.open(stream, "none").show_all([hostile_text()])
    assert "".join(HIDDEN[:-1]) in stream.getvalue()


def test_nor_a_page():
    page = render_page([hostile_text()], title="a\u202eb", description="\x1b[2J\u2066")
    assert not set(HIDDEN) & set(page)
    assert "[U+202E]" in page and "[U+2066]" in page


def test_nor_a_message_or_a_title(capsys):
    with pytest.raises(SystemExit), user_errors("memreason example"):
        raise ValueError("model='\x1b]0;title\x07\u202efolder' is not there.")
    assert not set(HIDDEN) & set(capsys.readouterr().err)
    assert not set(HIDDEN) & set(ModelFlags("runs/\x1b[2J\u202em").short_name)


def test_a_lack_of_memory_is_one_line(capsys):
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 bytes.")):
        with pytest.raises(SystemExit), user_errors("memreason example"):
            raise error
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("memreason example: error: Not enough memory (")
    # Any other error of torch is a bug, and keeps its traceback.
    with pytest.raises(RuntimeError), user_errors("memreason example"):
        raise RuntimeError("shapes differ")


def test_field_errors_name_the_field():
    with pytest.raises(StrictDataclassError) as raised:
        RecurrentDepthConfig(kl_threshold=-1.0)
    assert describe_field_error(raised.value) == "kl_threshold: Value must be above 0, got -1.0."
    with pytest.raises(StrictDataclassError) as raised:
        RecurrentDepthConfig(min_recurrences=20)
    assert describe_field_error(raised.value) == "min_recurrences=20 is above max_recurrences=16."
