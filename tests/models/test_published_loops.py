"""The published loops compute after every recurrence what their restatements compute, and nothing similar does."""

import pytest
import torch
from published_loops import (
    VOCAB,
    WIDTH,
    Ouro,
    Raven,
    Study,
    exit_counts,
    logits_of,
    published,
    save_any,
    save_published,
    save_study,
)
from recurrent_models import relative_error

from memreason_hf.models.published import convert_published, detect


DEEPEST = 8
TOLERANCE = 1e-5
# A model that computes something else is further away than this.
ANOTHER_MODEL = 1e-2
RAVENS = ["huginn", "retrofit_llama", "retrofit_olmo"]
STUDIES = {
    "study": {},
    "study_learned": {"positions": "learned"},
    "study_sinusoidal": {"positions": "sinusoidal", "input_injection": True},
}


def random_ids(rows=3, length=9):
    return torch.randint(1, VOCAB, (rows, length))


def errors(kind, module, model, length=9):
    """The relative error after each recurrence."""
    ids = random_ids(length=length)
    state = torch.randn(*ids.shape, WIDTH) * 0.6 if kind in RAVENS else None
    call = {} if state is None else {"initial_state": state}
    with torch.no_grad():
        return [
            relative_error(
                model(ids, num_recurrences=recurrence, **call).logits, logits_of(kind, module, ids, recurrence, state)
            )
            for recurrence in range(1, DEEPEST + 1)
        ]


@pytest.mark.parametrize("kind", [*RAVENS, "ouro", *STUDIES])
def test_logits_after_every_recurrence(kind, tmp_path):
    config, module = published(kind, **STUDIES.get(kind, {}))
    model, _ = convert_published(tmp_path, **save_any(tmp_path, kind, config, module))
    assert max(errors(kind, module, model)) < TOLERANCE
    # Every recurrence changes what the model says.
    ids = random_ids()
    with torch.no_grad():
        after = [model(ids, num_recurrences=recurrence).logits for recurrence in (1, 2, 8)]
    assert relative_error(after[0], after[1]) > ANOTHER_MODEL and relative_error(after[1], after[2]) > ANOTHER_MODEL


CONTROLS = [
    ("huginn", {"norms": "sandwich"}),
    ("huginn", {"adjacent": False}),
    ("huginn", {"norm_before_coda": False}),
    ("huginn", {"rope_base": 10000}),
    ("huginn", {"init_values": {"embed_scale": 1.0}}),
    ("retrofit_llama", {"adjacent": True}),
    ("retrofit_llama", {"norm_before_coda": True}),
    ("retrofit_llama", {"rope_theta": 50000.0}),
    ("retrofit_olmo", {"norm_before_coda": True}),
    ("retrofit_olmo", {"norms": "pre"}),
    ("ouro", {"norm_every_recurrence": False}),
    ("ouro", {"rope_theta": 10000.0}),
]


@pytest.mark.parametrize(
    ("kind", "change"), CONTROLS, ids=[f"{kind}-{next(iter(change))}" for kind, change in CONTROLS]
)
def test_a_model_with_one_difference_is_another_one(kind, change, tmp_path):
    config, module = published(kind)
    model, _ = convert_published(tmp_path, **save_any(tmp_path, kind, config, module))
    other = (Ouro if kind == "ouro" else Raven)(config | change).eval()
    # Norms of queries and keys have no place in layers of Llama's shape.
    missing, unexpected = other.load_state_dict(module.state_dict(), strict=False)
    assert not missing and all("_norm." in name for name in unexpected)
    assert max(errors(kind, other, model)) > ANOTHER_MODEL


@pytest.mark.parametrize("change", [{"causal": False}, {"input_injection": True}], ids=["causal", "injection"])
def test_another_study_is_another_one(change, tmp_path):
    config, module = published("study")
    model, _ = convert_published(tmp_path, **save_any(tmp_path, "study", config, module))
    other = Study(**change).eval()
    other.load_state_dict(module.state_dict())
    assert max(errors("study", other, model)) > ANOTHER_MODEL


def test_huginn_keeps_its_state_depth_and_training(tmp_path):
    config, module = published("huginn")
    save_published(tmp_path, config, module)
    model, tokenizer = convert_published(tmp_path)
    assert tokenizer is None
    ours = model.config
    assert ours.num_recurrences == 4 and ours.backprop_recurrences == 8
    assert ours.recurrence_sampling == "lognormal_poisson"
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (1, 2, 0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    # The noise: sqrt(2/5) before it is cut off at three standard deviations.
    states = model(torch.ones(64, 64, dtype=torch.long), num_recurrences=1, output_hidden_states=True).hidden_states[0]
    std = 0.4**0.5
    assert states[0].abs().max() <= 3 * std * (1 + 1e-6)
    assert abs(states[0].std() / std - 0.9866) < 0.03
    assert (states[0].abs() > 2 * std).any()
    # Position by position, the same in each row.
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0, 0], states[0, 1])


@pytest.mark.parametrize("tied", [False, True])
def test_heads_tied_and_untied(tied, tmp_path):
    config, module = published("huginn", tie_embeddings=tied)
    save_published(tmp_path, config, module)
    model, _ = convert_published(tmp_path)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert max(errors("huginn", module, model)) < TOLERANCE


