"""
Huginn (arXiv 2502.05171) and the models that Retrofit (arXiv 2511.07384) made on its code.

Their `model_type` is "huginn_raven". All of them run a prelude, then a core that reads a linear map of the state and
the prelude's output, then a coda. They differ in the layers, which the names of the tensors tell:

| | norms of a layer | queries and keys | rotation | last norm before the coda |
|---|---|---|---|---|
| Huginn | before each sublayer and on each sum | biases | adjacent pairs | yes |
| Retrofit from Llama | before each sublayer | | halves | no |
| Retrofit from OLMo 2 | after each sublayer | norms | halves | no |

Rotating adjacent pairs equals rotating halves after the rows of the query and key projections are put in another
order, the same for both, so that their products stay what they are.
"""

from pathlib import Path

import torch

from memreason_hf.models.published.reading import (
    PublishedLoop,
    layer_name,
    need,
    read_fields,
    read_tokenizer,
    refuse_fields,
    rope_parameters,
    token_ids,
)
from memreason_hf.models.published.tensors import TensorFiles
from modeling_recurrent import RecurrentDepthConfig


MODEL_TYPE = "huginn_raven"
_EXPECTED = {
    "bias": False,
    "block_class_name": "SandwichBlock",
    "injection_type": "linear",
    "mlp_class_name": "GatedMLP",
    "nonlin_name": "SiLU",
    "state_init": "like-init",
    "test_time_noise": 0,
}
_STACKS = {"prelude": "prelude", "recurrent_block": "core_block", "coda": "coda"}
# A table of rotations that was rounded to bfloat16 is this far from the exact one at most.
_ROTATION_ERROR = 5e-3


def read_huginn(folder: Path) -> PublishedLoop:
    """
    Reads the folder of a Huginn or Retrofit model.

    Raises:
        FileNotFoundError, ValueError: files are missing or damaged, a field cannot be expressed, or a tensor is
            missing, has another shape or has no place.
    """
    fields, files = read_fields(folder), TensorFiles(folder)
    if files.has_layer_tensor(".norm_4.weight"):
        reader = _Huginn
    elif files.has_layer_tensor(".attn.q_norm.weight"):
        reader = _RetrofitOlmo
    else:
        reader = _RetrofitLlama
    checkpoint = reader(folder, fields, files)
    return PublishedLoop(checkpoint.family, checkpoint.config(), checkpoint.tensors(), read_tokenizer(folder))


