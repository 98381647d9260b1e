import numpy as np
import pytest
from text_models import TEXT, save_text_model
from transformers import AutoModelForCausalLM

from memreason_hf.commands.lm_eval import main as lm_eval
from memreason_hf.commands.perplexity import main
from memreason_hf.evaluation import read_results
from memreason_hf.evaluation.text.perplexity import perplexity_by_recurrence


FILES = ["perplexity.json", "perplexity.pdf", "perplexity.png"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    return folder, *save_text_model(folder)


@pytest.fixture
def flags(saved, tmp_path):
    texts = TEXT.split(". ")
    for index, text in enumerate(texts):
        (tmp_path / f"{index}.txt").write_text(text, encoding="utf-8")
    return [str(saved[0]), "--data", *(str(tmp_path / f"{i}.txt") for i in range(len(texts))), "--no_progress"]


def test_numbers_table_and_files(saved, flags, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*flags, "--max_recurrences", "4", "--output_dir", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
    printed = capsys.readouterr().out
    assert "perplexity" in printed and "bits per byte" in printed and "best" in printed
    results = read_results(out / "perplexity.json")
    documents = saved[2](TEXT.split(". "))["input_ids"]
    expected = perplexity_by_recurrence(AutoModelForCausalLM.from_pretrained(saved[0]), documents, max_recurrences=4)
    np.testing.assert_allclose(results["loss"], expected.losses, rtol=1e-6)
    assert results["data"]["num_tokens"] == expected.num_tokens
    # Packed, the losses are the same.
    assert main([*flags, "--max_recurrences", "4", "--packed", "--output_dir", str(tmp_path / "packed")]) == 0
    packed = read_results(tmp_path / "packed" / "perplexity.json")
    np.testing.assert_allclose(packed["loss"], results["loss"], rtol=1e-5)
    assert packed["settings"]["packed"] and not results["settings"]["packed"]
    # Another model's curve, and the refusal to overwrite.
    other = ["--compare", str(out / "perplexity.json"), "--output_dir", str(out)]
    assert main([*flags, *other, "--overwrite"]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*flags, *other])
    assert stop.value.code == 2 and "--overwrite" in capsys.readouterr().err


def test_a_row_is_not_longer_than_the_context(flags, tmp_path):
    save_text_model(tmp_path / "short", max_position_embeddings=16)
    argv = [str(tmp_path / "short"), *flags[1:], "--output_dir", str(tmp_path / "out")]
    for length, used in (("1024", 16), ("8", 8)):
        assert main([*argv, "--max_length", length, "--overwrite"]) == 0
        assert read_results(tmp_path / "out" / "perplexity.json")["settings"]["max_length"] == used


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data", "none.txt"], "none.txt"),
        (["--max_recurrences", "0"], "max_recurrences=0"),
        (["--max_documents", "0"], "max_documents=0"),
        (["--max_length", "0"], "max_length=0"),
        (["--batch_size", "0"], "batch_size=0"),
        (["--compare", "none.json"], "none.json"),
        (["--max_recurences", "3"], "Did you mean --max_recurrences?"),
    ],
    ids=str,
)
def test_wrong_flags(flags, argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*flags, *argv])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_lm_eval_is_optional(saved, capsys, monkeypatch):
    monkeypatch.setattr("memreason_hf.evaluation.text.task_scores.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        lm_eval([str(saved[0]), "--tasks", "arc_easy", "--num_recurrences", "1", "2"])
    assert stop.value.code == 2
    assert "lm-eval is not installed: pip install lm-eval" in capsys.readouterr().err
