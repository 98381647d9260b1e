"""
Checkpoints of the study "Loop, Think & Generalize" (arXiv 2604.07822): GPT-2 blocks in a loop, saved by `torch.save`.

Such a file holds the weights, but neither the number of heads and recurrences nor whether the input is added again, so
that the caller says these. The vocabulary lies beside it, in `vocab.json`.
"""

from pathlib import Path

import torch

from memreason_hf.data.chains.tokenizer import PAD_TOKEN, VOCABULARY_FILE, build_tokenizer, read_vocabulary
from memreason_hf.models.published.reading import PublishedLoop, layer_name
from memreason_hf.models.published.tensors import open_tensors
from modeling_recurrent import RecurrentDepthConfig


_COMPILED = "_orig_mod."
# Of a layer: our name, theirs, and whether their linear layer stores the transpose.
_LAYER = (
    ("input_layernorm", "ln_1", False),
    ("self_attn.qkv_proj", "attn.c_attn", True),
    ("self_attn.o_proj", "attn.c_proj", True),
    ("post_attention_layernorm", "ln_2", False),
    ("mlp.up_proj", "mlp.c_fc", True),
    ("mlp.down_proj", "mlp.c_proj", True),
)
# Constant masks that old releases of transformers stored.
_MASKS = ("attn.bias", "attn.masked_bias")


def find_checkpoint(source: Path) -> Path | None:
    """The `.pt` file that `source` is, or the only one in the folder `source`; `None` if there is none."""
    source = Path(source)
    if source.is_file():
        return source if source.suffix in (".pt", ".pth") else None
    files = sorted(source.glob("*.pt"))
    if len(files) > 1:
        raise ValueError(f"{source} holds {len(files)} checkpoints. Pass one of them, for example {files[-1]}.")
    return files[0] if files else None


def read_study(
    source: Path,
    *,
    num_attention_heads: int = 12,
    num_recurrences: int = 4,
    input_injection: bool = False,
    vocabulary: str | Path | None = None,
) -> PublishedLoop:
    """
    Reads a checkpoint of the study.

    Args:
        source: the `.pt` file, or a folder with one.
        num_attention_heads: the number of heads, which the file does not tell; the study's is 12.
        num_recurrences: the number of recurrences of the model, which the file does not tell.
        input_injection: whether the embeddings are added before every recurrence after the first.
        vocabulary: the folder of `vocab.json`. By default the folder of the checkpoint; without the file there, the
            model has no tokenizer.

    Raises:
        FileNotFoundError, ValueError: files are missing or damaged, they do not fit together, or a tensor is missing,
            has another shape or has no place.
    """
    path = find_checkpoint(source)
    if path is None:
        raise FileNotFoundError(f"{source} holds no checkpoint (*.pt).")
    weights = _Weights(path)
    rows, width = weights.shape("token_embedding.weight", 2)
    layers = weights.count_layers()
    inner = weights.shape("blocks.0.mlp.c_fc.weight", 2)[1]
    if num_attention_heads < 1 or width % num_attention_heads:
        raise ValueError(
            f"{path}: num_attention_heads={num_attention_heads} does not divide the width {width}. Pass the number of "
            "heads that the model was trained with."
        )
    table = next((name for name in ("position_embedding.weight", "pe") if name in weights.tensors), None)
    positions = {"position_embedding_type": "none"}
    if table is not None:
        positions = {"position_embedding_type": "learned", "max_position_embeddings": weights.shape(table, 2)[0]}
    tokenizer = _read_tokenizer(path, vocabulary, rows)
    config = RecurrentDepthConfig.gpt2_style(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=num_attention_heads,
        num_recurrent_layers=layers,
        num_recurrences=num_recurrences,
        input_injection="add" if input_injection else "none",
        pad_token_id=0 if tokenizer is None else tokenizer.pad_token_id,
        **positions,
    )
    return PublishedLoop("study", config, _read_tensors(config, weights, table), tokenizer)


def _read_tokenizer(path, vocabulary, rows):
    folder = Path(vocabulary or path.parent)
    if vocabulary is None and not (folder / VOCABULARY_FILE).is_file():
        return None
    tokens = read_vocabulary(folder)
    if len(tokens) != rows:
        raise ValueError(
            f"{folder / VOCABULARY_FILE} holds {len(tokens)} tokens (with {PAD_TOKEN}), but the checkpoint has {rows} "
            "embeddings. Pass the vocabulary of the data that it was trained on."
        )
    return build_tokenizer(tokens)


class _Weights:
    """The tensors of `model_state_dict`, without the prefix of compiled models."""

    def __init__(self, path):
        self.path = path
        content = open_tensors(path)
        weights = content.get("model_state_dict") if isinstance(content, dict) else None
        if not isinstance(weights, dict):
            raise ValueError(f"{path} is not a checkpoint of the study: it has no model_state_dict.")
        self.tensors = {name.removeprefix(_COMPILED): tensor for name, tensor in weights.items()}
        self._taken = set()

    def get(self, name):
        if not isinstance(self.tensors.get(name), torch.Tensor):
            raise ValueError(f"{self.path}: the checkpoint lacks the tensor {name!r}.")
        return self.tensors[name]

    def shape(self, name, dimensions):
        """The shape of a tensor from which sizes are read."""
        shape = tuple(self.get(name).shape)
        if len(shape) != dimensions:
            raise ValueError(f"{self.path}: the tensor {name!r} has shape {shape}, but needs {dimensions} dimensions.")
        return shape

    def take(self, name, *shape):
        tensor = self.get(name)
        self._taken.add(name)
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{self.path}: the tensor {name!r} has shape {tuple(tensor.shape)}, but the others ask for {shape}."
            )
        return tensor

    def count_layers(self):
        numbers = {name.split(".")[1] for name in self.tensors if name.startswith("blocks.")}
        return max(len(numbers), 1)

    def refuse_rest(self):
        rest = sorted(
            name
            for name in self.tensors.keys() - self._taken - {"lm_head.weight"}
            if not name.endswith(_MASKS) or not name.startswith("blocks.")
        )
        if rest:
            raise ValueError(f"{self.path}: the checkpoint holds tensors without a place: {', '.join(rest[:5])}.")


def _read_tensors(config, weights, table):
    width, inner = config.hidden_size, config.intermediate_size
    outputs = {"qkv_proj": 3 * width, "up_proj": inner}
    inputs = {"down_proj": inner}
    yield "model.embed_tokens.weight", weights.take("token_embedding.weight", config.vocab_size, width)
    if table is not None:
        yield "model.embed_positions.weight", weights.take(table, config.max_position_embeddings, width)
    for index in range(config.num_recurrent_layers):
        for ours, theirs, is_linear in _LAYER:
            end = ours.rpartition(".")[2]
            out, into = outputs.get(end, width), inputs.get(end, width)
            shape = (into, out) if is_linear else (width,)
            weight = weights.take(f"blocks.{index}.{theirs}.weight", *shape)
            # Conv1D of GPT-2 stores the transpose of what a linear layer stores.
            yield f"{layer_name(index)}.{ours}.weight", weight.T.contiguous() if is_linear else weight
            yield f"{layer_name(index)}.{ours}.bias", weights.take(f"blocks.{index}.{theirs}.bias", out)
    yield "model.norm.weight", weights.take("ln_f.weight", width)
    yield "model.norm.bias", weights.take("ln_f.bias", width)
    weights.refuse_rest()


__all__ = ["find_checkpoint", "read_study"]
