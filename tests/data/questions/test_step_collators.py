"""Training rows against a construction from texts by brute force, and their batches."""

import random

import pytest
import torch
from datasets import Dataset
from small_tokenizers import TOKENIZERS, byte_level, word_level

from memreason_hf.data.chains.collator import ChainCollator
from memreason_hf.data.questions.demonstrations import Demonstrations
from memreason_hf.data.questions.encoding import StepCollator, encode_solutions
from memreason_hf.steps import Step, StepScheme, answer_step
from memreason_hf.steps.tokenization import encode_prompt, extend_tokenizer


SCHEMES = {
    "two_and_four": StepScheme(2, 4),
    "one_each": StepScheme(1, 1),
    "no_prefix": StepScheme(0, 2),
    "front": StepScheme(2, 0, layout="front"),
    "plan_first": StepScheme(2, 2, layout="plan_first"),
    "plan_only": StepScheme(1, 2, layout="plan_only"),
    "ordered": StepScheme(2, 2, ordered=True),
    "words": StepScheme(marks="words"),
    "none": StepScheme(marks="none"),
}
WORDS = ["the", "memory", "reason", "answer", "step", "of", "words", "is", "a", "prefix", "first", "gives"]


def make_items(count, seed):
    generator = random.Random(seed)

    def text(longest):
        return " ".join(generator.choices(WORDS, k=generator.randint(1, longest)))

    return [
        {
            "question": f"{text(9)}?",
            "options": [{"label": "True", "text": "True"}, {"label": "False", "text": "False"}],
            "answer": generator.choice(["True", "False"]),
            "steps": [
                {"kind": generator.choice(["memory", "reason", "step"]), "text": text(12)}
                for _ in range(generator.randint(1, 5))
            ],
        }
        for _ in range(count)
    ]


