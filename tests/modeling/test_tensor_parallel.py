"""Tensor parallelism: two processes give the results of one, and each keeps the keys and values of its own heads."""

import math

import pytest
import torch
from processes import load_result, run_ranks, save_result
from recurrent_models import depth_calls, random_ids, relative_error, tiny_model
from transformers.distributed import DistributedConfig

from modeling_recurrent import RecurrentDepthForCausalLM
from modeling_recurrent.parallel_recurrent import check_paged_cache, check_split, splits_heads


# By name: the style of a model and its fields.
CASES = {
    "gpt2": ("gpt2", {"input_injection": "add", "state_norm": "layernorm"}),
    "llama": ("llama", {"num_prelude_layers": 1, "num_coda_layers": 1, "input_injection": "concat"}),
    "grouped heads": ("llama", {"num_key_value_heads": 2, "attention_bias": True, "sliding_window": 4}),
    "updates by recurrence": ("llama", {"recurrence_lora_rank": 2, "num_key_value_heads": 2}),
    "llama layers": ("family:llama", {"num_prelude_layers": 1, "input_injection": "gate"}),
    "qwen3 layers": ("family:qwen3", {"input_injection": "add", "state_norm": "rmsnorm"}),
}
NEW_TOKENS = 6
# transformers 5.17 splits the head only if it comes out even.
EVEN_VOCAB = 62


def run(model, ids, calls):
    """Logits, depths and texts of all calls, and the key heads in the buffers of the caches."""
    results = {}
    for name, call in calls.items():
        with torch.no_grad():
            output = model(ids, use_cache=True, **call)
            again = model(ids[:, :1], past_key_values=output.past_key_values, **call)
        results[name] = {
            "logits": torch.cat((output.logits, again.logits), dim=1),
            "depths": output.num_recurrences,
            "heads": [layer.keys.shape[2] for layer in output.past_key_values.layers],
            "text": model.generate(ids, do_sample=False, max_new_tokens=NEW_TOKENS, **call),
        }
    static = {"cache_implementation": "static", "disable_compile": True}
    texts = model.generate(ids, do_sample=False, max_new_tokens=NEW_TOKENS, **static)
    with torch.no_grad():
        return {"calls": results, "static": texts, "float32": model.float()(ids).logits}


def gradients(model, ids):
    """The loss, and the gradients of whole parameters, which DTensors hold in parts."""
    loss = model(ids, labels=ids).loss
    loss.backward()
    whole = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        whole[name] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    model.zero_grad()
    return {"loss": loss.detach(), "gradients": whole}


def load_and_run(folder):
    """One process of the group: every model of `folder`, split over the group."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    for name in CASES:
        given = load_result(folder / f"{name}.given")
        split = {"distributed_config": DistributedConfig(tp_size=2)}
        model = RecurrentDepthForCausalLM.from_pretrained(folder / name, **split).eval()
        results = run(model, given["ids"], given["calls"])
        sharded = {name: weight for name, weight in model.named_parameters() if hasattr(weight, "to_local")}
        results["weights"] = {name: list(weight.to_local().shape) for name, weight in sharded.items()}
        results["splits"] = splits_heads(model.tp_plan)
        model.double()
        results |= gradients(model, given["ids"])
        model.save_pretrained(folder / f"{name}.saved")
        save_result(folder / f"{name}.{rank}", results)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """By case: the results of one process, and those of each of two."""
    folder = tmp_path_factory.mktemp("split")
    alone = {}
    for name, (style, fields) in CASES.items():
        # Double precision: rounding decides no count.
        model = tiny_model(style, vocab_size=EVEN_VOCAB, **fields).double()
        calls, ids = depth_calls(model), random_ids(4, 9)
        model.save_pretrained(folder / name)
        alone[name] = {**run(model, ids, calls), **gradients(model.double(), ids), "model": model}
        save_result(folder / f"{name}.given", {"ids": ids, "calls": calls})
    run_ranks(load_and_run, folder)
    split = {name: [load_result(folder / f"{name}.{rank}") for rank in range(2)] for name in CASES}
    saved = {name: RecurrentDepthForCausalLM.from_pretrained(folder / f"{name}.saved") for name in CASES}
    return alone, split, saved


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_two_processes_give_the_results_of_one(results, name):
    alone, split, saved = (part[name] for part in results)
    depths = set()
    for rank in split:
        for call, expected in alone["calls"].items():
            actual = rank["calls"][call]
            assert relative_error(actual["logits"], expected["logits"]) < 1e-12
            assert torch.equal(actual["depths"], expected["depths"])
            assert torch.equal(actual["text"], expected["text"])
            depths |= set(expected["depths"].flatten().tolist())
        assert torch.equal(rank["static"], alone["static"])
        assert relative_error(rank["float32"], alone["float32"]) < 1e-5
    assert len(depths) >= 4
    for weight, expected in saved.state_dict().items():
        assert torch.equal(alone["model"].state_dict()[weight], expected)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_each_process_caches_its_own_heads(results, name):
    alone, split, _ = (part[name] for part in results)
    heads = alone["model"].config.num_key_value_heads
    for rank in split:
        # Updates by recurrence need whole vectors: their models are computed as a whole by each process.
        share = heads if name == "updates by recurrence" else heads // 2
        assert rank["splits"] == (share != heads)
        for call in rank["calls"].values():
            assert set(call["heads"]) == {share}
        for weight in (name for name in rank["weights"] if ".layers." in name and not name.endswith("bias")):
            whole = alone["model"].get_parameter(weight).numel()
            assert 2 * math.prod(rank["weights"][weight]) == whole, weight
        assert any("qkv_proj" in weight or "k_proj" in weight for weight in rank["weights"])
    # The control: one process has all heads.
    assert all(set(call["heads"]) == {heads} for call in alone["calls"].values())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_two_processes_learn_as_one(results, name):
    alone, split, _ = (part[name] for part in results)
    for rank in split:
        assert relative_error(rank["loss"], alone["loss"]) < 1e-12
        for weight, expected in alone["gradients"].items():
            assert relative_error(rank["gradients"][weight], expected) < 1e-9, weight


@pytest.mark.parametrize(
    ("style", "fields", "processes", "message"),
    [
        ("llama", {"num_key_value_heads": 1}, 2, "tp_size=2 cannot split num_key_value_heads=1"),
        ("llama", {"num_key_value_heads": 2}, 4, "tp_size=4 cannot split num_key_value_heads=2"),
        ("llama", {}, 3, "tp_size=3 cannot split num_attention_heads=4"),
        ("llama", {"intermediate_size": 47}, 2, "tp_size=2 cannot split intermediate_size=47"),
        ("family:llama", {}, 4, "tp_size=4 cannot split num_key_value_heads=2"),
        ("family:llama", {"recurrence_lora_rank": 2}, 2, "recurrence_lora_rank=2 .* need whole vectors"),
    ],
)
def test_what_cannot_be_split_is_refused(style, fields, processes, message):
    model = tiny_model(style, **fields)
    check_split(model, 1)
    with pytest.raises(ValueError, match=message):
        RecurrentDepthForCausalLM.maybe_distribute_model(model, DistributedConfig(tp_size=processes), None)


def test_continuous_batching_that_has_no_split_is_refused():
    model = tiny_model("llama")
    model._tp_size = 2
    with pytest.raises(ValueError, match="does not know the split of a fused projection over tp_size=2"):
        model.init_continuous_batching()
    family = tiny_model("family:llama")
    family._tp_size = 2
    check_paged_cache(family)
