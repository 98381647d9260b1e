"""The steps of the published texts."""

import json
from collections import Counter

import pytest
from paths import PUBLISHED

from memreason_hf.steps import StepScheme


COUNTS = {
    "commonsenseqa_agent_llama-2-7b-chat.json": {"memory": 1148, "reason": 5596, "answer": 1200},
    "stratgeqa_agent_llama-2-7b-chat.json": {"memory": 1728, "reason": 1300, "answer": 685},
    "truthfulqa_agent_llama-2-7b-chat.json": {"memory": 304, "reason": 722, "answer": 164},
}


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the published texts in ../shared/data/published_outputs")
@pytest.mark.parametrize("scheme", [StepScheme(2, 4), StepScheme(0, 1)], ids=str)
@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_the_published_texts(name, scheme):
    items = json.loads((PUBLISHED / name).read_text(encoding="utf-8"))
    counts = Counter(step.kind for item in items for step in scheme.parse(item["generated_text"]))
    assert {kind: counts[kind] for kind in COUNTS[name]} == COUNTS[name]
