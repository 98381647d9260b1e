"""Engines that keep keys and values by slot: continuous batching, and a small one that knows nothing of loops."""

import contextlib
import gc

import torch
from recurrent_models import lively_model
from transformers import ContinuousBatchingConfig, GenerationConfig

from modeling_recurrent.slots_recurrent import KeyValueSlots


NEW_TOKENS = 6
# transformers 5.17 calls it by its older name.
_PAGE_SIZE = "page_size" if hasattr(ContinuousBatchingConfig(), "page_size") else "block_size"


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


def batching_config(**settings):
    """By default, prompts span blocks and are cut into chunks, and more requests come than fit into the cache."""
    return ContinuousBatchingConfig(**{_PAGE_SIZE: 8, "num_blocks": 16, "max_batch_tokens": 16, **settings})


def batched_texts(model, rows, generation=None, **settings):
    """The new tokens that continuous batching writes for each row; `settings` are those of `batching_config`."""
    with frozen_heap():
        outputs = model.generate_batch(
            [row.tolist() for row in rows],
            generation_config=generation or greedy_config(),
            continuous_batching_config=batching_config(**settings),
            progress_bar=False,
        )
    errors = {output.error for output in outputs.values()} - {None}
    assert not errors and len(outputs) == len(rows), errors
    return [output.generated_tokens for output in outputs.values()]


def varied_model(style, extra, rows):
    """A model that writes other texts if all recurrences share a slot, as in a cache that keeps the last one only."""
    # Tied embeddings repeat the last token, and closed gates the first recurrence.
    fields = {"tie_word_embeddings": False, "injection_gate_init": 0.8, **extra}
    for _ in range(100):
        model = lively_model(style, fields)
        texts, others = greedy_texts(model, rows), greedy_texts(model, rows, cache_recurrences="last")
        # One text alone can differ here and not in an engine, which shares a slot in another order.
        if sum(text != other for text, other in zip(texts, others)) > len(rows) // 2:
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


def _share(slots):
    """All recurrences of a layer share the slot of the first one; returns the indices from before."""
    before = [slot.layer_idx for slot in slots]
    for index, slot in enumerate(slots):
        recurrence = (index - slot.config.num_prelude_layers) // slots.num_looped
        if 0 <= recurrence < slots.num_recurrences:
            slot.layer_idx -= recurrence * slots.num_looped
    return before


@contextlib.contextmanager
def shared_slots(model):
    """The control: all recurrences of a layer share one slot, so that an engine gives other texts."""
    slots = model.model.key_value_slots
    before = _share(slots)
    try:
        yield
    finally:
        for slot, layer_idx in zip(slots, before, strict=True):
            slot.layer_idx = layer_idx


def share_all_slots(setattr_=setattr):
    """The same control for all models that are made from now on."""
    start = KeyValueSlots.__init__

    def start_shared(self, *args, **kwargs):
        start(self, *args, **kwargs)
        _share(self)

    setattr_(KeyValueSlots, "__init__", start_shared)
