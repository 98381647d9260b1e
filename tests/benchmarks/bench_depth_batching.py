"""
Batching by depth against `generate`, in float32 at width 512 with at most 16 recurrences.

    python tests/benchmarks/bench_depth_batching.py [--runs 5] [--device cpu] [--context 64] [--only spread skewed]

- spread: 32 rows whose tokens take 1..7 recurrences (mean 4), against 32 rows at 16 in the model's own forward: the
  time of a token, and the time of whole texts with their prompts.
- skewed: one row at 16 and the others at 1, against 32 rows at 16: the time of a recurrence of a row, and the time of
  the same work. Work counts the multiply-adds of the looped layers, of the prelude and coda, and of the output layer,
  which the shallow rows need for every recurrence.
- throughput: 64 requests of differing lengths whose tokens take 1..16 recurrences (mean 4): new tokens a second
  against `generate` on one batch, and on two batches sorted by length.
- single: one request, new tokens a second.

The depth of a token is a function of its id, so that all sides give the same texts. They run in turns in one process.
"""

import argparse
import random
import statistics
import time

import torch
from common import machine

from memreason_hf.serving.batching import DepthBatcher, GenerationRequest
from modeling_recurrent import RecurrentDepthCache, RecurrentDepthConfig, RecurrentDepthForCausalLM


VOCAB = 1000
# Skewed: mean 4, at most 16.
SKEWED = [1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 5, 6, 9, 16]


def by_token(depths):
    """A `depth_schedule` that spreads `depths` evenly over the token ids."""
    table = torch.tensor(depths)
    return lambda ids: table.to(ids.device)[ids * 7919 % len(table)]


def timed(run, device):
    """(seconds, result) of a call."""
    start = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def ids(*shape):
    return torch.randint(1, VOCAB, shape)


