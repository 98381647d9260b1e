"""
One training step at the study's size, against a restatement of the study's loop.

    python tests/benchmarks/bench_training_step.py [--batch 32] [--hops 2 12] [--runs 7]

Both sides have 4 GPT-2 blocks of width 768 applied 4 times, a tied head, a loss on the answer, bf16 autocast, AdamW
and the same chains. The study's side pads every chain to 50 tokens, uses eager attention and computes logits at every
position. Ours is the training step of RecurrentTrainer. Seconds are medians of alternating runs in one process. Memory
(Linux only) is what the first step adds to the peak resident set of a new process, including gradients and optimiser
state.
"""

import argparse
import multiprocessing

import torch
from common import in_turns, machine, resident_memory
from torch import nn
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


VOCAB, WIDTH, HEADS, LAYERS, RECURRENCES, PADDED = 217, 768, 12, 4, 4, 50


class StudyModel(nn.Module):
    """The study's forward: embeddings, the looped blocks, final norm, logits at every position."""

    def __init__(self):
        super().__init__()
        config = GPT2Config(
            vocab_size=VOCAB, n_embd=WIDTH, n_head=HEADS, n_layer=LAYERS, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
        )
        config._attn_implementation = "eager"
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(GPT2Block(config, layer_idx=i) for i in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids, attention_mask):
        hidden = self.embed(ids)
        lowest = torch.finfo(torch.float32).min
        causal = torch.full((PADDED, PADDED), lowest).triu(1)[None, None]
        mask = (causal + (1 - attention_mask[:, None, None, :].float()) * lowest).clamp_min(lowest)
        for _ in range(RECURRENCES):
            for block in self.blocks:
                hidden = block(hidden, attention_mask=mask)
        return self.head(self.norm(hidden))


def chains(batch, hops):
    """Random chains of an entity and relations, and their answers."""
    return torch.cat((torch.randint(1, 201, (batch, 1)), torch.randint(201, 211, (batch, hops))), 1), torch.randint(
        1, 201, (batch,)
    )


def study_step(batch, hops):
    torch.manual_seed(0)
    model = StudyModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    ids, answers = chains(batch, hops)
    padded = torch.zeros(batch, PADDED, dtype=torch.long)
    padded[:, PADDED - ids.shape[1] :] = ids
    mask = (padded > 0).long()

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(padded, mask)
        nn.functional.cross_entropy(logits[:, PADDED - 1].float(), answers).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_step(batch, hops):
    torch.manual_seed(0)
    config = RecurrentDepthConfig.gpt2_style(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_recurrent_layers=LAYERS,
        num_recurrences=RECURRENCES,
        position_embedding_type="none",
        pad_token_id=0,
    )
    model = RecurrentDepthForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    ids, answers = chains(batch, hops)
    labels = torch.full_like(ids, -100)
    labels[:, -1] = answers

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids, shift_labels=labels, labelled_logits_only=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


SIDES = {"study": study_step, "ours": our_step}


def _peak(side, batch, hops, threads, results):
    torch.set_num_threads(threads)
    step = SIDES[side](batch, hops)
    before = resident_memory("VmRSS")
    step()
    results.put(resident_memory("VmHWM") - before)


def peak_memory(side, batch, hops, threads):
    """MiB by which the peak resident set grows over one step, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_peak, args=(side, batch, hops, threads, results))
    process.start()
    growth = results.get()
    process.join()
    return growth


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="chains in a step (default: 32)")
    parser.add_argument("--hops", type=int, nargs="+", default=[2, 12], help="lengths of chains (default: 2 12)")
    parser.add_argument("--runs", type=int, default=7, help="timed steps of each side (default: 7)")
    args = parser.parse_args()
    print(machine())
    print(f"{'hops':>4} {'study s':>8} {'ours s':>8} {'ratio':>6} {'study MiB':>10} {'ours MiB':>9}")
    for hops in args.hops:
        times = in_turns({name: make(args.batch, hops) for name, make in SIDES.items()}, args.runs, warmup=2)
        memory = {name: peak_memory(name, args.batch, hops, torch.get_num_threads()) for name in SIDES}
        print(
            f"{hops:>4} {times['study']:>8.3f} {times['ours']:>8.3f} {times['study'] / times['ours']:>6.1f} "
            f"{memory['study']:>10.0f} {memory['ours']:>9.0f}"
        )


if __name__ == "__main__":
    main()
