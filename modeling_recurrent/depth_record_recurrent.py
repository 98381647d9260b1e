"""The depth settings of one call of `generate`, and the depth of every token that it generates."""

from dataclasses import dataclass, field

import torch
from transformers.generation import StoppingCriteriaList

from .schedule_recurrent import DepthSchedule
from .speculation_recurrent import Speculation
from .watch_recurrent import FiniteLogits


class RememberedEnds(StoppingCriteriaList):
    """The stopping criteria of a call, which remember the rows whose text has ended."""

    ended: torch.Tensor | None = None

    def __call__(self, input_ids, scores, **kwargs):
        done = super().__call__(input_ids, scores, **kwargs)
        self.ended = done if self.ended is None else self.ended | done
        return done


@dataclass(frozen=True)
class Prompt:
    """
    Everything before the first new token.

    Attributes:
        length (`int`): The number of its tokens, including those in the cache.
        halts_by_row (`bool`): Whether a criterion decides one count for each row and call.
        new_count (`int` or `torch.LongTensor` of shape `(rows, 1)`): The count of each new token if the counts of the
            prompt were given; 0 where a criterion decides.
    """

    length: int
    halts_by_row: bool
    new_count: int | torch.Tensor

    def with_new(self, counts: torch.LongTensor, new_tokens: int) -> torch.LongTensor:
        """`counts` of shape `(rows, tokens)`, followed by those of `new_tokens` new tokens."""
        new = counts.new_zeros((len(counts), new_tokens)) + self.new_count
        return torch.cat((counts, new), dim=1)

    def counts_of(self, counts, past: int, tokens: int):
        """Selects the counts of `tokens` tokens after `past` others. Counts of another form are returned unchanged."""
        if not isinstance(counts, torch.Tensor) or counts.ndim != 2 or counts.shape[1] == tokens:
            return counts
        first = past - (self.length - counts.shape[1])
        if first < 0 or counts.shape[1] > self.length:
            raise ValueError(
                f"num_recurrences has shape {tuple(counts.shape)}, but the prompt has {self.length} tokens, of which "
                f"{past} are in the cache. Give one count for each of the others, or for all tokens."
            )
        counts = counts[:, first : first + tokens]
        return self.with_new(counts, tokens - counts.shape[1])


@dataclass
class DepthRecord:
    """
    The depths of the tokens that one call of `generate` reads and writes.

    Attributes:
        streamer: Receives each new depth if it has a method `put_recurrences`.
        last (`torch.LongTensor` of shape `(rows,)`, *optional*): The index of the last real token of each prompt, if
            prompts are padded on the right.
        ends (`RememberedEnds`, *optional*): Knows the rows whose text has ended.
        prompt (`torch.LongTensor` of shape `(rows, prompt)`, *optional*): The depths of the prompt.
        steps (`list` of `torch.LongTensor` of shape `(rows, new tokens)`): The depths of the positions whose logits
            gave new tokens.
    """

    streamer: object = None
    last: torch.Tensor | None = None
    ends: RememberedEnds | None = None
    prompt: torch.Tensor | None = None
    steps: list = field(default_factory=list)

    def add(self, counts: torch.LongTensor, new_tokens: int) -> None:
        """Adds the `counts` `(rows, positions so far)` of a forward pass; the last `new_tokens` gave new tokens."""
        step = counts[:, -new_tokens:]
        if self.prompt is None:
            self.prompt = counts[:, : counts.shape[1] - new_tokens + 1].clone()
            step = step if self.last is None else counts.gather(1, self.last[:, None])
        if self.ends is not None and self.ends.ended is not None:
            step = step.masked_fill(self.ends.ended.to(step.device)[:, None], 0)
        self.add_step(step.clone())

    def add_step(self, counts: torch.LongTensor) -> None:
        """Adds counts of shape `(rows, new tokens)`: those of the positions whose logits gave the new tokens."""
        self.steps.append(counts)
        if hasattr(self.streamer, "put_recurrences"):
            self.streamer.put_recurrences(counts.cpu())

    def report(self, output, prompt_ids: int) -> None:
        """Adds `num_recurrences` and `prompt_recurrences` to an output whose texts hold `prompt_ids` prompt ids."""
        steps, prompt = torch.cat(self.steps, dim=1), self.prompt
        new = output.sequences.shape[1] - prompt_ids
        steps = steps[:, :new]
        beams = getattr(output, "beam_indices", None)
        if beams is not None:
            beams = beams[:, :new].to(steps.device)
            prompt = prompt[beams[:, 0]]
            steps = steps.gather(0, beams.clamp_min(0)).masked_fill(beams < 0, 0)
        output["num_recurrences"], output["prompt_recurrences"] = steps, prompt


@dataclass
class GenerationCall:
    """
    One call of `generate`.

    Attributes:
        model: The model that generates. An assistant has a call of its own.
        record (`DepthRecord`): The depths of the call so far.
        speculation (`Speculation`, *optional*), schedule (`DepthSchedule`, *optional*): How it decodes.
        prompt_ids (`int`): The number of prompt ids in the returned text; 0 if the prompt was given as embeddings.
        prompt (`Prompt`, *optional*): Set when the cache is prepared.
        positions (`int`): The number of tokens of the current forward pass.
        watch (`FiniteLogits`, *optional*): Notices logits that are no numbers.
    """

    model: torch.nn.Module
    record: DepthRecord
    speculation: Speculation | None = None
    schedule: DepthSchedule | None = None
    prompt_ids: int = 0
    prompt: Prompt | None = None
    positions: int = 0
    watch: FiniteLogits | None = None


__all__ = ["DepthRecord", "GenerationCall", "Prompt", "RememberedEnds"]
