"""Loss and accuracy on test chains, after every recurrence of one pass where there are several."""

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.evaluation.mode import evaluation_mode
from memreason_hf.experiments.retrofit.world import Chains
from modeling_recurrent import RecurrentDepthConfig


# The recurrences whose accuracy is kept by hop.
RECURRENCES_BY_HOP = (1, 2, 4, 8, 16, 32)


def evaluate_chains(model: PreTrainedModel, chains: Chains, num_recurrences: int = 1, batch_size: int = 256) -> dict:
    """
    How well the place after every relation is predicted, over all hops.

    Args:
        num_recurrences: how many a recurrent-depth model runs; any other model is read once.

    Returns:
        `Measures`, see `memreason_hf.experiments.retrofit.results`: a list for each recurrence from 1 on.
    """
    is_recurrent = isinstance(model.config, RecurrentDepthConfig)
    depth = num_recurrences if is_recurrent else 1
    losses = np.zeros(depth)
    hits_by_hop = np.zeros((depth, chains.labels.shape[1] - 1))
    with evaluation_mode(model):
        for start in range(0, len(chains), batch_size):
            input_ids, labels = (
                torch.from_numpy(array[start : start + batch_size]) for array in (chains.input_ids, chains.labels)
            )
            wanted = labels[labels != IGNORED_LABEL]

            def read(recurrence, rows, logits, wanted=wanted):
                losses[recurrence - 1] += float(F.cross_entropy(logits.double(), wanted, reduction="sum"))
                right = (logits.argmax(-1) == wanted).view(-1, hits_by_hop.shape[1])
                hits_by_hop[recurrence - 1] += right.sum(0).numpy()

            if not is_recurrent:
                read(1, None, model(input_ids, use_cache=False).logits[labels != IGNORED_LABEL])
                continue
            outputs = model(
                input_ids,
                shift_labels=labels,
                labelled_logits_only=True,
                use_cache=False,
                num_recurrences=depth,
                on_recurrence=read,
                recurrences_to_show=range(1, depth),
            )
            read(depth, None, outputs.logits)
    count = len(chains) * hits_by_hop.shape[1]
    return {
        "losses": (losses / count).tolist(),
        "accuracies": (hits_by_hop.sum(1) / count).tolist(),
        "accuracies_by_hop": {
            str(recurrence): (hits_by_hop[recurrence - 1] / len(chains)).tolist()
            for recurrence in RECURRENCES_BY_HOP
            if recurrence <= depth
        },
    }
