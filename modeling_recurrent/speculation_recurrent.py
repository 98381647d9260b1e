"""
Self-speculation: tokens are drafted with few recurrences and verified, several at once, with all of them.

In a round, the newest token of every row runs `draft_recurrences` and proposes the next token, which does the same,
and so on. Then all of these tokens continue from the states that they have reached, in one forward up to the full
depth: their first recurrences are those of a full run, so nothing is computed twice. A row keeps the drafts up to the
first one that the full depth would not have chosen, and the token that the full depth chose there. Rows accept drafts
independently: a draft that one row rejects while another accepts stays in the cache as a masked hole, and positions
are given explicitly.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.generation import GenerateDecoderOnlyOutput, GenerationMode, logits_process

from .arguments_recurrent import DEPTH_ARGUMENTS
from .halting_recurrent import resolve_depth
from .stock_caches_recurrent import is_stock
from .watch_recurrent import FiniteLogits


# Processors that read the scores only: one call serves rows of all lengths.
_POINTWISE = (
    FiniteLogits,
    logits_process.TemperatureLogitsWarper,
    logits_process.TopKLogitsWarper,
    logits_process.TopPLogitsWarper,
    logits_process.MinPLogitsWarper,
    logits_process.TypicalLogitsWarper,
    logits_process.EpsilonLogitsWarper,
    logits_process.EtaLogitsWarper,
)

# Processors with a state that drafts would disturb.
_REMEMBERING = (
    logits_process.UnbatchedClassifierFreeGuidanceLogitsProcessor,
    logits_process.SynthIDTextWatermarkLogitsProcessor,
)

# The cache is packed when the share of real tokens falls below this.
MOST_REAL = 0.75

# Arguments of the prompt's forward that the rounds leave out or set themselves.
_OF_THE_PROMPT = (
    "attention_mask",
    "position_ids",
    "past_key_values",
    "inputs_embeds",
    "logits_to_keep",
    "num_recurrences",
    "use_cache",
    "tokenizer",
)


@dataclass
class Speculation:
    """
    The settings of self-speculation in a call of `generate`.

    Args:
        draft_recurrences (`int`): Recurrences of a draft; fewer than the fixed count of the call.
        draft_tokens (`int`, *optional*, defaults to 4): The maximum number of tokens drafted in a round.
    """

    draft_recurrences: int
    draft_tokens: int | None = None

    def __post_init__(self):
        if self.draft_tokens is None:
            self.draft_tokens = 4
        for name in ("draft_recurrences", "draft_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r}.")
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")

    def check_arguments(self, kwargs) -> None:
        """Refuses arguments that make `generate` leave its usual path early."""
        if kwargs.get("custom_generate") is not None:
            self._refuse(f"custom_generate={kwargs['custom_generate']!r}, which decodes by itself")
        if kwargs.get("cache_implementation") == "paged":
            self._refuse("cache_implementation='paged': leave it out")

    def check_mode(self, generation_config, generation_mode) -> None:
        """Refuses ways of decoding that drafts do not support."""
        reason = None
        if generation_mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
            reason = f"{generation_mode.value.replace('_', ' ')}: only greedy decoding and sampling are supported"
        elif generation_config.use_cache is False:
            reason = "use_cache=False: accepted drafts continue from the cache"
        elif generation_config.cache_implementation not in (None, "dynamic"):
            reason = f"cache_implementation={generation_config.cache_implementation!r}: leave it out"
        for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
            if reason is None and getattr(generation_config, name):
                reason = f"{name}=True: rows of a batch are not at the same step. Score the finished text instead"
        self._refuse(reason)

    def full_count(self, model, model_kwargs, rows: int) -> int:
        """The count at which drafts are verified. Refuses calls without one, and caches that cannot hold drafts."""
        cache, reason, depth = model_kwargs["past_key_values"], None, None
        if not isinstance(model_kwargs.get("num_recurrences"), torch.Tensor):
            given = {name: model_kwargs.get(name) for name in DEPTH_ARGUMENTS}
            depth = resolve_depth(model.config, (rows, 1), "cpu", **given)
        if not isinstance(depth, int):
            reason = "counts that differ or a halting criterion: give an int num_recurrences"
        elif self.draft_recurrences >= depth:
            reason = f"num_recurrences={depth}: a draft must take fewer recurrences"
        elif is_stock(cache):
            reason = f"a {type(cache).__name__} as past_key_values: use a RecurrentDepthCache"
        elif cache.cache_recurrences != "all":
            reason = f"cache_recurrences={cache.cache_recurrences!r}, which drops the recurrences of drafts. Use 'all'"
        elif cache.is_compileable:
            reason = f"a {type(cache).__name__} as past_key_values: use a RecurrentDepthCache"
        elif rows > 1 and getattr(cache, "_is_user_defined", False):
            reason = (
                f"past_key_values and {rows} rows: rejected drafts stay in the cache. Pass one row at a time, or the "
                "whole text without past_key_values"
            )
        elif model_kwargs.get("on_recurrence") is not None:
            reason = "on_recurrence: a token runs its first recurrences as a draft and the others in the verification"
        self._refuse(reason)
        return depth

    def check_call(self, processors, synced_gpus) -> None:
        """Refuses processors with a state, and processes that must take the same number of steps."""
        remembering = [type(processor).__name__ for processor in processors if isinstance(processor, _REMEMBERING)]
        if remembering:
            self._refuse(f"{remembering[0]}, which has a state")
        if synced_gpus:
            self._refuse("synced_gpus=True: processes would take different numbers of steps")

    def _refuse(self, reason):
        if reason is not None:
            raise ValueError(f"draft_recurrences={self.draft_recurrences} cannot be combined with {reason}.")


def pads_ends(criteria) -> bool:
    """Whether texts that have ended are padded: as in the library, only if there is a token that ends texts."""
    return any(hasattr(criterion, "eos_token_id") for criterion in criteria)


class _Texts:
    """
    The texts of all rows, of different lengths, and what decides how they continue.

    Processors and criteria see what plain decoding shows them: all rows cut at one length. Their answers are used for
    the rows that have this length.

    Attributes:
        tokens (`torch.LongTensor` of shape `(batch, width)`): Prompt, generated tokens and drafts of each row; padding
            after its end.
        lengths (`torch.LongTensor` of shape `(batch,)`): The number of tokens of each row that are final.
        ends (`torch.LongTensor` of shape `(batch,)`): The length at which a stopping criterion ended a row; 0 before.
    """

    def __init__(self, input_ids, limit, draft_tokens, processors, criteria, generation_config):
        rows, self.start = input_ids.shape
        self.limit = limit
        self.pads = pads_ends(criteria)
        self.pad = generation_config._pad_token_tensor.to(input_ids.device) if self.pads else 0
        # No round drafts more tokens than are left.
        left = max(limit - self.start, 1)
        self.tokens = nn.functional.pad(input_ids, (0, left + min(draft_tokens, left) + 1))
        self.tokens[:, self.start :] = self.pad
        self.lengths = input_ids.new_full((rows,), self.start)
        self.ends = torch.zeros_like(self.lengths)
        self.processors, self.criteria = processors, criteria
        self.pointwise = all(type(processor) in _POINTWISE for processor in processors)
        self.samples = generation_config.do_sample

    def running(self):
        """A mask of shape `(batch,)`: the rows that still need tokens."""
        running = self.ends == 0
        if not self.pads and not running.all():
            # Rows that have ended are not padded: they continue as long as any other.
            running |= self.lengths < (self.limit if running.any() else self.ends.max())
        return running

    def are_text(self, place):
        """A mask of shape `(batch,)`: whether the token at `place` is not padding after the end of its row."""
        return (self.ends == 0) | (self.ends > place) | (not self.pads)

    def scores(self, logits, rows, lengths):
        """
        The logits after all processors, in float32; probabilities if tokens are sampled.

        Args:
            logits (`torch.Tensor` of shape `(rows, n, vocab)`): The logits of the n tokens after the first `lengths`.
            rows (`torch.LongTensor` of shape `(rows,)`): The places of the rows in the batch.
            lengths (`torch.LongTensor` of shape `(rows,)`): The number of tokens before the first of the n.
        """
        scores = logits.float()
        if len(self.processors) and self.pointwise:
            scores = self.processors(None, scores.flatten(0, 1)).view_as(scores)
        elif len(self.processors):
            lengths = lengths[:, None] + torch.arange(logits.shape[1], device=logits.device)
            processed = torch.empty_like(scores)
            for length in lengths.unique().tolist():
                row, place = (lengths == length).nonzero(as_tuple=True)
                batch = scores.new_zeros((len(self.tokens), scores.shape[-1]))
                batch[rows[row]] = scores[row, place]
                processed[row, place] = self.processors(self.tokens[:, :length], batch)[rows[row]]
            scores = processed
        return scores.softmax(-1) if self.samples else scores

    def choose(self, scores):
        """A token for each row of `scores` (`(rows, vocab)`)."""
        return torch.multinomial(scores, 1).squeeze(1) if self.samples else scores.argmax(-1)

    def append(self, rows, tokens, counts):
        """
        Adds the first `counts` (`(rows,)`) of `tokens` (`(rows, n)`) to the texts, until a criterion ends them.

        Returns the number of tokens that each row got, of shape `(rows,)`.
        """
        before = self.lengths[rows]
        places = before[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        self.tokens[rows[:, None], places] = tokens
        self.lengths[rows] = after = before + counts
        for length in range(int(before.min()) + 1, int(after.max()) + 1):
            reached = (before < length) & (length <= after) & (self.ends[rows] == 0)
            if reached.any():
                done = reached & self.criteria(self.tokens[:, :length], None)[rows]
                self.ends[rows[done]] = length
        if self.pads and (ended := self.ends[rows] > 0).any():
            after = torch.where(ended, self.ends[rows], after)
            self.lengths[rows] = after
            behind = torch.arange(self.tokens.shape[1], device=rows.device) >= self.lengths[:, None]
            self.tokens.masked_fill_(behind & (self.ends > 0)[:, None], self.pad)
        return after - before

    def ready(self):
        """The number of tokens that all rows have; rows that have ended are padded up to it."""
        running = self.running()
        return int(self.lengths[running].min() if running.any() else self.ends.max())


def accept(drafts, proposed, wanted, samples):
    """
    The number of drafts that each row keeps, and the token of the full depth that follows them.

    Greedy decoding keeps the drafts before the first one that differs from the best token at full depth. Sampling
    follows algorithm 1 of arXiv 2211.17192, which leaves the distribution of the tokens as it is at full depth.

    Args:
        drafts (`torch.LongTensor` of shape `(rows, n)`): Drafted tokens.
        proposed (`torch.Tensor` of shape `(rows, n, vocab)`): The probabilities that drafts were drawn from; not read
            in greedy decoding.
        wanted (`torch.Tensor` of shape `(rows, n + 1, vocab)`): The scores (probabilities if sampling) of the full
            depth at the same places and after the last draft.
        samples (`bool`): Whether tokens are sampled.

    Returns:
        `tuple` of two `torch.LongTensor` of shape `(rows,)`: counts and tokens.
    """
    if not samples:
        best = wanted.argmax(-1)
        kept = (best[:, :-1] == drafts).cumprod(-1).sum(-1)
        return kept, best.gather(1, kept[:, None]).squeeze(1)
    wanted_of, proposed_of = (
        values[:, : drafts.shape[1]].gather(2, drafts[..., None]).squeeze(2) for values in (wanted, proposed)
    )
    kept = (torch.rand_like(wanted_of) * proposed_of < wanted_of).cumprod(-1).sum(-1)
    # Nothing was proposed after the last draft, so the remainder is the whole wanted distribution.
    at = kept[:, None, None].expand(-1, 1, wanted.shape[-1])
    wanted = wanted.gather(1, at).squeeze(1)
    rest = (wanted - nn.functional.pad(proposed, (0, 0, 0, 1)).gather(1, at).squeeze(1)).clamp_min(0)
    # The difference of two distributions that are equal up to rounding may be zero.
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, wanted)
    return kept, torch.multinomial(rest, 1).squeeze(1)


class _Rounds:
    """The rows that still need tokens, and their cache."""

    def __init__(self, model, speculation, count, texts, model_kwargs):
        self.model, self.speculation, self.count, self.texts = model, speculation, count, texts
        self.cache = model_kwargs["past_key_values"]
        self.forward_kwargs = {k: v for k, v in model_kwargs.items() if k not in _OF_THE_PROMPT}
        rows = len(texts.tokens)
        self.rows = torch.arange(rows, device=texts.tokens.device)
        self.positions = model_kwargs["position_ids"][:, -1].expand(rows)
        mask = model_kwargs.get("attention_mask")
        self.mask = None if mask is None else mask[:, : self.cache.get_seq_length()].bool()
        self.accepted = torch.zeros_like(texts.lengths)
        self.drafted = torch.zeros_like(texts.lengths)

    def run(self):
        """One round: drafts tokens, verifies them and keeps the accepted ones."""
        texts, rows = self.texts, self.rows
        lengths = texts.lengths[rows]
        # A round adds at most one token more than it drafts.
        left = texts.limit - lengths
        n = max(min(self.speculation.draft_tokens, int(left.max()) - 1), 0)
        steps = torch.minimum(torch.arange(n + 1, device=rows.device), (left[:, None] - 1).clamp_min(0))
        # There may be no positions beyond the limit of a row; drafts there are never used.
        positions = self.positions[:, None] + steps

        states, proposed = [], []
        newest = texts.tokens[rows, lengths - 1][:, None]
        for step in range(n + 1):
            kept = 1 if step < n else rows.new_empty(0)
            output = self._forward(
                newest,
                positions[:, step : step + 1],
                self.speculation.draft_recurrences,
                logits_to_keep=kept,
                output_hidden_states=True,
            )
            states.append(output.hidden_states[-1])
            if step == n:
                break
            proposed.append(texts.scores(output.logits, rows, lengths + step))
            newest = texts.choose(proposed[-1][:, 0])[:, None]
            texts.tokens[rows, lengths + step] = newest[:, 0]

        tokens = texts.tokens[rows[:, None], lengths[:, None] - 1 + torch.arange(n + 1, device=rows.device)]
        self.cache.crop(-(n + 1))
        resume = self.speculation.draft_recurrences, torch.cat(states, dim=1)
        output = self._forward(tokens, positions, self.count, resume=resume)
        wanted = texts.scores(output.logits, rows, lengths)
        proposed = torch.cat(proposed, dim=1) if n else wanted[:, :0]
        kept, final = accept(tokens[:, 1:], proposed, wanted, texts.samples)

        new = nn.functional.pad(tokens[:, 1:], (0, 1)).scatter(1, kept[:, None], final[:, None])
        got = texts.append(rows, new, kept + 1)
        self.accepted[rows] += kept.minimum(got).minimum(left)
        self.drafted[rows] += left.clamp(0, n)
        self._settle(kept + 1, n + 1)

    def _forward(self, tokens, positions, count, **kwargs):
        mask, length = self.mask, self.cache.get_seq_length() + tokens.shape[1]
        if mask is not None:
            mask = nn.functional.pad(mask, (0, length - mask.shape[1]), value=True)
        return self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            num_recurrences=count,
            use_cache=True,
            return_dict=True,
            **self.forward_kwargs,
            **kwargs,
        )

    def keep_running(self):
        """Drops the rows that need no more tokens; returns a mask of those that stay."""
        running = self.texts.running()[self.rows]
        if running.any() and not running.all():
            chosen = running.nonzero().flatten()
            self.cache.batch_select_indices(chosen)
            self.mask = None if self.mask is None else self.mask[chosen]
        self.rows, self.positions = self.rows[running], self.positions[running]
        return running

    def _settle(self, kept, new):
        """Ends a round: each row keeps the first `kept` (`(rows,)`) of the round's `new` tokens in the cache."""
        self.positions = self.positions + kept
        kept = kept[self.keep_running()]
        if not len(kept):
            return
        most = int(kept.max())
        self.cache.crop(most - new)
        here = torch.arange(most, device=kept.device) < kept[:, None]
        if self.mask is None and not here.all():
            self.mask = here.new_ones((len(kept), self.cache.get_seq_length() - most))
        if self.mask is None:
            return
        self.mask = torch.cat((self.mask, here), dim=1)
        longest = int(self.mask.sum(-1).max())
        if len(self.texts.tokens) > 1 and longest <= MOST_REAL * self.mask.shape[1]:
            # Real tokens move to the end of their rows: an occasional copy is cheaper than attention to many holes.
            places = self.mask.long().argsort(dim=1, stable=True)[:, -longest:]
            self.cache.keep_tokens(places)
            self.mask = self.mask.gather(1, places)


