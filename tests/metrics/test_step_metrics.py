"""The three metrics on solutions, against counting by hand, on published texts, and combined."""

import evaluate
import numpy as np
import pytest
from paths import PUBLISHED, QUESTIONS
from published_texts import match_items

from memreason_hf.data.questions.memory_reason import build_memory_reason, reference_solution
from memreason_hf.evaluation.solutions.answers import read_published
from memreason_hf.evaluation.solutions.judges import ExactJudge
from memreason_hf.metrics import metric_path
from memreason_hf.steps import StepScheme


NAMES = ["answer_accuracy", "step_distribution", "step_attribution"]
published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the authors' files in ../shared/data")
REFERENCE = "<memory> Iron is heavy.\n<reason> So it sinks.\n<answer> The answer is: True\n"


@pytest.fixture
def load(tmp_path):
    return lambda name: evaluate.load(metric_path(name), keep_in_memory=True, cache_dir=str(tmp_path))


@pytest.fixture
def accuracy(load):
    return load("answer_accuracy").compute


@pytest.fixture
def distribution(load):
    return load("step_distribution").compute


@pytest.fixture
def attribution(load):
    return load("step_attribution").compute


def test_references_are_solutions_or_answers(accuracy):
    predictions = ["The answer is: true", "The answer is: B", "The answer is: $1,000.0"]
    for references in (["True", "B", "1000"], [f"x\nThe answer is: {a}" for a in ("True", "b.", "1,000")]):
        results = accuracy(predictions=predictions, references=references)
        assert results["accuracy"] == 1
        assert results["count_by_answer"] == {"True": 1, "B": 1, "1000.0": 1}


def test_options_for_all_and_for_each(accuracy):
    predictions, references = ["The answer is: C", "The answer is: bank"], ["C", "A"]
    rows = [[{"label": "A", "text": "x"}, {"label": "C", "text": "y"}], [{"label": "A", "text": "bank"}]]
    for options in (["A", "B", "C"], {"A": "bank", "C": "mall"}, rows, [["A", "C"], {"A": "bank"}]):
        results = accuracy(predictions=predictions, references=references, options=options)
        assert (results["accuracy"], results["num_invalid_answers"]) == (0.5, 1)
    results = accuracy(predictions=predictions, references=references, options=rows, match_option_text=True)
    assert results["accuracy"] == 1
    results = accuracy(predictions=["The answer is: D"], references=["A"], options=["A", "B"])
    assert results["num_invalid_answers"] == 1
    assert accuracy(predictions=["The answer is: D"], references=["A"])["num_invalid_answers"] == 0


def test_the_question_is_not_searched_for_an_answer(accuracy):
    question = "Is it so that the answer is: True?"
    text = f"Question: {question}\n<reason> Who knows"
    assert accuracy(predictions=[text], references=["True"])["accuracy"] == 1
    results = accuracy(predictions=[text], references=["True"], questions=[question])
    assert (results["accuracy"], results["num_invalid_answers"]) == (0, 1)


def test_the_interval_resamples_questions(accuracy):
    rng = np.random.default_rng(0)
    # 60 questions, each asked 10 times, all 10 right or all wrong.
    right = np.repeat(rng.random(60) < 0.5, 10)
    questions = [f"q{i}" for i in np.repeat(np.arange(60), 10)]
    columns = {"predictions": [f"The answer is: {value}" for value in right], "references": ["True"] * 600}
    by_question = accuracy(**columns, questions=questions, bootstrap_samples=2000)
    by_item = accuracy(**columns, bootstrap_samples=2000)
    assert by_question["accuracy"] == by_item["accuracy"] == right.mean()
    assert (by_question["num_questions"], by_item["num_questions"], by_item["num_items"]) == (60, 600, 600)
    # Normal approximation: 1.96 standard errors to each side, of 60 questions or of 600 items.
    for results, num in ((by_question, 60), (by_item, 600)):
        low, high = results["accuracy_interval"]
        assert low < right.mean() < high
        assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / num), rel=0.15)
    assert accuracy(**columns, questions=questions, bootstrap_samples=2000) == by_question
    assert accuracy(**columns, questions=questions, seed=1)["accuracy_interval"] != by_question["accuracy_interval"]
    low, high = by_question["accuracy_interval"]
    half = accuracy(**columns, questions=questions, confidence=0.5)["accuracy_interval"]
    assert low < half[0] < half[1] < high
    assert accuracy(**columns, bootstrap_samples=0)["accuracy_interval"] is None


