"""Malformed calls of evaluation, judges, analysis and results."""

import copy
import math
import random
from pathlib import Path

import numpy as np
import torch
from malformed_cases import NO_VALUE, Case, field_cases, show, some, wrong_bools, wrong_floats, wrong_ints
from malformed_functions import case, one_argument
from small_runs import small_chains, small_model
from small_tokenizers import byte_level, llama

from memreason_hf import StepScheme, extend_tokenizer
from memreason_hf.analysis import accuracy_figure, margin_figure, perplexity_figure, save_figure
from memreason_hf.analysis.attention_maps import kind_shares, read_attention
from memreason_hf.analysis.text_generation import TextGenerator, encode_prompts
from memreason_hf.data.chains.collator import ChainCollator
from memreason_hf.evaluation import (
    AnswerPredictions,
    describe_data,
    describe_environment,
    describe_model,
    evaluation_results,
    halting_statistics,
    predict_answers,
    read_results,
    register_kind,
    results_schema,
    results_table,
    statistics_from_results,
    sweep_depth,
    validate_results,
    write_results,
)
from memreason_hf.evaluation.solutions.answers import extract_answer, judge_answer
from memreason_hf.evaluation.solutions.attribution import attribute
from memreason_hf.evaluation.solutions.generation import generate_solutions
from memreason_hf.evaluation.solutions.judges import ExactJudge, TokenOverlapJudge, find_judge
from memreason_hf.evaluation.text.perplexity import perplexity_by_recurrence
from memreason_hf.steps import Step


def cases(rng: random.Random, world: Path) -> list[Case]:
    torch.manual_seed(rng.getrandbits(30))
    return [*_chains(rng), *_results(rng, world), *_solutions(world), *_texts(), *_figures(world)]


def _chains(rng):
    tokenizer, rows, _ = small_chains()
    model = small_model().eval()
    right = {
        "model": model,
        "dataset": rows.select(range(4)),
        "collator": ChainCollator(tokenizer.pad_token_id),
        "batch_size": 2,
    }
    made = []
    for entrance, function, more in (
        ("predict_answers", predict_answers, {"num_recurrences": 2}),
        ("sweep_depth", sweep_depth, {"max_recurrences": 2}),
    ):
        wrong = {
            "batch_size": [*wrong_ints(1), 10**12],
            "group_column": ["nonsense", 5, None, ""],
            next(iter(more)): [*wrong_ints(1, optional=entrance == "predict_answers"), 10**9],
            "dataset": ["text", 5, None, [1], rows.select([]), rows.remove_columns("input_ids")],
            "model": ["text", None, 5],
            "collator": ["text", None, 5],
        }
        made += field_cases(rng, entrance, lambda f=function, m=more, **v: f(**{**right, **m, **v}), wrong, 7)
        for item in made:
            # A batch may be larger than the data, and names of parts of the data stand for it.
            item.is_wrong = item.is_wrong and "batch_size=1000000000000" not in item.label
            if "dataset" in item.names:
                item.names, item.value = ("dataset", "row", "input_ids"), NO_VALUE
    for values in (
        {"predictions": [1]},
        {"predictions": []},
        {"groups": [1]},
        {"num_recurrences": [1]},
        {"num_recurrences": [0, 1]},
        {"num_recurrences": [math.nan, 1]},
        {"num_recurrences": [-1, 2]},
        {"predictions": "ab"},
        {"predictions": [None, None]},
        {"references": [1.5, math.nan]},
    ):
        columns = {"predictions": [1, 2], "references": [1, 3], "groups": [2, 3], "num_recurrences": [1, 2], **values}
        made.append(
            case(
                "halting_statistics",
                f"{values}",
                lambda c=columns: halting_statistics(AnswerPredictions(**c)),
                [*values, "prediction"],
            )
        )
    empty = {"predictions": [], "references": [], "groups": [], "num_recurrences": []}
    made.append(
        case("halting_statistics", "no rows", lambda: halting_statistics(AnswerPredictions(**empty)), ["prediction"])
    )
    made += one_argument("halting_statistics", halting_statistics, "predictions", ["text", 5, None, {}])
    return made