def decode(
    model,
    speculation,
    record,
    input_ids,
    logits_processor,
    stopping_criteria,
    generation_config,
    synced_gpus=False,
    streamer=None,
    **model_kwargs,
):
    """
    Greedy decoding or sampling with drafts, in place of the library's loop; see `Speculation`.

    Returns:
        `torch.LongTensor` of shape `(batch, tokens)`: the texts; or, with `return_dict_in_generate`, an output that
        also holds `drafted_tokens` and `accepted_drafts`, the number of tokens drafted for each row and of those in
        its text, each of shape `(batch,)`. `past_key_values` is `None` for several rows, whose caches end at different
        lengths.
    """
    count = speculation.full_count(model, model_kwargs, len(input_ids))
    speculation.check_call(logits_processor, synced_gpus)
    model_kwargs["num_recurrences"] = count
    outputs = model._prefill(input_ids, generation_config, model_kwargs)
    model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
    limit = stopping_criteria.max_length or generation_config.max_length
    texts = _Texts(input_ids, limit, speculation.draft_tokens, logits_processor, stopping_criteria, generation_config)
    rounds = _Rounds(model, speculation, count, texts, model_kwargs)
    behind_prompt = rounds.cache.get_seq_length()

    first = texts.choose(texts.scores(outputs.logits[:, -1:], rounds.rows, texts.lengths)[:, 0])
    del outputs
    texts.append(rounds.rows, first[:, None], torch.ones_like(texts.lengths))
    rounds.keep_running()
    sent = texts.start
    while True:
        for place in range(sent, ready := texts.ready()):
            if place > texts.start:
                record.add_step(texts.are_text(place)[:, None] * count)
            if streamer is not None:
                streamer.put(texts.tokens[:, place].cpu())
        sent = ready
        if not len(rounds.rows):
            break
        rounds.run()
    if streamer is not None:
        streamer.end()

    sequences = texts.tokens[:, :ready]
    if len(input_ids) == 1:
        # As in plain decoding, the last token has not been read.
        rounds.cache.crop(behind_prompt + ready - texts.start - 1)
    if not generation_config.return_dict_in_generate:
        return sequences
    output = GenerateDecoderOnlyOutput(
        sequences=sequences, past_key_values=rounds.cache if len(input_ids) == 1 else None
    )
    output["drafted_tokens"], output["accepted_drafts"] = rounds.drafted, rounds.accepted
    return output


__all__ = ["Speculation", "accept", "decode", "pads_ends"]
