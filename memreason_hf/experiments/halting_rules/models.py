"""The models of the experiment: one world and one recipe, which differ in how the recurrences are weighted."""

from dataclasses import dataclass, field


# Hop counts of the test chains; training chains have at most 8.
TEST_HOPS = "2-8,12,16,24,32,40"
# The last recurrence: beyond the longest chain.
DEPTH = 56


@dataclass(frozen=True)
class Variant:
    """
    A model.

    Attributes:
        title: in tables and figures.
        training: training arguments that differ from those of the others.
        has_gate: whether a gate learns together with the model.
        fits: gates that are fitted to the trained model afterwards, by objective, with their titles.
    """

    title: str
    training: dict
    has_gate: bool = False
    fits: dict[str, str] = field(default_factory=dict)


MODELS = {
    "plain": Variant(
        "loss at every recurrence",
        {"recurrence_loss": "uniform"},
        fits={
            "settled": "gate fitted to settled answers",
            "improvement": "gate fitted to improvement",
            "expected_loss": "gate fitted to expected loss",
        },
    ),
    "entropy": Variant(
        "gate trained jointly, uniform prior",
        {"recurrence_loss": "exit_gate", "exit_prior": "uniform", "exit_prior_weight": 0.1},
        has_gate=True,
        # The second stage of Ouro.
        fits={"improvement": "two stages (Ouro)"},
    ),
    "geometric": Variant(
        "gate trained jointly, geometric prior",
        {
            "recurrence_loss": "exit_gate",
            "exit_prior": "geometric",
            "exit_prior_stop": 0.1,
            "exit_prior_weight": 0.1,
        },
        has_gate=True,
    ),
}


def sections(name: str, folder: str, data: str, seed: int, max_steps: int, num_test_chains: int) -> dict[str, dict]:
    """The sections of the recipe of a model, as `prepare_run` takes them; `training` are the training arguments."""
    variant = MODELS[name]
    model = {
        "style": "gpt2",
        "num_recurrent_layers": 1,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "position_embedding_type": "none",
        "sliding_window": 2,
        "input_injection": "add",
        "state_norm": "layernorm",
        "residual_dropout": 0.1,
        "num_recurrences": 12,
        "recurrence_sampling": "uniform",
        "recurrence_min": 8,
        "recurrence_max": 16,
        "max_recurrences": DEPTH,
        "halting_granularity": "sequence",
        "entropy_threshold": 1.0,
        "exit_gate": variant.has_gate,
    }
    training = {
        "output_dir": folder,
        "supervision": "prefix",
        "per_device_train_batch_size": 128,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": min(100, max_steps // 10),
        "weight_decay": 0.0,
        "adam_beta2": 0.99,
        "max_steps": max_steps,
        "logging_steps": 100,
        "eval_strategy": "no",
        "save_steps": 500,
        "seed": seed,
        "use_cpu": True,
        "disable_tqdm": True,
        **variant.training,
    }
    return {
        "model": model,
        "data": data_section(data, seed, num_test_chains),
        "training": training,
        "curriculum": {
            "first_stage": 2,
            "gate": "train",
            "threshold": 0.97,
            "eval_steps": 25,
            "final_steps": max_steps,
        },
    }


def data_section(path: str, seed: int, num_test_chains: int) -> dict:
    """The world of the quickstart, with test chains of other lengths."""
    return {
        "path": path,
        "num_entities": 20,
        "num_relations": 4,
        "train_hops": "2-8",
        "test_hops": TEST_HOPS,
        "num_train_chains": 15000,
        "num_test_chains": num_test_chains,
        "cap_to_available": True,
        "seed": seed,
    }
