"""Malformed recipes: YAML that is none, unknown sections and keys, and values of the wrong type or size."""

import json
import random
import typing
from pathlib import Path

from malformed_cases import NO_VALUE, Case, command, misspelt, show, some
from malformed_flags import LIBRARY_FIELDS
from ruamel.yaml import YAML

from memreason_hf.command_line.values import is_enum, union_arms
from memreason_hf.commands import evaluate, finetune, generate, perplexity, train


# Texts that are no recipe; the file is named in every message.
NOT_RECIPES = {
    "nonsense": b"\x00\x01\xff\xfe" * 20,
    "a list": b"- 1\n- 2\n",
    "a text": b"hello\n",
    "a number": b"5\n",
    "tabs": b"model:\n\thidden_size: 5\n",
    "no colon": b"model\n  hidden_size 5\n",
    "an open bracket": b"model: {hidden_size: 5\n",
    "an open quote": b'model: {style: "gpt2}\n',
    "a key twice": b"model: {hidden_size: 5, hidden_size: 6}\n",
    "a section twice": b"model: {hidden_size: 5}\nmodel: {hidden_size: 6}\n",
    "a section that is a list": b"model: [1, 2]\n",
    "a section that is a text": b"model: gpt2\n",
    "two documents": b"model: {}\n---\nmodel: {}\n",
    "an anchor of itself": b"model: &a\n  b: *a\n",
    "an unknown anchor": b"model: *nothing\n",
    "billion laughs": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (c + 1, c + 1, b",".join([b"*%c" % c] * 9)) for c in range(97, 106)),
    "deeply nested": b"model: " + b"[" * 50_000,
    "deeply nested mappings": b"".join(b" " * depth + b"a:\n" for depth in range(2000)),
    "a tag that runs code": b"model: !!python/object/apply:os.system ['true']\n",
    "UTF-16": "model: {}".encode("utf-16"),
    "a date": b"model: {hidden_size: 2024-13-45}\n",
    "a number of many digits": b"model: {hidden_size: " + b"9" * 5000 + b"}\n",
    "a key that is a list": b"model: {[1, 2]: 3}\n",
    "a section that is a number": b"5: {a: 1}\n",
    "very long": b"# " + b"x" * 10_000_000,
    "merge keys": b"model: {<<: 5}\n",
}
WRONG = {
    int: ["three", 2.5, "5", [1], {"a": 1}, True, -1, 2**70, float("nan")],
    float: ["fast", "1e-4", [1], {"a": 1}, True, float("nan"), float("inf")],
    bool: ["yes", "off", 1, 0.5, [], "true"],
    str: [5, 2.5, True, [1, 2], {"a": 1}],
    dict: ["text", 5, [1], True],
    list: ["text_", 5, {"a": 1}, True],
}
# Fields whose value says little by itself.
# Fields that take -1: seeds, and what stands for "none" or "not given".
FREE = (
    "seed",
    "max_steps",
    "weight_decay",
    "data_seed",
    "state_seed",
    "recurrence_seed",
    "warmup_steps",
    "pad_token_id",
)


def cases(rng: random.Random, world: Path) -> list[Case]:
    recipes = {}
    for name, module in (("chains", train), ("text", train), ("finetune", finetune)):
        content = YAML(typ="safe").load((world / "recipes" / f"{name}.yaml").read_text())
        content["training"]["output_dir"] = "run"
        recipes[name] = (module, content)
    made = []
    for label, text in NOT_RECIPES.items():
        for module in some(rng, [train, finetune, generate, evaluate, perplexity], 2):
            made.append(_text_case(module, label, text))
    for name, (module, content) in recipes.items():
        made += _sections(rng, name, module, content)
        made += _values(rng, name, module, content)
    return made + _names()


def _text_case(module, label, text):
    def run(scratch):
        (scratch / "recipe.yaml").write_bytes(text)
        return command(module.main, "recipe.yaml")

    verb = module.__name__.rpartition(".")[2]
    return Case(f"memreason {verb} RECIPE", label, run, ("recipe.yaml",))


