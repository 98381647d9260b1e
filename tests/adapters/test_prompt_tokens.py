"""Virtual prompt tokens act as ordinary tokens in front of a text, whatever its padding and its batch."""

import copy
import re

import pytest
import torch
from peft import PeftModel, PeftModelForCausalLM
from small_adapters import SCHEME, adapted, as_if_trained, extended, save_base, some_ids
from small_tokenizers import MODELS, with_random_rows
from transformers import AutoModelForCausalLM

from memreason_hf.adapters.modes import AdapterArguments, add_adapter, load_adapter, save_adapter
from memreason_hf.adapters.prompts import DEFAULT_VIRTUAL_TOKENS, PromptedModel
from memreason_hf.evaluation.solutions.generation import context_length
from memreason_hf.models.loading import load_model
from memreason_hf.steps.attention import set_step_attention
from memreason_hf.steps.tokenization import encode_plain


COUNT = 5
TIGHT = {"rtol": 1e-4, "atol": 1e-4}


def attentive(family):
    """Makes models whose weights are large enough that every position matters."""

    def make(vocab_size, **kwargs):
        model = MODELS[family](vocab_size, **kwargs)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.4 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture(params=MODELS)
def prompted(request, tmp_path):
    """A model with virtual tokens as after a long training, and its tokenizer."""
    base = save_base(tmp_path / "base", attentive(request.param))
    model, tokenizer = adapted(base, "prompt", num_virtual_tokens=COUNT)
    return as_if_trained(model), tokenizer


def with_real_tokens(model):
    """A model without an adapter, whose last rows are the virtual tokens, and the ids of those rows."""
    base = copy.deepcopy(model.get_base_model())
    rows = base.get_input_embeddings().weight.shape[0]
    base.resize_token_embeddings(rows + COUNT, mean_resizing=False)
    with torch.no_grad():
        base.get_input_embeddings().weight[rows:] = model.prompt_encoder["default"].embedding.weight
    return base.eval(), list(range(rows, rows + COUNT))


def one_by_one(plain, virtual, ids, count):
    """Greedy search without a cache, for one row."""
    ids = ids.tolist()
    rows = virtual[0]
    for _ in range(count):
        with torch.no_grad():
            logits = plain(torch.tensor([virtual + ids])).logits[0, -1, :rows]
        ids.append(int(logits.argmax()))
    return ids


