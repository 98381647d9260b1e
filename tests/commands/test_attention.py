"""memreason attention as a user runs it, on small models made on the spot."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from paths import PUBLISHED, ROOT
from refusals import refused
from small_adapters import adapted, as_if_trained, save_base
from small_tokenizers import byte_level, gpt2, llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from memreason_hf.adapters.modes import save_adapter
from memreason_hf.analysis.attention_maps import read_attention, uniform_attention
from memreason_hf.commands.attention import main, make_parser
from memreason_hf.evaluation.solutions.generation import generate_solutions
from memreason_hf.steps import Step, StepScheme, answer_step
from memreason_hf.steps.tokenization import encode_prompt, encode_solution, extend_tokenizer
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


TEXTS = PUBLISHED / "stratgeqa_agent_llama-2-7b-chat.json"
SCHEME = StepScheme(1, 2)
STEPS = [Step("memory", "the step"), Step("reason", "so"), answer_step("True")]
TEXT = SCHEME.question_text("Is it?") + SCHEME.render(STEPS)


def looped(vocab_size):
    return RecurrentDepthForCausalLM(
        RecurrentDepthConfig.llama_style(
            vocab_size=vocab_size,
            hidden_size=16,
            intermediate_size=24,
            num_attention_heads=2,
            num_prelude_layers=1,
            num_recurrent_layers=2,
            num_recurrences=2,
            initializer_range=0.3,
            halting_criterion="state_difference",
            pad_token_id=2,
            eos_token_id=1,
        )
    )


def save_model(folder, make=llama, scheme=SCHEME):
    tokenizer = byte_level()
    model = make(len(tokenizer))
    if scheme is not None:
        extend_tokenizer(tokenizer, scheme, model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def model(tmp_path):
    return save_model(tmp_path / "model")


@pytest.fixture
def deep(tmp_path):
    return save_model(tmp_path / "deep", looped)


def run(*arguments):
    return main([*map(str, arguments), "--device", "cpu"])


def refusal(capsys, *arguments):
    return refused(capsys, run, *arguments)


def shares_by_hand(weights, lengths):
    """Sums over the blocks of neighbouring tokens, a mean over the attending ones."""
    ends = np.cumsum(lengths)
    blocks = [slice(end - length, end) for length, end in zip(lengths, ends)]
    return [[weights[a, b].sum() / (a.stop - a.start) for b in blocks] for a in blocks]


def ids_of(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    head = encode_prompt(tokenizer, "Is it?")[:-1]
    return [*head, *encode_solution(tokenizer, STEPS)], [
        len(head),
        *(len(encode_solution(tokenizer, [step])) for step in STEPS),
    ]


@pytest.mark.parametrize("make", [llama, gpt2])
def test_numbers_table_and_pictures(make, tmp_path, capsys):
    folder = save_model(tmp_path / "models" / "one", make)
    assert run(folder, "--text", TEXT, "--output_dir", tmp_path / "out") == 0
    text = capsys.readouterr().out
    files = ["attention.json", "attention.pdf", "attention.png", "attention_weights.npz"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    assert imread(tmp_path / "out" / "attention.png").shape[0] > 1000
    assert (tmp_path / "out" / "attention.pdf").read_bytes().startswith(b"%PDF")

    ids, lengths = ids_of(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        layers = loaded(torch.tensor([ids]), output_attentions=True).attentions
    expected = torch.stack(layers)[:, 0].mean((0, 1)).numpy()
    stored = np.load(tmp_path / "out" / "attention_weights.npz")
    np.testing.assert_allclose(stored["weights"], expected[None], atol=1e-6)
    assert stored["ids"].tolist() == ids and stored["recurrences"].tolist() == [0]

    document = json.loads((tmp_path / "out" / "attention.json").read_text(encoding="utf-8"))
    assert (document["schema_version"], document["kind"], document["truncated"]) == (1, "attention", False)
    assert document["model"]["model_type"] == loaded.config.model_type
    assert document["kinds"] == ["question", "memory", "reason", "answer"] and document["counts"] == lengths
    shares = shares_by_hand(expected, lengths)
    np.testing.assert_allclose(document["maps"][0]["shares"], shares, atol=2e-6)
    even = shares_by_hand(uniform_attention(len(ids)), lengths)
    np.testing.assert_allclose(document["even"], even, atol=1e-6)
    (layer,) = document["layers"]
    for head in (0, 1):
        np.testing.assert_allclose(
            layer["shares"][head], shares_by_hand(layers[0][0, head].numpy(), lengths), atol=2e-6
        )
    assert [token["id"] for token in document["tokens"]] == ids
    assert [span["text"] for span in document["spans"]] == ["Is it?", *(step.text for step in STEPS)]
    for index, token in enumerate(document["tokens"]):
        span = document["spans"][token["span"]]
        assert span["start"] <= index < span["end"] and token["kind"] == span["kind"]

    assert f"models/one over the text: {len(ids)} tokens; steps: 1 memory, 1 reason, 1 answer" in text
    assert "mean over 1 layers, mean over 2 heads" in text and "recurrence" not in text
    lines = [line.split() for line in text.splitlines()]
    assert ["from", "tokens", "attention", "question", "memory", "reason", "answer"] in lines
    assert ["reason", str(lengths[2]), "model", *(f"{100 * share:.1f}" for share in shares[2])] in lines
    assert ["reason", str(lengths[2]), "even", *(f"{100 * share:.1f}" for share in even[2])] in lines


def test_one_map_a_recurrence(deep, tmp_path, capsys):
    flags = [deep, "--text", TEXT, "--head", 2, "--num_recurrences", 3, "--output_dir", tmp_path / "out"]
    assert run(*flags) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    pictures = [f"attention_recurrence_{r}.{suffix}" for r in (1, 2, 3) for suffix in ("pdf", "png")]
    assert names == sorted([*pictures, "attention.json", "attention_weights.npz"])
    text = capsys.readouterr().out
    assert "mean over 2 looped layers, head 2, 3 recurrences" in text
    assert [line.split()[2] for line in text.splitlines() if line.startswith("reason ")] == ["1", "2", "3", "even"]

    ids, lengths = ids_of(deep)
    attention = read_attention(AutoModelForCausalLM.from_pretrained(deep), ids, num_recurrences=3)
    document = json.loads((tmp_path / "out" / "attention.json").read_text(encoding="utf-8"))
    stored = np.load(tmp_path / "out" / "attention_weights.npz")
    assert stored["recurrences"].tolist() == [1, 2, 3]
    for shown, weights, entry in zip(attention.select(head=2), stored["weights"], document["maps"], strict=True):
        np.testing.assert_array_equal(shown.weights, weights)
        assert shown.recurrence == entry["recurrence"]
        np.testing.assert_allclose(entry["shares"], shares_by_hand(weights, lengths), atol=2e-6)
    assert [(entry["layer"], entry["recurrence"]) for entry in document["layers"]] == [
        (1, None),
        *((layer, recurrence) for recurrence in (1, 2, 3) for layer in (2, 3)),
    ]
    assert document["settings"] == {
        "layer": None,
        "head": 2,
        "recurrence": None,
        "num_recurrences": 3,
        "marks_apart": False,
    }
    # Of fewer recurrences there are fewer pictures; those of before would be taken for this text's.
    (tmp_path / "out" / "attention_notes.png").write_bytes(b"mine")
    assert run(*flags, "--num_recurrences", 2, "--overwrite") == 0
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {name for name in names if "_3." not in name} | {"attention_notes.png"}


def test_choices_of_a_deep_model(deep, capsys):
    assert run(deep, "--text", TEXT, "--recurrence", 2, "--layer", 3, "--marks_apart") == 0
    text = capsys.readouterr().out
    assert "layer 3 of 3, mean over 2 heads, 2 recurrences" in text and "Nothing was written" in text
    lines = [line.split() for line in text.splitlines()]
    # Three tokens mark each of the three steps.
    assert ["from", "tokens", "recurrence", "question", "memory", "reason", "answer", "marks"] in lines
    assert [line[1:3] for line in lines if line[:1] == ["marks"]] == [["9", "2"], ["9", "even"]]
    # A layer outside the loop has one map.
    assert run(deep, "--text", TEXT, "--layer", 1) == 0
    assert "attention" in capsys.readouterr().out.splitlines()[3]


def test_pictures_of_chosen_steps_and_a_grid(model, tmp_path, capsys):
    """The numbers are those of the whole text; pictures that are not drawn any more are removed."""
    out = tmp_path / "out"
    flags = [model, "--text", TEXT, "--output_dir", out, "--overwrite"]
    assert run(*flags, "--steps", "memory,answer", "--grid", "--grid_heads", 2, "--marks_apart") == 0
    shown = capsys.readouterr().out
    names = {path.name for path in out.iterdir()}
    assert {"attention_grid.png", "attention_grid.pdf"} <= names and "attention_grid.pdf" in shown
    cropped = imread(out / "attention.png")
    document = json.loads((out / "attention.json").read_text(encoding="utf-8"))
    assert document["counts"] == [*np.subtract(ids_of(model)[1], [0, 3, 3, 3]), 9]
    assert run(*flags, "--marks_apart") == 0
    again = json.loads((out / "attention.json").read_text(encoding="utf-8"))
    assert (again["maps"], again["counts"]) == (document["maps"], document["counts"])
    assert {path.name for path in out.iterdir()} == names - {"attention_grid.png", "attention_grid.pdf"}
    whole = imread(out / "attention.png")
    assert whole.shape != cropped.shape or not np.array_equal(whole, cropped)


def test_many_recurrences_are_shown_in_part(deep, capsys):
    assert run(deep, "--text", TEXT, "--num_recurrences", 11) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[2] for line in lines if line[:1] == ["memory"]] == ["1", "2", "4", "8", "11", "even"]


def test_solutions_of_evaluate_steps(model, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [
        {"question": f"Is it the {name} </s>?", "options": [], "answer": "1"} for name in ("first", "second", "first")
    ]
    file = tmp_path / "texts.jsonl"
    loaded = AutoModelForCausalLM.from_pretrained(model)
    generate_solutions(loaded, tokenizer, rows, max_new_tokens=5, path=file, settings={"num_demonstrations": 4})
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    # What a model without training writes has no steps that one can rely on.
    text = SCHEME.question_text(rows[1]["question"]) + "a line\n" + SCHEME.render(STEPS)
    changed = [{**line, "text": text} if line["index"] == 1 else line for line in lines]
    written = "".join(json.dumps(line) + "\n" for line in changed) + '{"index": 1, "que'
    file.write_text(written, encoding="utf-8")
    assert run(model, "--generations", file, "--index", 1) == 0
    shown = capsys.readouterr()
    assert "over solution 1 of texts.jsonl" in shown.out
    assert "1 memory, 1 reason, 1 answer, 1 step" in shown.out
    assert "generated after 4 solved questions" in shown.err
    # The file may still be written to by the run that makes it.
    assert file.read_text(encoding="utf-8") == written
    message = refusal(capsys, model, "--generations", file)
    assert "index is not given" in message and "holds 3 solutions, of index 0 to 2" in message
    assert "index=7 is not in" in refusal(capsys, model, "--generations", file, "--index", 7)


def test_text_of_a_file_and_of_a_published_list(model, tmp_path, capsys):
    (tmp_path / "solution.txt").write_text(TEXT, encoding="utf-8")
    assert run(model, "--text_file", tmp_path / "solution.txt") == 0
    first = capsys.readouterr().out
    items = [{"generated_text": "Question: other", "result": "wrong"}, {"generated_text": TEXT, "result": "correct"}]
    (tmp_path / "published.json").write_text(json.dumps(items), encoding="utf-8")
    assert run(model, "--generations", tmp_path / "published.json", "--index", 1) == 0
    second = capsys.readouterr().out
    assert first.splitlines()[1:] == second.splitlines()[1:]
    assert "has no marked step" in refusal(capsys, model, "--generations", tmp_path / "published.json", "--index", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", TEXT, "--layer", "2"], "layer=2: there are layers 1 to 1"),
        (["--text", TEXT, "--layer", "0"], "layer=0 must be at least 1"),
        (["--text", TEXT, "--head", "3"], "head=3: there are heads 1 to 2"),
        (["--text", TEXT, "--recurrence", "1"], "is a 'llama' model, without recurrences"),
        (["--text", TEXT, "--num_recurrences", "4"], "is a 'llama' model, without recurrences"),
        (["--text", "Question: Is it?"], "has no marked step, such as a line that begins with '<prefix><memory_0>"),
        (["--text", TEXT + "the " * 3000], "tokens, but the model's context is 2048"),
        (
            ["--text", TEXT, "--text_file", "x"],
            "or --text_file; text and text_file are given",
        ),
        (["--index", "1"], "--text_file; none is given"),
        (["--text", TEXT, "--index", "1"], "index=1 names a solution of --generations, which is not given"),
        (["--text_file", "nowhere.txt"], "text_file='nowhere.txt': no such file"),
        (["--generations", "nowhere.jsonl", "--index", "0"], "generations='nowhere.jsonl': no such file"),
        (["--text", TEXT, "--steps", "1"], "steps='1': this is about pictures. Add --output_dir"),
        (["--text", TEXT, "--grid", "--unit", "token"], "unit='token', grid=True: this is about pictures"),
        (
            ["--text", TEXT, "--output_dir", "out", "--steps", "1,4"],
            "has no '4'. It has the steps 1 to 3 and",
        ),
        (["--text", TEXT, "--output_dir", "out", "--grid_heads", "1"], "grid_heads=[1] chooses maps of the grid"),
        (["--text", TEXT, "--output_dir", "out", "--grid", "--grid_heads", "3"], "there are heads 1 to 2"),
        (["--text", TEXT, "--output_dir", "out", "--unit", "letter"], "letter"),
        (["--text", TEXT, "--lyer=1"], "unknown flag '--lyer=1'. Did you mean --layer?"),
    ],
)
def test_bad_requests_end_with_one_line(model, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, model, *arguments)


def test_choices_that_a_deep_model_lacks(deep, capsys):
    text = ["--text", TEXT]
    assert "recurrence=3: there are recurrences 1 to 2" in refusal(capsys, deep, *text, "--recurrence", 3)
    assert "layer 1 lies outside the loop" in refusal(capsys, deep, *text, "--recurrence", 1, "--layer", 1)
    assert "layer=4: there are layers 1 to 3" in refusal(capsys, deep, *text, "--layer", 4)


def test_damaged_and_foreign_inputs(model, tmp_path, capsys):
    file = tmp_path / "texts.jsonl"
    for content, message in (
        (b"", "holds no solution"),
        (b"{\n", "line 1: not JSON"),
        (b"\xff\xfe\n", "line 1: not JSON"),
        (b'{"index": 0}\n', "line 1: lacks question, text"),
        (b"[1, 2", "is not a JSON file"),
    ):
        file.write_bytes(content)
        assert message in refusal(capsys, model, "--generations", file, "--index", 0)
    file.write_bytes(b"\xff\xfe")
    assert "must be a text in UTF-8" in refusal(capsys, model, "--text_file", file)
    assert "model is not given" in refusal(capsys, "--text", TEXT)
    assert "no such folder" in refusal(capsys, tmp_path / "nowhere", "--text", TEXT)
    plain = save_model(tmp_path / "plain", scheme=None)
    assert "has no scheme of steps" in refusal(capsys, plain, "--text", TEXT)
    assert "The vocabulary does not match" in refusal(capsys, plain, "--text", TEXT, "--tokenizer", model)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "another program wrote it" in refusal(capsys, tmp_path / "adapter", "--text", TEXT)


def test_an_adapter_whose_base_was_moved(tmp_path, capsys):
    save_base(tmp_path / "base")
    model, tokenizer = adapted(tmp_path / "base", "lora+tokens", StepScheme(1, 2))
    save_adapter(as_if_trained(model), tokenizer, tmp_path / "adapter")
    assert run(tmp_path / "adapter", "--text", TEXT) == 0
    table = capsys.readouterr().out
    (tmp_path / "base").rename(tmp_path / "moved")
    assert "Pass its folder (base=)" in refusal(capsys, tmp_path / "adapter", "--text", TEXT)
    assert run(tmp_path / "adapter", "--text", TEXT, "--base", tmp_path / "moved") == 0
    assert capsys.readouterr().out == table
    assert "is not an adapter" in refusal(capsys, tmp_path / "moved", "--text", TEXT, "--base", "elsewhere")


def test_results_are_not_lost(model, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "attention_recurrence_9.png").write_bytes(b"precious")
    message = refusal(capsys, tmp_path / "not read yet", "--text", TEXT, "--output_dir", out)
    assert "attention_recurrence_9.png already exists" in message and "--overwrite" in message
    (out / "attention_recurrence_9.png").rename(out / "attention.json")
    assert "attention.json already exists" in refusal(capsys, model, "--text", TEXT, "--output_dir", out)
    assert run(model, "--text", TEXT, "--output_dir", out, "--overwrite") == 0
    assert json.loads((out / "attention.json").read_text(encoding="utf-8"))["kind"] == "attention"


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: memreason attention [RECIPE.yaml] [MODEL]")
    for words in ("counted from 1", "--generations", "--marks_apart", "one map for each recurrence", "examples:"):
        assert words in text
    assert "default: None" not in text
    examples = [line.split() for line in text.splitlines() if line.startswith("  memreason attention ")]
    assert len(examples) == 6
    for example in examples[:5]:
        model, *_ = make_parser().parse_sections(example[2:])
        assert model.model


@pytest.mark.skipif(not TEXTS.is_file(), reason="needs the published texts in ../shared/data/published_outputs")
def test_as_a_process_on_a_published_solution(model, tmp_path):
    command = [sys.executable, "-m", "memreason_hf.cli", "attention", model, "--generations", str(TEXTS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--index", "0", "--marks_apart"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "steps: 2 memory, 1 reason, 1 answer" in done.stdout