def test_an_interval_of_unequal_questions_agrees_with_drawing_them(accuracy):
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 8, 25)
    questions = np.repeat(np.arange(25), sizes)
    right = rng.random(len(questions)) < 0.7
    results = accuracy(
        predictions=[f"The answer is: {value}" for value in right],
        references=["True"] * len(right),
        questions=[f"q{i}" for i in questions],
        bootstrap_samples=4000,
    )
    drawn = []
    for _ in range(4000):
        items = np.concatenate([np.flatnonzero(questions == q) for q in rng.integers(0, 25, 25)])
        drawn.append(right[items].mean())
    np.testing.assert_allclose(results["accuracy_interval"], np.quantile(drawn, [0.025, 0.975]), atol=0.015)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"predictions": [], "references": []}, "are empty: there is nothing to measure"),
        ({"predictions": ["a"], "references": ["True"], "questions": ["a", "b"]}, "questions has 2 entries"),
        ({"predictions": "ab", "references": ["A", "B"]}, r"predictions='ab' must be a list of texts, got one text"),
        ({"predictions": ["a", "b"], "references": "AB"}, r"references='AB' must be a list of texts"),
        ({"predictions": ["a", "b"], "references": ["A", "B"], "questions": "ab"}, r"questions='ab' must be a list"),
        (
            {"predictions": ["a", None], "references": ["A", "B"]},
            r"predictions\[1\]=None must be a text, got a None",
        ),
        ({"predictions": ["a", "b"], "references": ["A", 2]}, r"references\[1\]=2 must be a text, got a int"),
        ({"predictions": ["a"], "references": ["A"], "questions": [3]}, r"questions\[0\]=3 must be a text"),
        ({"predictions": "a" * 900, "references": ["A"]}, r"^predictions='a{79}… must be a list"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_bad_input_of_all(load, name, columns, message):
    metric = load(name)
    with pytest.raises(ValueError, match=message):
        metric.compute(**columns)
    with pytest.raises(TypeError, match="unexpected keyword argument 'question'"):
        load(name).compute(predictions=["a"], references=["True"], question=["a"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"references": ["so"]}, "'so' answers neither True or False nor with a letter or a number"),
        ({"references": ["E"], "options": ["A", "B"]}, "Item 0: The reference 'E' gives no answer: .* one of A, B"),
        ({"references": ["a\nb"], "options": []}, "Item 0: .* must give a number"),
        ({"references": ["A"], "options": [["A"], ["B"]]}, "options has 2 entries for 1 references"),
        ({"references": ["A"], "options": [None]}, "options holds None"),
        ({"references": ["A"], "options": "AB"}, r"options='AB' must be a list of labels, got one text"),
        ({"references": ["A", "B"], "options": [["A"], "AB"], "predictions": ["a", "b"]}, "options holds 'AB'"),
        ({"references": ["A"], "bootstrap_samples": -1}, "bootstrap_samples=-1"),
        ({"references": ["A"], "confidence": 95}, "confidence=95"),
    ],
)
def test_bad_input_of_answer_accuracy(accuracy, columns, message):
    with pytest.raises(ValueError, match=message):
        accuracy(**{"predictions": ["The answer is: A"], **columns})


@pytest.mark.parametrize("name", NAMES)
def test_one_text_after_the_other(load, name):
    metric = load(name)
    metric.add(prediction=REFERENCE, reference="True")
    metric.add(prediction=REFERENCE.replace("True", "False"), reference=REFERENCE)
    expected = load(name).compute(
        predictions=[REFERENCE, REFERENCE.replace("True", "False")], references=["True", REFERENCE]
    )
    assert metric.compute() == expected
    for pair in ({"prediction": ["a"], "reference": "b"}, {"prediction": "a", "reference": None}):
        with pytest.raises(ValueError, match="must be a text"):
            metric.add(**pair)


def test_distribution_by_hand(distribution):
    predictions = [
        "Question: Does it?\n<memory> a b c\n<memory> a\n<reason> b b\n<answer> The answer is: True\n",
        "no tokens\nThe answer is: False",
        "<reason_0><reason_1> one\n<answer_0>",
        "<answer> The answer is: True",
    ]
    results = distribution(predictions=predictions, references=[REFERENCE, "True", REFERENCE, "A"])
    assert results["steps_by_kind"] == {"memory": 2, "reason": 2, "answer": 2, "step": 2}
    assert results["steps_per_solution"] == 2
    assert results["words_by_kind"]["memory"] == {"mean": 2.0, "median": 2.0}
    assert results["words_by_kind"]["reason"] == {"mean": 1.5, "median": 1.5}
    assert (results["num_truncated"], results["num_without_steps"], results["num_references_without_steps"]) == (
        1,
        1,
        2,
    )
    assert results["reference_steps_by_kind"] == {"memory": 2, "reason": 2, "answer": 4, "step": 0}
    assert results["reference_words_by_kind"]["reason"] == {"mean": 3.0, "median": 3.0}
    assert list(results["words_by_kind"]) == ["memory", "reason", "answer", "step"]


