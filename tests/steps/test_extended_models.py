"""The rows of new tokens: sizes, values, dtypes, saving."""

import numpy as np
import pytest
import torch
from small_tokenizers import MODELS, TOKENIZERS, byte_level, llama, recurrent, with_random_rows, word_level
from transformers import AutoModelForCausalLM, AutoTokenizer

from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer


SCHEME = StepScheme(2, 3)


def matrices(model):
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    return {"input": embedding} if head is embedding else {"input": embedding, "output": head}


def snapshot(model):
    return {name: matrix.detach().float().numpy().copy() for name, matrix in matrices(model).items()}


def expected_row(tokenizer, before, word):
    """The mean of the rows of the word's pieces, or else of all rows, computed without the package."""
    try:
        pieces = tokenizer(" " + word, add_special_tokens=False)["input_ids"]
    except Exception:
        pieces = []
    pieces = [piece for piece in pieces if piece != tokenizer.unk_token_id]
    return before[pieces].astype(np.float64).mean(0) if pieces else before.astype(np.float64).mean(0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind_of_tokenizer", TOKENIZERS)
def test_new_rows_are_means_of_their_words(name, tied, kind_of_tokenizer):
    tokenizer = TOKENIZERS[kind_of_tokenizer]()
    size = len(tokenizer)
    model = with_random_rows(MODELS[name](size, tied=tied))
    before = snapshot(model)
    assert len(before) == (1 if tied else 2)
    ids = extend_tokenizer(tokenizer, SCHEME, model)
    after = snapshot(model)
    assert list(after) == list(before)
    assert model.config.vocab_size == len(tokenizer) == size + len(ids)
    for matrix, rows in after.items():
        assert rows.shape[0] == len(tokenizer)
        np.testing.assert_array_equal(rows[:size], before[matrix])
        for token, token_id in zip(SCHEME.tokens, ids):
            expected = expected_row(tokenizer, before[matrix], SCHEME.words[token])
            np.testing.assert_allclose(rows[token_id], expected, rtol=1e-5, atol=1e-6)
    # Where the tokenizer knows the words, the kinds start apart from one another.
    kinds = [after["input"][tokenizer.convert_tokens_to_ids(f"<{kind}_0>")] for kind in ("memory", "reason", "answer")]
    assert not np.allclose(kinds[0], kinds[1]) and not np.allclose(kinds[1], kinds[2])
    logits = model(input_ids=torch.tensor([ids])).logits
    assert logits.shape == (1, len(ids), len(tokenizer)) and logits.isfinite().all()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("padding", [0, 5, 16, 40])
def test_a_padded_matrix_is_never_made_smaller(tied, padding):
    tokenizer = byte_level()
    size = len(tokenizer)
    model = with_random_rows(llama(size + padding, tied=tied))
    before = snapshot(model)
    ids = extend_tokenizer(tokenizer, SCHEME, model)
    after = snapshot(model)
    assert after["input"].shape[0] == max(size + padding, len(tokenizer))
    for matrix, rows in after.items():
        for token, token_id in zip(SCHEME.tokens, ids):
            # Padding rows belong to no token, so they do not count in a mean.
            expected = expected_row(tokenizer, before[matrix][:size], SCHEME.words[token])
            np.testing.assert_allclose(rows[token_id], expected, rtol=1e-5, atol=1e-6)
        untouched = [row for row in range(len(before[matrix])) if row not in ids]
        np.testing.assert_array_equal(rows[untouched], before[matrix][untouched])


def test_words_without_known_pieces_start_from_the_mean_of_all(poisoned_memory):
    for unknown in (True, False):
        tokenizer = word_level(unknown=unknown)
        vocabulary = tokenizer.get_vocab()
        assert "prefix" in vocabulary
        tokenizer = word_level_without("prefix", unknown)
        model = with_random_rows(llama(len(tokenizer) + 3))
        before = snapshot(model)
        size = len(tokenizer)
        extend_tokenizer(tokenizer, SCHEME, model)
        after = snapshot(model)
        for matrix, rows in after.items():
            expected = before[matrix][:size].astype(np.float64).mean(0)
            row = rows[tokenizer.convert_tokens_to_ids("<prefix_0>")]
            np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)
            assert np.isfinite(rows).all()


