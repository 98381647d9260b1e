"""
What the metrics on solutions share: their base class with its keywords, and reading their texts.

`evaluate.combine` passes every keyword to every module. So each of these metrics accepts the keywords of the others
and ignores them; an unknown keyword is a TypeError all the same.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import datasets
import evaluate

from memreason_hf.checks import (
    check_callable,
    check_choice,
    check_int,
    check_number,
    check_row,
    check_sequence,
    check_type,
    shortened,
)
from memreason_hf.data.questions.answer_types import ANSWER_TYPES, FIXED_OPTIONS
from memreason_hf.data.questions.options import options_by_label
from memreason_hf.evaluation.solutions.answer_judges import ask_judge
from memreason_hf.evaluation.solutions.answers import (
    ANSWER_RULES,
    Verdict,
    end_of_question,
    extract_answer,
    judge_answer,
)
from memreason_hf.evaluation.solutions.judges import StepJudge, find_judge
from memreason_hf.steps import ANSWER_MARKER, NO_KIND, QUESTION_MARKER, Solution, Step, StepScheme, answer_step
from memreason_hf.steps.marks import FAMILY_TOKEN


_MOST_SAMPLES = 100_000
_ANY_LETTER = {chr(code): "" for code in range(ord("A"), ord("Z") + 1)}

# Half of a pair of UTF-16, which no UTF-8 text can hold.
_SURROGATE = re.compile("[\ud800-\udfff]")
_CITATION = """\
@article{jin2024disentangling,
  title = {Disentangling Memory and Reasoning Ability in Large Language Models},
  author = {Jin, Mingyu and others},
  journal = {arXiv:2411.13504},
  year = {2024}
}
"""


@dataclass(frozen=True)
class SolutionInputs:
    """
    The checked arguments of `compute`.

    Attributes:
        predictions: generated solutions.
        references: reference solutions, or answers alone.
        questions: the question of each item; None for each if they are not given.
        scheme: how the texts mark their steps.
        answer_types: the type of each answer; None where it follows from the options.
        accepted_answers: the further right answers of each item.
        options, match_option_text, answer_rule, bootstrap_samples, confidence, seed: arguments of `answer_accuracy`.
        answer_judge: argument of `answer_accuracy` and of `step_attribution`, which reports right and wrong answers
            apart.
        judge: argument of `step_attribution`.
    """

    predictions: list[str]
    references: list[str]
    questions: list[str | None]
    scheme: StepScheme
    options: Sequence | Mapping | None
    answer_types: list[str | None]
    accepted_answers: list[list[str]]
    match_option_text: bool
    answer_rule: str
    answer_judge: Callable | None
    bootstrap_samples: int
    confidence: float
    seed: int
    judge: str | StepJudge

    def read_predictions(self) -> list[Solution]:
        """The steps of every generated solution, see `read_solution`."""
        return [read_solution(text, self.scheme, question) for text, question in zip(self.predictions, self.questions)]

    def read_references(self) -> list[list[Step]]:
        """The steps of every reference, see `read_reference`."""
        return [read_reference(text, self.scheme, question) for text, question in zip(self.references, self.questions)]

    def judge_answer_of(self, index: int, labels: Mapping[str, str]) -> Verdict:
        """
        What the answer rule says of the solution of one item.

        Args:
            index: of the item.
            labels: the options of the item, as from `read_options`.

        Raises:
            ValueError: the reference gives no valid answer.
        """
        question, answer_type = self.questions[index], self.answer_types[index]
        return judge_answer(
            self.predictions[index],
            reference_answer(self.references[index], labels, question, answer_type),
            labels,
            answer_type=answer_type,
            accepted_answers=self.accepted_answers[index],
            rule=self.answer_rule,
            question=question,
            match_option_text=self.match_option_text,
        )

    def ask_answer_judge(self, verdicts: Sequence[Verdict | None]) -> list[Verdict | None]:
        """Verdicts of the answer rule, one for each item, with those of `answer_judge` if there is one."""
        known = [index for index, verdict in enumerate(verdicts) if verdict is not None]
        if self.answer_judge is None or not known:
            return list(verdicts)
        rows = [
            {
                "question": self.questions[index] or "",
                "answer": verdicts[index].reference,
                "accepted_answers": self.accepted_answers[index],
                # Free texts have a type: without one, an answer is of an option or a number.
                "answer_type": self.answer_types[index] or "number",
            }
            for index in known
        ]
        asked = dict(zip(known, ask_judge([verdicts[index] for index in known], rows, self.answer_judge)))
        return [asked.get(index) for index in range(len(verdicts))]


class SolutionMetric(evaluate.Metric, ABC):
    """
    An `evaluate` module over texts of solutions. A subclass sets the two texts and implements `_measure`.

    Attributes:
        description_text, inputs_text: what `evaluate` shows of the module.
    """

    description_text: str
    inputs_text: str

    @abstractmethod
    def _measure(self, inputs: SolutionInputs) -> dict:
        """The results of the metric."""

    def _info(self):
        return evaluate.MetricInfo(
            description=self.description_text,
            citation=_CITATION,
            inputs_description=self.inputs_text,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    # evaluate appends the description of the inputs to the docstrings of `add` and `add_batch`.
    def add(self, *, prediction=None, reference=None):
        """Adds one text and its reference."""
        check_texts("prediction", [prediction])
        check_texts("reference", [reference])
        super().add(prediction=prediction, reference=reference)

    def add_batch(self, *, predictions=None, references=None):
        """Adds texts and their references."""
        check_texts("predictions", predictions)
        check_texts("references", references)
        check_lengths(predictions, references)
        super().add_batch(predictions=predictions, references=references)

    def _compute(
        self,
        predictions,
        references,
        questions=None,
        options=None,
        answer_types=None,
        accepted_answers=None,
        match_option_text=False,
        answer_rule="published",
        answer_judge=None,
        bootstrap_samples=1000,
        confidence=0.95,
        seed=0,
        scheme=None,
        judge="overlap",
    ):
        if len(predictions) == 0:
            raise ValueError(
                "predictions and references are empty: there is nothing to measure. Check the split and the filters "
                "that chose the rows."
            )
        if answer_judge is not None:
            check_callable("answer_judge", answer_judge, "a judge of answers such as AnswerJudge(ask)")
        _check_keywords(match_option_text, answer_rule, bootstrap_samples, confidence, seed, judge)
        if questions is not None:
            check_texts("questions", questions)
            if len(questions) != len(predictions):
                raise ValueError(
                    f"questions has {len(questions)} entries, predictions has {len(predictions)}. Pass one for each."
                )
        check_options(options)
        inputs = SolutionInputs(
            predictions=list(predictions),
            references=list(references),
            questions=[None] * len(predictions) if questions is None else list(questions),
            scheme=read_scheme_argument(scheme),
            options=options,
            answer_types=_answer_types(answer_types, len(predictions)),
            accepted_answers=_accepted_answers(accepted_answers, len(predictions)),
            match_option_text=match_option_text,
            answer_rule=answer_rule,
            answer_judge=answer_judge,
            bootstrap_samples=bootstrap_samples,
            confidence=confidence,
            seed=seed,
            judge=judge,
        )
        return self._measure(inputs)


def check_texts(name: str, texts: Sequence[str] | None) -> None:
    """
    Checks that an argument is a list of texts. A single text would be taken for the list of its letters.

    Raises:
        TypeError: the argument is no list.
        ValueError: the argument is one text, or an entry is not a text.
    """
    if isinstance(texts, str):
        raise ValueError(f"{name}={shortened(texts)} must be a list of texts, got one text. Write [{name}].")
    if texts is not None:
        check_sequence(name, texts, "a list of texts")
    for index, text in enumerate(texts if texts is not None else ()):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{index}]={shortened(text)} must be a text, got a {type(text).__name__}.")
        if not text.isascii() and _SURROGATE.search(text):
            raise ValueError(f"{name}[{index}]={shortened(text)} must be Unicode, but holds half of a surrogate pair.")


def check_lengths(predictions: Sequence, references: Sequence) -> None:
    """
    Checks that there is a reference for each prediction.

    Raises:
        ValueError: one of them is missing, or their numbers differ.
    """
    for name, values in (("predictions", predictions), ("references", references)):
        if values is None:
            raise ValueError(f"{name} is not given. Pass one entry for each row.")
    if len(predictions) != len(references):
        raise ValueError(
            f"predictions has {len(predictions)} entries, but references has {len(references)}. Pass one for each row."
        )


def _check_keywords(match_option_text, answer_rule, bootstrap_samples, confidence, seed, judge):
    """Checks types and ranges, also of keywords that a metric ignores: another one of a combination reads them."""
    check_type("match_option_text", match_option_text, bool, "True or False")
    check_choice("answer_rule", answer_rule, ANSWER_RULES)
    reason = "more do not change the interval, but all are kept in memory"
    check_int("bootstrap_samples", bootstrap_samples, 0, _MOST_SAMPLES, reason)
    check_int("seed", seed, least=0)
    check_number("confidence", confidence, above=0, below=1)
    find_judge(judge)


def _answer_types(types, count):
    """The type of each item's answer; None where it follows from the options."""
    if types is None:
        return [None] * count
    if isinstance(types, str):
        types = [types] * count
    check_sequence("answer_types", types, "one type of answers, or one for each item")
    types = list(types)
    if len(types) != count:
        raise ValueError(f"answer_types has {len(types)} entries, predictions has {count}. Pass one for each.")
    for index, chosen in enumerate(types):
        if chosen is not None:
            check_choice(f"answer_types[{index}]", chosen, ANSWER_TYPES)
    return types


