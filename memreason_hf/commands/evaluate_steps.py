"""
`memreason evaluate-steps`: a model solves annotated questions; accuracy, steps by kind, where solutions go wrong.

    memreason evaluate-steps runs/strategy_qa --data data/strategy_qa --output_file runs/strategy_qa/generations.jsonl
"""

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from datasets import DatasetDict
from transformers import LogitsProcessorList

from memreason_hf.adapters.model import rows_in_place
from memreason_hf.analysis.comparison_tables import ComparisonRow, comparison_table, table_format
from memreason_hf.analysis.solution_report import measure_solutions, solution_report
from memreason_hf.command_line.answer_judge_flags import (
    ANSWER_JUDGE,
    ANSWER_REPLIES_SUFFIX,
    AskedJudges,
    measure_answer_judge,
)
from memreason_hf.command_line.chat_flags import chat_section
from memreason_hf.command_line.depth_arguments import DEPTH, DepthByKindArguments
from memreason_hf.command_line.errors import USER_ERRORS, user_errors
from memreason_hf.command_line.judge_flags import JUDGE, REPLIES_SUFFIX, SHOWN_FLAGS
from memreason_hf.command_line.model_flags import model_section
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.command_line.solution_runs import DrawingArguments, StyleArguments, place_name, prepare_runs
from memreason_hf.data.questions.answer_types import ANSWER_TYPES
from memreason_hf.data.questions.memory_reason import NAMES
from memreason_hf.data.questions.own_data import load_questions, read_columns
from memreason_hf.data.questions.prompt_arguments import PromptArguments
from memreason_hf.data.questions.prompts import PromptFormat, read_prompt_format
from memreason_hf.evaluation.known_truth.agreement import agreement_by_kind
from memreason_hf.evaluation.solutions.answers import ANSWER_RULES
from memreason_hf.evaluation.solutions.calculator import Calculator
from memreason_hf.evaluation.solutions.generation import check_max_new_tokens, generate_solutions
from memreason_hf.evaluation.solutions.generation_files import SETTINGS_SUFFIX, SUMMARY_SUFFIX
from memreason_hf.evaluation.solutions.votes import vote_scores
from memreason_hf.files import check_places, whole_file, write_json
from memreason_hf.locks import locked
from memreason_hf.messages import visible


