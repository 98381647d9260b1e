"""The products of a block taken apart again: queries, keys and values; gate and up. For independent references."""


def projections(attention):
    """Weights and biases of the queries, keys and values, which the model computes with one product: 3 pairs."""
    sizes = [heads * attention.head_dim for heads in attention.heads]
    product = attention.qkv_proj
    biases = [None] * 3 if product.bias is None else product.bias.split(sizes)
    return list(zip(product.weight.split(sizes), biases))


def add_update(config, norm, hidden, update):
    """What a sublayer adds to its input, with the second norm of a block where there is one."""
    if config.block_norm == "sandwich":
        return hidden + norm(update)
    return norm(hidden + update) if config.block_norm == "residual" else hidden + update


def norm_between(decoder):
    """The norm of the state between recurrences, or `None`."""
    return decoder.norm if decoder.config.state_norm == "last" else decoder.state_norm


def llama_weights(block):
    """The weights of a block without biases, by the names that the library's Llama gives them."""
    weights = block.state_dict()
    gate, up = weights.pop("mlp.gate_up_proj.weight").chunk(2)
    del weights["self_attn.qkv_proj.weight"]
    apart = {f"self_attn.{name}_proj.weight": weight for name, (weight, _) in zip("qkv", projections(block.self_attn))}
    return {**weights, **apart, "mlp.gate_proj.weight": gate, "mlp.up_proj.weight": up}
