"""A request that runs: its tokens, its memory, and where its newest token stands."""

from dataclasses import astuple, dataclass, field

import torch

from .depth import RequestDepth
from .memory import Region
from .text import TextStream


@dataclass
class Row:
    """
    A request from its submission to its end.

    Attributes:
        request_id (`str`): The name of the request.
        tokens (`list[int]`): The prompt and the new tokens.
        prompt_length (`int`): The tokens of the prompt.
        max_new_tokens (`int`): The most new tokens.
        ends (`frozenset[int]`): Tokens that end the text.
        depth (`RequestDepth`): Decides about the recurrences.
        processors (`LogitsProcessorList`): What changes the scores; empty for plain greedy decoding.
        generator (`torch.Generator`, *optional*): The row's own random numbers; `None` for greedy decoding.
        text (`TextStream`, *optional*): Turns tokens into text.
        top_logprobs (`int`, *optional*): How many log-probabilities are reported.
        state_seed (`int`): The seed of the noise of the initial state.
        region (`Region`, *optional*): The memory of the row while it runs.
        position (`int`): The index of the token that is computed.
        recurrence (`int`): The recurrences that this token has taken.
        deepest (`int`): The slots of the region that hold the past.
        count (`int`, *optional*): The count of this token; `None` where the criterion decides.
        limit (`int`): The most recurrences of this token.
        notes (`frozenset[str]`): The entries that the criterion has noted for this token.
    """

    request_id: str
    tokens: list[int]
    max_new_tokens: int
    ends: frozenset[int]
    depth: RequestDepth
    processors: list
    generator: torch.Generator | None
    text: TextStream | None
    top_logprobs: int | None
    state_seed: int
    region: Region | None = None
    position: int = 0
    recurrence: int = 0
    deepest: int = 1
    count: int | None = None
    limit: int = 1
    notes: frozenset = frozenset()
    prompt_length: int = field(init=False)

    def __post_init__(self):
        self.prompt_length = len(self.tokens)
        criterion = self.depth.criterion
        self.criterion_key = None if criterion is None else (type(criterion), *astuple(criterion))
        self._ids: torch.Tensor | None = None

    @property
    def capacity(self) -> int:
        """The tokens whose keys and values are kept. The last new token is not read."""
        return self.prompt_length + self.max_new_tokens - 1

    def ids(self, device) -> torch.LongTensor:
        """The text so far, `(1, tokens)`."""
        known = 0 if self._ids is None else self._ids.shape[1]
        if known < len(self.tokens):
            new = torch.tensor([self.tokens[known:]], device=device)
            self._ids = new if self._ids is None else torch.cat((self._ids, new), dim=1)
        return self._ids

    def begin_token(self, device) -> None:
        """Turns to the newest token, which has taken no recurrence yet."""
        self.position, self.recurrence, self.notes = len(self.tokens) - 1, 0, frozenset()
        self.count, self.limit = self.depth.of_token(None if self.depth.schedule is None else self.ids(device))


__all__ = ["Row"]
