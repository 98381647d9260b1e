"""
One training step of `lora+tokens`, against the same LoRA that trains embeddings and head whole (`modules_to_save`).

    python tests/benchmarks/bench_adapter_step.py [--vocabulary 32000] [--runs 5] [--steps 5]

The model is a Llama with random float32 weights and an untied head, with LoRA of rank 16 on the MLPs, AdamW, and the
tokens of StepScheme(2, 4). Each run has its own process, and the two sides alternate. The time of a run is the median
of its steps after the first two. Its memory (Linux only) is the peak resident set over all steps, including the model.
The script prints the medians over the runs, and the growth over the memory before the first step.
"""

import argparse
import multiprocessing
import statistics
import time

import torch
from common import machine, resident_memory
from peft import LoraConfig, TaskType, get_peft_model
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from memreason_hf.adapters.modes import AdapterArguments, add_adapter
from memreason_hf.adapters.targets import lora_targets
from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer


SCHEME = StepScheme(2, 4)
SIDES = ("lora+tokens", "modules_to_save")
WARMUP = 2


def make_model(side, options):
    """The adapted model and its tokenizer."""
    words = {f"word{index}": index for index in range(options.vocabulary)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="word0")))
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=options.vocabulary,
            hidden_size=options.width,
            intermediate_size=4 * options.width,
            num_hidden_layers=options.layers,
            num_attention_heads=8,
            tie_word_embeddings=False,
        )
    )
    extend_tokenizer(tokenizer, SCHEME, model)
    arguments = AdapterArguments("lora+tokens")
    if side == "lora+tokens":
        return add_adapter(model, tokenizer, arguments), tokenizer
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=lora_targets(model, arguments.lora_targets),
        modules_to_save=["embed_tokens", "lm_head"],
    )
    return get_peft_model(model, config), tokenizer


def measure(side, options, results):
    """Seconds of a step, MiB at the peak, MiB of growth over the steps, and the number of trained values."""
    torch.set_num_threads(options.threads)
    model, tokenizer = make_model(side, options)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, fused=True)
    ids = torch.randint(len(tokenizer), (options.batch, options.length))
    model.train()
    before = resident_memory("VmRSS")
    seconds = []
    for _ in range(WARMUP + options.steps):
        start = time.perf_counter()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    peak = resident_memory("VmHWM")
    results.put((statistics.median(seconds[WARMUP:]), peak, peak - before, sum(p.numel() for p in trained)))


def run_alone(side, options):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measure, args=(side, options, results))
    process.start()
    while True:
        try:
            found = results.get(timeout=1)
            break
        except Exception as error:
            if not process.is_alive():
                raise RuntimeError(f"{side}: the process ended with {process.exitcode}.") from error
    process.join()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=32_000, help="tokens before the scheme's (default: 32000)")
    parser.add_argument("--width", type=int, default=256, help="hidden size (default: 256)")
    parser.add_argument("--layers", type=int, default=4, help="decoder layers (default: 4)")
    parser.add_argument("--batch", type=int, default=4, help="texts in a step (default: 4)")
    parser.add_argument("--length", type=int, default=128, help="tokens of a text (default: 128)")
    parser.add_argument("--runs", type=int, default=5, help="processes of each side (default: 5)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a process (default: 5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine())
    found = {side: [] for side in SIDES}
    for _ in range(options.runs):
        for side in SIDES:
            found[side].append(run_alone(side, options))
    medians = {side: [statistics.median(values) for values in zip(*runs)] for side, runs in found.items()}
    print(f"{'side':<16} {'s/step':>8} {'peak MiB':>9} {'growth MiB':>11} {'trained':>12}")
    for side, (seconds, peak, growth, trained) in medians.items():
        print(f"{side:<16} {seconds:>8.3f} {peak:>9.0f} {growth:>11.0f} {trained:>12,.0f}")
    ratios = [other / own for own, other in zip(medians["lora+tokens"], medians["modules_to_save"])]
    print(f"{'ratio':<16} {ratios[0]:>8.2f} {ratios[1]:>9.2f} {ratios[2]:>11.2f}")


if __name__ == "__main__":
    main()
