"""
Every patch of an object that another library defines.

A patch changes one object, never a class or a module, so other models of the same process are not affected. It
survives `copy.deepcopy`: the copy is patched on its own. Each function says what it changes, on which object, and why
the library has no public way.

The model cannot import this module, because its files travel with checkpoints. It puts the names of its classes into
`transformers`, where `transformers serve` looks for them, at the end of `modeling_recurrent/__init__.py`.

| function | object | undone by |
|---|---|---|
| `override` | a method of a cache, or of a model | `remove_override` |
| `attach` | a value that belongs to a cache, or to a decoder | `detach` |
| `swap_class` | a layer of PEFT, or its wrapper | `restore_class` |
| `keep_unpacked` | the 4-bit layers of bitsandbytes | the function it returns |
| `name_tokens` | a tokenizer | `unname_tokens` |
| `show_tokens` | a tokenizer | `name_tokens`, then the tokenizer's own `add_special_tokens` |
"""

import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from tokenizers import AddedToken
from torch import nn
from transformers import PreTrainedTokenizerBase


_PREFIX = "_memreason_"


def override(obj: Any, name: str, function: Callable) -> None:
    """
    Makes `obj.name(*args)` call `function(obj, *args)`, which can call the method of the class, `type(obj).name`.

    - On a [`~transformers.Cache`]: its methods that move rows or tokens. A cache has no hooks for them, and
      `steps.cached_ids` keeps data for every row.
    - On a [`~transformers.PreTrainedModel`]: `_validate_generation_mode`, the only method that `generate` calls with
      the final generation config before it starts. `steps.attention` refuses beam search there.

    Args:
        obj: The object to patch. It gets an instance attribute in front of the method of its class.
        name (`str`): The method.
        function (`Callable`): Its replacement. It must be defined at the top of a module, so that the object can
            still be pickled. A shallow copy (`copy.copy`) calls it with the original object.

    Raises:
        AttributeError: the class has no such method.
    """
    if not callable(getattr(type(obj), name, None)):
        raise AttributeError(f"{type(obj).__name__} has no method {name} that could be overridden.")
    # nn.Module would register a module, and a partial is none: it goes into the object's own attributes.
    setattr(obj, name, partial(function, obj))


def remove_override(obj: Any, name: str) -> None:
    """Undoes `override`. The object has the method of its class again."""
    vars(obj).pop(name, None)


def attach(obj: Any, name: str, value: Any) -> None:
    """
    Keeps a value with an object, as the attribute `_memreason_{name}`.

    - On a [`~transformers.Cache`]: the ids of its tokens (`steps.cached_ids`).
    - On the decoder of a model: the attention between steps (`steps.attention`).

    A dict from objects to values would not follow `copy.deepcopy`, and neither class has a place for additional data.
    """
    setattr(obj, _PREFIX + name, value)


def attached(obj: Any, name: str) -> Any:
    """The value that `attach` keeps with an object, or `None`."""
    return getattr(obj, _PREFIX + name, None)


def detach(obj: Any, name: str) -> None:
    """Undoes `attach`."""
    if hasattr(obj, _PREFIX + name):
        delattr(obj, _PREFIX + name)


def swap_class(layer: nn.Module, subclass: type[nn.Module]) -> None:
    """
    Makes a layer an instance of a subclass of its class.

    On PEFT's `TrainableTokensLayer`: `adapters.rows` computes the gradients of the new rows alone. PEFT creates these
    layers itself and only lets LoRA layers be replaced by other classes. On its `TrainableTokensWrapper`: the head has
    a `bias` then.

    Args:
        layer (`torch.nn.Module`): The layer to patch. Its attributes stay as they are.
        subclass (`type`): A subclass without an `__init__` of its own.

    Raises:
        TypeError: not a subclass of the layer's class.
    """
    if not issubclass(subclass, type(layer)):
        raise TypeError(f"{subclass.__name__} is not a subclass of {type(layer).__name__}.")
    layer.__class__ = subclass