def test_a_longer_context_is_scaled_as_in_llama(tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    config, module = published("retrofit_llama", rope_scaling=scaling)
    save_published(tmp_path, config, module)
    model, _ = convert_published(tmp_path)
    assert model.config.rope_parameters == scaling | {"rope_theta": 5000.0}
    assert max(errors("retrofit_llama", module, model)) > ANOTHER_MODEL


def test_ouro_halts_where_its_gate_says(tmp_path):
    """As a whole row the model halts where the original would read its logits."""
    config, module = published("ouro", early_exit_threshold=0.6)
    save_published(tmp_path, config, module)
    model, _ = convert_published(tmp_path)
    assert model.config.exit_gate_threshold == 0.6 and model.config.max_recurrences == 4
    ids = random_ids(rows=24)
    with torch.no_grad():
        exits = module(ids, DEEPEST)[1][:, :, -1]
        for threshold in (0.4, 0.6, 0.9):
            expected = exit_counts(exits, threshold, DEEPEST)
            output = model(
                ids,
                halting_criterion="exit_gate",
                halting_granularity="sequence",
                exit_gate_threshold=threshold,
                max_recurrences=DEEPEST,
            )
            assert torch.equal(output.num_recurrences, expected)
            for count in expected.unique():
                rows = expected == count
                wanted = module(ids[rows], int(count))[0]
                assert relative_error(output.logits[rows], wanted) < TOLERANCE
        assert len(exit_counts(exits, 0.9, DEEPEST).unique()) >= 3
        # The control: a gate that is ignored, or read before the norm.
        model.model.exit_gate.weight.zero_()
        output = model(ids, halting_criterion="exit_gate", exit_gate_threshold=0.9, halting_granularity="sequence")
        assert len(output.num_recurrences.unique()) == 1


def test_ouro_with_windows(tmp_path):
    config, module = published("ouro", layer_types=["sliding_attention"] * 3, sliding_window=4)
    save_published(tmp_path, config, module)
    model, _ = convert_published(tmp_path)
    assert model.config.sliding_window == 4
    assert max(errors("ouro", module, model, length=4)) < TOLERANCE
    assert max(errors("ouro", module, model, length=5)) > ANOTHER_MODEL


@pytest.mark.parametrize("compiled", [False, True])
def test_study_checkpoints_of_compiled_models(compiled, tmp_path):
    config, module = published("study", positions="learned")
    save_study(tmp_path / "run" / "checkpoint_epoch_7.pt", module, compiled=compiled)
    for source in (tmp_path / "run", tmp_path / "run" / "checkpoint_epoch_7.pt"):
        model, _ = convert_published(source, **config)
        assert max(errors("study", module, model)) < TOLERANCE


def test_study_reads_out_at_padding(tmp_path):
    """The study pads to one length on the right and reads the last position, which is padding."""
    config, module = published("study", positions="learned")
    model, _ = convert_published(tmp_path, **save_any(tmp_path, "study", config, module))
    ids, mask = random_ids(length=12), torch.ones(3, 12, dtype=torch.long)
    for row, length in enumerate((12, 9, 4)):
        ids[row, length:] = mask[row, length:] = 0
    positions = torch.arange(12).expand(3, -1)
    with torch.no_grad():
        for recurrence in (1, 3, 8):
            actual = model(ids, attention_mask=mask, position_ids=positions, num_recurrences=recurrence).logits
            assert relative_error(actual, module(ids, mask, recurrence)) < TOLERANCE


def test_the_study_brings_its_vocabulary(tmp_path):
    tokens = [*(f"<e_{i}>" for i in range(VOCAB - 7)), "<mask>", "<sep>", "<a>", "</a>", "<q>", "</q>"]
    config, module = published("study")
    given = save_any(tmp_path, "study", config, module)
    assert convert_published(tmp_path, **given)[1] is None
    (tmp_path / "vocab.json").write_text(str(tokens).replace("'", '"'), encoding="utf-8")
    model, tokenizer = convert_published(tmp_path, **given)
    assert tokenizer("<e_0><e_3></q>")["input_ids"] == [1, 4, VOCAB - 1]
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0
    elsewhere = tmp_path / "data"
    elsewhere.mkdir()
    (tmp_path / "vocab.json").rename(elsewhere / "vocab.json")
    assert len(convert_published(tmp_path, **given, vocabulary=elsewhere)[1]) == VOCAB


def test_what_is_detected(tmp_path):
    assert detect(tmp_path) is None
    for kind in ("huginn", "ouro", "study"):
        config, module = published(kind)
        save_any(tmp_path / kind, kind, config, module)
        assert detect(tmp_path / kind) is not None
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    assert detect(tmp_path) is None
    with pytest.raises(ValueError, match="is not a published loop"):
        convert_published(tmp_path)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_dtype_and_round_trip(dtype, tmp_path):
    config, module = published("ouro")
    save_published(tmp_path / "source", config, module)
    (tmp_path / "source" / "generation_config.json").write_text(
        '{"eos_token_id": [2, 5], "temperature": 0.7, "do_sample": true, "num_steps": 3}', encoding="utf-8"
    )
    model, _ = convert_published(tmp_path / "source", dtype=dtype)
    assert model.dtype == (dtype or torch.float32)
    assert model.generation_config.eos_token_id == [2, 5] and model.generation_config.temperature == 0.7
    assert not hasattr(model.generation_config, "num_steps")
    model.save_pretrained(tmp_path / "out")
    again = type(model).from_pretrained(tmp_path / "out", dtype="auto").eval()
    ids = random_ids()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