class _Raven:
    """What the three kinds of models have in common."""

    family: str

    def __init__(self, folder, fields, files):
        self.folder, self.fields, self.files = folder, fields, files
        refuse_fields(folder, fields, self.family, _EXPECTED)
        sizes = ("n_embd", "intermediate_size", "vocab_size", "mean_recurrence")
        self.width, self.inner, self.vocabulary, self.mean_recurrence = need(folder, fields, *sizes)
        self.vocabulary = fields.get("padded_vocab_size") or self.vocabulary
        heads = next((name for name in ("n_heads", "num_attention_heads") if name in fields), "n_heads")
        (self.heads,) = need(folder, fields, heads)
        self.key_heads = fields.get("num_key_value_heads") or self.heads
        self.head_dim = fields.get("head_dim") or self.width // self.heads
        self.layers = {name: need(folder, fields, f"n_layers_in_{name}")[0] for name in _STACKS}
        self.tied = fields.get("tie_embeddings", True)
        self.scales = {"std": (2 / (5 * self.width)) ** 0.5, **(fields.get("init_values") or {})}

    def config(self):
        """The config of the whole model, with the fields of `blocks()`."""
        return RecurrentDepthConfig(
            vocab_size=self.vocabulary,
            num_prelude_layers=self.layers["prelude"],
            num_recurrent_layers=self.layers["recurrent_block"],
            num_coda_layers=self.layers["coda"],
            tie_word_embeddings=self.tied,
            num_recurrences=self.mean_recurrence,
            max_recurrences=self.mean_recurrence,
            input_injection="concat",
            recurrence_sampling="lognormal_poisson",
            backprop_recurrences=self.fields.get("mean_backprop_depth"),
            **self.state(),
            **token_ids(self.fields),
            **self.blocks(),
        )

    def state(self):
        """The first state: noise cut off at three standard deviations."""
        std = self.scales["std"] * self.embedding_scale
        return {"state_init": "truncated_normal", "state_init_std": std} if std > 0 else {"state_init": "zeros"}

    def blocks(self):
        """The fields that describe our own blocks."""
        return {
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "head_dim": self.head_dim,
            "norm_eps": self.fields.get("norm_eps", 1e-6),
            "embedding_scale": self.embedding_scale,
        }

    def tensors(self):
        take = self.files.take
        yield "model.embed_tokens.weight", take("transformer.wte.weight", self.vocabulary, self.width)
        yield "model.injection.weight", take("transformer.adapter.weight", self.width, 2 * self.width)
        index = 0
        for size, stack in _STACKS.items():
            for position in range(self.layers[size]):
                for name, tensor in self.layer(f"transformer.{stack}.{position}"):
                    yield f"{layer_name(index)}.{name}", tensor
                index += 1
        yield "model.norm.weight", take("transformer.ln_f.weight", self.width)
        if not self.tied:
            yield "lm_head.weight", take("lm_head.weight", self.vocabulary, self.width)
        self.files.refuse_rest({"freqs_cis", *(("lm_head.weight",) if self.tied else ())})

    def layer(self, source):
        """The tensors of our own block."""
        take, width = self.files.take, self.width
        query_width, key_width = self.heads * self.head_dim, self.key_heads * self.head_dim
        fused = take(f"{source}.attn.Wqkv.weight", query_width + 2 * key_width, width)
        yield "self_attn.qkv_proj.weight", self.ordered(fused)
        yield "self_attn.o_proj.weight", take(f"{source}.attn.proj.weight", width, query_width)
        yield "mlp.gate_up_proj.weight", take(f"{source}.mlp.fc.weight", 2 * self.inner, width)
        yield "mlp.down_proj.weight", take(f"{source}.mlp.proj.weight", width, self.inner)
        for ours, theirs in self.norms.items():
            yield f"{ours}.weight", take(f"{source}.{theirs}.weight", width)

    def ordered(self, fused):
        """Rows of queries, keys and values in the order in which our blocks rotate them."""
        return fused


