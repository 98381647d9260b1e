import random
import re
from html.parser import HTMLParser

import pytest
import torch
from depth_texts import piece, sample_text
from result_schemas import assert_schema_describes_itself, assert_written_and_read
from text_models import TEXT, text_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from memreason_hf.analysis import token_depth_page, token_depth_terminal
from memreason_hf.analysis.token_depth_page import render_page
from memreason_hf.analysis.token_depths import (
    DepthScale,
    GeneratedText,
    PieceReader,
    depth_statistics,
    depths_document,
    luminance,
    map_color,
    text_color,
)
from memreason_hf.data.chains.tokenizer import build_tokenizer, build_vocabulary
from memreason_hf.evaluation import describe_environment
from memreason_hf.messages import visible


WORDS = [
    "the ",
    "cat",
    " dog",
    "é",
    "日本",
    "👩\u200d👧",
    "\n",
    "\t",
    "<memory>",
    "<reason>",
    " ",
    "  ",
    "ß€",
    "</b>",
    '&"',
]


def byte_fallback_tokenizer():
    """As Llama 2 has it: `▁` for blanks, which is no text at the start, and bytes where there is no token."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁cat", "the", "cat", "s"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "the"), ("▁", "cat")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def wordpiece_tokenizer():
    vocabulary = {"[UNK]": 0, "the": 1, "cat": 2, "##s": 3, "play": 4, "##ing": 5}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


class TestPieceReader:
    def read(self, tokenizer, ids, hidden=()):
        depths = [random.randint(1, 9) for _ in ids]
        found = PieceReader(tokenizer, hidden).read(ids, depths)
        tokens = [(token.id, token.num_recurrences) for piece in found for token in piece.tokens]
        assert tokens == list(zip(ids, depths))
        return found

    def test_pieces_are_the_text(self):
        tokenizer = text_tokenizer()
        for _ in range(50):
            text = "".join(random.choices([*WORDS, TEXT], k=8))
            found = self.read(tokenizer, tokenizer(text)["input_ids"])
            assert "".join(piece.text for piece in found) == text
            assert all(piece.text and "\ufffd" not in piece.text for piece in found)

    def test_a_character_over_several_tokens_is_one_piece(self):
        tokenizer = text_tokenizer()
        ids = tokenizer("日")["input_ids"]
        (found,) = PieceReader(tokenizer).read(ids, [2, 7, 3])
        assert found.text == "日" and found.num_recurrences == 7 and len(found.tokens) == 3

    @pytest.mark.parametrize(
        ("make", "texts"),
        [
            (byte_fallback_tokenizer, ["the cat the", "the cats", "日the", " the  日本cat"]),
            (wordpiece_tokenizer, ["the cats playing", "cat cat plays"]),
            (lambda: build_tokenizer(build_vocabulary(3, 2)), ["<e_0><r_1><r_0>", "<e_2></a>"]),
        ],
        ids=["byte_fallback", "wordpiece", "multi_hop"],
    )
    def test_other_tokenizers(self, make, texts):
        tokenizer = make()
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            expected = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            assert "".join(piece.text for piece in self.read(tokenizer, ids)) == expected

    def test_blanks_depend_on_what_stands_before(self):
        tokenizer = byte_fallback_tokenizer()
        reader = PieceReader(tokenizer)
        prompt = tokenizer("the cat")["input_ids"]
        assert "".join(piece.text for piece in reader.read(prompt, [1] * len(prompt))) == "the cat"
        (the,) = tokenizer.convert_tokens_to_ids(["▁the"])
        assert [piece.text for piece in reader.add(the, 1)] == [" the"]

    def test_bytes_that_are_no_text_are_handed_out_all_the_same(self):
        tokenizer = text_tokenizer()
        start, *_ = tokenizer("日")["input_ids"]
        reader = PieceReader(tokenizer)
        counts = [sum(len(piece.tokens) for piece in reader.add(start, 1)) for _ in range(40)]
        assert sum(counts) >= 32 and max(counts) <= 8
        for _ in range(30):
            self.read(tokenizer, torch.randint(len(tokenizer), (40,)).tolist())

    def test_an_unfinished_character_ends_a_text(self):
        tokenizer = text_tokenizer()
        ids = tokenizer("a日")["input_ids"]
        found = self.read(tokenizer, ids[:-1])
        assert [piece.text for piece in found] == ["a", "\ufffd"]

    def test_tokens_that_are_no_text(self):
        tokenizer = text_tokenizer()
        ends = tokenizer.eos_token_id
        ids = [*tokenizer("the<memory> cat")["input_ids"], ends, *tokenizer(" dog")["input_ids"]]
        found = self.read(tokenizer, ids, hidden={ends})
        assert "".join(piece.text for piece in found) == "the<memory> cat dog"
        assert [piece.tokens[0].token for piece in found if not piece.text] == ["</s>"]
        # A row of the embedding behind the vocabulary.
        (beyond,) = self.read(tokenizer, [len(tokenizer) + 5])
        assert beyond.tokens[0].token == f"<{len(tokenizer) + 5}>"


class TestScale:
    def test_positions_rise_from_end_to_end(self):
        scale = DepthScale(2, 32)
        positions = [scale.position(depth) for depth in range(2, 33)]
        assert positions == sorted(positions) and len(set(positions)) == 31
        assert (positions[0], positions[-1]) == (0, 1)
        assert scale.position(4) - scale.position(2) == pytest.approx(scale.position(16) - scale.position(8))
        assert scale.position(1) == 0 and scale.position(99) == 1
        assert DepthScale(4, 4).position(4) == 0.5

    def test_legends(self):
        assert DepthScale(3, 9).legend() == list(range(3, 10))
        assert DepthScale(4, 4).legend() == [4]
        assert DepthScale(1, 16).legend() == list(range(1, 17))  # as many as a model takes by default
        for most in (20, 64, 500):
            legend = DepthScale(1, most).legend()
            assert legend[0] == 1 and legend[-1] == most and legend == sorted(set(legend)) and len(legend) <= 16

    def test_from_least_to_most(self):
        assert DepthScale.over([sample_text()]) == DepthScale(1, 16)
        text = GeneratedText("p", (piece("p", (1, "p", 30)),), (piece("q", (1, "q", 3)),), "length")
        assert DepthScale.over([text]) == DepthScale(3, 30)
        assert DepthScale.over([text], prompts=False) == DepthScale(3, 3)

    @pytest.mark.parametrize(
        "colors",
        [token_depth_page._LIGHT, token_depth_page._DARK, (token_depth_terminal._MAP, 0, 1)],
        ids=["light", "dark", "terminal"],
    )
    def test_text_can_be_read_and_order_is_seen_without_hue(self, colors):
        name, low, high = colors
        backgrounds = [map_color(name, low + (high - low) * i / 30) for i in range(31)]
        for background in backgrounds:
            one, other = sorted((luminance(background), luminance(text_color(background))))
            assert (other + 0.05) / (one + 0.05) >= 4.5
        grey = [luminance(background) for background in backgrounds]
        assert grey in (sorted(grey), sorted(grey, reverse=True))


def test_visible():
    every = "".join(map(chr, range(0x100)))
    shown = visible(every)
    assert len(shown) == len(every)
    assert [c for c in shown if not c.isprintable() and c not in "\xa0\xad"] == ["\t", "\n"]


class PageReader(HTMLParser):
    """Tags that are open, the texts of continuations and prompts, and the tokens with their attributes."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tokens, self.tags, self.attributes, self.texts = [], [], set(), set(), []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        self.attributes |= set(attributes)
        if tag not in ("meta", "input"):
            self.open.append((tag, attributes))
        if attributes.get("class") == "text":
            self.texts.append("")
        if "data-depth" in attributes:
            self.tokens.append([attributes, ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        classes = [attributes.get("class") for _, attributes in self.open]
        if "text" in classes and "end" not in classes:
            self.texts[-1] += data
            if self.open[-1][0] == "span":
                self.tokens[-1][1] += data


class TestPage:
    def test_holds_every_token_with_its_depth(self):
        text = sample_text()
        page = render_page([text, text], "a/<model>", "by \"kl\" & 'more'")
        reader = PageReader(page)
        assert reader.open == [] and reader.tags <= {
            *("html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "p", "div", "span", "label"),
            *("input", "main", "article", "i"),
        }
        assert reader.texts == ["a <b>\n", "</span><script>日x\n\n␛[31m␀</s>"] * 2
        pieces = [*text.prompt_pieces, *text.pieces] * 2
        assert [int(attributes["data-depth"]) for attributes, _ in reader.tokens] == [
            p.num_recurrences for p in pieces
        ]
        tips = [attributes["title"] for attributes, _ in reader.tokens[:8]]
        assert tips[0] == "a (id 1): 2 recurrences" and tips[2] == "Ċ (id 3): 1 recurrence"
        assert tips[4] == "æ (id 5): 5 recurrences; Ĺ (id 6): 9 recurrences; ¥ (id 7): 6 recurrences"
        assert tips[6] == '"& (id 9): 1 recurrence'
        assert "7 tokens, 1 to 16 recurrences, mean 6.7; ended by the model" in page

    def test_every_depth_has_a_color_in_the_light_and_in_the_dark(self):
        page = render_page([sample_text()], "model", "")
        light, dark = page.split("</style>")[0].rsplit("@media (prefers-color-scheme: dark)", 1)
        used = set(re.findall(r'class="t(?: mark)? (d\d+)"', page))
        assert {"d1", "d9", "d16"} <= used
        for name in used:
            assert len(re.findall(rf"\.{name} {{ background: #[0-9a-f]{{6}}; color: #[0-9a-f]{{6}}; }}", light)) == 1
            assert f".{name} {{" in dark

    def test_stands_alone(self):
        page = render_page([sample_text()], "model", "")
        reader = PageReader(page)
        assert not reader.attributes & {"src", "href", "onclick", "style"}
        assert "url(" not in page and "@import" not in page and "://" not in page
        assert all(character.isprintable() or character == "\n" for character in page)

    def test_what_cannot_be_written_as_utf_8(self):
        text = GeneratedText("p", (piece("p", (1, "p", 1)),), (piece("\ud800", (2, "\ud800", 1)),), "length")
        assert render_page([text], "model", "").encode("utf-8")


def test_document(tmp_path):
    text = sample_text()
    settings = {"num_recurrences": 4, "seed": None}
    model = {"name_or_path": "runs/model", "model_type": "recurrent_depth", "num_parameters": 7, "dtype": "float32"}
    environment = describe_environment("cpu")
    document = depths_document([text, text], model, settings, 1.5, environment)
    assert_schema_describes_itself("generation")
    assert_written_and_read(document, tmp_path / "depths.json")
    assert (document["kind"], document["model"], document["settings"]) == ("generation", model, settings)
    assert document["seconds"] == 1.5 and document["environment"] == environment and len(document["outputs"]) == 2
    output = document["outputs"][0]
    assert output["text"] == text.text == "".join(token["text"] for token in output["tokens"])
    assert output["prompt"] == text.prompt == "".join(token["text"] for token in output["prompt_tokens"])
    assert output["tokens"][1:4] == [
        {"id": 5, "token": "æ", "text": "", "num_recurrences": 5},
        {"id": 6, "token": "Ĺ", "text": "", "num_recurrences": 9},
        {"id": 7, "token": "¥", "text": "日", "num_recurrences": 6},
    ]
    assert output["recurrences"] == depth_statistics([text]) == {"mean": 47 / 7, "minimum": 1, "maximum": 16}
    with pytest.raises(ValueError, match=r"seconds='1.5' must be a number"):
        depths_document([text], model, settings, "1.5", environment)
    with pytest.raises(ValueError, match=r"settings\.seed=\{3\} must be a JSON value"):
        depths_document([text], model, {"seed": {3}}, 1.5, environment)
    depths_document([text], model, {"seed": [1, {"a": None}]}, 1.5, environment)
