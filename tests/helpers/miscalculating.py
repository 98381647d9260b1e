"""A model that writes worked sums with wrong results."""

import torch
from small_tokenizers import byte_level, llama
from step_texts import deep_recurrent
from torch.nn import functional

from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import encode_prompt, extend_tokenizer


SCHEME = StepScheme(1, 1)
QUESTION = "the answer"
WRONG = "<memory> <<12*3={}>>\n<prefix><answer> The answer is: 5</s>"


def miscalculating_model(family):
    """A model that has learned `WRONG` by heart, with many results, none of them right; and its tokenizer."""
    tokenizer = byte_level()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make = {"recurrent": deep_recurrent, "llama": llama}[family]
        model = make(len(tokenizer), hidden_size=32)
    extend_tokenizer(tokenizer, SCHEME, model)
    prompt = encode_prompt(tokenizer, QUESTION)
    results = [result for result in range(10, 100, 11) if result != 36]
    texts = [tokenizer(WRONG.format(result), add_special_tokens=False)["input_ids"] for result in results]
    ids = torch.tensor([prompt + text for text in texts])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(50):
        logits = model(ids).logits[:, len(prompt) - 1 : -1]
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, len(prompt) :].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), tokenizer
