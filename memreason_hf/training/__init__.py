"""Training of recurrent-depth models: `RecurrentTrainer`, its arguments, its curriculum, its collator."""

from .arguments import RecurrentTrainingArguments
from .collators import ChainCollator
from .curriculum import CurriculumArguments, CurriculumCallback
from .trainer import RecurrentTrainer


__all__ = [
    "ChainCollator",
    "CurriculumArguments",
    "CurriculumCallback",
    "RecurrentTrainer",
    "RecurrentTrainingArguments",
]
