"""A chat model on this machine: requests that are made at once are answered in one batch."""

import asyncio
import copy
import threading
from dataclasses import dataclass

import torch
from jinja2 import TemplateError
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from memreason_hf.chat.replies import ChatError, ChatReply, Messages, check_request
from memreason_hf.checks import check_has, check_int
from memreason_hf.messages import first_line
from memreason_hf.models.loading import choose_device, load_any_config, load_model, load_tokenizer
from memreason_hf.steps.tokenization import padding_id


# The settings of drawing in a model's generation config; tokens are drawn in another way here.
_DRAWING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")
# Seconds in which further requests may join a batch.
_GATHERING = 0.005


class LocalChat:
    """
    A chat model in this process.

    Requests are collected into batches of up to `batch_size`. Tokens of a request are drawn with its own seed, so its
    answer does not depend on the requests next to it, apart from rounding. The whole distribution is drawn from: the
    model's own `top_p` and `top_k` are not used.

    Args:
        model: a causal language model. Its training mode is restored after each batch.
        tokenizer: its tokenizer, with a chat template.
        batch_size: the maximum number of requests in a batch.

    Raises:
        TypeError, ValueError: an argument is wrong, or the tokenizer has no chat template.

    Attributes:
        concurrency (`int`): `batch_size`: more requests at once would only wait.

    Example:

    ```python
    chat = LocalChat(model, tokenizer)
    replies = dict(ask_all(chat, {"a": [{"role": "user", "content": "Is the sky blue?"}]}, max_tokens=20))
    ```
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 8):
        check_has("model", model, "generate", "a causal language model")
        check_has("tokenizer", tokenizer, "apply_chat_template", "a tokenizer")
        check_int("batch_size", batch_size, least=1)
        if not tokenizer.chat_template:
            raise ValueError(
                "The tokenizer has no chat template: the model was not trained to follow requests. Choose an instruct "
                "model, or give the tokenizer a chat_template."
            )
        self.model, self.tokenizer, self.concurrency = model, tokenizer, batch_size
        self._padding = padding_id(tokenizer)
        self._waiting: list[_Request] = []
        self._worker: asyncio.Task | None = None
        self._stopped = threading.Event()

    @classmethod
    def load(
        cls,
        model: str,
        *,
        batch_size: int = 8,
        dtype: str = "auto",
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> "LocalChat":
        """
        Loads a model and its tokenizer.

        Args:
            model: a folder or a name on the Hub.
            batch_size: see `LocalChat`.
            dtype, device, trust_remote_code: see `load_model` and `choose_device`.

        Raises:
            ValueError, OSError: the model or the tokenizer cannot be loaded, or there is no chat template.
        """
        chosen = choose_device(device)
        config = load_any_config(model, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(model, None, config, trust_remote_code=trust_remote_code)
        if not tokenizer.chat_template:
            raise ValueError(f"llm={model!r}: its tokenizer has no chat template. Choose an instruct model.")
        loaded = load_model(model, dtype, trust_remote_code=trust_remote_code)
        return cls(loaded.to(chosen), tokenizer, batch_size=batch_size)

    async def ask(
        self, messages: Messages, *, max_tokens: int, temperature: float = 0.0, seed: int | None = None
    ) -> ChatReply:
        """
        Asks the model; see `EndpointChat.ask`.

        Args:
            seed: for drawing tokens; None: another one at each call.

        Raises:
            ChatError: the template refuses the messages, or they leave no room for an answer.
        """
        check_request(messages, max_tokens, temperature, seed)
        ids = self._encode(messages)
        room = getattr(self.model.config, "max_position_embeddings", None)
        if room is not None and len(ids) >= room:
            raise ChatError(f"the request has {len(ids):,} tokens, but the model reads at most {room:,}.", True)
        max_tokens = max_tokens if room is None else min(max_tokens, room - len(ids))
        request = _Request(ids, max_tokens, float(temperature), seed, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if self._worker is None or self._worker.done():
            self._stopped.clear()
            self._worker = asyncio.create_task(self._serve())
        try:
            return await request.reply
        finally:
            # Cancelled, where it did not begin.
            if request in self._waiting:
                self._waiting.remove(request)

    async def close(self) -> None:
        """Ends the batch that is being generated."""
        self._stopped.set()
        if self._worker is not None and not self._worker.done():
            await asyncio.wait([self._worker])

    def _encode(self, messages):
        try:
            found = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True, return_dict=True
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ChatError(
                f"the chat template refuses messages of {roles}: {first_line(error)}.", True, True
            ) from None
        return list(found["input_ids"])

    async def _serve(self):
        while self._waiting and not self._stopped.is_set():
            # Requests that are being made at this moment join the batch.
            await asyncio.sleep(_GATHERING)
            batch, self._waiting = self._waiting[: self.concurrency], self._waiting[self.concurrency :]
            batch = [request for request in batch if not request.reply.done()]
            try:
                replies = await asyncio.to_thread(self._answer, batch) if batch else []
            except Exception as error:
                replies = [error] * len(batch)
            for request, reply in zip(batch, replies):
                if request.reply.done():
                    continue
                if isinstance(reply, Exception):
                    request.reply.set_exception(reply)
                else:
                    request.reply.set_result(reply)

    def _answer(self, batch):
        longest = max(len(request.ids) for request in batch)
        rows = [[self._padding] * (longest - len(request.ids)) + request.ids for request in batch]
        mask = [[0] * (longest - len(request.ids)) + [1] * len(request.ids) for request in batch]
        device = self.model.device
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                output = self.model.generate(
                    input_ids=torch.tensor(rows, device=device),
                    attention_mask=torch.tensor(mask, device=device),
                    generation_config=self._settings(max(request.max_tokens for request in batch)),
                    logits_processor=LogitsProcessorList([_SeededDrawing(batch)]),
                    stopping_criteria=StoppingCriteriaList([_Stop(self._stopped)]),
                )
        finally:
            self.model.train(was_training)
        return [self._reply(request, ids) for request, ids in zip(batch, output[:, longest:].tolist())]

    def _settings(self, max_new_tokens):
        settings = copy.deepcopy(self.model.generation_config)
        settings.update(**dict.fromkeys(_DRAWING), do_sample=False, num_beams=1, max_length=None)
        settings.update(max_new_tokens=max_new_tokens, pad_token_id=self._padding, return_dict_in_generate=False)
        if settings.eos_token_id is None:
            settings.eos_token_id = self.tokenizer.eos_token_id
        return settings

    def _reply(self, request, ids):
        ends = self.model.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        ends = ends if isinstance(ends, list) else [ends]
        ids = ids[: request.max_tokens]
        stop = next((index for index, one in enumerate(ids) if one in ends), None)
        text = self.tokenizer.decode(ids if stop is None else ids[:stop], skip_special_tokens=True)
        num_new = len(ids) if stop is None else stop + 1
        return ChatReply(text.strip(), len(request.ids), num_new, "length" if stop is None else "stop")


@dataclass
class _Request:
    ids: list[int]
    max_tokens: int
    temperature: float
    seed: int | None
    reply: asyncio.Future


class _SeededDrawing(LogitsProcessor):
    """
    Draws a token for each row with a generator of its own: the largest of the scaled logits plus Gumbel noise is a
    draw from their softmax, so that greedy generation takes it. Rows with temperature 0 stay as they are.
    """

    def __init__(self, batch):
        self._temperatures = [request.temperature for request in batch]
        self._generators = [torch.Generator() for _ in batch]
        for request, generator in zip(batch, self._generators):
            if request.seed is None:
                generator.seed()
            else:
                generator.manual_seed(request.seed)

    def __call__(self, input_ids, scores):
        scores = scores.float()
        for row, (temperature, generator) in enumerate(zip(self._temperatures, self._generators)):
            if temperature > 0:
                # On the CPU, where a seed gives the same noise whatever the device of the model. In float64, because
                # the largest of many float32 values is often exactly 1.
                uniform = torch.rand(scores.shape[-1], generator=generator, dtype=torch.float64)
                noise = -torch.log(-torch.log(uniform.clamp_min(1e-300)))
                scores[row] = scores[row] / temperature + noise.to(scores)
        return scores


class _Stop(StoppingCriteria):
    """Ends a batch early."""

    def __init__(self, stopped):
        self._stopped = stopped

    def __call__(self, input_ids, scores, **kwargs):
        value = self._stopped.is_set()
        return torch.full((input_ids.shape[0],), value, dtype=torch.bool, device=input_ids.device)
