"""Invariant 6: what is saved, loaded, resized, tied, cast or adapted gives the same logits."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from family_models import FAMILY_NAMES
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftModel, get_peft_model
from recurrent_models import VOCAB, random_ids, relative_error, tiny_config, tiny_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from modeling_recurrent import RecurrentDepthForCausalLM, RecurrentDepthModel


VARIANTS = [
    ("gpt2", {}),
    ("gpt2", {"residual_init_scale": 0, "position_embedding_type": "sinusoidal", "state_norm": "layernorm"}),
    ("llama", {"input_injection": "concat", "state_norm": "rmsnorm", "num_prelude_layers": 1, "num_coda_layers": 1}),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "attention_output_bias": False}),
    *((f"family:{name}", {"num_coda_layers": 1, "input_injection": "gate"}) for name in FAMILY_NAMES),
    ("family:qwen3", {"input_injection": "concat", "state_norm": "rmsnorm", "recurrence_lora_rank": 2}),
]


@pytest.mark.parametrize(("style", "extra"), VARIANTS)
def test_save_and_load_into_poisoned_memory(style, extra, tmp_path, poisoned_memory):
    model = tiny_model(style, **extra)
    ids = random_ids(3, 8)
    expected = model(ids, num_recurrences=5).logits
    assert expected.isfinite().all()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is RecurrentDepthForCausalLM
    assert torch.equal(loaded(ids, num_recurrences=5).logits, expected)
    deeper = AutoModelForCausalLM.from_pretrained(tmp_path, num_recurrences=5)
    assert torch.equal(deeper(ids).logits, expected)
    decoder = AutoModel.from_pretrained(tmp_path)
    assert type(decoder) is RecurrentDepthModel
    hidden = decoder(ids, num_recurrences=5).last_hidden_state
    assert torch.equal(loaded.compute_logits(hidden), expected)
    with pytest.raises(StrictDataclassError, match=r"field 'num_recurrences':\s.*got 0"):
        AutoModelForCausalLM.from_pretrained(tmp_path, num_recurrences=0)


def test_missing_weights_are_initialised_not_left(tmp_path, poisoned_memory):
    tiny_model("llama").save_pretrained(tmp_path)
    grown = RecurrentDepthForCausalLM.from_pretrained(
        tmp_path, num_coda_layers=1, input_injection="concat", state_norm="rmsnorm"
    )
    assert all(p.isfinite().all() for p in grown.parameters())
    assert grown(random_ids(2, 5)).logits.isfinite().all()
    width = grown.config.hidden_size
    assert torch.equal(grown.model.injection.weight, torch.eye(width).repeat(1, 2))


def test_initial_weights():
    torch.manual_seed(0)
    config = tiny_config(hidden_size=128, num_attention_heads=4, intermediate_size=256, residual_init_scale=0.5)
    model = RecurrentDepthForCausalLM(config)
    block = model.model.recurrent_layers[0]
    spread = config.initializer_range
    assert abs(block.self_attn.qkv_proj.weight.std().item() - spread) < 0.05 * spread
    for projection in (block.self_attn.o_proj, block.mlp.down_proj):
        assert abs(projection.weight.std().item() - spread / 2) < 0.05 * spread

    identity = RecurrentDepthForCausalLM(tiny_config(residual_init_scale=0)).eval()
    ids = random_ids(2, 5)
    assert torch.equal(identity(ids, num_recurrences=1).logits, identity(ids, num_recurrences=9).logits)
    usual = tiny_config(num_prelude_layers=1, residual_init_scale=0)
    assert RecurrentDepthForCausalLM(usual).model.prelude_layers[0].mlp.down_proj.weight.abs().max() > 0


@pytest.mark.parametrize("tied", [True, False])
def test_resized_embeddings_keep_the_old_logits(tied, tmp_path):
    model = tiny_model(tie_word_embeddings=tied)
    ids = random_ids(2, 6)
    expected = model(ids).logits
    model.resize_token_embeddings(VOCAB + 7, mean_resizing=False)
    assert torch.equal(model(ids).logits[..., :VOCAB], expected)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.config.vocab_size == VOCAB + 7
    assert again(ids, labels=ids).loss.isfinite()


def test_dtypes(tmp_path):
    model = tiny_model("llama", num_key_value_heads=2)
    ids = random_ids(2, 6)
    model.save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half(ids).logits, model.to(torch.bfloat16)(ids).logits)
    half.save_pretrained(tmp_path / "half")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "half")(ids).logits, half(ids).logits)


def test_peft_adapters(tmp_path):
    model = tiny_model("llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "base")
    ids = random_ids(2, 6)
    expected = model(ids).logits
    config = LoraConfig(target_modules=["qkv_proj", "down_proj"], r=4, init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    logits = adapted(ids, num_recurrences=4).logits
    assert not torch.allclose(logits, expected)
    adapted.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.equal(base(ids).logits, expected)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.equal(loaded(ids, num_recurrences=4).logits, logits)
    assert relative_error(loaded.merge_and_unload()(ids, num_recurrences=4).logits, logits) < 1e-5
    assert adapted.generate(input_ids=ids, max_new_tokens=2, num_recurrences=2).shape == (2, 8)


REMOTE = """
import sys
from types import SimpleNamespace
sys.modules["modeling_recurrent"] = sys.modules["memreason_hf"] = None  # as on a machine without this package
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
folder = sys.argv[1]
ids = torch.load(folder + "/ids.pt", weights_only=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules"), type(model)
logits = model(ids, halting_criterion="kl", halting_granularity="sequence").logits
assert torch.equal(logits, torch.load(folder + "/logits.pt", weights_only=True))
assert type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__ == "RecurrentDepthModel"
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "recurrent_depth"
model.save_pretrained(folder + "/again")
again = AutoModelForCausalLM.from_pretrained(folder + "/again", trust_remote_code=True)
assert torch.equal(again(ids).logits, model(ids).logits)
print("loaded", type(model).__name__)
"""


def test_checkpoint_loads_where_the_package_is_not_installed(tmp_path):
    model = tiny_model("llama", num_coda_layers=1)
    ids = random_ids(3, 6)
    model.save_pretrained(tmp_path / "model")
    torch.save(ids, tmp_path / "model" / "ids.pt")
    logits = model(ids, halting_criterion="kl", halting_granularity="sequence").logits.detach()
    torch.save(logits, tmp_path / "model" / "logits.pt")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", REMOTE, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "loaded RecurrentDepthForCausalLM" in run.stdout


def test_auto_classes_know_the_type(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert type(made) is RecurrentDepthForCausalLM


def test_pipeline_parallelism_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pp_size=2: the stages of a pipeline run one after the other"):
        RecurrentDepthForCausalLM.from_pretrained(tmp_path, distributed_config=SimpleNamespace(pp_size=2))
