"""Malformed calls of the functions around the model: steps, data, models, adapters."""

import math
import random
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from malformed_cases import (
    NO_VALUE,
    Case,
    field_cases,
    show,
    wrong_bools,
    wrong_choices,
    wrong_ints,
)
from malformed_world import WORLD_SIZES
from small_tokenizers import byte_level, llama

from memreason_hf import StepScheme, extend_tokenizer
from memreason_hf.data import (
    Demonstrations,
    MultiHopConfig,
    build_memory_reason,
    build_multi_hop,
    convert_multi_hop,
    encode_chains,
    load_memory_reason,
    load_multi_hop,
    load_multi_hop_tokenizer,
    prepare_multi_hop,
    read_multi_hop_json,
    reference_solution,
    save_memory_reason,
    save_multi_hop,
    select_chains,
)
from memreason_hf.data.chains.config import parse_hop_counts
from memreason_hf.data.chains.tokenizer import build_tokenizer
from memreason_hf.data.questions.encoding import encode_solutions
from memreason_hf.data.text.encoding import encode_texts
from memreason_hf.data.text.packing import pack_documents
from memreason_hf.data.text.sources import read_texts
from memreason_hf.models.new_models import train_tokenizer
from memreason_hf.recipes import find_recipe, load_recipe
from memreason_hf.steps import Step
from memreason_hf.steps.attention import set_step_attention
from memreason_hf.steps.depth import DepthByKind, read_depths
from memreason_hf.steps.tokenization import encode_prompt, encode_solution
from memreason_hf.training import ChainCollator, StepCollator


NOWHERE = "nowhere/at_all"
NOT_PATHS = (NOWHERE, "", "\0", "a" * 300)
STEP = {"kind": "memory", "text": "Air scatters light."}


def case(entrance, label, run, names, value=NO_VALUE, *, is_wrong=True, fault=lambda result: None):
    return Case(entrance, label, lambda scratch: run(), tuple(names), value, is_wrong, fault)


def one_argument(entrance, function, name, values, *, is_wrong=True, names=()):
    """A case for each value of one argument."""
    return [
        case(
            entrance,
            f"{name}={show(value)}",
            lambda value=value: function(value),
            (name, *names),
            value,
            is_wrong=is_wrong,
        )
        for value in values
    ]


def cases(rng: random.Random, world: Path) -> list[Case]:
    torch.manual_seed(rng.getrandbits(30))
    return [
        *_steps(rng),
        *_tokenizers(world),
        *_chains(rng, world),
        *_questions(world),
        *_texts(world),
    ]


