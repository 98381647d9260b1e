"""
Judges of a step: whether it agrees with reference steps, departs from them, or cannot be judged.

A judge is called with a step, the reference steps and the question, and returns `AGREES`, `DEPARTS` or `UNDECIDED`:

    judge = TokenOverlapJudge()
    judge(Step("memory", "Oslo has 700,000 people."), [Step("memory", "Oslo has 900,000 people.")])     # "departs"

A judge with `needs_references = False` is also asked about solutions without reference steps. A judge with a method
`judge_solutions` is asked about many solutions at once (`chat_judges`).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memreason_hf.checks import check_number
from memreason_hf.data.questions.text import last_visible
from memreason_hf.evaluation.mode import evaluation_mode
from memreason_hf.steps import Step


AGREES, DEPARTS, UNDECIDED = "agrees", "departs", "undecided"
VERDICTS = (AGREES, DEPARTS, UNDECIDED)
StepJudge = Callable[[Step, Sequence[Step], str], str]

_TOKEN = re.compile(r"\d[\d,]*(?:\.\d+)?|[^\W\d_]+(?:['\u2019][^\W\d_]+)?")
_STOP_WORDS = frozenset(
    """
    a an the this that these those it its they them their he him his she her there here which who whom whose what
    is are was were be been being am do does did done has have had having can could may might must shall should will
    would of in on at by for from to into onto with as about over under between among through during within and or
    but if then than so because since while although though however therefore thus hence also both each either such
    some any all most many much more very just only even still too i you we our your my one s based given fact
    known e g etc approximately around roughly
    """.split()  # noqa: SIM905  a list of quoted words would take a page
)
_NEGATIONS = frozenset({"not", "no", "never", "none", "cannot", "without", "neither", "nor", "nobody", "nothing"})
_OPPOSITES = (
    ("more", "less"),
    ("more", "fewer"),
    ("before", "after"),
    ("above", "below"),
    ("higher", "lower"),
    ("larger", "smaller"),
    ("longer", "shorter"),
    ("older", "younger"),
    ("taller", "shorter"),
    ("faster", "slower"),
    ("heavier", "lighter"),
    ("hot", "cold"),
    ("always", "never"),
    ("first", "last"),
    ("increase", "decrease"),
    ("north", "south"),
    ("east", "west"),
    ("true", "false"),
    ("likely", "unlikely"),
    ("possible", "impossible"),
)
_OPPOSITES_OF = {
    word: frozenset(b if a == word else a for a, b in _OPPOSITES if word in (a, b))
    for word in {word for pair in _OPPOSITES for word in pair}
}
_ENDINGS = ("ations", "ation", "ingly", "edly", "ings", "ing", "ies", "ied", "ily", "es", "ed", "ly", "s", "y", "e")


@dataclass(frozen=True)
class SolutionToJudge:
    """
    One solution as judges need it.

    Attributes:
        steps: the steps of the solution, its answer included.
        references: correct steps, with or without the answer; may be empty for a judge that does without them.
        question: the question, with its options if it has any.
        right_answer: the right answer, if it is known.
        answer: what the answer rule says of the solution's answer: `"right"`, `"wrong"` or `"missing"`; None if it
            was not asked.
    """

    steps: Sequence[Step]
    references: Sequence[Step] = ()
    question: str = ""
    right_answer: str | None = None
    answer: str | None = None


@dataclass(frozen=True)
class JudgeFault:
    """Why a judge could not judge a solution."""

    reason: str


class ExactJudge:
    """A step agrees if a reference has the same words in the same order, in any case; otherwise it departs."""

    def __call__(self, step: Step, references: Sequence[Step], question: str = "") -> str:
        return AGREES if _is_among(step, references) else DEPARTS


@dataclass(frozen=True)
class _Content:
    """What is compared of a text: stems of its content words, numbers, names, negations and comparatives."""

    stems: frozenset[str]
    numbers: frozenset[str]
    names: frozenset[str]
    num_negations: int
    comparatives: frozenset[str]


@dataclass(frozen=True)
class TokenOverlapJudge:
    """
    Compares the content words of a step with those of the reference that shares most of them.

    A step with the words of a reference, in order, agrees. A step that shares fewer than `depart_below` of its content
    words with every reference departs. A step that shares at least `relate_from` with a reference departs if it has a
    number or a name that neither the references nor the question have, one negation more or less, or an opposite
    (`before`, `after`). Any other step agrees if it shares at least `agree_from`, and is undecided below that. What
    single words do not show, such as who did what to whom, is not judged.

    Args:
        depart_below, relate_from, agree_from: shares of the step's content words, between 0 and 1 and in this order.

    Raises:
        ValueError: the shares are out of range or out of order.

    Example:

        >>> judge = TokenOverlapJudge()
        >>> judge(Step("memory", "Oslo has 700,000 people."), [Step("memory", "Oslo has 900,000 people.")])
        'departs'
        >>> judge(Step("memory", "In Oslo, 900,000 people live."), [Step("memory", "Oslo has 900,000 people.")])
        'agrees'
    """

    depart_below: float = 0.1
    relate_from: float = 0.6
    agree_from: float = 0.6

    def __post_init__(self):
        values = (self.depart_below, self.relate_from, self.agree_from)
        for name, value in zip(("depart_below", "relate_from", "agree_from"), values, strict=True):
            check_number(name, value)
        if not 0 <= values[0] <= values[1] <= values[2] <= 1:
            raise ValueError(
                f"depart_below={values[0]}, relate_from={values[1]} and agree_from={values[2]} must be between 0 and "
                "1, each at least as large as the one before."
            )

    def __call__(self, step: Step, references: Sequence[Step], question: str = "") -> str:
        if _is_among(step, references):
            return AGREES
        content = _content(step.text)
        known = [_content(reference.text) for reference in references]
        if not content.stems:
            return UNDECIDED
        best = max(known, key=lambda reference: len(content.stems & reference.stems), default=None)
        share = len(content.stems & best.stems) / len(content.stems) if best else 0.0
        if share < self.depart_below:
            return DEPARTS
        if share >= self.relate_from and self._contradicts(content, best, [*known, _content(question)]):
            return DEPARTS
        return AGREES if share >= self.agree_from else UNDECIDED

    def _contradicts(self, content, best, known):
        if content.numbers - frozenset().union(*(other.numbers for other in known)):
            return True
        if {_stem(name) for name in content.names} - frozenset().union(*(other.stems for other in known)):
            return True
        if (content.num_negations - best.num_negations) % 2:
            return True
        return any(
            _OPPOSITES_OF[word] & best.comparatives and word not in best.comparatives for word in content.comparatives
        )


@dataclass
class LanguageModelJudge:
    """
    Asks a language model whether a step is consistent with the references, and compares the probabilities of yes and
    no.

    Args:
        model, tokenizer: a causal language model.
        margin: difference of the two log-probabilities, in nats, below which a step is undecided.
        template: the prompt, with the fields `question`, `references` (one line each) and `step`.
        answers: the words for yes and no; their first tokens must differ.

    Raises:
        ValueError: the template lacks a field, or the answers begin with the same token.

    Example:

    ```python
    judge = LanguageModelJudge(model, tokenizer, margin=2.0)
    metric.compute(predictions=texts, references=references, judge=judge)
    ```
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    margin: float = 1.0
    template: str = (
        "Question: {question}\nThe following statements are correct:\n{references}\nStatement: {step}\n"
        "Is the last statement consistent with the correct ones? Answer yes or no.\nAnswer:"
    )
    answers: tuple[str, str] = (" yes", " no")

    def __post_init__(self):
        missing = [name for name in ("references", "step") if f"{{{name}}}" not in self.template]
        if missing:
            raise ValueError(f"template={self.template!r} lacks the field {{{missing[0]}}}.")
        ids = [self.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in self.answers]
        if not all(ids) or ids[0][0] == ids[1][0]:
            raise ValueError(f"answers={self.answers!r} must begin with different tokens, but begin with {ids}.")
        self._yes, self._no = ids[0][0], ids[1][0]

    def __call__(self, step: Step, references: Sequence[Step], question: str = "") -> str:
        known = "\n".join(f"- {reference.text}" for reference in references)
        text = self.template.format(question=question, references=known, step=step.text)
        # Special tokens that a step quotes stay plain text.
        inputs = self.tokenizer(text, return_tensors="pt", split_special_tokens=True).to(self.model.device)
        with evaluation_mode(self.model):
            logits = self.model(input_ids=inputs["input_ids"], logits_to_keep=1).logits[0, -1].float()
        difference = float(logits[self._yes] - logits[self._no])
        if abs(difference) < self.margin:
            return UNDECIDED
        return AGREES if difference > 0 else DEPARTS


