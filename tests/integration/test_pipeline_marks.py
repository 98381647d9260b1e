"""The marks of steps in what `pipeline("text-generation")` returns: the switch, and what it changes."""

import re

import pytest
import torch
from small_tokenizers import MODELS, byte_level
from step_texts import deep_recurrent
from transformers import AutoTokenizer, pipeline

from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer, read_scheme, step_token_ids


SCHEME = StepScheme(1, 2)
PROMPT = "Question: Is it the step?\n"


@pytest.fixture(params=["recurrent", "llama"])
def folder(request, tmp_path):
    """A model that writes the mark of a memory step now and then, and its tokenizer with marks that are hidden."""
    torch.manual_seed(0)
    tokenizer = byte_level()
    make = deep_recurrent if request.param == "recurrent" else MODELS[request.param]
    model = make(len(tokenizer), tie_word_embeddings=False) if request.param == "recurrent" else make(len(tokenizer))
    extend_tokenizer(tokenizer, SCHEME, model)
    with torch.no_grad():
        model.lm_head.weight.normal_()
        model.lm_head.weight[step_token_ids(tokenizer)["memory"]] *= 4
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def written(folder, **arguments):
    """The new ids, and the new text by default."""
    generator = pipeline("text-generation", model=folder, device="cpu")
    call = {"max_new_tokens": 24, "do_sample": False, **arguments}
    (ids,) = generator(PROMPT, return_tensors=True, **call)
    (text,) = generator(PROMPT, return_full_text=False, **call)
    return ids["generated_token_ids"], text["generated_text"]


def test_one_switch_that_is_saved_with_the_tokenizer(folder):
    ids, hidden = written(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    marks = [token for token in tokenizer.convert_ids_to_tokens(ids) if token in SCHEME.tokens]
    assert marks and not any(token in hidden for token in SCHEME.tokens)

    extend_tokenizer(tokenizer, read_scheme(tokenizer), visible_marks=True)
    tokenizer.save_pretrained(folder)
    same, visible = written(folder)
    assert same == ids
    assert re.findall("|".join(SCHEME.tokens), visible) == marks
    without = visible
    for token in set(marks):
        without = without.replace(token, "")
    assert without == hidden