def _steps(rng):
    wrong = {
        "num_prefix_tokens": wrong_ints(0),
        "num_step_tokens": wrong_ints(0),
        "marks": wrong_choices(["tokens"]),
        "layout": wrong_choices(["steps"]),
        "ordered": wrong_bools(),
        "kinds": [5, None, "", [], ["A"], ["prefix"], ["rag"], ["a", "a"], ["answer"], [3], {"a": "b"}, ["eos"]],
        "kind_words": [5, "memory", {"search": "x"}, {"memory": ""}, {"memory": 5}, {"memory": "a:"}, ["memory"]],
        "random_marks": wrong_bools(),
    }
    made = field_cases(rng, "StepScheme", StepScheme, wrong, 9)
    scheme = StepScheme(1, 2)
    huge = [100_000, 10**9, 10**15]
    made += one_argument("StepScheme", lambda v: StepScheme(num_prefix_tokens=v).tokens, "num_prefix_tokens", huge)
    made += one_argument("StepScheme", lambda v: StepScheme(num_step_tokens=v).tokens, "num_step_tokens", huge)
    made += [
        case("StepScheme", f"{values}", lambda values=values: StepScheme(**values), values)
        for values in (
            {"layout": "front", "num_prefix_tokens": 0},
            {"layout": "front", "marks": "words"},
            {"marks": "none", "layout": "plan_first"},
            {"num_prefix_tokens": 0, "num_step_tokens": 0},
            {"num_step_tokens": 0, "layout": "plan_only"},
            {"random_marks": True, "marks": "words"},
            {"num_steps_tokens": 2},
        )
    ]
    for name, values in (
        ("unknown", {"num_prefix": 1}),
        ("marks", {"marks": 5}),
        ("num_step_tokens", {"num_step_tokens": "2"}),
    ):
        entrance = "StepScheme.from_dict"
        made.append(case(entrance, f"{values}", lambda v=values: StepScheme.from_dict(v), [name, "num_prefix"]))
    made += one_argument("StepScheme.from_dict", StepScheme.from_dict, "values", ["text", 5, None, [1]])
    made += one_argument("StepScheme.kind_tokens", scheme.kind_tokens, "kind", ["nonsense", 5, None, "", "Memory"])
    texts = [5, None, b"bytes", ["a", "b"], 2.5]
    made += one_argument("StepScheme.parse", scheme.parse, "text", texts)
    made += one_argument("StepScheme.locate", scheme.locate, "text", texts)
    made += one_argument("StepScheme.prompt", scheme.prompt, "question", texts)
    solutions = [
        ("text", [Step("memory", "a\nb")]),
        ("text", [Step("memory", "a <memory_0> b")]),
        ("kind", [{"kind": "nonsense", "text": "a"}]),
        ("text", [{"kind": "memory"}]),
        ("kind", [{"text": "a"}]),
        ("typo", [{"kind": "memory", "text": "a", "typo": 1}]),
        ("text", [{"kind": "memory", "text": 5}]),
        ("text", [{"kind": "memory", "text": None}]),
        ("step", ["a text"]),
        ("step", "a text"),
        ("step", [5]),
        ("step", 5),
        ("step", None),
        ("step", [None]),
        ("kind", [{"kind": None, "text": "a"}]),
        ("kind", [{"kind": ["memory"], "text": "a"}]),
    ]
    for name, steps in solutions:
        label = f"{steps}"
        made.append(case("StepScheme.render", label, lambda s=steps: scheme.render(s), [name, name.capitalize()]))
    made += one_argument("Step", lambda v: Step(v, "a"), "kind", ["nonsense", "", 5, None, "Memory"])
    made += one_argument("Step", lambda v: Step("memory", v), "text", [5, None, b"a", ["a"]])
    made += one_argument(
        "read_depths", read_depths, "depth", ["", "memory", "memory=", "memory=x", "memory=-1", "x=2"]
    )
    made += one_argument("read_depths", read_depths, "depth", ["memory=2,memory=3", "memory=2.5"])
    return made


def _tokenizers(world):
    def extended(tokenizer=None, scheme=StepScheme(1, 2), model=None):
        return extend_tokenizer(byte_level() if tokenizer is None else tokenizer, scheme, model)

    made = one_argument("extend_tokenizer", lambda v: extended(tokenizer=v), "tokenizer", ["text", 5, [1]])
    made += one_argument("extend_tokenizer", lambda v: extended(scheme=v), "scheme", ["text", 5, None, {"a": 1}, [1]])
    made += one_argument("extend_tokenizer", lambda v: extended(model=v), "model", ["text", 5, [1]])
    tokenizer = byte_level()
    extend_tokenizer(tokenizer, StepScheme(1, 2))
    plain = byte_level()
    made += one_argument(
        "encode_solution",
        lambda v: encode_solution(tokenizer, v),
        "step",
        [5, "text", [5], [{"kind": "memory"}], None],
    )
    made.append(
        case("encode_solution", "no scheme", lambda: encode_solution(plain, [Step(**STEP)]), ["scheme", "token"])
    )
    made += one_argument("encode_prompt", lambda v: encode_prompt(tokenizer, v), "question", [5, None, ["a"], b"a"])
    made += one_argument(
        "encode_prompt", lambda v: encode_prompt(tokenizer, "Is it?", v), "demonstration", [5, "text", [5], [("a",)]]
    )
    model = llama(len(tokenizer))
    for name, function in (
        ("variant", lambda v: set_step_attention(model, tokenizer, v)),
        ("tokens", lambda v: set_step_attention(model, v, "own")),
    ):
        values = ["nonsense", 5, ["own"]] if name == "variant" else ["text", 5, {"memory": "a"}, {"nonsense": [1]}, {}]
        made += one_argument("set_step_attention", function, name, values, names=("token", "kind", "tokenizer"))
    made[-1].value = NO_VALUE
    made.append(
        case(
            "set_step_attention",
            "no step tokens",
            lambda: set_step_attention(model, plain, "own"),
            ["token", "scheme"],
        )
    )
    for depths, otherwise in (
        ({"memory": 0}, 2),
        ({"memory": -1}, 2),
        ({"memory": "two"}, 2),
        ({"nonsense": 2}, 2),
        ({"memory": 2.5}, 2),
        ({"memory": math.nan}, 2),
        ("memory", 2),
        (5, 2),
        ({"memory": 2}, 0),
        ({"memory": 2}, "two"),
        ({"memory": 2}, -3),
    ):
        made.append(
            case(
                "DepthByKind",
                f"{depths}, {otherwise}",
                lambda d=depths, o=otherwise: DepthByKind(tokenizer, d, o),
                ["depths", "memory", "nonsense", "otherwise", "num_recurrences"],
            )
        )
    return made


