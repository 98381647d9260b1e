"""
The four models of the test bed: the same chains, answered at once or written out, at a fixed or at a recurrent depth.

    trainer = prepare_testbed_run("steps_recurrent", "runs/testbed/steps_recurrent", world, seed=42)
    trainer.train()
"""

import time
from dataclasses import dataclass, field

from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed

from memreason_hf.data.chains.collator import ChainCollator
from memreason_hf.data.chains.config import MultiHopConfig
from memreason_hf.data.chains.encoding import encode_chains
from memreason_hf.data.chains.world import build_world
from memreason_hf.experiments.testbed.rows import WrittenRows, encode_written
from memreason_hf.experiments.testbed.world import Facts, build_written_tokenizer, world_facts
from memreason_hf.training.chains.arguments import RecurrentTrainingArguments
from memreason_hf.training.chains.curriculum import CurriculumArguments, CurriculumCallback
from memreason_hf.training.chains.recipe import make_model
from memreason_hf.training.chains.trainer import RecurrentTrainer


FIXED_SECONDS, RECURRENT_SECONDS = 90.0, 240.0


@dataclass(frozen=True)
class TestbedModel:
    """
    How one of the models is made and trained.

    Attributes:
        title: what tables and pictures call it.
        writes_steps: it writes memory and reason steps; otherwise it answers at once.
        seconds: the most that its training may take.
        model: fields of a GPT-2-style `RecurrentDepthConfig`.
        training: fields of `RecurrentTrainingArguments`.
        stage_steps: steps of each stage of the curriculum over hop counts; 0: all hop counts from the start.
    """

    __test__ = False  # no test, whatever pytest makes of the name

    title: str
    writes_steps: bool
    seconds: float
    model: dict
    training: dict = field(default_factory=dict)
    stage_steps: int = 0

    @property
    def is_recurrent(self) -> bool:
        return "recurrence_sampling" in self.model


# A layer that sees four tokens tells neighbours apart at once; those behind it look up facts and names by content,
# anywhere before. Weights that begin at 0.02 leave layers of this width without effect for hundreds of steps; 0.1 is
# near 1 / sqrt(64).
_LAYERS = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "position_embedding_type": "rope",
    "initializer_range": 0.1,
    "num_recurrent_layers": 1,
    "sliding_window": 4,
}
_FIXED = {**_LAYERS, "num_coda_layers": 3, "num_recurrences": 1}
_TRAINING = {"learning_rate": 3e-3, "lr_scheduler_type": "cosine", "warmup_steps": 50, "weight_decay": 0.0}

MODELS = {
    "answer_fixed": TestbedModel(
        title="answer only, fixed depth",
        writes_steps=False,
        seconds=FIXED_SECONDS,
        model=_FIXED,
        training={**_TRAINING, "max_steps": 1500, "per_device_train_batch_size": 128},
        stage_steps=100,
    ),
    "answer_recurrent": TestbedModel(
        title="answer only, recurrent depth",
        writes_steps=False,
        seconds=RECURRENT_SECONDS,
        # The quickstart's recipe: one hop a recurrence, by a window that reaches no further than the entity before.
        model={
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_recurrent_layers": 1,
            "position_embedding_type": "none",
            "sliding_window": 2,
            "input_injection": "add",
            "state_norm": "layernorm",
            "residual_dropout": 0.1,
            "num_recurrences": 9,
            "recurrence_sampling": "uniform",
            "recurrence_min": 6,
            "recurrence_max": 12,
            "halting_criterion": "kl_entropy",
            "halting_granularity": "sequence",
            "kl_threshold": 0.01,
            "entropy_threshold": 1.0,
            "max_recurrences": 24,
        },
        training={
            **_TRAINING,
            "max_steps": 1500,
            "per_device_train_batch_size": 128,
            "recurrence_loss": "uniform",
            "adam_beta2": 0.99,
        },
        stage_steps=100,
    ),
    "steps_fixed": TestbedModel(
        title="memory and reason steps, fixed depth",
        writes_steps=True,
        seconds=FIXED_SECONDS,
        model=_FIXED,
        training={**_TRAINING, "max_steps": 1000, "per_device_train_batch_size": 32, "adam_beta2": 0.99},
    ),
    "steps_recurrent": TestbedModel(
        title="memory and reason steps, recurrent depth",
        writes_steps=True,
        seconds=RECURRENT_SECONDS,
        model={
            **_LAYERS,
            "num_coda_layers": 3,
            "input_injection": "add",
            "state_norm": "layernorm",
            "num_recurrences": 4,
            "recurrence_sampling": "uniform",
            "recurrence_min": 2,
            "recurrence_max": 5,
            # A logit would look at tokens that are provisional in the layers behind the loop: the state is asked. Not
            # deeper than in training, where those layers have never seen the state.
            "halting_criterion": "state_difference",
            "halting_granularity": "token",
            "state_difference_threshold": 0.2,
            "min_recurrences": 2,
            "max_recurrences": 5,
        },
        training={**_TRAINING, "max_steps": 1500, "per_device_train_batch_size": 32, "adam_beta2": 0.99},
    ),
}


