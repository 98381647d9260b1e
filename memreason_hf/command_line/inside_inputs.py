"""The rows that `memreason lens` and `memreason trajectories` read: chains of a data set, or one text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from memreason_hf.analysis.inside.rows import InsideData, RowGroup
from memreason_hf.checks import check_int, check_path
from memreason_hf.command_line.chain_inputs import ChainArguments, load_rows
from memreason_hf.data import encode_chains
from memreason_hf.data.chains.config import format_hop_counts
from memreason_hf.evaluation.mode import MOST_RECURRENCES
from memreason_hf.files import portable_path, read_text
from memreason_hf.messages import first_few
from modeling_recurrent import RecurrentDepthConfig


# Enough for means within a few percent.
MOST_ROWS = 64


@dataclass
class InsideArguments:
    """Chains of a data set, or one text."""

    data: str | None = field(default=None, metadata={"help": "Folder of a multi-hop data set, to read its chains."})
    split: str = field(
        default="test", metadata={"help": "Split of the data set: train, validation, test or test_small."}
    )
    kind: Literal["test", "train", "atomic", "all"] = field(
        default="test", metadata={"help": "Rows of the split: test chains, train chains, atomic facts, or all."}
    )
    hops: str | None = field(default=None, metadata={"help": "Hop counts, as numbers and ranges: 2-8,16."})
    max_rows: int | None = field(
        default=None,
        metadata={"help": f"The most chains of a hop count, the first ones. Default: {MOST_ROWS}."},
    )
    index: int | None = field(
        default=None, metadata={"help": "Read one chain of the hop count alone: its index, from 0."}
    )
    text: str | None = field(default=None, metadata={"help": "A text to read, instead of chains."})
    text_file: str | None = field(default=None, metadata={"help": "File with such a text, in UTF-8."})
    max_tokens: int = field(default=64, metadata={"help": "The most tokens of a text, the first ones."})

    def check(self) -> None:
        """
        Refuses impossible values before anything is loaded.

        Raises:
            ValueError, FileNotFoundError: names the field and its value.
        """
        given = [f"{name}={value!r}" for name, value in self._sources().items() if value is not None]
        if len(given) != 1:
            what = "none is given" if not given else f"{' and '.join(given)} are given"
            raise ValueError(f"Pass chains by --data DIR, or a text by --text or --text_file; {what}.")
        for name in ("max_rows", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if self.data is None:
            self.refuse_choice_of_chains(given[0])
            return
        check_path("data", self.data)
        if self.index is not None and self.index < 0:
            raise ValueError(f"index={self.index} must be at least 0.")
        self._chains().check()

    def refuse_choice_of_chains(self, given: str) -> None:
        """Raises a ValueError if a flag chooses chains although a text is read: `given`, a flag and its value."""
        for name, default in (
            ("split", "test"),
            ("kind", "test"),
            ("hops", None),
            ("index", None),
            ("max_rows", None),
        ):
            if getattr(self, name) != default:
                raise ValueError(f"{name}={getattr(self, name)!r} chooses chains, but {given} is read. Leave it out.")

    def _sources(self):
        return {name: getattr(self, name) for name in ("data", "text", "text_file")}

    def _chains(self):
        return ChainArguments(data=self.data, split=self.split, kind=self.kind, hops=self.hops)

    def load(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: RecurrentDepthConfig,
        *,
        single: bool = False,
    ) -> list[RowGroup]:
        """
        The rows, by hop count; a text is one group of one row.

        Args:
            tokenizer, config: of the model.
            single: whether the command reads one hop count only.

        Raises:
            ValueError, OSError: there are no such rows, the tokenizer does not match, or the text has no tokens.
        """
        if self.data is None:
            return [self._text_group(tokenizer, config)]
        encoded = encode_chains(load_rows(self._chains()), tokenizer).with_format("numpy")
        hop_counts = sorted(set(encoded["hops"][:].tolist()))
        if (single or self.index is not None) and len(hop_counts) > 1:
            raise ValueError(
                f"hops={self.hops!r} must be one hop count here, because positions of chains of different lengths do "
                f"not correspond. There are {format_hop_counts(hop_counts)}."
            )
        return [self._chain_group(encoded, hops, tokenizer, config) for hops in hop_counts]

    def describe(self, groups: Sequence[RowGroup]) -> InsideData:
        """The entry `data` of a document."""
        return {
            "kind": "text" if self.data is None else "chains",
            "path": None if self.data is None else portable_path(self.data),
            "split": None if self.data is None else self.split,
            "num_rows": sum(map(len, groups)),
        }

    def _chain_group(self, encoded, hops, tokenizer, config):
        places = (encoded["hops"][:] == hops).nonzero()[0]
        if self.index is not None and self.index >= len(places):
            raise ValueError(f"index={self.index} is too large: there are {len(places)} chains of {hops} hops.")
        places = places[: self.max_rows or MOST_ROWS] if self.index is None else places[[self.index]]
        chosen = encoded[places]
        ids, targets = (torch.tensor([row.tolist() for row in chosen[name]]) for name in ("input_ids", "label_ids"))
        _check_vocabulary(torch.cat((ids, targets[:, 1:]), 1), config)
        # The entity that a chain starts from, and the one reached after each relation.
        entities = torch.cat((ids[:, :1], targets[:, 1:]), 1)
        return RowGroup(hops, ids, [tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()], targets, entities)

    def _text_group(self, tokenizer, config):
        name = "text" if self.text is not None else "text_file"
        ids = encode_text(tokenizer, self._text(), name)[:, : self.max_tokens]
        _check_vocabulary(ids, config)
        return RowGroup("text", ids, [token_texts(tokenizer, ids[0].tolist())])

    def _text(self):
        if self.text is not None:
            return self.text
        if not Path(self.text_file).is_file():
            raise FileNotFoundError(f"text_file={self.text_file!r}: no such file.")
        try:
            return read_text(self.text_file)
        except UnicodeDecodeError as error:
            raise ValueError(f"text_file={self.text_file!r} is not UTF-8 ({error.reason} at {error.start}).") from None


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, name: str) -> torch.LongTensor:
    """
    The token ids of a text, shape `(1, n)`, with the special tokens that the tokenizer adds.

    Args:
        name: what messages call the text.

    Raises:
        ValueError: the text has no tokens, or words that the tokenizer does not know.
    """
    ids = tokenizer(text, verbose=False)["input_ids"]
    if not ids:
        raise ValueError(f"{name}={text!r} has no tokens.")
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown in ids:
        raise ValueError(f"{name}={text!r} has words that the tokenizer does not know (token {unknown}).")
    return torch.tensor([ids])


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Each token as it is shown by itself."""
    return [tokenizer.decode([token]) for token in ids]


def check_depth(name: str, value: int | None, default: int, least: int = 1) -> int:
    """
    A number of recurrences from a flag, or the default.

    Raises:
        ValueError: it is below `least`, or larger than any evaluation could wait for.
    """
    value = default if value is None else value
    check_int(name, value, least=least, most=MOST_RECURRENCES)
    return value


def _check_vocabulary(ids, config):
    if int(ids.max()) >= config.vocab_size:
        outside = sorted({token for token in ids.flatten().tolist() if token >= config.vocab_size})
        raise ValueError(
            f"The tokenizer gives ids that the model does not have ({first_few(outside)}; vocab_size is "
            f"{config.vocab_size}). Use the tokenizer that the model was trained with."
        )