def _chains(rng, world):
    counts = ("num_entities", "num_relations", "num_train_chains", "num_test_chains", "num_small_test_chains")
    wrong = {
        **{name: wrong_ints(1) for name in counts},
        **{name: wrong_ints(0) for name in ("num_atomic_probes", "num_train_probes", "seed")},
        "out_degree": [*wrong_ints(1, optional=True), 99],
        "train_hops": [
            "x",
            "",
            "3-",
            "-",
            "1",
            "0-3",
            "5-2",
            "2-4-6",
            2.5,
            None,
            [],
            "2,,x",
            "1e3",
            "-4",
            "2-10000000",
        ],
        "test_hops": ["x", "", "3-", "0", "-1", "5-2", 2.5, None, [], {"a": 1}, "2-99999999"],
        "cap_to_available": wrong_bools(),
    }
    made = field_cases(rng, "MultiHopConfig", lambda **v: MultiHopConfig(**{**WORLD_SIZES, **v}), wrong, 7)
    huge = ("num_entities", "num_train_chains", "num_relations", "num_atomic_probes")
    for name in huge:
        # A million times what a machine holds, and more chains than there are.
        made.append(
            case(
                "build_multi_hop",
                f"{name}={10**13}",
                lambda name=name: build_multi_hop(
                    MultiHopConfig(**{**WORLD_SIZES, "cap_to_available": False, name: 10**13})
                ),
                [name],
                is_wrong=name != "num_atomic_probes",
            )
        )
    made += one_argument("parse_hop_counts", parse_hop_counts, "", ["x", "2--3", "3-2", "", [], 2.5, None, [1.5]])
    rows = load_multi_hop(world / "chains")["test"]
    tokenizer = load_multi_hop_tokenizer(world / "chains")
    for entrance, load in (
        ("load_multi_hop", load_multi_hop),
        ("load_multi_hop_tokenizer", load_multi_hop_tokenizer),
        ("read_multi_hop_json", read_multi_hop_json),
        ("convert_multi_hop", lambda path: convert_multi_hop(path, "out")),
    ):
        made += [
            case(entrance, show(path), lambda load=load, path=path: load(path), [path[:20] or "path", "path"])
            for path in (*NOT_PATHS, str(world / "texts"), str(world / "texts" / "a.txt"))
        ]
        made += one_argument(entrance, load, "path", [5, None, [1]], names=("input_dir", "folder"))
    made += one_argument("select_chains", lambda v: select_chains(rows, kind=v), "kind", ["nonsense", 5, ""])
    made += one_argument(
        "select_chains", lambda v: select_chains(rows, hops=v), "hops", ["two", 5, [0.5], ["x"], [-1]]
    )
    no_text = rows.remove_columns("input_text")
    for label, dataset, name in (
        ("no input_text", no_text, "input_text"),
        ("no rows", rows.select([]), "row"),
        ("unknown tokens", rows.map(lambda row: {"input_text": "<e_99>", "target_text": "<e_99><e_1>"}), "<e_99>"),
        ("a list", [1, 2], "dataset"),
        ("a dictionary of splits", DatasetDict({"test": rows}), "dataset"),
        ("None", None, "dataset"),
    ):
        may_pass = label == "no rows"
        made.append(
            case("encode_chains", label, lambda d=dataset: encode_chains(d, tokenizer), [name], is_wrong=not may_pass)
        )
        made.append(
            case(
                "select_chains",
                label,
                lambda d=dataset: select_chains(d, kind="test"),
                [name],
                is_wrong=label[0] in "aN",
            )
        )
    made += one_argument("encode_chains", lambda v: encode_chains(rows, v), "tokenizer", ["text", 5, None])
    made += one_argument(
        "encode_chains", lambda v: encode_chains(rows, tokenizer, batch_size=v), "batch_size", [0, -1, "many", 2.5]
    )
    made.append(
        case(
            "encode_chains", "another tokenizer", lambda: encode_chains(rows, byte_level()), ["token", "<e_", "vocab"]
        )
    )
    made += one_argument(
        "build_tokenizer",
        build_tokenizer,
        "vocabulary",
        [[], ["<e_0>"], ["<pad>", "<pad>"], "text", 5, None, [1, 2], ["<pad>", ""], ["<pad>", "a b"]],
        names=("<pad>", "token", "vocabulary"),
    )
    for item in made[-9:]:
        item.value = NO_VALUE
    made += one_argument("build_multi_hop", build_multi_hop, "config", ["text", 5, None, {}])
    made += one_argument("save_multi_hop", lambda v: save_multi_hop(v, "out"), "data", ["text", 5, None, {}])
    made += one_argument("prepare_multi_hop", lambda v: prepare_multi_hop(v, "out"), "config", ["text", 5, None])
    data = build_multi_hop(MultiHopConfig(**WORLD_SIZES))
    for path in (str(world / "texts" / "a.txt"), str(world / "texts"), "\0", 5, None):
        name = str(path)[-5:]
        made.append(
            case("save_multi_hop", f"to {show(path)}", lambda p=path: save_multi_hop(data, p), [name, "output_dir"])
        )
    made += one_argument("ChainCollator", ChainCollator, "pad_token_id", ["zero", None, 2.5, -1])
    made += one_argument("ChainCollator", lambda v: ChainCollator(0, v), "supervision", ["nonsense", 5, None, ""])
    for rows_given in ([], [{}], [{"input_ids": "text"}], "text", [{"input_ids": []}], None, 5):
        made.append(
            case(
                "ChainCollator()",
                f"{rows_given}",
                lambda r=rows_given: ChainCollator(0)(r),
                ["row", "input_ids", "feature", "batch"],
            )
        )
    return made


