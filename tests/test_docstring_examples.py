"""The examples in docstrings run and print what they say."""

import doctest
import importlib

import pytest
import torch
from paths import ROOT
from small_tokenizers import byte_level, recurrent
from transformers.testing_utils import HfDocTestParser

from memreason_hf.evaluation import results


# Their examples need a dataset or a folder of the user's.
WITHOUT_INPUTS = {
    "memreason_hf.adapters.saving.load_adapter",
    "memreason_hf.training.chains.trainer.RecurrentTrainer",
    "memreason_hf.training.solutions.trainer.FinetuneTrainer",
}


def has_examples(path):
    return any(">>> " in line and "+SKIP" not in line for line in path.read_text(encoding="utf-8").splitlines())


MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("modeling_recurrent", "memreason_hf")
    for path in sorted((ROOT / package).rglob("*.py"))
    if has_examples(path)
]


def examples(module, names):
    finder = doctest.DocTestFinder(parser=HfDocTestParser())
    return [test for test in finder.find(module, module.__name__, extraglobs=names) if test.examples]


def test_there_are_examples():
    assert len(MODULES) >= 30


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_right(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    # An example registers a kind of document, which must not stay.
    monkeypatch.setattr(results, "_KINDS", dict(results._KINDS))
    # The examples name a model and a tokenizer of the reader's as the documentation of transformers does.
    tokenizer = byte_level()
    model = recurrent(len(tokenizer))
    model.generation_config.eos_token_id = None  # texts have the length that is asked for
    names = {"tokenizer": tokenizer, "model": model, "ids": torch.randint(0, 9, (1, 4))}
    found = examples(importlib.import_module(name), names)
    assert found
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in found:
        if test.name not in WITHOUT_INPUTS:
            runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_the_examples_without_inputs_exist():
    modules = [importlib.import_module(name) for name in MODULES]
    names = {test.name for module in modules for test in examples(module, {})}
    assert names >= WITHOUT_INPUTS
