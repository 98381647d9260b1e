"""
Replies of a language model that are kept, so that a command that was stopped does not ask for them again.

    replies = ReplyFile("scores.jsonl.replies.jsonl")
    if key not in replies:
        replies.add(key, text)
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from memreason_hf.files import parse_json, read_bytes


class ReplyFile:
    """
    A file of JSON lines with `key` and `reply`, each of which is on the disk as soon as it is added.

    Args:
        path: the file; it is created when something is added. An unfinished last line, which a killed command leaves,
            is removed. The caller holds the lock of the file.

    Raises:
        ValueError: a line holds something else; names the line.
        OSError: the file cannot be read.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._replies: dict[str, str] = {}
        if self.path.exists():
            self._read()

    def __contains__(self, key: str) -> bool:
        return key in self._replies

    def __getitem__(self, key: str) -> str:
        return self._replies[key]

    def __len__(self) -> int:
        return len(self._replies)

    def add(self, key: str, reply: str) -> None:
        """Appends a reply, and syncs it to the disk."""
        self._replies[key] = reply
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            # ASCII: half of a character, which JSON of an endpoint can hold, cannot be written as UTF-8.
            file.write((json.dumps({"key": key, "reply": reply}) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def _read(self):
        content = read_bytes(self.path)
        end = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:end].split(b"\n")[:-1], start=1):
            self._add_line(line, number)
        if content[end:]:
            start = b'{"key": "'
            if not content[end:].startswith(start[: len(content) - end]):
                raise ValueError(f"{self.path} must hold the replies of a judge. Choose another file.")
            # Removed at once, because the next line would be appended to it.
            with open(self.path, "r+b") as file:
                file.truncate(end)

    def _add_line(self, line, number):
        try:
            values = parse_json(line)
            key, reply = values["key"], values["reply"]
        except (ValueError, TypeError, KeyError):
            key = reply = None
        if not isinstance(key, str) or not isinstance(reply, str):
            raise ValueError(
                f"{self.path}, line {number}: must hold a reply of a judge (key and reply). Remove the line, or the "
                "file."
            )
        self._replies[key] = reply


def reply_key(chat: object, name: str, request: object, settings: Mapping, seed: int) -> str:
    """
    The key of a reply: it changes with everything that the reply depends on.

    Args:
        chat: the language model. Where it has a `place`, as an `EndpointChat` has, two models of one name at two
            places have different keys.
        name: of the model.
        request: what was asked, as a JSON value.
        settings, seed: of drawing the reply.
    """
    place = getattr(chat, "place", None)
    values = [name, *([] if place is None else [{"place": place}]), request, dict(settings), seed]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