JUDGES: dict[str, Callable[[], StepJudge]] = {"exact": ExactJudge, "overlap": TokenOverlapJudge}


def find_judge(judge: str | StepJudge) -> StepJudge:
    """
    A judge by its name in `JUDGES`, or the judge itself.

    Raises:
        ValueError: there is no judge of this name.
    """
    if callable(judge):
        return judge
    if not isinstance(judge, str) or judge not in JUDGES:
        raise ValueError(f"judge={judge!r} must be one of {', '.join(JUDGES)}, or a callable.")
    return JUDGES[judge]()


def _is_among(step, references):
    words = _words(step.text)
    return any(_words(reference.text) == words for reference in references)


def _words(text):
    return [token.replace(",", "").casefold() for token in _TOKEN.findall(text)]


def _stem(word):
    """The word without its ending: `named`, `naming` and `names` have the same stem."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def _begins_sentence(text, position):
    end = last_visible(text, position)
    return position == 0 or (end >= 0 and (text[end] in '"\u201c(' or (text[end] in ".?!:;" and end < position - 1)))


def _content(text):
    stems, numbers, names, comparatives, num_negations = set(), set(), set(), set(), 0
    for match in _TOKEN.finditer(text):
        token = match[0].replace("\u2019", "'")
        if token[0].isdigit():
            number = token.replace(",", "").rstrip(".")
            numbers.add(number)
            stems.add(number)
            continue
        word = token.casefold()
        if word.endswith("n't"):
            num_negations += 1
            continue
        word = word.removesuffix("'s").removesuffix("'")
        num_negations += word in _NEGATIONS
        if word in _OPPOSITES_OF:
            comparatives.add(word)
        if word in _STOP_WORDS or word in _NEGATIONS or len(word) == 1:
            continue
        stems.add(_stem(word))
        if token[0].isupper() and not _begins_sentence(text, match.start()):
            names.add(word)
    return _Content(frozenset(stems), frozenset(numbers), frozenset(names), num_negations, frozenset(comparatives))
