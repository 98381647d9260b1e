"""The flags of `memreason annotate` and data_scripts/annotate_steps.py, and what both do."""

from dataclasses import dataclass, field
from typing import Literal

from datasets import DatasetDict

from memreason_hf.annotation import Corpus, PromptTexts, StepRules, annotate_questions
from memreason_hf.annotation.annotator import check_annotation_values
from memreason_hf.annotation.prompt_texts import write_prompts
from memreason_hf.annotation.run import check_output
from memreason_hf.annotation.sources import SOURCES, load_source
from memreason_hf.command_line.chat_flags import ChatFlags, chat_section
from memreason_hf.command_line.errors import describe
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.data.questions.own_data import load_questions, read_columns


DESCRIPTION = """\
Asks a language model for the steps of questions, each of them recalling knowledge (memory) or drawing a conclusion
(reason), and writes the questions with their steps. The result is read by memreason finetune and evaluate-steps.

An item takes two calls: a plan, whose memory steps are questions; and the answers to these questions, which become the
memory steps. With --corpus the answers are passages of your own texts. What breaks a rule (both kinds of steps, none
empty, all labelled, the order, an answer given away) is tried again, up to --max_tries times.

Every answer and every finished row is on disk at once. The same command again goes on where a run was stopped, and
makes no call twice. Ctrl-C waits for the answers under way. Items that could not be annotated are listed with the
reasons in NAME.annotation/failed.jsonl, next to the output NAME.jsonl.
"""
EPILOG = """\
examples:
  a server of your own (vLLM, llama.cpp, transformers serve), 32 requests at once:
    {prog} --data questions.jsonl --llm Qwen/Qwen3-8B \\
        --endpoint http://127.0.0.1:8000/v1 --concurrency 32 --output_file data/own/train.jsonl
  a provider of the Hub (log in with hf auth login), 500 questions of MMLU-Pro:
    {prog} --source mmlu_pro --num_items 500 --llm Qwen/Qwen3-32B --provider auto \\
        --output_file data/mmlu/train.jsonl
  an endpoint with a key, columns of other names:
    {prog} --data OWNER/NAME --columns question=query,answer=target --llm gpt-4o-mini \\
        --endpoint https://api.openai.com/v1 --key_variable OPENAI_API_KEY --output_file data/own/train.jsonl
  a model on this machine, knowledge from your own texts (needs: pip install "memreason-hf[retrieval]"):
    {prog} --data questions.jsonl --llm Qwen/Qwen3-1.7B --corpus texts/ \\
        --output_file data/own/train.jsonl
  prompts of your own:
    {prog} --write_prompts my_prompts
    {prog} --data questions.jsonl --llm NAME --endpoint URL --prompts my_prompts \\
        --output_file data/own/train.jsonl
  and then:
    memreason finetune tiny --data data/own --test_fraction 0.2
"""