PROG = "memreason evaluate-steps"
DESCRIPTION = """\
Lets a model solve the questions of a data set step by step, and judges the answers. Prints the accuracy with a
bootstrap interval over questions, the numbers of invalid answers and of texts that were cut off, the steps by kind in
the solutions and in the references, and the kind of the step at which solutions first depart from the reference, for
right and for wrong answers apart. The judge of the steps is a rule, or a language model (--judge llm), which does
without references; next to its name stands how it agrees with the known truth of the test bed. Free-text answers in
other words than those of the right answers are wrong, or judged by a language model (--answer_judge llm).

A model that was fine-tuned gets the prompt that it was trained with, which was saved with its tokenizer: the question
and the prefix tokens of its scheme, or a chat template, an instruction, demonstrations. Any other model is asked by
--style direct or chain_of_thought, or by --marks for steps in words. Its texts end after the line with the answer.

Several models (--compare) and several styles are evaluated one after the other, and end with a table. Every text goes
to --output_file, or to a file of its run in --output_dir, one JSON line each, as soon as its batch is done. The same
command again resumes a run that was stopped.
"""
EPILOG = """\
examples:
  memreason evaluate-steps runs/strategy_qa --data data/strategy_qa --output_file runs/strategy_qa/test.jsonl
  memreason evaluate-steps MODEL --data FOLDER_WITH_JSON --name truthful_qa --num_items 100
  memreason evaluate-steps MODEL --data questions.jsonl --split train --columns question=query,answer=target
  memreason evaluate-steps MODEL --data OWNER/NAME --answer_rule lenient
  memreason evaluate-steps MODEL --data data/gsm8k --num_demonstrations 4 --max_new_tokens 300
  memreason evaluate-steps MODEL --data data/gsm8k --judge llm --llm JUDGE --endpoint http://127.0.0.1:8000/v1
  memreason evaluate-steps MODEL --data free_text.jsonl --split train --answer_judge llm --llm JUDGE \\
      --endpoint http://127.0.0.1:8000/v1 --output_file runs/free_text.jsonl
  memreason evaluate-steps RECURRENT_MODEL --data data/strategy_qa --depth_by_kind memory=2,reason=16
  memreason evaluate-steps Qwen/Qwen2.5-7B-Instruct --data data/strategy_qa --style direct chain_of_thought \\
      --chat_template --output_dir runs/untrained
  memreason evaluate-steps BASE_MODEL --data data/strategy_qa --marks words --num_demonstrations 4 \\
      --demonstrations bm25
  memreason evaluate-steps MODEL --data data/strategy_qa --num_samples 16 --temperature 0.7
  memreason evaluate-steps runs/lora --compare "memory and reason=runs/steps" runs/ordered --data data/strategy_qa \\
      --output_dir runs/comparison --table paper.tex README_table.md

--output_file X writes X (the schema: memreason_hf/evaluation/solutions/generation.py), X.settings.json (the settings
that the texts depend on) and X.summary.json (the numbers that are printed). X.replies.jsonl keeps the replies of a
language model as judge of steps, and X.answer_replies.jsonl those about answers. --output_dir D writes D/TITLE.jsonl
and these for every model and style, and comparison.md, .tex and .json.
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
    num_demonstrations: int | None = field(
        default=None,
        metadata={"help": "Solved questions before each question. Default: as the model was trained, or none."},
    )
    seed: int = field(
        default=0,
        metadata={"help": "Seed of the choice of demonstrations, of drawn solutions and of the bootstrap interval."},
    )
    answer_rule: Literal[ANSWER_RULES] = field(
        default="published",
        metadata={"help": "How answers are read. lenient also reads **(A)**, boxes, Answer: A and the like."},
    )
    match_option_text: bool = field(
        default=False, metadata={"help": "Accept the text of an option as an answer, in place of its letter."}
    )
    calculator: bool = field(
        default=False,
        metadata={"help": "Write the results of worked sums with a calculator: after <<3*4= come 12 and >>."},
    )


@dataclass
class SolutionsOutput:
    """Where the texts go."""

    output_file: str | None = field(
        default=None, metadata={"help": "File of JSON lines for the texts. Default: only the numbers are printed."}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for the texts of several models or styles, and for their table."}
    )
    table: list[str] | None = field(
        default=None, metadata={"help": "Files for the table of the comparison: .md, .tex, .json or .txt."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the files of texts and start again."})

    def check(self, num_runs: int) -> None:
        """
        Refuses places that do not fit the number of runs.

        Raises:
            ValueError: names the field.
        """
        if self.output_file is not None and self.output_dir is not None:
            raise ValueError(
                f"output_file={self.output_file!r} and output_dir={self.output_dir!r} are both given. Pass one."
            )
        if self.output_file is not None and num_runs > 1:
            raise ValueError(
                f"output_file={self.output_file!r} holds the texts of one model and style, but {num_runs} are "
                "compared. Pass --output_dir."
            )
        for path in self.table or []:
            table_format(path)
        # A file of an earlier run is continued.
        check_places([path for path in (self.output_file, *(self.table or [])) if path is not None], overwrite=True)

    def files(self, name: str) -> list[Path]:
        """The files for texts, settings and summary of a run; none where nothing is written."""
        if self.output_file is None and self.output_dir is None:
            return []
        path = Path(self.output_file) if self.output_file is not None else Path(self.output_dir) / f"{name}.jsonl"
        check_places([path], overwrite=True)
        return [path, *(path.with_name(path.name + suffix) for suffix in (SETTINGS_SUFFIX, SUMMARY_SUFFIX))]

    def tables(self) -> list[Path]:
        """The files for the table."""
        of_folder = [] if self.output_dir is None else [f"comparison.{end}" for end in ("md", "tex", "json")]
        return [*(Path(self.output_dir) / name for name in of_folder), *map(Path, self.table or [])]


SECTIONS = [
    model_section(),
    Section("data", QuestionArguments, "questions", key="inputs"),
    Section("solutions", SolutionArguments, "solutions and judging"),
    replace(JUDGE, key="solutions"),
    replace(ANSWER_JUDGE, key="solutions"),
    chat_section(title="language model as judge of steps or answers", shown=SHOWN_FLAGS),
    Section("style", StyleArguments, "ways to ask, and models to compare", key="prompt"),
    Section("prompt", PromptArguments, "prompts; by default, those that the model was trained with"),
    Section("samples", DrawingArguments, "several solutions of a question", key="solutions"),
    DEPTH,
    Section("depth_by_kind", DepthByKindArguments, "depth by kind of step", key="halting"),
    Section("output", SolutionsOutput, "output"),
]


def make_parser() -> CommandParser:
    return CommandParser(SECTIONS, model=True, prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Evaluates; returns the exit code. A wrong flag or input ends the program with code 2 and one message."""
    with user_errors(PROG, *USER_ERRORS, ImportError):
        return _evaluate(*make_parser().parse_sections(argv))


