"""Engines that keep keys and values by slot: continuous batching, and a small one that knows nothing of loops."""

import contextlib
import gc

import torch
from recurrent_models import lively_model
from transformers import ContinuousBatchingConfig, GenerationConfig


NEW_TOKENS = 6


def greedy_config(**fields):
    """Greedy decoding of `NEW_TOKENS` tokens without an end."""
    return GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0, **fields)


def greedy_texts(model, rows, **kwargs):
    """The new tokens that `generate` writes for each row alone."""
    config = greedy_config()
    outputs = [
        model.generate(row[None], generation_config=config, attention_mask=torch.ones_like(row[None]), **kwargs)
        for row in rows
    ]
    return [output[0, len(row) :].tolist() for output, row in zip(outputs, rows, strict=True)]


def batched_texts(model, rows, generation=None, **settings):
    """
    The new tokens that continuous batching writes for each row. By default, prompts span blocks and are cut into
    chunks, and there are more requests than fit into the cache at once.
    """
    sizes = {"page_size": 8, "num_blocks": 16, "max_batch_tokens": 16, **settings}
    with frozen_heap():
        outputs = model.generate_batch(
            [row.tolist() for row in rows],
            generation_config=generation or greedy_config(),
            continuous_batching_config=ContinuousBatchingConfig(**sizes),
            progress_bar=False,
        )
    errors = {output.error for output in outputs.values()} - {None}
    assert not errors and len(outputs) == len(rows), errors
    return [output.generated_tokens for output in outputs.values()]


def varied_model(style, extra, rows):
    """A model that writes other texts if all recurrences share a slot, as in a cache that keeps the last one only."""
    # Tied embeddings repeat the last token, and closed gates the first recurrence.
    fields = {"tie_word_embeddings": False, "injection_gate_init": 0.8, **extra}
    for _ in range(50):
        model = lively_model(style, fields)
        if greedy_texts(model, rows) != greedy_texts(model, rows, cache_recurrences="last"):
            return model
    raise AssertionError(f"{style} {extra}: no model whose texts depend on its slots")


@contextlib.contextmanager
def frozen_heap():
    """Keeps the collections of a manager of continuous batching from walking over all modules of a test run."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def shared_slots(model):
    """The control: all recurrences of a layer share one slot, so that an engine gives other texts."""
    config, slots = model.config, model.model.key_value_slots
    loop = range(config.num_prelude_layers, len(slots) - config.num_coda_layers)
    before = [slots[index].layer_idx for index in loop]
    for index in loop:
        slots[index].layer_idx = loop.start + (index - loop.start) % config.num_recurrent_layers
    try:
        yield
    finally:
        for index, layer_idx in zip(loop, before, strict=True):
            slots[index].layer_idx = layer_idx
