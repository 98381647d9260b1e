"""
Answers in the shape of OpenAI's API, whole or as the events of a stream.

Beside OpenAI's fields, `usage` has the recurrences that were spent, and a choice can have the recurrences and the id
of each of its tokens. Such lists have one entry for every generated token: also for the end token, and for tokens
whose text a stop string has cut off.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from memreason_hf.analysis.token_depths import PieceReader
from memreason_hf.messages import REPLACEMENT_CHARACTER
from memreason_hf.serving.api.fields import ChatFields, RequestFields
from memreason_hf.serving.api.served_model import ShownTokens, describe_token
from memreason_hf.serving.batching import TokenOutput


# Stands for log-probabilities of minus infinity, which JSON does not have, as in OpenAI's API.
_IMPOSSIBLE = -9999.0


@dataclass
class Usage:
    """
    The tokens and recurrences of a request.

    Example:

        >>> Usage(prompt_tokens=3, completion_tokens=2, recurrences=10).body()["recurrences"]
        {'total': 10, 'mean': 5.0}
    """

    prompt_tokens: int
    completion_tokens: int = 0
    recurrences: int = 0

    def body(self) -> dict:
        """The `usage` of an answer. `recurrences` counts those whose states gave the generated tokens."""
        mean = self.recurrences / self.completion_tokens if self.completion_tokens else 0.0
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "recurrences": {"total": self.recurrences, "mean": round(mean, 6)},
        }


@dataclass
class Part:
    """
    What one or several tokens add to a choice.

    Attributes:
        text: the text that can be shown now.
        logprobs: entries of `ChatCompletionTokenLogprob`, each with the `offset` of its text.
        recurrences, token_ids: one entry for each token.
        finish_reason: set on the last part.
    """

    text: str = ""
    logprobs: list[dict] = field(default_factory=list)
    recurrences: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None

    def extend(self, other: "Part") -> None:
        """Appends what comes after this part."""
        self.text += other.text
        self.logprobs += other.logprobs
        self.recurrences += other.recurrences
        self.token_ids += other.token_ids
        self.finish_reason = other.finish_reason


class ChoiceReader:
    """
    Turns the tokens of one choice into parts.

    Args:
        shown: decodes the tokens of the model.
        num_logprobs: alternatives for each token; None for no log-probabilities.
    """

    def __init__(self, shown: ShownTokens, num_logprobs: int | None):
        self._shown, self.num_logprobs = shown, num_logprobs
        self._pieces = PieceReader(shown.tokenizer, shown.hidden_ids)
        self._waiting: list[dict] = []
        self._offset = 0

    def read(self, output: TokenOutput) -> Part:
        """What a token adds."""
        part = Part(text=output.text or "", finish_reason=output.finish_reason)
        if output.token_id is not None:
            part.recurrences.append(output.num_recurrences)
            part.token_ids.append(output.token_id)
        if self.num_logprobs is not None:
            part.logprobs = self._read_logprobs(output)
        return part

    def _read_logprobs(self, output):
        """Entries are complete once the characters of their tokens are."""
        pieces = []
        if output.token_id is not None:
            self._waiting.append(self._entry(output))
            pieces = self._pieces.add(output.token_id, output.num_recurrences)
        if output.finish_reason is not None:
            pieces = [*pieces, *self._pieces.finish()]
        done = []
        for piece in pieces:
            entries, self._waiting = self._waiting[: len(piece.tokens)], self._waiting[len(piece.tokens) :]
            if len(entries) == 1 and piece.text and REPLACEMENT_CHARACTER not in piece.text:
                # The text of a token depends on the token before it.
                entries[0] |= describe_token(piece.text)
            done += [entry | {"offset": self._offset} for entry in entries]
            self._offset += len(piece.text)
        return done

    def _entry(self, output):
        # The chosen token is among them, also where it is not one of the most probable.
        best = sorted(output.logprobs.items(), key=lambda pair: -pair[1])[: self.num_logprobs]
        return {
            **self._shown.token(output.token_id),
            "logprob": _finite(output.logprobs[output.token_id]),
            "top_logprobs": [{**self._shown.token(one), "logprob": _finite(value)} for one, value in best],
        }


def _finite(value):
    return max(float(value), _IMPOSSIBLE)


class Reply:
    """
    The shape of the answers to one request.

    Args:
        model: the name of the model.
        fields: of the request.
    """

    def __init__(self, model: str, fields: RequestFields):
        self.model, self.fields = model, fields
        self.is_chat = isinstance(fields, ChatFields)
        self.id = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.created = int(time.time())

    def whole(self, parts: Sequence[Part], usage: Usage) -> dict:
        """The answer of a request that is not a stream; `parts` has one part for each choice."""
        choices = [self._choice(index, part, is_whole=True) for index, part in enumerate(parts)]
        return {**self._head(is_whole=True), "choices": choices, "usage": usage.body()}

    def begin(self, index: int) -> dict:
        """The event that begins a choice of a chat."""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._event([choice])

    def event(self, index: int, part: Part) -> dict:
        """The event of a part of a choice."""
        return self._event([self._choice(index, part, is_whole=False)])

    def end(self, usage: Usage) -> dict:
        """The last event of a stream with usage: it has no choice."""
        return {**self._head(is_whole=False), "choices": [], "usage": usage.body()}

    def _event(self, choices):
        options = self.fields.stream_options
        usage = {"usage": None} if options is not None and options.include_usage else {}
        return {**self._head(is_whole=False), "choices": choices, **usage}

    def _head(self, is_whole):
        kind = "text_completion"
        if self.is_chat:
            kind = "chat.completion" if is_whole else "chat.completion.chunk"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, index, part, is_whole):
        choice = {"index": index, "logprobs": self._logprobs(part.logprobs), "finish_reason": part.finish_reason}
        if not self.is_chat:
            choice["text"] = part.text
        elif is_whole:
            choice["message"] = {"role": "assistant", "content": part.text, "refusal": None}
        else:
            choice["delta"] = {"content": part.text} if part.text else {}
        if self.fields.recurrences:
            choice["recurrences"] = part.recurrences
        if self.fields.return_token_ids:
            choice["token_ids"] = part.token_ids
        return choice

    def _logprobs(self, entries):
        if self.fields.num_logprobs is None:
            return None
        if self.is_chat:
            return {"content": [{key: entry[key] for key in entry if key != "offset"} for entry in entries]}
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [{one["token"]: one["logprob"] for one in entry["top_logprobs"]} for entry in entries],
            "text_offset": [entry["offset"] for entry in entries],
        }