def test_distribution_of_other_marks(distribution):
    scheme = StepScheme(marks="words")
    for given in (scheme, scheme.to_dict()):
        results = distribution(predictions=["Memory: a\nAnswer: b"], references=["Memory: c\n"], scheme=given)
        assert results["steps_by_kind"] == {"memory": 1, "reason": 0, "answer": 1, "step": 0}
    with pytest.raises(ValueError, match="has no field token"):
        distribution(predictions=["a"], references=["b"], scheme={"token": 1})


def test_attribution_by_hand(attribution):
    wrong_memory = REFERENCE.replace("heavy", "light")
    predictions = [
        REFERENCE,
        wrong_memory,
        REFERENCE.replace("True", "False"),
        wrong_memory,
        f"Question: x\n{REFERENCE}",
    ]
    results = attribution(predictions=predictions, references=[REFERENCE] * 3 + ["True", REFERENCE], judge="exact")
    assert results["departures_by_kind"] == {"memory": 1, "reason": 0, "answer": 1, "step": 0}
    assert (results["num_departures"], results["num_without_departure"]) == (2, 2)
    assert (results["num_undecided"], results["num_without_reference"]) == (0, 1)
    assert results["attributions"][1] == {"outcome": "memory", "step": 0, "text": "Iron is light."}
    assert results["attributions"][3]["outcome"] == "no reference"


def test_right_and_wrong_solutions_apart_and_missing_answers(attribution):
    references = ["<memory> Iron is heavy.\n<answer> The answer is: B"] * 5
    predictions = [
        "<memory> Iron is heavy.\n<answer> The answer is: b) mall",
        "<memory> Iron is light.\n<answer> The answer is: B",
        "<memory> Iron is light.\n<answer> The answer is: A",
        "<memory> Iron is heavy.",
        "<memory> Iron is heavy.\n<answer> The answer is: the mall",
    ]
    results = attribution(predictions=predictions, references=references, judge="exact", options=["A", "B"])
    outcomes = ["none", "memory", "memory", "no answer", "no answer"]
    assert [entry["outcome"] for entry in results["attributions"]] == outcomes
    assert results["num_without_answer"] == 2 and results["num_without_departure"] == 1
    apart = {name: {k: n for k, n in part.items() if n} for name, part in results["outcomes_by_answer"].items()}
    assert apart == {"right": {"none": 1, "memory": 1}, "wrong": {"memory": 1, "no answer": 2}}
    names = ("departures", "without_answer", "without_departure", "undecided", "without_reference", "not_judged")
    assert sum(results[f"num_{name}"] for name in names) == 5
    # Where the rule cannot read the reference, the words are compared, and neither side counts the solution.
    results = attribution(predictions=predictions[:1], references=[references[0].replace("B", "the mall")])
    assert results["attributions"][0]["outcome"] == "answer"
    assert not any(n for part in results["outcomes_by_answer"].values() for n in part.values())


def test_judges_can_be_exchanged(attribution):
    calls = []

    def judge(step, references, question):
        calls.append((step.text, [reference.text for reference in references], question))
        return "undecided"

    results = attribution(predictions=[REFERENCE], references=[REFERENCE], questions=["Does it?"], judge=judge)
    assert results["num_undecided"] == 1
    assert calls[0] == ("Iron is heavy.", ["Iron is heavy.", "So it sinks."], "Does it?")
    assert (
        attribution(predictions=["b"], references=[REFERENCE], judge=ExactJudge())["departures_by_kind"]["step"] == 1
    )
    with pytest.raises(ValueError, match="judge='mine' must be one of exact, overlap"):
        attribution(predictions=["b"], references=[REFERENCE], judge="mine")


