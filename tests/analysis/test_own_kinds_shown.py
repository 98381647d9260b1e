"""Kinds that a user names, from the rows of a data set to metrics, tables, pictures, pages and cards."""

import json

import evaluate
import pytest
import torch
from matplotlib.colors import to_hex
from small_tokenizers import byte_level, llama, recurrent

from memreason_hf.analysis.attention_figures import attention_figure
from memreason_hf.analysis.attention_maps import kind_shares, read_attention
from memreason_hf.analysis.kind_colours import KIND_COLOURS, kind_colours
from memreason_hf.analysis.solution_report import measure_solutions, solution_report
from memreason_hf.analysis.solution_tokens import encode_solution_tokens
from memreason_hf.data.questions.encoding import encode_solutions
from memreason_hf.evaluation.solutions.generation import generate_solutions
from memreason_hf.hub.cards.folders import ModelFolder
from memreason_hf.hub.cards.results import results_sections
from memreason_hf.metrics import metric_path
from memreason_hf.serving.demo.styles import style_sheet
from memreason_hf.steps import StepScheme, answer_step
from memreason_hf.steps.tokenization import extend_tokenizer


SCHEME = StepScheme(1, 2, kinds=("search", "compute_exactly"))
OPTIONS = [{"label": "True", "text": "True"}, {"label": "False", "text": "False"}]
ROWS = [
    {
        "question": f"Is {number} the answer?",
        "options": OPTIONS,
        "answer": str(number % 2 == 0),
        "steps": [{"kind": "search", "text": "the words"}, {"kind": "compute_exactly", "text": f"{number} of a step"}],
    }
    for number in range(3)
]


@pytest.fixture(scope="module", params=[llama, recurrent], ids=["llama", "recurrent"])
def extended(request):
    tokenizer = byte_level()
    torch.manual_seed(3)
    model = request.param(len(tokenizer))
    extend_tokenizer(tokenizer, SCHEME, model)
    with torch.no_grad():  # so that steps of the kinds are written
        model.get_output_embeddings().weight[tokenizer.convert_tokens_to_ids(["<search_0>", "<search_1>"])] *= 3
    return model.eval(), tokenizer


def test_from_rows_to_the_table(extended, tmp_path, monkeypatch):
    load = evaluate.load
    monkeypatch.setattr(evaluate, "load", lambda *a, **k: load(*a, cache_dir=str(tmp_path / "cache"), **k))
    model, tokenizer = extended
    rows, _ = encode_solutions(tokenizer, ROWS)
    assert {tokenizer.search_token_id, tokenizer.compute_exactly_token_id} <= set(rows[0]["input_ids"])
    generations = generate_solutions(model, tokenizer, ROWS, max_new_tokens=8)
    judged = {"match_option_text": False, "judge": "exact", "seed": 0}
    results = measure_solutions(generations, ROWS, SCHEME, **judged)
    assert results["reference_steps_by_kind"] == {"search": 3, "compute_exactly": 3, "answer": 3, "step": 0}
    assert list(results["departures_by_kind"]) == list(results["steps_by_kind"]) == list(SCHEME.all_kinds)
    recorded = [generation.recurrences for generation in generations]
    assert all(recorded) == hasattr(model.config, "num_recurrences")
    lines = solution_report(results, generations, title="t", max_new_tokens=8, judge="exact").splitlines()
    header = next(index for index, line in enumerate(lines) if line.startswith("steps"))
    table = lines[header : header + 4 + all(recorded)]
    assert len({len(line) for line in table}) == 1, "columns are aligned"
    assert table[0].split() == ["steps", "search", "compute_exactly", "answer", "step"]


def test_where_solutions_go_wrong(tmp_path):
    metric = evaluate.load(metric_path("step_attribution"), keep_in_memory=True, cache_dir=str(tmp_path))
    right = SCHEME.render([*ROWS[1]["steps"], answer_step("False")])
    wrong = right.replace("1 of", "2 of")
    results = metric.compute(predictions=[right, wrong], references=[right] * 2, scheme=SCHEME, judge="exact")
    assert results["departures_by_kind"] == {"search": 0, "compute_exactly": 1, "answer": 0, "step": 0}
    # A control: without the scheme its kinds are not known.
    results = metric.compute(predictions=[wrong], references=[right], judge="exact")
    assert results["departures_by_kind"] == {"memory": 0, "reason": 0, "answer": 0, "step": 1}


def test_pictures(extended):
    model, tokenizer = extended
    text = SCHEME.question_text("Is 1 the answer?") + SCHEME.render([*ROWS[1]["steps"], answer_step("False")])
    solution = encode_solution_tokens(tokenizer, text, question="Is 1 the answer?")
    assert [span.kind for span in solution.spans][-3:] == ["search", "compute_exactly", "answer"]
    shown = read_attention(model, solution.ids).select()[0]
    kinds = ("begin", "question", "search", "compute_exactly", "answer")
    assert kind_shares(shown.weights, solution.kinds()).kinds == tuple(k for k in kinds if k in solution.kinds())
    legend = attention_figure(solution, shown).axes[0].get_legend()
    colours = {text.get_text(): to_hex(line.get_color()) for text, line in zip(legend.get_texts(), legend.get_lines())}
    assert colours["search"] == KIND_COLOURS["memory"].lower()
    assert colours["compute_exactly"] == KIND_COLOURS["reason"].lower()


def test_a_text_with_random_marks_keeps_them(extended):
    scheme = StepScheme(1, 2, random_marks=True)
    tokenizer = byte_level()
    extend_tokenizer(tokenizer, scheme)
    # As a model may write it: not the marks that `render` draws for these texts.
    text = "Question: Is it?\n<prefix><random4_0><random4_1> a\n<prefix><random2_0><random2_1> b\n"
    solution = encode_solution_tokens(tokenizer, text)
    assert tokenizer.decode(solution.ids[-len("abc") * 4 :]).count("<random4_0><random4_1> a") == 1
    assert [span.kind for span in solution.spans] == ["question", "step", "step"]


def test_every_kind_has_a_colour_of_its_own():
    own = tuple(f"kind_{letter}" for letter in "abcdefg")
    colours = kind_colours((*own, "answer", "step"))
    assert len(set(colours.values())) == len(colours) == 13
    assert kind_colours() == KIND_COLOURS and list(kind_colours()) == list(KIND_COLOURS)
    mixed = kind_colours(("search", "memory", "answer", "step"))
    assert mixed["memory"] == KIND_COLOURS["memory"] != mixed["search"]
    css = style_sheet(4, SCHEME.all_kinds)
    assert f".k-compute_exactly {{ --k: {KIND_COLOURS['reason']}; }}" in css and ".k-memory" not in css


def test_the_card_lists_them(tmp_path):
    kinds = {"search": 3, "compute_exactly": 4, "answer": 5, "step": 0}
    summary = {
        "accuracy": 0.6,
        "accuracy_interval": [0.2, 0.9],
        "num_items": 5,
        "num_questions": 5,
        "num_invalid_answers": 1,
        **{f"{name}_by_kind": kinds for name in ("steps", "reference_steps", "departures")},
    }
    (tmp_path / "test.jsonl.summary.json").write_text(json.dumps(summary))
    (tmp_path / "test.jsonl.settings.json").write_text(json.dumps({"name": "strategy_qa", "split": "test"}))
    (section,) = results_sections(ModelFolder(tmp_path))
    header, _, *rows = section.lines[-1].splitlines()
    assert header.replace("\\", "").split(" | ")[1:4] == ["search", "compute_exactly", "answer"]
    assert [row.split(" | ")[1] for row in rows] == ["3", "3", "3"]
