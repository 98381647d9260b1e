"""Training: recurrent-depth models on chains; any causal language model on solutions in steps."""

from .arguments import RecurrentTrainingArguments
from .collators import ChainCollator
from .curriculum import CurriculumArguments, CurriculumCallback
from .finetune_trainer import FinetuneArguments, FinetuneTrainer
from .step_collators import StepCollator, encode_solutions
from .trainer import RecurrentTrainer


__all__ = [
    "ChainCollator",
    "CurriculumArguments",
    "CurriculumCallback",
    "FinetuneArguments",
    "FinetuneTrainer",
    "RecurrentTrainer",
    "RecurrentTrainingArguments",
    "StepCollator",
    "encode_solutions",
]
