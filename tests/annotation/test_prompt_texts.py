"""The prompts of the package and of the user."""

import pytest
from annotation_answers import question_rows

from memreason_hf.annotation import PromptTexts, parse_knowledge, parse_plan
from memreason_hf.annotation.prompt_texts import FILES, ORDERS, write_prompts
from memreason_hf.data.questions.schema import question_row


@pytest.mark.parametrize("order", ORDERS)
def test_the_prompts_of_the_package_show_the_model_all_that_it_needs(order):
    prompts = PromptTexts.load(order)
    row = question_row("Where is {answer} kept? Options: A. bank B. river", "A", options={"A": "bank", "B": "river"})
    plan = prompts.plan_prompt(row)
    assert "Where is {answer} kept? Options: A. bank B. river" in plan and "The right answer is: A. bank" in plan
    assert ("First write all [memory] steps" in plan) == (order == "memory_first")
    knowledge = prompts.knowledge_prompt("Why?", ["What is {question}?", "b"])
    assert knowledge.endswith("1. What is {question}?\n2. b") and "unknown" in knowledge


@pytest.mark.parametrize("order", ORDERS)
def test_the_examples_in_the_prompts_are_what_the_parser_reads(order):
    prompts = PromptTexts.load(order)
    example = prompts.plan.partition("An example")[2].partition("\n\n")[0].partition("\n")[2]
    kinds = [step.kind for step in parse_plan(example)]
    assert set(kinds) == {"memory", "reason"} and kinds == sorted(kinds)
    assert len(parse_knowledge(prompts.knowledge.partition("An example")[2].partition("\n")[2], 2)) == 2


def test_prompts_of_the_user_replace_those_of_the_package(tmp_path):
    paths = write_prompts(tmp_path / "mine")
    assert [path.name for path in paths] == list(FILES)
    for order in ORDERS:
        assert PromptTexts.load(order, tmp_path / "mine") == PromptTexts.load(order)
    (tmp_path / "mine" / "plan.txt").write_text("My plan for {question}{{question}}\n{options}")
    prompts = PromptTexts.load("natural", tmp_path / "mine")
    row = question_row("Is it?", "True")
    assert prompts.plan_prompt(row) == "My plan for Is it?{question}\nTrue. True\nFalse. False"
    assert prompts.knowledge == PromptTexts.load().knowledge
    # Another order has another file.
    assert PromptTexts.load("memory_first", tmp_path / "mine") == PromptTexts.load("memory_first")
    with pytest.raises(FileExistsError):
        write_prompts(tmp_path / "mine")


@pytest.mark.parametrize(
    "texts, words",
    [
        ({"plan": "Plan it."}, r"plan: the text lacks the field \{question\}, so the model would not see it"),
        ({"plan": "Plan {{question}}."}, "lacks the field"),
        ({"knowledge": "{question}"}, r"knowledge: the text lacks the field \{questions\}"),
        ({"plan": "{question} {anwser}"}, r"no field \{anwser\}. The fields are \{question\}, .*write \{\{anwser\}\}"),
    ],
)
def test_a_prompt_that_swallows_the_question_is_refused(tmp_path, texts, words):
    with pytest.raises(ValueError, match=words):
        PromptTexts(**{"plan": "{question}", "knowledge": "{questions}", **texts})
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    with pytest.raises(ValueError, match=f"prompts=.*{tmp_path.name}.*{words}"):
        PromptTexts.load(folder=tmp_path)


def test_a_folder_without_prompts_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has none of the files plan.txt, plan_memory_first.txt, knowledge.txt"):
        PromptTexts.load(folder=tmp_path)
    with pytest.raises(NotADirectoryError, match="must be a folder"):
        PromptTexts.load(folder=tmp_path / "missing")


def test_rows_of_load_questions_fit():
    (row,) = question_rows(1)
    assert row["answer"] in PromptTexts.load().plan_prompt(row)
