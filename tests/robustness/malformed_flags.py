"""Malformed flags of every command and data script."""

import random
import typing
from pathlib import Path

from malformed_cases import NO_VALUE, Case, command, misspelt, show, some
from malformed_world import WORLD_SIZES
from transformers import TrainingArguments

from data_scripts import annotate_steps, build_memory_reason, build_multi_hop, convert_multi_hop
from memreason_hf import cli
from memreason_hf.command_line.values import union_arms
from memreason_hf.commands import (
    annotate,
    attention,
    calibrate,
    convert,
    evaluate,
    evaluate_steps,
    finetune,
    fit_gate,
    generate,
    lens,
    lm_eval,
    patch,
    perplexity,
    quickstart,
    reproduce,
    score,
    sweep,
    testbed,
    train,
    trajectories,
    unroll,
)


CALIBRATED = ("--halting_criterion", "margin", "--max_recurrences", "2")


def commands(world: Path) -> dict:
    """`{name: (module, parser, right arguments)}`"""
    text, chains = str(world / "text_model"), str(world / "chains")
    steps = str(world / "steps_model")
    # Nothing listens on this port: what is not refused before ends there.
    asked = ["--llm", "m", "--endpoint", "http://127.0.0.1:9/v1", "--request_tries", "1", "--output_file", "out.jsonl"]
    asked += ["--data", str(world / "questions")]
    sizes = [part for name, value in WORLD_SIZES.items() if value is not True for part in (f"--{name}", str(value))]
    return {
        "generate": (generate, [text, "--prompt", "the cat", "--max_new_tokens", "2"]),
        "evaluate": (evaluate, [str(world / "chain_model"), "--data", chains, "--hops", "2"]),
        "calibrate": (
            calibrate,
            [str(world / "chain_model"), "--data", chains, "--hops", "2", "--risk", "0.9", *CALIBRATED],
        ),
        "fit-gate": (
            fit_gate,
            [str(world / "chain_model"), "out", "--data", chains, "--num_recurrences", "2", "--max_labels", "9"],
        ),
        "sweep": (sweep, [str(world / "chain_model"), "--data", chains, "--hops", "2", "--max_recurrences", "2"]),
        "perplexity": (perplexity, [text, "--data", str(world / "texts" / "a.txt"), "--max_recurrences", "2"]),
        "lens": (lens, [text, "--text", "the cat", "--max_recurrences", "2"]),
        "trajectories": (
            trajectories,
            [str(world / "chain_model"), "--data", chains, "--hops", "2", "--max_recurrences", "2", "--max_rows", "2"],
        ),
        "patch": (patch, [text, "--first", "the cat sat", "--second", "the dog ran", "--max_recurrences", "3"]),
        "lm-eval": (lm_eval, [text, "--tasks", "no_such_task", "--num_recurrences", "1"]),
        "evaluate-steps": (
            evaluate_steps,
            [steps, "--data", str(world / "questions"), "--max_new_tokens", "2", "--num_items", "2"],
        ),
        "score": (score, [str(world / "generations.jsonl")]),
        "annotate": (annotate, asked),
        "annotate_steps.py": (annotate_steps, asked),
        "attention": (attention, [steps, "--generations", str(world / "generations.jsonl"), "--index", "0"]),
        "convert": (convert, [str(world / "source"), "out", "--prelude", "1", "--loop", "1", "--coda", "1"]),
        "unroll": (unroll, [str(world / "looped"), "out", "--num_recurrences", "2"]),
        "build_multi_hop.py": (build_multi_hop, ["--output_dir", "out", *sizes, "--cap_to_available"]),
        "build_memory_reason.py": (
            build_memory_reason,
            ["--name", "strategy_qa", "--source", str(world / "question_files"), "--output_dir", "out"],
        ),
        "convert_multi_hop.py": (convert_multi_hop, ["--input_dir", chains, "--output_dir", "out"]),
        "train": (train, [str(world / "recipes" / "chains.yaml"), "--output_dir", "run"]),
        "finetune": (finetune, [str(world / "recipes" / "finetune.yaml"), "--output_dir", "run"]),
        "quickstart": (quickstart, ["--output_dir", "run", "--max_steps", "1", *sizes, "--cap_to_available"]),
        "testbed": (testbed, ["--output_dir", "run", "--max_steps", "1"]),
        "reproduce retrofit": (reproduce, ["retrofit", "--output_dir", "run"]),
    }