@dataclass(frozen=True)
class WrittenWorld:
    """
    What the four models share.

    Attributes:
        facts: (head, relation) to tail.
        chains: the multi-hop data set over them.
        rows: how its chains are written out for training.
        config: what the data set was built with.
    """

    facts: Facts
    chains: DatasetDict
    rows: WrittenRows
    config: MultiHopConfig

    @classmethod
    def open(cls, config: MultiHopConfig, chains: DatasetDict, rows: WrittenRows) -> "WrittenWorld":
        """Of a data set that was built with `config`."""
        return cls(world_facts(build_world(config)), chains, rows, config)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """That of all four models: those which only answer use a part of its words."""
        return build_written_tokenizer(self.config.num_entities, self.config.num_relations, self.rows.num_names)

    def training_rows(self, tokenizer: PreTrainedTokenizerBase, writes_steps: bool) -> Dataset:
        """Encoded training chains, with a label after every relation, or written solutions of the same chains."""
        train = self.chains["train"]
        return (
            encode_written(self.facts, train, tokenizer, self.rows)
            if writes_steps
            else encode_chains(train, tokenizer)
        )


class TimeLimit(TrainerCallback):
    """
    Ends training after so many seconds.

    Attributes:
        seconds_taken: from the first step to the end of the last one.
        reached: the limit has ended it.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.seconds_taken = 0.0
        self.reached = False

    def on_train_begin(self, args, state, control, **kwargs):
        self._started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds_taken = time.perf_counter() - self._started
        if self.seconds_taken >= self.seconds and state.global_step < state.max_steps:
            self.reached = control.should_training_stop = True
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
        output_dir: where the model goes.
        world: chains and facts.
        seed: of the weights, the batches and the depths.
        seconds, max_steps, batch_size: instead of the model's own.

    Raises:
        ValueError: no such model.
    """
    if name not in MODELS:
        raise ValueError(f"model={name!r} is none of the test bed's: {', '.join(MODELS)}.")
    made = MODELS[name]
    training = dict(made.training)
    if max_steps is not None:
        training["max_steps"] = max_steps
    if batch_size is not None:
        training["per_device_train_batch_size"] = batch_size
    args = RecurrentTrainingArguments(
        output_dir=output_dir,
        supervision="prefix",
        save_strategy="no",
        logging_steps=50,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
        **training,
    )
    tokenizer = world.tokenizer()
    callbacks: list[TrainerCallback] = [TimeLimit(made.seconds if seconds is None else seconds)]
    if made.stage_steps:
        # Stages of so many steps: a gate looks at the last label of a row, which is no answer in a written solution.
        stages = CurriculumArguments(
            first_stage=1,
            gate="train",
            threshold=1e-6,
            eval_steps=made.stage_steps,
            min_steps_per_stage=made.stage_steps,
            final_steps=args.max_steps,
        )
        callbacks.append(CurriculumCallback(stages))
    rows = world.training_rows(tokenizer, made.writes_steps)
    set_seed(seed)
    return RecurrentTrainer(
        model=make_model({"style": "gpt2", **made.model}, tokenizer),
        args=args,
        train_dataset=rows,
        data_collator=ChainCollator(tokenizer.pad_token_id, args.supervision),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
