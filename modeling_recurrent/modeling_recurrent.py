"""Recurrent-depth decoders: the same core layers applied again and again, each row as often as it needs."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from .blocks_recurrent import NORMS, RecurrentDepthBlock, attention_interface
from .cache_recurrent import RecurrentDepthCache, Slots
from .configuration_recurrent import RecurrentDepthConfig
from .continuous_recurrent import keep_state, starts_from_past
from .generation_recurrent import RecurrentDepthGenerationMixin
from .halting_recurrent import HaltingRule, criterion_parameters, last_real, resolve_depth
from .positions_recurrent import RecurrentDepthRotaryEmbedding, position_noise, sinusoidal_positions
from .rows_recurrent import MASKED_ROWS, ActiveRows
from .sampling_recurrent import sample_num_recurrences


# Arguments of a call that say how deep it goes, beside `num_recurrences`; all are fields of the config.
DEPTH_ARGUMENTS = (
    "min_recurrences",
    "max_recurrences",
    "halting_criterion",
    "halting_granularity",
    *criterion_parameters(),
)

# A criterion reads the logits of so many (token, word) pairs at once; at a vocabulary of 32,000 that is 512 tokens.
READ_OUT_SLICE = 2**24


class RecurrentDepthInjection(nn.Linear):
    """Linear adapter over state and embedding, for `input_injection="concat"`."""

    def __init__(self, hidden_size: int):
        super().__init__(2 * hidden_size, hidden_size, bias=False)


@dataclass
class RecurrentDepthModelOutput(BaseModelOutputWithPast):
    """
    `BaseModelOutputWithPast` and the recurrences taken: `num_recurrences` (`torch.LongTensor` of shape `(batch,)`, or
    `(batch, sequence)` where every token decides for itself; 0 on padding).

    `hidden_states` holds the initial state and the state after every recurrence, `attentions` the maps in the order in
    which layers ran: prelude, recurrence by recurrence, coda. A row that has halted repeats its last.
    """

    num_recurrences: torch.LongTensor | None = None


@dataclass
class RecurrentDepthCausalLMOutput(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast` and `num_recurrences`, as in `RecurrentDepthModelOutput`."""

    num_recurrences: torch.LongTensor | None = None


