"""The depth of each token of a generated text: `generate(..., depth_schedule=...)`."""

import torch


class DepthSchedule:
    """
    Turns a function of the text into the depth of each forward pass.

    Args:
        depths (`Callable`): Maps the ids of the text so far (`(rows, tokens)`, with the padding of the prompt) to a
            `torch.LongTensor` of the same shape: the count of each token, at least 1, or the most recurrences that it
            may take where a halting criterion decides. The count of a token must not depend on later tokens.
    """

    def __init__(self, depths):
        if not callable(depths):
            raise TypeError(f"depth_schedule must be a function of input_ids, got {depths!r}.")
        self.depths = depths

    @staticmethod
    def check_arguments(kwargs) -> None:
        """Refuses arguments of `generate` that contradict a schedule."""
        for name in ("num_recurrences", "max_recurrences", "draft_recurrences"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name}={kwargs[name]!r} and depth_schedule both set the depth. Drop one of them.")
        if kwargs.get("inputs_embeds") is not None:
            raise ValueError(
                "depth_schedule reads input_ids, but the prompt was given as inputs_embeds. Pass its ids."
            )

    @staticmethod
    def check_mode(generation_config) -> None:
        """Refuses ways of decoding that do not show the whole text or have a fixed depth."""
        for name, plain in (("prefill_chunk_size", None), ("cache_implementation", "dynamic")):
            value = getattr(generation_config, name)
            if value not in (None, plain):
                raise ValueError(f"{name}={value!r} cannot be combined with depth_schedule. Leave it out.")

    def arguments(self, input_ids: torch.LongTensor, tokens: int, past: int, halts: bool) -> dict:
        """
        The depth arguments of a forward pass over the last `tokens` tokens of a text, after `past` others.

        `halts` tells whether a criterion decides.
        """
        if past + tokens != input_ids.shape[1]:
            raise ValueError(
                f"past_key_values holds {past} tokens and the input adds {tokens}, but there are only "
                f"{input_ids.shape[1]} ids. depth_schedule reads the whole text: pass all of its input_ids."
            )
        depths = self._depths_of(input_ids)
        depths = depths[:, -tokens:].to(input_ids.device)
        if (depths < 1).any():
            raise ValueError(f"depth_schedule must return counts of at least 1, got {int(depths.min())}.")
        return {"max_recurrences": depths} if halts else {"num_recurrences": _simplest(depths)}

    def of_last(self, input_ids: torch.LongTensor) -> int:
        """The depth of the last token of one text, `(1, tokens)`."""
        depth = self._depths_of(input_ids)[0, -1].item()
        if depth < 1:
            raise ValueError(f"depth_schedule must return counts of at least 1, got {depth}.")
        return depth

    def _depths_of(self, input_ids):
        depths = self.depths(input_ids)
        if not isinstance(depths, torch.Tensor) or depths.shape != input_ids.shape or depths.dtype != torch.long:
            got = f"{depths.dtype} {tuple(depths.shape)}" if isinstance(depths, torch.Tensor) else repr(depths)
            raise ValueError(
                f"depth_schedule must return a LongTensor of shape {tuple(input_ids.shape)}, a count for each token, "
                f"got {got}."
            )
        return depths


def _simplest(counts):
    """Reduces counts of tokens to counts of rows or to one count where they agree, which is cheaper."""
    if not (counts == counts[:, :1]).all():
        return counts
    rows = counts[:, 0]
    return int(rows[0]) if (rows == rows[0]).all() else rows


__all__ = ["DepthSchedule"]
