"""Malformed calls of a model: arguments of `forward` and `generate`, and what the cache and the heads take."""

import math
import random
from pathlib import Path

import torch
from malformed_cases import (
    NO_VALUE,
    Case,
    Strange,
    misspelt,
    show,
    some,
    wrong_bools,
    wrong_choices,
    wrong_floats,
    wrong_ints,
)
from recurrent_models import VOCAB, random_ids, tiny_config, tiny_model
from transformers import DynamicCache

from modeling_recurrent import (
    RecurrentDepthCache,
    RecurrentDepthForCausalLM,
    RecurrentDepthForQuestionAnswering,
    RecurrentDepthForSequenceClassification,
    RecurrentDepthForTokenClassification,
    RecurrentDepthStaticCache,
)
from modeling_recurrent.arguments_recurrent import OWN_ARGUMENTS


BATCH, LENGTH = 2, 5
THRESHOLDS = ("kl", "entropy", "confidence", "margin", "state_difference", "acceleration")
CRITERIA = [*THRESHOLDS, "argmax_stability", "kl_entropy"]
NAN, INF = math.nan, math.inf


def _tensor(*shape, low=1, high=4):
    return torch.randint(low, high, shape)


def wrong_depths():
    """Wrong values of the depth arguments of a call, by name, with the other arguments that they need."""
    counts = [
        *wrong_ints(1, optional=True),
        torch.tensor([1.5, 2.0]),
        torch.tensor([3, -2]),
        _tensor(3),
        _tensor(2, 4),
    ]
    counts += [_tensor(2, 5, 1), torch.tensor([NAN, 1.0]), torch.tensor([True, False]), torch.tensor([2.0, 3.0]) + 1j]
    thresholds = {
        **{f"{name}_threshold": name for name in THRESHOLDS},
        "argmax_patience": "argmax_stability",
    }
    wrong = [("num_recurrences", value, {}) for value in [*counts, 10**9, 10**18]]
    rule = {"halting_criterion": "state_difference"}
    wrong += [("max_recurrences", value, rule) for value in [*counts, 10**9, 10**18]]
    wrong += [("min_recurrences", value, rule) for value in [*wrong_ints(1, optional=True), 10**9, 13]]
    wrong += [("halting_criterion", value, {}) for value in wrong_choices(CRITERIA, optional=True)]
    wrong += [("halting_granularity", value, rule) for value in wrong_choices(["sequence"], optional=True)]
    for name, criterion in thresholds.items():
        bounds = {"high": 1} if name == "confidence_threshold" else {}
        values = wrong_ints(1, optional=True) if name == "argmax_patience" else wrong_floats(optional=True, **bounds)
        wrong += [(name, value, {"halting_criterion": criterion}) for value in values]
        # Without its criterion, a threshold would be ignored.
        wrong.append((name, 2 if name == "argmax_patience" else 0.5, {}))
        other = "entropy" if criterion != "entropy" else "kl"
        wrong.append((name, 2 if name == "argmax_patience" else 0.5, {"halting_criterion": other}))
    wrong += [("cache_recurrences", value, {}) for value in wrong_choices(["last"], optional=True)]
    wrong += [("state_seed", value, {}) for value in ("three", 2.5, NAN, [1])]
    return wrong


