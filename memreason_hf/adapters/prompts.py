"""Virtual prompt tokens: PEFT's prompt tuning, with rows that do not depend on their padding."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PromptTuningConfig, TaskType
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memreason_hf.adapters.model import ADAPTER, AdapterModel
from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.steps.attention import get_step_attention
from memreason_hf.steps.tokenization import encode_plain, new_rows


# PEFT has no default. Without a text, this many.
DEFAULT_VIRTUAL_TOKENS = 20
# Arguments of `generate` that split or extend the ids of the prompt, among which the virtual tokens have none.
_NEED_IDS = ("assistant_model", "prompt_lookup_num_tokens", "prefill_chunk_size", "inputs_embeds", "past_key_values")


class PromptedModel(AdapterModel):
    """
    A model with trained virtual tokens in front of the first token of every row. The base stays as it is.

    It is PEFT's model for prompt tuning, and its files are those of PEFT, with three differences:

    - The virtual tokens stand after the padding on the left, and positions count from the first of them. In PEFT they
      stand before it, so that a row depends on its padding.
    - `shift_labels`, `position_ids` and `logits_to_keep` mean what they mean without virtual tokens.
    - `generate` returns the ids of the prompt and the new tokens, and refuses what it could not follow.

    The rows of new tokens are not among the files. `load_adapter` sets them as `extend_tokenizer` did; PEFT alone sets
    them at random, so load these adapters with `load_adapter`.

    As in PEFT, the logits of `forward` have `num_virtual_tokens` more positions than the ids, in front of them.
    """

    @property
    def num_virtual_tokens(self) -> int:
        """The number of virtual tokens, by which the model's context is shorter."""
        return self.peft_config[ADAPTER].num_virtual_tokens

    def set_prompt(self, rows: torch.Tensor) -> None:
        """Sets the embeddings of the virtual tokens, of shape `(num_virtual_tokens, hidden)`."""
        with torch.no_grad():
            self.prompt_encoder[ADAPTER].embedding.weight.copy_(rows)

    def load_adapter(self, model_id, adapter_name=ADAPTER, is_trainable=False, **kwargs):
        """Loads the virtual tokens as the parent does. PEFT leaves them trainable whatever `is_trainable` says."""
        result = super().load_adapter(model_id, adapter_name, is_trainable=is_trainable, **kwargs)
        self.prompt_encoder[adapter_name].requires_grad_(is_trainable)
        return result

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """A context without virtual tokens, also in `generate`."""
        with super().disable_adapter():
            self.generate = self.get_base_model().generate
            try:
                yield
            finally:
                del self.generate

    def merge_and_unload(self, *args, **kwargs):
        """
        Raises:
            ValueError: always. Virtual tokens are inputs, not changes of weights.
        """
        raise ValueError(
            "The adapter's mode is 'prompt': virtual tokens are inputs, which cannot be merged into weights. Use it "
            "with memreason evaluate-steps, or load_adapter."
        )

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None, **kwargs):
        """The base's outputs, whose logits have `num_virtual_tokens` positions more than the ids, in front."""
        count, cache = self.num_virtual_tokens, kwargs.get("past_key_values")
        self._refuse_packing(kwargs.get("position_ids"))
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        if inputs_embeds is None:
            inputs_embeds = self._embed(input_ids)
        if cache is not None and cache.get_seq_length():
            # The virtual tokens are in the cache.
            if attention_mask is not None:
                attention_mask = _insert(attention_mask, _ones(attention_mask, count), attention_mask)
            if "position_ids" in kwargs:
                kwargs["position_ids"] = kwargs["position_ids"] + count
            return self.base_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, labels=labels, **kwargs)
        if "position_ids" in kwargs:
            positions = kwargs["position_ids"].expand(len(inputs_embeds), -1)
            first = torch.arange(count, device=positions.device).expand(len(positions), -1)
            kwargs["position_ids"] = _insert(positions + count, first, attention_mask)
        inputs_embeds, attention_mask = self._with_prompt(inputs_embeds, attention_mask)
        if "position_ids" not in kwargs and _has_left_padding(attention_mask) and self._takes("position_ids"):
            kwargs["position_ids"] = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        labels = _unlabelled_in_front(labels, count)
        if "shift_labels" in kwargs:
            kwargs["shift_labels"] = _unlabelled_in_front(kwargs["shift_labels"], count)
        if isinstance(kwargs.get("logits_to_keep"), torch.Tensor):
            kwargs["logits_to_keep"] = kwargs["logits_to_keep"] + count
        return self.base_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, labels=labels, **kwargs)

    def generate(self, inputs=None, *, input_ids=None, attention_mask=None, **kwargs):
        """
        Generates as the base does.

        Args:
            inputs, input_ids (`torch.LongTensor` of shape `(batch, sequence)`): The prompts, padded on the left.
            attention_mask (*optional*): Their mask. Default: as the library derives it from the padding token.
            kwargs: For `generate` of the base.

        Returns:
            What the base returns. Its `sequences` hold the prompts and the new tokens, without virtual tokens;
            `prompt_recurrences` of a recurrent-depth model covers the virtual tokens, too.

        Raises:
            ValueError: no prompts, an argument that needs the ids of all tokens, or `use_cache=False`.
        """
        ids = inputs if input_ids is None else input_ids
        self._check_generate(ids, kwargs)
        config = kwargs.get("generation_config") or self.get_base_model().generation_config
        if attention_mask is None:
            attention_mask = _mask_of(ids, config)
        embeds, mask = self._with_prompt(self._embed(ids), attention_mask)
        # Logits processors look at the ids: virtual tokens count as padding there.
        pad = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
        places = _insert(ids, torch.full_like(ids[:, :1], pad).expand(-1, self.num_virtual_tokens), attention_mask)
        for name in ("max_length", "min_length"):
            limit = kwargs.get(name, getattr(config, name, None))
            if limit:
                kwargs[name] = limit + self.num_virtual_tokens
        outputs = self.get_base_model().generate(input_ids=places, inputs_embeds=embeds, attention_mask=mask, **kwargs)
        sequences = outputs if isinstance(outputs, torch.Tensor) else outputs.sequences
        prompts = ids.repeat_interleave(len(sequences) // len(ids), dim=0)
        sequences = torch.cat((prompts, sequences[:, places.shape[1] :]), dim=1)
        if isinstance(outputs, torch.Tensor):
            return sequences
        outputs.sequences = sequences
        return outputs

    def _check_generate(self, ids, kwargs):
        if ids is None:
            raise ValueError("generate: input_ids is not given. Pass the ids of the prompts.")
        for name in _NEED_IDS:
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"generate: {name} cannot be combined with virtual prompt tokens, which have no ids. Leave it out."
                )
        config = kwargs.get("generation_config") or self.get_base_model().generation_config
        use_cache = kwargs.get("use_cache", config.use_cache)
        if use_cache is not None and not use_cache:
            raise ValueError(
                "generate: use_cache=False cannot be combined with virtual prompt tokens: every token would be "
                "generated without them. Leave it out."
            )

    def _refuse_packing(self, positions):
        if positions is not None and positions.shape[1] > 1 and (positions[:, 1:] < positions[:, :-1]).any():
            raise ValueError(
                "position_ids restart within a row, which marks packed rows, but virtual prompt tokens stand only in "
                "front of the first. Do not pack rows."
            )

    def _embed(self, ids):
        return self.get_base_model().get_input_embeddings()(ids)

    def _with_prompt(self, embeds, mask):
        prompt = self.get_prompt(batch_size=len(embeds)).to(embeds)
        embeds = _insert(embeds, prompt, mask)
        return embeds, None if mask is None else _insert(mask, _ones(mask, self.num_virtual_tokens), mask)

    def _takes(self, argument):
        return argument in inspect.signature(type(self.get_base_model()).forward).parameters