def _results(rng, world):
    right = read_results(world / "results" / "evaluation.json")
    made = []

    def changed(*path, value):
        results = copy.deepcopy(right)
        place = results
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        return results

    paths = [("kind",), ("schema_version",), ("seconds",), ("model",), ("overall", "accuracy"), ("overall", "count")]
    paths += [("groups",), ("groups", 0, "group"), ("settings", "num_recurrences"), ("data", "split"), ("created",)]
    paths += [("overall", "recurrences", "mean"), ("environment",), ("model", "num_parameters")]
    for path in paths:
        for value in some(rng, ["nonsense_", 5.5, [], {"a": 1}, math.nan, -7, [None]], 3):
            results = changed(*path, value=value)
            is_free = (isinstance(value, str) and path[-1] in ("group", "split", "created")) or (
                isinstance(value, float | int) and path[-1] in ("seconds", "mean", "accuracy", "num_recurrences")
            )
            is_free = is_free or (value == -7 and path[-1] in ("count", "group", "num_parameters"))
            is_free = is_free or (isinstance(value, list) and not value and path == ("groups",))
            made.append(
                case(
                    "validate_results",
                    f"{'.'.join(map(str, path))}={show(value)}",
                    lambda r=results: validate_results(r),
                    [str(path[-1]), path[0]],
                    value,
                    is_wrong=not is_free,
                )
            )
    for value in ("text", 5, None, [], {}, {"kind": "evaluation"}, {"kind": None}, {"kind": ["evaluation"]}):
        for entrance, function in (
            ("validate_results", validate_results),
            ("results_table", results_table),
            ("statistics_from_results", statistics_from_results),
            ("write_results", lambda v: write_results("r.json", v)),
        ):
            made.append(
                case(
                    entrance,
                    show(value),
                    lambda f=function, v=value: f(v),
                    ["results", "Results", "kind", "schema_version"],
                )
            )
    made += one_argument("results_schema", results_schema, "kind", ["nonsense", "", 5, None])
    for path in ("nowhere.json", "", "\0", 5, None, str(world / "texts" / "a.txt"), str(world)):
        made.append(
            case("read_results", show(path), lambda p=path: read_results(p), [str(path)[-9:] or "path", "path"])
        )
    made.append(
        case("register_kind", "a kind that exists", lambda: register_kind("evaluation", dict), ["evaluation", "kind"])
    )
    made.append(
        case(
            "write_results",
            "a file that exists",
            lambda: [write_results("r.json", right), write_results("r.json", right)],
            ["r.json"],
        )
    )
    made.append(
        case("write_results", "below a file", lambda: write_results(world / "texts" / "a.txt" / "r", right), ["a.txt"])
    )
    made += one_argument("describe_environment", describe_environment, "device", ["nonsense", 5, None])
    made += one_argument("describe_model", lambda v: describe_model(v, "name"), "model", ["text", None])
    made += one_argument("describe_data", lambda v: describe_data("p", "test", v), "num_rows", ["x", -1, None, 2.5])
    made += one_argument(
        "evaluation_results", lambda v: evaluation_results(v, None, {}, 0.0), "statistics", ["text", None]
    )
    return made


def _solutions(world):
    tokenizer = byte_level()
    extend_tokenizer(tokenizer, StepScheme(1, 2))
    model = llama(len(tokenizer), max_position_embeddings=128)
    options = [{"label": label, "text": label} for label in ("True", "False")]
    row = {"question": "Is it?", "answer": "True", "options": options, "steps": []}
    right = {"model": model, "tokenizer": tokenizer, "rows": [row], "max_new_tokens": 2}
    wrong = {
        "batch_size": wrong_ints(1),
        "max_new_tokens": [*wrong_ints(1), 10**6],
        "rows": ["text", 5, None, [1], [{}], [{"question": 5}], [{"question": "Q"}]],
        "model": ["text", None, 5],
        "tokenizer": ["text", None, 5, byte_level()],
        "path": [5, "\0", str(world / "texts")],
        "demonstrations": [5, "text"],
    }
    rng = random.Random(0)
    made = field_cases(rng, "generate_solutions", lambda **v: generate_solutions(**{**right, **v}), wrong, 7)
    for item in made:
        if "rows" in item.names:
            item.names, item.value = ("row", "question", "answer"), NO_VALUE
        if item.names == ("tokenizer",):
            item.names = ("tokenizer", "scheme", "token")
        if item.names == ("max_new_tokens",):
            # More than there are positions ends at the last one.
            item.is_wrong = "1000000" not in item.label
        if item.names == ("path",):
            item.names, item.value = ("path", "texts", "null"), NO_VALUE
        if "tokenizer" in item.names:
            item.value = NO_VALUE
    made += one_argument("find_judge", find_judge, "judge", ["nonsense", "", 5, None, "exct"])
    shares = {name: [*wrong_floats(0, 1)] for name in ("depart_below", "relate_from", "agree_from")}
    made += field_cases(rng, "TokenOverlapJudge", TokenOverlapJudge, shares, 6)
    for values in ({"depart_below": 0.9, "relate_from": 0.1}, {"relate_from": 0.9, "agree_from": 0.2}):
        made.append(case("TokenOverlapJudge", f"{values}", lambda v=values: TokenOverlapJudge(**v), values))
    step = Step("memory", "a")
    for solution, references, names in (
        ("text", [step], ["solution"]),
        ([step], "text", ["references"]),
        (None, [step], ["solution"]),
        ([step], None, ["references"]),
        ([5], [step], ["solution"]),
        ([step], [5], ["references"]),
    ):
        made.append(
            case(
                "attribute",
                f"{show(solution)}, {show(references)}",
                lambda s=solution, r=references: attribute(s, r, ExactJudge()),
                names,
            )
        )
    options = {"A": "a", "B": "b"}
    made += one_argument("extract_answer", lambda v: extract_answer(v, options), "text", [5, None, ["a"]])
    made += one_argument("extract_answer", lambda v: extract_answer("A", v), "options", ["text", 5, None, [1]])
    made += one_argument(
        "judge_answer", lambda v: judge_answer("A", v, options), "reference", ["C", "", 5, None, "True"]
    )
    made += one_argument("judge_answer", lambda v: judge_answer(v, "A", options), "text", [5, None, ["a"]])
    return made


