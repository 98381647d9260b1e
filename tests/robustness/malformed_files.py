"""Every file of models, adapters, data, results and generations, damaged in every way."""

import random
from pathlib import Path

from malformed_cases import Case, command, some
from malformed_damage import DAMAGES, damage_cases

from memreason_hf.commands import (
    attention,
    convert,
    evaluate,
    evaluate_steps,
    generate,
    perplexity,
    unroll,
)
from memreason_hf.data import load_memory_reason, load_multi_hop, load_multi_hop_tokenizer
from memreason_hf.evaluation import read_results
from memreason_hf.evaluation.solutions.answers import read_published
from memreason_hf.evaluation.solutions.generation_files import read_generations


# What must be there, but only says how a generation is done where a user gives nothing.
# Where the base of an adapter is, its config says, too.
OPTIONAL = (
    "local_base.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
# Nothing reads the record of a conversion or a training but the commands that continue it.
UNREAD = ("conversion.json", "report.json", "README.md", "manifest.json", "dataset_info.json", "state.json")
# The tensors of a folder of safetensors have no checksum: other values of the same shape are another model.
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
FEW = ("missing", "empty", "cut", "one bit", "nonsense", "null", "deeply nested", "a directory", "a pipe")


def fault_of_output(result):
    """A command that ran prints something, and no number that is not finite."""
    text = str(result).lower()
    return "prints what is not finite" if any(word in text.split() for word in ("nan", "inf", "nan%")) else None


def files_of(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        # Neither code, which is not read where the package is installed, nor what `datasets` caches beside its files.
        if path.is_file() and path.suffix != ".py" and not path.name.startswith("cache-")
    )


def cases(rng: random.Random, world: Path) -> list[Case]:
    made = _models(rng, world)
    made += _data(rng, world)
    made += _results(rng, world)
    made += _conversions(rng, world)
    return made


def _models(rng, world):
    def generated(folder):
        return command(generate.main, folder, "--prompt", "the cat", "--max_new_tokens", "2", "--device", "cpu")

    def evaluated(folder):
        arguments = ("--data", world / "chains", "--hops", "2", "--num_recurrences", "2", "--no_progress")
        return command(evaluate.main, folder, *arguments)

    def solved(folder):
        arguments = ("--data", world / "questions", "--max_new_tokens", "2", "--num_items", "1", "--no_progress")
        return command(evaluate_steps.main, folder, *arguments)

    def of(entrance, name, read, damages):
        folder = world / name
        files = [file for file in files_of(folder) if file not in UNREAD]
        return damage_cases(
            rng,
            entrance,
            folder,
            files,
            read,
            optional=OPTIONAL,
            unread=("special_tokens_map.json", "README.md"),
            damages=damages,
            names=dict.fromkeys(files, ("tokenizer", "model=", "config", "base")),
            fault=fault_of_output,
        )

    made = of("memreason generate", "text_model", generated, tuple(DAMAGES))
    made += of("memreason evaluate", "chain_model", evaluated, FEW)
    made += of("memreason evaluate-steps", "adapter", solved, tuple(DAMAGES))
    return made + of("memreason evaluate-steps", "steps_model", solved, FEW)


def _data(rng, world):
    chains, questions = world / "chains", world / "questions"

    def evaluated(folder):
        arguments = ("--data", folder, "--hops", "2", "--num_recurrences", "2", "--no_progress")
        return command(evaluate.main, world / "chain_model", *arguments)

    # One split is read, and of the study's JSON files none where there are Arrow files.
    arrow = [file for file in files_of(chains) if file.startswith("test/")]
    others = [file for file in files_of(chains) if file not in arrow]
    made = damage_cases(rng, "memreason evaluate --data", chains, arrow, evaluated, unread=_beside(arrow))
    made += damage_cases(
        rng, "load_multi_hop", chains, others, load_multi_hop, unread=others, damages=some(rng, DAMAGES, 4)
    )
    tokenizer = [file for file in files_of(chains) if "token" in file or "vocab" in file]
    made += damage_cases(
        rng, "load_multi_hop_tokenizer", chains, tokenizer, load_multi_hop_tokenizer, unread=tokenizer, damages=FEW
    )
    files = files_of(questions)
    unread = [file for file in files if file.endswith(UNREAD)]
    made += damage_cases(rng, "load_memory_reason", questions, files, load_memory_reason, unread=unread)
    sources = world / "question_files"
    made += damage_cases(
        rng,
        "load_memory_reason",
        sources,
        files_of(sources),
        lambda folder: load_memory_reason(folder, "strategy_qa"),
        # A folder may hold one split.
        optional=files_of(sources),
    )

    def measured(folder):
        path = folder / "b.jsonl" if folder.is_dir() else folder
        return command(
            perplexity.main, world / "text_model", "--data", path, "--max_recurrences", "2", "--no_progress"
        )

    return made + damage_cases(
        rng, "memreason perplexity --data", world / "texts", ["b.jsonl"], measured, names={"b.jsonl": ("data",)}
    )


def _beside(files):
    """Files beside an Arrow file that describe it."""
    return [file for file in files if file.endswith(UNREAD)]


def _results(rng, world):
    results = world / "results"
    files = [file for file in files_of(results) if file.endswith(".json")]
    made = damage_cases(rng, "read_results", results, files, lambda folder: [read_results(folder / f) for f in files])

    def compared(folder):
        arguments = ("--data", world / "texts" / "a.txt", "--max_recurrences", "2", "--no_progress")
        return command(perplexity.main, world / "text_model", *arguments, "--compare", folder / "perplexity.json")

    made += damage_cases(rng, "memreason perplexity --compare", results, ["perplexity.json"], compared)

    def shown(folder):
        arguments = ("--generations", folder / "g.jsonl", "--index", "1", "--output_dir", "out", "--device", "cpu")
        return command(attention.main, world / "steps_model", *arguments)

    folder = world / "attention"
    if not folder.is_dir():
        folder.mkdir()
        (folder / "g.jsonl").write_bytes((world / "generations.jsonl").read_bytes())
        for suffix in (".settings.json", ".summary.json"):
            (folder / f"g.jsonl{suffix}").write_bytes((world / f"generations.jsonl{suffix}").read_bytes())
    files = files_of(folder)
    made += damage_cases(
        rng, "memreason attention --generations", folder, files, shown, unread=[f for f in files if f != "g.jsonl"]
    )
    made += damage_cases(
        rng,
        "read_generations",
        folder,
        ["g.jsonl"],
        lambda folder: read_generations(folder / "g.jsonl"),
        # A file without a line is one of a run that has just begun.
    )

    def continued(folder):
        arguments = ("--data", world / "questions", "--max_new_tokens", "4", "--no_progress")
        return command(evaluate_steps.main, world / "steps_model", *arguments, "--output_file", folder / "g.jsonl")

    # A summary is written anew, and a file of texts that is missing or cut is continued.
    made += damage_cases(
        rng,
        "memreason evaluate-steps --output_file",
        folder,
        files,
        continued,
        optional=["g.jsonl", "g.jsonl.settings.json"],
        unread=["g.jsonl.summary.json"],
    )
    published = world / "published"
    if not published.is_dir():
        published.mkdir()
        (published / "p.json").write_text(
            '[{"question": "Is it?", "answer": "True", "output": "<memory> a", "ground_truth": "True"}]'
        )
    made += damage_cases(
        rng, "read_published", published, ["p.json"], lambda folder: read_published(folder / "p.json")
    )
    for case in made:
        # An empty file of lines is one without lines.
        if "g.jsonl: cut" in case.label or ("g.jsonl: empty" in case.label and "attention" not in case.entrance):
            case.is_wrong = False
    return made


def _conversions(rng, world):
    def converted(*flags):
        return lambda folder: command(convert.main, folder, "out", *flags)

    layers = ("--prelude", "1", "--loop", "1", "--coda", "1")

    def of(name, read, damages, unread=("conversion.json",)):
        files = files_of(world / name)
        return damage_cases(
            rng,
            "memreason unroll" if name == "looped" else "memreason convert",
            world / name,
            files,
            read,
            optional=(*OPTIONAL, "conversion.json"),
            unread=unread,
            damages=damages,
            names=dict.fromkeys(files, ("tokenizer", "source=", "config", "model_type")),
        )

    made = of("source", converted(*layers), FEW)
    made += of("huginn", converted(), FEW)
    made += of("ouro", converted(), FEW)
    unrolled = lambda folder: command(unroll.main, folder, "out", "--num_recurrences", "2")  # noqa: E731
    return made + of("looped", unrolled, FEW)
