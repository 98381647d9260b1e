"""Training, evaluation and analysis around recurrent-depth models; the model itself is in `modeling_recurrent`."""

from importlib import import_module


# Imported at first use: `memreason --help` should not wait for torch.
_PUBLIC = {
    "RecurrentTrainer": "memreason_hf.training",
    "RecurrentTrainingArguments": "memreason_hf.training",
    "StepScheme": "memreason_hf.steps",
    "extend_tokenizer": "memreason_hf.steps.tokenization",
}

__all__ = ["RecurrentTrainer", "RecurrentTrainingArguments", "StepScheme", "extend_tokenizer"]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__():
    return sorted([*globals(), *_PUBLIC])
