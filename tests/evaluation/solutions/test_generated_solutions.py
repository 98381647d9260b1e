"""Generated solutions: they do not depend on the batch, are judged and written, and a file is continued."""

import json
import types
from dataclasses import replace

import pytest
import torch
from small_tokenizers import MODELS, byte_level, llama, sentence_piece, word_level

from memreason_hf.evaluation.solutions.generation import (
    Continuation,
    context_length,
    continue_greedily,
    generate_solutions,
    left_padded,
)
from memreason_hf.steps import Step, StepScheme
from memreason_hf.steps.tokenization import encode_prompt, extend_tokenizer


OPTIONS = [{"label": "True", "text": "True"}, {"label": "False", "text": "False"}]
QUESTIONS = [
    "Is it?",
    "Is the memory of a reason the answer to the first step of all?",
    "The reason is a memory?",
    "Is </s> the <memory_0> a step?",
    "Is it?",
    "a " * 30 + "step?",
    "Why?",
]
ROWS = [{"question": question, "options": OPTIONS, "answer": "True"} for question in QUESTIONS]


def vivid(model, seed=0):
    """Random weights, so large that the generated text depends on the whole prompt."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.4, generator=generator)
    return model


def extended(name="llama", scheme=None, **kwargs):
    tokenizer = byte_level()
    model = vivid(MODELS[name](len(tokenizer), **kwargs))
    extend_tokenizer(tokenizer, scheme or StepScheme(2, 2), model)
    return model, tokenizer


class ScriptedModel:
    """Continues the prompt of the n-th question with the n-th text."""

    device = torch.device("cpu")
    generation_config = types.SimpleNamespace(eos_token_id=None)
    training = True

    def __init__(self, tokenizer, texts, rows=ROWS, context=None):
        self.tokenizer, self.calls = tokenizer, []
        config = types.SimpleNamespace(max_position_embeddings=context)
        self.config = types.SimpleNamespace(get_text_config=lambda: config)
        self.answers = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        self.prompts = [encode_prompt(tokenizer, row["question"]) for row in rows]

    def get_input_embeddings(self):
        return types.SimpleNamespace(weight=torch.zeros(len(self.tokenizer), 1))

    def modules(self):
        return [self]

    def eval(self):
        self.training = False

    def generate(self, input_ids, attention_mask, max_new_tokens, pad_token_id, eos_token_id, **kwargs):
        assert not self.training
        self.calls.append((input_ids.shape, max_new_tokens, kwargs))
        rows = []
        for ids, mask in zip(input_ids.tolist(), attention_mask.tolist()):
            padding = mask.count(0)
            assert mask == [0] * padding + [1] * (len(mask) - padding) and ids[:padding] == [pad_token_id] * padding
            rows.append(self.answers[self.prompts.index(ids[padding:])][:max_new_tokens])
        longest = max(map(len, rows))
        new = [row + [pad_token_id] * (longest - len(row)) for row in rows]
        return torch.cat([input_ids, torch.tensor(new)], dim=1)


def scripted(texts, tokenizer=None, scheme=None, **kwargs):
    tokenizer = tokenizer or byte_level()
    extend_tokenizer(tokenizer, scheme or StepScheme(2, 2))
    return ScriptedModel(tokenizer, texts, **kwargs), tokenizer


M, A = "<memory_0><memory_1>", "<answer_0><answer_1>"
P = "<prefix_0><prefix_1>"
DISTINCT = [row for index, row in enumerate(ROWS) if index != 4]


@pytest.mark.parametrize("name", MODELS)
def test_texts_do_not_depend_on_the_batch(name):
    model, tokenizer = extended(name)
    alone = generate_solutions(model, tokenizer, ROWS, batch_size=1, max_new_tokens=12)
    for batch_size in (3, 16):
        assert generate_solutions(model, tokenizer, ROWS, batch_size=batch_size, max_new_tokens=12) == alone
    assert [generation.index for generation in alone] == list(range(len(ROWS)))
    # A control: texts differ between questions.
    texts = {generation.text.split("\n", 1)[1] for generation in alone}
    assert len(texts) > 3


@pytest.mark.parametrize("name", MODELS)
def test_greedy_search_agrees_with_a_loop_over_forward(name):
    model, tokenizer = extended(name)
    model.generation_config.temperature = 0.3
    model.generation_config.do_sample = True
    model.generation_config.repetition_penalty = 3.0
    generations = generate_solutions(model, tokenizer, ROWS, batch_size=4, max_new_tokens=8)
    for generation, row in list(zip(generations, ROWS))[:4]:
        ids = encode_prompt(tokenizer, row["question"])
        start = len(ids)
        with torch.no_grad():
            while len(ids) < start + 8 and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
                ids.append(int(model.eval()(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert generation.num_tokens == len(ids) - start
        kept = [id_ for id_ in ids[start - 2 :] if id_ not in (0, 1, 2)]
        assert generation.text == f"Question: {row['question']}\n" + tokenizer.decode(kept)


def test_the_mode_of_the_model_is_restored():
    for training in (True, False):
        model, tokenizer = extended()
        model.train(training)
        generate_solutions(model, tokenizer, ROWS[:1], max_new_tokens=2)
        assert model.training is training


def test_texts_are_parsed_and_judged():
    texts = [
        f"{M} a fact.\n{P}{A} The answer is: true\n</s>",
        f"{M} a fact.\n{P}{A} The answer is: False\n</s>",
        "no marks\nThe answer is: perhaps\n</s>",
        f"{M} a fact that does not end",
        f"{M} a\n{P}<answer_0>",
        f"{A} The answer is: True\n</s>",
    ]
    model, tokenizer = scripted(texts, rows=DISTINCT)
    generations = generate_solutions(model, tokenizer, DISTINCT, batch_size=4, max_new_tokens=200)
    assert [generation.verdict for generation in generations] == [
        "correct",
        "wrong",
        "wrong",
        "wrong",
        "wrong",
        "correct",
    ]
    assert [generation.answer for generation in generations] == ["True", "False", None, None, None, "True"]
    assert [generation.is_truncated for generation in generations] == [False] * 4 + [True, False]
    assert [generation.is_cut for generation in generations] == [False] * 3 + [True, True, False]
    assert generations[0].steps == [Step("memory", "a fact."), Step("answer", "The answer is: true")]
    assert generations[0].text == f"Question: Is it?\n{P}{M} a fact.\n{P}{A} The answer is: true\n"
    assert generations[0].num_tokens == len(tokenizer(texts[0], add_special_tokens=False)["input_ids"])
    assert generations[3].text.startswith("Question: Is </s> the <memory_0> a step?\n")
    assert generations[2].steps == [Step("step", f"{P}no marks"), Step("step", "The answer is: perhaps")]
    assert generations[4].steps == [Step("memory", "a")]
    # The longest prompts come first, with greedy search.
    widths = [shape[1] for shape, _, _ in model.calls]
    assert widths == sorted(widths, reverse=True) and [shape[0] for shape, _, _ in model.calls] == [4, 2]
    assert model.calls[0][2]["do_sample"] is False and model.training is True


def test_the_text_of_an_option_counts_only_on_request():
    rows = [{**ROWS[0], "options": [{"label": "A", "text": "bank"}, {"label": "B", "text": "mall"}], "answer": "B"}]
    model, tokenizer = scripted([f"{A} The answer is: mall\n</s>"], rows=rows)
    (strict,) = generate_solutions(model, tokenizer, rows)
    (matched,) = generate_solutions(model, tokenizer, rows, match_option_text=True)
    assert (strict.answer, strict.is_correct) == (None, False) and (matched.answer, matched.is_correct) == ("B", True)


@pytest.mark.parametrize("make", [sentence_piece, word_level])
def test_other_tokenizers(make):
    rows = [{"question": "the first reason", "options": OPTIONS, "answer": "True"}]
    tokenizer = make()
    extend_tokenizer(tokenizer, StepScheme(1, 1))
    model = ScriptedModel(tokenizer, ["<memory> the reason\n<prefix><answer> the answer\n</s>"], rows=rows)
    (generation,) = generate_solutions(model, tokenizer, rows)
    assert generation.steps == [Step("memory", "the reason"), Step("answer", "the answer")]


def test_texts_end_with_the_context_and_are_marked_as_cut():
    tokenizer = byte_level()
    extend_tokenizer(tokenizer, StepScheme(2, 2))
    lengths = [len(encode_prompt(tokenizer, row["question"])) for row in DISTINCT]
    context = max(lengths) + 4
    texts = [f"{A} a\n</s>"] * len(DISTINCT)
    model = ScriptedModel(tokenizer, texts, rows=DISTINCT, context=context)
    generations = generate_solutions(model, tokenizer, DISTINCT, batch_size=16, max_new_tokens=20)
    # Prompts with less room than max_new_tokens come alone, and shorten no other text.
    tight = [length for length in lengths if context - length < 20]
    assert [(shape[0], limit) for shape, limit, _ in model.calls] == [
        *((1, context - length) for length in sorted(tight, reverse=True)),
        (len(lengths) - len(tight), 20),
    ]
    solution = len(tokenizer(texts[0], add_special_tokens=False)["input_ids"])
    assert (
        [generation.is_cut for generation in generations]
        == [min(20, context - length) < solution for length in lengths]
        == [length == max(lengths) for length in lengths]
    )
    assert all(generation.num_tokens <= min(20, context - length) for generation, length in zip(generations, lengths))
    model = ScriptedModel(tokenizer, texts, rows=DISTINCT, context=max(lengths))
    with pytest.raises(
        ValueError, match=rf"1 of 6 prompts have no room .* context of {max(lengths)} tokens; the first"
    ):
        generate_solutions(model, tokenizer, DISTINCT)


def test_the_context_of_models():
    assert context_length(llama(10)) == 2048
    assert context_length(MODELS["gpt2"](10)) == 512
    from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM

    for kind, expected in (("none", None), ("learned", 64)):
        config = RecurrentDepthConfig.gpt2_style(
            vocab_size=9,
            hidden_size=8,
            num_attention_heads=2,
            max_position_embeddings=64,
            position_embedding_type=kind,
        )
        assert context_length(RecurrentDepthForCausalLM(config)) == expected


@pytest.mark.parametrize("name", ["gpt2", "recurrent"])
def test_learned_positions_are_not_exceeded(name):
    model, tokenizer = extended(name)
    context = context_length(model)
    rows = [{**ROWS[0], "question": "a " * 200}, ROWS[1]]
    prompt = len(encode_prompt(tokenizer, rows[0]["question"]))
    generations = generate_solutions(
        model, tokenizer, rows, max_new_tokens=max(context - prompt, 1) + 50 if context else 8
    )
    if context:
        assert prompt + generations[0].num_tokens <= context
    assert len(generations) == 2


def test_arguments_reach_generate():
    model, tokenizer = extended("recurrent")
    shallow = generate_solutions(model, tokenizer, ROWS, max_new_tokens=6, num_recurrences=1)
    deep = generate_solutions(model, tokenizer, ROWS, max_new_tokens=6, num_recurrences=5)
    assert [g.text for g in shallow] != [g.text for g in deep]


def test_prompts_of_any_ids_are_continued():
    """Any ids can be continued, such as a question followed by given steps."""
    model, tokenizer = extended("recurrent")
    model.generation_config.do_sample = True
    prompts = {7: [5, 6, 7], 3: [9] * 11, 5: [8]}
    batches = list(continue_greedily(model, tokenizer, prompts, batch_size=2, max_new_tokens=6, num_recurrences=3))
    assert [[new.index for new in batch] for batch in batches] == [[3, 7], [5]]
    seen = set()
    for new in (new for batch in batches for new in batch):
        ids = list(prompts[new.index])
        with torch.no_grad():
            while len(ids) < len(prompts[new.index]) + 6 and ids[-1] != tokenizer.eos_token_id:
                ids.append(int(model(torch.tensor([ids]), num_recurrences=3).logits[0, -1].argmax()))
        assert new.ids == ids[len(prompts[new.index]) :]
        assert new.is_cut == (new.ids[-1] != tokenizer.eos_token_id)
        assert sum(recurrences for _, recurrences in new.recurrences.values()) == 3 * len(new.ids)
        seen.add(tuple(new.ids))
    assert len(seen) == 3
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        next(continue_greedily(model, tokenizer, prompts, batch_size=0, max_new_tokens=6))


def test_the_end_of_a_text_is_not_part_of_it():
    assert Continuation(0, [5, 6, 1], is_cut=False).text_ids == [5, 6]
    assert Continuation(0, [5, 6, 1], is_cut=True).text_ids == [5, 6, 1]


def test_rows_are_padded_on_the_left():
    batch = left_padded([[3, 4, 5], [6]], 2, "cpu")
    assert batch["input_ids"].tolist() == [[3, 4, 5], [2, 2, 6]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_demonstrations_come_before_the_question():
    model, tokenizer = scripted([f"{A} The answer is: True\n</s>"], rows=ROWS[:1])
    shown = [("the first?", [{"kind": "memory", "text": "b"}, {"kind": "answer", "text": "The answer is: False"}])]
    model.prompts = [encode_prompt(tokenizer, "Is it?", shown)]
    (generation,) = generate_solutions(model, tokenizer, ROWS[:1], demonstrations=lambda question: shown)
    # They belong neither to the text in the file nor to the solution that is judged.
    assert generation.text.startswith(f"Question: Is it?\n{P}{A}") and generation.is_correct


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_is_continued(tmp_path):
    path = tmp_path / "runs" / "generations.jsonl"
    model, tokenizer = extended()
    arguments = {"batch_size": 2, "max_new_tokens": 6, "settings": {"model": "m"}}
    expected = generate_solutions(model, tokenizer, ROWS, path=path, **arguments)
    lines = lines_of(path)
    assert len(lines) == len(ROWS) and {line["index"] for line in lines} == set(range(len(ROWS)))
    first = next(line for line in lines if line["index"] == 0)
    assert list(first)[:5] == ["index", "question", "text", "steps", "verdict"] and first["reference"] == "True"
    assert first["steps"] == [{"kind": step.kind, "text": step.text} for step in expected[0].steps]

    # Killed after three and a half lines. The two equal questions differ in their index.
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:3]) + whole[3][:40])
    batch_sizes = []
    original = model.generate
    model.generate = lambda *args, **kwargs: batch_sizes.append(len(kwargs["input_ids"])) or original(*args, **kwargs)
    assert generate_solutions(model, tokenizer, ROWS, path=path, **arguments) == expected
    assert sum(batch_sizes) == len(ROWS) - 3
    assert len(lines_of(path)) == len(ROWS)

    # A complete file: the model does not run. With fewer rows, the other lines stay.
    batch_sizes.clear()
    assert generate_solutions(model, tokenizer, ROWS, path=path, **arguments) == expected
    assert generate_solutions(model, tokenizer, ROWS[:2], path=path, **arguments) == expected[:2]
    assert batch_sizes == [] and len(lines_of(path)) == len(ROWS)


def test_a_continued_file_is_judged_by_the_answers_of_today(tmp_path):
    path = tmp_path / "generations.jsonl"
    tokenizer = extended()[1]
    model = ScriptedModel(tokenizer, ["The answer is: True", "The answer is: False"])
    arguments = {"batch_size": 2, "max_new_tokens": 40, "path": path, "settings": {"model": "m"}}
    before = generate_solutions(model, tokenizer, ROWS[:2], **arguments)
    assert [one.is_correct for one in before] == [True, False]
    corrected = [ROWS[0], {**ROWS[1], "answer": "False"}]
    after = generate_solutions(model, tokenizer, corrected, **arguments)
    assert after[0] == before[0] and after[1] == replace(before[1], verdict="correct", reference="False")
    # The last line of an item counts, and nothing is added when nothing changes.
    assert [line["reference"] for line in lines_of(path) if line["index"] == 1] == ["True", "False"]
    assert generate_solutions(model, tokenizer, corrected, **arguments) == after and len(lines_of(path)) == 3


def test_an_interrupted_run_keeps_its_batches(tmp_path):
    path = tmp_path / "generations.jsonl"
    model, tokenizer = extended()
    original, calls = model.generate, []

    def interrupted(*args, **kwargs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return original(*args, **kwargs)

    model.generate = interrupted
    model.train()
    with pytest.raises(KeyboardInterrupt):
        generate_solutions(model, tokenizer, ROWS, path=path, batch_size=2, max_new_tokens=4)
    assert len(lines_of(path)) == 4 and model.training


def test_files_with_other_contents_are_refused(tmp_path):
    path = tmp_path / "generations.jsonl"
    model, tokenizer = extended()
    settings = {"model": "m", "max_new_tokens": 4}
    generate_solutions(model, tokenizer, ROWS[:3], path=path, max_new_tokens=4, settings=settings)
    content = path.read_text()

    def again(rows=ROWS[:3], settings=settings):
        generate_solutions(model, tokenizer, rows, path=path, max_new_tokens=4, settings=settings)

    with pytest.raises(ValueError, match="was written with model='m', now it is 'other'"):
        again(settings={**settings, "model": "other"})
    with pytest.raises(ValueError, match="was written with seed=None, now it is 3"):
        again(settings={**settings, "seed": 3})
    with pytest.raises(ValueError, match=r"line \d: item 1 is 'Is the memory.* 'Is it\?' in the data"):
        again(rows=[ROWS[0], ROWS[0], ROWS[2]])
    for line, message in (
        ("{", "line 1: not JSON"),
        ("[]", "line 1: lacks index"),
        ("3", "line 1: lacks index"),
        ('{"index": 0}', "lacks question"),
        (content.splitlines()[0].replace('"index": ', '"index": -'), "index=-[1-9] must be at least 0"),
    ):
        path.write_text(f"{line}\n{content}")
        with pytest.raises(ValueError, match=message):
            again()
    path.write_text(content)
    again()
    kept = path.with_name(path.name + ".settings.json").read_text()
    for damaged, message in (("{", "is not a JSON file.*Remove the file"), ("[]", "must hold an object")):
        path.with_name(path.name + ".settings.json").write_text(damaged)
        with pytest.raises(ValueError, match=message):
            again()
    path.with_name(path.name + ".settings.json").write_text(kept)
    again()
    # Settings without their lines do not matter.
    path.unlink()
    again(settings={**settings, "model": "other"})
    again(settings={**settings, "model": "other"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": []}, "no rows"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    model, tokenizer = extended()
    with pytest.raises(ValueError, match=message):
        generate_solutions(model, tokenizer, **{"rows": ROWS, **arguments})


def test_a_tokenizer_that_does_not_fit_is_refused():
    tokenizer = byte_level()
    model = llama(len(tokenizer))
    with pytest.raises(ValueError, match="has no scheme of steps"):
        generate_solutions(model, tokenizer, ROWS)
    extend_tokenizer(tokenizer, StepScheme(2, 2))
    with pytest.raises(
        ValueError,
        match=rf"ids up to {len(tokenizer) - 1}, but the model has only {len(tokenizer) - 10} embedding rows",
    ):
        generate_solutions(model, tokenizer, ROWS)
