"""Tensor parallelism: which process computes which heads, and keeps their keys and values."""

import torch
from torch.distributed import is_available

from .attention_recurrent import VLLM


if is_available():
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

# Projections whose output holds keys, fused or not.
_KEY_PROJECTIONS = ("k_proj", "qkv_proj", "query_key_value")

_NO_PIPELINE = (
    "the stages of a pipeline run one after the other, but a looped layer runs again after the layers that follow it."
)


def tensor_parallel_plan(config, packs: bool = True) -> dict[str, str]:
    """
    The plan for the layers of a model.

    Args:
        config (`RecurrentDepthConfig`): A family's layers have the plan of the family.
        packs (`bool`): Whether the style `"packed_colwise"` is known, which splits gate and up projection alike.
            vLLM does not know it, so that there the output of the fused projection is gathered.
    """
    if config.block_model_type is not None:
        return dict(getattr(config.make_block_config(), "base_model_tp_plan", None) or {})
    plan = {"self_attn.qkv_proj": "colwise", "self_attn.o_proj": "rowwise"}
    if not config.gated_mlp:
        plan |= {"mlp.up_proj": "colwise", "mlp.down_proj": "rowwise"}
    elif packs:
        plan |= {"mlp.gate_up_proj": "packed_colwise", "mlp.down_proj": "rowwise"}
    else:
        plan |= {"mlp.gate_up_proj": "colwise_gather_output", "mlp.down_proj": "rowwise_split_input"}
    if config.recurrence_lora_rank is not None:
        # The updates of a recurrence read and change whole vectors.
        whole = {"colwise": "colwise_gather_output", "packed_colwise": "colwise_gather_output"}
        plan = {module: whole.get(style, "rowwise_split_input") for module, style in plan.items()}
    return {f"layers.*.{module}": style for module, style in plan.items()}


def splits_heads(plan: dict[str, str]) -> bool:
    """Whether a plan gives each process its own key heads."""
    return any(name.rpartition(".")[2] in _KEY_PROJECTIONS and how == "colwise" for name, how in plan.items())


def heads_of_process(model) -> int:
    """The key heads that this process computes and caches: all of them without tensor parallelism."""
    heads, processes = model.config.num_key_value_heads, getattr(model, "_tp_size", None) or 1
    return heads // processes if processes > 1 and splits_heads(model.tp_plan) else heads


def check_split(model, processes: int) -> None:
    """
    Raises a `ValueError` if tensor parallelism over `processes` would cut through a head.

    Args:
        model (`RecurrentDepthPreTrainedModel`): `tp_plan` is read.
        processes (`int`): The number of processes, `tp_size`.
    """
    config, plan = model.config, model.tp_plan or {}
    if processes < 2:
        return
    if config.recurrence_lora_rank is not None and config.block_model_type is not None:
        raise ValueError(
            f"tp_size={processes} with recurrence_lora_rank={config.recurrence_lora_rank} and block_model_type="
            f"{config.block_model_type!r}: the updates of a recurrence need whole vectors, which the family's plan "
            "splits. Use tp_size=1."
        )
    counts = {}
    if splits_heads(plan):
        counts = {name: getattr(config, name) for name in ("num_attention_heads", "num_key_value_heads")}
    if any("mlp" in name and style in ("colwise", "packed_colwise") for name, style in plan.items()):
        counts["intermediate_size"] = config.intermediate_size
    for name, count in counts.items():
        if count % processes:
            raise ValueError(
                f"tp_size={processes} cannot split {name}={count}: every process takes the same number. Choose a "
                f"tp_size that divides {' and '.join(f'{name}={count}' for name, count in counts.items())}."
            )


def check_paged_cache(model) -> None:
    """
    Raises a `ValueError` where continuous batching would have room for the heads of all processes in each of them: it
    looks for `k_proj` in the plan, which a fused projection does not have.
    """
    split = heads_of_process(model) != model.config.num_key_value_heads
    if split and not any(name.endswith("k_proj") for name in model.tp_plan):
        raise ValueError(
            f"Continuous batching does not know the split of a fused projection over tp_size={model._tp_size} "
            "processes. Use generate, or vLLM with tensor_parallel_size."
        )


def own_heads(states: torch.Tensor, projection, sizes: tuple[int, ...]) -> torch.Tensor:
    """
    The queries, keys and values of this process's heads, from its part of a fused projection.

    The rows of the weight are queries, then keys, then values, of which each process holds a contiguous part. The
    outputs are exchanged here, so that each process gets an equal part of all three.

    Args:
        states (`torch.Tensor` of shape `(batch, sequence, sum(sizes) / processes)`): The output of the projection.
        projection (`torch.nn.Linear`): Its weight says which processes have the other parts.
        sizes (`tuple` of `int`): The widths of queries, keys and values over all processes.

    Returns:
        `(batch, sequence, sum(sizes) / processes)`.
    """
    weight = projection.weight
    if not (is_available() and isinstance(weight, DTensor)):
        raise ValueError(
            f"qkv_proj returned {states.shape[-1]} of {sum(sizes)} channels, but its weight is not split over "
            "processes. An engine that splits it must also split heads; use tensor_parallel_size=1."
        )
    mesh = weight.device_mesh if weight.device_mesh.ndim == 1 else weight.device_mesh["tp"]
    parts = DTensor.from_local(states, mesh, [Shard(-1)], run_check=False)
    # Each process uses other heads, so that their gradients are parts of a sum.
    whole = parts.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
    rank = mesh.get_local_rank()
    return torch.cat([part.chunk(mesh.size(), dim=-1)[rank] for part in whole.split_with_sizes(sizes, dim=-1)], dim=-1)


class SplitsOverProcesses:
    """The parallelism of a looped model: tensor parallelism that does not cut through a head, and no pipeline."""

    @classmethod
    def from_pretrained(cls, *args, distributed_config=None, **kwargs):
        """As in transformers; a pipeline is refused."""
        if distributed_config is not None:
            stages = getattr(distributed_config, "pp_size", None)
            if isinstance(distributed_config, dict):
                stages = distributed_config.get("pp_size")
            if stages not in (None, 1):
                raise ValueError(f"distributed_config.pp_size={stages}: {_NO_PIPELINE} Use tp_size or fsdp_size.")
            kwargs["distributed_config"] = distributed_config
        return super().from_pretrained(*args, **kwargs)

    @classmethod
    def maybe_distribute_model(cls, model, distributed_config, *args, **kwargs):
        """As in transformers; a split through heads is refused."""
        if distributed_config is not None:
            check_split(model, distributed_config.tp_size)
        return super().maybe_distribute_model(model, distributed_config, *args, **kwargs)

    @property
    def supports_pp_plan(self) -> bool:
        """As in transformers. vLLM asks before it cuts a model into stages, which is refused."""
        if self.config._attn_implementation == VLLM:
            raise ValueError(f"pipeline_parallel_size must be 1: {_NO_PIPELINE} Use tensor_parallel_size.")
        return super().supports_pp_plan


__all__ = ["SplitsOverProcesses", "check_paged_cache", "heads_of_process", "own_heads", "tensor_parallel_plan"]
