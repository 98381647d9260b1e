"""
Training of the test bed's models.

    trainer = prepare_testbed_run("steps_recurrent", "runs/testbed/steps_recurrent", world, seed=42)
    trainer.train()
"""

import time

from transformers import TrainerCallback, set_seed

from memreason_hf.data.chains.collator import ChainCollator
from memreason_hf.experiments.testbed.models import MODELS
from memreason_hf.experiments.testbed.rows import WrittenWorld
from memreason_hf.experiments.training import small_run_arguments
from memreason_hf.models.recurrent_models import make_model
from memreason_hf.training.chains.curriculum import CurriculumArguments, CurriculumCallback
from memreason_hf.training.chains.trainer import RecurrentTrainer


class TimeLimit(TrainerCallback):
    """
    Ends training after a number of seconds.

    Attributes:
        seconds_taken: time from the first training step to the end of the last one.
        is_reached: whether the limit has ended training.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.seconds_taken = 0.0
        self.is_reached = False

    def on_train_begin(self, args, state, control, **kwargs):
        self._started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds_taken = time.perf_counter() - self._started
        if self.seconds_taken >= self.seconds and state.global_step < state.max_steps:
            self.is_reached = control.should_training_stop = True
        return control


def prepare_testbed_run(
    name: str,
    output_dir: str,
    world: WrittenWorld,
    *,
    seed: int = 42,
    seconds: float | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
) -> RecurrentTrainer:
    """
    The trainer of one of `MODELS`; its tokenizer is `trainer.processing_class`.

    Args:
        name: a key of `MODELS`.
        output_dir: folder of the model.
        world: chains and facts.
        seed: of the weights, the batches and the depths.
        seconds, max_steps, batch_size: override the settings of the model.

    Raises:
        ValueError: there is no such model.
    """
    if name not in MODELS:
        raise ValueError(f"model={name!r} must be one of {', '.join(MODELS)}.")
    model = MODELS[name]
    args = small_run_arguments(output_dir, model.training, seed=seed, max_steps=max_steps, batch_size=batch_size)
    tokenizer = world.tokenizer()
    callbacks: list[TrainerCallback] = [TimeLimit(model.seconds if seconds is None else seconds)]
    if model.stage_steps:
        # Stages of a fixed number of steps. A gate would look at the last label of a row, which is not the answer in a
        # written solution.
        stages = CurriculumArguments(
            first_stage=1,
            gate="train",
            threshold=1e-6,
            eval_steps=model.stage_steps,
            min_steps_per_stage=model.stage_steps,
            final_steps=args.max_steps,
        )
        callbacks.append(CurriculumCallback(stages))
    rows = world.training_rows(tokenizer, model.writes_steps)
    set_seed(seed)
    return RecurrentTrainer(
        model=make_model({"style": "gpt2", **model.model}, tokenizer),
        args=args,
        train_dataset=rows,
        data_collator=ChainCollator(tokenizer.pad_token_id, args.supervision),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
