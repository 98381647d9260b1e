"""Which layers of a decoder go before, into and after the loop."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig

from memreason_hf.checks import check_int, check_sequence


@dataclass(frozen=True)
class LayerPlan:
    """
    The layers of a source in a recurrent decoder, as indices that start at 0.

    Attributes:
        prelude, loop, coda (`tuple` of `int`): The layers before, in and after the loop.
        num_source_layers (`int`): How many layers the source has.
    """

    prelude: tuple[int, ...]
    loop: tuple[int, ...]
    coda: tuple[int, ...]
    num_source_layers: int

    @property
    def kept(self) -> tuple[int, ...]:
        """All layers of the result, in their order."""
        return self.prelude + self.loop + self.coda

    @property
    def dropped(self) -> tuple[int, ...]:
        """The layers of the source that the result does not have."""
        return tuple(index for index in range(self.num_source_layers) if index not in self.kept)

    def describe(self) -> str:
        """For a message: `"prelude 0-3, loop 10-17, coda 18-21, dropped 4-9"`."""
        parts = {"prelude": self.prelude, "loop": self.loop, "coda": self.coda, "dropped": self.dropped}
        return ", ".join(f"{name} {_as_ranges(indices)}" for name, indices in parts.items() if indices)


def plan_layers(
    num_layers: int,
    prelude: int | str | Sequence[int] | None = None,
    loop: int | str | Sequence[int] | None = None,
    coda: int | str | Sequence[int] | None = None,
) -> LayerPlan:
    """
    Chooses the layers of a conversion.

    Args:
        num_layers: The number of layers of the source.
        prelude, loop, coda: How many layers, or which: `"0-3"`, `"0-3,7"` or a sequence of indices. As numbers, the
            prelude takes the first layers, the coda the last, and the loop those just before the coda; layers between
            prelude and loop are dropped (as in arXiv 2511.07384). Without a prelude or a coda, all layers before or
            after the loop, if that is a range. Without any of the three, the middle half of the layers is looped and
            none is dropped.

    Raises:
        ValueError: ranges that overlap, are not in the order of the source or go beyond it, or leave no loop.

    Example:

    ```python
    >>> plan_layers(22, 4, 8, 4).describe()
    'prelude 0-3, loop 10-17, coda 18-21, dropped 4-9'
    >>> plan_layers(22, loop="8-13").describe()
    'prelude 0-7, loop 8-13, coda 14-21'
    ```
    """
    given = {"prelude": prelude, "loop": loop, "coda": coda}
    if all(value is None for value in given.values()):
        quarter = num_layers // 4
        given = {"prelude": quarter, "loop": num_layers - 2 * quarter, "coda": quarter}
    chosen = {name: _parse(name, value, num_layers) for name, value in given.items()}
    if isinstance(chosen["loop"], int):
        missing = [f"--{name}" for name in ("prelude", "coda") if given[name] is None]
        if missing:
            raise ValueError(
                f"loop={loop!r} is a number of layers, which needs {' and '.join(missing)}. Give them, or a range "
                "such as --loop 8-13, before and after which all layers are kept."
            )
        numbers = {name: value if isinstance(value, int) else len(value) for name, value in chosen.items()}
        if sum(numbers.values()) > num_layers:
            raise ValueError(
                f"prelude, loop and coda have {' + '.join(map(str, numbers.values()))} = {sum(numbers.values())} "
                f"layers, but the source has {num_layers}."
            )
    parts = _place(chosen, num_layers)
    _check(parts, num_layers)
    return LayerPlan(parts["prelude"], parts["loop"], parts["coda"], num_layers)


def _place(chosen, num_layers):
    """Indices for each part, from numbers and indices."""
    coda = chosen["coda"]
    if isinstance(coda, int):
        coda = tuple(range(num_layers - coda, num_layers))
    loop = chosen["loop"]
    if loop is None:
        given = ", ".join(f"{name}={value!r}" for name, value in chosen.items() if value is not None)
        raise ValueError(f"loop is not given, but {given} is: say which layers are looped, for example --loop 8-13.")
    if isinstance(loop, int):
        end = coda[0] if coda else num_layers
        loop = tuple(range(end - loop, end))
    if coda is None:
        coda = tuple(range(max(loop) + 1, num_layers)) if loop else ()
    prelude = chosen["prelude"]
    if prelude is None:
        prelude = tuple(range(min(loop))) if loop else ()
    elif isinstance(prelude, int):
        prelude = tuple(range(prelude))
    return {"prelude": prelude, "loop": loop, "coda": coda}


def _parse(name, value, num_layers):
    """An `int`, or a tuple of indices; `None` if nothing is given."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        if value is not None and value < 0:
            raise ValueError(f"{name}={value} must not be negative.")
        return value
    if not isinstance(value, str):
        check_sequence(name, value, "a number of layers, a range such as 4-9, or a list of indices")
        value = tuple(value)
        for index in value:
            check_int(name, index, least=0, most=num_layers - 1)
        return value
    text = value.replace(" ", "")
    if text.isdecimal():
        return int(text)
    indices = []
    for piece in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", piece)
        if match is None:
            raise ValueError(f"{name}={value!r} must be a number of layers or a range such as 4-9, counted from 0.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"{name}={value!r}: the range {piece} ends before it begins. Write {last}-{first}.")
        if last >= num_layers:
            raise ValueError(
                f"{name}={value} names layer {max(first, num_layers)}, but the source has the layers "
                f"0-{num_layers - 1}."
            )
        indices += range(first, last + 1)
    return tuple(indices)


def _check(parts, num_layers):
    if not parts["loop"]:
        raise ValueError("loop=0: no layer is left to loop over. Give the loop a layer, for example --loop 8-13.")
    for name, indices in parts.items():
        beyond = [index for index in indices if not 0 <= index < num_layers]
        if beyond:
            raise ValueError(
                f"{name}={_as_ranges(indices)} names layer {beyond[0]}, but the source has the layers "
                f"0-{num_layers - 1}."
            )
    names = list(parts)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            both = sorted(set(parts[first]) & set(parts[second]))
            if both:
                raise ValueError(
                    f"{first}={_as_ranges(parts[first])} and {second}={_as_ranges(parts[second])} overlap in layer "
                    f"{both[0]}. A layer can be in one of them only."
                )
    kept = sum(parts.values(), ())
    if list(kept) != sorted(set(kept)):
        raise ValueError(
            "The layers must keep the order of the source and appear once, got prelude, loop, coda = "
            f"{', '.join(_as_ranges(part) or '-' for part in parts.values())}."
        )


def _as_ranges(indices):
    """`(0, 1, 2, 5)` -> `"0-2,5"`."""
    pieces, start = [], 0
    for end in range(1, len(indices) + 1):
        if end == len(indices) or indices[end] != indices[end - 1] + 1:
            first, last = indices[start], indices[end - 1]
            pieces.append(str(first) if first == last else f"{first}-{last}")
            start = end
    return ",".join(pieces)


def config_with_layers(config: PreTrainedConfig, indices: Sequence[int]) -> PreTrainedConfig:
    """
    The config of a decoder that has the layers `indices` of `config`, in this order and as often as they appear.

    Every list with one entry for each layer (`layer_types`, `no_rope_layers`) follows.
    """
    fields = config.to_dict()
    for name, value in fields.items():
        by_layer = isinstance(value, list) and len(value) == config.num_hidden_layers
        if by_layer and not name.endswith("_token_id") and name != "architectures":
            fields[name] = [value[index] for index in indices]
    fields[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(indices)
    return type(config).from_dict(fields)
