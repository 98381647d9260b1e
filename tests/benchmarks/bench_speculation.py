"""
Self-speculation against plain decoding, on a model that this script trains on small stories first.

    python tests/benchmarks/bench_speculation.py [--draft 1 2 4] [--tokens 2 4 8] [--batch 1 8] [--steps 700]

A story names people, where they are and what they carry, in a grammar of 789 words. The next word follows from the
previous word, from the person of the sentence, or from chance. The loss is taken at every recurrence with equal
weights, so that early recurrences predict words, too. Plain and speculative decoding of the same prompts alternate in
one process. The script prints the ratio of their times, the share of accepted drafts, and whether the greedy texts are
equal.
"""

import argparse
import random
import time

import torch
from common import in_turns, machine

from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


KINDS = {"name": 300, "verb": 80, "adjective": 100, "noun": 200, "place": 100, "glue": 9}
FIRST = {kind: sum(list(KINDS.values())[:i]) for i, kind in enumerate(KINDS)}
VOCABULARY = sum(KINDS.values())
GOES, CARRIES, THE, TO, AND, HAS, STILL, IS, STOP = range(FIRST["glue"], VOCABULARY)


def story(chance: random.Random, length: int) -> list[int]:
    """Word ids of sentences about people, each with a usual place, thing, way to speak of them and next person."""

    def usual(number, choices):
        return number % choices if chance.random() < 0.9 else chance.randrange(choices)

    person, words = chance.randrange(KINDS["name"]), []
    while len(words) < length:
        verb, adjective, noun, place = (
            FIRST[kind] + usual(person * 7 + 1, KINDS[kind]) for kind in ("verb", "adjective", "noun", "place")
        )
        words += [
            [person, GOES, TO, THE, place, AND, verb, THE, adjective, noun, STOP],
            [person, CARRIES, THE, adjective, noun, TO, THE, place, STOP],
            [person, IS, STILL, THE, place, AND, HAS, THE, adjective, noun, STOP],
        ][usual(person, 3)]
        person = usual(person * 3 + 2, KINDS["name"])
    return words[:length]


def train(args) -> RecurrentDepthForCausalLM:
    torch.manual_seed(0)
    chance = random.Random(0)
    config = RecurrentDepthConfig.llama_style(
        vocab_size=VOCABULARY,
        hidden_size=args.width,
        num_attention_heads=4,
        num_recurrent_layers=args.layers,
        num_recurrences=args.recurrences,
        input_injection="add",
        state_norm="rmsnorm",
    )
    model = RecurrentDepthForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=args.steps, pct_start=0.1)
    start = time.perf_counter()
    for step in range(args.steps):
        ids = torch.tensor([story(chance, 48) for _ in range(16)])
        # Shallow steps are cheap; every fourth goes all the way.
        depth = max(args.recurrences // (8, 4, 2, 1)[step % 4], 1)
        weights = torch.full((depth,), 1 / depth)
        loss = model(ids, labels=ids, num_recurrences=depth, recurrence_loss_weights=weights).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 49:
            print(f"step {step + 1}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", type=int, nargs="+", default=[1, 2, 4], help="recurrences of a draft")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2, 4, 8], help="tokens drafted in a round")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--recurrences", type=int, default=16)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=700, help="of the training")
    parser.add_argument("--new", type=int, default=128, help="tokens to generate")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()

    print(machine())
    model = train(args)
    if torch.cuda.is_available():
        model.cuda()
    chance = random.Random(1)
    ids = torch.tensor([story(chance, 40) for _ in range(max(args.batch))], device=model.device)
    longer = torch.tensor([story(chance, 128) for _ in range(16)], device=model.device)
    with torch.no_grad():
        full = model(longer, num_recurrences=args.recurrences).logits
        for draft in args.draft:
            same = (model(longer, num_recurrences=draft).logits.argmax(-1) == full.argmax(-1)).float().mean()
            print(f"the best word after {draft} recurrences is that after {args.recurrences}: {same:.3f}")
    print(f"{'batch':>5} {'draft':>5} {'tokens':>6} {'plain s':>8} {'drafts s':>8} {'ratio':>6} {'accepted':>8}  same")
    for batch in args.batch:
        for draft in args.draft:
            for tokens in args.tokens:

                def decode(batch=batch, **kwargs):
                    return model.generate(
                        ids[:batch],
                        attention_mask=torch.ones_like(ids[:batch]),
                        max_new_tokens=args.new,
                        do_sample=False,
                        return_dict_in_generate=True,
                        **kwargs,
                    )

                drafts = {"draft_recurrences": draft, "draft_tokens": tokens}
                plain, output = decode(), decode(**drafts)
                times = in_turns({"plain": decode, "drafts": lambda d=drafts: decode(**d)}, args.runs)
                accepted = output.accepted_drafts.sum() / output.drafted_tokens.sum()
                print(
                    f"{batch:>5} {draft:>5} {tokens:>6} {times['plain']:>8.2f} {times['drafts']:>8.2f} "
                    f"{times['plain'] / times['drafts']:>6.2f} {accepted:>8.2f}  "
                    f"{'yes' if torch.equal(plain.sequences, output.sequences) else 'NO'}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
