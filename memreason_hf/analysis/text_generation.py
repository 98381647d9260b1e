"""Texts that a model writes, with the recurrences that each of their tokens took."""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memreason_hf.analysis.token_depth_terminal import DepthStreamer
from memreason_hf.analysis.token_depths import GeneratedText, Piece, PieceReader
from memreason_hf.checks import check_has, check_sequence, check_type
from modeling_recurrent import RecurrentDepthConfig


_MOST_LETTERS = 60


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """
    The ids of each prompt.

    Raises:
        ValueError: a prompt has no tokens, or holds text that the vocabulary cannot express.
    """
    check_has("tokenizer", tokenizer, "pad_token_id", "a tokenizer")
    check_sequence("prompts", prompts, "a list of texts")
    for prompt in prompts:
        check_type("prompts", prompt, str, "a list of texts")
    rows = []
    for prompt in prompts:
        shown = repr(prompt if len(prompt) <= _MOST_LETTERS else prompt[: _MOST_LETTERS - 3] + "...")
        try:
            row = tokenizer(prompt)["input_ids"]
        except Exception as error:  # the tokenizers library raises a bare Exception for an unknown word
            raise ValueError(f"prompt={shown}: the tokenizer cannot read it ({error}).") from error
        if not row:
            raise ValueError(f"prompt={shown} has no tokens, so there is nothing to continue.")
        rows.append(row)
    return rows


def check_positions(config: RecurrentDepthConfig, rows: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """
    Raises:
        ValueError: a prompt with its new tokens needs more positions than the model has learned.
    """
    prompt = max(map(len, rows))
    # The last new token is not fed back.
    longest = prompt + max_new_tokens - 1
    if config.position_embedding_type == "learned" and longest > config.max_position_embeddings:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} after a prompt of {prompt} tokens needs {longest} positions, but the "
            f"model has learned max_position_embeddings={config.max_position_embeddings}. Generate fewer tokens."
        )


class _OneRecurrence(DepthStreamer):
    """The streamer for a decoder that reports no depths."""

    def put(self, value):
        if not self._prompt_is_next:
            self.put_recurrences(torch.ones_like(value))
        super().put(value)


class TextGenerator:
    """
    Continues prompts and reads the depth of every token.

    Args:
        model: the model. In a decoder without recurrences, every token counts as one: the layers run once.
        tokenizer: its tokenizer.
        arguments: for `generate`.

    Example:
        >>> generator = TextGenerator(model, tokenizer, max_new_tokens=20, halting_criterion="kl")  # doctest: +SKIP
        >>> (text,) = generator.generate(["Once upon"], encode_prompts(tokenizer, ["Once upon"]))  # doctest: +SKIP
        >>> text.text, text.depths  # doctest: +SKIP
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **arguments):
        check_has("model", model, "generation_config", "a causal language model")
        self.model, self.tokenizer, self.arguments = model, tokenizer, arguments
        ends = model.generation_config.eos_token_id
        # A model that was trained without a generation config ends its texts as its tokenizer does.
        ends = tokenizer.eos_token_id if ends is None else ends
        self.end_ids = set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
        known = (model.generation_config.pad_token_id, tokenizer.pad_token_id, *sorted(self.end_ids), 0)
        # The attention mask hides padding, so any id will do.
        self.pad_id = next(token_id for token_id in known if token_id is not None)
        self.hidden_ids = {tokenizer.bos_token_id, tokenizer.pad_token_id, *self.end_ids} - {None}

    @property
    def streams(self) -> bool:
        """Whether tokens are final as soon as they are generated. Beams are not, before the last token."""
        return (self.model.generation_config.num_beams or 1) == 1

    def generate(
        self, prompts: Sequence[str], rows: Sequence[Sequence[int]], streamer: object = None
    ) -> list[GeneratedText]:
        """
        Continues the prompts in one batch, padded on the left.

        Args:
            rows: the ids of the prompts, from `encode_prompts`.
            streamer: for `generate`.
        """
        width = max(map(len, rows))
        ids = torch.tensor([[self.pad_id] * (width - len(row)) + [*row] for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        output = self.model.generate(
            ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            pad_token_id=self.pad_id,
            eos_token_id=sorted(self.end_ids) or None,
            return_dict_in_generate=True,
            # Texts are matched with their prompts, whatever the model's generation config says.
            num_return_sequences=1,
            streamer=streamer,
            **self.arguments,
        )
        new = output.sequences[:, width:].tolist()
        if isinstance(self.model.config, RecurrentDepthConfig):
            depths, prompt_depths = output.num_recurrences.tolist(), output.prompt_recurrences.tolist()
        else:
            depths, prompt_depths = ([[1] * len(row) for row in some] for some in (new, ids.tolist()))
        return [self._text(*row, width) for row in zip(prompts, rows, prompt_depths, new, depths)]

    def stream(self, prompt: str, row: Sequence[int], write: Callable[[Piece], None]) -> GeneratedText:
        """Continues one prompt and calls `write` with every piece of the text as soon as it is complete."""
        reader = PieceReader(self.tokenizer, self.hidden_ids)
        reader.read(row, [1] * len(row))
        streamer = DepthStreamer if isinstance(self.model.config, RecurrentDepthConfig) else _OneRecurrence
        (text,) = self.generate([prompt], [row], streamer(reader.add, write))
        for piece in reader.finish():
            write(piece)
        return text

    def _text(self, prompt, row, prompt_depths, new, depths, width):
        end = next((place for place, token_id in enumerate(new) if token_id in self.end_ids), None)
        new = new if end is None else new[: end + 1]
        reader = PieceReader(self.tokenizer, self.hidden_ids)
        prompt_pieces = reader.read(row, prompt_depths[width - len(row) :])
        return GeneratedText(prompt, prompt_pieces, reader.read(new, depths), "length" if end is None else "eos")