def adapter_class(config) -> type[AdapterModel]:
    """The class of a model with an adapter of a `PeftConfig`."""
    return PromptedModel if isinstance(config, PromptTuningConfig) else AdapterModel


def prompt_length(tokenizer: PreTrainedTokenizerBase, num_virtual_tokens: int | None, text: str | None) -> int:
    """
    The number of virtual tokens: as given, or those of the text, or `DEFAULT_VIRTUAL_TOKENS`.

    Raises:
        ValueError: the text has no tokens, or more than there are virtual tokens.
    """
    if text is None:
        return num_virtual_tokens or DEFAULT_VIRTUAL_TOKENS
    length = len(encode_plain(tokenizer, text))
    if not length:
        raise ValueError(f"prompt_init_text={text!r} has no tokens. Leave it out to start from random words.")
    if num_virtual_tokens is not None and length > num_virtual_tokens:
        raise ValueError(
            f"prompt_init_text has {length} tokens, but num_virtual_tokens={num_virtual_tokens}. Shorten the text, or "
            f"use at least {length}."
        )
    return num_virtual_tokens or length


def prompt_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_virtual_tokens: int | None, text: str | None
) -> PromptTuningConfig:
    """
    PEFT's config of virtual tokens for a model.

    Raises:
        ValueError: a text that does not fit, no room in the model's context, or attention between steps, which is
            read off the ids of all tokens.
    """
    if (variant := get_step_attention(model)) is not None:
        raise ValueError(
            f"mode='prompt' cannot be combined with step attention {variant!r}, which looks for the steps in the ids "
            "of all tokens: virtual tokens have none. Use another mode, or no step attention."
        )
    count = prompt_length(tokenizer, num_virtual_tokens, text)
    config = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    if context is not None and count >= context:
        raise ValueError(f"num_virtual_tokens={count} must be below the model's context of {context} tokens.")
    # PEFT would read a text with a tokenizer from the disk, and does so again when training goes on. The rows are set
    # here instead (`initial_prompt`), and the text is only noted.
    return PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=count,
        prompt_tuning_init="RANDOM",
        prompt_tuning_init_text=text,
        token_dim=model.get_input_embeddings().weight.shape[1],
        num_transformer_submodules=1,
        num_attention_heads=config.num_attention_heads,
        num_layers=config.num_hidden_layers,
    )


