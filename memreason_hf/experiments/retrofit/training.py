"""
Trains the source, a Llama of four layers, and goes on with it as it is and with a loop.

    source = train_source(folder / "source", world, chains, recipe, seed=0)
    static = train_static(folder / "static", source, further, recipe, seed=0)
    looped = train_looped(folder / "looped", converted, further, recipe, seed=0)

Both go on over the same batches with the same schedule. The shared weights of the loop learn from the loss after one
recurrence alone, with a gradient norm of their own, so that they take the steps that the static model takes; a gate
and low-rank updates, which recurrences after the first have in addition, learn from the loss at a drawn depth.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, set_seed

from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.evaluation.mode import evaluation_mode
from memreason_hf.experiments.retrofit.world import Chains, World, collate
from memreason_hf.models.conversion.decoder import convert_decoder
from memreason_hf.training.scheduled.arguments import ScheduledTrainingArguments
from memreason_hf.training.scheduled.trainer import ScheduledTrainer
from modeling_recurrent import RecurrentDepthForCausalLM


# Layers before, in and after the loop.
PRELUDE, LOOP, CODA = 1, 2, 1
LEAST_RECURRENCES, BACKPROP_RECURRENCES, LORA_RANK = 4, 8, 32


@dataclass(frozen=True)
class Recipe:
    """
    What a run may vary.

    Attributes:
        source_steps, further_steps: training steps of the source, and of both models that go on with it.
        batch_size: rows of a training step.
        mean_recurrences, most_recurrences: of the drawn depths; none is below 4.
        gate: what the gates start at.
        gradients: `"separate"` or `"shared"`, see `recurrence_gradients` of the config.
    """

    source_steps: int = 1000
    further_steps: int = 800
    batch_size: int = 64
    mean_recurrences: int = 8
    most_recurrences: int = 32
    gate: float = 0.5
    gradients: str = "separate"


class ChainTrainer(ScheduledTrainer):
    """Trains a Llama, or one with a loop, on chains. The logits are computed where there are labels only."""

    usual_collator = "collate"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Both models divide their loss by num_items_in_batch.
        self.model_accepts_loss_kwargs = True

    def training_step(self, *args, **kwargs):
        # A recurrent-depth model trains short rows with this kernel on a CPU. With another one, the static model would
        # not take the same steps bit for bit.
        with sdpa_kernel(SDPBackend.MATH):
            return super().training_step(*args, **kwargs)

    def model_inputs(self, batch):
        if self.is_recurrent:
            return super().model_inputs(batch)
        labels = batch["shift_labels"]
        labelled = labels.ne(IGNORED_LABEL).any(0).nonzero().squeeze(1)
        labels = labels[:, labelled]
        return {**batch, "use_cache": False, "logits_to_keep": labelled, "labels": labels, "shift_labels": labels}


def train_source(folder: Path, world: World, chains: Chains, recipe: Recipe, *, seed: int) -> dict:
    """
    Trains the source from random weights, and saves it.

    Returns:
        `Training`, see `memreason_hf.experiments.retrofit.results`.
    """
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=world.vocab_size,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=PRELUDE + LOOP + CODA,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    schedule = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": min(100, recipe.source_steps // 10)}
    return _train(LlamaForCausalLM(config), folder, chains, recipe.source_steps, recipe, seed, schedule)


def train_static(folder: Path, source: Path, chains: Chains, recipe: Recipe, *, seed: int) -> dict:
    """Goes on with the source as it is, and saves it. Returns `Training`."""
    model = LlamaForCausalLM.from_pretrained(source)
    return _train(model, folder, chains, recipe.further_steps, recipe, seed, _schedule(recipe))


def convert_source(folder: Path, source: Path, recipe: Recipe, chains: Chains, *, seed: int) -> float:
    """
    Gives the source a loop, saves it, and compares what was saved with the source.

    Args:
        folder: of the converted model.
        chains: on which both are compared.
        seed: of the low-rank updates.

    Returns:
        The largest difference of a logit after one recurrence.
    """
    llama = LlamaForCausalLM.from_pretrained(source)
    set_seed(seed)
    model = convert_decoder(
        llama,
        prelude=PRELUDE,
        loop=LOOP,
        coda=CODA,
        num_recurrences=recipe.mean_recurrences,
        input_injection="gate",
        injection_gate_init=recipe.gate,
        recurrence_lora_rank=LORA_RANK,
        recurrence_lora_count=1,
        recurrence_gradients=recipe.gradients,
        recurrence_sampling="lognormal_poisson",
        recurrence_min=LEAST_RECURRENCES,
        recurrence_max=recipe.most_recurrences,
        backprop_recurrences=BACKPROP_RECURRENCES,
    )
    model.save_pretrained(folder)
    model = RecurrentDepthForCausalLM.from_pretrained(folder)
    input_ids = torch.from_numpy(chains.input_ids)
    with evaluation_mode(model), evaluation_mode(llama):
        return float((model(input_ids, num_recurrences=1).logits - llama(input_ids).logits).abs().max())


def train_looped(folder: Path, converted: Path, chains: Chains, recipe: Recipe, *, seed: int) -> dict:
    """Goes on with the converted source at drawn depths, and saves it. Returns `Training`."""
    model = AutoModelForCausalLM.from_pretrained(converted, trust_remote_code=False)
    return _train(model, folder, chains, recipe.further_steps, recipe, seed, _schedule(recipe), first_weight=1.0)


def _schedule(recipe):
    """Constant for half of the steps, then linear to 0."""
    decay = recipe.further_steps // 2
    kwargs = {"num_decay_steps": decay, "decay_type": "linear"}
    return {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": kwargs, "warmup_steps": 0}


def _train(model: PreTrainedModel, folder, chains, steps, recipe, seed, schedule, **settings):
    args = ScheduledTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=3e-3,
        adam_beta2=0.98,
        weight_decay=0.01,
        max_grad_norm=1.0,
        length_pool=1,
        save_strategy="no",
        logging_steps=100,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
        **schedule,
        **settings,
    )
    trainer = ChainTrainer(model=model, args=args, train_dataset=chains.dataset(), data_collator=collate)
    started = time.perf_counter()
    trainer.train()
    if trainer.interrupted:
        raise SystemExit(128 + trainer.interrupted_by)
    seconds = time.perf_counter() - started
    trainer.save_model()
    return {
        "steps": trainer.state.global_step,
        "tokens": trainer.state.global_step * recipe.batch_size * chains.input_ids.shape[1],
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": seconds,
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
    }
