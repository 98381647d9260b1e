"""What the demo page shows: exact readings after every recurrence, steps in boxes, and markup as text."""

import random
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from demo_models import demo_model

from memreason_hf.analysis.kind_colours import KIND_COLOURS
from memreason_hf.analysis.token_depths import DepthScale, Piece, TokenDepth, luminance
from memreason_hf.serving.demo.answers import Answer, Sampling
from memreason_hf.serving.demo.controls import read_depth, read_sampling
from memreason_hf.serving.demo.depth_choice import FIXED
from memreason_hf.serving.demo.handlers import Handlers
from memreason_hf.serving.demo.lens import read_lens
from memreason_hf.serving.demo.prompts import EncodedPrompt
from memreason_hf.serving.demo.rendering import AnswerView, heading, lens_table, message, safe, token_name
from memreason_hf.serving.demo.styles import style_sheet
from memreason_hf.steps import Step, StepScheme, answer_step


HOSTILE = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror=window.pwned=1>",
    "\"'><svg onload=alert(1)>",
    "${alert(1)} {{constructor}} `x`",
    "a\u202egnp.exe\u2066",
    "\x1b[31m\x00",
]
VISITOR = SimpleNamespace(session_hash="visitor")


class Elements(HTMLParser):
    """The elements of a piece of HTML, with their attributes and the text inside."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag != "input":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def of_class(self, name):
        return [attrs for _, attrs in self.elements if name in attrs.get("class", "").split()]


def check_harmless(html):
    found = Elements(html)
    assert not {"script", "img", "iframe", "object", "style", "a", "form"} & {tag for tag, _ in found.elements}
    names = {name for _, attrs in found.elements for name in attrs}
    assert not [name for name in names if name.startswith("on") or name in ("href", "src")]
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x1b]", html)
    return found


def piece(text, depth=1, token_id=5, name=None):
    return Piece(text, (TokenDepth(token_id, text if name is None else name, depth),))


def written(texts, depths=None, ending="eos", prompt=("the", " cat"), lead=0):
    depths = depths or [1] * len(texts)
    return Answer(
        EncodedPrompt(tuple(range(len(prompt))), "".join(prompt), lead),
        choice=None,
        prompt_pieces=tuple(map(piece, prompt)),
        pieces=tuple(piece(*pair) for pair in zip(texts, depths, strict=True)),
        deepest=16,
        ending=ending,
    )


def view(scheme=None, has_depth=True):
    return AnswerView(scheme, has_depth, lambda choice: "fixed")


class TestLens:
    @pytest.mark.parametrize("config", [{}, {"num_prelude_layers": 1, "num_coda_layers": 1}, {"sliding_window": 3}])
    def test_after_each_recurrence_it_is_a_run_of_so_many(self, config):
        model = demo_model(**config).model
        ids = torch.randint(3, model.config.vocab_size, (9,)).tolist()
        position = random.randint(1, len(ids))
        lens = read_lens(model, ids, position, 7, top=4)
        assert [step.recurrence for step in lens.steps] == list(range(1, 8))
        said, leaders = set(), []
        for index, step in enumerate(lens.steps):
            logits = model(torch.tensor([ids]), num_recurrences=step.recurrence).logits[0, position - 1]
            expected = logits.softmax(-1)
            assert step.ids == tuple(expected.topk(4).indices.tolist())
            torch.testing.assert_close(torch.tensor(step.probabilities), expected.topk(4).values, rtol=1e-5, atol=1e-7)
            assert step.entropy == pytest.approx(-(expected * expected.log()).sum().item(), rel=1e-4)
            if position < len(ids):
                assert step.of_answer == pytest.approx(expected[ids[position]].item(), rel=1e-4)
                assert step.rank_of_answer == 1 + (expected > expected[ids[position]]).sum()
            said.add(step.probabilities)
            leaders.append(step.ids[0])
            curves = torch.tensor([curve[index] for curve in lens.curves])
            torch.testing.assert_close(curves, expected[list(lens.leaders)], rtol=1e-5, atol=1e-7)
        assert list(lens.leaders) == list(dict.fromkeys(reversed(leaders)))
        # Depth must matter here, or the test would show nothing.
        assert len(said) > 3

    def test_the_answer_is_on_top_where_its_depth_was_fixed(self):
        demo = demo_model()
        (*_, answer) = demo.answer("the cat", demo.options.choose(FIXED, 6, {}), Sampling(max_new_tokens=4))
        for position in range(len(answer.prompt.ids), len(answer.ids)):
            last = read_lens(demo.model, answer.ids, position, 6).steps[-1]
            assert (last.ids[0], last.rank_of_answer) == (answer.ids[position], 1)

    def test_after_the_end_nothing_is_compared(self):
        step = read_lens(demo_model().model, [3, 4], 2, 1).steps[0]
        assert step.of_answer is None and step.rank_of_answer is None

    @pytest.mark.parametrize("values", [(0, 3), (4, 3), (2, 0)])
    def test_what_is_out_of_range_is_refused(self, values):
        with pytest.raises(ValueError, match="must be"):
            read_lens(demo_model().model, [3, 4, 5], *values)

    def test_the_table_names_tokens_and_marks_the_recurrence_of_the_answer(self):
        demo = demo_model("chain")
        lens = read_lens(demo.model, demo.encode("<e_1><r_0>", 1).ids, 2, 9)
        found = check_harmless(lens_table(lens, demo.tokenizer, halted=3))
        assert len([tag for tag, _ in found.elements if tag == "tr"]) == 10
        assert len(found.of_class("mr-halted")) == 1
        assert token_name(demo.tokenizer, lens.steps[0].ids[0]) in found.text


class TestAnswers:
    def test_every_token_has_the_colour_of_its_depth(self):
        texts, depths = [" a", "b\n", "", "é"], [1, 16, 4, 2]
        found = check_harmless(view().show(written(texts, depths)))
        own = found.of_class("mr-t")[2:]
        assert [set(attrs["class"].split()) & {"d1", "d2", "d4", "d16"} for attrs in own] == [
            {f"d{depth}"} for depth in depths
        ]
        assert [attrs["data-pos"] for attrs in found.of_class("mr-t")] == [str(i) for i in range(6)]
        assert "5.8 recurrences a token" in found.text and "35.9 % of the deepest (16)" in found.text
        assert "ended by the model" in found.text

    def test_depths_of_the_prompt_are_shown_once_they_are_known(self):
        for ending, number in ((None, 1), ("eos", 3)):
            found = Elements(view().show(written(["x"], ending=ending)))
            assert len([attrs for attrs in found.of_class("mr-t") if "data-depth" in attrs]) == number
            assert len(found.of_class("mr-cursor")) == (ending is None)

    def test_a_model_without_recurrences_shows_none(self):
        found = Elements(view(has_depth=False).show(written(["x", "y"])))
        assert "recurrence" not in found.text and not found.of_class("mr-profile")
        assert not [attrs for _, attrs in found.elements if "data-depth" in attrs or re.search(r"\bd1\b", str(attrs))]

    @pytest.mark.parametrize("hostile", HOSTILE)
    def test_markup_is_text_wherever_it_comes_from(self, hostile):
        answer = written([hostile, "x"], prompt=(hostile, "y"))
        pieces = (Piece("", (TokenDepth(7, hostile, 2),)), *answer.pieces)
        answer = Answer(**{**vars(answer), "pieces": pieces, "prompt": EncodedPrompt((0, 1), hostile, 0, hostile)})
        for html in (view().show(answer, selected=1), message(hostile), heading(hostile, hostile)):
            found = check_harmless(html)
            assert "alert(1)" in found.text or "alert" not in hostile
        assert safe(hostile) == safe(safe(hostile).replace("&lt;", "<")) or "&" in safe(hostile)

    def test_directions_are_shown_by_name(self):
        assert safe("a\u202eb\u2069") == "a[U+202E]b[U+2069]"
        assert safe("שלום नमस्ते") == "שלום नमस्ते"

    def test_steps_are_in_boxes_of_their_kind(self):
        scheme = StepScheme(num_prefix_tokens=1, num_step_tokens=1)
        steps = [Step("memory", "air scatters"), Step("reason", "so blue"), answer_step("True")]
        tokens = re.findall(r"<\w+>| ?\w+:?|\n", scheme.render(steps))
        answer = written(tokens[1:], prompt=("q", "?\n", tokens[0]), lead=1)
        found = check_harmless(view(scheme).show(answer))
        boxes = [attrs["class"].split()[1] for attrs in found.of_class("mr-step")]
        assert boxes == ["k-memory", "k-reason", "k-answer"]
        # The prefix token at the end of the prompt belongs to the first step.
        html = view(scheme).show(answer)
        assert html.index("k-memory") < html.index(safe(tokens[0]))

    def test_a_step_that_is_being_written_is_in_no_box_yet(self):
        scheme = StepScheme(num_prefix_tokens=1, num_step_tokens=2)
        found = Elements(view(scheme).show(written(["<memory_0>"], ending=None, prompt=("q\n", "<prefix>"), lead=1)))
        assert [attrs["class"] for attrs in found.of_class("mr-step")] == ["mr-step"]

    def test_tokens_that_differ_are_marked(self):
        found = Elements(view().show(written(["a", "b", "c"]), marks=[False, True, False]))
        assert [attrs["data-pos"] for attrs in found.of_class("mr-differs")] == ["3"]


class TestHandlers:
    def controls(self, demo, criterion=FIXED, recurrences=4):
        return [criterion, recurrences, *(given.position for given in demo.options.ranges.values())]

    def sampling(self, length=5):
        return [length, False, 1.0, 0, 1.0, 0]

    def test_an_answer_then_the_lens_of_its_first_token(self):
        demo = demo_model(seed=0)
        handlers = Handlers(demo)
        updates = list(handlers.run(VISITOR, "the cat", *self.controls(demo), *self.sampling()))
        assert [running for *_, running in updates[:-1]] == [True] * (len(updates) - 1)
        _, answer, running = updates[-1]
        assert not running and answer.ending is not None
        start = handlers.start(answer)
        assert start == len(answer.prompt.ids)
        choices = handlers.choices(answer)
        assert choices[0] == (f"answer 1: {token_name(demo.tokenizer, answer.ids[start])}", start)
        assert {position for _, position in choices} == set(range(1, len(answer.ids) + 1))
        shown, lens = handlers.look(answer, start)
        assert len(Elements(shown).of_class("mr-selected")) == 1
        assert len(Elements(lens).of_class("mr-halted")) == 1
        for position in (0, None, len(answer.ids) + 1):
            assert handlers.look(answer, position)[1] == handlers.empty_lens

    @pytest.mark.parametrize(
        ("prompt", "said"), [("", "empty"), ("a" * 20_001, "characters"), ("the " * 300, "at most 200")]
    )
    def test_errors_are_messages_in_the_page(self, prompt, said):
        demo = demo_model()
        ((html, answer, running),) = Handlers(demo).run(VISITOR, prompt, *self.controls(demo), *self.sampling())
        assert answer is None and not running
        found = check_harmless(html)
        assert said in found.text and found.elements[0][1]["role"] == "alert"

    @pytest.mark.parametrize(
        "values",
        [
            [5, False, 0.0, 0, 1.0, 0],
            [5, True, 1.0, -1, 1.0, 0],
            [5, True, 1.0, 0, 0.0, 0],
            [5, True, 1.0, 0, 1.0, -1],
            [None, False, 1.0, 0, 1.0, 0],
            [2.5, False, 1.0, 0, 1.0, 0],
            ["5", False, 1.0, 0, 1.0, 0],
        ],
    )
    def test_sampling_out_of_range_is_refused(self, values):
        with pytest.raises(ValueError, match="must be"):
            read_sampling(values)

    def test_two_depths(self):
        demo = demo_model(seed=0)
        controls = [*self.controls(demo, FIXED, 1), *self.controls(demo, FIXED, 9)]
        (*_, (left, right, note, running)) = Handlers(demo).run_both(VISITOR, "the cat", *controls, *self.sampling())
        assert not running
        assert "6.00" not in note and "9.00 times" in note
        assert ("differ" in note) == bool(
            Elements(left).of_class("mr-differs") or Elements(right).of_class("mr-differs")
        )
        same = [*self.controls(demo, FIXED, 3)] * 2
        (*_, (left, right, note, _)) = Handlers(demo).run_both(VISITOR, "the cat", *same, *self.sampling())
        assert "the same answer" in note and not Elements(left).of_class("mr-differs")

    def test_controls_are_read_in_their_order(self):
        demo = demo_model()
        choice, rest = read_depth(demo.options, [*self.controls(demo, "entropy", 7), "rest"])
        assert (choice.criterion, choice.recurrences, rest) == ("entropy", 7, ["rest"])
        plain = demo_model("plain")
        assert read_depth(plain.options, ["rest"])[1] == ["rest"]


def test_colours_can_be_read():
    for deepest in (1, 9, 128):
        css = style_sheet(deepest)
        rules = re.findall(r"^((?:\.dark )?\.d\d+) \{ background: #(\w{6}); color: #(\w{6}); \}$", css, re.MULTILINE)
        assert len(rules) == 2 * deepest
        for _, *colours in rules:
            bright, dim = sorted((luminance(tuple(bytes.fromhex(colour))) for colour in colours), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5
    assert all(colour in css for colour in KIND_COLOURS.values())
    assert "http" not in css and "url(" not in css and "@import" not in css
    assert DepthScale(1, 128).position(128) == 1
