"""Requests of random length and depth, and what `generate` gives for each of them alone."""

import random

import torch
from recurrent_models import random_ids

from memreason_hf.serving.batching import GenerationRequest
from memreason_hf.serving.batching.requests import GENERATION_FIELDS
from modeling_recurrent.arguments_recurrent import DEPTH_ARGUMENTS


_FOR_GENERATE = (*GENERATION_FIELDS, *DEPTH_ARGUMENTS, "depth_schedule", "state_seed", "generation_config")


def random_requests(count, calls, longest_prompt=9, most_tokens=8, **fields):
    """`count` requests that take `calls` (dictionaries of depth arguments) in turns."""
    return [
        GenerationRequest(
            random_ids(random.randint(1, longest_prompt)).tolist(),
            max_new_tokens=random.randint(1, most_tokens),
            **fields,
            **calls[index % len(calls)],
        )
        for index in range(count)
    ]


def alone(model, request):
    """(new tokens, their recurrences) of a request in `generate`, alone."""
    given = {name: getattr(request, name) for name in _FOR_GENERATE if getattr(request, name) is not None}
    counts = given.get("num_recurrences")
    if counts is not None and not isinstance(counts, int):
        given["num_recurrences"] = torch.as_tensor(counts)[None]
    if request.seed is not None:
        torch.manual_seed(request.seed)
    output = model.generate(torch.tensor([request.prompt_ids]), return_dict_in_generate=True, **given)
    return output.sequences[0, len(request.prompt_ids) :].tolist(), output.num_recurrences[0].tolist()


def batched(batcher, requests):
    """(new tokens, their recurrences) of requests in a batcher, in their order."""
    outputs = batcher.generate_batch(requests, progress_bar=False)
    assert all(output.error is None for output in outputs.values())
    return [(output.generated_tokens, output.num_recurrences) for output in outputs.values()]


def token_depths(most, factor=7919):
    """A `depth_schedule`: the depth of a token follows from its id and its place, from 1 to `most`."""
    return lambda ids: (ids * factor + torch.arange(ids.shape[1])) % most + 1
