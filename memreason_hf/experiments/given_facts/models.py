"""The models: with written steps or without, after 1 or several recurrences, on fresh worlds or a learned one."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class GivenModel:
    """
    How one of the models is built and trained.

    Attributes:
        title: what tables and pictures call the model.
        model: fields of a GPT-2-style `RecurrentDepthConfig`.
        training: fields of `RecurrentTrainingArguments`.
        writes_steps: whether it writes memory and reason steps, or answers at once.
        fresh_share: share of the training questions with a world of their own; the others are about the learned one.
    """

    title: str
    model: dict
    training: dict = field(default_factory=dict)
    writes_steps: bool = True
    fresh_share: float = 1.0


_LAYERS = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "position_embedding_type": "rope",
    # Four of 16 dimensions see positions. With a theta of 10, or two dimensions, models learn more slowly.
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    "initializer_range": 0.1,
    "num_recurrent_layers": 2,
    "num_coda_layers": 1,
}
_FIXED = {"num_recurrences": 1}
_RECURRENT = {
    "input_injection": "add",
    "state_norm": "layernorm",
    "num_recurrences": 3,
    "recurrence_sampling": "uniform",
    "recurrence_min": 2,
    "recurrence_max": 4,
}
# The looped layers see the step before; the coda looks up names in the question.
_STEPS = {**_LAYERS, "sliding_window": 5}
_TRAINING = {
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 50,
    "weight_decay": 0.0,
    "adam_beta2": 0.99,
    "per_device_train_batch_size": 32,
    "max_steps": 600,
}

MODELS = {
    "steps_fixed": GivenModel("written steps, 1 recurrence", {**_STEPS, **_FIXED}, _TRAINING, fresh_share=0.5),
    "steps_recurrent": GivenModel(
        "written steps, 3 recurrences", {**_STEPS, **_RECURRENT}, _TRAINING, fresh_share=0.5
    ),
    "answer_fixed": GivenModel("answer at once, 1 recurrence", {**_LAYERS, **_FIXED}, _TRAINING, writes_steps=False),
    "answer_recurrent": GivenModel(
        "answer at once, 3 recurrences", {**_LAYERS, **_RECURRENT}, _TRAINING, writes_steps=False
    ),
    "steps_learned": GivenModel(
        "written steps, learned world alone", {**_STEPS, **_FIXED}, _TRAINING, fresh_share=0.0
    ),
}