# Commands that train for minutes even where sizes are small: only what they must refuse is given to them.
LONG = ("quickstart", "testbed", "reproduce retrofit")
# How many flags of a command that has more are tried.
MOST_FLAGS = 22
WRONG_INTS = ("three", "", "2.5", "1e3", "nan", "inf", "0x10", "[1]", "1 2", "٣x")
WRONG_FLOATS = ("fast", "", "1,5", "[1]", "1 2", "0.5.1", "half")
NOT_FINITE = ("nan", "inf", "-inf")
WRONG_CHOICES = ("nonsense", "", "None", "5")
WRONG_BOOLS = ("maybe", "2", "nope", "[]")
# Whole numbers that may be 0 or negative, by command or by name.
FROM_ZERO = (
    "pad_token_id",
    "bos_token_id",
    "num_prelude_layers",
    "num_coda_layers",
    "seed",
    "state_seed",
    "recurrence_seed",
    "index",
    "num_demonstrations",
    "layer",
    "head",
    "num_atomic_probes",
    "num_train_probes",
    "agreement",
    "llm_temperature",
    "num_prefix_tokens",
    "num_step_tokens",
    "spectral_rows",
    "repetitions",
)
ANY_NUMBER = (
    "seed",
    "state_seed",
    "recurrence_seed",
    "eos_token_id",
    "max_steps",
    "index",
    "warmup_steps",
    "num_fewshot",
    "disorder",
)
# Fields that this package or the library lets have any text.
FREE_TEXT = (
    *(
        "prompt",
        "first",
        "second",
        "output_dir",
        "run_name",
        "project",
        "out",
        "output_file",
        "html",
        "json",
        "text",
        "vocabulary",
    ),
    *("hub_model_id", "hub_token", "logging_dir"),
)


def cases(rng: random.Random, world: Path) -> list[Case]:
    made = []
    for name, (module, right) in commands(world).items():
        made += _of_command(rng, name, module, right)
    return made + _verbs(world) + _together(world)


def _of_command(rng, name, module, right):
    parser = module.make_parser()
    flags = [
        (section.flag(field), field, hint)
        for section in parser.sections.values()
        for field, hint in section.hints.items()
        if section.flag(field) in parser._destinations
    ]
    made = []

    def add(label, arguments, names, value=NO_VALUE, is_wrong=True):
        def run(scratch):
            return command(module.main, *arguments)

        # Where the flag is one of several ways to say the same, the message is about all of them.
        names = (*names, "lm-eval") if name == "lm-eval" else names
        # Nothing is wrong with such a value.
        names = (*names, "nothing was answered") if name.startswith("annotate") and not is_wrong else names
        value = NO_VALUE if name.startswith("annotate") and not is_wrong else value
        value = NO_VALUE if name == "lm-eval" or {"text_file", "text", "html", "num_relations"} & {*names} else value
        made.append(Case(f"memreason {name}", label, run, tuple(names), value, is_wrong, _fault_of_output))

    own = [entry for entry in flags if entry[1] not in LIBRARY_FIELDS]
    for flag, field, hint in some(rng, own, MOST_FLAGS):
        for value, is_wrong in _wrong_values(rng, field, hint):
            if name in LONG and not is_wrong:
                continue
            # The last of a repeated flag counts.
            add(f"--{flag} {show(value)}", [*right, f"--{flag}={value}"], [field, flag], value, is_wrong)
    for flag, _, _ in some(rng, [entry for entry in flags if len(entry[0]) > 4], 4):
        typo = misspelt(flag, rng)
        add(f"--{typo} for --{flag}", [*right, f"--{typo}", "1"], [typo])
    add("a flag without its value", [*right, f"--{flags[0][0]}"], [flags[0][0]])
    add("one place too many", [*right, "one", "more"], ["one", "more"])
    add("an unknown flag", [*right, "--frobnicate"], ["frobnicate"])
    if name != "reproduce retrofit":
        add(
            "no arguments",
            [],
            [*parser.places, "input_dir", "output_dir", "recipe", "RECIPE", "name", "data"],
            is_wrong=name not in ("testbed", "quickstart"),
        )
    if name in ("testbed", "quickstart"):
        made.pop()
    for place in right[:1]:
        if not place.startswith("-") and name != "reproduce retrofit":
            for wrong in ("nowhere/at_all", "", "/dev/null", "recipe.yaml"):
                add(
                    f"{show(wrong)} in the first place",
                    [wrong, *right[1:]],
                    [wrong or "''", "model", "source", "recipe"],
                )
    return made


