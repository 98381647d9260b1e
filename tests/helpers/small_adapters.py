"""Small saved bases, and adapters with random trainable weights, as after a long training."""

import torch
from small_tokenizers import MODELS, byte_level, with_random_rows
from transformers import AutoModelForCausalLM

from memreason_hf.adapters.modes import AdapterArguments, add_adapter
from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer


SCHEME = StepScheme(2, 3)


def save_base(folder, make="llama", tied=False, padding=0, **kwargs):
    """A random model for `byte_level()`."""
    make = MODELS[make] if isinstance(make, str) else make
    model = make(len(byte_level()) + padding, tied=tied, **kwargs)
    with_random_rows(model, seed=int(torch.randint(2**31, ())))
    model.save_pretrained(folder)
    return folder


def extended(base, scheme=SCHEME, **kwargs):
    """(model, tokenizer, ids of its new tokens)"""
    tokenizer = byte_level()
    model = AutoModelForCausalLM.from_pretrained(base, **kwargs)
    ids = extend_tokenizer(tokenizer, scheme, model)
    return model, tokenizer, ids


def adapted(base, mode, scheme=SCHEME, **arguments):
    model, tokenizer, _ = extended(base, scheme)
    return add_adapter(model, tokenizer, AdapterArguments(mode, **arguments)), tokenizer


def as_if_trained(model, amount=0.3):
    """Changes every trainable weight by random numbers of this standard deviation."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * amount)
    return model.eval()


def some_ids(tokenizer, rows=2, length=24):
    """Random ids with every new token in each row, followed by another token."""
    new = tokenizer.convert_tokens_to_ids(list(SCHEME.tokens))
    ids = torch.randint(0, len(tokenizer), (rows, length))
    return torch.cat((ids, torch.tensor(new).repeat(rows, 1), ids[:, :1]), dim=1)
