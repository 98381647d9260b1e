import json
import os
import re
import shutil
import sys
from io import StringIO
from pathlib import Path

import pytest
from small_adapters import as_if_trained
from text_models import save_text_model
from transformers import AutoTokenizer

from memreason_hf.adapters.modes import AdapterArguments, add_adapter, save_adapter
from memreason_hf.analysis.token_depth_terminal import _SUPERSCRIPTS
from memreason_hf.command_line.model_flags import ModelFlags
from memreason_hf.commands.generate import main, make_parser
from memreason_hf.messages import visible
from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer
from modeling_recurrent import RecurrentDepthForCausalLM
from modeling_recurrent.halting_recurrent import criterion_parameters


HALTING = ["--halting_criterion", "state_difference", "--state_difference_threshold", "0.5"]
CALL = {"halting_criterion": "state_difference", "state_difference_threshold": 0.5}
PROMPTS = ["the cat sat", "what did the dog see? é日", "a"]
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def _saved_text_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "text_model"
    # Shallow enough a step for depths to differ.
    save_text_model(folder, residual_init_scale=0.3)
    return folder


@pytest.fixture
def text_model_folder(_saved_text_model, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(_saved_text_model, tmp_path / "text_model")


@pytest.fixture
def flags(text_model_folder):
    return [str(text_model_folder), "--device", "cpu", "--max_new_tokens", "6"]


class Terminal(StringIO):
    """A terminal that remembers how often it was written to."""

    encoding = "utf-8"

    def __init__(self):
        super().__init__()
        self.flushed = []

    def isatty(self):
        return True

    def flush(self):
        self.flushed.append(self.getvalue())


def on_a_terminal(monkeypatch, argv, **variables):
    """Runs the command on a terminal of 256 colours; returns it."""
    terminal = Terminal()
    for name in ("NO_COLOR", "COLORTERM", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", **variables}.items():
        monkeypatch.setenv(name, value)
    # Not in a fixture: pytest takes the output back before the test begins.
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        assert main(argv) == 0
    return terminal


def document(folder):
    return json.loads((folder / "depths.json").read_text(encoding="utf-8"))


def refused(capsys, argv):
    """The one line that a refused command prints."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("memreason generate: error: ")]
    return line


def test_agrees_with_generate_of_one_prompt_at_a_time(flags, tmp_path, capsys):
    argv = [*flags, "--prompt", *PROMPTS, *HALTING, "--batch_size", "2", "--json", str(tmp_path / "depths.json")]
    assert main(argv) == 0
    written = document(tmp_path)
    model = RecurrentDepthForCausalLM.from_pretrained(flags[0])
    tokenizer = AutoTokenizer.from_pretrained(flags[0])
    counts = set()
    for prompt, output in zip(PROMPTS, written["outputs"], strict=True):
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        expected = model.generate(**inputs, max_new_tokens=6, return_dict_in_generate=True, **CALL)
        width = inputs["input_ids"].shape[1]
        assert [token["id"] for token in output["prompt_tokens"]] == inputs["input_ids"][0].tolist()
        assert [token["id"] for token in output["tokens"]] == expected.sequences[0, width:].tolist()
        depths = [token["num_recurrences"] for token in output["tokens"]]
        prompt_depths = [token["num_recurrences"] for token in output["prompt_tokens"]]
        assert depths == expected.num_recurrences[0].tolist()
        assert prompt_depths == expected.prompt_recurrences[0].tolist()
        assert prompt_depths[-1] == depths[0]
        assert output["prompt"] == prompt == "".join(token["text"] for token in output["prompt_tokens"])
        assert output["text"] == tokenizer.decode(expected.sequences[0])[len(prompt) :]
        assert output["finish_reason"] == "length"
        counts |= {*depths, *prompt_depths}
    assert len(counts) >= 4
    assert written["settings"] == {
        "num_recurrences": None,
        "halting_criterion": "state_difference",
        "halting_granularity": "token",
        "min_recurrences": 1,
        "max_recurrences": 9,
        "parameters": {"state_difference_threshold": 0.5},
        "cache_recurrences": "all",
        "max_new_tokens": 6,
        "do_sample": False,
        "temperature": None,
        "top_k": None,
        "top_p": None,
        "seed": None,
        "batch_size": 2,
    }
    assert written["model"]["dtype"] == "float32" and written["model"]["name_or_path"] == Path(flags[0]).name
    # In a pipe there is the text and nothing else.
    captured = capsys.readouterr()
    assert captured.out == "\n\n".join(o["prompt"] + o["text"] for o in written["outputs"]) + "\n"
    assert "18 tokens in" in captured.err and "halting by state_difference" in captured.err


@pytest.mark.parametrize("mode", ["color", "numbers"])
def test_on_a_terminal_tokens_show_as_they_come(flags, mode, monkeypatch, tmp_path):
    argv = [*flags, *HALTING, "--prompt", "the\ncat", "--json", str(tmp_path / "depths.json")]
    terminal = on_a_terminal(monkeypatch, argv, NO_COLOR="1" if mode == "numbers" else "")
    (output,) = document(tmp_path)["outputs"]
    # After each token, as soon as its character is whole.
    texts = [token["text"] for token in output["tokens"] if token["text"]]
    assert len(set(terminal.flushed)) >= len(texts) + 1
    shown = terminal.getvalue()
    assert ("\x1b" in shown) == (mode == "color")
    text, legend = shown.rsplit("\n\n", 1)
    if mode == "color":
        assert ANSI.sub("", text).replace("↵", "") == "the\ncat" + visible("".join(texts))
        assert ANSI.sub("", legend).split() == [*map(str, range(1, 10)), "recurrences"]
    else:
        depths = [token["num_recurrences"] for token in output["tokens"]]
        assert all(str(depth).translate(_SUPERSCRIPTS) in text for depth in depths)


def test_several_prompts_on_a_terminal(flags, monkeypatch):
    terminal = on_a_terminal(monkeypatch, [*flags, *HALTING, "--prompt", *PROMPTS, "--depths", "numbers"])
    assert all(prompt in terminal.getvalue() for prompt in PROMPTS)
    assert terminal.getvalue().count("The number after a token") == 1


@pytest.mark.parametrize("mode", ["auto", "color", "numbers", "none"])
def test_what_a_prompt_holds_does_not_steer_the_terminal(flags, mode, monkeypatch):
    argv = [*flags, *HALTING, "--prompt", "\x1b]0;title\x07the", "--depths", mode]
    shown = on_a_terminal(monkeypatch, argv).getvalue()
    assert shown.count("␛]0;title␇the") == 1
    assert not set(ANSI.sub("", shown)) & {"\x1b", "\x07"}


def test_in_a_pipe_the_text_alone_is_left_as_it_is(flags, capsys):
    assert main([*flags, "--prompt", "\x1b]0;title\x07the", "--depths", "none"]) == 0
    assert capsys.readouterr().out.startswith("\x1b]0;title\x07the")


def test_colors_can_be_asked_for_in_a_pipe(flags, capsys):
    assert main([*flags, *HALTING, "--prompt", "the", "--depths", "color"]) == 0
    assert "\x1b[38;5;" in capsys.readouterr().out


def test_a_page(flags, tmp_path, capsys):
    argv = [*flags, *HALTING, "--html", str(tmp_path / "new" / "page.html"), "--prompt", "</b> the", "cat"]
    assert main(argv) == 0
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert page.count("<article>") == 2 and "</b>" not in page.split("<main>")[1].replace("&lt;/b&gt;", "")
    assert "halting by state_difference (state_difference_threshold 0.5)" in page and "by token; greedy" in page
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    assert f"Wrote {tmp_path / 'new' / 'page.html'}." in capsys.readouterr().err


def test_prompts_of_a_file(flags, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("the cat\n\n  \nwhat é\n", encoding="utf-8")
    assert main([*flags, "--prompts", str(tmp_path / "prompts.txt"), "--json", str(tmp_path / "depths.json")]) == 0
    assert [output["prompt"] for output in document(tmp_path)["outputs"]] == ["the cat", "what é"]


def test_a_prompt_from_a_pipe(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", StringIO("the cat\n\nsat\n"))
    assert main([*flags, "--json", str(tmp_path / "depths.json")]) == 0
    assert [output["prompt"] for output in document(tmp_path)["outputs"]] == ["the cat\n\nsat"]
    monkeypatch.setattr(sys, "stdin", StringIO(""))
    capsys.readouterr()
    assert "nothing was piped in" in refused(capsys, flags)
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert "Pass --prompt TEXT or --prompts FILE, or pipe a text in" in refused(capsys, flags)


def change_generation_config(folder, **values):
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def test_a_generation_config_with_beams_and_several_texts(flags, text_model_folder, tmp_path, monkeypatch):
    change_generation_config(text_model_folder, num_beams=2, num_return_sequences=2)
    assert main([*flags, "--prompt", *PROMPTS, "--json", str(tmp_path / "depths.json")]) == 0
    together = document(tmp_path)["outputs"]
    assert len({output["text"] for output in together}) == len(PROMPTS)
    argv = [*flags, "--prompt", PROMPTS[1], "--overwrite", "--json", str(tmp_path / "depths.json")]
    terminal = on_a_terminal(monkeypatch, argv)
    (alone,) = document(tmp_path)["outputs"]
    assert alone == together[1]
    assert ANSI.sub("", terminal.getvalue()).startswith(PROMPTS[1])


def test_the_model_ends_a_text(flags, text_model_folder, tmp_path):
    path = tmp_path / "depths.json"
    assert main([*flags, "--prompt", *PROMPTS, "--json", str(path)]) == 0
    plain = document(tmp_path)["outputs"]
    tokens = [token["id"] for token in plain[0]["tokens"]]
    end = tokens[2]
    change_generation_config(text_model_folder, eos_token_id=end)
    assert main([*flags, "--prompt", *PROMPTS, "--json", str(path), "--overwrite"]) == 0
    ended = document(tmp_path)["outputs"][0]
    assert ended["finish_reason"] == "eos"
    assert [token["id"] for token in ended["tokens"]] == tokens[: tokens.index(end) + 1]
    assert ended["tokens"][-1]["text"] == "" and ended["tokens"][-1]["token"]


def test_fixed_depth(flags, tmp_path, capsys):
    assert main([*flags, "--num_recurrences", "5", "--prompt", "the", "--json", str(tmp_path / "depths.json")]) == 0
    written = document(tmp_path)
    assert written["settings"]["num_recurrences"] == 5
    assert {token["num_recurrences"] for token in written["outputs"][0]["tokens"]} == {5}
    assert "fixed at 5 recurrences" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["lora", "tokens", "lora+tokens"])
def test_an_adapter_writes_as_it_does_unmerged(mode, text_model_folder, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(text_model_folder)
    model = RecurrentDepthForCausalLM.from_pretrained(text_model_folder)
    extend_tokenizer(tokenizer, StepScheme(1, 2), model)
    model = as_if_trained(add_adapter(model, tokenizer, AdapterArguments(mode, lora_targets="all")))
    adapter = str(tmp_path / "adapter")
    save_adapter(model, tokenizer, adapter)
    argv = [adapter, "--device", "cpu", "--max_new_tokens", "6", "--prompt", PROMPTS[0], "<memory_0> the cat"]
    argv += ["--num_recurrences", "4", "--json", str(tmp_path / "depths.json")]
    assert main(argv) == 0
    for prompt, output in zip((PROMPTS[0], "<memory_0> the cat"), document(tmp_path)["outputs"], strict=True):
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        expected = model.generate(**inputs, max_new_tokens=6, num_recurrences=4, do_sample=False)
        width = inputs["input_ids"].shape[1]
        assert [token["id"] for token in output["tokens"]] == expected[0, width:].tolist()

    first = document(tmp_path)["outputs"]
    shutil.move(text_model_folder, tmp_path / "moved")
    capsys.readouterr()
    (tmp_path / "depths.json").unlink()
    assert f"The base model '{text_model_folder}' of the adapter" in refused(capsys, argv)
    assert main([*argv, "--base", str(tmp_path / "moved")]) == 0
    assert document(tmp_path)["outputs"] == first


def test_drawn_texts_repeat_with_their_seed(flags, tmp_path):
    path = tmp_path / "depths.json"
    argv = [*flags, "--prompt", *PROMPTS, "--do_sample", "--temperature", "3", "--json", str(path), "--overwrite"]
    texts = []
    for _ in range(2):
        assert main(argv) == 0
        written = document(tmp_path)
        texts.append([output["text"] for output in written["outputs"]])
    assert texts[0] != texts[1]
    assert written["settings"]["do_sample"] is True and written["settings"]["temperature"] == 3
    # The file knows the seed, also where none was given.
    assert main([*argv, "--seed", str(written["settings"]["seed"])]) == 0
    assert [output["text"] for output in document(tmp_path)["outputs"]] == texts[1]


def test_what_is_given_reaches_generate(flags, monkeypatch):
    calls = []
    plain = RecurrentDepthForCausalLM.generate

    def spy(self, *args, **kwargs):
        calls.append(kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name != "draft_recurrences"}
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(RecurrentDepthForCausalLM, "generate", spy)
    assert main([*flags, "--prompt", "the"]) == 0
    assert not {"cache_recurrences", "draft_recurrences", "temperature", "top_k"} & set(calls[-1])
    given = ["--halting_granularity", "sequence", "--min_recurrences", "2", "--max_recurrences", "5"]
    more = ["--cache_recurrences", "last", "--draft_recurrences", "2"]
    assert main([*flags, "--prompt", "the", *HALTING, *given, *more]) == 0
    expected = {
        **CALL,
        "halting_granularity": "sequence",
        "min_recurrences": 2,
        "max_recurrences": 5,
        "cache_recurrences": "last",
        "draft_recurrences": 2,
        "max_new_tokens": 6,
    }
    assert expected.items() <= calls[-1].items()


def test_a_recipe(flags, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"inputs:\n  model: {flags[0]}\n  prompt: [the cat, a]\n  device: cpu\nhalting:\n  num_recurrences: 2\n"
        f"sampling:\n  max_new_tokens: 3\noutput:\n  json: {tmp_path / 'depths.json'}\n",
        encoding="utf-8",
    )
    assert main([str(recipe), "--num_recurrences", "4"]) == 0
    written = document(tmp_path)
    assert [len(output["tokens"]) for output in written["outputs"]] == [3, 3]
    assert written["settings"]["num_recurrences"] == 4


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "./nowhere"], "model='./nowhere': no such folder"),
        (["--halting_criterion", "kll"], r"halting_criterion='kll' must be one of.*Did you mean 'kl'"),
        (["--haltin_criterion", "kl"], r"unknown flag '--haltin_criterion kl'. Did you mean --halting_criterion\?"),
        (["--halting_criterion", "kl", "--kl_threshold", "-1"], "kl_threshold: Value must be above 0, got -1.0"),
        (["--halting_criterion", "kl", "--num_recurrences", "4"], "num_recurrences=4 fixes the depth"),
        (["--num_recurrences", "0"], "num_recurrences: Value must be at least 1, got 0"),
        (["--min_recurrences", "10"], "min_recurrences=10 is above max_recurrences=9"),
        (["--draft_recurrences", "0"], "draft_recurrences=0 must be at least 1"),
        (["--max_new_tokens", "0"], "max_new_tokens=0 must be at least 1"),
        (["--max_new_tokens", str(10**12)], "max_new_tokens=1000000000000 must be at most 1,048,576"),
        (["--batch_size", "0"], "batch_size=0 must be at least 1"),
        (["--do_sample", "--temperature", "0"], "temperature=0.0 must be above 0"),
        (["--do_sample", "--top_p", "1.5"], "top_p=1.5 must be a probability"),
        (["--do_sample", "--top_k", "-1"], "top_k=-1 must be at least 0"),
        (["--temperature", "0.7"], "temperature=0.7 has no effect without --do_sample"),
        (["--seed", "3"], "seed=3 has no effect without --do_sample"),
        (["--do_sample", "--seed", "9" * 30], "seed=9+ must lie between"),
        (["--do_sample", "perhaps"], "Truthy value expected: got perhaps.*insensitive\\).$"),
        (["--prompts", "file.txt"], "prompt and prompts='file.txt' are both given"),
        (["--prompt", ""], "prompt='' has no tokens"),
        (["--prompt", "a\udc80"], r"prompt='a\\udc80' must be a text in UTF-8"),
        (["--device", "quantum"], "device='quantum'"),
        (["--tokenizer", "nowhere/else/three"], "nowhere/else/three"),
    ],
)
def test_bad_flags_are_refused_in_one_line(flags, argv, message, capsys, tmp_path):
    files = ["--json", str(tmp_path / "out" / "depths.json"), "--html", str(tmp_path / "out" / "page.html")]
    line = refused(capsys, [*flags, "--prompt", "the", *files, *argv])
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()


def test_bad_prompt_files(flags, tmp_path, capsys):
    path = tmp_path / "prompts.txt"
    assert str(path) in refused(capsys, [*flags, "--prompts", str(path)])
    path.write_bytes(b"\xff\xfe")
    assert "must be a file in UTF-8" in refused(capsys, [*flags, "--prompts", str(path)])
    path.write_text("\n \n", encoding="utf-8")
    assert "holds only blank lines" in refused(capsys, [*flags, "--prompts", str(path)])


def test_a_prompt_that_the_vocabulary_lacks(model_folder, capsys):
    line = refused(capsys, [str(model_folder), "--device", "cpu", "--prompt", "<e_77><r_1>"])
    assert "prompt='<e_77><r_1>': the tokenizer cannot read it" in line
    assert main([str(model_folder), "--device", "cpu", "--prompt", "<e_1><r_1>", "--max_new_tokens", "2"]) == 0
    assert capsys.readouterr().out.startswith("<e_1><r_1><")


def test_positions_end(tmp_path, capsys):
    save_text_model(
        tmp_path / "model", position_embedding_type="learned", max_position_embeddings=8, max_recurrences=3
    )
    argv = [str(tmp_path / "model"), "--device", "cpu", "--prompt", "the cat sat"]
    assert main([*argv, "--max_new_tokens", "6"]) == 0
    capsys.readouterr()
    assert "needs 9 positions" in refused(capsys, [*argv, "--max_new_tokens", "7"])


def test_files_are_not_overwritten(flags, tmp_path, capsys, monkeypatch):
    (tmp_path / "page.html").write_text("mine", encoding="utf-8")
    # Refused before anything is loaded.
    monkeypatch.setattr(ModelFlags, "load_recurrent_config", None)
    assert "page.html" in refused(capsys, [*flags, "--prompt", "the", "--html", str(tmp_path / "page.html")])
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "mine"


def test_two_files_of_one_name(flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ModelFlags, "load_recurrent_config", None)
    page, same = tmp_path / "page", tmp_path / "new" / ".." / "page"
    argv = [*flags, "--prompt", "the", "--html", str(page), "--json", str(same), "--overwrite"]
    assert "are the same file. Pass two different files" in refused(capsys, argv)
    page.write_text("a text")
    assert "is a file, not a folder" in refused(
        capsys, [*flags, "--prompt", "the", "--json", str(page / "depths.json")]
    )


def test_a_reader_that_has_seen_enough(flags, tmp_path, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        assert main([*flags, "--prompt", *PROMPTS, "--json", str(tmp_path / "depths.json")]) == 0
    assert len(document(tmp_path)["outputs"]) == len(PROMPTS)


def test_interrupted(flags, monkeypatch, tmp_path, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(RecurrentDepthForCausalLM, "generate", interrupt)
    with pytest.raises(SystemExit) as stopped:
        main([*flags, "--prompt", "the", "--json", str(tmp_path / "depths.json")])
    assert stopped.value.code == 130
    assert "no half-written file was left" in capsys.readouterr().err and not (tmp_path / "depths.json").exists()


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: memreason generate [RECIPE.yaml] [MODEL]")
    for name in (*criterion_parameters(), "halting_criterion", "draft_recurrences", "html", "json", "temperature"):
        assert f"--{name} " in text
    assert "default: None" not in text
    # Every line of the examples is a command that the parser reads.
    examples = [line.split() for line in text.splitlines() if line.startswith("  memreason generate ")]
    assert len(examples) >= 4
    for example in examples:
        model, prompts, *_ = make_parser().parse_sections(example[2:])
        assert model.model and (prompts.prompt or prompts.prompts)
