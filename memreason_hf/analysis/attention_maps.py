"""
The attention of a model over one solution: its maps by layer, head and recurrence, and how it flows between kinds.

    solution = encode_solution_tokens(tokenizer, text)
    attention = read_attention(model, solution.ids)
    (attention_map,) = attention.select(layer=2)                # of a recurrent-depth model one a recurrence
    kind_shares(attention_map.weights, solution.kinds()).shares

Layers, heads and recurrences are counted from 1.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from memreason_hf.analysis.solution_tokens import TOKEN_KINDS
from memreason_hf.evaluation.mode import evaluation_mode
from memreason_hf.evaluation.solutions.generation import context_length
from modeling_recurrent import RecurrentDepthConfig


# The library's own, which compute what eager attention does. Any other may attend to something else.
_EXCHANGEABLE = (
    "sdpa",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
)


@dataclass(frozen=True)
class LayerAttention:
    """
    What one layer did once.

    Attributes:
        layer: the layer; of a recurrent-depth model prelude, loop and coda are counted through.
        recurrence: of a layer in the loop; None elsewhere.
        weights: `(heads, tokens, tokens)`, attending by attended token, as the model gives them.
    """

    layer: int
    recurrence: int | None
    weights: torch.Tensor

    def by_head(self) -> np.ndarray:
        """`(heads, tokens, tokens)` in float32. Each row sums to 1 but for rounding, also after half precision."""
        weights = self.weights.float()
        return (weights / weights.sum(-1, keepdim=True)).cpu().numpy()


@dataclass(frozen=True)
class AttentionMap:
    """
    One map: of a layer and a head, or the mean over several.

    Attributes:
        recurrence: that it shows; None for layers outside a loop.
        weights: `(tokens, tokens)` in float32, attending by attended token; each row sums to 1.
    """

    recurrence: int | None
    weights: np.ndarray


@dataclass(frozen=True)
class TextAttention:
    """
    The attention of a model over one text.

    Attributes:
        layers: in the order in which they ran.
        num_recurrences: of the loop; None for a model without one.
    """

    layers: tuple[LayerAttention, ...]
    num_recurrences: int | None = None

    @property
    def num_layers(self) -> int:
        return max(entry.layer for entry in self.layers)

    @property
    def num_heads(self) -> int:
        return max(entry.weights.shape[0] for entry in self.layers)

    def select(
        self, layer: int | None = None, head: int | None = None, recurrence: int | None = None
    ) -> list[AttentionMap]:
        """
        The maps of a layer and a head; the mean over all of those that are not given.

        Args:
            layer, head: which, from 1.
            recurrence: one of a recurrent-depth model; without it there is one map for each, unless `layer` lies
                before or behind the loop. The mean over layers is over those in the loop.

        Raises:
            ValueError: there is no such layer, head or recurrence.
        """
        self._check("layer", layer, self.num_layers)
        entries = [entry for entry in self.layers if layer in (None, entry.layer)]
        self._check("head", head, min(entry.weights.shape[0] for entry in entries))
        if self.num_recurrences is None:
            if recurrence is not None:
                raise ValueError(f"recurrence={recurrence}: each layer of this model runs once.")
            return [_mean(entries, head, None)]
        self._check("recurrence", recurrence, self.num_recurrences)
        if entries[0].recurrence is None and layer is not None:
            if recurrence is not None:
                raise ValueError(
                    f"recurrence={recurrence}: layer {layer} lies outside the loop, it runs once. Leave one out."
                )
            return [_mean(entries, head, None)]
        asked = range(1, self.num_recurrences + 1) if recurrence is None else [recurrence]
        return [_mean([entry for entry in entries if entry.recurrence == r], head, r) for r in asked]

    @staticmethod
    def _check(name, value, most):
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"{name}={value}: there are {name}s 1 to {most}.")


def read_attention(model: PreTrainedModel, ids: Sequence[int], *, num_recurrences: int | None = None) -> TextAttention:
    """
    Runs a model over a text and keeps all its attention weights: heads times layers (times recurrences) times the
    square of the tokens.

    A model whose attention is computed by sdpa, flex or flash attention is switched to eager attention for the call.

    Args:
        model: any causal language model; its training mode and its attention are put back afterwards.
        ids: of the text; all are attended to.
        num_recurrences: of a recurrent-depth model, by default its config's. A halting criterion is switched off.

    Raises:
        ValueError: a text longer than the model's context or with ids that it has no rows for, a number of recurrences
            for a model without any, or a model whose attention cannot be read.
    """
    _check_ids(model, ids)
    looped = model.config.model_type == RecurrentDepthConfig.model_type
    depth = {}
    if looped:
        depth["num_recurrences"] = model.config.num_recurrences if num_recurrences is None else num_recurrences
        if depth["num_recurrences"] < 1:
            raise ValueError(f"num_recurrences={num_recurrences} must be at least 1.")
    elif num_recurrences is not None:
        raise ValueError(f"num_recurrences={num_recurrences}: a {model.config.model_type!r} model has no recurrences.")
    input_ids = torch.tensor([list(ids)], device=model.get_input_embeddings().weight.device)
    with evaluation_mode(model), eager_attention(model):
        output = model(input_ids=input_ids, use_cache=False, output_attentions=True, **depth)
    weights = getattr(output, "attentions", None) or ()
    expected = (len(ids), len(ids))
    if not weights or any(entry is None or entry.ndim != 4 or entry.shape[-2:] != expected for entry in weights):
        raise ValueError(
            f"The attention of this {model.config.model_type!r} model cannot be read: with attn_implementation="
            f"{model.config._attn_implementation!r} it gives no weights. Load it with attn_implementation='eager'."
        )
    weights = [entry[0] for entry in weights]
    if not looped:
        return TextAttention(tuple(LayerAttention(i, None, entry) for i, entry in enumerate(weights, start=1)))
    return TextAttention(tuple(_by_recurrence(model.config, weights)), depth["num_recurrences"])


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """
    Lets a model compute its attention with weights that can be read. An implementation that the library does not know
    is left as it is: it may attend to something else.
    """
    before = model.config._attn_implementation
    if before not in _EXCHANGEABLE:
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@dataclass(frozen=True)
class KindShares:
    """
    How attention flows between kinds of tokens.

    Attributes:
        kinds: that occur, in the order of `TOKEN_KINDS`.
        counts: tokens of each kind.
        shares: `(kinds, kinds)`, attending by attended; each row sums to 1.
    """

    kinds: tuple[str, ...]
    counts: tuple[int, ...]
    shares: np.ndarray


def kind_shares(weights: np.ndarray, kinds: Sequence[str]) -> KindShares:
    """
    The share of the attention of tokens of a kind `a` that goes to tokens of a kind `b`:

        share(a, b) = 1 / |a| * sum over i in a, j in b of weights(i, j)

    so that every attending token counts once, and a row sums to 1 as those of `weights` do.

    Args:
        weights: `(..., tokens, tokens)`, attending by attended; each row sums to 1.
        kinds: of each token; `TOKEN_KINDS`, or any other names, which come last.

    Returns:
        The shares, of shape `(..., kinds, kinds)`.

    Raises:
        ValueError: not one kind for each token.
    """
    if weights.shape[-2:] != (len(kinds), len(kinds)):
        raise ValueError(f"weights of shape {weights.shape} do not fit {len(kinds)} tokens.")
    names = [name for name in dict.fromkeys([*TOKEN_KINDS, *kinds]) if name in set(kinds)]
    belongs = np.array([[kind == name for name in names] for kind in kinds], dtype=np.float64)
    counts = belongs.sum(0)
    shares = belongs.T @ weights.astype(np.float64) @ belongs / counts[:, None]
    return KindShares(tuple(names), tuple(int(count) for count in counts), shares)


def uniform_attention(num_tokens: int) -> np.ndarray:
    """`(tokens, tokens)`: every token attends equally to itself and to all before it. What shares compare with."""
    return np.tril(np.ones((num_tokens, num_tokens))) / np.arange(1, num_tokens + 1)[:, None]


def _check_ids(model, ids):
    if not len(ids):
        raise ValueError("The text has no tokens.")
    context = context_length(model)
    if context is not None and len(ids) > context:
        raise ValueError(
            f"The text has {len(ids)} tokens, the model's context is {context}. Nothing is cut here: choose a shorter "
            "text."
        )
    num_rows = model.get_input_embeddings().weight.shape[0]
    if max(ids) >= num_rows:
        raise ValueError(
            f"The text has an id of {max(ids)}, the model {num_rows} rows: they do not belong together. Take the "
            "tokenizer that is saved with the model."
        )


def _by_recurrence(config, weights):
    """Maps in the order in which layers ran: prelude, recurrence by recurrence, coda."""
    before, inside, after = (getattr(config, f"num_{part}_layers") for part in ("prelude", "recurrent", "coda"))
    for index, entry in enumerate(weights):
        if index < before:
            yield LayerAttention(index + 1, None, entry)
        elif index < len(weights) - after:
            recurrence, layer = divmod(index - before, inside)
            yield LayerAttention(before + layer + 1, recurrence + 1, entry)
        else:
            yield LayerAttention(before + inside + index - (len(weights) - after) + 1, None, entry)


def _mean(entries, head, recurrence):
    total = 0.0
    for entry in entries:
        weights = entry.by_head()
        total = total + (weights.mean(0) if head is None else weights[head - 1])
    return AttentionMap(recurrence, (total / len(entries)).astype(np.float32))
