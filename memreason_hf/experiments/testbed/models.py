"""The four models of the test bed: the same chains, answered at once or written out, at fixed or recurrent depth."""

from dataclasses import dataclass, field


FIXED_SECONDS, RECURRENT_SECONDS = 90.0, 240.0


@dataclass(frozen=True)
class TestbedModel:
    """
    How one of the models is built and trained.

    Attributes:
        title: what tables and pictures call the model.
        writes_steps: whether it writes memory and reason steps or answers at once.
        seconds: limit on the time of its training.
        model: fields of a GPT-2-style `RecurrentDepthConfig`.
        training: fields of `RecurrentTrainingArguments`.
        stage_steps: training steps of each stage of the curriculum over hop counts; 0: all hop counts from the start.
    """

    __test__ = False  # pytest would collect a class of this name

    title: str
    writes_steps: bool
    seconds: float
    model: dict
    training: dict = field(default_factory=dict)
    stage_steps: int = 0

    @property
    def is_recurrent(self) -> bool:
        return "recurrence_sampling" in self.model


# A layer with a window of four tokens distinguishes neighbours from the start. The layers after it look up facts and
# names by content, at any earlier position. With the usual initializer_range of 0.02, layers of this width have no
# effect for hundreds of steps; 0.1 is near 1 / sqrt(64).
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
        # The quickstart's recipe: one hop per recurrence, with a window that reaches back to the previous entity.
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
            # A criterion on logits would look at tokens that are still provisional in the coda, so the criterion is on
            # the state. The depth is that of training at most, because the coda has not seen deeper states.
            "halting_criterion": "state_difference",
            "halting_granularity": "token",
            "state_difference_threshold": 0.2,
            "min_recurrences": 2,
            "max_recurrences": 5,
        },
        training={**_TRAINING, "max_steps": 1500, "per_device_train_batch_size": 32, "adam_beta2": 0.99},
    ),
}