def _accepted_answers(accepted, count):
    """The further right answers of each item."""
    if accepted is None:
        return [[] for _ in range(count)]
    check_sequence("accepted_answers", accepted, "a list of further right answers for each item")
    accepted = list(accepted)
    if len(accepted) != count:
        raise ValueError(f"accepted_answers has {len(accepted)} entries, predictions has {count}. Pass one for each.")
    for index, answers in enumerate(accepted):
        check_texts(f"accepted_answers[{index}]", answers)
    return [list(answers or ()) for answers in accepted]


def read_scheme_argument(scheme: StepScheme | Mapping | None) -> StepScheme:
    """The scheme by which texts are read. The default reads the tokens of every scheme with tokens."""
    if scheme is None:
        return StepScheme()
    # A module that was loaded from the Hub has a class of its own.
    values = scheme.to_dict() if hasattr(scheme, "to_dict") else scheme
    check_type("scheme", values, Mapping, "a StepScheme or a mapping with its fields")
    try:
        return StepScheme.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"scheme: {error}") from None


def read_solution(text: str, scheme: StepScheme, question: str | None) -> Solution:
    """
    The steps of a text, without the question before them.

    The question is the given one, or else a first line `Question: …`. If the scheme does not mark kinds, the answer is
    recognised by its words.
    """
    end = None if question is None else end_of_question(text, question)
    if end is None and text.lstrip().startswith(QUESTION_MARKER) and "\n" in text:
        end = text.index("\n", text.index(QUESTION_MARKER))
    solution = scheme.parse(text[end or 0 :])
    if not scheme.has_kinds:
        mark_answer(solution)
    return solution


