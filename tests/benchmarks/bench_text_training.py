"""
Tokens a second of text training, against the library's Trainer on the same unlooped model and batches.

    python tests/benchmarks/bench_text_training.py [--hidden_size 256] [--layers 4] [--rows 8] [--runs 5]

Three sides train in turns in one process, each for a few steps at a time, on the same rows:

- `llama`: transformers' Trainer on LlamaForCausalLM;
- `stock`: transformers' Trainer on a recurrent-depth model of the same shape with one recurrence;
- `text`: TextTrainer on that model.

A step is timed from its beginning to the beginning of the next one, so that making the batch, the optimizer and all
that a trainer does in between count. `whole`: a document fills a row. `packed`: rows of several documents, which do
not attend to each other on any side. Besides the medians of wall time it prints the processor time of the fastest
quarter of the steps, which other programs on the machine disturb less.
"""

import argparse
import statistics
import tempfile
import time

import numpy as np
import torch
from common import machine
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments, set_seed

from memreason_hf.data.text.collator import TextCollator
from memreason_hf.data.text.packing import pack_documents
from memreason_hf.training.text.arguments import TextTrainingArguments
from memreason_hf.training.text.trainer import TextTrainer
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


SIDES = ("llama", "stock", "text")
COMMON = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "logging_steps": 1000,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 0,
}


class Clock(TrainerCallback):
    """Wall and processor seconds of every step but the first, which warms up."""

    def __init__(self):
        self.times = []

    def on_step_begin(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append((time.perf_counter(), time.process_time()))

    def seconds(self, kind):
        return [after[kind] - before[kind] for before, after in zip(self.times[1:], self.times[2:])]


def make_rows(kind, args):
    """As many rows as a batch has, so that every batch of every side is the same."""
    rng = np.random.default_rng(0)
    lengths = [args.sequence_length + 1] * args.rows
    if kind == "packed":
        lengths = [length for _ in lengths for length in _parts(args.sequence_length)]
    rows, _ = pack_documents([rng.integers(1, args.vocab_size, length) for length in lengths], args.sequence_length)
    assert len(rows) == args.rows and all(len(row["input_ids"]) == args.sequence_length for row in rows)
    return Dataset.from_list([{name: values.tolist() for name, values in row.items()} for row in rows])


def _parts(sequence_length):
    """Lengths of documents that fill a row."""
    half, quarter = sequence_length // 2, sequence_length // 4
    return [half + 1, quarter + 1, sequence_length - half - quarter + 1]


def make_model(side, args):
    set_seed(0)
    shape = {
        "vocab_size": args.vocab_size,
        "hidden_size": args.hidden_size,
        "intermediate_size": 3 * args.hidden_size,
        "num_attention_heads": args.hidden_size // 64,
        "max_position_embeddings": args.sequence_length,
        "tie_word_embeddings": True,
    }
    if side == "llama":
        return LlamaForCausalLM(LlamaConfig(num_hidden_layers=args.layers, use_cache=False, **shape))
    config = RecurrentDepthConfig.llama_style(num_recurrent_layers=args.layers, num_recurrences=1, **shape)
    return RecurrentDepthForCausalLM(config)


class StockCollator(TextCollator):
    """The same batch, with `labels`, without which a model of transformers computes no loss."""

    def __call__(self, rows):
        batch = super().__call__(rows)
        return batch | {"labels": batch["shift_labels"]}


def run(side, model, rows, args):
    """Trains for a few steps; returns the clock and the last loss."""
    clock = Clock()
    steps = {"max_steps": args.steps, "per_device_train_batch_size": args.rows}
    with tempfile.TemporaryDirectory() as folder:
        if side == "text":
            arguments = TextTrainingArguments(output_dir=folder, **steps, **COMMON)
            trainer = TextTrainer(model, arguments, rows, data_collator=TextCollator(0), callbacks=[clock])
        else:
            arguments = TrainingArguments(
                output_dir=folder, remove_unused_columns=False, weight_decay=0.1, **steps, **COMMON
            )
            trainer = Trainer(model, arguments, StockCollator(0), rows, callbacks=[clock])
        loss = trainer.train().training_loss
    return clock, loss


def measure(kind, args):
    rows = make_rows(kind, args)
    models = {side: make_model(side, args) for side in SIDES}
    seconds = {side: ([], []) for side in SIDES}
    losses = {}
    for turn in range(args.runs + 1):
        for side in SIDES:
            clock, loss = run(side, models[side], rows, args)
            losses.setdefault(side, loss)
            if turn:
                for index in range(2):
                    seconds[side][index].extend(clock.seconds(index))
    tokens = args.rows * args.sequence_length
    wall = {side: statistics.median(seconds[side][0]) for side in SIDES}
    # The fastest steps are those that nothing else on the machine slowed down.
    processor = {side: statistics.mean(sorted(seconds[side][1])[: len(seconds[side][1]) // 4 + 1]) for side in SIDES}
    print(f"{kind}: first losses " + ", ".join(f"{side} {losses[side]:.3f}" for side in SIDES))
    for side in SIDES:
        print(f"  {side:<6} {tokens / wall[side]:>9,.0f} tokens/s   {1000 * processor[side]:>8,.1f} ms of processor")
    for other in SIDES[:2]:
        print(
            f"  text against {other}: {wall[other] / wall['text']:.2f} times the tokens per second of wall time, "
            f"{processor[other] / processor['text']:.2f} times per second of processor time"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "hidden_size": 256,
        "layers": 4,
        "vocab_size": 4000,
        "sequence_length": 256,
        "rows": 8,
        "steps": 6,
        "runs": 5,
        "threads": 1,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine())
    for kind in ("whole", "packed"):
        measure(kind, args)


if __name__ == "__main__":
    main()