def _recipe_case(name, module, content, label, names, value=NO_VALUE, is_wrong=True):
    text = _yaml(content)

    def run(scratch):
        (scratch / "recipe.yaml").write_text(text)
        return command(module.main, "recipe.yaml")

    return Case(f"recipe of {name}", label, run, tuple(map(str, names)), value, is_wrong)


def _yaml(content):
    return json.dumps(content).replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf")


def _sections(rng, name, module, content):
    """Unknown and missing sections, and misspelt keys."""
    made = []
    for section in content:
        typo = misspelt(section, rng)
        changed = {key if key != section else typo: values for key, values in content.items()}
        made.append(_recipe_case(name, module, changed, f"{typo}: for {section}:", [typo]))
        without = {key: values for key, values in content.items() if key != section}
        needed = section == "data" or (section == "model" and name == "finetune")
        names = [section, "path", "files", "output_dir", "architecture", "max_steps", "stages"]
        made.append(_recipe_case(name, module, without, f"no {section}", names, is_wrong=needed))
        # Training would run with the defaults of a large model.
        if not needed:
            made.pop()
        keys = [key for key in content[section] if len(key) > 4]
        for key in some(rng, keys, 6):
            typo = misspelt(key, rng)
            values = {k if k != key else typo: v for k, v in content[section].items()}
            made.append(
                _recipe_case(name, module, {**content, section: values}, f"{section}.{typo} for {key}", [typo])
            )
        for wrong in (5, "text", [1]):
            label = f"{section}: {wrong!r}"
            made.append(_recipe_case(name, module, {**content, section: wrong}, label, [section]))
    made.append(_recipe_case(name, module, {**content, "nonsense": {}}, "an empty unknown section", ["nonsense"]))
    return made


def _values(rng, name, module, content):
    made = []
    for section in module.make_parser().sections.values():
        hints = list(section.hints.items())
        if not hints or section.recipe_key not in content:
            continue
        for field, hint in some(rng, hints, 24):
            for value, is_wrong in _wrong_values(rng, field, hint):
                # Beyond the type, the library's own fields are its own matter.
                is_own = (
                    field not in LIBRARY_FIELDS or not isinstance(value, int | float | str) or value in (True, False)
                )
                is_wrong = is_wrong and (is_own or _is_of_another_type(value, hint))
                changed = {**content, section.recipe_key: {**content[section.recipe_key], field: value}}
                label = f"{section.recipe_key}.{field}: {show(value)}"
                made.append(_recipe_case(name, module, changed, label, [field], value, is_wrong))
    return made


def _is_of_another_type(value, hint):
    plain = union_arms(hint)
    kinds = tuple(kind for kind in (int, float, bool, str) if kind in plain)
    return not isinstance(value, (*kinds, int) if float in kinds else kinds)


def _wrong_values(rng, field, hint):
    """Up to 2 values, and whether each must be refused."""
    arms = [arm for arm in union_arms(hint) if arm is not type(None)]
    plain = [typing.get_origin(arm) or arm for arm in arms]
    if any(is_enum(arm) or arm is typing.Literal for arm in plain):
        values = [("nonsense", True), (5, True), ([1], True), ("", True)]
    elif len(set(plain) - {int}) > 1 or typing.Any in plain:
        return []
    else:
        kind = next((arm for arm in plain if arm is not int), int)
        values = [(value, True) for value in WRONG.get(kind, ())]
        if kind is not int and int in plain:
            values = [(value, must) for value, must in values if not isinstance(value, int) or isinstance(value, bool)]
        if kind is int:
            values = [(value, must and not (value == -1 and field in FREE)) for value, must in values]
            values = [(value, must and value != 2**70) for value, must in values]
        if kind is float and field in FREE:
            values = [(value, must and isinstance(value, str | list | dict)) for value, must in values]
    return some(rng, values, 2)


def _names():
    return [
        Case(
            "memreason train",
            f"RECIPE {name!r}",
            lambda scratch, name=name: command(train.main, name),
            (name or "''", "recipe"),
        )
        for name in ("quickstar", "nowhere.yaml", "", "../quickstart", "/dev/null", "/", "finetune_tiny/..")
    ]