def _evaluate(model, data, solving, judging, answering, chat, styles, prompts, drawing, depth, by_kind, output):
    model.check()
    check_max_new_tokens(solving.max_new_tokens)
    judging.check(chat, is_asked=answering.is_llm)
    answering.check(chat)
    sampling = drawing.sampling(solving.seed)
    num_runs = len(styles.models(model)) * len(styles.style)
    output.check(num_runs)
    with ExitStack() as stack:
        if output.output_file is not None:
            # Before anything is loaded: another process may be adding to the file.
            stack.enter_context(locked(output.files("")[0]))
        dataset = data.load()
        rows = data.rows(dataset)
        choice = {"num_demonstrations": solving.num_demonstrations, "seed": solving.seed}
        runs = prepare_runs(model, styles, prompts, dataset, rows, depth=depth, by_kind=by_kind, **choice)
        if output.output_dir is not None:
            for run in runs:
                stack.enter_context(locked(output.files(run.file_name)[0]))
        table, network, loaded, agreement, known = [], None, None, None, None
        for run in runs:
            if styles.show_prompt:
                print(f"{run.title}, the prompt of the first question:\n{run.shown_prompt(rows[0]['question'])}\n")
            files = output.files(run.file_name)
            of_steps, of_answers = (
                Path(f"{files[0]}{suffix}") if files else None for suffix in (REPLIES_SUFFIX, ANSWER_REPLIES_SUFFIX)
            )
            progress = not model.no_progress
            with (
                judging.open(chat, of_steps, progress=progress) as judge,
                answering.open(chat, of_answers, step_judge=judge, progress=progress) as answer_judge,
            ):
                # Judges that cannot be used are found before anything is generated.
                if judge is not None and agreement is None:
                    kinds = [kind for each in runs for kind in each.prompter.scheme.kinds]
                    agreement = judging.measure(judge, judging.name(chat), kinds)
                if answer_judge is not None and known is None and judging.agreement != 0:
                    known = measure_answer_judge(answer_judge)
                if network is None or loaded != run.flags or run.new_scheme is not None:
                    # The memory of the last model is free before the next one is read.
                    network = None
                    network = run.load()
                    loaded = None if run.new_scheme is not None else run.flags
                judged = _Judged(judge, judging.name(chat), agreement, answer_judge, known, answering.settings(chat))
                table.append(_evaluate_run(run, network, rows, data, solving, sampling, output, judged))
    _write_table(table, output, num_runs)
    return 0


@dataclass(frozen=True)
class _Judged(AskedJudges):
    """The judges of a run, and what its texts depend on of them."""

    settings: dict

    def summary(self) -> dict:
        """What the summary of a run says of its judges."""
        if self.agreement is None:
            return self.answer_summary()
        judge = {"name": self.name, "agreement": agreement_by_kind(self.agreement[0])}
        return {"judge": judge, **self.answer_summary()}


