"""
`memreason evaluate-steps`: a model solves annotated questions; accuracy, steps by kind, where solutions go wrong.

    memreason evaluate-steps runs/strategy_qa --data data/strategy_qa --output_file runs/strategy_qa/generations.jsonl
"""

import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from datasets import DatasetDict

from memreason_hf.adapters.base_files import block_digests, weight_files
from memreason_hf.adapters.folders import adapter_folder
from memreason_hf.adapters.model import rows_in_place
from memreason_hf.analysis.solution_report import measure_solutions, solution_report
from memreason_hf.command_line.chat_flags import chat_section
from memreason_hf.command_line.depth_arguments import (
    DEPTH,
    DepthByKindArguments,
    check_has_recurrences,
    depth_settings,
    given_depth,
    schedule_by_kind,
)
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.judge_flags import JUDGE, REPLIES_SUFFIX, SHOWN_FLAGS, describe_usage
from memreason_hf.command_line.model_flags import model_section
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.data.questions.answer_types import ANSWER_TYPES
from memreason_hf.data.questions.demonstrations import Demonstrations
from memreason_hf.data.questions.memory_reason import NAMES
from memreason_hf.data.questions.own_data import load_questions, read_columns
from memreason_hf.evaluation.solutions.answers import ANSWER_RULES
from memreason_hf.evaluation.solutions.generation import check_max_new_tokens, generate_solutions
from memreason_hf.evaluation.solutions.generation_files import SETTINGS_SUFFIX, SUMMARY_SUFFIX
from memreason_hf.experiments.testbed.agreement import agreement_by_kind
from memreason_hf.files import check_places, write_json
from memreason_hf.locks import locked
from memreason_hf.messages import visible
from memreason_hf.steps.depth import read_depths
from memreason_hf.steps.tokenization import read_scheme


PROG = "memreason evaluate-steps"
DESCRIPTION = """\
Lets a model solve the questions of a data set, greedily and step by step, and judges the answers. Prints the accuracy
with a bootstrap interval over questions, the numbers of invalid answers and of texts that were cut off, the steps by
kind in the solutions and in the references, and the kind of the step at which solutions first depart from the
reference, for right and for wrong answers apart. The judge of the steps is a rule, or a language model (--judge llm),
which does without references; next to its name stands how it agrees with the known truth of the test bed.

The prompt is the question and the prefix tokens of the scheme that was saved with the tokenizer. Every text goes to
--output_file, one JSON line each, as soon as its batch is done. The same command again resumes a run that was stopped.
"""
EPILOG = """\
examples:
  memreason evaluate-steps runs/strategy_qa --data data/strategy_qa --output_file runs/strategy_qa/test.jsonl
  memreason evaluate-steps MODEL --data FOLDER_WITH_JSON --name truthful_qa --num_items 100
  memreason evaluate-steps MODEL --data questions.jsonl --split train --columns question=query,answer=target
  memreason evaluate-steps MODEL --data OWNER/NAME --answer_rule lenient
  memreason evaluate-steps MODEL --data data/gsm8k --num_demonstrations 4 --max_new_tokens 300
  memreason evaluate-steps MODEL --data data/gsm8k --judge llm --llm JUDGE --endpoint http://127.0.0.1:8000/v1
  memreason evaluate-steps RECURRENT_MODEL --data data/strategy_qa --depth_by_kind memory=2,reason=16

--output_file X writes X (the schema: memreason_hf/evaluation/solutions/generation.py), X.settings.json (the settings
that the texts depend on) and X.summary.json (the numbers that are printed). X.replies.jsonl keeps the replies of a
language model as judge.
"""