def extended(name="byte_level", scheme=SCHEMES["two_and_four"]):
    tokenizer = TOKENIZERS[name]()
    extend_tokenizer(tokenizer, scheme)
    return tokenizer


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("seed", [random.randrange(10**6)])
def test_rows_and_labels_against_whole_texts(scheme, seed):
    """With a byte-level tokenizer, pieces cut at line breaks and marks give the ids of the whole text."""
    tokenizer, items = extended(scheme=scheme), make_items(6, seed)
    dataset, report = encode_solutions(tokenizer, items)
    assert (report.num_items, report.num_rows, report.too_long) == (6, 6, [])
    assert report.longest == max(map(len, dataset["input_ids"]))
    for item, row in zip(items, dataset):
        solution = scheme.render([*(Step(**step) for step in item["steps"]), answer_step(item["answer"])])
        text = f"Question: {item['question']}\n{solution}</s>"
        assert tokenizer.decode(row["input_ids"]) == text
        assert row["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
        # A token has a label if the next token comes after the question and the first prefix tokens.
        front = len(f"Question: {item['question']}\n" + "".join(scheme.prefix_tokens))
        for position, label in enumerate(row["label_ids"]):
            following = row["input_ids"][position + 1 :]
            behind = len(tokenizer.decode(row["input_ids"][: position + 1])) >= front
            assert label == (following[0] if following and behind else -100)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_a_row_begins_with_the_prompt_of_test_time(name, scheme):
    tokenizer, items = extended(name, scheme), make_items(4, 3)
    demonstrations = Demonstrations(Dataset.from_list(make_items(5, 4)), 2)
    for shown in (None, demonstrations):
        dataset, _ = encode_solutions(tokenizer, items, demonstrations=shown)
        for item, row in zip(items, dataset):
            prompt = encode_prompt(tokenizer, item["question"], shown(item["question"]) if shown else ())
            assert row["input_ids"][: len(prompt)] == prompt
            assert row["label_ids"] == [-100] * (len(prompt) - 1) + row["input_ids"][len(prompt) :] + [-100]
            assert row["input_ids"][-1] == tokenizer.eos_token_id
            assert row["input_ids"].count(tokenizer.eos_token_id) == 1


def test_a_question_cannot_speak_in_special_tokens():
    tokenizer = extended()
    item = make_items(1, 5)[0] | {"question": "Is </s> <pad><memory_0> or <prefix_1> special?"}
    dataset, _ = encode_solutions(tokenizer, [item])
    row = dataset[0]
    end_of_prompt = row["label_ids"].index(next(label for label in row["label_ids"] if label != -100)) + 1
    special = set(tokenizer.all_special_ids)
    prefix = tokenizer.convert_tokens_to_ids(["<prefix_0>", "<prefix_1>"])
    assert [token for token in row["input_ids"][:end_of_prompt] if token in special] == prefix
    assert item["question"] in tokenizer.decode(row["input_ids"])


def test_too_long_is_refused_or_dropped_and_counted_but_never_cut():
    tokenizer, items = extended(), make_items(12, 6)
    whole, _ = encode_solutions(tokenizer, items)
    lengths = [len(ids) for ids in whole["input_ids"]]
    limit = sorted(lengths)[7]
    expected = [index for index, length in enumerate(lengths) if length > limit]
    assert 0 < len(expected) < 12
    with pytest.raises(ValueError) as refusal:
        encode_solutions(tokenizer, items, max_length=limit)
    message = str(refusal.value)
    assert f"{len(expected)} of 12 training items are longer than {limit} tokens" in message
    assert f"the longest has {max(lengths)}" in message and "too_long=drop" in message
    dataset, report = encode_solutions(tokenizer, items, max_length=limit, too_long="drop")
    assert report.too_long == expected
    assert report.num_rows == len(dataset) == 12 - len(expected)
    assert f"{len(expected)} dropped" in report.describe()
    assert dataset["input_ids"] == [ids for ids in whole["input_ids"] if len(ids) <= limit]
    with pytest.raises(ValueError, match="12 of 12 training items"):
        encode_solutions(tokenizer, items, max_length=3, too_long="drop")


def test_what_cannot_be_encoded_is_named():
    items = make_items(3, 7)
    with pytest.raises(ValueError, match="no scheme of steps"):
        encode_solutions(byte_level(), items)
    lacking = byte_level()
    extend_tokenizer(lacking, StepScheme(1, 1))
    lacking.init_kwargs["step_scheme"] = StepScheme(2, 4).to_dict()
    with pytest.raises(ValueError, match="lacks 18 of the 18 tokens"):
        encode_solutions(lacking, items)
    tokenizer = extended()
    items[1]["steps"][0]["text"] = "one line\nanother"
    with pytest.raises(ValueError, match=r"Training item 1: .* holds a newline"):
        encode_solutions(tokenizer, items)
    with pytest.raises(ValueError, match="no training items"):
        encode_solutions(tokenizer, [])
    with pytest.raises(ValueError, match="too_long='cut'"):
        encode_solutions(tokenizer, items, too_long="cut")
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        encode_solutions(tokenizer, items[:1])


def test_batches_are_padded_on_the_right_to_their_own_longest_row():
    tokenizer = extended()
    dataset, _ = encode_solutions(tokenizer, make_items(9, 8))
    rows = sorted(dataset, key=lambda row: len(row["input_ids"]))
    for chosen in (rows[:3], rows[4:8], rows[2:3]):
        batch = StepCollator(tokenizer)(chosen)
        width = len(chosen[-1]["input_ids"])
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        for index, row in enumerate(chosen):
            length = len(row["input_ids"])
            padding = width - length
            assert batch["input_ids"][index].tolist() == row["input_ids"] + [tokenizer.pad_token_id] * padding
            assert batch["shift_labels"][index].tolist() == row["label_ids"] + [-100] * padding
            assert mask[index].tolist() == [1] * length + [0] * padding
    assert "attention_mask" not in StepCollator(tokenizer)(rows[2:3])


def test_a_tokenizer_without_padding_is_filled_up_with_the_end_of_text():
    tokenizer = extended()
    tokenizer.pad_token = None
    dataset, _ = encode_solutions(tokenizer, make_items(4, 9))
    batch = StepCollator(tokenizer)(list(dataset))
    filled = batch["attention_mask"] == 0
    assert filled.any() and (batch["input_ids"][filled] == tokenizer.eos_token_id).all()
    # The end of the solution still has a label.
    assert all(tokenizer.eos_token_id in labels for labels in batch["shift_labels"].tolist())
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a padding nor an end token"):
        StepCollator(tokenizer)


def test_both_collators_share_the_layout_of_a_batch():
    """The same rows, padded on the other side."""
    tokenizer = word_level()
    extend_tokenizer(tokenizer, StepScheme(1, 1))
    rows = list(encode_solutions(tokenizer, make_items(3, 10))[0])
    left = ChainCollator(tokenizer.pad_token_id, "prefix")(rows)
    right = StepCollator(tokenizer)(rows)
    for name in left:
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            assert torch.equal(left[name][index, -length:], right[name][index, :length])
