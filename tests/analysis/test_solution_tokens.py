"""The tokens of a solution equal those that a model generates, and each belongs to its step."""

import pytest
from small_tokenizers import TOKENIZERS, byte_level
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer

from memreason_hf.analysis.solution_tokens import TokenSpan, encode_solution_tokens
from memreason_hf.data.questions.prompts import Prompter, PromptFormat, record_prompt_format
from memreason_hf.steps import Step, StepScheme, answer_step
from memreason_hf.steps.tokenization import encode_prompt, encode_solution, extend_tokenizer


QUESTION = "Is the memory of </s> a <memory_0> reason?"
STEPS = [
    Step("memory", "The memory is a step."),
    Step("reason", "So the reason: un<b>able é式"),
    Step("step", "the step"),
    Step("memory", ""),
    answer_step("True"),
]
SCHEMES = [StepScheme(2, 4), StepScheme(0, 1), StepScheme(1, 2)]


def extended(make, scheme):
    tokenizer = make()
    extend_tokenizer(tokenizer, scheme)
    return tokenizer


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_ids_are_those_of_generation(name, scheme):
    tokenizer = extended(TOKENIZERS[name], scheme)
    question = QUESTION if name == "word_level" else f"{QUESTION} \n A. a"
    text = scheme.question_text(question) + scheme.render(STEPS)
    prompt = encode_prompt(tokenizer, question)
    head = prompt[: len(prompt) - len(scheme.prefix_tokens)]
    expected = [*head, *encode_solution(tokenizer, STEPS)]
    solution = encode_solution_tokens(tokenizer, text, question=question)
    assert list(solution.ids) == expected
    assert len(solution) == len(solution.labels) == len(solution.is_mark) == len(expected)
    # No token crosses a mark, so steps can be counted one by one.
    lengths = [len(head), *(len(encode_solution(tokenizer, [step])) for step in STEPS)]
    assert [span.end - span.start for span in solution.spans] == lengths
    assert [(span.kind, span.number, span.text) for span in solution.spans] == [
        ("question", None, question),
        *((step.kind, i, step.text) for i, step in enumerate(STEPS, start=1)),
    ]
    assert [solution.ids[i] for i, is_mark in enumerate(solution.is_mark) if is_mark] == [
        token_id
        for step in STEPS
        for token_id in tokenizer.convert_tokens_to_ids([*scheme.prefix_tokens, *scheme.kind_tokens(step.kind)])
    ]
    assert solution.kinds(marks_apart=True).count("marks") == sum(solution.is_mark)
    # The question is also found if it is not given, unless one of its lines looks like a step.
    if "\n" not in question:
        assert encode_solution_tokens(tokenizer, text) == solution


CHAT = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.mark.parametrize("name", ["byte_level", "sentence_piece"])
@pytest.mark.parametrize("question", [QUESTION, "Is it the step?"])
@pytest.mark.parametrize("is_recorded", [True, False])
def test_the_question_stands_in_the_prompt_of_the_model(name, question, is_recorded):
    scheme = StepScheme(2, 4)
    tokenizer = extended(TOKENIZERS[name], scheme)
    tokenizer.chat_template = CHAT
    text = scheme.question_text(question) + scheme.render(STEPS)
    plain = encode_solution_tokens(tokenizer, text, question=question)
    format = PromptFormat(chat_template=True, system="Be brief.")
    prompt = Prompter(tokenizer, format).prompt_ids(question)
    if is_recorded:
        record_prompt_format(tokenizer, format)
        solution = encode_solution_tokens(tokenizer, text, question=question)
        assert encode_solution_tokens(tokenizer, text, question=question, prompt_format=PromptFormat()) == plain
    else:
        solution = encode_solution_tokens(tokenizer, text, question=question, prompt_format=format)
    assert list(solution.ids) == prompt[:-2] + encode_solution(tokenizer, STEPS) != list(plain.ids)
    assert solution.spans[-1].end == len(solution.ids) == len(solution.is_mark)
    starts = list(solution.word_starts)
    assert starts == sorted(set(starts)) and starts[0] == 0 and "[system]" in solution.word_labels[:2]


def test_spans_cover_all_tokens():
    tokenizer = extended(byte_level, StepScheme(2, 4))
    text = "Question: Is it?\nfirst, a line without a mark\n\n<prefix_0><prefix_1><reason_0><reason_1><reason_2>"
    text += "<reason_3> so\nand on\n"
    solution = encode_solution_tokens(tokenizer, text, question="Is it?")
    assert [(span.kind, span.text) for span in solution.spans] == [
        ("question", "Is it?"),
        ("step", "first, a line without a mark"),
        ("reason", "so"),
        ("step", "and on"),
    ]
    assert [span.start for span in solution.spans] == [0, *(span.end for span in solution.spans[:-1])]
    assert solution.spans[-1].end == len(solution)
    # Lines without a mark do not get one.
    assert tokenizer.decode(solution.ids) == text
    assert sum(solution.is_mark) == 6