@dataclass
class QuestionArguments:
    """The questions."""

    data: str = field(
        metadata={
            "help": "A file (.jsonl, .json, .parquet), a folder of such files, of save_to_disk or of "
            "data_scripts/build_memory_reason.py, or a data set on the Hub; or, with the study's --name, the folder "
            "or URL of its JSON files."
        },
    )
    name: str | None = field(
        default=None,
        metadata={
            "help": f"The study's data set ({', '.join(NAMES)}), or the configuration of a data set on the Hub. A "
            "file or folder needs no name."
        },
    )
    data_revision: str | None = field(
        default=None, metadata={"help": "The branch, tag or commit of a data set on the Hub."}
    )
    columns: str | dict[str, str] | None = field(
        default=None,
        metadata={
            "help": "The source's names of columns, where they differ: question=query,answer=target. The schema: "
            "data_scripts/README.md."
        },
    )
    answer_type: Literal[ANSWER_TYPES] | None = field(
        default=None,
        metadata={"help": "The type of all answers. Default: it follows from the options, or from the answers."},
    )
    split: str = field(default="test", metadata={"help": "Split of the data set."})
    num_items: int | None = field(
        default=None, metadata={"help": "The maximum number of items, the first ones of the split. Default: all."}
    )

    def load(self) -> DatasetDict:
        """
        All splits of the data.

        Raises:
            ValueError, OSError: the data cannot be read, or rows cannot be used.
        """
        if self.data_revision is not None and Path(self.data).exists():
            raise ValueError(
                f"data_revision={self.data_revision!r} is for data sets on the Hub, but {self.data} is a file or "
                "folder. Leave it out."
            )
        return load_questions(
            self.data,
            self.name,
            columns=read_columns(self.columns),
            answer_type=self.answer_type,
            revision=self.data_revision,
        )

    def rows(self, dataset) -> list[dict]:
        """
        The items that the flags choose.

        Raises:
            ValueError: the split does not exist, or no item is left.
        """
        if self.split not in dataset:
            raise ValueError(f"split={self.split!r} is not in the data. Its splits are {', '.join(dataset)}.")
        if self.num_items is not None and self.num_items < 1:
            raise ValueError(f"num_items={self.num_items} must be at least 1.")
        rows = dataset[self.split]
        return list(rows if self.num_items is None else rows.select(range(min(self.num_items, len(rows)))))


@dataclass
class SolutionArguments:
    """How questions are solved and judged."""

    max_new_tokens: int = field(default=512, metadata={"help": "The maximum number of tokens of a solution."})
    num_demonstrations: int = field(default=0, metadata={"help": "Solved training questions before each question."})
    seed: int = field(
        default=0, metadata={"help": "Seed of the choice of demonstrations and of the bootstrap interval."}
    )
    answer_rule: Literal[ANSWER_RULES] = field(
        default="published",
        metadata={"help": "How answers are read. lenient also reads **(A)**, boxes, Answer: A and the like."},
    )
    match_option_text: bool = field(
        default=False, metadata={"help": "Accept the text of an option as an answer, in place of its letter."}
    )