def wrong_inputs():
    """Wrong values of the other arguments of `forward`, with the other arguments that they need."""
    ids = random_ids(BATCH, LENGTH)
    embeds = torch.randn(BATCH, LENGTH, 32)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    holes = mask.clone()
    holes[0, 2] = 0
    wrong = [
        ("input_ids", ids[0], {}),
        ("input_ids", ids[None], {}),
        ("input_ids", ids.float(), {}),
        ("input_ids", ids.bool(), {}),
        ("input_ids", ids.tolist(), {}),
        ("input_ids", "text", {}),
        ("input_ids", 5, {}),
        ("input_ids", None, {}),
        ("input_ids", ids + VOCAB, {}),
        ("input_ids", ids - VOCAB, {}),
        ("input_ids", -ids, {}),
        ("input_ids", ids[:, :0], {}),
        ("input_ids", ids[:0], {}),
        ("inputs_embeds", embeds, {"input_ids": ids}),
        ("inputs_embeds", embeds[..., :16], {"input_ids": None}),
        ("inputs_embeds", embeds[0], {"input_ids": None}),
        ("inputs_embeds", embeds.long(), {"input_ids": None}),
        ("inputs_embeds", "text", {"input_ids": None}),
        ("attention_mask", mask[:1], {}),
        ("attention_mask", mask[:, :3], {}),
        ("attention_mask", mask[0], {}),
        ("attention_mask", torch.ones(BATCH, LENGTH + 3), {}),
        ("attention_mask", mask.tolist(), {}),
        ("attention_mask", "text", {}),
        ("attention_mask", mask * 2, {}),
        ("attention_mask", -mask, {}),
        ("attention_mask", mask * NAN, {}),
        ("attention_mask", mask * 0.5, {}),
        ("attention_mask", mask[None], {}),
        ("position_ids", torch.arange(LENGTH).float()[None], {}),
        ("position_ids", torch.arange(LENGTH + 2)[None], {}),
        ("position_ids", torch.arange(LENGTH)[None] - 3, {}),
        ("position_ids", torch.arange(LENGTH)[None] + 10**6, {}),
        ("position_ids", torch.arange(LENGTH).expand(3, -1), {}),
        ("position_ids", torch.arange(LENGTH), {}),
        ("position_ids", [0, 1, 2, 3, 4], {}),
        ("position_ids", "text", {}),
        ("labels", ids[:, :3], {}),
        ("labels", ids[:1], {}),
        ("labels", ids + VOCAB, {}),
        ("labels", ids - VOCAB - 200, {}),
        ("labels", ids.float(), {}),
        ("labels", ids.tolist(), {}),
        ("labels", "text", {}),
        ("past_key_values", DynamicCache(), {"halting_criterion": "state_difference"}),
        ("past_key_values", "text", {}),
        ("past_key_values", ((torch.zeros(1), torch.zeros(1)),), {}),
        ("past_key_values", [], {}),
        ("logits_to_keep", -1, {}),
        ("logits_to_keep", "all", {}),
        ("logits_to_keep", 2.5, {}),
        ("logits_to_keep", torch.tensor([99]), {}),
        ("logits_to_keep", torch.tensor([0.5]), {}),
        *[("use_cache", value, {}) for value in wrong_bools(optional=True)],
        ("recurrences_to_show", 2, {"on_recurrence": print}),
        ("recurrences_to_show", [0], {"on_recurrence": print}),
        ("recurrences_to_show", ["one"], {"on_recurrence": print}),
        ("recurrences_to_show", [1], {}),
        ("on_recurrence", 5, {}),
        ("on_recurrence", "print", {}),
        ("initial_state", embeds[0], {}),
        ("initial_state", embeds[..., :5], {}),
        ("initial_state", embeds[:, :2], {}),
        ("initial_state", "text", {}),
        ("backprop_from", 2, {}),
        ("backprop_from", [0], {}),
        ("backprop_from", ["one"], {}),
        ("output_attentions", "maybe", {}),
        ("output_hidden_states", "maybe", {}),
        ("return_dict", "maybe", {}),
    ]
    return wrong


# Arguments that may have such values after all: a mask of other numbers is one of zeros and ones, some calls have no
# rows, and the library reads any value as true or false.
ALLOWED = {
    "input_ids": lambda value: (
        (isinstance(value, torch.Tensor) and not value.numel())
        or (isinstance(value, torch.Tensor) and value.dtype == torch.bool)
    ),
    "attention_mask": lambda value: isinstance(value, torch.Tensor) and bool((value == 2).any() or value.ndim == 4),
    "position_ids": lambda value: (
        isinstance(value, torch.Tensor)
        and not value.is_floating_point()
        and value.ndim < 3
        and value.shape[-1] == LENGTH
        and len(value.reshape(-1, LENGTH)) == 1
    ),
    "num_recurrences": lambda value: value is None,
    "output_attentions": lambda value: True,
    "output_hidden_states": lambda value: True,
    "return_dict": lambda value: True,
    "backprop_from": lambda value: False,
}
# Other arguments of `generate` belong to the library alone.
WRONG_GENERATE = [
    ("max_new_tokens", -1, {}),
    ("max_new_tokens", 10**12, {}),
    ("cache_implementation", "nonsense", {}),
    ("cache_implementation", "quantized", {}),
    ("cache_implementation", "static", {"halting_criterion": "state_difference"}),
    ("past_key_values", DynamicCache(), {"halting_criterion": "state_difference"}),
    ("past_key_values", "text", {}),
    ("draft_recurrences", 0, {}),
    ("draft_recurrences", 99, {}),
    ("draft_recurrences", -1, {}),
    ("draft_recurrences", "one", {}),
    ("draft_recurrences", 1.5, {}),
    ("draft_recurrences", 1, {"halting_criterion": "state_difference"}),
    ("prefill_chunk_size", 2, {"halting_criterion": "state_difference", "halting_granularity": "sequence"}),
    ("use_cache", False, {"num_beams": 2, "halting_criterion": "kl", "halting_granularity": "sequence"}),
    ("initial_state", torch.zeros(BATCH, LENGTH, 32), {}),
]
GENERATE_ALLOWED = ("past_key_values",)


