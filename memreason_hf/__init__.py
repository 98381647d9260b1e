"""Training, evaluation and analysis around recurrent-depth models; the model itself is in `modeling_recurrent`."""

from importlib import import_module


# Imported at first use: `memreason --help` should not wait for torch. By its name here a lower room may call a higher
# one, which it cannot import.
_PUBLIC = {
    "RecurrentTrainer": "memreason_hf.training",
    "RecurrentTrainingArguments": "memreason_hf.training",
    "StepScheme": "memreason_hf.steps",
    "extend_tokenizer": "memreason_hf.steps.tokenization",
    "make_card": "memreason_hf.hub.cards",
    "stage_adapter_config": "memreason_hf.hub.adapter_config",
    "stage_model": "memreason_hf.hub.cards.staging",
    "write_card": "memreason_hf.hub.cards",
}

__all__ = ["RecurrentTrainer", "RecurrentTrainingArguments", "StepScheme", "extend_tokenizer", "make_card"]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__():
    return sorted([*globals(), *_PUBLIC])
