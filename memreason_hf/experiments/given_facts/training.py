"""
Training of the experiment's models.

    trainer = prepare_run(MODELS["steps_fixed"], "runs/given_facts/steps_fixed", seed=0)
    trainer.train()
"""

import numpy as np
from datasets import concatenate_datasets
from transformers import set_seed

from memreason_hf.data.chains.collator import ChainCollator
from memreason_hf.experiments.given_facts.models import GivenModel
from memreason_hf.experiments.given_facts.world import draw_questions, draw_world, encode_rows, make_tokenizer
from memreason_hf.experiments.training import small_run_arguments
from memreason_hf.models.recurrent_models import make_model
from memreason_hf.steps.attention import set_step_attention
from memreason_hf.training.chains.trainer import RecurrentTrainer


# The most hops in training; twice as many are tested.
TRAINED_HOPS = 6
TEST_HOPS = 2 * TRAINED_HOPS
# Between the parts of the data, so that no part shares its draws with another.
LEARNED, TRAIN, TEST, LIES = range(4)


def learned_world(seed: int) -> np.ndarray:
    """The world whose facts models learn; questions with a world of their own never see it."""
    return draw_world(np.random.default_rng([seed, LEARNED]))


def prepare_run(
    model: GivenModel,
    output_dir: str,
    *,
    seed: int,
    max_steps: int | None = None,
    batch_size: int | None = None,
) -> RecurrentTrainer:
    """
    The trainer of a model; its tokenizer is `trainer.processing_class`.

    Args:
        model: one of `MODELS`.
        output_dir: folder of the model.
        seed: of the worlds, the questions, the weights, the batches and the depths.
        max_steps, batch_size: override the settings of the model.
    """
    args = small_run_arguments(output_dir, model.training, seed=seed, max_steps=max_steps, batch_size=batch_size)
    tokenizer = make_tokenizer()
    rows = _draw_rows(model, tokenizer, args.max_steps * args.per_device_train_batch_size, seed)
    set_seed(seed)
    network = make_model({"style": "gpt2", **model.model}, tokenizer)
    if model.writes_steps:
        set_step_attention(network, tokenizer, "tokens")
    return RecurrentTrainer(
        model=network,
        args=args,
        train_dataset=rows,
        data_collator=ChainCollator(tokenizer.pad_token_id, args.supervision),
        processing_class=tokenizer,
    )


def _draw_rows(model, tokenizer, num_rows, seed):
    """As many rows as training takes: it sees none twice."""
    generator = np.random.default_rng([seed, TRAIN])
    num_fresh = round(model.fresh_share * num_rows)
    parts = []
    for number, world in ((num_fresh, None), (num_rows - num_fresh, learned_world(seed))):
        if number:
            questions = draw_questions(range(1, TRAINED_HOPS + 1), number, generator, world)
            parts.append(encode_rows(questions, tokenizer, writes_steps=model.writes_steps, generator=generator))
    return concatenate_datasets(parts)