class RecurrentDepthPreTrainedModel(PreTrainedModel):
    config: RecurrentDepthConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["RecurrentDepthBlock"]
    _skip_keys_device_placement = ["past_key_values", "slots"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    masked_rows = MASKED_ROWS

    def __init__(self, config: RecurrentDepthConfig, *args, **kwargs):
        # `from_pretrained(..., num_recurrences=0)` sets fields one by one, past the checks that look at several.
        config.validate()
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        # On the leaves alone: code that is loaded from a checkpoint is never asked for modules without own parameters.
        if isinstance(module, RecurrentDepthInjection):
            # The adapter starts as the sum of its two inputs.
            init.copy_(module.weight, torch.eye(module.out_features).repeat(1, 2))
        elif getattr(module, "init_scale", None) is not None:
            init.normal_(module.weight, std=self.config.initializer_range * module.init_scale)


class RecurrentDepthModel(RecurrentDepthPreTrainedModel):
    """The decoder without its head: embedding, prelude, loop, coda, norm."""

    def __init__(self, config: RecurrentDepthConfig):
        super().__init__(config)
        width = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.embed_positions = None
        if config.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, width)
        self.rotary_emb = RecurrentDepthRotaryEmbedding(config) if config.position_embedding_type == "rope" else None
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)

        kinds = ("prelude", "recurrent", "coda")
        sizes = [getattr(config, f"num_{kind}_layers") for kind in kinds]
        for index, (kind, size) in enumerate(zip(kinds, sizes)):
            first = sum(sizes[:index])
            blocks = [RecurrentDepthBlock(config, first + i, is_looped=kind == "recurrent") for i in range(size)]
            self.add_module(f"{kind}_layers", nn.ModuleList(blocks))
        self.injection = RecurrentDepthInjection(width) if config.input_injection == "concat" else None
        self.state_norm = None
        if config.state_norm != "none":
            self.state_norm = NORMS[config.state_norm](width, eps=config.norm_eps)
        self.norm = NORMS[config.norm_type](width, eps=config.norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: RecurrentDepthCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        cache_recurrences: str | None = None,
        num_recurrences: int | torch.LongTensor | None = None,
        head: Callable | None = None,
        on_recurrence: Callable | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        state_init: str | None = None,
        state_seed: int | None = None,
        resume: tuple[int, torch.FloatTensor] | None = None,
        **kwargs,
    ) -> RecurrentDepthModelOutput:
        r"""
        Args:
            input_ids (`(batch, sequence)`), inputs_embeds (`(batch, sequence, hidden)`): One of the two.
            attention_mask (`(batch, past + sequence)`, 0 on padding, or a prepared 4-D mask), position_ids: As usual;
                positions that are not given count the real tokens, so that padding on either side changes nothing.
            past_key_values (`RecurrentDepthCache`), use_cache (`bool`), cache_recurrences (`str`, all *optional*):
                A cache is made and returned if `use_cache` is true; by default where the config says so and no
                gradient is recorded. `cache_recurrences` says what a new one keeps.
            num_recurrences (`int`, 0-d, `(batch,)` or `(batch, sequence)` tensor, *optional*): See `resolve_depth`.
            head (callable, *optional*): `(…, hidden)` -> logits, for criteria that read log-probabilities.
            on_recurrence (callable, *optional*): Called after each recurrence with its index (from 1), the indices of
                the rows still computed (`None`: all) and what the last norm would read if the loop stopped there.
            state_init (`"previous_token"`, *optional*): One token behind a past starts from the last
                state of the one before; see `continuous_recurrent.py`.
            state_seed (`int`, *optional*): Of the noise of `state_init="normal"`.
            resume (`(int, (batch, sequence, hidden) tensor)`, *optional*): The recurrences that these tokens have
                taken already and the state after them, to go on from up to an int `num_recurrences`. Their keys and
                values must stand in the cache still, behind its last token, where `crop` leaves them.
            kwargs: The other fields of depth and halting, by their config names; the rest goes to the attention.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        output_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        # Others can register an eager one under a name of their own.
        if output_attentions and not self.config._attn_implementation.endswith("eager"):
            raise ValueError(
                f"output_attentions needs attn_implementation='eager', not {self.config._attn_implementation!r}."
            )

        batch, length, _ = inputs_embeds.shape
        if use_cache is None:
            use_cache = self.config.use_cache and not torch.is_grad_enabled()
        cache = past_key_values
        if cache is not None:
            if not isinstance(cache, RecurrentDepthCache):
                raise TypeError(
                    f"past_key_values is a {type(cache).__name__}: slots belong to recurrences here, give a "
                    "RecurrentDepthCache or None."
                )
        elif use_cache:
            cache = RecurrentDepthCache(self.config, cache_recurrences)
        if cache is not None and self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            raise ValueError(
                "Gradient checkpointing runs layers again, which would write into the cache again: call "
                "model.gradient_checkpointing_disable(), or leave out past_key_values and use_cache=True."
            )
        past = 0 if cache is None else cache.get_seq_length()
        real = None
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            if not isinstance(past, torch.Tensor) and attention_mask.shape != (batch, past + length):
                raise ValueError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}, the input with its past "
                    f"{(batch, past + length)}: one entry is needed for each token."
                )
            real = attention_mask.to(device=inputs_embeds.device, dtype=torch.bool)
        if position_ids is None:
            position_ids = torch.arange(length, device=inputs_embeds.device)[None] + past
            if real is not None:
                position_ids = (real.cumsum(-1) - 1).clamp_min(0)[:, -length:]
        real = None if real is None else real[:, -length:]
        depth = resolve_depth(
            self.config,
            (batch, length),
            self.training,
            inputs_embeds.device,
            real=real,
            num_recurrences=num_recurrences,
            sample=self._sample_num_recurrences,
            **{name: kwargs.pop(name, None) for name in DEPTH_ARGUMENTS},
        )
        self._check_readable(depth, head)
        if past_key_values is not None:
            cache.check(self.config, batch, depth)
        if resume is not None and not (isinstance(depth, int) and cache is not None and resume[0] < depth):
            raise ValueError(f"resume after {resume[0]} recurrences needs a cache and an int num_recurrences above.")
        continued = starts_from_past(
            state_init, self.config, cache, (batch, length), self.training, resumed=resume is not None
        )

        hidden_states = self.embedding_dropout(self._add_positions(inputs_embeds, position_ids, past + length))
        angles = None
        if self.rotary_emb is not None:
            angles = tuple(angle.unsqueeze(1) for angle in self.rotary_emb(hidden_states, position_ids))
        last = torch.full((batch,), length - 1, device=inputs_embeds.device)
        if real is not None and length > 1:
            last = last_real(real)
        if cache is None and isinstance(depth, HaltingRule) and depth.granularity == "token":
            # Others go on looking at a token that has halted: one scratch slot a layer, which is not returned.
            cache = RecurrentDepthCache(self.config, cache_recurrences="last")
        slots = None
        if cache is not None:
            certain = isinstance(depth, int)
            slots = Slots(cache, limit=depth if certain else depth.limit, certain=certain)
        interface = attention_interface(self.config)
        rows = ActiveRows(self.config, interface, hidden_states, attention_mask, angles, last, slots)

        attentions = [] if output_attentions else None
        if len(self.prelude_layers):
            hidden_states = self._run(self.prelude_layers, hidden_states, rows, rows.mask, attentions, **kwargs)
            rows.inputs = hidden_states
        start = 0
        if resume is not None:
            start, state = resume
        elif continued:
            state = cache.state[:, None]
        else:
            state = self._initial_state(hidden_states, position_ids, state_seed)
        states = [state] if output_hidden_states else None
        state, counts = self._loop(
            state, rows, depth, head, on_recurrence, states, attentions, start, continued, **kwargs
        )
        hidden_states = self.norm(self._finish(state, rows, attentions, **kwargs))
        if cache is not None:
            cache.commit(length, depth if isinstance(depth, int) else counts, real)
            keep_state(cache, state_init, state, last, real)
        if counts.ndim == 2 and real is not None:
            counts = counts.masked_fill(~real, 0)
        return RecurrentDepthModelOutput(
            last_hidden_state=hidden_states,
            past_key_values=cache if use_cache else None,
            hidden_states=None if states is None else tuple(states),
            attentions=None if attentions is None else tuple(attentions),
            num_recurrences=counts,
        )

    def _loop(self, state, rows, depth, head, on_recurrence, states, attentions, start=0, continued=False, **kwargs):
        """
        The loop: inject, apply the layers to the rows still active, ask the rule who has halted, drop them.

        `start` recurrences lie behind `state`; it is `continued` where it is another token's. A plain `int` for
        `depth` asks no rule, so that no tensor decides anything. Returns the state of all rows in their order and the
        recurrences that each row or token took; fills the lists `states` and `attentions`.
        """
        rule = depth if isinstance(depth, HaltingRule) else None
        limit = depth if rule is None else rule.limit
        slots, held = rows.slots, None
        by_token = rule is not None and rule.granularity == "token"
        finished = []
        for recurrence in range(start + 1, limit + 1):
            if slots is not None:
                slots.recurrence = recurrence
            with self._gradients(recurrence, limit):
                updated = self._inject(state, rows.inputs, is_first=recurrence == 1 and not continued)
                updated = self._run(self.recurrent_layers, updated, rows, rows.looped_mask, attentions, **kwargs)
            state = updated if held is None else torch.where(held[..., None], state, updated)
            if states is not None:
                states.append(rows.spread(state, states[-1]))
            if on_recurrence is not None:
                on_recurrence(recurrence, rows.indices, self._finish(state, rows, **kwargs))
            if rule is None:
                continue

            self._judge(rule, recurrence, state, rows, head, **kwargs)
            done = rule.taken > 0
            if by_token:
                done = done.all(-1)
            if done.any():
                leaving, staying = done.nonzero().flatten(), (~done).nonzero().flatten()
                indices = leaving if rows.indices is None else rows.indices[leaving]
                finished.append((indices, state[leaving], rule.taken[leaving]))
                if not len(staying):
                    break
                state, rows = state[staying], rows.keep(staying)
                rule.keep(staying)
            if by_token:
                slots.held = held = rule.taken > 0

        if slots is not None:
            slots.keep(None)
            slots.held = None
        if rule is None:
            return state, torch.full((state.shape[0],), limit, device=state.device)
        indices, pieces, counts = (torch.cat(parts) for parts in zip(*finished))
        order = indices.argsort()
        return pieces[order], counts[order]

    def _run(self, layers, hidden_states, rows, mask, attentions=None, **kwargs):
        for layer in layers:
            hidden_states, weights = layer(hidden_states, mask, rows.angles, rows.slots, rows.interface, **kwargs)
            if attentions is not None:
                # A row that has halted repeats the map of this layer in the recurrence before.
                before = attentions[-len(layers)] if rows.indices is not None else None
                attentions.append(rows.spread(weights, before))
        return hidden_states

    def _inject(self, state, inputs, is_first):
        if is_first and self.config.state_init == "embedding":
            return state
        if not is_first and self.state_norm is not None:
            state = self.state_norm(state)
        if self.config.input_injection == "add":
            return state + inputs
        if self.injection is not None:
            return self.injection(torch.cat((state, inputs), dim=-1))
        return state

    def _finish(self, state, rows, attentions=None, **kwargs):
        """What follows the loop, up to the last norm."""
        if rows.slots is not None:
            # The coda computes all tokens anew, also those that have halted.
            rows.slots.held = None
        return self._run(self.coda_layers, state, rows, rows.mask, attentions, **kwargs)

    def _judge(self, rule, recurrence, state, rows, head, **kwargs):
        """Shows the rule what its criterion reads: of each row's last real token, or of every token."""

        def log_probs(hidden_states):
            return head(hidden_states).float().log_softmax(-1)

        if rule.reads is None:
            rule.update(recurrence, None)
        elif rule.granularity == "token" and rule.reads == "state":
            rule.update(recurrence, state.float())
        elif rule.granularity == "token":
            at_once = max(READ_OUT_SLICE // self.config.vocab_size, 1)
            rule.update(recurrence, self.norm(state), read=log_probs, at_once=at_once)
        else:
            of_logits = rule.reads == "log_probs"
            read = self._finish(state, rows, **kwargs) if of_logits else state
            read = read[torch.arange(len(read), device=read.device), rows.last]
            rule.update(recurrence, log_probs(self.norm(read)) if of_logits else read.float())

    def _check_readable(self, depth, head):
        if not isinstance(depth, HaltingRule) or depth.reads != "log_probs":
            return
        name = depth.criterion.name
        if head is None:
            raise ValueError(
                f"halting_criterion={name!r} reads logits, which RecurrentDepthModel does not compute: use "
                "RecurrentDepthForCausalLM, or a criterion on the state."
            )
        if depth.granularity == "token" and len(self.coda_layers):
            raise ValueError(
                f"halting_criterion={name!r} with halting_granularity='token' and num_coda_layers="
                f"{len(self.coda_layers)}: a logit would look at tokens that are still provisional. Choose a "
                "criterion on the state ('state_difference', 'acceleration') or halting_granularity='sequence'."
            )

    def _gradients(self, recurrence, limit):
        reach = self.config.backprop_recurrences
        return contextlib.nullcontext() if reach is None or limit - recurrence < reach else torch.no_grad()

    def _initial_state(self, inputs, position_ids, seed):
        if self.config.state_init == "embedding":
            return inputs
        if self.config.state_init == "zeros":
            return torch.zeros_like(inputs)
        if seed is None:
            # In training the noise is new at every step, as dropout is.
            seed = int(torch.randint(2**31, ())) if self.training else self.config.state_seed
        noise = position_noise(position_ids, self.config.hidden_size, seed) * self.config.state_init_std
        return noise.to(inputs.dtype).expand_as(inputs)

    def _add_positions(self, inputs_embeds, position_ids, tokens):
        if self.config.position_embedding_type == "sinusoidal":
            return inputs_embeds + sinusoidal_positions(position_ids, self.config.hidden_size, inputs_embeds.dtype)
        if self.embed_positions is None:
            return inputs_embeds
        room = self.config.max_position_embeddings
        # Asked of the tensor only where the cache makes it possible: the answer costs a synchronisation.
        if isinstance(tokens, int) and tokens > room and int(position_ids.max()) >= room:
            raise ValueError(
                f"The input has {tokens} tokens with its past, but only max_position_embeddings={room} learned "
                "positions exist: cut the input."
            )
        return inputs_embeds + self.embed_positions(position_ids)

    def _sample_num_recurrences(self):
        # Under a Trainer of this package the count is given; under any other loop torch's generator decides.
        return sample_num_recurrences(self.config, seed=int(torch.randint(2**31, ())), step=0)


class RecurrentDepthForCausalLM(RecurrentDepthPreTrainedModel, RecurrentDepthGenerationMixin):
    """The decoder with a language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: RecurrentDepthConfig):
        super().__init__(config)
        self.model = RecurrentDepthModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: RecurrentDepthCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        shift_labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        cache_recurrences: str | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_recurrences: int | torch.LongTensor | None = None,
        min_recurrences: int | None = None,
        max_recurrences: int | None = None,
        halting_criterion: str | None = None,
        halting_granularity: str | None = None,
        kl_threshold: float | None = None,
        entropy_threshold: float | None = None,
        confidence_threshold: float | None = None,
        state_difference_threshold: float | None = None,
        acceleration_threshold: float | None = None,
        argmax_patience: int | None = None,
        on_recurrence: Callable | None = None,
        recurrence_loss_weights: torch.FloatTensor | None = None,
        labelled_logits_only: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        state_init: str | None = None,
        state_seed: int | None = None,
        **kwargs,
    ) -> RecurrentDepthCausalLMOutput:
        r"""
        Args:
            input_ids, attention_mask, position_ids, inputs_embeds: See `RecurrentDepthModel.forward`.
            labels (`(batch, sequence)`, *optional*): Shifted here; -100 is ignored. `shift_labels`: in place already.
            logits_to_keep (`int` or index tensor): Positions whose logits are computed; 0 for all.
            num_recurrences … argmax_patience (*optional*): Depth and halting of this call, by their config names.
            on_recurrence (callable, *optional*):
                Called after each recurrence with its index (from 1), the indices of the rows still computed (`None`:
                all of them) and their logits at `logits_to_keep`, of shape `(rows, kept, vocab)`.
            recurrence_loss_weights (`(num_recurrences,)`, *optional*):
                The loss is this weighted sum over the recurrences instead of the loss after the last one. Recurrences
                that `backprop_recurrences` cuts off count in the sum, but give no gradient.
            labelled_logits_only (`bool`): `logits` has shape `(labels that are not -100, vocab)`, computed only there.
            num_items_in_batch (*optional*): Divides the summed loss, as the Trainer expects under accumulation.
            output_hidden_states, output_attentions: See `RecurrentDepthModelOutput`.
            state_init, state_seed (*optional*): See `RecurrentDepthModel.forward`.
        """
        labelled = None
        if labels is not None and shift_labels is None:
            shift_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        if labelled_logits_only:
            if shift_labels is None:
                raise ValueError("labelled_logits_only=True needs labels or shift_labels.")
            labelled = shift_labels != -100
            shift_labels = shift_labels[labelled]
        loss_kwargs = {"num_items_in_batch": kwargs.pop("num_items_in_batch", None)}

        def kept(hidden_states):
            if labelled is not None:
                return hidden_states[labelled]
            return hidden_states[
                :, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            ]

        def loss_of(logits):
            return self.loss_function(
                logits=logits,
                labels=None,
                shift_labels=shift_labels,
                vocab_size=self.config.vocab_size,
                **loss_kwargs,
            )

        if recurrence_loss_weights is not None and (shift_labels is None or on_recurrence is not None):
            raise ValueError("recurrence_loss_weights needs labels, and cannot be combined with on_recurrence.")
        losses = []

        def read_logits(recurrence, rows, hidden_states):
            logits = self.lm_head(self.model.norm(kept(hidden_states)))
            if recurrence_loss_weights is None:
                on_recurrence(recurrence, rows, logits)
            elif rows is not None or recurrence > len(recurrence_loss_weights):
                raise ValueError(
                    f"recurrence_loss_weights holds {len(recurrence_loss_weights)} weights: one is needed for each of "
                    "an int num_recurrences."
                )
            else:
                losses.append(recurrence_loss_weights[recurrence - 1] * loss_of(logits))

        reads_all = on_recurrence is not None or recurrence_loss_weights is not None
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache_recurrences=cache_recurrences,
            num_recurrences=num_recurrences,
            min_recurrences=min_recurrences,
            max_recurrences=max_recurrences,
            halting_criterion=halting_criterion,
            halting_granularity=halting_granularity,
            kl_threshold=kl_threshold,
            entropy_threshold=entropy_threshold,
            confidence_threshold=confidence_threshold,
            state_difference_threshold=state_difference_threshold,
            acceleration_threshold=acceleration_threshold,
            argmax_patience=argmax_patience,
            head=self.lm_head,
            on_recurrence=read_logits if reads_all else None,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            state_init=state_init,
            state_seed=state_seed,
            return_dict=True,
            **kwargs,
        )
        logits = self.lm_head(kept(outputs.last_hidden_state))
        loss = None
        if losses:
            loss = torch.stack(losses).sum()
        elif shift_labels is not None:
            loss = loss_of(logits)
        return RecurrentDepthCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            num_recurrences=outputs.num_recurrences,
        )


__all__ = ["RecurrentDepthForCausalLM", "RecurrentDepthModel", "RecurrentDepthPreTrainedModel"]