def fault_of_call(output):
    if not isinstance(output, tuple) and not output.logits.isfinite().all():
        return "logits are not finite"
    if not isinstance(output, tuple) and output.num_recurrences is not None:
        counts = torch.as_tensor(output.num_recurrences)
        if counts.numel() and not (counts.min() >= 1 and counts.max() <= 12):
            return f"recurrences of {counts.min()} to {counts.max()}"
    return None


def fault_of_generation(ids):
    if not isinstance(ids, torch.Tensor) or ids.shape[0] % BATCH or not LENGTH <= ids.shape[1] <= LENGTH + 100:
        return f"returned {show(ids)}"
    return None


def cases(rng: random.Random, world: Path) -> list[Case]:
    torch.manual_seed(rng.getrandbits(30))
    style = rng.choice(["gpt2", "llama"])
    model = tiny_model(style, position_embedding_type="learned", input_injection="add", state_norm="rmsnorm")
    ids = random_ids(BATCH, LENGTH)
    depths, inputs = wrong_depths(), wrong_inputs()
    made = []
    for name, value, rest in [*depths, *inputs]:
        made.append(_forward(model, "model(...)", ids, name, value, rest))
    for name, value, rest in [*some(rng, depths, 90), *WRONG_GENERATE]:
        made.append(_generate(model, ids, name, value, rest))
    made += [
        _generate(model, ids, name, value, rest) for name, value, rest in some(rng, [*inputs[:13], *inputs[18:21]], 14)
    ]
    made += _typos(rng, model, ids)
    return made + _heads(rng) + _caches(model, ids) + _states(model, ids)


def _forward(model, entrance, ids, name, value, rest):
    arguments = {"input_ids": ids, **rest, name: value}

    def run(scratch):
        with torch.no_grad():
            return model(**arguments)

    # The fault is that two are given.
    value = (
        NO_VALUE
        if name in ("attention_mask", "position_ids") or (name == "inputs_embeds" and "input_ids" in rest)
        else value
    )
    allowed = ALLOWED.get(name, lambda value: False)(value)
    label = f"{name}={show(value)}{_with(rest)}"
    return Case(entrance, label, run, _also(name), value, is_wrong=not allowed, fault=fault_of_call)


def _generate(model, ids, name, value, rest):
    arguments = {"input_ids": ids, "max_new_tokens": 3, "do_sample": False, **rest, name: value}

    def run(scratch):
        with torch.no_grad():
            return model.generate(**arguments)

    allowed = name in GENERATE_ALLOWED or ALLOWED.get(name, lambda value: False)(value) or value is None
    allowed = allowed or name in ("output_attentions", "output_hidden_states", "return_dict", "use_cache")
    label = f"{name}={show(value)}{_with(rest)}"
    others = {"max_new_tokens": ("max_length", "max_position_embeddings"), "cache_implementation": ("static cache",)}
    names = (*_also(name), *others.get(name, ()))
    value = NO_VALUE if name in ("initial_state", "max_new_tokens", "attention_mask", "position_ids") else value
    return Case("model.generate(...)", label, run, names, value, is_wrong=not allowed, fault=fault_of_generation)


def _with(rest):
    return "".join(f", {name}={show(value)}" for name, value in rest.items())


def _also(name):
    """What else a message may name."""
    return (name, *{"inputs_embeds": ("input_ids",), "input_ids": ("inputs_embeds",)}.get(name, ()))


def _typos(rng, model, ids):
    made = []
    for name in OWN_ARGUMENTS:
        for spelt in {misspelt(name, rng), misspelt(name, rng)}:
            for entrance, call in (("model(...)", model), ("model.generate(...)", model.generate)):
                arguments = {"input_ids": ids, spelt: 1}

                def run(scratch, call=call, arguments=arguments):
                    with torch.no_grad():
                        return call(**arguments)

                made.append(Case(entrance, f"{spelt}= for {name}", run, (spelt,)))
    return some(rng, made, 40)


