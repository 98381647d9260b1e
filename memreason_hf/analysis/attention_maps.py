"""
The attention of a model over one solution: maps by layer, head and recurrence, and the shares between kinds of tokens.

    solution = encode_solution_tokens(tokenizer, text)
    attention = read_attention(model, solution.ids)
    (attention_map,) = attention.select(layer=2)                # one for each recurrence of a recurrent-depth model
    kind_shares(attention_map.weights, solution.kinds()).shares

Layers, heads and recurrences are counted from 1.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from memreason_hf.analysis.solution_tokens import token_kind_order
from memreason_hf.checks import check_has, check_int, check_sequence
from memreason_hf.evaluation.mode import evaluation_mode
from memreason_hf.evaluation.solutions.generation import context_length
from modeling_recurrent import RecurrentDepthConfig


# Implementations of transformers that compute the same as eager attention. Others may attend to something else.
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
    The attention of one layer in one recurrence.

    Attributes:
        layer: the layer, counted from 1 through prelude, loop and coda.
        recurrence: the recurrence of a layer in the loop, counted from 1; None outside a loop.
        weights: attending by attended token, as the model returns them, shape `(heads, tokens, tokens)`.
    """

    layer: int
    recurrence: int | None
    weights: torch.Tensor

    def by_head(self) -> np.ndarray:
        """The weights in float32, shape `(heads, tokens, tokens)`, normalised: half precision does not sum to 1."""
        weights = self.weights.float()
        return (weights / weights.sum(-1, keepdim=True)).cpu().numpy()


@dataclass(frozen=True)
class AttentionMap:
    """
    One map: that of a layer and a head, or a mean over several.

    Attributes:
        recurrence: the recurrence of the map; None outside a loop.
        weights: attending by attended token, float32 of shape `(tokens, tokens)`; each row sums to 1.
    """

    recurrence: int | None
    weights: np.ndarray


