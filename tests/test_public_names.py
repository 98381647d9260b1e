"""The names that users import, so that none goes missing unnoticed."""

import subprocess
import sys

import memreason_hf
import modeling_recurrent


def test_public_names():
    assert modeling_recurrent.__all__ == [
        "RecurrentDepthCache",
        "RecurrentDepthConfig",
        "RecurrentDepthForCausalLM",
        "RecurrentDepthForQuestionAnswering",
        "RecurrentDepthForSequenceClassification",
        "RecurrentDepthForTokenClassification",
        "RecurrentDepthModel",
        "RecurrentDepthStaticCache",
    ]
    for package in (modeling_recurrent, memreason_hf):
        for name in package.__all__:
            assert getattr(package, name).__name__ == name


def test_the_package_is_imported_without_torch():
    check = "import sys, memreason_hf; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_the_model_imports_nothing_around_it():
    check = "import sys, modeling_recurrent; sys.exit(any(n.startswith('memreason_hf') for n in sys.modules))"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
