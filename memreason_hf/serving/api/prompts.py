"""Prompts and messages of clients, as ids."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from memreason_hf.checks import shortened
from memreason_hf.data.questions.prompts import FORMAT_KEY, lone_prompter
from memreason_hf.messages import first_line
from memreason_hf.serving.api.refusals import ApiError, wrong
from memreason_hf.serving.api.text_lengths import characters_of_token
from memreason_hf.steps.tokenization import SCHEME_KEY


_MESSAGE_KEYS = ("role", "content", "name")


@dataclass(frozen=True)
class Prompt:
    """
    A prompt.

    Attributes:
        ids: its ids.
        text: the text that the client gave, or None for a prompt that was given as ids.
    """

    ids: tuple[int, ...]
    text: str | None = None


class PromptReader:
    """
    Turns what clients send into ids.

    It has a copy of the tokenizer, because the tokenizers library fails where one thread changes a setting while
    another one reads. One thread at a time may use a reader.

    Args:
        tokenizer: of the model.
        context: the most tokens of a prompt.

    Example:

        >>> [prompt.ids for prompt in PromptReader(tokenizer, 64).read_prompts([5, 6, 7])]
        [(5, 6, 7)]
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int):
        self.tokenizer = copy.deepcopy(tokenizer)
        self.context = context
        # Longer texts need not be read to be refused.
        characters = characters_of_token(self.tokenizer)
        self.most_characters = None if characters is None else context * characters

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be read: by a chat template, or by the scheme of a model that answers questions."""
        return self.tokenizer.chat_template is not None or SCHEME_KEY in self.tokenizer.init_kwargs

    def read_prompts(self, given: object) -> list[Prompt]:
        """
        The prompts of a completion: a text, a list of texts, the ids of one prompt, or a list of such lists.

        Raises:
            ApiError: `prompt` is something else, empty, too long, or holds what the vocabulary cannot express.
        """
        if given is None:
            raise ApiError(400, "prompt is not given. Send a text.", param="prompt", code="missing_field")
        if isinstance(given, str):
            return [self._read_text(given)]
        if not isinstance(given, list) or not given:
            raise wrong("prompt", given, "must be a text, a list of texts, ids, or a list of lists of ids")
        if all(isinstance(part, str) for part in given):
            return [self._read_text(text) for text in given]
        rows = given if all(isinstance(part, list) for part in given) else [given]
        return [self._read_ids(row) for row in rows]

    def read_messages(self, given: object) -> Prompt:
        """
        The prompt of a conversation, by the chat template of the tokenizer.

        A model that was taught to solve questions in steps, and has no template, reads one message of a user as its
        question; so does one that was taught with a prompt of its own, which is saved with its tokenizer. If that is a
        chat template, other conversations go through the template as they are.

        Raises:
            ApiError: `messages` is not a list of messages of texts, there is no template, the template refuses the
                messages, or the prompt is too long.
        """
        messages = _check_messages(given)
        tokenizer = self.tokenizer
        is_lone = len(messages) == 1 and messages[0]["role"] == "user"
        has_format = FORMAT_KEY in tokenizer.init_kwargs
        is_chat = tokenizer.chat_template is not None and (not has_format or _is_chat(tokenizer))
        if SCHEME_KEY in tokenizer.init_kwargs and ((has_format and is_lone) or not is_chat):
            if not is_lone:
                raise ApiError(
                    400,
                    "messages: this model solves one question at a time. Send one message with the role user.",
                    param="messages",
                    code="invalid_value",
                )
            question = messages[0]["content"]
            self._check_size("messages", len(question))
            return self._fits("messages", self._encode(_encode_question, "messages", question))
        if tokenizer.chat_template is None:
            raise ApiError(
                400,
                "The tokenizer of this model has no chat template. Use POST /v1/completions, or set chat_template in "
                "its tokenizer_config.json.",
                param="messages",
                code="no_chat_template",
            )
        text = self._encode(_apply_template, "messages", messages)
        # Templates can shorten what they are given.
        self._check_size("messages", len(text))
        return self._fits("messages", self._encode(_encode_rendered, "messages", text))

    def _read_text(self, text):
        self._check_size("prompt", len(text))
        _check_characters("prompt", text)
        return self._fits("prompt", self._encode(_encode_text, "prompt", text), text)

    def _read_ids(self, ids):
        rows = len(self.tokenizer)
        for token_id in ids:
            # True is an int.
            if type(token_id) is not int or not 0 <= token_id < rows:
                raise wrong("prompt", token_id, f"is not a token id: these are whole numbers from 0 to {rows - 1}")
        return self._fits("prompt", ids)

    def _check_size(self, param, characters):
        if self.most_characters is not None and characters > self.most_characters:
            raise ApiError(
                400,
                f"{param} has {characters:,} characters, which are more than {self.context:,} tokens. Shorten it.",
                param=param,
                code="context_length_exceeded",
            )

    def _encode(self, function, param, given):
        try:
            return function(self.tokenizer, given)
        except Exception as error:  # tokenizers raise a bare Exception, templates whatever their author chose
            message = f"{param}: the tokenizer of this model cannot read it ({first_line(error)})."
            raise ApiError(400, message, param=param, code="invalid_value") from error

    def _fits(self, param, ids, text=None):
        if not ids:
            raise ApiError(400, f"{param} has no tokens. Send a text.", param=param, code="invalid_value")
        if len(ids) > self.context:
            message = f"The prompt has {len(ids):,} tokens, but at most {self.context:,} are read here. Shorten it."
            raise ApiError(400, message, param=param, code="context_length_exceeded")
        return Prompt(tuple(ids), text)


def count_prompts(given: object) -> int:
    """
    How many prompts a completion is for, without reading them.

    Example:

        >>> [count_prompts(given) for given in ("a", ["a", "b"], [5, 6, 7], [[5, 6], [7]])]
        [1, 2, 1, 2]
    """
    is_several = isinstance(given, list) and given and isinstance(given[0], str | list)
    return len(given) if is_several else 1


def _encode_text(tokenizer, text):
    return tokenizer(text)["input_ids"]


def _encode_question(tokenizer, question):
    return lone_prompter(tokenizer).prompt_ids(question)


def _is_chat(tokenizer):
    """Whether the model was taught with the chat template."""
    return lone_prompter(tokenizer).format.chat_template


def _apply_template(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def _encode_rendered(tokenizer, text):
    # The template has written the special tokens.
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if FORMAT_KEY in tokenizer.init_kwargs and SCHEME_KEY in tokenizer.init_kwargs:
        # The tokens that begin a solution, which stood at the end of the prompts in training.
        ids += lone_prompter(tokenizer).start_ids()
    return ids


def _check_characters(param, text):
    if any("\ud800" <= character <= "\udfff" for character in text):
        message = f"{param} holds half of a character (a lone surrogate)."
        raise ApiError(400, message, param=param, code="invalid_value")


def _check_messages(given):
    if not isinstance(given, list) or not given:
        raise ApiError(
            400, "messages must be a list with at least one message.", param="messages", code="invalid_value"
        )
    return [_check_message(f"messages[{index}]", message) for index, message in enumerate(given)]


def _check_message(where, message):
    if not isinstance(message, Mapping):
        raise _refused(f"{where}={shortened(message)} must be an object with role and content")
    for name, value in message.items():
        if name not in _MESSAGE_KEYS and value not in (None, []):
            raise _refused(f"{where}.{name[:64]}: this server reads {', '.join(_MESSAGE_KEYS)} of a message")
    for name in ("role", "name"):
        if not isinstance(message.get(name), str | None):
            raise _refused(f"{where}.{name}={shortened(message[name])} must be a text")
    if not message.get("role"):
        raise _refused(f"{where}.role is not given. Send system, user or assistant")
    content = _check_content(f"{where}.content", message.get("content"))
    _check_characters("messages", content)
    kept = {"role": message["role"], "content": content}
    return kept | ({"name": message["name"]} if message.get("name") else {})


def _check_content(where, content):
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _refused(f"{where}={shortened(content)} must be a text or a list of parts of text")
    texts = []
    for index, part in enumerate(content):
        is_text = isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
        if not is_text:
            raise _refused(f"{where}[{index}]={shortened(part)} must be a part of type text: no other is read")
        texts.append(part["text"])
    return "".join(texts)


def _refused(message):
    return ApiError(400, f"{message}.", param="messages", code="invalid_value")
