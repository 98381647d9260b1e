"""Knowledge from texts of the user: the passage that fits a question best, by BM25."""

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from memreason_hf.checks import check_path, check_sequence, check_type, shortened
from memreason_hf.data.questions.text import one_line
from memreason_hf.files import parse_json, read_text


# Words of one character count, too: they may be numbers.
_WORD = r"(?u)\b\w+\b"
_SUFFIXES = (".txt", ".md", ".jsonl")


class Corpus:
    """
    Passages of text, and the best one for a question.

    Args:
        passages: the texts. Each becomes one line.
        stop_words: a language whose frequent words do not count, by the names of bm25s; None: every word counts.

    Raises:
        ValueError: there are no passages.
        ImportError: bm25s is not installed.

    Attributes:
        digest (`str`): of the passages, by which another corpus is told from this one.

    Example:

        >>> corpus = Corpus(["Ice is lighter than water.", "Oslo has 700,000 people."])  # doctest: +SKIP
        >>> corpus.best("How many people live in Oslo?")  # doctest: +SKIP
        'Oslo has 700,000 people.'
    """

    def __init__(self, passages: Sequence[str], *, stop_words: str | None = "en"):
        check_sequence("passages", passages, "a list of texts")
        for index, passage in enumerate(passages):
            check_type(f"passages[{index}]", passage, str, "a text")
        self.passages = list(dict.fromkeys(filter(None, map(one_line, passages))))
        if not self.passages:
            raise ValueError("The corpus has no passages.")
        self.digest = hashlib.sha256("\n".join(self.passages).encode(errors="surrogatepass")).hexdigest()[:16]
        self._bm25s = _import_bm25s()
        self._options = {"token_pattern": _WORD, "stopwords": stop_words, "show_progress": False}
        self._index = self._bm25s.BM25()
        words = self._bm25s.tokenize(self.passages, return_ids=False, **self._options)
        if not any(words):
            raise ValueError("The corpus has no words apart from stop words.")
        self._index.index(words, show_progress=False)

    @classmethod
    def load(cls, path: str | Path, *, text_column: str = "text") -> "Corpus":
        """
        Reads a corpus.

        Args:
            path: a text file, whose passages are separated by blank lines; a file of JSON lines, each with a passage;
                or a folder of such files (`.txt`, `.md`, `.jsonl`).
            text_column: the field of a JSON line that holds the passage.

        Raises:
            ValueError: a file has another suffix or a damaged line, or there are no passages.
            OSError: a file cannot be read.
        """
        check_path("corpus", path)
        path = Path(path)
        files = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"corpus={str(path)!r} has no files with the suffix {', '.join(_SUFFIXES)}.")
        passages = [passage for file in files for passage in _read(file, text_column)]
        if not passages:
            raise ValueError(f"corpus={str(path)!r} has no passages.")
        return cls(passages)

    def best(self, question: str, exclude: Collection[str] = ()) -> str | None:
        """
        The passage that fits a question best.

        Args:
            question: the question. Each of its words counts, except stop words.
            exclude: passages that are not wanted any more.

        Returns:
            The passage; None if no other passage shares a word with the question.
        """
        words = self._bm25s.tokenize([question], return_ids=False, **self._options)[0]
        known = [word for word in words if word in self._index.vocab_dict]
        if not known:
            return None
        scores = self._index.get_scores(known)
        for index in scores.argsort()[::-1][: len(exclude) + 1]:
            if scores[index] > 0 and self.passages[index] not in exclude:
                return self.passages[index]
        return None


def _import_bm25s():
    try:
        import bm25s
    except ImportError:
        raise ImportError('A corpus needs bm25s. Run pip install "memreason-hf[retrieval]".') from None
    return bm25s


def _read(file, text_column):
    if file.suffix not in _SUFFIXES:
        raise ValueError(f"corpus={str(file)!r} must have one of the suffixes {', '.join(_SUFFIXES)}, or be a folder.")
    try:
        text = read_text(file, "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text in UTF-8: {error}.") from None
    if file.suffix != ".jsonl":
        return [part for part in re.split(r"\n\s*\n", text.replace("\r\n", "\n")) if part.strip()]
    passages = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except (ValueError, json.JSONDecodeError) as error:
            raise ValueError(f"{file}, line {number}: not JSON ({error}).") from None
        passage = row.get(text_column) if isinstance(row, dict) else None
        if not isinstance(passage, str):
            raise ValueError(
                f"{file}, line {number}: must be an object with a text under {text_column!r}, got {shortened(row)}."
            )
        passages.append(passage)
    return passages
