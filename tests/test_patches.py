"""Every patch of a foreign object: it works, it can be undone, a copy is patched on its own, and no file hides one."""

import ast
import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from paths import ROOT
from peft.tuners.trainable_tokens import TrainableTokensLayer
from small_adapters import adapted, save_base
from small_tokenizers import byte_level, llama
from torch import nn
from transformers import DynamicCache, LlamaForCausalLM

from memreason_hf import patches
from memreason_hf.adapters.rows import TrainedRowsLayer


def doubled(obj, value):
    return 2 * type(obj).shout(obj, value)


class Crowd:
    def __init__(self, size):
        self.size = size

    def shout(self, value):
        return self.size * value


def test_an_override_is_of_one_object():
    first, second = Crowd(3), Crowd(3)
    patches.override(first, "shout", doubled)
    assert (first.shout(5), second.shout(5)) == (30, 15)
    for other in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        other.size = 1
        # The method of the copy sees the copy.
        assert (other.shout(5), first.shout(5)) == (10, 30)
        patches.remove_override(other, "shout")
        assert (other.shout(5), first.shout(5)) == (5, 30)
        assert vars(other) == {"size": 1}
    patches.remove_override(first, "shout")
    patches.remove_override(first, "shout")
    assert first.shout(5) == 15 and vars(first) == vars(second)
    with pytest.raises(AttributeError, match="Crowd has no method whisper"):
        patches.override(first, "whisper", doubled)


def test_an_override_of_a_model_is_no_module_and_no_weight():
    model = llama(20)
    before = set(model.state_dict()), [name for name, _ in model.named_modules()]
    patches.override(model, "_validate_generation_mode", doubled)
    assert (set(model.state_dict()), [name for name, _ in model.named_modules()]) == before
    patches.remove_override(model, "_validate_generation_mode")
    assert model._validate_generation_mode.__func__ is LlamaForCausalLM._validate_generation_mode


@pytest.mark.parametrize("make", [DynamicCache, lambda: nn.Linear(2, 2), lambda: Crowd(1)])
def test_what_is_attached_goes_with_a_copy(make):
    obj = make()
    before = set(vars(obj))
    assert patches.attached(obj, "ids") is None
    patches.detach(obj, "ids")
    patches.attach(obj, "ids", [1])
    other = copy.deepcopy(obj)
    patches.attached(other, "ids").append(2)
    assert (patches.attached(obj, "ids"), patches.attached(other, "ids")) == ([1], [1, 2])
    assert set(vars(obj)) == before | {"_memreason_ids"}
    patches.detach(obj, "ids")
    assert patches.attached(obj, "ids") is None and set(vars(obj)) == before


def test_the_class_of_a_layer_and_back(tmp_path):
    model, _ = adapted(save_base(tmp_path / "base"), "tokens")
    layer = model.token_layers()[0]
    assert type(layer) is TrainedRowsLayer
    state, attributes = layer.state_dict(), dict(vars(layer))
    patches.restore_class(layer, TrainableTokensLayer)
    assert type(layer) is TrainableTokensLayer
    patches.swap_class(layer, TrainedRowsLayer)
    assert type(layer) is TrainedRowsLayer and vars(layer) == attributes
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in state.items())
    with pytest.raises(TypeError, match="TrainedRowsLayer is not a subclass of Linear"):
        patches.swap_class(nn.Linear(2, 2), TrainedRowsLayer)
    with pytest.raises(TypeError, match="must be an instance of a subclass of TrainableTokensLayer, got Linear"):
        patches.restore_class(nn.Linear(2, 2), TrainableTokensLayer)


class Packing(nn.Linear):
    """Like `Linear4bit` of bitsandbytes; tests/integration tries the real one."""

    def __init__(self, supported, packed):
        super().__init__(2, 2)
        self.support_avx512bf16_for_cpu = supported
        self.weight.quant_state = SimpleNamespace(packing_format_for_cpu=packed)

    def state_dict(self, *args, **kwargs):
        self.weight.quant_state.packing_format_for_cpu = False
        return super().state_dict(*args, **kwargs)


def test_weights_in_4_bits_stay_unpacked():
    model = nn.ModuleList([nn.Linear(2, 2), Packing(True, False), Packing(True, True), Packing(False, False)])
    undo = patches.keep_unpacked(model)
    assert [layer.support_avx512bf16_for_cpu for layer in model[1:]] == [False] * 3
    assert not any(layer.weight.quant_state.packing_format_for_cpu for layer in model[1:])
    assert not hasattr(model[0], "support_avx512bf16_for_cpu")
    undo()
    assert [layer.support_avx512bf16_for_cpu for layer in model[1:]] == [True, True, False]


