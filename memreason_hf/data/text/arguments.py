"""Section `data` of a recipe that trains on text."""

from dataclasses import dataclass, field
from typing import Literal

from memreason_hf.checks import check_path
from memreason_hf.data.text.packing import TOO_LONG


@dataclass
class TextArguments:
    """
    Where the texts come from, and how they become rows of tokens.

    Raises:
        ValueError: no source or two of them, or a value out of range.
    """

    kind: Literal["chains", "text"] = field(
        default="text", metadata={"help": "What is trained on: chains of relations, or text."}
    )
    files: str | list[str] | None = field(
        default=None,
        metadata={"help": "Local files (txt, jsonl or parquet): a path, a pattern, a folder, or a list of them."},
    )
    dataset: str | None = field(
        default=None, metadata={"help": "Instead of files: a data set of the Hub (owner/name), or its local folder."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "The configuration of the data set."})
    revision: str | None = field(default=None, metadata={"help": "The revision of the data set on the Hub."})
    split: str = field(default="train", metadata={"help": "The split of the data set that is trained on."})
    column: str = field(default="text", metadata={"help": "The column with the texts."})
    sample_by: Literal["document", "paragraph", "line"] = field(
        default="document",
        metadata={"help": "What a document of a txt file is: the whole file, a paragraph or a line."},
    )
    eval_files: str | list[str] | None = field(default=None, metadata={"help": "Files of held-out texts."})
    eval_split: str | None = field(default=None, metadata={"help": "The split of held-out texts of the data set."})
    eval_documents: int = field(
        default=0,
        metadata={"help": "How many documents to hold out. In a stream, the first ones; otherwise drawn at random."},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub name of the tokenizer. Default: that of model.path; a new model learns one of "
            "model.vocab_size tokens."
        },
    )
    sequence_length: int = field(default=1024, metadata={"help": "The tokens of a row."})
    too_long: Literal["split", "truncate", "error"] = field(
        default="split",
        metadata={"help": "Documents longer than a row: split them, cut their ends off, or stop with an error."},
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read while training, without a copy on the disk. Needs max_tokens or max_steps."},
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "Documents of a stream that are packed and shuffled together."}
    )
    num_streams: int | None = field(
        default=None,
        metadata={
            "help": "Shares of a stream that are read side by side, a multiple of the number of processes. Runs with "
            "the same number have the same batches. Default: the number of processes."
        },
    )
    num_proc: int | None = field(
        default=None, metadata={"help": "Processes that tokenise. Default: all cores, at most 16."}
    )

    def __post_init__(self):
        for name in ("dataset", "tokenizer"):
            if getattr(self, name) is not None:
                check_path(f"data.{name}", getattr(self, name))
        given = [name for name in ("files", "dataset") if getattr(self, name)]
        if not given:
            raise ValueError(
                "data.files is not given. Pass --files FILES, or --dataset NAME for a data set of the Hub."
            )
        if len(given) > 1:
            raise ValueError(f"data.files={self.files!r} and data.dataset={self.dataset!r}: leave one of them out.")
        if self.too_long not in TOO_LONG:
            raise ValueError(f"data.too_long={self.too_long!r} must be one of {', '.join(TOO_LONG)}.")
        for name in ("sequence_length", "shuffle_buffer", "num_streams", "num_proc"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.{name}={value} must be at least 1.")
        if self.eval_documents < 0:
            raise ValueError(f"data.eval_documents={self.eval_documents} must be at least 0.")
        self._check_heldout()

    def _check_heldout(self):
        given = [name for name in ("eval_files", "eval_split", "eval_documents") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"data.{given[0]} and data.{given[1]} both name held-out texts: leave one of them out.")
        if self.eval_split and not self.dataset:
            raise ValueError(f"data.eval_split={self.eval_split!r} is for data.dataset. Use eval_files.")
        if self.eval_files and self.dataset:
            raise ValueError(f"data.eval_files={self.eval_files!r} is for data.files. Use eval_split.")
