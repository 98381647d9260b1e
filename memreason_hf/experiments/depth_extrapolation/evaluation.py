"""Measures a trained model: every depth on the test chains, halting, and chains that are made for it."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

import modeling_recurrent  # noqa: F401 - registers the architecture with the Auto classes
from memreason_hf.data.chains.collator import ChainCollator
from memreason_hf.data.chains.config import MultiHopConfig
from memreason_hf.data.chains.encoding import encode_chains
from memreason_hf.data.chains.multi_hop import build_multi_hop, load_multi_hop, select_chains
from memreason_hf.evaluation.chains.depth_sweep import sweep_depth
from memreason_hf.evaluation.chains.halting_statistics import halting_statistics
from memreason_hf.evaluation.chains.predictions import predict_answers
from memreason_hf.experiments.depth_extrapolation.results import DEEPER, DeepChains, HopCount
from memreason_hf.models.configs_and_tokenizers import read_tokenizer


# A chain may halt this much later than after one recurrence a hop.
_ROOM = 1.25


class Evaluation:
    """
    A trained model and its test chains.

    Args:
        folder: of the model, with its tokenizer.
        data: folder of the data set that it was trained on.
        num_chains: the most test chains of each hop count, the first ones.
        batch_size: chains of a forward call.
        progress: whether progress bars are shown.
    """

    def __init__(self, folder: Path, data: Path, *, num_chains: int, batch_size: int, progress: bool):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).to(self.device).eval()
        self.tokenizer = read_tokenizer(str(folder), "output_dir")
        self.data, self.num_chains = data, num_chains
        self._settings = {
            "collator": ChainCollator(self.tokenizer.pad_token_id),
            "batch_size": batch_size,
            "progress": progress,
        }

    def measure_hop_counts(self, max_recurrences: int) -> list[HopCount]:
        """Every hop count of the test split: each fixed depth up to `max_recurrences`, and halting within them."""
        chains = select_chains(load_multi_hop(self.data)["test"], kind="test")
        rows = encode_chains(_first_rows(chains, self.num_chains), self.tokenizer)
        sweep = sweep_depth(self.model, rows, max_recurrences=max_recurrences, **self._settings)
        halted = halting_statistics(self._halting_answers(rows, max_recurrences)).by_group
        return [
            {
                "hops": hops,
                "count": int(sweep.counts[index]),
                "best_accuracy": float(sweep.best_accuracy[index]),
                "best_recurrence": int(sweep.best_recurrence[index]),
                "late_accuracy": _late(sweep.accuracy[index], int(sweep.best_recurrence[index])),
                "adaptive_accuracy": halted[hops].accuracy,
                "mean_recurrences": halted[hops].mean,
            }
            for index, hops in enumerate(sweep.groups)
        ]

    def measure_deep(self, world: MultiHopConfig, hops: int, count: int) -> DeepChains:
        """
        Chains of one hop count that are made for it, in the same world. Each halts by itself.

        Args:
            world: the sizes that the data set was built with.
        """
        rows = encode_chains(new_chains(world, hops, count), self.tokenizer)
        answers = self._halting_answers(rows, max(int(_ROOM * hops), hops + 16))
        overall = halting_statistics(answers).overall
        return {"hops": hops, "count": count, "accuracy": overall.accuracy, "mean_recurrences": overall.mean}

    def _halting_answers(self, rows, max_recurrences):
        depth = {"halting_granularity": "sequence", "max_recurrences": max_recurrences}
        return predict_answers(self.model, rows, **self._settings, **depth)


def new_chains(world: MultiHopConfig, hops: int, count: int) -> Dataset:
    """Distinct random chains of a world. They are longer than its training chains, so none of them is among those."""
    sizes = {"train_hops": "2", "num_train_chains": 1, "test_hops": str(hops), "num_test_chains": count}
    data = build_multi_hop(dataclasses.replace(world, **sizes, cap_to_available=False))
    return select_chains(data.dataset["test"], kind="test")


def _first_rows(dataset, most):
    counts: dict[int, int] = {}
    chosen = []
    for row, hops in enumerate(dataset["hops"]):
        counts[hops] = counts.get(hops, 0) + 1
        if counts[hops] <= most:
            chosen.append(row)
    return dataset.select(chosen)


def _late(accuracy: np.ndarray, best: int) -> float | None:
    late = DEEPER * best
    return float(accuracy[late - 1]) if late <= len(accuracy) else None