def test_names_of_tokens():
    tokenizer, other = byte_level(), byte_level()
    known = list(tokenizer.SPECIAL_TOKENS_ATTRIBUTES)
    patches.name_tokens(tokenizer, ["memory_token", "bos_token", "memory_token"])
    patches.name_tokens(tokenizer, ["memory_token"])
    assert [*known, "memory_token"] == tokenizer.SPECIAL_TOKENS_ATTRIBUTES
    assert other.SPECIAL_TOKENS_ATTRIBUTES == type(tokenizer).SPECIAL_TOKENS_ATTRIBUTES == known
    tokenizer.add_special_tokens({"memory_token": "<memory>"})
    assert tokenizer.memory_token_id == len(other) == tokenizer.convert_tokens_to_ids("<memory>")
    patches.unname_tokens(tokenizer)
    patches.unname_tokens(tokenizer)
    assert known == tokenizer.SPECIAL_TOKENS_ATTRIBUTES
    assert not hasattr(tokenizer, "memory_token")


def test_special_tokens_become_ordinary(tmp_path):
    tokenizer, other = byte_level(), byte_level()
    for each in (tokenizer, other):
        patches.name_tokens(each, ["memory_token"])
        each.add_special_tokens({"memory_token": "<memory>", "extra_special_tokens": ["<memory>", "<kept>"]})
    ids = tokenizer.convert_tokens_to_ids(["<memory>", "<kept>"])
    patches.show_tokens(tokenizer, ["<memory>", "<not in the vocabulary>"])
    for each in (tokenizer, type(tokenizer).from_pretrained(tokenizer.save_pretrained(tmp_path) and tmp_path)):
        assert each.decode(ids, skip_special_tokens=True) == "<memory>"
        assert each.convert_tokens_to_ids(["<memory>", "<kept>"]) == ids
        assert "<kept>" in each.all_special_tokens and "<memory>" not in each.all_special_tokens
        assert not hasattr(each, "memory_token")
    assert other.decode(ids, skip_special_tokens=True) == "" and other.memory_token == "<memory>"
    # The way back.
    patches.name_tokens(tokenizer, ["memory_token"])
    tokenizer.add_special_tokens({"memory_token": "<memory>"})
    assert tokenizer.decode(ids, skip_special_tokens=True) == "" and tokenizer.memory_token_id == ids[0]


# ---- No patch outside of the module ----

# What the package calls objects of other libraries.
FOREIGN = {"model", "decoder", "cache", "layer", "module", "tokenizer", "optimizer", "obj"}


def patch_like(tree):
    """(line, object) of: a class that is swapped, a private attribute of another object, setattr, MethodType."""
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if not isinstance(target, ast.Attribute):
                continue
            owner = ast.unparse(target.value)
            private = target.attr.startswith("_") and not target.attr.startswith("__")
            if target.attr in ("__class__", "SPECIAL_TOKENS_ATTRIBUTES") or (private and owner not in ("self", "cls")):
                yield node.lineno, owner
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            owner = ast.unparse(node.args[0])
            if owner.split(".")[-1] in FOREIGN:
                yield node.lineno, owner
        if isinstance(node, ast.Name) and node.id == "MethodType":
            yield node.lineno, "MethodType"


def test_no_other_module_patches_a_foreign_object():
    hidden = []
    for path in sorted((ROOT / "memreason_hf").rglob("*.py")):
        if path.name != "patches.py":
            for line, owner in patch_like(ast.parse(path.read_text(encoding="utf-8"))):
                hidden.append(f"{path.relative_to(ROOT)}, line {line}: {owner}")
    assert not hidden


def test_the_search_sees_patches():
    """A control: patches.py itself, and each kind of patch."""
    own = list(patch_like(ast.parse((ROOT / "memreason_hf" / "patches.py").read_text(encoding="utf-8"))))
    assert {owner for _, owner in own} == {"obj", "layer", "tokenizer"}
    source = "a.__class__ = B\nmodel._x = 1\nself._x = 1\nsetattr(cache, 'f', 1)\nMethodType(f, a)\nmodel.x = 1"
    assert sorted(line for line, _ in patch_like(ast.parse(source))) == [1, 2, 4, 5]
