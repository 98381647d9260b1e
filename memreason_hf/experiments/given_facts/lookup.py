"""
The table that writes what memory steps recall, while a model generates.

    model.generate(**inputs, logits_processor=LogitsProcessorList([TableLookup(tokenizer, worlds)]))
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from memreason_hf.data.chains.tokenizer import entity_token, relation_token
from memreason_hf.evaluation.known_truth.world import SCHEME


class TableLookup(LogitsProcessor):
    """
    Where a row ends with the question of a memory step (its mark, an entity, a name, a relation), the next token is
    the entity that the row's table names. All other tokens are the model's own.

    Args:
        tokenizer: of the model.
        worlds: a table for each row, of shape `(relations, entities)`. `None`: the model recalls by itself.
        lies: for each row a hop (from 0 on) and the entity that its memory step names instead; `None`: no lie.

    Raises:
        ValueError: there are not as many lies as tables.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        worlds: Sequence[np.ndarray | None],
        lies: Sequence[tuple[int, int] | None] | None = None,
    ):
        self.worlds = list(worlds)
        self.lies = [None] * len(self.worlds) if lies is None else list(lies)
        if len(self.lies) != len(self.worlds):
            raise ValueError(f"There are {len(self.lies)} lies for {len(self.worlds)} tables. Pass one for each row.")
        vocabulary = tokenizer.get_vocab()
        self._mark = vocabulary[SCHEME.kind_tokens("memory")[0]]
        self._entities = _numbers(vocabulary, entity_token)
        self._relations = _numbers(vocabulary, relation_token)
        self._ids = {number: token_id for token_id, number in self._entities.items()}

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The scores of the next tokens; a token that the table writes has all of them."""
        scores = scores.clone()
        for row, ids in enumerate(input_ids.tolist()):
            tail = self._tail(row, ids)
            if tail is not None:
                scores[row] = -torch.inf
                scores[row, self._ids[tail]] = 0.0
        return scores

    def _tail(self, row, ids):
        mark, head, _, relation = ids[-4:]
        if mark != self._mark or head not in self._entities or relation not in self._relations:
            return None
        lie = self.lies[row]
        if lie is not None and ids.count(self._mark) == lie[0] + 1:
            return lie[1]
        world = self.worlds[row]
        return None if world is None else int(world[self._relations[relation], self._entities[head]])


def _numbers(vocabulary, token):
    """The numbers of entities or relations by token id."""
    numbers = {}
    while (text := token(len(numbers))) in vocabulary:
        numbers[vocabulary[text]] = len(numbers)
    return numbers