def test_virtual_tokens_are_tokens_in_front(prompted):
    model, tokenizer = prompted
    plain, virtual = with_real_tokens(model)
    ids = some_ids(tokenizer)
    with torch.no_grad():
        found = model(input_ids=ids).logits
        whole = torch.cat((torch.tensor([virtual] * len(ids)), ids), dim=1)
        expected = plain(whole).logits[..., : virtual[0]]
        torch.testing.assert_close(found, expected, **TIGHT)
        # The control: without them the logits are others.
        with model.disable_adapter():
            assert not torch.allclose(model(input_ids=ids).logits, found[:, COUNT:], atol=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_does_not_depend_on_its_padding(prompted, side):
    model, tokenizer = prompted
    ids, lengths = some_ids(tokenizer, rows=3), (7, 11, 20)
    width = max(lengths)
    batch, mask = torch.full((3, width), 2), torch.zeros((3, width), dtype=torch.long)
    for row, length in enumerate(lengths):
        place = slice(width - length, None) if side == "left" else slice(length)
        batch[row, place], mask[row, place] = ids[row, :length], 1
    is_recurrent = hasattr(model.config, "num_recurrences")
    for arguments in ({}, {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}):
        with torch.no_grad():
            logits = model(input_ids=batch, attention_mask=mask, **arguments).logits[:, COUNT:]
            peft = None if is_recurrent else PeftModelForCausalLM.forward(model, batch, mask).logits[:, COUNT:]
        changed = 0
        for row, length in enumerate(lengths):
            with torch.no_grad():
                alone = model(input_ids=ids[row : row + 1, :length]).logits[0, COUNT:]
            place = slice(width - length, None) if side == "left" else slice(length)
            torch.testing.assert_close(logits[row, place], alone, **TIGHT)
            changed += peft is not None and not torch.allclose(peft[row, place], alone, atol=1e-3)
        # The control: in PEFT the padding on the left stands between the virtual tokens and the text.
        assert changed == (2 if side == "left" and peft is not None else 0)


def test_generation_follows_the_virtual_tokens(prompted):
    model, tokenizer = prompted
    # A new row is that of a word, so both would be equally probable.
    with_random_rows(model.get_base_model(), seed=int(torch.randint(2**31, ())))
    plain, virtual = with_real_tokens(model)
    ids, lengths = some_ids(tokenizer, rows=3), (7, 11, 16)
    width = max(lengths)
    batch, mask = torch.full((3, width), 2), torch.zeros((3, width), dtype=torch.long)
    for row, length in enumerate(lengths):
        batch[row, width - length :], mask[row, width - length :] = ids[row, :length], 1
    arguments = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    written = model.generate(input_ids=batch, attention_mask=mask, **arguments)
    assert torch.equal(written[:, :width], batch) and written.shape[1] == width + 6
    for row, length in enumerate(lengths):
        expected = one_by_one(plain, virtual, ids[row, :length], 6)
        assert written[row, width - length :].tolist() == expected
    # The control: without the virtual tokens it generates from other logits.
    inputs = {"input_ids": batch, "attention_mask": mask, "return_dict_in_generate": True, "output_logits": True}
    with model.disable_adapter():
        other = model.generate(**inputs, **arguments).logits[0]
    assert not torch.allclose(model.generate(**inputs, **arguments).logits[0], other, atol=1e-3)
    # A limit on all tokens does not count the virtual ones.
    limited = model.generate(batch, attention_mask=mask, **{**arguments, "max_new_tokens": None}, max_length=width + 2)
    assert torch.equal(limited, written[:, : width + 2])
    beams = model.generate(input_ids=batch, attention_mask=mask, num_beams=2, num_return_sequences=2, **arguments)
    assert beams.shape == (6, width + 6) and torch.equal(beams[:, :width], batch.repeat_interleave(2, 0))
    named = model.generate(input_ids=batch, attention_mask=mask, return_dict_in_generate=True, **arguments)
    assert torch.equal(named.sequences, written)


def test_labels_and_chosen_logits(prompted):
    model, tokenizer = prompted
    ids = some_ids(tokenizer)
    labels = ids.clone()
    labels[:, :4] = -100
    with torch.no_grad():
        outputs = model(input_ids=ids, labels=labels)
        logits = outputs.logits[:, COUNT:]
        expected = torch.nn.functional.cross_entropy(logits[:, 3:-1].flatten(0, 1), ids[:, 4:].flatten())
        torch.testing.assert_close(outputs.loss, expected, **TIGHT)
        places = torch.tensor([2, 9, 12])
        chosen = model(input_ids=ids, logits_to_keep=places).logits
        torch.testing.assert_close(chosen, logits[:, places], **TIGHT)
        cached = model(input_ids=ids[:, :6], use_cache=True)
        mask = torch.ones(len(ids), 9, dtype=torch.long)
        more = model(input_ids=ids[:, 6:9], past_key_values=cached.past_key_values, attention_mask=mask).logits
        torch.testing.assert_close(more, logits[:, 6:9], **TIGHT)


def test_only_the_virtual_tokens_are_trained(prompted):
    model, tokenizer = prompted
    ids = some_ids(tokenizer)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved == {"prompt_encoder.default.embedding.weight"} and model.num_virtual_tokens == COUNT
    assert bool(model.prompt_encoder["default"].embedding.weight.grad.abs().sum(1).gt(0).all())


def test_saved_and_loaded_also_by_peft_alone(prompted, tmp_path):
    model, tokenizer = prompted
    save_adapter(model, tokenizer, tmp_path / "adapter")
    ids = some_ids(tokenizer)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        for trainable in (False, True):
            loaded, _ = load_adapter(tmp_path / "adapter", is_trainable=trainable)
            assert isinstance(loaded, PromptedModel) and loaded.adapter_mode == "prompt"
            assert torch.equal(loaded.eval()(input_ids=ids).logits, expected)
            assert any(parameter.requires_grad for parameter in loaded.parameters()) == trainable
        base, _, _ = extended(tmp_path / "base")
        foreign = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        torch.testing.assert_close(foreign(input_ids=ids).logits, expected, **TIGHT)
    with pytest.raises(ValueError, match="virtual tokens are inputs, which cannot be merged into weights"):
        load_model(str(tmp_path / "adapter"))


def test_where_virtual_tokens_start(tmp_path):
    base = save_base(tmp_path / "base")
    text = "Mark each step as memory or reason."
    model, tokenizer = adapted(base, "prompt", prompt_init_text=text)
    ids = encode_plain(tokenizer, text)
    embed = model.get_base_model().get_input_embeddings()
    start = model.prompt_encoder["default"].embedding.weight
    assert model.num_virtual_tokens == len(ids) and torch.equal(start, embed(torch.tensor(ids)))
    model, _ = adapted(base, "prompt", prompt_init_text=text, num_virtual_tokens=len(ids) + 3)
    start = model.prompt_encoder["default"].embedding.weight
    assert torch.equal(start, model.get_base_model().get_input_embeddings()(torch.tensor(ids + ids[:3])))
    # Without a text: rows of ordinary tokens, drawn by the seed.
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model, _ = adapted(base, "prompt")
        drawn.append(model.prompt_encoder["default"].embedding.weight.detach())
    rows = model.get_base_model().get_input_embeddings().weight
    places = [(rows == row).all(1).nonzero().flatten().tolist() for row in drawn[0]]
    special = {*tokenizer.all_special_ids}
    assert len(drawn[0]) == DEFAULT_VIRTUAL_TOKENS and all(place and not special & {*place} for place in places)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_what_cannot_be_followed_is_refused(tmp_path):
    base = save_base(tmp_path / "base")
    model, tokenizer = adapted(base, "prompt", num_virtual_tokens=COUNT)
    ids = some_ids(tokenizer)
    assert context_length(model) == context_length(model.get_base_model()) - COUNT
    for arguments, said in (
        ({"use_cache": False}, "use_cache=False cannot be combined with virtual prompt tokens"),
        ({"assistant_model": model}, "assistant_model cannot be combined with virtual prompt tokens"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens cannot be combined"),
    ):
        with pytest.raises(ValueError, match=said):
            model.generate(input_ids=ids, max_new_tokens=2, **arguments)
    with pytest.raises(ValueError, match="position_ids restart within a row"):
        model(input_ids=ids, position_ids=torch.arange(ids.shape[1]).remainder(7).expand(len(ids), -1))
    plain, tokenizer, _ = extended(base)
    set_step_attention(plain, tokenizer, "own")
    with pytest.raises(ValueError, match="mode='prompt' cannot be combined with step attention 'own'"):
        add_adapter(plain, tokenizer, AdapterArguments("prompt"))
    plain = AutoModelForCausalLM.from_pretrained(base)
    for arguments, said in (
        ({"prompt_init_text": "a longer text", "num_virtual_tokens": 2}, "prompt_init_text has .* tokens, but num"),
        ({"prompt_init_text": ""}, "prompt_init_text='' has no tokens"),
        ({"num_virtual_tokens": 60_000}, "num_virtual_tokens=60000 must be below the model's context"),
    ):
        with pytest.raises(ValueError, match=said):
            adapted(base, "prompt", **arguments)
    for arguments, said in (
        ({"mode": "lora", "num_virtual_tokens": 3}, "num_virtual_tokens=3 has no effect in the mode 'lora'"),
        ({"mode": "prompt", "use_dora": True}, "use_dora=True has no effect in the mode 'prompt'"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            AdapterArguments(**arguments)
    assert SCHEME.tokens
