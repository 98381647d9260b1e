"""`memreason evaluate-steps --calculator`: the sums of texts are right; a run goes on only with the same flag."""

import json

import pytest
from miscalculating import QUESTION, miscalculating_model
from refusals import refused

from memreason_hf.commands import evaluate_steps
from memreason_hf.evaluation.solutions.calculator import find_sums


@pytest.fixture
def places(tmp_path):
    """The folder of a model that miscalculates, and one of questions."""
    model, tokenizer = miscalculating_model("llama")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    items = [{"question": QUESTION, "answer": "True", "cot_steps": ["[rag]: a", "[reason]: b"]}]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "StrategyQA_test_clean.json").write_text(json.dumps(items))
    train = [{**items[0], "question": "another"}]
    (tmp_path / "data" / "StrategyQA_train_clean.json").write_text(json.dumps(train))
    return tmp_path / "model", tmp_path / "data"


def test_the_results_of_sums(places, tmp_path, capsys):
    model, data = places
    sums = {}
    for flags in ((), ("--calculator",)):
        file = tmp_path / f"texts{len(flags)}.jsonl"
        arguments = [model, "--data", data, "--name", "strategy_qa", "--max_new_tokens", 40, "--output_file", file]
        arguments = [*map(str, arguments), "--device", "cpu"]
        assert evaluate_steps.main([*arguments, *flags]) == 0
        (line,) = file.read_text(encoding="utf-8").splitlines()
        sums[flags] = [found.is_correct for found in find_sums(json.loads(line)["text"])]
    assert list(sums.values()) == [[False], [True]]
    assert "calculator" in refused(capsys, evaluate_steps.main, arguments)
