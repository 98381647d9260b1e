"""What users of the published loops ask for: padding, halting that saves time, caches, fine-tuning."""

import pytest
import torch
from published_loops import VOCAB, logits_of, published, save_any
from recurrent_models import pad, relative_error, same_decoding
from torch.nn.functional import cross_entropy

from memreason_hf.models.published import convert_published
from modeling_recurrent import RecurrentDepthCache


KINDS = ["huginn", "retrofit_llama", "retrofit_olmo", "ouro", "study"]
LENGTHS = (9, 4, 6, 2, 8, 5)
# Thresholds at which the rows of these models halt at different recurrences.
HALTING = {
    "huginn": {"halting_criterion": "state_difference", "state_difference_threshold": 0.7},
    "retrofit_llama": {"halting_criterion": "state_difference", "state_difference_threshold": 0.55},
    "retrofit_olmo": {"halting_criterion": "state_difference", "state_difference_threshold": 0.35},
    "ouro": {"halting_criterion": "exit_gate", "exit_gate_threshold": 0.9},
    "study": {"halting_criterion": "kl", "kl_threshold": 0.02},
}
MOST = 9


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def loop(kind, tmp_path):
    """The restated model and the converted one, in double precision so that rounding decides nothing."""
    config, module = published(kind)
    model, _ = convert_published(tmp_path, **save_any(tmp_path, kind, config, module))
    return module, model.double()


def random_rows(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(1, VOCAB, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_on_either_side(kind, loop, side):
    """Each row of a padded batch gets the logits that the original gives it alone, with the same noise."""
    module, model = loop
    rows = random_rows()
    ids, mask = pad(rows, side)
    for recurrence in (1, 4):
        output = model(ids, attention_mask=mask, num_recurrences=recurrence, output_hidden_states=True)
        for i, row in enumerate(rows):
            real = mask[i].bool()
            state = output.hidden_states[0][i : i + 1, real].float()
            expected = logits_of(kind, module, row[None], recurrence, state)[0]
            assert relative_error(output.logits[i, real].float(), expected) < 1e-5
    # The control: without the mask the padding is read.
    unmasked = model(ids, num_recurrences=4).logits[1, mask[1].bool()]
    assert side == "right" or relative_error(unmasked, output.logits[1, mask[1].bool()]) > 1e-3


@torch.no_grad()
def test_decoding_with_a_cache(kind, loop):
    """Token by token, the cache gives the logits of the original's pass over the whole text."""
    module, model = loop
    text = torch.stack(random_rows((8, 8)))
    whole = model(text, num_recurrences=3, output_hidden_states=True)
    call = {"num_recurrences": 3, "past_key_values": RecurrentDepthCache(model.config)}
    steps = [model(part, **call).logits for part in text.split((4, 1, 1, 2), dim=1)]
    expected = logits_of(kind, module, text, 3, whole.hidden_states[0].float())
    assert relative_error(torch.cat(steps, dim=1).float(), expected) < 1e-5
    # The control: with the noise of the first positions at every step it is another text.
    again = [model(part, num_recurrences=3).logits for part in text.split(1, dim=1)]
    assert relative_error(torch.cat(again, dim=1).float(), expected) > 1e-2


@torch.no_grad()
def test_generation_with_and_without_a_cache(kind, loop):
    _, model = loop
    ids, mask = pad(random_rows(), "left")
    wanted = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    for call in ({"num_recurrences": 3}, {**HALTING[kind], "max_recurrences": MOST}):
        cached = model.generate(ids, **wanted, **call)
        assert same_decoding(cached, model.generate(ids, use_cache=False, **wanted, **call))


@pytest.mark.parametrize("granularity", ["sequence", "token"])
@torch.no_grad()
def test_halting_saves_layer_calls(kind, loop, granularity):
    """A row of a batch costs the recurrences that it takes, and gets what these recurrences give."""
    _, model = loop
    ids, mask = pad(random_rows(LENGTHS * 3), "right")
    computed = []
    looped = model.model.recurrent_layers[0]
    looped.register_forward_pre_hook(lambda _, args, kwargs: computed.append(len(args[0])), with_kwargs=True)
    output = model(ids, attention_mask=mask, halting_granularity=granularity, max_recurrences=MOST, **HALTING[kind])
    counts = output.num_recurrences
    deepest = counts if granularity == "sequence" else counts.amax(-1)
    assert sum(computed) == int(deepest.sum()) < MOST * len(ids)
    assert len(counts[counts > 0].unique()) >= 3
    again = model(ids, attention_mask=mask, num_recurrences=counts)
    assert relative_error(output.logits[mask.bool()], again.logits[mask.bool()]) < 1e-9


def test_one_training_step_moves_every_parameter(kind, loop):
    _, model = loop
    model.float().train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    ids, mask = pad(random_rows(), "right")
    labels = ids.masked_fill(mask == 0, -100)
    losses = []
    for _ in range(2):
        # The adapter and the state take part at every recurrence.
        loss = model(ids, attention_mask=mask, labels=labels, num_recurrences=3).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    still = [name for name, parameter in model.named_parameters() if torch.equal(before[name], parameter)]
    # A gate has no part in the loss at a fixed depth.
    assert still == (["model.exit_gate.weight", "model.exit_gate.bias"] if kind == "ouro" else [])
    assert losses[1] < losses[0]


def test_the_gate_trains_on_the_expected_loss(tmp_path):
    """The gate of Ouro learns from the losses after all recurrences, weighted by the probability of leaving there."""
    config, module = published("ouro")
    model, _ = convert_published(tmp_path, **save_any(tmp_path, "ouro", config, module))
    model.train()
    ids = torch.stack(random_rows((9, 9)))
    states = model(ids, num_recurrences=4, output_hidden_states=True).hidden_states[1:]
    stayed, expected = torch.ones(2, 8), 0.0
    for recurrence, state in enumerate(states, start=1):
        normed = model.model.norm(state)[:, :-1]
        leaves = torch.ones(2, 8) if recurrence == 4 else model.model.exit_gate(normed)[..., 0].sigmoid()
        losses = cross_entropy(model.lm_head(normed).flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        expected = expected + (stayed * leaves * losses.view(2, 8)).mean()
        stayed = stayed * (1 - leaves)
    expected.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
