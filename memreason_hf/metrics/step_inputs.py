"""
What the three metrics on solutions share: what they say of themselves, reading their texts, and their keywords.

`evaluate.combine` hands every keyword to every module. So each of them accepts the keywords of the others and leaves
them alone; a misspelt one is a TypeError all the same.
"""

from collections.abc import Mapping, Sequence

import datasets
import evaluate

from memreason_hf.data.questions.options import TRUE_FALSE, options_by_label
from memreason_hf.evaluation.solutions.answers import end_of_question, extract_answer
from memreason_hf.steps import ANSWER_MARKER, NO_KIND, QUESTION_MARKER, Solution, Step, StepScheme, answer_step
from memreason_hf.steps.marks import FAMILY_TOKEN


_ANY_LETTER = {chr(code): "" for code in range(ord("A"), ord("Z") + 1)}

_CITATION = """\
@article{jin2024disentangling,
  title = {Disentangling Memory and Reasoning Ability in Large Language Models},
  author = {Jin, Mingyu and others},
  journal = {arXiv:2411.13504},
  year = {2024}
}
"""


def metric_info(description: str, inputs_description: str) -> evaluate.MetricInfo:
    """What `evaluate` shows of a metric that takes texts of solutions and texts of references."""
    return evaluate.MetricInfo(
        description=description,
        citation=_CITATION,
        inputs_description=inputs_description,
        features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
    )


def check_rows(predictions: Sequence[str], **columns: Sequence | None) -> None:
    """Raises ValueError without any row, and for a keyword that has not an entry for each row."""
    if len(predictions) == 0:
        raise ValueError(
            "predictions and references are empty: there is nothing to measure. Check the split and the filters that "
            "chose the rows."
        )
    for name, column in columns.items():
        if column is not None and len(column) != len(predictions):
            raise ValueError(
                f"{name} has {len(column)} entries, predictions has {len(predictions)}: give one for each."
            )


def read_scheme_argument(scheme: StepScheme | Mapping | None) -> StepScheme:
    """The scheme by which texts are read; one with tokens reads those of all others with tokens."""
    if scheme is None:
        return StepScheme()
    return scheme if isinstance(scheme, StepScheme) else StepScheme.from_dict(scheme)


def read_solution(text: str, scheme: StepScheme, question: str | None) -> Solution:
    """
    The steps of a text, without the question in front of them: the given one, or a first line `Question: …`. Where the
    scheme tells no kinds the answer is told by its words.
    """
    end = None if question is None else end_of_question(text, question)
    if end is None and text.lstrip().startswith(QUESTION_MARKER) and "\n" in text:
        end = text.index("\n", text.index(QUESTION_MARKER))
    solution = scheme.parse(text[end or 0 :])
    if not scheme.has_kinds:
        mark_answer(solution)
    return solution


def mark_answer(steps: list[Step]) -> None:
    """Gives a last step without a kind that says `The answer is: …`, in any case, the kind of an answer."""
    if steps and steps[-1].kind == NO_KIND and steps[-1].text.strip().casefold().startswith(ANSWER_MARKER.casefold()):
        steps[-1] = Step("answer", steps[-1].text.strip())


def read_reference(text: str, scheme: StepScheme, question: str | None = None) -> list[Step]:
    """The steps of a reference, which is a solution or nothing but an answer."""
    if not is_solution(text):
        return [answer_step(text.strip())]
    steps = read_solution(text, scheme, question)
    mark_answer(steps)
    return list(steps)


def is_solution(reference: str) -> bool:
    """Whether a reference is more than an answer: it has several lines, a step's token, or `The answer is:`."""
    text = reference.strip()
    return "\n" in text or ANSWER_MARKER.casefold() in text.casefold() or bool(FAMILY_TOKEN.search(text))


def read_options(options: Sequence | Mapping | None, references: Sequence[str]) -> list[dict[str, str]]:
    """
    The options of every row: labels to texts, `{}` where the answer is a number.

    Args:
        options: for all rows together a mapping of labels to texts, or a list of labels; for each row one of them, or
            the column `options` of a data set. None: by the reference's answer, where any letter is then an option.
        references: solutions, or answers alone.

    Raises:
        ValueError: the number of entries differs from the references'; a reference without an answer.
    """
    if options is None:
        return [_options_like(reference) for reference in references]
    if isinstance(options, Mapping) or all(isinstance(option, str) for option in options):
        return [_labels_to_texts(options)] * len(references)
    if len(options) != len(references):
        raise ValueError(f"options has {len(options)} entries for {len(references)} references: give one for each.")
    return [_labels_to_texts(row) for row in options]


def reference_answer(reference: str, options: Mapping[str, str], question: str | None) -> str:
    """
    The answer that a reference gives: that of a solution, or the reference itself.

    Raises:
        ValueError: it gives none.
    """
    text = reference if is_solution(reference) else f"{ANSWER_MARKER} {reference}"
    answer = extract_answer(text, options, question=question)
    if answer.value is None:
        wanted = f"one of {', '.join(options)}" if options else "a number"
        raise ValueError(f"The reference {reference[-80:]!r} gives no answer: it must give {wanted}.")
    return answer.value


def _options_like(reference):
    text = reference if is_solution(reference) else f"{ANSWER_MARKER} {reference}"
    for options in (TRUE_FALSE, _ANY_LETTER, {}):
        if extract_answer(text, options).value is not None:
            return options
    raise ValueError(
        f"The reference {reference[-80:]!r} answers neither True or False nor with a letter or a number. References "
        f"are solutions that end with '{ANSWER_MARKER} …', or answers."
    )


def _labels_to_texts(options):
    if options is None:
        raise ValueError("options holds None: give an empty list for a row whose answer is a number.")
    if isinstance(options, Mapping):
        return dict(options)
    options = list(options)
    return options_by_label(options) if options and isinstance(options[0], Mapping) else dict.fromkeys(options, "")
