"""Recurrent-depth decoders: the same core layers applied again and again, to each row as often as it needs."""

from collections.abc import Callable
from typing import Unpack

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from .arguments_recurrent import RecurrentDepthKwargs, take_depth
from .attention_recurrent import VLLM, attention_interface
from .blocks_recurrent import NORMS, RecurrentDepthBlock
from .cache_recurrent import RecurrentDepthCache, Slots, check_cache_type
from .card_recurrent import CardMixin
from .checks_recurrent import (
    check_hooks,
    check_inputs,
    check_labels,
    check_resume,
    embed_positions,
    embed_tokens,
)
from .configuration_recurrent import RecurrentDepthConfig
from .families_recurrent import (
    FamilyDecoder,
    family_angles,
    init_family_weights,
    scale_embeddings,
    scale_logits,
    support_of,
)
from .fields_recurrent import check_token_ids
from .generation_recurrent import RecurrentDepthGenerationMixin, holds_depth
from .gradients_recurrent import separate_gradients
from .halting_recurrent import HaltingRule, check_readable, last_real, resolve_depth
from .injection_recurrent import INJECTIONS
from .inputs_recurrent import initial_state, place_tokens, wants_cache
from .loop_recurrent import LoopTrace, RecurrentLoop
from .losses_recurrent import RecurrenceLoss, choose_labelled, open_losses, warn_bypassed
from .masks_recurrent import is_flash, with_eager_attention
from .outputs_recurrent import RecurrentDepthCausalLMOutput, RecurrentDepthModelOutput
from .parallel_recurrent import SplitsOverProcesses
from .positions_recurrent import RecurrentDepthRotaryEmbedding, sinusoidal_positions
from .recurrence_lora_recurrent import RecurrenceLora, RecurrenceLoraPair
from .rows_recurrent import MASKED_ROWS, ActiveRows
from .sampling_recurrent import TrainingDraws
from .slots_recurrent import KeyValueSlots, check_engine, runs_in_engine
from .stock_caches_recurrent import StockSlots, check_stock_cache, check_stock_losses, is_stock
from .versions_recurrent import ReadsOldCheckpoints
from .vllm_recurrent import PACKED, prepare_for_vllm


