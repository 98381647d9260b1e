"""
lm-eval's model class on a saved model, with depth as model arguments.

    lm_eval --model hf --model_args pretrained=FOLDER,trust_remote_code=True,num_recurrences=8 --tasks ...

Arguments that the class does not know go to `from_pretrained`, and so to the config. Generation tasks also take a
depth through `--gen_kwargs`, which lm-eval ignores in all other tasks. Log-likelihoods are computed on right-padded
rows without an attention mask. They are exact with a fixed depth and with `halting_granularity="token"`. With
`"sequence"`, a row could not find its last real token.
"""

import json

import pytest
import torch


lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval.api.instance import Instance  # noqa: E402 - only where there is one
from lm_eval.models.huggingface import HFLM  # noqa: E402

from memreason_hf.commands.lm_eval import main  # noqa: E402
from memreason_hf.evaluation import describe_environment, read_results  # noqa: E402
from memreason_hf.evaluation.text import task_scores  # noqa: E402
from memreason_hf.evaluation.text.results import describe_text_model  # noqa: E402
from memreason_hf.evaluation.text.task_scores import (  # noqa: E402
    scores_by_recurrence,
    task_score_results,
    task_score_table,
)


REQUESTS = [("the cat sat", " on the mat"), ("what did the dog see?", " the cat"), ("a", " dog")]
SETTINGS = [
    {"num_recurrences": 8},
    {"num_recurrences": 2},
    {"halting_criterion": "kl", "kl_threshold": 0.1, "halting_granularity": "token"},
]


def instances(kind, arguments):
    return [Instance(kind, {}, argument, index) for index, argument in enumerate(arguments)]


def make(saved, batch_size, settings):
    arguments = ",".join(f"{name}={value}" for name, value in {"pretrained": saved.folder, **settings}.items())
    return HFLM.create_from_arg_string(arguments, {"batch_size": batch_size, "device": "cpu"})


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("batch_size", [1, 3])
@torch.no_grad()
def test_log_likelihoods(saved, settings, batch_size):
    evaluated = make(saved, batch_size, settings)
    for name, value in settings.items():
        assert getattr(evaluated.model.config, name) == value
    results = evaluated.loglikelihood(instances("loglikelihood", REQUESTS), disable_tqdm=True)
    counts = set()
    for (context, target), (score, is_greedy) in zip(REQUESTS, results, strict=True):
        prompt, whole = (saved.tokenizer(text)["input_ids"] for text in (context, context + target))
        output = saved.model(torch.tensor([whole]), **settings)
        log_probs = output.logits[0].log_softmax(-1)
        places = range(len(prompt) - 1, len(whole) - 1)
        expected = sum(log_probs[place, whole[place + 1]].item() for place in places)
        assert score == pytest.approx(expected, rel=1e-4)
        assert is_greedy == all(log_probs[place].argmax() == whole[place + 1] for place in places)
        counts |= set(output.num_recurrences.flatten().tolist())
    assert len(counts) >= (4 if "halting_criterion" in settings else 1)


def test_depth_matters(saved):
    scores = [
        [score for score, _ in make(saved, 3, settings).loglikelihood(instances("loglikelihood", REQUESTS), True)]
        for settings in SETTINGS
    ]
    assert scores[0] != pytest.approx(scores[1], rel=1e-3)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_generation(saved, continuation, settings):
    evaluated = make(saved, 3, settings)
    requests = [(context, {"until": ["zzz"], "max_gen_toks": 6, "do_sample": False}) for context, _ in REQUESTS]
    results = evaluated.generate_until(instances("generate_until", requests), disable_tqdm=True)
    for (context, _), text in zip(REQUESTS, results, strict=True):
        expected, _ = continuation(context, **settings)
        assert text == saved.tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("depth", [{"num_recurrences": 7}, SETTINGS[2]], ids=str)
def test_generation_arguments_of_a_request(saved, continuation, depth):
    """What `--gen_kwargs` adds to the requests of a generation task, the only ones that lm-eval adds it to."""
    request = {"until": ["zzz"], "max_gen_toks": 6, "do_sample": False}
    requests = [(context, {**request, **depth}) for context, _ in REQUESTS]
    results = make(saved, 3, {}).generate_until(instances("generate_until", requests), disable_tqdm=True)
    texts = [continuation(context, **depth)[0] for context, _ in REQUESTS]
    assert results == [saved.tokenizer.decode(ids, skip_special_tokens=True) for ids in texts]
    assert any(not torch.equal(ids, continuation(context)[0]) for ids, (context, _) in zip(texts, REQUESTS))
    misspelt = [(context, {**request, "num_recurences": 7}) for context, _ in REQUESTS]
    with pytest.raises(TypeError, match="num_recurences"):
        make(saved, 3, {}).generate_until(instances("generate_until", misspelt), disable_tqdm=True)


