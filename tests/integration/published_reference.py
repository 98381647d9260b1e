"""
Runs the original code of a published loop on tiny random weights and saves what it computes.

This file runs in an environment of its own, with the release of transformers that the original code pins, and imports
nothing of this package:

    PYTHON tests/integration/published_reference.py FAMILY SOURCE OUT

`SOURCE` is a checkout of the original repository. `OUT` receives a folder `model`, saved by the original code, and
`reference.pt`: the inputs, the first state where there is one, and the logits after each recurrence.
"""

import importlib
import sys
import types
from pathlib import Path

import torch


RECURRENCES = 8
WIDTH, HEADS, VOCAB = 32, 4, 61


def import_original(source, folder, *modules):
    """Modules of a checkout, without the `__init__` of their package, which may import much more."""
    package = types.ModuleType(folder.replace("/", "_"))
    package.__path__ = [str(Path(source) / folder)]
    sys.modules[package.__name__] = package
    return [importlib.import_module(f"{package.__name__}.{module}") for module in modules]


def shake(model, strength=0.2):
    """Random values for everything that starts as ones or zeros, and large ones elsewhere."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * strength)
    return model.eval()


def random_ids(rows=3, length=9):
    return torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(2))


def raven(source, folder, modeling, out, **fields):
    config_module, modeling = import_original(source, folder, "raven_config_minimal", modeling)
    config = config_module.RavenConfig(
        n_embd=WIDTH,
        n_heads=HEADS,
        block_size=64,
        vocab_size=VOCAB,
        intermediate_size=48,
        n_layers_in_prelude=2,
        n_layers_in_coda=1,
        mean_recurrence=4,
        torch_dtype="float32",
        **fields,
    )
    if "n_layers_in_recurrent_block" not in fields:
        config.n_layers_in_recurrent_block = 2
    for name, value in fields.items():
        setattr(config, name, value)
    if "init_values" in fields:
        config.init_values = {**config_module.RavenConfig(n_embd=WIDTH).init_values, **fields["init_values"]}
    torch.manual_seed(0)
    model = modeling.RavenForCausalLM(config)
    model = shake(model, 0.1)
    model.save_pretrained(out / "model")
    ids = random_ids()
    state = torch.randn(*ids.shape, WIDTH, generator=torch.Generator().manual_seed(3)) * 0.6
    logits = [
        model(ids, input_states=state, num_steps=(recurrence, 0)).logits for recurrence in range(1, RECURRENCES + 1)
    ]
    drawn = model.initialize_state(torch.zeros(64, 64, WIDTH))
    return {
        "input_ids": ids,
        "state": state,
        "logits": torch.stack(logits),
        "state_std": drawn.std(),
        "state_max": drawn.abs().max(),
    }


def huginn(source, out):
    return raven(source, "recpre", "raven_modeling_minimal", out)


RETROFIT = {
    "tie_embeddings": False,
    "qk_bias": False,
    "num_key_value_heads": 2,
    "head_dim": WIDTH // HEADS,
    "norm_eps": 1e-5,
    "padded_vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "rope_theta": 5000.0,
    "init_values": {"embed_scale": 1.0},
}


def retrofit_llama(source, out):
    return raven(source, "convert_pretrained_model", "raven_modeling_minimal_llama", out, **RETROFIT)


def retrofit_olmo(source, out):
    return raven(source, "convert_pretrained_model", "raven_modeling_minimal_olmo", out, **RETROFIT)


def ouro(source, out):
    config, modeling = import_original(source, "ouro_rl/modeling", "configuration_ouro", "modeling_ouro")
    config = config.OuroConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rope_theta=5000.0,
        total_ut_steps=RECURRENCES,
        early_exit_threshold=1.0,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    model = shake(modeling.OuroForCausalLM(config), 0.1)
    model.save_pretrained(out / "model")
    ids = random_ids(rows=16)
    logits = [model(ids, use_cache=False, exit_at_step=step).logits for step in range(RECURRENCES)]
    _, _, gates = model.model(ids, use_cache=False)
    halted = {
        str(threshold): model(ids, use_cache=False, exit_threshold=threshold).logits for threshold in (0.3, 0.6, 0.9)
    }
    return {
        "input_ids": ids,
        "logits": torch.stack(logits),
        "gates": torch.stack(gates).squeeze(-1),
        "halted": halted,
    }


def study(source, out, positions="none", input_injection=False, compiled=False):
    from transformers import GPT2Config

    sys.path.insert(0, str(source))
    original = importlib.import_module("gpt_utils_extrapolation")
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=12,
        n_ctx=12,
        n_embd=WIDTH,
        n_layer=2,
        n_head=HEADS,
        _attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = original.RecurrentGPT2Block(config, 1, positions, input_injection, c_scale=1.0)
    shake(model)
    ids = random_ids(length=12)
    mask = torch.ones_like(ids)
    for row, length in enumerate((12, 9, 4)):
        ids[row, length:] = 0
        mask[row, length:] = 0
    logits = []
    for recurrence in range(1, RECURRENCES + 1):
        model.num_iterations = recurrence
        logits.append(model(ids, attention_mask=mask).logits)
    weights = model.state_dict()
    if compiled:
        weights = {f"_orig_mod.{name}": value for name, value in weights.items()}
    optimizer = torch.optim.AdamW(model.parameters())
    (out / "model").mkdir(parents=True)
    torch.save(
        {"epoch": 3, "model_state_dict": weights, "optimizer_state_dict": optimizer.state_dict(), "loss": 0.5},
        out / "model" / "checkpoint_epoch_4.pt",
    )
    return {"input_ids": ids, "attention_mask": mask, "logits": torch.stack(logits)}


FAMILIES = {
    "huginn": huginn,
    "retrofit_llama": retrofit_llama,
    "retrofit_olmo": retrofit_olmo,
    "ouro": ouro,
    "study": study,
    "study_learned": lambda source, out: study(source, out, "learned", compiled=True),
    "study_sinusoidal": lambda source, out: study(source, out, "sinusoidal", input_injection=True),
}


def main():
    import transformers

    family, source, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        reference = FAMILIES[family](source, out)
    versions = {"transformers": transformers.__version__, "torch": str(torch.__version__)}
    torch.save({**reference, "versions": versions}, out / "reference.pt")
    print(f"{family}: {versions}, {RECURRENCES} recurrences saved in {out}")


if __name__ == "__main__":
    main()
