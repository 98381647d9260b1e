"""The decode loop that is batched by depth."""

import uuid
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from memreason_hf.checks import check_int

from .choosing import TokenChooser
from .core import DepthCore
from .halting import RowCriteria
from .memory import CacheMemory, CacheShape, default_cache_tokens
from .offline import OfflineMixin
from .plan import RequestPlanner
from .prompts import PromptQueue
from .requests import CacheTooSmall, GenerationRequest, QueueFull, TokenOutput
from .rows import Row


@dataclass
class BatcherStats:
    """
    What a batcher holds and has done.

    Attributes:
        waiting, running (`int`): Requests that wait, and those that have memory.
        slots_used, slots_total (`int`): Cells of the cache. A cell holds a key or a value of one head for one token
            in one layer at one recurrence.
        tokens (`int`): New tokens so far.
        prompt_tokens (`int`): Tokens of prompts so far.
        recurrences (`int`): Recurrences behind the new tokens so far.
        finished (`int`): Requests that have ended.
    """

    waiting: int
    running: int
    slots_used: int
    slots_total: int
    tokens: int
    prompt_tokens: int
    recurrences: int
    finished: int


class DepthBatcher(OfflineMixin):
    """
    Generates the texts of many requests at once, batched by depth.

    Every row stands at its own recurrence of its own token, and one forward of the core moves all rows by one
    recurrence. A row whose token has halted gives it out and goes on with its next token in the next forward, so no
    row waits for a deeper one. Tokens of prompts run in the same forward, where they may differ in their depths.
    Requests enter in the order of their submission as soon as there is memory for all of their tokens, and leave it
    when they end. Texts and depths are those of `generate` for each request alone.

    One thread drives the batcher: none of the methods may run at the same time as another.

    Args:
        model (`RecurrentDepthForCausalLM`): The model, in evaluation mode.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): For text and stop strings.
        max_rows (`int`, defaults to 32): The most requests that run at once.
        max_cache_tokens (`int`, *optional*): The tokens that fit into the cache at `max_recurrences` of the config;
            more if requests are shallower. By default a part of the free memory, but no more than `max_rows` texts of
            `max_position_embeddings` tokens need.
        max_waiting (`int`, *optional*): The most requests that wait.
        prefill_tokens (`int`, defaults to 256): The tokens of prompts that run in a forward of the core or before it,
            so that a long prompt does not hold up the other rows. A prompt that has one count as a whole is not cut.

    Example:

    ```python
    >>> import torch
    >>> from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
    >>> from memreason_hf.serving.batching import DepthBatcher, GenerationRequest

    >>> config = RecurrentDepthConfig.llama_style(vocab_size=100, hidden_size=32, num_attention_heads=4)
    >>> batcher = DepthBatcher(RecurrentDepthForCausalLM(config).eval(), max_cache_tokens=64)
    >>> for recurrences in (2, 5):
    ...     name = batcher.submit(GenerationRequest([1, 2, 3], max_new_tokens=4, num_recurrences=recurrences))
    >>> outputs = []
    >>> while batcher.has_work:
    ...     outputs += batcher.step()
    >>> len(outputs), {output.num_recurrences for output in outputs} == {2, 5}
    (8, True)
    ```
    """

    def __init__(
        self,
        model,
        tokenizer=None,
        *,
        max_rows: int = 32,
        max_cache_tokens: int | None = None,
        max_waiting: int | None = None,
        prefill_tokens: int = 256,
    ):
        model = _usable(model)
        check_int("max_rows", max_rows, 1)
        check_int("prefill_tokens", prefill_tokens, 1)
        for name, value, least in (("max_cache_tokens", max_cache_tokens, 1), ("max_waiting", max_waiting, 0)):
            if value is not None:
                check_int(name, value, least)
        config = model.config
        recurrences = max(config.max_recurrences, config.num_recurrences)
        if max_cache_tokens is None:
            size = model.dtype.itemsize
            max_cache_tokens = default_cache_tokens(config, model.device, size, max_rows, recurrences)
        self.model, self.tokenizer = model, tokenizer
        self.max_rows, self.max_waiting, self.prefill_tokens = max_rows, max_waiting, prefill_tokens
        self.memory = CacheMemory(config, CacheShape(config).cells(max_cache_tokens, recurrences))
        self._planner = RequestPlanner(model, tokenizer)
        self._core, self._chooser = DepthCore(model, self.memory), TokenChooser()
        self._waiting: deque[Row] = deque()
        self._prompts = PromptQueue(self._core, prefill_tokens)
        self._rows: list[Row] = []
        self._known: dict[str, Row] = {}
        self._notices: list[TokenOutput] = []
        self._criteria = RowCriteria()
        self._state: torch.Tensor | None = None
        self._inputs: torch.Tensor | None = None
        self._done = BatcherStats(0, 0, 0, self.memory.total, 0, 0, 0, 0)

    # ---- Requests ----

    def submit(self, request: GenerationRequest) -> str:
        """
        Adds a request to the end of the queue and returns its id.

        Raises:
            `ValueError`, `TypeError`: The request holds what cannot run. The message names the field.
            `QueueFull`: `max_waiting` requests wait.
        """
        if self.max_waiting is not None and len(self._waiting) >= self.max_waiting:
            raise QueueFull(f"max_waiting={self.max_waiting} requests are waiting. Try again later.")
        return self._enter(request)

    def _enter(self, request):
        if self.model.training:
            raise ValueError("The model is in training mode, with dropout. Call model.eval().")
        request_id = request.request_id or uuid.uuid4().hex
        if request_id in self._known:
            raise ValueError(f"request_id={request_id!r} is in use.")
        row = self._planner.plan(request, request_id)
        if not self.memory.fits(row.capacity, row.depth.limit):
            needed = self.memory.shape.cells(row.capacity, row.depth.limit)
            raise CacheTooSmall(row.prompt_length, row.max_new_tokens, row.depth.limit, needed, self.memory.total)
        self._known[request_id] = row
        self._waiting.append(row)
        return request_id

    def cancel(self, request_id: str) -> bool:
        """
        Ends a request and frees its memory at once. Its last output comes with the next step.

        Returns whether there was such a request.
        """
        row = self._known.get(request_id)
        if row is None:
            return False
        if row in self._rows:
            self._leave([row])
        else:
            self._waiting = deque(other for other in self._waiting if other is not row)
            self._prompts.drop(row)
        self._notices.append(TokenOutput(request_id, finish_reason="cancelled"))
        self._release(row)
        return True

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._known or self._notices)

    def stats(self) -> BatcherStats:
        """What the batcher holds now and has done so far."""
        self._done.waiting, self._done.running = len(self._waiting), len(self._known) - len(self._waiting)
        self._done.slots_used, self._done.prompt_tokens = self.memory.used, self._prompts.tokens_done
        return BatcherStats(**vars(self._done))

    def __iter__(self) -> Iterator[TokenOutput]:
        """The outputs of all requests, until there is no work left. Requests may be added meanwhile."""
        while self.has_work:
            yield from self.step()

    # ---- One step ----

    @torch.inference_mode()
    def step(self) -> list[TokenOutput]:
        """
        Begins parts of prompts, then runs one forward of the core over their tokens and all rows, whatever the
        recurrence of each.

        Returns the new tokens and the ends of requests.
        """
        outputs, self._notices = self._notices, []
        self._admit()
        outputs += self._run_prompts()
        if self._rows or self._prompts.groups:
            outputs += self._run_core()
        return outputs

    def _admit(self):
        """Gives memory to requests in their order. None passes the first, so that a long one is not starved."""
        while self._waiting and len(self._rows) + len(self._prompts) < self.max_rows:
            row = self._waiting[0]
            row.region = self.memory.allocate(row.capacity, row.depth.limit)
            if row.region is None:
                return
            self._waiting.popleft()
            self._prompts.add(row)

    def _run_prompts(self):
        outputs = []
        for row, logits, problem in self._prompts.begin():
            outputs += self._fail(row, problem) if logits is None else self._open_text([row], logits)
        return outputs

    def _run_core(self):
        """One recurrence of all rows and of the tokens of prompts."""
        rows, groups = self._rows, self._prompts.groups
        if rows:
            self._start_tokens(rows)
        state, inputs = self._state, self._inputs
        if groups:
            state, inputs = self._with_prompts(state, inputs, rows, groups)
        places = [place for group in groups for place in group.next()]
        state = self._core.recur(rows, state, inputs, places)
        outputs = []
        if rows:
            self._state = state[: len(rows)]
            outputs += self._end_tokens(rows)
        if groups:
            complete = self._prompts.take(state[len(rows) :])
            if complete:
                rows, logits = zip(*complete)
                outputs += self._open_text(rows, torch.cat(logits))
        return outputs

    @staticmethod
    def _with_prompts(state, inputs, rows, groups):
        """State and input of the rows, then those of the tokens of prompts."""
        states, all_inputs = [group.state for group in groups], [group.inputs for group in groups]
        if rows:
            states, all_inputs = [state, *states], [inputs, *all_inputs]
        return torch.cat(states), torch.cat(all_inputs)

    def _start_tokens(self, rows):
        """Starts the newest token of the rows that have given one out, and turns all rows to the next recurrence."""
        starting = [index for index, row in enumerate(rows) if row.recurrence == 0]
        if starting:
            inputs, state = self._core.start([rows[index] for index in starting])
            if len(starting) == len(rows):
                self._inputs, self._state = inputs, state
            else:
                self._place(torch.tensor(starting, device=inputs.device), inputs, state)
        for row in rows:
            row.recurrence += 1
            if row.recurrence > row.deepest:
                self._open_slot(row)

    def _end_tokens(self, rows):
        """Gives out the tokens of the rows that have halted."""
        halted, logits = self._judge(rows)
        if not halted:
            return []
        leaving = [rows[index] for index in halted]
        for row in leaving:
            if row.recurrence < row.deepest:
                self._fill_deeper(row)
        if logits is None:
            state = self._state if len(halted) == len(rows) else self._state[self._index(halted)]
            logits = self.model.compute_logits(self._core.finish(leaving, state))
        return self._give_out(leaving, logits)

    # At recurrence t a row reads of each token what it computed at recurrence min(t, its count). A slot that no token
    # of the row has reached is not filled at all, which at depths far below the limit saves most of the copies.

    def _open_slot(self, row):
        """Fills the first slot that is deeper than any so far: for the past it repeats the one before."""
        slots = row.region.recurrences(self.memory.cells)
        slots[row.recurrence - 1, :, :, : row.position] = slots[row.recurrence - 2, :, :, : row.position]
        row.deepest = row.recurrence

    def _fill_deeper(self, row):
        """Repeats the last recurrence of a token that has halted in the deeper slots of its row."""
        slots = row.region.recurrences(self.memory.cells).select(3, row.position)
        slots[row.recurrence : row.deepest] = slots[row.recurrence - 1]

    def _judge(self, rows):
        """The rows (indices) whose token has halted, and their logits if a criterion has computed them."""
        core, state = self._core, self._state
        logits_of: dict[int, int] = {}
        computed: list[torch.Tensor] = []

        def read(what, indices):
            part = state if len(indices) == len(rows) else state[self._index(indices)]
            if what == "state":
                return part[:, 0].float()
            if what == "exit_gate":
                return core.decoder.exit_gate(core.decoder.norm(part))[:, 0].float().sigmoid()
            logits = self.model.compute_logits(core.finish([rows[index] for index in indices], part))
            logits_of.update((index, place) for place, index in enumerate(indices))
            computed.append(logits)
            return logits.float().log_softmax(-1)

        opinions = self._criteria.ask(rows, read)
        halted = []
        for index, row in enumerate(rows):
            if row.count is None:
                done = row.recurrence >= row.limit
                done = done or (opinions[index] and row.recurrence >= row.depth.min_recurrences)
            else:
                done = row.recurrence >= row.count
            if done:
                halted.append(index)
        if computed and all(index in logits_of for index in halted):
            return halted, computed[0][self._index([logits_of[index] for index in halted])]
        return halted, None

    def _index(self, indices):
        return torch.tensor(indices, dtype=torch.long, device=self._state.device)

    # ---- Rows that come, give out a token, and go ----

    def _place(self, places, inputs, state):
        """Sets the rows that start a token. Rows that have joined since the last step stand at the end."""
        missing = len(self._rows) - len(self._state)
        if missing:
            room = state.new_zeros((missing, *state.shape[1:]))
            self._state, self._inputs = torch.cat((self._state, room)), torch.cat((self._inputs, room))
        self._inputs.index_copy_(0, places, inputs)
        self._state.index_copy_(0, places, state)

    def _open_text(self, rows, logits):
        """Gives out the first new token of rows, which then join the others."""
        outputs = self._give_out(rows, logits)
        joining = [row for row in rows if row.request_id in self._known]
        self._rows += joining
        self._criteria.add(len(joining))
        return outputs

    def _leave(self, rows):
        gone = {id(row) for row in rows}
        kept = [index for index, row in enumerate(self._rows) if id(row) not in gone]
        self._rows = [self._rows[index] for index in kept]
        if self._state is not None:
            index = self._index(kept)
            self._criteria.keep(index)
            index = index[: sum(place < len(self._state) for place in kept)]
            self._state, self._inputs = self._state[index], self._inputs[index]

    def _release(self, row):
        if row.region is not None:
            self.memory.free(row.region)
            row.region = None
        del self._known[row.request_id]
        self._done.finished += 1

    def _give_out(self, rows, logits):
        outputs, ended = [], []
        for row, (token, logprobs, error) in zip(rows, self._chooser.choose(rows, logits)):
            output = TokenOutput(row.request_id, token, row.recurrence, logprobs, None, None, error)
            outputs.append(output)
            if token is None:
                output.finish_reason, output.num_recurrences = "error", 0
            else:
                self._take(row, output)
            if output.finish_reason is None:
                try:
                    row.begin_token(self._core.device)
                except Exception as problem:  # a schedule of the request must not end the others
                    output.finish_reason, output.error = "error", f"{type(problem).__name__}: {problem}"
            if output.finish_reason is not None:
                ended.append(row)
        if ended:
            running = [row for row in ended if row in self._rows]
            if running:
                self._leave(running)
            for row in ended:
                self._release(row)
        return outputs

    def _take(self, row, output):
        """Adds a token to its row, and finds out whether it is the last."""
        row.tokens.append(output.token_id)
        self._done.tokens += 1
        self._done.recurrences += row.recurrence
        if output.token_id in row.ends:
            output.finish_reason = "stop"
        elif len(row.tokens) - row.prompt_length >= row.max_new_tokens:
            output.finish_reason = "length"
        if row.text is not None:
            output.text, stops = row.text.add(output.token_id, last=output.finish_reason is not None)
            output.finish_reason = "stop" if stops else output.finish_reason

    def _fail(self, row, problem):
        self._release(row)
        return [TokenOutput(row.request_id, finish_reason="error", error=f"{type(problem).__name__}: {problem}")]


