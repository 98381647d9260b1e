"""
Measures how much faster solutions are generated in left-padded batches than one by one, in float32, and that the texts
are the same.

    python tests/benchmarks/bench_generation_batches.py --threads 2          # minutes, on an idle machine

The model is a small Llama with random weights, and its byte-pair tokenizer is trained on the questions. These are the
questions of StrategyQA if the study's files exist, otherwise invented ones. The model hardly ever ends a text, so that
all solutions have the same length. A batch of a trained model waits for its longest solution and gains less.
"""

import argparse
import random
import time
from pathlib import Path

import torch
from common import in_turns, machine
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from memreason_hf.data.questions.memory_reason import load_memory_reason
from memreason_hf.data.questions.options import TRUE_FALSE, options_column
from memreason_hf.evaluation.solutions.generation import generate_solutions
from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer


DATA = Path(__file__).parents[2] / ".." / "shared" / "data" / "memory_reason"
WANTED = 6.0


def questions(num):
    if (DATA / "StrategyQA_test_clean.json").is_file():
        rows = load_memory_reason(DATA, "strategy_qa")["test"]
        return "StrategyQA", [rows[index] for index in range(num)]
    rng = random.Random(0)
    words = ["iron", "water", "heavy", "island", "king", "river", "older", "named", "after", "battle"]
    made = [f"Is the {' '.join(rng.choices(words, k=rng.randint(3, 20)))}?" for _ in range(num)]
    options = options_column(TRUE_FALSE)
    return "made-up questions", [{"question": text, "options": options, "answer": "True"} for text in made]


def make_tokenizer(texts, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )


def make_model(tokenizer, arguments):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=arguments.vocab_size,
        hidden_size=arguments.hidden_size,
        intermediate_size=arguments.hidden_size * 8 // 3,
        num_hidden_layers=arguments.num_layers,
        num_attention_heads=arguments.hidden_size // 64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        # Larger than usual, so that texts depend on the prompt and two tokens are hardly ever equally probable.
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    extend_tokenizer(tokenizer, StepScheme(2, 4), model)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--num_questions", type=int, default=32)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--num_layers", type=int, default=4)
    parser.add_argument("--vocab_size", type=int, default=8000)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    print(machine())

    source, rows = questions(arguments.num_questions)
    tokenizer = make_tokenizer([row["question"] for row in rows], arguments.vocab_size)
    model = make_model(tokenizer, arguments)
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, float32; {len(rows)} questions of "
        f"{source}, {arguments.max_new_tokens} new tokens each"
    )
    texts = {}

    def run(batch_size):
        generations = generate_solutions(
            model, tokenizer, rows, batch_size=batch_size, max_new_tokens=arguments.max_new_tokens
        )
        texts[batch_size] = [generation.text for generation in generations]

    seconds = in_turns({size: lambda size=size: run(size) for size in arguments.batch_sizes}, arguments.runs, warmup=1)
    first = arguments.batch_sizes[0]
    for size, median in seconds.items():
        same = sum(a == b for a, b in zip(texts[size], texts[first]))
        print(
            f"batch {size:>3}: {median:7.2f} s, {len(rows) / median:6.2f} texts/s, {seconds[first] / median:5.2f} "
            f"times batch {first}; same texts {same} of {len(rows)}"
        )
    differing = [size for size in texts if texts[size] != texts[first]]
    if differing:
        raise SystemExit(f"Texts differ from those of batch {first} at batch sizes {differing}.")
    if (first, arguments.batch_sizes[-1]) == (1, 16) and seconds[1] / seconds[16] < WANTED:
        raise SystemExit(f"Batch 16 is {seconds[1] / seconds[16]:.2f} times as fast as batch 1; {WANTED} is wanted.")


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s in all")