@pytest.mark.parametrize(
    "text",
    [
        "Question: Is it?\n <prefix_0><rag_0><rag_1><rag_2> a b\n <prefix_0> <reason_0> <reason_1> <reason_2> c\n",
        "Question: Is it? <memory> a b <reason> c\n".replace("\n", ""),
        "Question: Is it?\n<rag> a b\n<reason> c\n",
    ],
)
def test_other_spellings_are_read_with_the_marks_of_the_model(text):
    scheme = StepScheme(2, 4)
    tokenizer = extended(byte_level, scheme)
    steps = [Step("memory", "a b"), Step("reason", "c")]
    solution = encode_solution_tokens(tokenizer, text)
    expected = scheme.question_text("Is it?") + scheme.render(steps)
    assert tokenizer.decode(solution.ids) == expected.removesuffix("\n" if not text.endswith("\n") else "")
    assert [span.text for span in solution.spans] == ["Is it?", "a b", "c"]


def test_a_cut_text_loses_the_tokens_of_its_last_step():
    tokenizer = extended(byte_level, StepScheme(0, 2))
    solution = encode_solution_tokens(tokenizer, "Question: a\n<memory_0><memory_1> b\n<reason_0>")
    assert solution.truncated
    assert tokenizer.decode(solution.ids) == "Question: a\n<memory_0><memory_1> b\n"
    assert not encode_solution_tokens(tokenizer, "Question: a\n<memory_0><memory_1> b\n").truncated


@pytest.mark.parametrize(
    ("scheme", "kinds"),
    [
        (StepScheme(1, 2, layout="plan_first"), ["plan", "plan", "memory", "reason"]),
        (StepScheme(1, 2, layout="plan_only"), ["memory", "reason"]),
        (StepScheme(marks="words"), ["memory", "reason"]),
        (StepScheme(marks="words", layout="plan_first"), ["plan", "plan", "memory", "reason"]),
        (StepScheme(2, 0, layout="front"), ["step", "step"]),
        (StepScheme(marks="none"), ["step", "step"]),
    ],
    ids=str,
)
def test_every_layout(scheme, kinds):
    tokenizer = extended(byte_level, scheme)
    steps = [Step("memory", "a b"), Step("reason", "the c")]
    text = scheme.question_text("Is it?") + scheme.render(steps)
    for question in ("Is it?", None):
        solution = encode_solution_tokens(tokenizer, text, question=question)
        assert [span.kind for span in solution.spans] == ["question", *kinds]
        assert [span.number for span in solution.spans] == [None, *([1, 2] * (len(kinds) // 2))]
        assert tokenizer.decode(solution.ids) == text
        marks = "".join(label for label, is_mark in zip(solution.labels, solution.is_mark) if is_mark)
        written = "".join(scheme.mark(step.kind) for step in steps) * (len(kinds) // 2)
        assert marks == (scheme.mark("step") if scheme.layout == "front" else written)


def test_a_begin_of_text_is_apart():
    tokenizer = extended(byte_level, StepScheme(0, 1))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    solution = encode_solution_tokens(tokenizer, "Question: a\n<memory> b\n")
    assert solution.spans[0] == TokenSpan("begin", 0, 1)
    assert solution.spans[1].start == 1 and solution.ids[0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in solution.ids[1:]
    # A solution without its question.
    assert [span.kind for span in encode_solution_tokens(tokenizer, "<memory> b\n").spans] == ["begin", "memory"]


def test_labels_can_be_shown():
    tokenizer = extended(byte_level, StepScheme(0, 1))
    solution = encode_solution_tokens(tokenizer, "<memory> the é  \t.\n")
    assert solution.labels[:2] == ("<memory>", "the")
    assert solution.labels[-1] == "⏎" and "→" in "".join(solution.labels)
    assert all(label and label == label.strip() for label in solution.labels)


def test_what_cannot_be_read():
    scheme = StepScheme(2, 4)
    with pytest.raises(ValueError, match="has no scheme of steps"):
        encode_solution_tokens(byte_level(), "<memory> a")
    tokenizer = extended(byte_level, scheme)
    with pytest.raises(
        ValueError, match="'Question: a' has no marked step, such as a line that begins with '<prefix_0>"
    ):
        encode_solution_tokens(tokenizer, "Question: a")
    with pytest.raises(ValueError, match="' ' has no step"):
        encode_solution_tokens(tokenizer, "Question: a\n ", question="a")
    with pytest.raises(ValueError, match="does not begin with the question 'b'"):
        encode_solution_tokens(tokenizer, "Question: a\n<memory> c", question="b")
    slow = ByT5Tokenizer()
    extend_tokenizer(slow, scheme)
    with pytest.raises(ValueError, match=r"\(ByT5Tokenizer\) has no offsets of tokens"):
        encode_solution_tokens(slow, "<memory> a")