@dataclass(frozen=True)
class TextAttention:
    """
    The attention of a model over one text.

    Attributes:
        layers: the layers in the order in which they ran.
        num_recurrences: the recurrences of the loop; None for a model without a loop.
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
        The maps of a layer and a head, or means over all layers or heads.

        Args:
            layer: counted from 1; None for the mean over all layers, or over those in the loop.
            head: counted from 1; None for the mean over all heads.
            recurrence: counted from 1; None for one map for each recurrence. A layer outside the loop has one map.

        Raises:
            ValueError: the model has no such layer, head or recurrence.
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
                    f"recurrence={recurrence}: layer {layer} lies outside the loop and runs once. Leave one out."
                )
            return [_mean(entries, head, None)]
        recurrences = range(1, self.num_recurrences + 1) if recurrence is None else [recurrence]
        return [_mean([entry for entry in entries if entry.recurrence == r], head, r) for r in recurrences]

    @staticmethod
    def _check(name, value, most):
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"{name}={value}: there are {name}s 1 to {most}.")


def read_attention(
    model: PreTrainedModel, ids: Sequence[int], *, num_recurrences: int | None = None, name: str = "ids"
) -> TextAttention:
    """
    Runs a model over a text and keeps all attention weights: heads x layers (x recurrences) x tokens x tokens numbers.

    A model with SDPA, flex or flash attention is switched to eager attention for the call.

    Args:
        model: any causal language model; its training mode and its attention are restored afterwards.
        ids: the ids of the text; all positions are attended to.
        num_recurrences: for a recurrent-depth model, by default that of its config. Halting criteria are ignored.
        name: what messages call the text, for example the flag that names its file.

    Raises:
        ValueError: the text is longer than the model's context or has ids outside its embedding, `num_recurrences` is
            given for a model without recurrences, or the model returns no attention weights.
    """
    check_has("model", model, "get_input_embeddings", "a causal language model of transformers")
    check_sequence("ids", ids, "a list of token ids")
    for token_id in ids:
        check_int("ids", int(token_id) if isinstance(token_id, torch.Tensor) else token_id, least=0)
    if num_recurrences is not None:
        check_int("num_recurrences", num_recurrences, least=1)
    _check_ids(model, ids, name)
    looped = model.config.model_type == RecurrentDepthConfig.model_type
    depth = {}
    if looped:
        depth["num_recurrences"] = model.config.num_recurrences if num_recurrences is None else num_recurrences
        if depth["num_recurrences"] < 1:
            raise ValueError(f"num_recurrences={num_recurrences} must be at least 1.")
    elif num_recurrences is not None:
        raise ValueError(
            f"num_recurrences={num_recurrences}: a {model.config.model_type!r} model has no recurrences. Leave it out."
        )
    input_ids = torch.tensor([list(ids)], device=model.get_input_embeddings().weight.device)
    with evaluation_mode(model), eager_attention(model):
        output = model(input_ids=input_ids, use_cache=False, output_attentions=True, **depth)
    weights = getattr(output, "attentions", None) or ()
    expected = (len(ids), len(ids))
    if not weights or any(entry is None or entry.ndim != 4 or entry.shape[-2:] != expected for entry in weights):
        raise ValueError(
            f"The attention of this {model.config.model_type!r} model cannot be read: with attn_implementation="
            f"{model.config._attn_implementation!r} it returns no weights. Load it with attn_implementation='eager'."
        )
    weights = [entry[0] for entry in weights]
    if not looped:
        return TextAttention(tuple(LayerAttention(i, None, entry) for i, entry in enumerate(weights, start=1)))
    return TextAttention(tuple(_by_recurrence(model.config, weights)), depth["num_recurrences"])


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """
    Switches a model to eager attention, which returns its weights. An attention implementation that is not one of
    transformers is kept, because it may attend to something else.
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
    The attention between kinds of tokens.

    Attributes:
        kinds: the kinds that occur, in the order of `token_kind_order`.
        counts: the number of tokens of each kind.
        shares: attending by attended kind, shape `(kinds, kinds)`; each row sums to 1.
    """

    kinds: tuple[str, ...]
    counts: tuple[int, ...]
    shares: np.ndarray


def kind_shares(weights: np.ndarray, kinds: Sequence[str]) -> KindShares:
    """
    The share of the attention of tokens of a kind `a` that goes to tokens of a kind `b`:

        share(a, b) = 1 / |a| * sum over i in a, j in b of weights(i, j)

    Every attending token counts once, and each row sums to 1.

    Args:
        weights: attending by attended token, shape `(..., tokens, tokens)`; each row sums to 1.
        kinds: the kind of each token: one of `TOKEN_KINDS`, or any other name.

    Returns:
        The shares, of shape `(..., kinds, kinds)`.

    Raises:
        ValueError: there are more or fewer kinds than tokens.

    Example:

        >>> weights = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
        >>> kind_shares(weights, ["question", "memory", "memory"]).shares.round(2).tolist()
        [[1.0, 0.0], [0.35, 0.65]]
    """
    check_has("weights", weights, "shape", "an array")
    if not np.isfinite(weights).all():
        raise ValueError("weights hold NaN or infinite values: an attention must be finite.")
    if len(kinds) == 0:
        raise ValueError("kinds=[] must name the kind of each token.")
    if weights.shape[-2:] != (len(kinds), len(kinds)):
        raise ValueError(
            f"weights has shape {weights.shape}, but kinds has {len(kinds)} entries. Pass one kind for each token."
        )
    names = token_kind_order(kinds)
    belongs = np.array([[kind == name for name in names] for kind in kinds], dtype=np.float64)
    counts = belongs.sum(0)
    shares = belongs.T @ weights.astype(np.float64) @ belongs / counts[:, None]
    return KindShares(tuple(names), tuple(int(count) for count in counts), shares)


def uniform_attention(num_tokens: int) -> np.ndarray:
    """The weights if every token attended evenly to itself and to all tokens before it, shape `(tokens, tokens)`."""
    return np.tril(np.ones((num_tokens, num_tokens))) / np.arange(1, num_tokens + 1)[:, None]


def _check_ids(model, ids, name):
    if not len(ids):
        raise ValueError(f"{name}: the text has no tokens, ids=[]. Pass at least one.")
    context = context_length(model)
    if context is not None and len(ids) > context:
        raise ValueError(
            f"{name}: the text has {len(ids)} tokens, but the model's context is {context}. Choose a shorter text: it "
            "is not cut off here."
        )
    num_rows = model.get_input_embeddings().weight.shape[0]
    if max(ids) >= num_rows:
        raise ValueError(
            f"{name}: the text has the id {max(ids)}, but the model has only {num_rows} embedding rows. Use the "
            "tokenizer that is saved with the model."
        )


def _by_recurrence(config, weights):
    """Numbers the maps, which are in the order in which layers ran: prelude, recurrence by recurrence, coda."""
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
