"""Training: recurrent-depth models on chains; any causal language model on solutions in steps."""

from memreason_hf.data.chains.collator import ChainCollator
from memreason_hf.data.questions.encoding import StepCollator, encode_solutions
from memreason_hf.data.questions.prompts import Prompter, PromptFormat
from memreason_hf.training.chains.arguments import RecurrentTrainingArguments
from memreason_hf.training.chains.curriculum import CurriculumArguments, CurriculumCallback
from memreason_hf.training.chains.trainer import RecurrentTrainer
from memreason_hf.training.solutions.arguments import FinetuneArguments
from memreason_hf.training.solutions.trainer import FinetuneTrainer


__all__ = [
    "ChainCollator",
    "CurriculumArguments",
    "CurriculumCallback",
    "FinetuneArguments",
    "FinetuneTrainer",
    "PromptFormat",
    "Prompter",
    "RecurrentTrainer",
    "RecurrentTrainingArguments",
    "StepCollator",
    "encode_solutions",
]
