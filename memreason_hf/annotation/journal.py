"""Every answer of a language model on disk as soon as it arrives, so that none is paid for twice."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from memreason_hf.chat import ChatReply
from memreason_hf.checks import shortened
from memreason_hf.files import parse_json, read_bytes, read_json, write_json


# The two calls of the procedure.
PLAN, KNOWLEDGE = "plan", "knowledge"
CALLS = (PLAN, KNOWLEDGE)
_REPLY = ("text", "num_prompt_tokens", "num_new_tokens", "finish_reason")
_START = b'{"item": '
# A power cut loses what was written in so many seconds; a killed process loses nothing.
_SYNC_SECONDS = 1.0


def row_digest(row: Mapping) -> str:
    """A short digest of what an annotation depends on in a row."""
    values = [row["question"], row["options"], row["answer"], list(row["accepted_answers"])]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]


class Journal:
    """
    A file of JSON lines: for every call its item, try and kind, and the reply.

    An unfinished last line, which a killed process leaves, is removed.

    Args:
        path: the file; it and its folder are created with the first reply.
        digests: of the rows of the items, in order. Replies to other items are ignored, and those to another row are
            an error.
        settings: what the replies depend on apart from the rows, as JSON values; written to `settings_path`.
        settings_path: the file of the settings.
        replace: for a run that starts again: called before the first reply is written, it removes what the run
            replaces. The file is not read.

    Raises:
        ValueError: the file is damaged, or was written for other rows or with other settings.

    Attributes:
        num_calls (`int`): The replies.
        num_prompt_tokens, num_new_tokens (`int`): Their tokens, as far as they were counted.
    """

    def __init__(
        self,
        path: str | Path,
        digests: Sequence[str],
        settings: Mapping,
        settings_path: str | Path,
        *,
        replace: Callable[[], None] | None = None,
    ):
        self.path, self.settings_path = Path(path), Path(settings_path)
        self._digests, self._settings = list(digests), json.loads(json.dumps(dict(settings)))
        self._replace = replace
        self._handle: int | None = None
        self._synced = 0.0
        self._replies: dict[tuple[int, int, str], ChatReply] = {}
        self.num_calls = self.num_prompt_tokens = self.num_new_tokens = 0
        if self.path.exists() and replace is None:
            self._read()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def get(self, item: int, number: int, call: str) -> ChatReply | None:
        """The reply to a call, if it has arrived."""
        return self._replies.get((item, number, call))

    def add(self, item: int, number: int, call: str, reply: ChatReply) -> None:
        """Appends a reply to the file."""
        if self._handle is None:
            self._open()
        values = {"item": item, "row": self._digests[item], "try": number, "call": call}
        values |= {name: getattr(reply, name) for name in _REPLY}
        # ASCII: an answer may hold half of a character. One write: a line is on disk as a whole, or not at all.
        os.write(self._handle, (json.dumps(values) + "\n").encode())
        self._keep((item, number, call), reply)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._handle)
            self._synced = time.monotonic()

    def close(self) -> None:
        """Syncs the file to the disk, and closes it."""
        if self._handle is not None:
            os.fsync(self._handle)
            os.close(self._handle)
            self._handle = None

    def _keep(self, key, reply):
        self._replies[key] = reply
        self.num_calls += 1
        self.num_prompt_tokens += reply.num_prompt_tokens or 0
        self.num_new_tokens += reply.num_new_tokens or 0

    def _open(self):
        if self._replace is not None:
            self._replace()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            write_json(self.settings_path, self._settings)
        self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def _read(self):
        self._check_settings()
        content = read_bytes(self.path)
        end = content.rfind(b"\n") + 1
        whole, unfinished = content[:end], content[end:]
        if unfinished:
            if not unfinished.startswith(_START[: len(unfinished)]):
                raise ValueError(
                    f"{self.path} must hold replies of a language model, but ends with {shortened(unfinished[:20])}. "
                    "Remove the file, or choose another output file."
                )
            os.truncate(self.path, end)
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            key, reply = self._parsed(line, number)
            # Of a reply that is there twice, which only an edited file has, the first one was used.
            if key[0] < len(self._digests) and key not in self._replies:
                self._keep(key, reply)

    def _parsed(self, line, number):
        where = f"{self.path}, line {number}"
        try:
            values = parse_json(line)
            key = (int(values["item"]), int(values["try"]), str(values["call"]))
            reply, digest = ChatReply(**{name: values[name] for name in _REPLY}), values["row"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{where}: damaged ({error}). Remove the line; its call is then made again.") from None
        if key[0] < len(self._digests) and digest != self._digests[key[0]]:
            raise ValueError(
                f"{where}: the reply belongs to another question than item {key[0]} of the data. Choose another "
                "output file, or pass --overwrite."
            )
        return key, reply

    def _check_settings(self):
        try:
            before = read_json(self.settings_path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{error} Choose another output file, or pass --overwrite.") from None
        names = dict.fromkeys([*(before if isinstance(before, dict) else ()), *self._settings])
        changed = [name for name in names if before.get(name) != self._settings.get(name)]
        if changed:
            name = changed[0]
            raise ValueError(
                f"{name}={shortened(self._settings.get(name))}: {self.path.parent} was written with "
                f"{name}={shortened(before.get(name))}. Choose another output file, or pass --overwrite."
            )
