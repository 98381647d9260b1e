"""How the modules of a decoder are split over the ranks of a tensor-parallel group."""


def tensor_parallel_plan(config) -> dict[str, str]:
    """
    The plan for the modules that a model of a config has.

    Args:
        config (`RecurrentDepthConfig`): `block_model_type` and `gated_mlp` are read.
    """
    if config.block_model_type is not None:
        return dict(getattr(config.make_block_config(), "base_model_tp_plan", None) or {})
    # The output of a fused projection is split into queries, keys and values, or into gate and up projection, so it
    # has to be gathered first.
    plan = {
        "self_attn.qkv_proj": "colwise_gather_output",
        "self_attn.o_proj": "rowwise_split_input",
        "mlp.gate_up_proj" if config.gated_mlp else "mlp.up_proj": "colwise_gather_output",
        "mlp.down_proj": "rowwise_split_input",
    }
    return {f"layers.*.{module}": how for module, how in plan.items()}


__all__ = ["tensor_parallel_plan"]