# Of the library's training arguments; `training_values` tries their values.
LIBRARY_FIELDS = frozenset(
    name
    for name in TrainingArguments.__dataclass_fields__
    if name not in ("output_dir", "max_steps", "learning_rate", "per_device_train_batch_size")
)


def _wrong_values(rng, field, hint):
    """Up to 3 values of a flag, and whether each must be refused."""
    arms = union_arms(hint)
    is_list = any(typing.get_origin(arm) is list for arm in arms)
    plain = [typing.get_args(arm)[0] if typing.get_origin(arm) is list else arm for arm in arms]
    literals = [arm for arm in plain if typing.get_origin(arm) is typing.Literal]
    values = []
    if bool in plain:
        values = [(value, True) for value in WRONG_BOOLS]
    elif literals:
        values = [(value, not (value == "None" and type(None) in plain)) for value in WRONG_CHOICES]
    elif float in plain:
        values = [(value, True) for value in WRONG_FLOATS]
        values += [(value, field != "weight_decay") for value in NOT_FINITE]
    elif int in plain and str not in plain:
        values = [(value, True) for value in WRONG_INTS]
        if field not in ANY_NUMBER:
            values += [("-1", True), ("-1000000", True)]
            values += [("0", field not in FROM_ZERO)]
        values += [("99999999999999999999", False)]
    elif str in plain and field not in FREE_TEXT:
        values = [("nonsense", False), ("", False), ("nowhere/at_all", False), ("-1", False)]
    if is_list:
        values = [pair for pair in values if pair[0] != "1 2"]
    return some(rng, values, 3)


def _fault_of_output(result):
    lowered = f" {result.lower()} "
    if " nan " in lowered or " inf " in lowered:
        return f"prints what is not finite: {result[-200:]}"
    return None


def _verbs(world):
    def of(label, arguments, names):
        return Case("memreason", label, lambda scratch: command(cli.main, *arguments), tuple(names))

    return [
        of("an unknown verb", ["frobnicate"], ["frobnicate"]),
        of("a misspelt verb", ["genrate"], ["genrate"]),
        of("an empty verb", [""], ["''", "verb", "command"]),
        of("a flag before the verb", ["--model", "x"], ["--model"]),
        of("reproduce of nothing known", ["reproduce", "nonsense"], ["nonsense"]),
    ]