def word_level_without(word, unknown, elsewhere=()):
    """Consecutive ids, except those of `elsewhere`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [token for token in word_level(unknown).get_vocab() if token != word]
    unk = {"unk_token": "<unk>"} if unknown else {}
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(words)} | dict(elsewhere), **unk))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", **unk)


def test_tokens_that_were_added_elsewhere_get_a_row_too():
    tokenizer = byte_level()
    model = with_random_rows(llama(len(tokenizer)))
    before = snapshot(model)
    tokenizer.add_tokens(["<extra>"])
    extend_tokenizer(tokenizer, SCHEME, model)
    after = snapshot(model)
    for matrix, rows in after.items():
        row = rows[tokenizer.convert_tokens_to_ids("<extra>")]
        np.testing.assert_allclose(row, before[matrix].astype(np.float64).mean(0), rtol=1e-5, atol=1e-6)


def test_the_largest_id_gets_a_row_where_ids_have_gaps():
    tokenizer = word_level_without("prefix", unknown=True, elsewhere={"</s>": 90})
    model = with_random_rows(llama(len(tokenizer) + 1))
    ids = extend_tokenizer(tokenizer, SCHEME, model)
    assert len(tokenizer) < 90 < max(ids)
    assert {matrix.shape[0] for matrix in matrices(model).values()} == {max(ids) + 1}
    assert model(input_ids=torch.tensor([[90, *ids]])).logits.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_calling_twice_changes_nothing(name):
    tokenizer = byte_level()
    model = with_random_rows(MODELS[name](len(tokenizer) + 4))
    ids = extend_tokenizer(tokenizer, SCHEME, model)
    with torch.no_grad():
        for matrix in matrices(model).values():
            matrix[ids] += 1  # as if trained
    before = snapshot(model)
    assert extend_tokenizer(tokenizer, SCHEME, model) == ids
    for matrix, rows in snapshot(model).items():
        np.testing.assert_array_equal(rows, before[matrix])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("padding", [0, 40])
def test_trained_rows_survive_saving_loading_and_extending_again(name, padding, tmp_path):
    tokenizer = byte_level()
    model = with_random_rows(MODELS[name](len(tokenizer) + padding))
    ids = extend_tokenizer(tokenizer, SCHEME, model)
    with torch.no_grad():
        for matrix in matrices(model).values():
            matrix[ids] += 1
    before = snapshot(model)
    model.save_pretrained(tmp_path / "model")
    # With a Qwen2 config in the folder, the library would load any tokenizer as Qwen2's and add its tokens.
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    loaded_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert extend_tokenizer(loaded_tokenizer, SCHEME, loaded) == ids
    for matrix, rows in snapshot(loaded).items():
        np.testing.assert_array_equal(rows, before[matrix])
    ids_ = torch.tensor([ids])
    assert torch.equal(loaded.eval()(input_ids=ids_).logits, model.eval()(input_ids=ids_).logits)


@pytest.mark.parametrize("padding", [0, 40])
def test_a_saved_tokenizer_extends_a_fresh_model_to_the_same_rows(padding, tmp_path):
    """As `load_adapter` does: a fresh base, and the saved tokenizer."""
    tokenizer = byte_level()
    fresh = [with_random_rows(llama(len(tokenizer) + padding)) for _ in range(2)]
    extend_tokenizer(tokenizer, SCHEME, fresh[0])
    tokenizer.save_pretrained(tmp_path)
    extend_tokenizer(AutoTokenizer.from_pretrained(tmp_path), SCHEME, fresh[1])
    first, second = map(snapshot, fresh)
    for matrix, rows in second.items():
        np.testing.assert_array_equal(rows, first[matrix])


@pytest.mark.parametrize("tied", [True, False])
def test_sharded_bf16_checkpoints(tied, tmp_path):
    tokenizer = byte_level()
    size = len(tokenizer)
    model = with_random_rows(llama(size, tied=tied)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base", max_shard_size="8KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="auto")
    before = snapshot(loaded)
    ids = extend_tokenizer(tokenizer, SCHEME, loaded)
    assert {matrix.dtype for matrix in matrices(loaded).values()} == {torch.bfloat16}
    for matrix, rows in snapshot(loaded).items():
        np.testing.assert_array_equal(rows[:size], before[matrix])
        for token, token_id in zip(SCHEME.tokens, ids):
            expected = expected_row(tokenizer, before[matrix], SCHEME.words[token])
            # Rounded once, to the nearest bf16 number.
            rounded = torch.tensor(expected, dtype=torch.float32).to(torch.bfloat16).float().numpy()
            np.testing.assert_allclose(rows[token_id], rounded, rtol=2**-8, atol=0)
            assert (rows[token_id] == rounded).mean() > 0.9
    loaded.save_pretrained(tmp_path / "extended", max_shard_size="8KB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "extended", dtype="auto")
    for matrix, rows in snapshot(again).items():
        np.testing.assert_array_equal(rows, snapshot(loaded)[matrix])


def test_a_head_with_a_bias():
    tokenizer = byte_level()
    size = len(tokenizer)
    model = with_random_rows(llama(size))
    model.lm_head = torch.nn.Linear(16, size, bias=True)
    bias = model.lm_head.bias.detach().clone().numpy()
    ids = extend_tokenizer(tokenizer, SCHEME, model)
    assert model.lm_head.bias.shape == (len(tokenizer),)
    expected = [expected_row(tokenizer, bias, SCHEME.words[token]) for token in SCHEME.tokens]
    np.testing.assert_allclose(model.lm_head.bias[ids].detach().numpy(), expected, rtol=1e-5)


def test_another_scheme_adds_to_the_first():
    tokenizer = byte_level()
    model = with_random_rows(recurrent(len(tokenizer)))
    ids = extend_tokenizer(tokenizer, StepScheme(2, 3), model)
    with torch.no_grad():
        model.get_input_embeddings().weight[ids] += 1
    before = snapshot(model)["input"]
    more = extend_tokenizer(tokenizer, StepScheme(2, 4), model)
    rows = snapshot(model)["input"]
    assert set(ids) < set(more) and len(rows) == len(tokenizer)
    np.testing.assert_array_equal(rows[: len(before)], before)