class _Huginn(_Raven):
    family = "Huginn"
    norms = {
        "input_layernorm": "norm_1",
        "attention_output_layernorm": "norm_2",
        "post_attention_layernorm": "norm_3",
        "mlp_output_layernorm": "norm_4",
    }

    @property
    def embedding_scale(self):
        return self.width**0.5

    def blocks(self):
        room, base = need(self.folder, self.fields, "block_size", "rope_base")
        self._check_rotation(room, base)
        if self.key_heads != self.heads and self.fields.get("qk_bias", True):
            raise ValueError(
                f"{self.folder}: qk_bias=True needs as many key heads as query heads, got num_key_value_heads="
                f"{self.key_heads} and {self.heads} heads."
            )
        return {
            **super().blocks(),
            "block_norm": "residual",
            "coda_norm": True,
            "attention_bias": self.fields.get("qk_bias", True),
            "attention_output_bias": False,
            "max_position_embeddings": room,
            "rope_parameters": rope_parameters(base, None),
        }

    def _check_rotation(self, room, base):
        """Refuses a stored table of rotations other than that of `rope_base`."""
        if "freqs_cis" not in self.files.names:
            return
        stored = self.files.take("freqs_cis", 1, room, 1, self.head_dim // 2, 2)[0, :, 0]
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float) / self.head_dim
        angles = torch.arange(room, dtype=torch.float)[:, None] * base**-exponents
        exact = torch.stack((angles.cos(), angles.sin()), dim=-1)
        if not (stored.float() - exact).abs().max() <= _ROTATION_ERROR:
            raise ValueError(
                f"{self.folder}: the tensor 'freqs_cis' does not hold the rotations of rope_base={base!r}, which "
                "cannot be expressed by a recurrent-depth model."
            )

    def ordered(self, fused):
        width = self.heads * self.head_dim
        sizes = (width, self.key_heads * self.head_dim, fused.shape[0] - width - self.key_heads * self.head_dim)
        query, key, value = fused.split(sizes)
        return torch.cat((self._halves(query), self._halves(key), value))

    def _halves(self, rows):
        """`(heads * head_dim, …)`: in each head first the even, then the odd rows."""
        return rows.unflatten(0, (-1, self.head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)

    def layer(self, source):
        yield from super().layer(source)
        if self.fields.get("qk_bias", True):
            biases = self.files.take(f"{source}.attn.qk_bias", 2, 1, self.heads, self.head_dim)
            query, key = (self._halves(bias.flatten()) for bias in biases)
            yield "self_attn.qkv_proj.bias", torch.cat((query, key, torch.zeros_like(key)))


class _Retrofit(_Raven):
    """Rotation and embeddings of the decoder that was retrofitted."""

    def __init__(self, folder, fields, files):
        super().__init__(folder, fields, files)
        refuse_fields(folder, fields, self.family, {"qk_bias": False})

    @property
    def embedding_scale(self):
        return float(self.scales.get("embed_scale", 1.0))

    def rotation(self):
        theta, room = need(self.folder, self.fields, "rope_theta", "max_position_embeddings")
        scaling = rope_parameters(theta, self.fields.get("rope_scaling"))
        return {"max_position_embeddings": room, "rope_parameters": scaling}


class _RetrofitLlama(_Retrofit):
    family = "Retrofit (Llama)"
    norms = {"input_layernorm": "norm_1", "post_attention_layernorm": "norm_2"}

    def __init__(self, folder, fields, files):
        super().__init__(folder, fields, files)
        refuse_fields(folder, fields, self.family, {"initial_state_mode": "random"})

    def blocks(self):
        return {**super().blocks(), **self.rotation()}


class _RetrofitOlmo(_Retrofit):
    """Its layers are OLMo 2's own."""

    family = "Retrofit (OLMo 2)"

    def state(self):
        if self.fields.get("initial_state_mode", "random") == "skip-adapter":
            return {"state_init": "embedding"}
        refuse_fields(self.folder, self.fields, self.family, {"initial_state_mode": "random"})
        return super().state()

    def blocks(self):
        if self.embedding_scale != 1:
            raise ValueError(f"{self.folder}: embed_scale={self.embedding_scale!r} of an OLMo 2 model must be 1.")
        rotation = self.rotation()
        block = {
            name: value for name, value in super().blocks().items() if name not in ("norm_eps", "embedding_scale")
        }
        block |= {"rms_norm_eps": self.fields.get("norm_eps", 1e-6), "attention_bias": False, **rotation}
        return {"block_model_type": "olmo2", "block_config": block}

    def layer(self, source):
        take, width = self.files.take, self.width
        sizes = {
            "q": self.heads * self.head_dim,
            "k": self.key_heads * self.head_dim,
            "v": self.key_heads * self.head_dim,
        }
        fused = take(f"{source}.attn.Wqkv.weight", sum(sizes.values()), width)
        for name, rows in zip(sizes, fused.split(list(sizes.values()))):
            yield f"self_attn.{name}_proj.weight", rows
        for name in ("q", "k"):
            yield f"self_attn.{name}_norm.weight", take(f"{source}.attn.{name}_norm.weight", sizes[name])
        yield "self_attn.o_proj.weight", take(f"{source}.attn.proj.weight", width, sizes["q"])
        gate, up = take(f"{source}.mlp.fc.weight", 2 * self.inner, width).chunk(2)
        yield "mlp.gate_proj.weight", gate
        yield "mlp.up_proj.weight", up
        yield "mlp.down_proj.weight", take(f"{source}.mlp.proj.weight", width, self.inner)
        yield "post_attention_layernorm.weight", take(f"{source}.norm_1.weight", width)
        yield "post_feedforward_layernorm.weight", take(f"{source}.norm_2.weight", width)


__all__ = ["MODEL_TYPE", "read_huginn"]