def mark_answer(steps: list[Step]) -> None:
    """Makes a last step without a kind an answer if it says `The answer is: …`, in any case."""
    if steps and steps[-1].kind == NO_KIND and steps[-1].text.strip().casefold().startswith(ANSWER_MARKER.casefold()):
        steps[-1] = Step("answer", steps[-1].text.strip())


def read_reference(text: str, scheme: StepScheme, question: str | None = None) -> list[Step]:
    """The steps of a reference, which is a solution or an answer alone."""
    if not is_solution(text):
        return [answer_step(text.strip())]
    steps = read_solution(text, scheme, question)
    mark_answer(steps)
    return list(steps)


def is_solution(reference: str) -> bool:
    """Whether a reference is more than an answer: it has several lines, the token of a step, or `The answer is:`."""
    text = reference.strip()
    return "\n" in text or ANSWER_MARKER.casefold() in text.casefold() or bool(FAMILY_TOKEN.search(text))


def read_options(
    options: Sequence | Mapping | None, references: Sequence[str], answer_types: Sequence[str | None] = ()
) -> list[dict[str, str]]:
    """
    The options of every row: labels to texts, `{}` where the answer is a number or a free text.

    Args:
        options: for all rows together a mapping of labels to texts, or a list of labels; or for each row one of them,
            or the column `options` of a data set. None: the options follow from the answer of the reference; if it is
            a letter, every letter is an option.
        references: solutions, or answers alone.
        answer_types: the type of each answer, where it is known.

    Raises:
        ValueError: the number of entries differs from that of the references, or a reference has no answer.
    """
    if options is None:
        known = answer_types or [None] * len(references)
        return [_options_of(*pair) for pair in zip(references, known, strict=True)]
    if isinstance(options, Mapping) or all(isinstance(option, str) for option in options):
        return [_labels_to_texts(options)] * len(references)
    if len(options) != len(references):
        raise ValueError(f"options has {len(options)} entries for {len(references)} references. Pass one for each.")
    return [_labels_to_texts(row) for row in options]