class Bench:
    def __init__(self, args):
        torch.manual_seed(0)
        random.seed(0)
        self.rows, self.most, self.context = args.rows, args.most, args.context
        self.device = torch.device(args.device)
        config = RecurrentDepthConfig.llama_style(
            vocab_size=VOCAB,
            hidden_size=args.width,
            intermediate_size=1376,
            num_attention_heads=8,
            num_recurrent_layers=4,
            max_recurrences=args.most,
            pad_token_id=0,
        )
        self.model = RecurrentDepthForCausalLM(config).eval().to(self.device)

    def running(self, depths, new_tokens):
        """
        A batcher whose rows, one for each of `depths` (arguments of a request), have all given their first token and
        have at least `new_tokens` tokens left.
        """
        # Rows with shallow prompts begin up to `most` steps before the others.
        new_tokens += self.most + 1
        tokens = len(depths) * (self.context + new_tokens)
        batcher = DepthBatcher(self.model, max_rows=len(depths), max_cache_tokens=tokens, prefill_tokens=2**20)
        for depth in depths:
            batcher.submit(GenerationRequest(ids(self.context).tolist(), max_new_tokens=new_tokens, **depth))
        while batcher.stats().prompt_tokens < len(depths) * self.context:
            batcher.step()
        return batcher

    @torch.no_grad()
    def all_at_most(self, context):
        """A function that runs one token of all rows at the maximum, after `context` others."""
        cache = RecurrentDepthCache(self.model.config)
        prompt, token = ids(self.rows, context).to(self.device), ids(self.rows, 1).to(self.device)
        self.model(prompt, past_key_values=cache, num_recurrences=1, logits_to_keep=1)

        @torch.no_grad()
        def step():
            output = self.model(token, past_key_values=cache, num_recurrences=self.most, logits_to_keep=1)
            cache.crop(-1)
            return output.logits.argmax(-1)

        step()  # opens the deeper slots
        return step

    def steady(self, depths, steps):
        """(seconds, recurrences, tokens) of `steps` steps with all rows busy."""
        batcher = self.running(depths, steps + 8)
        batcher.step()
        before = batcher.stats()
        seconds, outputs = timed(lambda: [output for _ in range(steps) for output in batcher.step()], self.device)
        if any(output.finish_reason for output in outputs):
            raise RuntimeError("A row has ended, so that not all rows were busy.")
        after = batcher.stats()
        return seconds, steps * len(depths), after.tokens - before.tokens

    def spread(self, runs):
        schedule, steps = by_token(list(range(1, 8))), 64
        full = self.all_at_most(self.context + 8)
        deep, shallow = [], []
        for _ in range(runs + 1):
            deep.append(timed(full, self.device)[0] / self.rows)
            seconds, _, tokens = self.steady([{"depth_schedule": schedule}] * self.rows, steps)
            shallow.append(seconds / tokens)
        ratio = statistics.median(shallow[1:]) / statistics.median(deep[1:])
        share = statistics.mean(range(1, 8)) / self.most
        print(
            f"spread: a token takes {ratio:.3f} of the time at {self.most} (mean over maximum {share:.3f})", flush=True
        )

        prompts, new_tokens = ids(self.rows, self.context), 32

        def generated():
            self.model.generate(
                prompts.to(self.device), max_new_tokens=new_tokens, num_recurrences=self.most, do_sample=False
            )

        def batched():
            batcher = DepthBatcher(
                self.model, max_rows=self.rows, max_cache_tokens=self.rows * (self.context + new_tokens)
            )
            batcher.generate_batch(
                prompts.tolist(), max_new_tokens=new_tokens, depth_schedule=schedule, progress_bar=False
            )

        times = self.in_turns({"generate": generated, "batched": batched}, runs)
        print(f"spread, whole texts: {times['batched'] / times['generate']:.3f} of the time", flush=True)

    def skewed(self, runs):
        depths = [{"num_recurrences": self.most}, *[{"num_recurrences": 1}] * (self.rows - 1)]
        steps = 2 * self.most
        full = self.all_at_most(self.context + steps // 2)
        core, once = self.multiply_adds()
        deep, mixed, by_work = [], [], []
        for _ in range(runs + 1):
            seconds = timed(full, self.device)[0]
            deep.append((seconds / (self.rows * self.most), seconds / (self.rows * (self.most * core + once))))
            seconds, recurrences, tokens = self.steady(depths, steps)
            mixed.append(seconds / recurrences)
            by_work.append(seconds / (recurrences * core + tokens * once))
        of_recurrence, of_work = (statistics.median(column) for column in zip(*deep[1:]))
        ratio, work = statistics.median(mixed[1:]) / of_recurrence, statistics.median(by_work[1:]) / of_work
        print(f"skewed: a recurrence takes {ratio:.3f} times as long, the same work {work:.3f} times", flush=True)

    def multiply_adds(self):
        """The multiply-adds with weights of a recurrence of a token, and of what a token needs once."""
        decoder, loop = self.model.model, self.model.model.stack_range("recurrent")
        sizes = [sum(p.numel() for p in layer.parameters() if p.dim() == 2) for layer in decoder.layers]
        core = sum(sizes[index] for index in loop)
        return core, sum(sizes) - core + self.model.lm_head.weight.numel()

    def throughput(self, runs):
        count, schedule = 64, by_token(SKEWED)
        # Short prompts: only `generate` runs all of their tokens until the deepest has halted.
        lengths = [(random.randint(4, 16), random.randint(16, 96)) for _ in range(count)]
        prompts = [ids(length).tolist() for length, _ in lengths]
        total = sum(new for _, new in lengths)

        def generate(chosen):
            width = max(len(prompts[index]) for index in chosen)
            padded = torch.tensor([[0] * (width - len(prompts[index])) + prompts[index] for index in chosen])
            self.model.generate(
                padded.to(self.device),
                attention_mask=(padded > 0).long().to(self.device),
                max_new_tokens=max(lengths[index][1] for index in chosen),
                depth_schedule=schedule,
                do_sample=False,
            )

        order = sorted(range(count), key=lambda index: lengths[index][1])

        def batched():
            tokens = sum(map(sum, lengths))
            batcher = DepthBatcher(self.model, max_rows=count, max_cache_tokens=tokens)
            requests = [
                GenerationRequest(prompt, max_new_tokens=new, depth_schedule=schedule)
                for prompt, (_, new) in zip(prompts, lengths)
            ]
            batcher.generate_batch(requests, progress_bar=False)

        sides = {
            "one batch": lambda: generate(order),
            "two batches": lambda: (generate(order[: count // 2]), generate(order[count // 2 :])),
            "by depth": batched,
        }
        times = self.in_turns(sides, runs)
        one, two = (times[name] / times["by depth"] for name in ("one batch", "two batches"))
        print(f"throughput: {total / times['by depth']:.0f} tokens a second", flush=True)
        print(f"throughput: {one:.2f} times generate on one batch, {two:.2f} times two batches by length", flush=True)

    def single(self, runs):
        prompt, new_tokens, schedule = ids(1, self.context), 48, by_token(SKEWED)

        def generated():
            self.model.generate(
                prompt.to(self.device), max_new_tokens=new_tokens, depth_schedule=schedule, do_sample=False
            )

        def batched():
            batcher = DepthBatcher(self.model, max_rows=1, max_cache_tokens=self.context + new_tokens)
            batcher.generate_batch(
                prompt.tolist(), max_new_tokens=new_tokens, depth_schedule=schedule, progress_bar=False
            )

        times = self.in_turns({"generate": generated, "by depth": batched}, runs)
        print(f"single: {times['by depth'] / times['generate']:.3f} of the time of generate", flush=True)

    def in_turns(self, sides, runs):
        """Median seconds of each side, all sides in turns after one turn to warm up."""
        times = {name: [] for name in sides}
        for _ in range(runs + 1):
            for name, run in sides.items():
                times[name].append(timed(run, self.device)[0])
        return {name: statistics.median(values[1:]) for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("spread", "skewed", "throughput", "single")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--context", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--most", type=int, default=16, help="the maximum number of recurrences")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    print(machine())
    bench = Bench(args)
    for name in args.only:
        getattr(bench, name)(args.runs)


if __name__ == "__main__":
    main()