def test_unknown_arguments_are_refused(saved):
    with pytest.raises(TypeError, match="num_recurences"):
        make(saved, 1, {"num_recurences": 3})


# ---- One table over recurrences ----


@pytest.fixture
def tasks(tmp_path):
    """A multiple-choice task and one of perplexity, over local files."""
    questions = [{"question": context, "options": [target, " zebra", " of"]} for context, target in REQUESTS] * 4
    texts = [{"text": context + target} for context, target in REQUESTS]
    for name, rows in (("questions", questions), ("texts", texts)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def source(name):
        files = {"test": str(tmp_path / f"{name}.jsonl")}
        return {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}

    choice = {
        "task": "tiny_choice",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "options",
        "doc_to_target": 0,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    text = {
        "task": "tiny_text",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [
            {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
        ],
    }
    return [choice | source("questions"), text | source("texts")]


def test_one_table_holds_what_lm_eval_gives_at_each_depth(saved, tasks, tmp_path):
    depths = [1, 2, 8]
    scores = scores_by_recurrence(saved.model, saved.tokenizer, tasks, depths, batch_size=2, bootstrap_iters=0)
    assert [(score["task"], score["metric"]) for score in scores] == [
        ("tiny_choice", "acc,none"),
        ("tiny_text", "word_perplexity,none"),
    ]
    for index, depth in enumerate(depths):
        evaluated = make(saved, 2, {"num_recurrences": depth})
        found = lm_eval.simple_evaluate(evaluated, tasks=tasks, log_samples=False, bootstrap_iters=0)["results"]
        for score in scores:
            assert score["values"][index] == pytest.approx(found[score["task"]][score["metric"]], rel=1e-5)
    # The control: depth matters, in text and in the answers.
    assert all(len(set(score["values"])) > 1 for score in scores[1:])
    results = task_score_results(
        scores,
        model=describe_text_model(saved.model, saved.folder),
        environment=describe_environment("cpu"),
        settings={"num_recurrences": depths, "num_fewshot": None, "limit": None, "batch_size": 2},
        seconds=1.0,
    )
    table = task_score_table(results).splitlines()
    assert table[0].split() == ["task", "metric", "r=1", "r=2", "r=8", "best", "at"]
    best = min(range(3), key=scores[1]["values"].__getitem__)
    assert table[3].split()[:3] == ["tiny_text", "word_perplexity", f"{scores[1]['values'][0]:.4f}"]
    assert table[3].split()[-1] == str(depths[best])


def test_the_config_is_left_as_it_was_and_a_criterion_is_switched_off(saved, tasks):
    config = saved.model.config
    before = config.to_dict()
    fixed = scores_by_recurrence(saved.model, saved.tokenizer, tasks[1:], [2], bootstrap_iters=0)
    config.halting_criterion, config.kl_threshold = "kl", 100.0
    try:
        assert scores_by_recurrence(saved.model, saved.tokenizer, tasks[1:], [2], bootstrap_iters=0) == fixed
        assert config.halting_criterion == "kl"
    finally:
        config.halting_criterion, config.kl_threshold = before["halting_criterion"], before["kl_threshold"]
    assert config.to_dict() == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([], [1]), "tasks is empty"),
        ((["x"], []), "num_recurrences is empty"),
        ((["x"], [2, 0]), "must be at least 1"),
    ],
)
def test_what_has_no_table(saved, arguments, message):
    with pytest.raises(ValueError, match=message):
        scores_by_recurrence(saved.model, saved.tokenizer, *arguments)


def test_the_command_prints_and_writes_the_table(saved, tasks, tmp_path, capsys, monkeypatch):
    run = task_scores.scores_by_recurrence

    def local(model, tokenizer, names, *args, **kwargs):
        chosen = [task for task in tasks if task["task"] in names]
        return run(model, tokenizer, chosen, *args, bootstrap_iters=0, **kwargs)

    monkeypatch.setattr("memreason_hf.commands.lm_eval.scores_by_recurrence", local)
    out = tmp_path / "out"
    flags = ["--tasks", "tiny_choice", "tiny_text", "--num_recurrences", "1", "4", "--limit", "2"]
    assert main([saved.folder, *flags, "--device", "cpu", "--output_dir", str(out)]) == 0
    results = read_results(out / "task_scores.json")
    assert task_score_table(results) in capsys.readouterr().out
    assert results["settings"]["num_recurrences"] == [1, 4] and results["settings"]["limit"] == 2
    assert results["lm_eval"] == lm_eval.__version__