@dataclass
class AnnotationDataArguments:
    """The questions."""

    data: str | None = field(
        default=None,
        metadata={
            "help": "The questions: a file of JSON lines, JSON or parquet, a folder of them or of save_to_disk, or a "
            "name on the Hub. The columns are question, answer, and optionally options."
        },
    )
    source: str | None = field(
        default=None,
        metadata={
            "help": "A published set, from the Hub or from a copy of its rows in --data. strategy_qa, commonsense_qa, "
            "truthful_qa and mmlu_pro are those of the study.",
            "choices": list(SOURCES),
        },
    )
    name: str | None = field(
        default=None,
        metadata={"help": "Configuration of --data on the Hub; or the name of a data set in the study's files."},
    )
    columns: str | None = field(
        default=None, metadata={"help": "Names of the columns, where they differ: question=query,answer=target."}
    )
    answer_type: str | None = field(
        default=None,
        metadata={"help": "Type of all answers: letters, true_false, yes_no, number or text. Default: what they are."},
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of data on the Hub."})
    split: str | None = field(
        default=None, metadata={"help": "Split to annotate. Default: train, or the only one of the data."}
    )
    num_items: int | None = field(
        default=None,
        metadata={"help": "The maximum number of items, the first ones of the split. Default: all. More may follow."},
    )

    def check(self) -> None:
        """
        Raises:
            ValueError: there are no data, or flags contradict each other.
        """
        if not self.data and self.source is None:
            raise ValueError("data is not given. Pass --data QUESTIONS, or --source for a published set.")
        if self.num_items is not None and self.num_items < 1:
            raise ValueError(f"num_items={self.num_items} must be at least 1.")
        for flag in ("name", "columns", "answer_type"):
            if self.source is not None and getattr(self, flag) is not None:
                raise ValueError(f"{flag}={getattr(self, flag)!r}: source={self.source!r} has its own. Leave one out.")
        read_columns(self.columns)

    def rows(self) -> list[dict]:
        """
        The items that the flags choose.

        Raises:
            ValueError, OSError: the data cannot be read, or the split does not exist.
        """
        try:
            dataset = self._load()
        except OSError as error:
            # It names what was looked for; the flag tells where that came from.
            given = f"source={self.source!r}" if self.data is None else f"data={self.data!r}"
            raise OSError(f"{given}: {describe(error)}") from error
        rows = dataset[self._choose(dataset)]
        return list(rows if self.num_items is None else rows.select(range(min(self.num_items, len(rows)))))

    def _load(self):
        if self.source is not None:
            return load_source(self.source, self.data, split=self.split, revision=self.revision)
        return load_questions(
            self.data,
            self.name,
            columns=read_columns(self.columns),
            answer_type=self.answer_type,
            split=self.split,
            revision=self.revision,
        )

    def _choose(self, dataset: DatasetDict):
        if len(dataset) == 1:
            return next(iter(dataset))
        if "train" in dataset:
            return "train"
        raise ValueError(f"split is not given, and the data have the splits {', '.join(dataset)}. Pass --split.")


@dataclass
class AnnotationArguments:
    """How the questions are annotated."""

    order: Literal["natural", "memory_first"] = field(
        default="natural",
        metadata={"help": "Order of the steps: as they are needed, or all memory steps before the reason steps."},
    )
    keep_answer_out: bool = field(
        default=False, metadata={"help": "Refuse annotations whose memory steps give the answer away."}
    )
    max_tries: int = field(default=20, metadata={"help": "How often an item is tried, with another seed each time."})
    corpus: str | None = field(
        default=None,
        metadata={
            "help": "Knowledge of your own, searched by BM25: a text file (passages between blank lines), JSON lines, "
            "or a folder of both."
        },
    )
    corpus_column: str = field(default="text", metadata={"help": "Field of the passages in JSON lines of --corpus."})
    prompts: str | None = field(
        default=None, metadata={"help": "Folder with prompts of your own; see --write_prompts."}
    )
    seed: int = field(default=0, metadata={"help": "Seed that the seeds of all calls follow from."})


@dataclass
class AnnotationOutput:
    """Where the rows go."""

    output_file: str | None = field(
        default=None, metadata={"help": "File of JSON lines for the annotated rows, for example data/own/train.jsonl."}
    )
    overwrite: bool = field(
        default=False,
        metadata={"help": "Start again; the first new answer deletes those of an earlier run."},
    )
    no_progress: bool = field(default=False, metadata={"help": "Hide the progress bar."})
    write_prompts: str | None = field(
        default=None, metadata={"help": "Write the package's prompts into this folder, to be changed there, and end."}
    )


def annotation_parser(prog: str, description: str = DESCRIPTION) -> CommandParser:
    """The parser of both commands."""
    sections = [
        Section("data", AnnotationDataArguments, "questions", key="inputs"),
        # Draws, because new tries must differ from the first.
        chat_section(llm_temperature=0.7),
        Section("annotation", AnnotationArguments, "annotation"),
        Section("output", AnnotationOutput, "output"),
    ]
    return CommandParser(sections, prog=prog, description=description, epilog=EPILOG.format(prog=prog))


def run_annotation(parser: CommandParser, argv: list[str] | None) -> int:
    """
    Annotates by the command line.

    Returns:
        The exit code: 1 if no item could be annotated.

    Raises:
        ValueError, OSError: a flag or an input is wrong, or nothing is answered.
    """
    data, llm, how, output = parser.parse_sections(argv)
    if output.write_prompts is not None:
        print("\n".join(f"wrote {path}" for path in write_prompts(output.write_prompts)))
        return 0
    prompts, rules = _check(data, llm, how, output)
    rows = data.rows()
    corpus = None if how.corpus is None else Corpus.load(how.corpus, text_column=how.corpus_column)
    report = annotate_questions(
        rows,
        llm.open(),
        output.output_file,
        prompts=prompts,
        corpus=corpus,
        rules=rules,
        max_tries=how.max_tries,
        max_tokens=llm.llm_max_tokens,
        temperature=llm.llm_temperature,
        seed=how.seed,
        model_name=llm.name,
        overwrite=output.overwrite,
        progress=not output.no_progress,
    )
    print(report.describe())
    print(f"written to {output.output_file}")
    return 0 if report.num_annotated else 1


def _check(data: AnnotationDataArguments, llm: ChatFlags, how: AnnotationArguments, output: AnnotationOutput):
    """Refuses what is wrong before anything is loaded or asked; returns the prompts and the rules."""
    data.check()
    llm.check()
    if output.output_file is None:
        raise ValueError("output_file is not given. Pass --output_file data/own/train.jsonl.")
    check_output(output.output_file)
    check_annotation_values(how.max_tries, llm.llm_max_tokens, llm.llm_temperature, how.seed)
    if how.corpus is None and how.corpus_column != AnnotationArguments.corpus_column:
        raise ValueError(f"corpus_column={how.corpus_column!r} is for --corpus, which is not given.")
    prompts = PromptTexts.load(how.order, how.prompts)
    return prompts, StepRules(order=how.order, keep_answer_out=how.keep_answer_out)