def check_options(options: Sequence | Mapping | None) -> None:
    """
    Checks that `options` has one of the forms of `read_options`.

    Raises:
        ValueError, TypeError: it has another form.
    """
    if options is None:
        return
    if isinstance(options, str):
        raise ValueError(f"options={options!r} must be a list of labels, got one text. Write {[options]}.")
    if isinstance(options, Mapping):
        _check_labels(options)
        return
    check_sequence("options", options, "a list of labels, a mapping of labels to texts, or one of them for each row")
    for row in options:
        if not isinstance(row, str) and row is not None:
            _check_labels(row)


def _check_labels(options):
    """Labels as texts, a mapping of them to texts, or the entries of the column `options`."""
    wanted = "labels, or a mapping of labels to texts"
    if isinstance(options, Mapping):
        entries = [*options, *options.values()]
    else:
        check_sequence("options", options, wanted)
        entries = []
        for option in options:
            is_column = isinstance(option, Mapping)
            if is_column:
                check_row("options", option, ("label", "text"))
            entries += [option["label"], option["text"]] if is_column else [option]
    for entry in entries:
        check_type("options", entry, str, wanted)


def reference_answer(
    reference: str, options: Mapping[str, str], question: str | None, answer_type: str | None = None
) -> str:
    """
    The answer of a reference, which is a solution or an answer alone.

    Raises:
        ValueError: the reference gives no valid answer.
    """
    text = reference if is_solution(reference) else f"{ANSWER_MARKER} {reference}"
    answer = extract_answer(text, options, question=question, answer_type=answer_type)
    if answer.value is None:
        wanted = f"one of {', '.join(options)}" if options else "a text" if answer_type == "text" else "a number"
        raise ValueError(f"The reference {reference[-80:]!r} gives no answer: it must give {wanted}.")
    return answer.value


def _options_of(reference, answer_type):
    """Options for an answer of a known type, or of the type that the reference shows."""
    if answer_type is not None:
        return _ANY_LETTER if answer_type == "letters" else FIXED_OPTIONS.get(answer_type, {})
    text = reference if is_solution(reference) else f"{ANSWER_MARKER} {reference}"
    for options in (*FIXED_OPTIONS.values(), _ANY_LETTER, {}):
        if extract_answer(text, options).value is not None:
            return options
    raise ValueError(
        f"The reference {reference[-80:]!r} answers neither True or False nor with a letter or a number. References "
        f"are solutions that end with '{ANSWER_MARKER} …', or answers; for free text pass answer_types='text'."
    )


def _labels_to_texts(options):
    if options is None:
        raise ValueError("options holds None: give an empty list for a row whose answer is a number.")
    if isinstance(options, Mapping):
        return dict(options)
    if isinstance(options, str):
        raise ValueError(f"options holds {options!r}: give a list of labels for each row.")
    if not isinstance(options, Sequence):
        raise ValueError(f"options holds {shortened(options)}: give a list of labels for each row.")
    options = list(options)
    return options_by_label(options) if options and isinstance(options[0], Mapping) else dict.fromkeys(options, "")
