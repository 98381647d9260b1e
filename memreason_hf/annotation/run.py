"""A run of annotation: many items at once, everything on disk as it arrives, going on where a run was stopped."""

import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from memreason_hf.annotation.annotator import Annotation, Annotator, NeedsCall, check_annotation_values
from memreason_hf.annotation.checking import StepRules
from memreason_hf.annotation.corpus import Corpus
from memreason_hf.annotation.journal import Journal, row_digest
from memreason_hf.annotation.prompt_texts import PromptTexts
from memreason_hf.chat import ChatError, EndpointChat, in_order_of_completion
from memreason_hf.chat.concurrent import Chat
from memreason_hf.checks import check_path, check_row, check_sequence
from memreason_hf.data.questions.schema import FEATURES, question_line
from memreason_hf.files import check_places, whole_file, write_json
from memreason_hf.locks import locked


# Seconds in which calls that are under way may end after Ctrl-C: their answers are paid for.
_GRACE = 5.0


@dataclass(frozen=True)
class WorkFiles:
    """
    The files of a run beside its output: they are in the folder `NAME.annotation` next to `NAME.jsonl`.

    Args:
        output: the output file.
    """

    output: Path

    @property
    def folder(self) -> Path:
        return self.output.with_name(f"{self.output.stem}.annotation")

    @property
    def calls(self) -> Path:
        """Every reply of the language model."""
        return self.folder / "calls.jsonl"

    @property
    def settings(self) -> Path:
        """What the replies depend on."""
        return self.folder / "settings.json"

    @property
    def failed(self) -> Path:
        """The items without an annotation, and why."""
        return self.folder / "failed.jsonl"

    @property
    def summary(self) -> Path:
        """The numbers of a run that has ended."""
        return self.folder / "summary.json"


