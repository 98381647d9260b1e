"""The outputs of a forward pass other than logits, and the fixed-depth path, which compiles whole."""

import pytest
import torch
from recurrent_models import pad, random_ids, relative_error, tiny_model
from torch.nn.attention.flex_attention import create_block_mask


def test_one_hidden_state_a_recurrence():
    model = tiny_model(num_prelude_layers=1, num_coda_layers=1, input_injection="add")
    ids = random_ids(3, 5)
    states = model(ids, num_recurrences=4, output_hidden_states=True).hidden_states
    assert len(states) == 5
    for t in range(1, 5):
        shorter = model(ids, num_recurrences=t, output_hidden_states=True).hidden_states
        assert len(shorter) == t + 1
        assert torch.equal(shorter[-1], states[t])
    counts = torch.tensor([4, 1, 2])
    mixed = model(ids, num_recurrences=counts, output_hidden_states=True).hidden_states
    for t in range(5):
        for row, count in enumerate(counts.tolist()):
            assert relative_error(mixed[t][row], states[min(t, count)][row]) < 1e-5


def test_one_attention_map_a_layer_call():
    model = tiny_model(num_prelude_layers=1, num_coda_layers=1)
    model.set_attn_implementation("eager")
    ids, mask = pad([random_ids(6), random_ids(4), random_ids(6)], "left")
    maps = model(ids, attention_mask=mask, num_recurrences=3, output_attentions=True).attentions
    assert len(maps) == 1 + 3 * 2 + 1
    assert all(m.shape == (3, 4, 6, 6) for m in maps)
    for m in maps:
        rows = m[mask.bool()[:, None, :].expand(3, 4, 6)]
        assert torch.allclose(rows.sum(-1), torch.ones(len(rows)), atol=1e-5)
    counts = torch.tensor([3, 1, 2])
    mixed = model(ids, attention_mask=mask, num_recurrences=counts, output_attentions=True).attentions
    for t in range(1, 4):
        for layer in range(2):
            for row, count in enumerate(counts.tolist()):
                expected = maps[1 + (min(t, count) - 1) * 2 + layer][row]
                assert relative_error(mixed[1 + (t - 1) * 2 + layer][row], expected) < 1e-5