@pytest.mark.parametrize("scheme", [StepScheme(marks="none"), StepScheme(2, 0, layout="front"), StepScheme()], ids=str)
def test_solutions_without_marks_have_their_answer_last(attribution, scheme):
    reference = "Iron is heavy.\nThe answer is: True"
    changes = [("", ""), ("True", "False"), ("Iron", "Lead"), ("The answer", "the ANSWER")]
    results = attribution(
        predictions=[reference.replace(*change) for change in changes],
        references=[reference] * len(changes),
        scheme=scheme,
        judge="exact",
    )
    assert [found["outcome"] for found in results["attributions"]] == ["none", "answer", "step", "none"]


def test_together(load, tmp_path):
    metrics = evaluate.combine([load(name) for name in NAMES])
    texts = [REFERENCE, REFERENCE.replace("heavy", "light"), REFERENCE.replace("True", "False")]
    references = [REFERENCE] * 3
    keywords = {"questions": ["a", "a", "b"], "options": ["True", "False"], "judge": "exact", "bootstrap_samples": 10}
    results = metrics.compute(predictions=texts, references=references, scheme=StepScheme(2, 4), **keywords)
    alone = {}
    for name in NAMES:
        alone |= load(name).compute(predictions=texts, references=references, **keywords)
    # No two metrics have a result of the same name, so that none gets a prefix.
    assert results == alone
    assert results["accuracy"] == pytest.approx(2 / 3) and results["num_questions"] == 2
    metrics.add_batch(predictions=texts, references=references)
    assert metrics.compute()["steps_by_kind"]["memory"] == 3
    with pytest.raises(ValueError, match="are empty"):
        metrics.compute(predictions=[], references=[])


@published
def test_published_texts(load):
    texts, verdicts = read_published(PUBLISHED / "commonsenseqa_agent_llama-2-7b-chat.json")
    test = build_memory_reason("commonsense_qa", str(QUESTIONS)).dataset["test"]
    rows = [test[item] for item in match_items(texts, test["question"][:])]
    results = evaluate.combine([load(name) for name in NAMES]).compute(
        predictions=texts,
        references=[StepScheme().render(reference_solution(row)) for row in rows],
        questions=[row["question"] for row in rows],
        options=[row["options"] for row in rows],
    )
    assert (results["accuracy"], results["num_invalid_answers"]) == (sum(verdicts) / 1200, 0)
    assert (results["num_items"], results["num_questions"]) == (1200, 781)
    assert results["steps_by_kind"] == {"memory": 1148, "reason": 5596, "answer": 1200, "step": 0}
    assert results["num_without_reference"] == 1200
    assert sum(results["count_by_answer"].values()) == 1200
    assert list(results["count_by_answer"]) == ["A", "B", "C", "D", "E"]
    # Resampling items would give an interval of 5.1 points. It is wider, because 318 questions are repeated.
    low, high = results["accuracy_interval"]
    assert 0.053 < high - low < 0.08


@pytest.mark.parametrize("name", ["answer_accuracy", "step_distribution", "step_attribution"])
@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"predictions": "abc", "references": "abc"}, "predictions='abc' must be a list of texts"),
        ({"predictions": [None]}, r"predictions\[0\]=None must be a text"),
        ({"references": 3}, "references=3 must be a list of texts, got int"),
        ({"questions": "abc"}, "questions='abc' must be a list of texts"),
        ({"confidence": "x"}, "confidence='x' must be a number"),
        ({"confidence": float("nan")}, "confidence=nan must be a finite number"),
        ({"confidence": 1.0}, "confidence=1.0 must be below 1"),
        ({"bootstrap_samples": -1}, "bootstrap_samples=-1 must be at least 0"),
        ({"bootstrap_samples": 10**12}, "bootstrap_samples=1000000000000 must be at most 100,000: more do not change"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"seed": 0.5}, "seed=0.5 must be a whole number"),
        ({"judge": "nobody"}, "judge='nobody' must be one of"),
        ({"judge": []}, r"judge=\[\] must be one of"),
        ({"options": 3}, "options=3 must be a list"),
        ({"options": "AB"}, "options='AB' must be a list of labels"),
        ({"match_option_text": "no"}, "match_option_text='no' must be True or False"),
        ({"scheme": 3}, "scheme=3 must be a StepScheme"),
    ],
)
def test_keywords_of_the_wrong_kind_are_refused_by_every_metric(name, keywords, message):
    metric = evaluate.load(metric_path(name), keep_in_memory=True)
    sound = {"predictions": ["<answer> The answer is: A"], "references": ["The answer is: A"]}
    metric.compute(**sound)
    with pytest.raises((TypeError, ValueError), match=message):
        metric.compute(**{**sound, **keywords})