def _usable(model):
    """
    The model itself, without a PEFT wrapper.

    Raises:
        `ValueError`: The model cannot be batched by depth.
    """
    if hasattr(model, "get_base_model"):
        if getattr(model.active_peft_config, "is_prompt_learning", False):
            raise ValueError("An adapter that adds a prompt cannot be batched by depth. Use generate.")
        model = model.get_base_model()
    config, reason = getattr(model, "config", None), None
    if not hasattr(config, "max_recurrences") or not hasattr(model, "compute_logits"):
        raise ValueError(f"DepthBatcher needs a RecurrentDepthForCausalLM, got {type(model).__name__}.")
    if model.training:
        reason = "it is in training mode, with dropout. Call model.eval()"
    elif config._attn_implementation not in ("sdpa", "eager"):
        reason = f"attn_implementation={config._attn_implementation!r} is not 'sdpa' or 'eager'"
    elif config.cache_recurrences != "all":
        reason = f"cache_recurrences={config.cache_recurrences!r} keeps one recurrence, but rows read their own"
    elif len({parameter.device for parameter in model.parameters()}) > 1:
        reason = "its weights are on several devices"
    if reason is not None:
        raise ValueError(f"The model cannot be batched by depth: {reason}.")
    return model


__all__ = ["BatcherStats", "DepthBatcher"]