def _together(world):
    """Flags that contradict each other."""
    made = []
    right = commands(world)
    for name, flags, names in [
        (
            "generate",
            ["--num_recurrences", "3", "--halting_criterion", "kl"],
            ["num_recurrences", "halting_criterion"],
        ),
        ("generate", ["--kl_threshold", "0.1", "--halting_criterion", "entropy"], ["kl_threshold"]),
        ("generate", ["--kl_threshold", "0.1"], ["kl_threshold"]),
        ("generate", ["--min_recurrences", "5", "--max_recurrences", "3"], ["min_recurrences"]),
        ("generate", ["--prompts", "nowhere.txt"], ["prompts", "nowhere.txt"]),
        ("generate", ["--temperature", "0.5", "--do_sample", "false"], ["temperature"]),
        ("generate", ["--temperature", "-1"], ["temperature"]),
        ("generate", ["--top_p", "1.5"], ["top_p"]),
        ("generate", ["--draft_recurrences", "2", "--halting_criterion", "kl"], ["draft_recurrences"]),
        ("generate", ["--html", "/nowhere/at/all.html"], ["/nowhere"]),
        ("generate", ["--html", "."], ["html", ". is a folder"]),
        ("generate", ["--base", "x"], ["base"]),
        ("generate", ["--device", "cuda:99"], ["device", "cuda"]),
        ("generate", ["--max_new_tokens", "100000"], ["max_new_tokens"]),
        ("generate", ["--tokenizer", str(world / "chain_model")], ["tokenizer", "vocab"]),
        ("evaluate", ["--hops", "99"], ["hops"]),
        ("evaluate", ["--split", "nonsense"], ["split"]),
        ("evaluate", ["--group_column", "nonsense"], ["group_column"]),
        ("evaluate", ["--data", str(world / "texts")], ["data", "texts"]),
        ("evaluate", ["--output_dir", str(world / "results")], ["results"]),
        ("evaluate", ["--model", str(world / "base")], ["model"]),
        ("evaluate", ["--tokenizer", str(world / "base")], ["tokenizer", "vocab"]),
        ("sweep", ["--max_recurrences", "1000000000"], ["max_recurrences"]),
        ("sweep", ["--data", str(world / "questions")], ["data", "questions"]),
        ("sweep", ["--compare", str(world / "results" / "evaluation.json")], ["evaluation.json", "compare"]),
        ("sweep", ["--other_models", "nowhere/at/all"], ["nowhere/at/all"]),
        ("sweep", ["--other_models", str(world / "base")], ["model"]),
        ("calibrate", ["--risk", "0"], ["risk"]),
        ("calibrate", ["--risk", "1"], ["risk"]),
        ("calibrate", ["--risk", "0.0001"], ["risk"]),
        ("calibrate", ["--confidence", "1"], ["confidence"]),
        ("calibrate", ["--confidence", "0.9999999999"], ["confidence"]),
        ("calibrate", ["--confidence", "0.9", "--method", "conformal"], ["confidence"]),
        ("calibrate", ["--halting_criterion", "exit_gate"], ["exit_gate"]),
        ("calibrate", ["--halting_criterion", "nonsense"], ["halting_criterion"]),
        ("calibrate", ["--hops", "99"], ["hops"]),
        ("calibrate", ["--loss", "perplexity"], ["loss"]),
        ("calibrate", ["--largest_loss", "2"], ["largest_loss"]),
        ("calibrate", ["--min_recurrences", "3"], ["min_recurrences"]),
        ("calibrate", ["--entropy_threshold", "1"], ["entropy_threshold"]),
        ("calibrate", ["--repetitions", "-1"], ["repetitions"]),
        ("calibrate", ["--num_candidates", "1"], ["num_candidates"]),
        ("calibrate", ["--halting_granularity", "token"], ["halting_granularity"]),
        ("calibrate", ["--in_place", "--save_to", "x"], ["in_place", "save_to"]),
        ("calibrate", ["--save_to", str(world)], ["save_to"]),
        ("calibrate", ["--data", str(world / "nowhere")], ["data", "nowhere"]),
        ("calibrate", ["--model", str(world / "base")], ["model"]),
        ("fit-gate", ["--num_recurrences", "1"], ["num_recurrences"]),
        ("fit-gate", ["--max_labels", "0"], ["max_labels"]),
        ("fit-gate", ["--objective", "nonsense"], ["objective"]),
        ("fit-gate", ["--exit_prior", "uniform"], ["exit_prior"]),
        ("fit-gate", ["--objective", "expected_loss", "--exit_prior_stop", "1"], ["exit_prior_stop"]),
        ("fit-gate", ["--objective", "expected_loss", "--exit_prior_weight", "-1"], ["exit_prior_weight"]),
        ("fit-gate", ["--data", str(world / "questions")], ["data", "questions"]),
        ("fit-gate", ["--out", str(world)], ["out"]),
        ("fit-gate", ["--model", str(world / "base")], ["model"]),
        ("lens", ["--hops", "2"], ["hops"]),
        ("lens", ["--data", str(world / "chains")], ["data", "text"]),
        ("trajectories", ["--hops", "99"], ["hops"]),
        ("trajectories", ["--components", "9999"], ["components"]),
        ("patch", ["--second", "the"], ["first", "second"]),
        ("perplexity", ["--compare", str(world / "results" / "evaluation.json")], ["evaluation.json", "compare"]),
        ("perplexity", ["--compare", "nowhere.json"], ["nowhere.json"]),
        ("perplexity", ["--data", str(world / "texts")], ["texts"]),
        ("perplexity", ["--column", "body"], ["column"]),
        ("evaluate-steps", ["--depth_by_kind", "memory=2"], ["depth_by_kind"]),
        ("evaluate-steps", ["--num_recurrences", "2"], ["num_recurrences"]),
        ("evaluate-steps", ["--judge", "nonsense"], ["judge"]),
        ("evaluate-steps", ["--name", "nonsense"], ["name"]),
        ("score", ["--judge", "nonsense"], ["judge"]),
        ("score", ["--judge", "llm"], ["llm"]),
        ("score", ["--llm", "somebody"], ["llm"]),
        ("score", ["--columns", "text=nothing"], ["columns", "nothing"]),
        ("score", ["--data", str(world / "texts")], ["data", "texts"]),
        ("evaluate-steps", ["--num_demonstrations", "99"], ["num_demonstrations"]),
        ("attention", ["--index", "99"], ["index"]),
        ("attention", ["--index", "-1"], ["index"]),
        ("attention", ["--text", "a"], ["text"]),
        ("attention", ["--layer", "9"], ["layer"]),
        ("attention", ["--head", "9"], ["head"]),
        ("attention", ["--recurrence", "2"], ["recurrence"]),
        ("convert", ["--prelude", "9"], ["prelude"]),
        ("convert", ["--loop", "x"], ["loop"]),
        ("convert", ["--out", str(world / "source")], ["out", "source"]),
        ("convert", ["--out", str(world)], ["out", "source"]),
        ("convert", ["--num_attention_heads", "3"], ["num_attention_heads"]),
        ("convert", ["--vocabulary", "nowhere"], ["vocabulary"]),
        ("convert", ["--state_init", "normal", "--input_injection", "none"], ["state_init"]),
        ("unroll", ["--source", str(world / "text_model")], ["source", "text_model", "block_model_type"]),
        ("unroll", ["--num_recurrences", "0"], ["num_recurrences"]),
        (
            "build_multi_hop.py",
            ["--num_train_chains", "10000000000", "--cap_to_available", "false"],
            ["num_train_chains"],
        ),
        ("build_multi_hop.py", ["--out_degree", "99"], ["out_degree"]),
        ("build_multi_hop.py", ["--output_dir", str(world / "texts")], ["texts"]),
        ("build_multi_hop.py", ["--output_dir", str(world / "texts" / "a.txt")], ["a.txt"]),
        ("build_memory_reason.py", ["--name", "nonsense"], ["name"]),
        ("build_memory_reason.py", ["--name", "commonsense_qa"], ["question_files", "CommonsenseQA", "Commonsense"]),
        ("convert_multi_hop.py", ["--input_dir", str(world / "texts")], ["texts"]),
        ("convert_multi_hop.py", ["--output_dir", str(world / "chains")], ["chains"]),
    ]:
        module, arguments = right[name]

        def run(scratch, module=module, arguments=(*arguments, *flags)):
            return command(module.main, *arguments)

        # Of text files the column has no meaning, missing folders are made, a saved data set needs no name, and the
        # text files of a folder are read.
        is_free = flags[0] in ("--column", "--name", "--max_new_tokens") or "/nowhere/at/all.html" in flags
        is_free = is_free or flags == ["--data", str(world / "texts")]
        made.append(Case(f"memreason {name}", " ".join(flags), run, tuple(names), NO_VALUE, not is_free))
    return made