def _heads(rng):
    """The models with other heads, whose labels are a matter of the library."""
    sizes = {"num_labels": 3, "hidden_size": 16, "num_attention_heads": 2}
    ids = random_ids(BATCH, LENGTH)
    made = []
    wrong = {
        RecurrentDepthForSequenceClassification: [
            {"num_recurrences": -1},
            {"input_ids": ids + VOCAB},
        ],
        RecurrentDepthForTokenClassification: [
            {"num_recurrences": 0},
            {"input_ids": ids - VOCAB},
        ],
        RecurrentDepthForQuestionAnswering: [
            {"num_recurrences": 1.5},
        ],
    }
    for make, arguments in wrong.items():
        model = make(tiny_config(**sizes)).eval()
        for given in arguments:
            name, value = next(iter(given.items()))
            made.append(_forward(model, make.__name__, given.get("input_ids", ids), name, value, given))
            made[-1].names = (*made[-1].names, *given)
    return made


def _caches(model, ids):
    def continued(scratch, batch=BATCH, mask=None, **rest):
        with torch.no_grad():
            cache = model(ids, use_cache=True).past_key_values
            return model(ids[:batch, :1], past_key_values=cache, attention_mask=mask, **rest)

    def cropped(scratch, length):
        with torch.no_grad():
            cache = model(ids, use_cache=True).past_key_values
            cache.crop(length)
            return cache

    made = [
        Case("model(...)", "a cache of another batch size", lambda s: continued(s, batch=1), ("past_key_values",)),
        Case(
            "model(...)",
            "a mask without the past",
            lambda s: continued(s, mask=torch.ones(BATCH, 1)),
            ("attention_mask",),
            torch.ones(BATCH, 1),
        ),
        Case("RecurrentDepthCache", "no config", lambda s: RecurrentDepthCache(5), ("config",), 5),
        Case("RecurrentDepthCache", "a text for a config", lambda s: RecurrentDepthCache("text"), ("config",), "text"),
    ]
    for value in ("two", 2.5, 10**9, -(10**9)):
        made.append(
            Case(
                "RecurrentDepthCache.crop",
                f"{value!r}",
                lambda s, value=value: cropped(s, value),
                ("crop", "length"),
                value,
                is_wrong=not isinstance(value, int),
            )
        )
    for values in (
        {"max_cache_len": 0},
        {"max_cache_len": -3},
        {"max_cache_len": "long"},
        {"max_cache_len": 4.5},
        {"num_recurrences": 0},
        {"num_recurrences": "deep"},
        {"max_batch_size": -1},
        {"max_batch_size": None},
    ):
        name, value = list(values.items())[-1]
        made.append(
            Case(
                "RecurrentDepthStaticCache",
                f"{values}",
                lambda s, values=values: RecurrentDepthStaticCache(
                    model.config, **{"max_batch_size": 2, "max_cache_len": 4, **values}
                ),
                (name,),
                value,
            )
        )
    return made


def _states(model, ids):
    """Weights that are not finite, and names of models that do not exist."""

    def broken(call, value):
        copy = RecurrentDepthForCausalLM(model.config).eval()
        with torch.no_grad():
            copy.lm_head.weight.fill_(value)
            return call(copy)

    made = []
    for value in (NAN, INF):
        for label, call in (
            ("generate", lambda m: m.generate(ids, max_new_tokens=3, do_sample=False)),
            ("generate with a rule", lambda m: m.generate(ids, max_new_tokens=3, halting_criterion="kl")),
            ("sampling", lambda m: m.generate(ids, max_new_tokens=3, do_sample=True)),
        ):
            made.append(
                Case(
                    "weights",
                    f"{value} in the head, {label}",
                    lambda s, call=call, value=value: broken(call, value),
                    ("logits", "state", "weights", "probability"),
                )
            )
    made.append(Case("RecurrentDepthForCausalLM", "no config", lambda s: RecurrentDepthForCausalLM(5), ("config",), 5))
    made.append(Case("model(...)", "nothing", lambda s: model(), ("input_ids",), NO_VALUE))
    made.append(
        Case(
            "RecurrentDepthForCausalLM",
            "a strange config",
            lambda s: RecurrentDepthForCausalLM(Strange()),
            ("config",),
        )
    )
    return made
