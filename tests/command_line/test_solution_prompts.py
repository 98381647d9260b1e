"""A solution of a file comes with the prompt that the settings next to the file record."""

import json

import pytest

from memreason_hf.command_line.solution_text import SolutionTextArguments, read_solution_text
from memreason_hf.data.questions.prompts import PromptFormat


CHAT = {"chat_template": True, "system": "Be brief."}


@pytest.mark.parametrize(
    ("settings", "number", "format"),
    [
        ({"num_demonstrations": 0, "prompt": CHAT}, 0, PromptFormat(**CHAT)),
        ({"num_demonstrations": 3, "prompt": CHAT}, 3, PromptFormat(**CHAT, num_demonstrations=3)),
        # The prompt of the study, also for a model that was trained with another.
        ({"num_demonstrations": 0}, 0, PromptFormat()),
        (None, 0, None),
        ({"num_demonstrations": 0, "prompt": [1]}, 0, None),
    ],
)
def test_a_solution_comes_with_its_prompt(settings, number, format, tmp_path):
    path = tmp_path / "texts.jsonl"
    line = {"index": 0, "question": "Is it?", "text": "Question: Is it?\n<memory> It is.\n", "steps": []}
    line |= {"verdict": "wrong", "answer": None, "reference": "True", "is_truncated": False, "is_cut": False}
    path.write_text(json.dumps({**line, "num_tokens": 3}) + "\n")
    if settings is not None:
        path.with_name("texts.jsonl.settings.json").write_text(json.dumps(settings))
    source = read_solution_text(SolutionTextArguments(generations=str(path), index=0))
    assert (source.num_demonstrations, source.prompt_format) == (number, format)