def _texts():
    model = small_model().eval()
    right = {"model": model, "documents": [[1, 2, 3]], "max_recurrences": 2, "batch_size": 1}
    wrong = {
        "documents": ["text", 5, None, [], [[]], [[1]], [["a"]], [[999]], [[-1, 2]], [1, 2], [[1.5, 2.5]]],
        "max_recurrences": [*wrong_ints(1, optional=True), 10**9],
        "max_length": [*wrong_ints(1)],
        "batch_size": wrong_ints(1),
        "packed": wrong_bools(),
        "num_bytes": wrong_ints(1, optional=True),
        "model": ["text", None],
    }
    rng = random.Random(0)
    made = field_cases(
        rng, "perplexity_by_recurrence", lambda **v: perplexity_by_recurrence(**{**right, **v}), wrong, 11
    )
    for item in made:
        if "documents" in item.names:
            item.names, item.value = ("document", "token"), NO_VALUE
    tokenizer = byte_level()
    made += one_argument("encode_prompts", lambda v: encode_prompts(tokenizer, v), "prompts", ["text", 5, None, [5]])
    made += one_argument("encode_prompts", lambda v: encode_prompts(v, ["a"]), "tokenizer", ["text", None])
    made += one_argument("TextGenerator", lambda v: TextGenerator(v, tokenizer), "model", ["text", None])
    return made


def _figures(world):
    made = []
    for entrance, function in (("accuracy_figure", accuracy_figure), ("margin_figure", margin_figure)):
        made += one_argument(entrance, function, "sweep", ["text", None, 5, {}])
    made += one_argument("perplexity_figure", perplexity_figure, "curves", ["text", None, 5, {"a": 1}, {"a": {}}, [1]])
    results = read_results(world / "results" / "perplexity.json")

    def drawn(value):
        return perplexity_figure({"a": {**results, "perplexity": value}})

    made += one_argument("perplexity_figure", drawn, "perplexity", ["text", 5, None, ["a"]])

    def saved(paths):
        return save_figure(perplexity_figure({"a": results}), paths)

    for paths, names in (
        (["figure.nonsense"], ["figure.nonsense", "format"]),
        (["figure"], ["figure", "format"]),
        ([], ["paths"]),
        ("figure.png", ["paths", "figure.png"]),
        ([5], ["path", "5"]),
        (None, ["paths"]),
        ([world / "texts"], ["texts"]),
        ([world / "texts" / "a.txt" / "f.png"], ["a.txt"]),
        (["f$x$.png", "f$.png"], ["f$"]),
    ):
        free = paths == ["f$x$.png", "f$.png"]
        made.append(case("save_figure", show(paths), lambda p=paths: saved(p), names, is_wrong=not free))
    model = llama(300, max_position_embeddings=16)
    made += one_argument(
        "read_attention",
        lambda v: read_attention(model, v),
        "ids",
        [[], "text", 5, None, [999], [-1], [0.5], [1] * 40],
    )
    made += one_argument(
        "read_attention", lambda v: read_attention(model, [1, 2], num_recurrences=v), "num_recurrences", [2, 0, "x"]
    )
    made += one_argument("read_attention", lambda v: read_attention(v, [1, 2]), "model", ["text", None])
    for weights, kinds in (
        (np.ones((2, 2)), ["a"]),
        (np.ones((2, 3)), ["a", "b"]),
        (np.full((2, 2), math.nan), ["a", "b"]),
        ("text", ["a"]),
        (np.ones(2), ["a", "b"]),
        (np.ones((0, 0)), []),
    ):
        made.append(
            case(
                "kind_shares",
                f"{show(weights)}, {kinds}",
                lambda w=weights, k=kinds: kind_shares(w, k),
                ["weights", "kinds"],
            )
        )
    return made
