"""A small world and a saved model with its tokenizer, for the commands that read both."""

import shutil

import pytest
import torch

from memreason_hf.data import MultiHopConfig, build_multi_hop, load_multi_hop_tokenizer, save_multi_hop
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory):
    """Chains of 2 to 5 hops, 12 test chains each; trained would be 2 and 3."""
    folder = tmp_path_factory.mktemp("world") / "data"
    config = MultiHopConfig(
        num_entities=6,
        num_relations=3,
        train_hops="2-3",
        test_hops="2-5",
        num_train_chains=20,
        num_test_chains=12,
        num_small_test_chains=4,
        num_atomic_probes=5,
        num_train_probes=5,
        cap_to_available=True,
    )
    save_multi_hop(build_multi_hop(config), folder)
    return folder


@pytest.fixture(scope="session")
def _saved_model(world_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    tokenizer = load_multi_hop_tokenizer(world_folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = RecurrentDepthConfig.gpt2_style(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_attention_heads=2,
            num_recurrent_layers=1,
            num_recurrences=3,
            max_recurrences=8,
            position_embedding_type="none",
            sliding_window=3,
            input_injection="add",
            state_norm="layernorm",
            initializer_range=0.3,
            pad_token_id=tokenizer.pad_token_id,
        )
        RecurrentDepthForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model_folder(_saved_model, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(_saved_model, tmp_path / "model")
