"""Ranks of a stock training loop draw the same depth, independently of the state of their generators."""

import gc

import pytest
import torch
from processes import load_result, run_ranks, save_result
from recurrent_models import random_ids, tiny_model
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel


FIELDS = {
    "recurrence_sampling": "uniform",
    "recurrence_min": 1,
    "recurrence_max": 8,
    "state_init": "normal",
    "input_injection": "add",
    "state_norm": "layernorm",
    "residual_dropout": 0.2,
}


def train_in_a_stock_loop(folder, wrapper):
    """Each rank has its own seed, its own batch lengths and its own dropout."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    model = tiny_model(seed=0, **FIELDS).train()
    if wrapper == "ddp":
        # A step of one recurrence leaves out the norm between recurrences.
        model = DistributedDataParallel(model, find_unused_parameters=True)
    else:
        for layer in model.model.recurrent_layers:
            fully_shard(layer)
        fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.manual_seed(100 + rank)
    depths, seeds = [], []
    for step in range(8):
        torch.rand(rank + step)
        ids = random_ids(2, 5 + 3 * rank)
        output = model(input_ids=ids, labels=ids)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        depths.append(int(output.num_recurrences[0]))
        seeds.append(torch.get_rng_state().sum().item())
    save_result(f"{folder}/{rank}", {"depths": depths, "seeds": seeds})
    # With torch 2.13, a wrapper that outlives its group sometimes waits for ever when it is deleted.
    del model, output, optimizer
    gc.collect()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_ranks_take_the_same_depth(wrapper, tmp_path):
    run_ranks(train_in_a_stock_loop, tmp_path, wrapper)
    first, second = (load_result(tmp_path / str(rank)) for rank in range(2))
    assert first["depths"] == second["depths"] and len(set(first["depths"])) >= 3
    # The control: torch's generators were in different states, so that depths drawn from them would differ.
    assert all(left != right for left, right in zip(first["seeds"], second["seeds"], strict=True))