def restore_class(layer: nn.Module, original: type[nn.Module]) -> None:
    """
    Undoes `swap_class`.

    Raises:
        TypeError: the layer is not an instance of a subclass of `original`.
    """
    if not isinstance(layer, original):
        raise TypeError(f"layer must be an instance of a subclass of {original.__name__}, got {type(layer).__name__}.")
    layer.__class__ = original


def keep_unpacked(model: nn.Module) -> Callable[[], None]:
    """
    Keeps the 4-bit weights of a model in the form that has gradients.

    Sets `support_avx512bf16_for_cpu` to `False` on every `Linear4bit` of bitsandbytes. On CPUs with AVX-512 for
    bfloat16, bitsandbytes packs the weights at the first evaluation: it rounds their scales to bfloat16, and training
    that goes on afterwards silently gets no gradients through them. bitsandbytes has no setting for it.

    Args:
        model (`torch.nn.Module`): Any model. Without 4-bit layers nothing changes.

    Returns:
        A function that undoes the patch.
    """
    layers = [module for module in model.modules() if getattr(module, "support_avx512bf16_for_cpu", False)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
        if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            # Reading the state unpacks it.
            layer.state_dict()

    def undo():
        for layer in layers:
            layer.support_avx512bf16_for_cpu = True

    return undo


def name_tokens(tokenizer: PreTrainedTokenizerBase, names: Iterable[str]) -> None:
    """
    Lets a tokenizer have special tokens of other names than `bos_token` and the like: `tokenizer.memory_token`.

    The instance gets a list `SPECIAL_TOKENS_ATTRIBUTES` of its own, in front of that of the class. The library then
    saves, loads and completes these names with `_id`; it extends the list in the same way for
    `model_specific_special_tokens`, but only while a tokenizer is created.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer to patch.
        names (`Iterable[str]`): The names, for example `"memory_token"`. Existing ones are skipped.
    """
    known = list(tokenizer.SPECIAL_TOKENS_ATTRIBUTES)
    tokenizer.SPECIAL_TOKENS_ATTRIBUTES = [*known, *(name for name in dict.fromkeys(names) if name not in known)]


def unname_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Undoes `name_tokens`. The tokens themselves stay in the vocabulary."""
    vars(tokenizer).pop("SPECIAL_TOKENS_ATTRIBUTES", None)


def show_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> None:
    """
    Makes special tokens of a tokenizer ordinary added tokens, which `skip_special_tokens=True` does not remove.

    `add_special_tokens` of the library can make an ordinary token special, but nothing undoes it. Here the tokens are
    taken out of the extra special tokens, lose their names (a named token becomes special again when it is loaded),
    and are no longer marked as special in the backend. The new state is what `save_pretrained` writes.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer to patch.
        tokens (`Iterable[str]`): Tokens of its vocabulary, which keep their ids. Others are ignored.
    """
    tokens = set(tokens)
    special = tokens & set(tokenizer.all_special_tokens)
    special |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special} & tokens
    if special and tokenizer.is_fast:
        # The backend skips a token for ever once it was special, so it is made anew, as if it came from a pickle.
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        for token in state["added_tokens"]:
            token["special"] = token["special"] and token["content"] not in tokens
        tokenizer.backend_tokenizer.__setstate__(json.dumps(state).encode())
    elif special:
        tokenizer.added_tokens_decoder = {
            id_: AddedToken(token.content, normalized=False, special=False) if token.content in tokens else token
            for id_, token in tokenizer.added_tokens_decoder.items()
        }
    names = [name for name, token in tokenizer.special_tokens_map.items() if token in tokens]
    # `save_pretrained` starts from the arguments that the tokenizer was loaded with.
    loaded = tokenizer.init_kwargs
    for name in names:
        setattr(tokenizer, name, None)
        for kept in (loaded, loaded.get("model_specific_special_tokens") or {}):
            kept.pop(name, None)
    known = tokenizer.SPECIAL_TOKENS_ATTRIBUTES
    tokenizer.SPECIAL_TOKENS_ATTRIBUTES = [name for name in known if name not in names]
    tokenizer.extra_special_tokens = [token for token in tokenizer.extra_special_tokens if token not in tokens]
    loaded.pop("extra_special_tokens", None)