@pytest.mark.parametrize("attention", ["sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
@pytest.mark.parametrize("extra", [{}, {"sliding_window": 3, "num_prelude_layers": 1}], ids=str)
@torch.no_grad()
def test_maps_under_attention_that_has_none(attention, extra):
    """The maps are those of eager attention, and the call after it runs as before."""
    model = tiny_model("llama", **extra)
    ids, mask = pad([random_ids(6), random_ids(4), random_ids(6)], "left")
    call = {"attention_mask": mask, "num_recurrences": torch.tensor([3, 1, 2])}
    model.set_attn_implementation("eager")
    expected = model(ids, output_attentions=True, **call)
    model.set_attn_implementation(attention)
    before = model(ids, **call).logits
    output = model(ids, output_attentions=True, **call)
    assert len(output.attentions) == len(expected.attentions) > 0
    for shown, wanted in zip(output.attentions, expected.attentions, strict=True):
        assert torch.equal(shown, wanted)
    assert torch.equal(output.logits, expected.logits)
    assert model.config._attn_implementation == attention
    assert torch.equal(model(ids, **call).logits, before)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_maps_with_a_prepared_mask(attention):
    """A mask of true and false, as SDPA takes it, hides what is false also where maps are asked for."""
    model = tiny_model("llama", attn_implementation=attention)
    ids = random_ids(2, 5)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    output = model(ids, attention_mask=causal, output_attentions=True)
    assert relative_error(output.logits, model(ids).logits) < 1e-5
    for shown in output.attentions:
        assert (shown.masked_select(~causal) == 0).all() and (shown.masked_select(causal) > 0).all()
    prompt, mask = pad([random_ids(3), random_ids(5)], "left")
    call = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True}
    call |= {"cache_implementation": "static", "disable_compile": True, "output_logits": True}
    plain = model.generate(prompt, **call)
    shown = model.generate(prompt, output_attentions=True, **call)
    assert torch.equal(plain.sequences, shown.sequences)
    assert relative_error(torch.stack(shown.logits), torch.stack(plain.logits)) < 1e-5


@pytest.mark.parametrize("mask", ["padding", "prepared"])
@torch.no_grad()
def test_rows_without_any_token_to_attend_to_in_half_precision(mask):
    """Scores below the lowest number of float16 would be -inf, and their softmax NaN."""
    for _ in range(10):
        model = tiny_model("llama", attn_implementation="eager", initializer_range=2.0).half()
        ids, padding = pad([random_ids(2), random_ids(6)], "left")
        if mask == "prepared":
            padding = torch.ones(6, 6, dtype=torch.bool).tril() & padding.bool()[:, None, None, :]
        assert model(ids, attention_mask=padding).logits.isfinite().all()


def test_maps_with_a_mask_of_flex_attention_are_refused():
    model = tiny_model("llama", attn_implementation="flex_attention")
    mask = create_block_mask(lambda row, head, query, key: query >= key, 1, 1, 4, 4, device="cpu")
    with pytest.raises(ValueError, match="attention_mask is a BlockMask"):
        model(random_ids(1, 4), attention_mask=mask, output_attentions=True)


def test_maps_of_attention_that_others_registered_are_refused():
    model = tiny_model()
    model.config._attn_implementation = "somebody's"
    with pytest.raises(ValueError, match='attn_implementation="somebody\'s"'):
        model(random_ids(1, 3), output_attentions=True)


def test_logits_to_keep():
    model = tiny_model()
    ids = random_ids(2, 7)
    full = model(ids).logits
    for keep in (1, 3, torch.tensor([0, 4])):
        part = model(ids, logits_to_keep=keep).logits
        expected = full[:, -keep:] if isinstance(keep, int) else full[:, keep]
        assert relative_error(part, expected) < 1e-6


def test_every_recurrence_can_be_read_in_one_pass():
    model = tiny_model(num_coda_layers=1)
    ids, mask = pad([random_ids(6), random_ids(4), random_ids(2)], "left")
    seen = {}
    model(
        ids,
        attention_mask=mask,
        num_recurrences=5,
        logits_to_keep=1,
        on_recurrence=lambda recurrence, rows, logits: seen.setdefault(recurrence, (rows, logits)),
    )
    assert list(seen) == [1, 2, 3, 4, 5]
    for t, (rows, logits) in seen.items():
        assert rows is None
        expected = model(ids, attention_mask=mask, num_recurrences=t).logits[:, -1:]
        assert relative_error(logits, expected) < 1e-5

    active = []
    model(
        ids,
        attention_mask=mask,
        num_recurrences=torch.tensor([3, 1, 2]),
        on_recurrence=lambda recurrence, rows, logits: active.append(None if rows is None else rows.tolist()),
    )
    assert active == [None, [0, 2], [0]]


@pytest.mark.parametrize("use_cache", [True, False])
def test_every_recurrence_can_be_read_where_tokens_halt(use_cache):
    """With a coda of two layers, whose second layer attends to tokens that have halted."""
    model = tiny_model("llama", num_coda_layers=2, num_prelude_layers=1, initializer_range=0.25).double()
    ids, mask = pad([random_ids(6), random_ids(3), random_ids(5)], "left")
    counts = torch.randint(1, 7, ids.shape).masked_fill(mask == 0, 0)
    counts[0, -1] = 7
    seen = {}
    model(
        ids,
        attention_mask=mask,
        num_recurrences=counts,
        use_cache=use_cache,
        on_recurrence=lambda recurrence, rows, logits: seen.setdefault(recurrence, (rows, logits)),
    )
    assert len(seen) == 7
    for t, (rows, logits) in seen.items():
        expected = model(ids, attention_mask=mask, num_recurrences=counts.clamp(max=t)).logits
        rows = torch.arange(3) if rows is None else rows
        real = mask[rows].bool()
        assert relative_error(logits[real], expected[rows][real]) < 1e-10


def test_tuple_output_and_embeddings_as_input():
    model = tiny_model()
    ids = random_ids(2, 5)
    logits = model(ids).logits
    assert torch.equal(model(ids, return_dict=False)[0], logits)
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, logits)
    for call in ({}, {"input_ids": ids, "inputs_embeds": model.get_input_embeddings()(ids)}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            model(**call)


def test_too_long_for_learned_positions():
    model = tiny_model()
    with pytest.raises(ValueError, match="max_position_embeddings=64"):
        model(random_ids(1, 65))
    with pytest.raises(ValueError, match="65 tokens with its past"):
        model.generate(random_ids(1, 60), max_new_tokens=10)
    ids, mask = pad([random_ids(60), random_ids(4)], "left")
    assert (
        model(torch.nn.functional.pad(ids, (6, 0)), attention_mask=torch.nn.functional.pad(mask, (6, 0)))
        .logits.isfinite()
        .all()
    )


def test_plain_generation_agrees_with_repeated_forwards():
    model = tiny_model("llama")
    rows = [random_ids(5), random_ids(3)]
    ids, mask = pad(rows, "left")
    made = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, num_recurrences=4)
    for row, output in zip(rows, made):
        for _ in range(5):
            row = torch.cat((row, model(row[None], num_recurrences=4).logits[0, -1].argmax()[None]))
        assert output[-5:].tolist() == row[-5:].tolist()


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_fixed_depth_compiles_whole(style):
    model = tiny_model(style, input_injection="add", state_norm="layernorm")
    ids = random_ids(2, 6)
    expected = model(ids, num_recurrences=3).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(ids, num_recurrences=3).logits, expected) < 1e-5
    with torch.no_grad():
        output = compiled(ids, num_recurrences=3, output_hidden_states=True, cache_recurrences="last", state_seed=1)
    assert len(output.hidden_states) == 4 and output.past_key_values.cache_recurrences == "last"
    torch._dynamo.reset()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "extra", [{}, {"sliding_window": 3, "num_prelude_layers": 1, "input_injection": "concat"}], ids=str
)
@pytest.mark.parametrize("given", [(), ("attention_mask", "position_ids")], ids=["ids", "all"])
@torch.no_grad()
def test_exports_for_any_batch_and_length(strict, extra, given):
    model = tiny_model("llama", **extra)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", min=2)}

    def inputs(batch, length):
        tensors = {"input_ids": random_ids(batch, length)}
        if "attention_mask" in given:
            tensors["attention_mask"] = torch.ones(batch, length, dtype=torch.long)
            tensors["attention_mask"][0, : length // 2] = 0
        if "position_ids" in given:
            tensors["position_ids"] = torch.arange(length).repeat(batch, 1)
        return tensors

    example = inputs(2, 8)
    shapes = {**dict.fromkeys(example, sizes), "use_cache": None}
    program = torch.export.export(model, (), {**example, "use_cache": False}, dynamic_shapes=shapes, strict=strict)
    for shape in ((3, 5), (2, 40), (4, 2)):
        tensors = inputs(*shape)
        output = program.module()(**tensors, use_cache=False)
        assert relative_error(output.logits, model(**tensors).logits) < 1e-5