def _questions(world):
    rows = load_memory_reason(world / "questions")["train"]
    tokenizer = byte_level()
    extend_tokenizer(tokenizer, StepScheme(1, 2))
    made = []
    for entrance, load in (
        ("load_memory_reason", load_memory_reason),
        ("build_memory_reason", lambda path: build_memory_reason("strategy_qa", path)),
    ):
        made += [
            case(entrance, show(path), lambda load=load, path=path: load(path), [path[:20] or "source", "source"])
            for path in (*NOT_PATHS, str(world / "texts"), str(world / "texts" / "a.txt"))
        ]
    made += one_argument(
        "build_memory_reason",
        lambda v: build_memory_reason(v, str(world / "question_files")),
        "name",
        ["x", "", 5, None],
    )
    made += one_argument(
        "load_memory_reason", lambda v: load_memory_reason(world / "question_files", v), "name", ["x", "", 5]
    )
    made += one_argument("save_memory_reason", lambda v: save_memory_reason(v, "out"), "data", ["text", 5, None])
    made += one_argument(
        "Demonstrations", lambda v: Demonstrations(rows, v), "num_demonstrations", [-1, 99, "two", 2.5, None, 10**12]
    )
    made += one_argument("Demonstrations", lambda v: Demonstrations(rows, 1, seed=v), "seed", ["x", 2.5, [1]])
    made += one_argument(
        "Demonstrations", lambda v: Demonstrations(v, 1), "dataset", ["text", 5, None, [1]], names=("row",)
    )
    made += one_argument("Demonstrations()", Demonstrations(rows, 1), "question", [5, None, ["a"]])
    items = [
        ("no question", [{"steps": [STEP], "answer": "True", "options": []}], "question"),
        ("no steps", [{"question": "Is it?", "answer": "True", "options": []}], "steps"),
        ("no answer", [{"question": "Is it?", "steps": [STEP], "options": []}], "answer"),
        ("a number for a question", [{"question": 5, "steps": [STEP], "answer": "True"}], "question"),
        ("a text for steps", [{"question": "Is it?", "steps": "text", "answer": "True"}], "step"),
        ("a step without a kind", [{"question": "Is it?", "steps": [{"text": "a"}], "answer": "True"}], "kind"),
        ("an unknown kind", [{"question": "Q", "steps": [{"kind": "x", "text": "a"}], "answer": "True"}], "kind"),
        ("a text", "text", "item"),
        ("a number", 5, "item"),
        ("None", None, "item"),
        ("texts", ["a", "b"], "item"),
        ("nothing", [], "item"),
    ]
    for label, given, name in items:
        made.append(
            case(
                "encode_solutions",
                label,
                lambda given=given: encode_solutions(tokenizer, given),
                [name, "item"],
                is_wrong=label != "nothing",
            )
        )
    for label, row, name in (
        ("no answer", {"question": "Q", "steps": [STEP]}, "answer"),
        ("no steps", {"question": "Q", "answer": "True"}, "steps"),
        ("a text", "text", "row"),
        ("None", None, "row"),
        ("a list", [1], "row"),
        ("steps of None", {"question": "Q", "answer": "True", "steps": None, "options": []}, "steps"),
    ):
        made.append(case("reference_solution", label, lambda row=row: reference_solution(row), [name, "row"]))
    good = rows.select([0])
    made += one_argument(
        "encode_solutions",
        lambda v: encode_solutions(tokenizer, good, max_length=v),
        "max_length",
        [0, -1, "x", 2.5, 3],
    )
    made += one_argument(
        "encode_solutions", lambda v: encode_solutions(tokenizer, good, too_long=v), "too_long", ["x", 5, None, ""]
    )
    made.append(
        case(
            "encode_solutions", "no scheme", lambda: encode_solutions(byte_level(), good), ["scheme", "step", "token"]
        )
    )
    made += one_argument("StepCollator", StepCollator, "tokenizer", ["text", 5, None])
    for batch in ([], [{}], "text", 5, None, [{"input_ids": "text"}]):
        made.append(
            case(
                "StepCollator()",
                f"{batch}",
                lambda b=batch: StepCollator(tokenizer)(b),
                ["row", "input_ids", "feature", "batch"],
            )
        )
    return made