@dataclass
class AnnotationReport:
    """
    What a run, and the runs that it went on from, have done.

    Attributes:
        output: the file of the rows.
        num_items, num_annotated: items, and those with an annotation.
        num_calls, num_prompt_tokens, num_new_tokens: answered calls, and their tokens as far as they were counted.
        steps: steps by kind.
        tries: `{number of tries: items}` of the annotated items.
        failed: the items without an annotation.
        problems: why tries failed, with counts, the most frequent first. Numbers are written as `N`.
    """

    output: Path
    num_items: int
    num_annotated: int
    num_calls: int
    num_prompt_tokens: int
    num_new_tokens: int
    steps: dict[str, int]
    tries: dict[int, int]
    failed: list[Annotation] = field(default_factory=list)
    problems: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """The numbers, as JSON values."""
        names = ("num_items", "num_annotated", "num_calls", "num_prompt_tokens", "num_new_tokens")
        return {
            **{name: getattr(self, name) for name in names},
            "num_failed": len(self.failed),
            "steps": self.steps,
            "tries": {str(number): count for number, count in self.tries.items()},
            "problems": self.problems,
        }

    def describe(self) -> str:
        """A few lines for a terminal."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.steps.items())
        lines = [
            f"{self.num_annotated:,} of {self.num_items:,} items annotated: {kinds or 'no'} steps",
            f"{self.num_calls:,} calls, {self.num_prompt_tokens:,} tokens read and {self.num_new_tokens:,} written",
        ]
        if self.tries:
            mean = sum(number * count for number, count in self.tries.items()) / self.num_annotated
            lines.append(f"{mean:.2f} tries for an annotated item, at most {max(self.tries)}")
        for problem, count in list(self.problems.items())[:3]:
            lines.append(f"  {count:,} x {problem}")
        if self.failed:
            lines.append(f"{len(self.failed):,} items could not be annotated; the reasons are in {_failed(self)}")
        return "\n".join(lines)


def _failed(report):
    return WorkFiles(report.output).failed


def annotate_questions(
    rows: Sequence[Mapping],
    chat: Chat,
    output: str | os.PathLike,
    *,
    prompts: PromptTexts | None = None,
    corpus: Corpus | None = None,
    rules: StepRules | None = None,
    max_tries: int = 20,
    max_tokens: int = 1024,
    temperature: float = 0.7,
    seed: int = 0,
    model_name: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> AnnotationReport:
    """
    Asks a language model for the steps of questions, and writes the rows with them as JSON lines.

    An item is two calls: a plan whose steps have kinds and, where they need knowledge, a question; then the answers to
    these questions. What breaks a rule is tried again. Each reply is on disk as soon as it arrives, and each finished
    row, too; at the end the rows are in the order of the items. The same call again goes on where a run was stopped:
    replies that have arrived are not asked for again, and items that failed because of the network are.

    Args:
        rows: with the columns of `load_questions`. Steps that they have are not used.
        chat: the language model.
        output: file of JSON lines for the rows; `load_questions` reads it. A folder `NAME.annotation` next to it holds
            the replies, the failed items with their reasons, and the numbers of the run.
        prompts: the texts of the calls. Default: those of the package, in the order of `rules`.
        corpus: where the knowledge comes from in place of the second call.
        rules: what the steps must be.
        max_tries: how often an item is tried.
        max_tokens, temperature: of each call.
        seed: each call draws with a seed of its own that follows from it.
        model_name: the name of the model, for the settings that replies of another model are told by.
        overwrite: whether to start again. Replies that were paid for are deleted.
        progress: whether to show a progress bar.

    Raises:
        ChatError: nothing is answered any more.
        FileExistsError: the output exists and is not that of a run of annotation.
        ValueError: the replies on disk are of other rows or settings, or a row is malformed.
        InUseError: another process is writing the output.

    Example:

    ```python
    rows = load_questions("questions.jsonl")["train"]
    report = annotate_questions(rows, EndpointChat("my-model", "http://127.0.0.1:8000/v1"), "data/own/train.jsonl")
    ```
    """
    check_sequence("rows", rows, "a list of rows")
    rows = list(rows)
    for index, row in enumerate(rows):
        check_row(f"rows[{index}]", row, FEATURES)
    if not rows:
        raise ValueError("There are no rows to annotate. Check the split and the number of items.")
    check_path("output", output)
    check_annotation_values(max_tries, max_tokens, temperature, seed)
    rules = StepRules() if rules is None else rules
    prompts = PromptTexts.load(rules.order) if prompts is None else prompts
    files = check_output(output)
    settings = {
        "model": model_name,
        "temperature": float(temperature),
        "max_tokens": max_tokens,
        "seed": seed,
        "plan_prompt": prompts.plan,
        "knowledge_prompt": None if corpus is not None else prompts.knowledge,
        "corpus": None if corpus is None else corpus.digest,
    }
    values = {"max_tries": max_tries, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    with locked(files.output):
        if files.output.exists() and not files.calls.exists() and not overwrite:
            raise FileExistsError(
                f"{files.output} already exists, and was not written by a run of annotation that can go on: "
                f"{files.calls} is missing. Choose another path or pass --overwrite."
            )
        digests = [row_digest(row) for row in rows]
        replace = partial(_remove, files) if overwrite else None
        with Journal(files.calls, digests, settings, files.settings, replace=replace) as journal:
            make = partial(Annotator, journal=journal, prompts=prompts, corpus=corpus, rules=rules, **values)
            run = _Run(rows, files, journal, progress)
            if not overwrite:
                run.replay(make(None))
            run.go_on(make(chat), chat)
            return run.finish()


def check_output(output: str | os.PathLike) -> WorkFiles:
    """
    Checks that a file can be the output of a run, before anything is loaded or asked.

    Returns:
        The files of the run.

    Raises:
        ValueError: the file is not called `.jsonl`.
        OSError: the file cannot be written.
    """
    path = Path(output)
    if path.suffix != ".jsonl":
        raise ValueError(f"output_file={str(path)!r} must end with .jsonl.")
    check_places([path], overwrite=True)
    return WorkFiles(path)


def _remove(files):
    """Removes what a run that starts again replaces."""
    # The replies first: without them the output of a killed command is refused, and not trusted.
    shutil.rmtree(files.folder, ignore_errors=True)
    files.output.unlink(missing_ok=True)


class _Run:
    """The state of a run: what has become of the items."""

    def __init__(self, rows, files, journal, progress):
        self.rows, self.files, self.journal = rows, files, journal
        self.done: dict[int, Annotation] = {}
        self.num_failed = 0
        self._progress = progress

    def replay(self, annotator):
        """What the replies on disk make of the items, and the rows that follow from them."""
        if not self.files.calls.exists():
            return

        async def work(item):
            try:
                return await annotator.annotate(item, self.rows[item])
            except NeedsCall:
                return None

        for _, annotation in in_order_of_completion(work, range(len(self.rows)), concurrency=1):
            if annotation is not None:
                self._keep(annotation)
        self._write()

    def go_on(self, annotator, chat):
        """Asks for what is missing."""
        missing = [item for item in range(len(self.rows)) if item not in self.done]
        if not missing:
            return
        self.files.summary.unlink(missing_ok=True)

        async def work(item):
            return await annotator.annotate(item, self.rows[item])

        def stop():
            annotator.stop()
            print(f"\nStopping: up to {_GRACE:.0f} seconds for answers that are under way.", file=sys.stderr)

        options = {"concurrency": chat.concurrency, "close": chat.close, "grace": _GRACE, "on_stop": stop}
        with _Bar(self, not self._progress) as bar:
            for _, annotation in in_order_of_completion(work, missing, **options):
                self._keep(annotation)
                self._append(annotation)
                bar.update()
        if not self.journal.num_calls:
            self._refuse(chat)

    def _refuse(self, chat):
        """Ends a run in which nothing was answered at all: the flags are wrong, and not the items."""
        self.files.failed.unlink(missing_ok=True)
        with suppress(OSError):
            self.files.folder.rmdir()
        where = f"llm={chat.model!r}: " if isinstance(chat, EndpointChat) else ""
        raise ChatError(f"{where}nothing was answered: {self._ordered()[-1].problems[-1]}.", is_fatal=True)

    def _keep(self, annotation):
        self.done[annotation.item] = annotation
        self.num_failed += annotation.steps is None

    def finish(self):
        """Writes the rows in the order of the items, and the numbers."""
        self._write()
        report = self.report()
        write_json(self.files.summary, report.to_dict(), ensure_ascii=False)
        return report

    def report(self) -> AnnotationReport:
        annotated = [annotation for annotation in self._ordered() if annotation.steps is not None]
        kinds = Counter(step.kind for annotation in annotated for step in annotation.steps)
        tries = Counter(annotation.num_tries for annotation in annotated)
        problems = Counter(_class_of(problem) for annotation in self._ordered() for problem in annotation.problems)
        return AnnotationReport(
            output=self.files.output,
            num_items=len(self.rows),
            num_annotated=len(annotated),
            num_calls=self.journal.num_calls,
            num_prompt_tokens=self.journal.num_prompt_tokens,
            num_new_tokens=self.journal.num_new_tokens,
            steps=dict(sorted(kinds.items())),
            tries=dict(sorted(tries.items())),
            failed=[annotation for annotation in self._ordered() if annotation.steps is None],
            problems=dict(sorted(problems.items(), key=lambda pair: (-pair[1], pair[0]))),
        )

    def _ordered(self):
        return [self.done[item] for item in sorted(self.done)]

    def _write(self):
        """Both files as a whole, in the order of the items."""
        for path, has_steps in ((self.files.output, True), (self.files.failed, False)):
            lines = [self._line(one) for one in self._ordered() if (one.steps is not None) == has_steps]
            if not lines and not has_steps:
                path.unlink(missing_ok=True)
                continue
            if not lines and not path.exists():
                continue
            with whole_file(path, overwrite=True) as temporary:
                temporary.write_text("".join(lines), encoding="utf-8")

    def _append(self, annotation):
        path = self.files.failed if annotation.steps is None else self.files.output
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            os.write(handle, self._line(annotation).encode())
        finally:
            os.close(handle)

    def _line(self, annotation):
        row = self.rows[annotation.item]
        if annotation.steps is not None:
            return question_line({**row, "steps": annotation.steps})
        failed = {"item": annotation.item, "question": row["question"], "reasons": annotation.problems}
        return json.dumps(failed) + "\n"


def _class_of(problem):
    """A problem without the words at fault and the numbers of steps, so that problems of one class are counted."""
    return re.sub(r"\b\d+\b", "N", problem.partition(": ")[0])


class _Bar:
    """The progress bar: items, tokens of this run and their rate, and failed items."""

    def __init__(self, run, is_hidden):
        self._run = run
        self._before, self._began = self._tokens(), time.monotonic()
        self._bar = tqdm(total=len(run.rows), initial=len(run.done), unit="item", disable=is_hidden, desc="annotate")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._bar.close()

    def update(self):
        if self._bar.disable:
            return
        tokens = self._tokens() - self._before
        rate = tokens / max(time.monotonic() - self._began, 1e-9)
        shown = {"tokens": f"{tokens:,}", "tokens/s": f"{rate:,.0f}", "failed": f"{self._run.num_failed:,}"}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def _tokens(self):
        return self._run.journal.num_prompt_tokens + self._run.journal.num_new_tokens