class RecurrentDepthPreTrainedModel(CardMixin, ReadsOldCheckpoints, SplitsOverProcesses, PreTrainedModel):
    config: RecurrentDepthConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["RecurrentDepthBlock"]
    _skip_keys_device_placement = ["past_key_values", "slots", "slot"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    masked_rows = MASKED_ROWS

    def __init__(self, config: RecurrentDepthConfig, *args, **kwargs):
        if not hasattr(config, "block_model_type"):
            raise TypeError(f"config={config!r} must be a RecurrentDepthConfig, got {type(config).__name__}.")
        for name, supported in support_of(config).items():
            setattr(self, name, supported)
        # `from_pretrained(..., num_recurrences=0)` sets fields one by one, without the checks that compare fields.
        config.validate()
        check_token_ids(config)
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        RecurrentDepthConfig.refuse_misspelt(kwargs)
        return super().from_pretrained(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        # Leaf modules only: for code saved with a checkpoint, the library skips modules without their own parameters.
        if isinstance(module, (RecurrenceLoraPair, *INJECTIONS.values())):
            module.start(self.config)
        elif (block := self.__dict__.get("block_config")) is not None and module is not self.state_norm:
            init_family_weights(block, module)
        else:
            super()._init_weights(module)
            if getattr(module, "init_scale", None) is not None:
                init.normal_(module.weight, std=self.config.initializer_range * module.init_scale)


class RecurrentDepthModel(RecurrentLoop, RecurrentDepthPreTrainedModel):
    """
    The decoder without a head: embedding, prelude, loop, coda, norm.

    Example:

    ```python
    >>> import torch
    >>> from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthModel

    >>> config = RecurrentDepthConfig.llama_style(vocab_size=100, hidden_size=32, num_attention_heads=4)
    >>> model = RecurrentDepthModel(config).eval()
    >>> output = model(torch.randint(100, (2, 7)), num_recurrences=torch.tensor([2, 5]))
    >>> output.last_hidden_state.shape, output.num_recurrences.tolist()
    (torch.Size([2, 7, 32]), [2, 5])
    ```
    """

    def __init__(self, config: RecurrentDepthConfig):
        super().__init__(config)
        if config._attn_implementation == VLLM:
            prepare_for_vllm(config)
            self.packed_modules_mapping = PACKED
        width = config.hidden_size
        self.layer_types = config.physical_layer_types
        self.block_config = None
        if config.block_model_type is None:
            self._add_own_blocks(config)
        else:
            self._add_family(FamilyDecoder(config))
        self.key_value_slots = KeyValueSlots(config, self.layers, self.block_config)
        self.injection = INJECTIONS[config.input_injection](width) if config.input_injection in INJECTIONS else None
        self.state_norm = None
        if config.state_norm in NORMS:
            self.state_norm = NORMS[config.state_norm](width, eps=config.norm_eps)
        self.exit_gate = nn.Linear(width, 1) if config.exit_gate else None
        self.recurrence_lora = RecurrenceLora(config, self.recurrent_layers) if config.recurrence_lora_rank else None
        self.gradient_checkpointing = False
        self.training_draws = TrainingDraws()
        self.post_init()

    def _add_own_blocks(self, config):
        width, pad = config.hidden_size, config.pad_token_id
        self.embed_tokens = nn.Embedding(config.vocab_size, width, None if pad == -1 else pad)
        self.embed_positions = None
        if config.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, width)
        self.rotary_emb = RecurrentDepthRotaryEmbedding(config) if config.position_embedding_type == "rope" else None
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        looped = self.stack_range("recurrent")
        self.layers = nn.ModuleList(
            RecurrentDepthBlock(config, index, is_looped=index in looped)
            for index in range(config.num_physical_layers)
        )
        self.norm = NORMS[config.norm_type](width, eps=config.norm_eps)

    def _add_family(self, parts):
        self.embed_tokens = parts.embed_tokens
        self.embed_positions, self.rotary_emb = parts.embed_positions, parts.rotary_emb
        self.embedding_dropout = parts.embedding_dropout or nn.Dropout(0.0)
        self.layers, self.norm = parts.layers, parts.norm
        self.block_config = parts.block
        self._no_split_modules = [type(self.layers[0]).__name__]
        self._keep_in_fp32_modules = parts.model_class._keep_in_fp32_modules

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        head: Callable | None = None,
        resume: tuple[int, torch.FloatTensor] | None = None,
        **kwargs: Unpack[RecurrentDepthKwargs],
    ) -> RecurrentDepthModelOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, sequence)`), inputs_embeds (`torch.FloatTensor` of shape
                `(batch, sequence, hidden)`): Exactly one of the two.
            attention_mask (`torch.Tensor` of shape `(batch, past + sequence)`, *optional*):
                0 on padding; or a prepared mask of four dimensions.
            position_ids (`torch.LongTensor` of shape `(batch or 1, sequence)`, *optional*):
                By default the real tokens are counted, so that padding on either side changes nothing. Positions
                that restart within a row mark packed documents, which do not attend to each other.
            past_key_values (`Cache`, *optional*), use_cache (`bool`, *optional*):
                A `RecurrentDepthCache`, or at a fixed depth a cache of the library with a layer for each slot.
                A cache is created and returned if `use_cache` is true. By default it has the value of the config
                without gradients, and is false with them, with packed documents, and in a compiled call with
                `position_ids`, which may be packed.
            head (`Callable`, *optional*):
                Maps `(…, hidden)` to logits, for criteria that read log-probabilities.
            resume (`tuple` of an `int` and a `torch.FloatTensor` of shape `(batch, sequence, hidden)`, *optional*):
                The number of recurrences that these tokens have already taken and the state after them. The call
                continues up to `num_recurrences`, an int. With a cache, the keys and values of the tokens must still
                be in its buffers after its last token, where `crop` leaves them. Without one, the call must hold the
                whole text.
            kwargs: See `RecurrentDepthKwargs`. The rest goes to the attention function.
        """
        check_inputs(self.config, input_ids, inputs_embeds, attention_mask, position_ids, use_cache)
        check_cache_type(past_key_values)
        if inputs_embeds is None:
            inputs_embeds = embed_tokens(self.embed_tokens, input_ids, self.config.vocab_size)
        shape = inputs_embeds.shape[:2]
        depth_kwargs = take_depth(kwargs)
        check_hooks(kwargs)
        cache_recurrences, state_seed, given_state = (
            kwargs.pop(name, None) for name in ("cache_recurrences", "state_seed", "initial_state")
        )
        trace = self._open_trace(kwargs, head)
        in_engine = runs_in_engine(self.config, kwargs)

        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        position_ids, real, documents = place_tokens(
            self.config, position_ids, attention_mask, shape, past, inputs_embeds.device, in_engine
        )
        depth = resolve_depth(
            self.config,
            shape,
            inputs_embeds.device,
            training=self._trains,
            real=real,
            sample=self._sample_num_recurrences,
            **depth_kwargs,
        )
        check_readable(self.config, depth, head, documents)
        if in_engine:
            check_engine(self.config, depth, past_key_values, cache_recurrences)
            self.match_slots()
        use_cache = not in_engine and wants_cache(self.config, use_cache, past_key_values, documents)
        slots = self._open_slots(past_key_values, use_cache, cache_recurrences, depth, shape, trace)
        cache = None if slots is None else slots.cache
        check_resume(resume, depth, cache)

        # An engine packs many texts into one row, so that its tokens say nothing about positions.
        hidden_states = self._prepare_embeddings(inputs_embeds, position_ids, 0 if in_engine else past + shape[1])
        rows = self._open_rows(hidden_states, attention_mask, position_ids, real, documents, slots, trace)
        if documents is not None and is_flash(self.config):
            kwargs["position_ids"] = position_ids
        if self.config.num_prelude_layers:
            hidden_states = self.run_layers("prelude", hidden_states, rows, trace, **kwargs)
            rows.inputs = hidden_states
        seed = self._draw_state_seed if state_seed is None else state_seed
        start, state = resume or (0, initial_state(self.config, hidden_states, position_ids, seed, given_state))
        if trace.states is not None:
            trace.states.append(state)
        state, counts = self.loop(state, rows, depth, trace, head, start, **kwargs)
        hidden_states = self.norm(self.finish(state, rows, trace, **kwargs))
        if slots is not None:
            slots.commit(shape[1], depth if isinstance(depth, int) else counts, real)
        if counts.ndim == 2 and real is not None:
            counts = counts.masked_fill(~real, 0)
        return RecurrentDepthModelOutput(
            last_hidden_state=hidden_states,
            past_key_values=cache if use_cache else None,
            hidden_states=None if trace.states is None else tuple(trace.states),
            attentions=None if trace.attentions is None else tuple(trace.attentions),
            num_recurrences=counts,
        )

    def match_slots(self) -> bool:
        """Makes the slots anew if the depth of the config has been changed since they were made; returns whether."""
        changed = len(self.key_value_slots) != self.config.num_hidden_layers
        if changed:
            self.key_value_slots = KeyValueSlots(self.config, self.layers, self.block_config).train(self.training)
        return changed

    # ---- The arguments of a call ----

    @property
    def _trains(self) -> bool:
        # Generation and scoring in training mode, as in reinforcement learning, count as inference.
        return self.training and torch.is_grad_enabled()

    def _open_trace(self, kwargs, head):
        if head is None and self._trains:
            # RecurrentDepthForCausalLM passes its head.
            warn_bypassed(self.config.recurrence_loss)
            if self.config.recurrence_gradients != "shared":
                raise ValueError(
                    f"recurrence_gradients={self.config.recurrence_gradients!r} needs the losses of "
                    "RecurrentDepthForCausalLM, but this call trains RecurrentDepthModel alone, as TRL's SFTTrainer "
                    "does. Set recurrence_gradients='shared', or use a trainer that passes labels to the model."
                )
        asked = {}
        for name in ("output_hidden_states", "output_attentions"):
            value = kwargs.pop(name, None)
            asked[name] = getattr(self.config, name) if value is None else value
        return LoopTrace(
            states=[] if asked["output_hidden_states"] else None,
            attentions=[] if asked["output_attentions"] else None,
            on_recurrence=kwargs.pop("on_recurrence", None),
            recurrences_to_show=kwargs.pop("recurrences_to_show", None),
            backprop_from=kwargs.pop("backprop_from", None),
            separation=kwargs.pop("separation", None),
            on_gate=kwargs.pop("on_gate", None),
        )

    def _open_slots(self, cache, use_cache, cache_recurrences, depth, shape, trace):
        """The cache of this forward pass and the slots that it writes; `None` without a cache."""
        if is_stock(cache):
            check_stock_cache(cache, self.config, self.layer_types, depth, shape, cache_recurrences)
            check_stock_losses(cache, self.config, trace.on_recurrence)
        elif cache is not None:
            cache.check(self.config, shape[0], depth)
        elif use_cache:
            cache = RecurrentDepthCache(self.config, cache_recurrences)
        if cache is not None and self.gradient_checkpointing and self._trains:
            raise ValueError(
                "Gradient checkpointing runs layers a second time, which would write into the cache twice. Call "
                "model.gradient_checkpointing_disable(), or leave out past_key_values and use_cache=True."
            )
        if cache is None and isinstance(depth, HaltingRule) and depth.granularity == "token":
            # Other tokens still attend to one that has halted. This cache has one slot per layer and is not returned.
            cache = RecurrentDepthCache(self.config, cache_recurrences="last")
        if cache is None:
            return None
        if is_stock(cache):
            return StockSlots(cache, self.config, depth)
        certain = isinstance(depth, int)
        return Slots(cache, limit=depth if certain else depth.limit, certain=certain)

    def _open_rows(self, hidden_states, attention_mask, position_ids, real, documents, slots, trace):
        config = self.config
        if trace.attentions is not None:
            config = with_eager_attention(self.config, attention_mask)
        batch, length, _ = hidden_states.shape
        last = torch.full((batch,), length - 1, device=hidden_states.device)
        if real is not None and length > 1:
            last = last_real(real)
        return ActiveRows(
            config,
            attention_interface(config, hidden_states, self._trains, self.block_config),
            hidden_states,
            attention_mask,
            documents,
            frozenset(self.layer_types),
            self._angles(hidden_states, position_ids),
            last,
            slots,
        )

    def _angles(self, hidden_states, position_ids):
        """Cosines and sines of the rotation for each type of layer; empty without rotary positions."""
        if self.rotary_emb is None:
            return {}
        if self.config.block_model_type is None:
            angles = tuple(angle.unsqueeze(1) for angle in self.rotary_emb(hidden_states, position_ids))
        else:
            angles = family_angles(self.rotary_emb, hidden_states, position_ids, self.layer_types)
        return angles if isinstance(angles, dict) else dict.fromkeys(self.layer_types, angles)

    def _sample_num_recurrences(self):
        # Trainers of `memreason_hf` pass the count; in any other training loop the model draws it.
        return self.training_draws.num_recurrences(self.config)

    def _draw_state_seed(self, device):
        # In training the noise is drawn from torch's generator, as dropout is.
        return torch.randint(2**31, (), device=device) if self._trains else self.config.state_seed

    def _prepare_embeddings(self, inputs_embeds, position_ids, tokens):
        if self.block_config is not None:
            inputs_embeds = scale_embeddings(inputs_embeds, self.block_config)
        elif self.config.embedding_scale != 1:
            inputs_embeds = inputs_embeds * self.config.embedding_scale
        return self.embedding_dropout(self._add_positions(inputs_embeds, position_ids, tokens))

    def _add_positions(self, inputs_embeds, position_ids, tokens):
        if self.config.position_embedding_type == "sinusoidal":
            return inputs_embeds + sinusoidal_positions(position_ids, self.config.hidden_size, inputs_embeds.dtype)
        if self.embed_positions is None:
            return inputs_embeds
        room = self.config.max_position_embeddings
        # Positions are read only if there are enough tokens to exceed the limit: reading a tensor synchronises.
        if isinstance(tokens, int) and tokens > room and int(position_ids.max()) >= room:
            raise ValueError(
                f"The input has {tokens} tokens with its past, but only max_position_embeddings={room} learned "
                "positions exist. Shorten the input."
            )
        return inputs_embeds + embed_positions(self.embed_positions, position_ids, room)


class RecurrentDepthForCausalLM(RecurrentDepthPreTrainedModel, RecurrentDepthGenerationMixin):
    """
    The decoder with a language-model head.

    Example:

    ```python
    >>> import torch
    >>> from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM

    >>> config = RecurrentDepthConfig.llama_style(vocab_size=100, hidden_size=32, num_attention_heads=4)
    >>> model = RecurrentDepthForCausalLM(config).eval()
    >>> ids = torch.randint(100, (2, 7))
    >>> model(ids, num_recurrences=8).logits.shape
    torch.Size([2, 7, 100])

    >>> output = model(ids, halting_criterion="kl_entropy", halting_granularity="sequence", max_recurrences=16)
    >>> output.num_recurrences.shape
    torch.Size([2])
    ```
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: RecurrentDepthConfig):
        super().__init__(config)
        self.model = RecurrentDepthModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(…, hidden)`, after the last norm -> `(…, vocab)`."""
        logits = self.lm_head(hidden_states)
        block = self.model.block_config
        return logits if block is None else scale_logits(logits, block)

    def save_pretrained(self, *args, **kwargs):
        """Saves as `PreTrainedModel.save_pretrained` does, including a depth in `generation_config`."""
        if self.generation_config is not None and holds_depth(self.generation_config):
            # The library would read back only its own fields of a generation config derived from the model's config.
            self.generation_config._from_model_config = False
        super().save_pretrained(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        shift_labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        recurrence_loss_weights: torch.FloatTensor | None = None,
        recurrence_loss: str | RecurrenceLoss | None = None,
        labelled_logits_only: bool = False,
        **kwargs: Unpack[RecurrentDepthKwargs],
    ) -> RecurrentDepthCausalLMOutput:
        r"""
        Args:
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache:
                See `RecurrentDepthModel.forward`.
            labels (`torch.LongTensor` of shape `(batch, sequence)`, *optional*):
                Labels, which are shifted inside the model; -100 is ignored.
            shift_labels (`torch.LongTensor` of shape `(batch, sequence)`, *optional*):
                Labels that are already shifted: each is at the position of the logits that it is compared with.
            logits_to_keep (`int` or index tensor, defaults to 0):
                The positions whose logits are computed: the last ones, or those of the tensor; 0 for all.
            recurrence_loss_weights (`torch.FloatTensor` of shape `(num_recurrences,)`, *optional*):
                The loss is the weighted sum of the losses after all recurrences, in place of the loss after the last
                one. Recurrences that `backprop_recurrences` cuts off count in the sum, but give no gradient.
            recurrence_loss (`str` or `RecurrenceLoss`, *optional*):
                Which recurrences have a loss in training, if `recurrence_loss_weights` is not given: see the field of
                the config, which this overrides, or an object that computes the loss from the logits after the
                recurrences that it chooses, and needs an int `num_recurrences`.
            labelled_logits_only (`bool`, defaults to `False`):
                Whether to compute logits only where there are labels. `logits` then has shape
                `(labels that are not -100, vocab)`.
            kwargs: See `RecurrentDepthKwargs`. `num_items_in_batch` divides the summed loss, as the Trainer expects
                under gradient accumulation.
        """
        check_labels(self.config, labels, shift_labels, input_ids, inputs_embeds, logits_to_keep)
        if labels is not None and shift_labels is None:
            shift_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        labelled = None
        if labelled_logits_only:
            labelled, shift_labels = choose_labelled(shift_labels, logits_to_keep)
        num_items = kwargs.pop("num_items_in_batch", None)

        # transformers 5.17 has no `slice_logits_to_keep` yet.
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        at = (slice(None), kept) if labelled is None else labelled

        def read(hidden_states):
            return self.compute_logits(hidden_states[at])

        def loss_of(logits):
            return self.loss_function(
                logits=logits,
                labels=None,
                shift_labels=shift_labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items,
            )

        chosen = recurrence_loss if recurrence_loss_weights is None else recurrence_loss_weights
        losses = open_losses(
            self.config, chosen, loss_of, at, kwargs, has_labels=shift_labels is not None, trains=self.model._trains
        )
        check_hooks(kwargs)
        on_recurrence = kwargs.pop("on_recurrence", None)
        if on_recurrence is not None:
            kwargs["on_recurrence"] = lambda recurrence, rows, state: on_recurrence(
                recurrence, rows, read(self.model.norm(state))
            )
        with separate_gradients(self, self.model, kwargs.get("num_recurrences")) as separation:
            outputs = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                head=self.compute_logits,
                separation=separation,
                return_dict=True,
                **kwargs,
            )
            logits = read(outputs.last_hidden_state)
            loss = None
            if shift_labels is not None:
                loss = loss_of(logits) if losses is None else losses.total(logits)
        return RecurrentDepthCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            num_recurrences=outputs.num_recurrences,
        )


class RecurrentDepthForSequenceClassification(GenericForSequenceClassification, RecurrentDepthPreTrainedModel):
    """
    The decoder with a linear head on the last token of a sequence, for classification, regression and reward models.

    It takes the same depth arguments as `RecurrentDepthModel`. Criteria that read logits need a language model.
    """

    def __init__(self, config: RecurrentDepthConfig):
        # The parent creates the decoder with AutoModel, which does not know classes loaded from a checkpoint's code.
        super(GenericForSequenceClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.model = RecurrentDepthModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


class RecurrentDepthForTokenClassification(GenericForTokenClassification, RecurrentDepthPreTrainedModel):
    """The decoder with a linear head on every token."""

    def __init__(self, config: RecurrentDepthConfig):
        super(GenericForTokenClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.model = RecurrentDepthModel(config)
        self.dropout = nn.Dropout(config.residual_dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class RecurrentDepthForQuestionAnswering(GenericForQuestionAnswering, RecurrentDepthPreTrainedModel):
    """The decoder with a linear head for the start and the end of an answer in the text."""

    def __init__(self, config: RecurrentDepthConfig):
        super(GenericForQuestionAnswering, self).__init__(config)
        self.model = RecurrentDepthModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()


__all__ = [
    "RecurrentDepthForCausalLM",
    "RecurrentDepthForQuestionAnswering",
    "RecurrentDepthForSequenceClassification",
    "RecurrentDepthForTokenClassification",
    "RecurrentDepthModel",
    "RecurrentDepthPreTrainedModel",
]