@dataclass
class SolutionsOutput:
    """Where the texts go."""

    output_file: str | None = field(
        default=None, metadata={"help": "File of JSON lines for the texts. Default: only the numbers are printed."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the output file and start again."})


SECTIONS = [
    model_section(),
    Section("data", QuestionArguments, "questions", key="inputs"),
    Section("solutions", SolutionArguments, "solutions and judging"),
    replace(JUDGE, key="solutions"),
    chat_section(title="language model as judge", shown=SHOWN_FLAGS),
    DEPTH,
    Section("depth_by_kind", DepthByKindArguments, "depth by kind of step", key="halting"),
    Section("output", SolutionsOutput, "output"),
]


def make_parser() -> CommandParser:
    return CommandParser(SECTIONS, model=True, prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Evaluates; returns the exit code. A wrong flag or input ends the program with code 2 and one message."""
    with user_errors(PROG):
        model, data, solving, judging, chat, depth, by_kind, output = make_parser().parse_sections(argv)
        judging.check(chat)
        files = _output_files(output)
        # Before anything is loaded: another process may be adding to the file.
        replies = Path(f"{files[0]}{REPLIES_SUFFIX}") if files else None
        lock = locked(files[0]) if files else nullcontext()
        with lock, judging.open(chat, replies, progress=not model.no_progress) as judge:
            judges = (judging, judge, judging.name(chat))
            return _evaluate(model, data, solving, judges, depth, by_kind, output, files)


def _evaluate(model, data, solving, judges, depth, by_kind, output, files):
    model.check()
    check_max_new_tokens(solving.max_new_tokens)
    dataset = data.load()
    rows = data.rows(dataset)
    demonstrations = _demonstrations(dataset, solving)
    network, tokenizer, generate_arguments = _load(model, depth, by_kind)
    scheme = read_scheme(tokenizer)
    judging, judge, judge_name = judges
    # A judge that cannot be used is found before anything is generated.
    agreement = None if judge is None else judging.measure(judge, judge_name)

    started = time.perf_counter()
    with rows_in_place(network):
        generations = generate_solutions(
            network,
            tokenizer,
            rows,
            batch_size=model.batch_size,
            max_new_tokens=solving.max_new_tokens,
            demonstrations=demonstrations,
            match_option_text=solving.match_option_text,
            answer_rule=solving.answer_rule,
            path=files[0] if files else None,
            settings=_settings(model, data, solving, scheme, (depth, by_kind)) if files else None,
            overwrite=output.overwrite,
            progress=not model.no_progress,
            **generate_arguments,
        )
    seconds = time.perf_counter() - started
    results = measure_solutions(
        generations,
        rows,
        scheme,
        match_option_text=solving.match_option_text,
        answer_rule=solving.answer_rule,
        judge=judge,
        seed=solving.seed,
    )
    title = f"{model.model} on {data.data}, {data.split}"
    options = {"max_new_tokens": solving.max_new_tokens, "judge": judge_name}
    print(solution_report(results, generations, title=title, **options))
    if agreement is not None:
        print(f"\n{visible(agreement[1])}")
    if usage := describe_usage(judge):
        print(visible(usage))
    num_tokens = sum(generation.num_tokens for generation in generations)
    print(f"\n{seconds:.1f} s; {num_tokens:,} tokens in all, those of an earlier run included")
    if files:
        summary = {key: value for key, value in results.items() if key != "attributions"}
        if agreement is not None:
            summary["judge"] = {"name": judge_name, "agreement": agreement_by_kind(agreement[0])}
        write_json(files[2], summary, ensure_ascii=False)
        print(f"texts: {files[0]}")
    return 0


def _output_files(output):
    """The files for texts, settings and summary; none where nothing is written."""
    if output.output_file is None:
        return []
    path = Path(output.output_file)
    # A file of an earlier run is continued.
    check_places([path], overwrite=True)
    return [path, *(path.with_name(path.name + suffix) for suffix in (SETTINGS_SUFFIX, SUMMARY_SUFFIX))]


def _demonstrations(dataset, solving):
    if not solving.num_demonstrations:
        return None
    if "train" not in dataset:
        raise ValueError(
            f"num_demonstrations={solving.num_demonstrations}: demonstrations come from the split 'train', which the "
            f"data do not have. Its splits are {', '.join(dataset)}."
        )
    return Demonstrations(dataset["train"], solving.num_demonstrations, seed=solving.seed)


def _load(model, depth, by_kind):
    """The model on its device, its tokenizer, and the arguments of depth for `generate`."""
    if model.tokenizer is not None and adapter_folder(model.model, model.revision, "model") is not None:
        raise ValueError(
            f"tokenizer={model.tokenizer!r}: model={model.model!r} is an adapter, which is saved with its tokenizer. "
            "Leave --tokenizer out."
        )
    config = model.load_config()
    given = given_depth(depth, by_kind)
    check_has_recurrences(config, model.model, given)
    device = model.choose_device()
    tokenizer = model.load_tokenizer(config)
    read_scheme(tokenizer)
    arguments = {}
    if by_kind.depth_by_kind is not None:
        arguments = schedule_by_kind(config, depth, by_kind.depth_by_kind, tokenizer)
    elif given:
        arguments = depth_settings(config, depth)[1]
    # An adapter is not merged into its base, which would round it.
    return model.load_model(device, merge=False), tokenizer, arguments


def _settings(model, data, solving, scheme, depth):
    """What the texts depend on in addition to the questions."""
    given = given_depth(*depth)
    if "depth_by_kind" in given:
        given["depth_by_kind"] = read_depths(given["depth_by_kind"])
    values = {
        **{name: _place_name(getattr(model, name)) for name in ("model", "tokenizer")},
        "dtype": model.dtype,
        "data": _place_name(data.data),
        **{name: getattr(data, name) for name in ("name", "split")},
        **{name: getattr(solving, name) for name in ("max_new_tokens", "num_demonstrations", "match_option_text")},
    }
    # Files that were written before these flags existed go on where they have their defaults.
    if solving.answer_rule != "published":
        values["answer_rule"] = solving.answer_rule
    if data.columns:
        values["columns"] = read_columns(data.columns)
    for name in ("answer_type", "data_revision"):
        if getattr(data, name) is not None:
            values[name] = getattr(data, name)
    if solving.num_demonstrations:
        values["seed"] = solving.seed
    if model.base is not None:
        values["base"] = _place_name(model.base)
    # The folder may hold other weights than before, of a run that was started again or resumed.
    files = weight_files(model.model) or {path.name: path for path in Path(model.model).glob("adapter_model.*")}
    weights = {name: digest["blocks"] for name, digest in block_digests(files).items()}
    return {**values, "weights": weights, "scheme": scheme.to_dict(), **given}


def _place_name(place):
    """The name of a folder without those above it, which change with the current folder and say who works there."""
    return place if place is None or not Path(place).exists() else Path(place).resolve().name


if __name__ == "__main__":
    sys.exit(main())
