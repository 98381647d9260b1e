"""How deep each token of a text may go while it is generated: `generate(..., depth_schedule=...)`."""

import torch


class DepthSchedule:
    """
    Turns what a function says of the tokens of a text into the depth of each forward.

    Args:
        depths (callable): `input_ids` of the text so far, `(rows, tokens)` with the padding of the prompt ->
            `LongTensor` of the same shape, at least 1: each token's count, or the most that it may take where a
            halting criterion decides. A token's must not depend on the tokens behind it.
    """

    def __init__(self, depths):
        if not callable(depths):
            raise TypeError(f"depth_schedule={depths!r} is no function of input_ids.")
        self.depths = depths

    @staticmethod
    def check_arguments(kwargs) -> None:
        """Refuses arguments of `generate` that say the same in another way."""
        for name in ("num_recurrences", "max_recurrences", "draft_recurrences"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name}={kwargs[name]!r} and depth_schedule both say how deep it goes: drop one.")
        if kwargs.get("inputs_embeds") is not None:
            raise ValueError("depth_schedule reads input_ids, but the prompt is given as inputs_embeds: give its ids.")

    @staticmethod
    def check_mode(generation_config) -> None:
        """Refuses ways of decoding that do not show the whole text, or have a fixed depth."""
        for name, plain in (("prefill_chunk_size", None), ("cache_implementation", "dynamic")):
            value = getattr(generation_config, name)
            if value not in (None, plain):
                raise ValueError(f"{name}={value!r} does not go with depth_schedule: leave it out.")

    def arguments(self, input_ids: torch.LongTensor, tokens: int, past: int, halts: bool) -> dict:
        """
        The depth of a forward over the last `tokens` of a text behind `past` others, as arguments of `forward`.

        `halts`: a criterion decides.
        """
        if past + tokens != input_ids.shape[1]:
            raise ValueError(
                f"past_key_values holds {past} tokens and the input goes on with {tokens}, but only "
                f"{input_ids.shape[1]} ids are given: depth_schedule reads the whole text, give all of its input_ids."
            )
        depths = self.depths(input_ids)
        if not isinstance(depths, torch.Tensor) or depths.shape != input_ids.shape or depths.dtype != torch.long:
            got = f"{depths.dtype} {tuple(depths.shape)}" if isinstance(depths, torch.Tensor) else repr(depths)
            raise ValueError(f"depth_schedule gave {got} for {tuple(input_ids.shape)} tokens: one count for each.")
        depths = depths[:, -tokens:].to(input_ids.device)
        if (depths < 1).any():
            raise ValueError(f"depth_schedule gave {int(depths.min())}: a token takes at least 1 recurrence.")
        return {"max_recurrences": depths} if halts else {"num_recurrences": _simplest(depths)}


def _simplest(counts):
    """Counts of tokens as those of rows, or as one, where they are: that is cheaper."""
    if not (counts == counts[:, :1]).all():
        return counts
    rows = counts[:, 0]
    return int(rows[0]) if (rows == rows[0]).all() else rows


__all__ = ["DepthSchedule"]
