"""Random texts as ids, and which of their tokens attend to which, found token by token without the package."""

import random

import torch
from small_tokenizers import MODELS, byte_level, recurrent

from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer, step_token_ids
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


def deep_recurrent(vocab_size, **kwargs):
    """Prelude, loop and coda, rotary positions."""
    values = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_prelude_layers": 1,
        "num_recurrent_layers": 1,
        "num_coda_layers": 1,
        "num_recurrences": 3,
        "max_recurrences": 9,
        "input_injection": "add",
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        **kwargs,
    }
    return RecurrentDepthForCausalLM(RecurrentDepthConfig.llama_style(**values))


FAMILIES = {**{name: make for name, make in MODELS.items() if make is not recurrent}, "recurrent": deep_recurrent}


def extended(family, scheme=None, seed=None, **kwargs):
    """A model in eval mode with large random weights, so that attention matters, and its tokenizer."""
    tokenizer = byte_level()
    if seed is not None:
        torch.manual_seed(seed)
    model = FAMILIES[family](len(tokenizer), **kwargs)
    extend_tokenizer(tokenizer, scheme or StepScheme(2, 3), model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval(), tokenizer


def random_text(tokenizer, rng=random, question=True):
    """A list of ids: a question, then steps; some groups are cut short, lone, doubled or without a text."""
    groups = step_token_ids(tokenizer)
    kinds = [name for name in groups if name != "prefix" and groups[name]]
    marks = {token_id for ids in groups.values() for token_id in ids}
    ordinary = [token_id for token_id in range(3, len(tokenizer)) if token_id not in marks]

    def words(least, most):
        return [rng.choice(ordinary) for _ in range(rng.randint(least, most))]

    ids = words(2, 6) if question else []
    for _ in range(rng.randint(2, 5)):
        mark = groups["prefix"] + groups[rng.choice(kinds)]
        fault = rng.random()
        if fault < 0.15:
            mark = mark[: rng.randint(1, len(mark))]
        elif fault < 0.3:
            mark = [rng.choice(sorted(marks))]
        ids += mark + words(0 if fault > 0.8 else 1, 5)
    return ids


def steps_of(ids, groups):
    """(number of the step, whether it is a step token) of each token."""
    order = {}
    for name, group in groups.items():
        for place, token_id in enumerate(group):
            order[token_id] = (name, place)
    read, step, before = [], 0, None
    for token_id in ids:
        mark = order.get(token_id)
        if mark is not None:
            name, place = mark
            last_prefix = ("prefix", len(groups["prefix"]) - 1)
            follows = before == (name, place - 1) or (name != "prefix" and place == 0 and before == last_prefix)
            step += not follows
        read.append((step, mark is not None))
        before = mark
    return read


def sees(ids, groups, variant):
    """`(tokens, tokens)` and bool: whether the token of a row sees that of a column."""
    read = steps_of(ids, groups)
    seen = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for query, (own, is_mark) in enumerate(read):
        for key in range(query + 1):
            other, other_is_mark = read[key]
            allowed = is_mark or own == other
            if variant == "tokens":
                allowed = allowed or other == 0 or other_is_mark
            seen[query, key] = allowed
    return seen


def as_mask(seen, dtype=torch.float32):
    """A 4-D mask: 0 where a token attends, the smallest number elsewhere."""
    return torch.zeros(1, 1, *seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def padded(rows, side="left", pad=2):
    """Rows of different lengths -> (input_ids, attention_mask)."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    real = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[index, place], real[index, place] = torch.tensor(row), 1
    return ids, real