def _evaluate_run(run, network, rows, data, solving, sampling, output, judged) -> ComparisonRow:
    """Solves the questions with one model and style, prints and writes the results; returns its row of the table."""
    files = output.files(run.file_name)
    prompter = run.prompter
    started = time.perf_counter()
    with rows_in_place(network):
        generations = generate_solutions(
            network,
            prompter.tokenizer,
            rows,
            batch_size=run.flags.batch_size,
            max_new_tokens=solving.max_new_tokens,
            prompter=prompter,
            sampling=sampling,
            stop_at_answer=run.is_untrained,
            match_option_text=solving.match_option_text,
            answer_rule=solving.answer_rule,
            answer_judge=judged.answer_judge,
            path=files[0] if files else None,
            settings={**_settings(run, data, solving, sampling), **judged.settings} if files else None,
            overwrite=output.overwrite,
            progress=not run.flags.no_progress,
            **run.generate_arguments,
            **_calculator(solving, prompter.tokenizer),
        )
    seconds = time.perf_counter() - started
    scheme = prompter.scheme
    results = measure_solutions(
        generations,
        rows,
        scheme,
        match_option_text=solving.match_option_text,
        answer_rule=solving.answer_rule,
        judge=judged.judge,
        answer_judge=judged.answer_judge,
        seed=solving.seed,
    )
    style = "" if prompter.format.style == "steps" else f", {prompter.format.style}"
    title = f"{run.flags.model} on {data.data}, {data.split}{style}"
    options = {"max_new_tokens": solving.max_new_tokens, "judge": judged.name}
    if judged.answer_judge is not None:
        options["answer_judge"] = visible(judged.answer_judge.name)
    print("\n".join([solution_report(results, generations, title=title, **options), *judged.lines()]))
    if prompter.format != PromptFormat():
        print(f"prompt: {prompter.format.describe()}{_origin(prompter)}")
    print(f"\n{seconds:.1f} s; {results['num_tokens']:,} tokens in all, those of an earlier run included")
    if files:
        summary = {key: value for key, value in results.items() if key != "attributions"}
        write_json(files[2], {**summary, **judged.summary()}, ensure_ascii=False)
        print(f"texts: {files[0]}")
    return ComparisonRow.from_results(run.title, results, scores=vote_scores(results))


def _calculator(solving, tokenizer):
    """The arguments of `generate` for worked sums."""
    return {"logits_processor": LogitsProcessorList([Calculator(tokenizer)])} if solving.calculator else {}


def _origin(prompter):
    """Where the prompt comes from, if nobody asked for it on the command line."""
    return ", as the model was trained" if prompter.format == read_prompt_format(prompter.tokenizer) else ""


def _settings(run, data, solving, sampling):
    """What the texts depend on in addition to the questions."""
    values = {
        "data": place_name(data.data),
        **{name: getattr(data, name) for name in ("name", "split")},
        **{name: getattr(solving, name) for name in ("max_new_tokens", "match_option_text")},
    }
    # Files that were written before these flags existed go on where they have their defaults.
    if solving.answer_rule != "published":
        values["answer_rule"] = solving.answer_rule
    if data.columns:
        values["columns"] = read_columns(data.columns)
    for name in ("answer_type", "data_revision"):
        if getattr(data, name) is not None:
            values[name] = getattr(data, name)
    if solving.calculator:
        values["calculator"] = True
    if sampling is not None:
        values["sampling"] = sampling.to_dict()
    return {**values, **run.all_settings()}


def _write_table(rows, output, num_runs):
    if num_runs > 1:
        print(f"\n{comparison_table(rows)}")
    for path in output.tables():
        text = comparison_table(rows, table_format(path))
        with whole_file(path, overwrite=True) as temporary:
            temporary.write_text(f"{text}\n", encoding="utf-8")
        print(f"table: {path}")


if __name__ == "__main__":
    sys.exit(main())
