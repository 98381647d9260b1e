"""Prompts of visitors: as ids, with a message for everything that a model cannot read, and examples to start from."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from memreason_hf.analysis.text_generation import check_positions, encode_prompts
from memreason_hf.data.questions.prompts import lone_prompter
from memreason_hf.messages import first_few
from memreason_hf.models.pretrained import first_line
from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import SCHEME_KEY, read_scheme
from modeling_recurrent import RecurrentDepthConfig


MOST_CHARACTERS = 20_000
_MOST_LETTERS = 40
_ENTITY, _RELATION = re.compile(r"<e_\d+>"), re.compile(r"<r_\d+>")
_EXAMPLE_HOPS = (1, 2, 4, 8, 16, 32)
_EXAMPLE_SEED = 7
_USUAL_LENGTH = 64
_QUESTIONS = ("Is the sky blue?", "Can a penguin fly?")
_TEXTS = ("Once upon a time", "The answer to the question is")


class PromptError(ValueError):
    """A prompt that cannot be continued. The message is for the visitor."""


@dataclass(frozen=True)
class EncodedPrompt:
    """
    A prompt as ids.

    Attributes:
        ids: the ids.
        text: the text as it was typed.
        lead: the number of ids at the end that begin the first step of the solution.
        note: what the visitor should know about how the prompt was read; empty if nothing.
    """

    ids: tuple[int, ...]
    text: str
    lead: int = 0
    note: str = ""


def scheme_of(tokenizer: PreTrainedTokenizerBase) -> StepScheme | None:
    """The scheme of steps that a model writes, or None."""
    return read_scheme(tokenizer) if SCHEME_KEY in tokenizer.init_kwargs else None


def encode_visitor_prompt(
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    text: object,
    *,
    max_new_tokens: int,
    most_tokens: int,
) -> EncodedPrompt:
    """
    The ids of a prompt. A model that writes steps gets the text as its question, in which no token is special, and in
    the prompt that it was trained with.

    Args:
        max_new_tokens: tokens that will be generated, for which there must be room.
        most_tokens: the most tokens of a prompt.

    Raises:
        PromptError: the prompt is empty or too long, or holds what the vocabulary cannot express.
    """
    if not isinstance(text, str) or not text.strip():
        raise PromptError("The prompt is empty. Type one, or click on an example.")
    if len(text) > MOST_CHARACTERS:
        raise PromptError(f"The prompt has {len(text):,} characters; at most {MOST_CHARACTERS:,} are read here.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise PromptError("The prompt holds half of a character (a lone surrogate). Type it again.")
    scheme = scheme_of(tokenizer)
    unknown = unknown_words(tokenizer, text)
    if unknown and tokenizer.unk_token_id is None:
        raise PromptError(f"The vocabulary does not have {first_few(unknown, 3)}. {_describe_vocabulary(tokenizer)}")
    try:
        if scheme is not None:
            ids = lone_prompter(tokenizer).prompt_ids(text)
        else:
            (ids,) = encode_prompts(tokenizer, [text])
    except ValueError as error:
        raise PromptError(f"The tokenizer cannot read the prompt: {first_line(error)}") from error
    _check_length(config, ids, max_new_tokens, most_tokens)
    note = ""
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        named = f": {first_few(unknown, 3)}" if unknown else ""
        note = f"The vocabulary does not know a part of the prompt, which was read as {tokenizer.unk_token}{named}."
    return EncodedPrompt(tuple(ids), text, len(scheme.prefix_tokens) if scheme is not None else 0, note)


def _check_length(config, ids, max_new_tokens, most_tokens):
    if len(ids) > most_tokens:
        raise PromptError(f"The prompt has {len(ids):,} tokens; at most {most_tokens:,} are read here. Shorten it.")
    needed = len(ids) + max_new_tokens - 1
    if isinstance(config, RecurrentDepthConfig):
        try:
            check_positions(config, [ids], max_new_tokens)
        except ValueError as error:
            raise PromptError(str(error)) from error
        return
    room = getattr(config.get_text_config(), "max_position_embeddings", None)
    if room is not None and needed > room:
        raise PromptError(
            f"A prompt of {len(ids)} tokens and {max_new_tokens} new ones need {needed} positions, but the model has "
            f"{room}. Shorten the prompt, or lower max_new_tokens."
        )


def unknown_words(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The words of a text that a word-level vocabulary lacks, each once; empty for vocabularies of parts of words."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "WordLevel" or backend.pre_tokenizer is None:
        return []
    normalized = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
    words = dict.fromkeys(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalized))
    return [_short(word) for word in words if tokenizer.convert_tokens_to_ids(word) in (None, tokenizer.unk_token_id)]


def _short(word):
    return word if len(word) <= _MOST_LETTERS else word[: _MOST_LETTERS - 1] + "…"


def _chain_words(tokenizer):
    """The entities and relations of a vocabulary of chains, each in the order of their ids."""
    vocabulary = tokenizer.get_vocab()
    names = sorted(vocabulary, key=vocabulary.__getitem__)
    return [[name for name in names if pattern.fullmatch(name)] for pattern in (_ENTITY, _RELATION)]


def _describe_vocabulary(tokenizer):
    entities, relations = _chain_words(tokenizer)
    if not entities or not relations:
        return "Use words of the vocabulary, separated by blanks."
    return (
        f"A chain is one of {entities[0]} to {entities[-1]}, followed by one or more of {relations[0]} to "
        f"{relations[-1]}."
    )


def usual_length(tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokens of an answer: one entity for a vocabulary of chains, of which models learn nothing more."""
    return 1 if all(_chain_words(tokenizer)) else _USUAL_LENGTH


def example_prompts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """
    Prompts to start from: chains of words of the vocabulary, questions for a model that writes steps, or texts.

    Those that the tokenizer cannot read are left out.
    """
    entities, relations = _chain_words(tokenizer)
    if entities and relations:
        draw = random.Random(_EXAMPLE_SEED)
        return [
            "".join([draw.choice(entities), *(draw.choice(relations) for _ in range(hops))]) for hops in _EXAMPLE_HOPS
        ]
    texts: Sequence[str] = _TEXTS if scheme_of(tokenizer) is None else _QUESTIONS
    return [text for text in texts if not unknown_words(tokenizer, text)]
