"""The examples in docstrings that run without a model are right."""

import doctest

import pytest

from memreason_hf import recipes
from memreason_hf.command_line import depth_arguments, model_flags, parser, values


@pytest.mark.parametrize(
    "module", [depth_arguments, model_flags, parser, recipes, values], ids=lambda module: module.__name__
)
def test_examples(module):
    results = doctest.testmod(module)
    assert results.failed == 0 and results.attempted > 0


def test_control_a_wrong_example_fails():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda text: None).failed == 1