def initial_prompt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, text: str | None
) -> torch.Tensor:
    """
    The first embeddings of virtual tokens, of shape `(count, hidden)`: those of a text, again and again, or of random
    ordinary tokens of the vocabulary, drawn by torch's generator.
    """
    if text is not None:
        ids = encode_plain(tokenizer, text)
        ids = torch.tensor([ids[place % len(ids)] for place in range(count)])
    else:
        left_out = {*tokenizer.all_special_ids, *new_rows(model)[1]}
        ordinary = torch.tensor(sorted(set(tokenizer.get_vocab().values()) - left_out))
        ids = ordinary[torch.randint(len(ordinary), (count,))]
    with torch.no_grad():
        return model.get_input_embeddings()(ids.to(model.device)).float()


def virtual_tokens_of(model: PreTrainedModel | AdapterModel) -> int:
    """The positions that virtual tokens take from a model's context."""
    return model.num_virtual_tokens if isinstance(model, PromptedModel) else 0


def _insert(values, new, mask):
    """
    `new`, of shape `(batch, count, …)`, in front of the first real token of each row of `values`, which is where
    `mask` is first 1. Columns of real tokens move by `count`.
    """
    if not _has_left_padding(mask):
        return torch.cat((new.to(values.dtype), values), dim=1)
    count, length = new.shape[1], values.shape[1]
    first = (mask.bool().long().cumsum(1) == 0).sum(1, keepdim=True)
    column = torch.arange(count + length, device=values.device)[None]
    source = torch.where(column < first, column, column - count)
    source = torch.where((column >= first) & (column < first + count), length + column - first, source)
    both = torch.cat((values, new.to(values.dtype)), dim=1)
    return both[torch.arange(len(both), device=values.device)[:, None], source]


def _has_left_padding(mask):
    return mask is not None and bool((mask[:, 0] == 0).any())


def _ones(mask, count):
    return mask.new_ones(len(mask), count)


def _unlabelled_in_front(labels, count):
    if labels is None:
        return None
    return torch.cat((labels.new_full((len(labels), count), IGNORED_LABEL), labels), dim=1)


def _mask_of(ids, config):
    pad, ends = config.pad_token_id, config.eos_token_id
    ends = ends if isinstance(ends, list | tuple) else [ends]
    return torch.ones_like(ids) if pad is None or pad in ends else ids.ne(pad).long()