def _texts(world):
    tokenizer = byte_level()
    texts = Dataset.from_dict({"text": ["a memory of a step", "the reason"]})
    made = one_argument(
        "encode_texts", lambda v: encode_texts(texts, tokenizer, v), "sequence_length", [0, -1, "x", 2.5, None]
    )
    made += one_argument(
        "encode_texts", lambda v: encode_texts(texts, tokenizer, 8, v), "too_long", ["x", "", 5, None, "error_"]
    )
    made.append(
        case("encode_texts", "too long", lambda: encode_texts(texts, tokenizer, 2, "error"), ["too_long", "token"])
    )
    made += one_argument("encode_texts", lambda v: encode_texts(v, tokenizer, 8), "texts", ["text", 5, None, ["a"]])
    made += one_argument("encode_texts", lambda v: encode_texts(texts, v, 8), "tokenizer", ["text", 5, None])
    no_text = Dataset.from_dict({"body": ["a"]})
    made.append(case("encode_texts", "no column text", lambda: encode_texts(no_text, tokenizer, 8), ["text"]))
    numbers = Dataset.from_dict({"text": [1, 2]})
    made.append(case("encode_texts", "numbers", lambda: encode_texts(numbers, tokenizer, 8), ["text"]))
    made += one_argument("pack_documents", lambda v: pack_documents([[1, 2]], v), "sequence_length", [0, -1, "x", 2.5])
    made += one_argument("pack_documents", lambda v: pack_documents([[1, 2]], 8, v), "too_long", ["x", 5, None])
    made += one_argument(
        "pack_documents", lambda v: pack_documents(v, 8), "document", ["text", 5, None, [["a"]], [5], [[1.5]]]
    )
    files = world / "texts"
    for label, patterns, name in (
        ("nowhere", NOWHERE, NOWHERE),
        ("a pattern without files", str(files / "*.nothing"), "*.nothing"),
        ("nothing", "", "files"),
        ("no list", [], "files"),
        ("a number", 5, "files"),
        ("None", None, "files"),
        ("numbers", [1, 2], "files"),
        ("a folder", str(files), "texts"),
        ("an image", str(world / "results" / "perplexity.png"), "perplexity.png"),
        ("kinds of files mixed", [str(files / "a.txt"), str(files / "b.jsonl")], "a.txt"),
        ("null bytes", "\0", "files"),
    ):
        made.append(case("read_texts", label, lambda p=patterns: read_texts(p), [name, "files"]))
    made += one_argument(
        "read_texts", lambda v: read_texts(str(files / "b.jsonl"), v), "column", ["body", "", 5, None], names=("text",)
    )
    made += one_argument(
        "train_tokenizer", lambda v: train_tokenizer(["a b"], v), "vocab_size", [0, -1, 2, "x", 2.5, None]
    )
    made += one_argument("train_tokenizer", lambda v: train_tokenizer(v, 300), "texts", ["text", 5, None, [1, 2]])
    made += one_argument("find_recipe", find_recipe, "recipe", ["nowhere", "", "../text_tiny"], names=("recipe", "''"))
    made += one_argument(
        "load_recipe", load_recipe, "recipe", [str(files), str(files / "a.txt"), "quickstar"], names=("a.txt",)
    )
    return made
