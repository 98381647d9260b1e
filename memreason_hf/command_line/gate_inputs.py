"""The labels that an exit gate is fitted to: of chains, or of text."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from memreason_hf.checks import check_int
from memreason_hf.command_line.calibration_inputs import CalibrationData
from memreason_hf.command_line.chain_inputs import ChainArguments, load_chain_inputs
from memreason_hf.command_line.model_flags import ModelFlags
from memreason_hf.command_line.parser import Section
from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.data.text.sources import read_texts
from memreason_hf.evaluation.text.documents import tokenize_documents
from memreason_hf.evaluation.text.perplexity import row_length


@dataclass
class GateData:
    """The rows that a gate is fitted on."""

    data: list[str] = field(
        metadata={
            "help": "The folder of a multi-hop data set, or files of text (.txt, .jsonl, .parquet). Not the rows that "
            "memreason calibrate reads afterwards: a threshold promises nothing on rows that its gate was fitted to."
        }
    )
    task: Literal["auto", "chains", "text"] = field(
        default="auto", metadata={"help": "What the data are. auto: as they look."}
    )
    split: str = field(default="train", metadata={"help": "chains: split of the data set."})
    kind: Literal["test", "train", "atomic", "all"] = field(
        default="train", metadata={"help": "chains: rows of the split; see memreason evaluate."}
    )
    hops: str | None = field(
        default=None, metadata={"help": "chains: hop counts, as numbers and ranges: 2-8,16. Default: all."}
    )
    column: str = field(default="text", metadata={"help": "text: key or column of the texts."})
    max_length: int = field(default=256, metadata={"help": "text: tokens of a piece; longer documents are cut."})
    max_labels: int = field(
        default=4096,
        metadata={
            "help": "Most labels: answers of chains, or tokens of text. The states of all recurrences of a label are "
            "held in memory."
        },
    )

    def resolve_task(self) -> str:
        """
        The task, as given or as the data look.

        Raises:
            ValueError, FileNotFoundError: a value is out of range, or there are no such data.
        """
        check_int("max_labels", self.max_labels, least=1)
        check_int("max_length", self.max_length, least=1)
        task = CalibrationData(self.data, task=self.task).resolve_task()
        if task == "solutions":
            raise ValueError(
                f"data={self.data[0]!r} holds annotated questions, on which no gate can be fitted. Pass files of "
                "text, such as written solutions, or a multi-hop data set."
            )
        return task


GATE_DATA = Section("data", GateData, "data", key="inputs")


def load_gate_inputs(
    task: str, model: ModelFlags, data: GateData, seed: int
) -> tuple[torch.nn.Module, list[dict[str, torch.Tensor]]]:
    """
    Loads the model and the batches that `read_gate_rows` takes. Rows are in a random order that `seed` decides.

    Raises:
        ValueError, OSError: what is missing, empty, damaged or does not match, with field and value.
    """
    order = np.random.default_rng(seed)
    if task == "chains":
        chains = ChainArguments(data.data[0], data.split, data.kind, data.hops)
        chains.check()
        inputs = load_chain_inputs(model, chains, model.load_recurrent_config(), None)
        rows = order.permutation(len(inputs.dataset))[: data.max_labels]
        some = inputs.dataset.select(np.sort(rows)).select_columns(["input_ids", "label_ids"])
        return inputs.arguments["model"], list(_chain_batches(some, inputs.arguments["collator"], model.batch_size))
    tokenizer = model.load_tokenizer(model.load_recurrent_config())
    documents = [
        ids for entry in data.data for ids in tokenize_documents(read_texts(entry, data.column, "data"), tokenizer).ids
    ]
    network = model.load_model()
    length = row_length(network.config, data.max_length)
    pieces = [ids[start : start + length + 1] for ids in documents for start in range(0, len(ids) - 1, length)]
    pieces = [pieces[index] for index in order.permutation(len(pieces))]
    vocab_size = network.config.vocab_size
    if max(map(max, pieces)) >= vocab_size:
        raise ValueError(f"The texts have the token id {max(map(max, pieces))}, but vocab_size is {vocab_size}.")
    return network, list(_text_batches(pieces, model.batch_size, data.max_labels))


def _chain_batches(dataset, collator, batch_size) -> Iterator[dict]:
    for start in range(0, len(dataset), batch_size):
        columns = dataset[start : start + batch_size]
        rows = zip(columns["input_ids"], columns["label_ids"])
        yield dict(collator([{"input_ids": ids, "label_ids": labels} for ids, labels in rows]))


def _text_batches(pieces, batch_size, max_labels) -> Iterator[dict]:
    count = 0
    for start in range(0, len(pieces), batch_size):
        some = pieces[start : start + batch_size]
        width = max(map(len, some)) - 1
        ids = torch.zeros((len(some), width), dtype=torch.long)
        labels = torch.full((len(some), width), IGNORED_LABEL)
        for row, piece in enumerate(some):
            tokens = torch.tensor(piece)
            ids[row, : len(piece) - 1], labels[row, : len(piece) - 1] = tokens[:-1], tokens[1:]
        real = labels != IGNORED_LABEL
        yield {"input_ids": ids, "attention_mask": real.long(), "shift_labels": labels}
        count += int(real.sum())
        if count >= max_labels:
            return


__all__ = ["GATE_DATA", "GateData", "load_gate_inputs"]
