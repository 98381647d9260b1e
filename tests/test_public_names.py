"""The names that users import, so that none goes missing unnoticed."""

import subprocess
import sys

import pytest
from paths import ROOT

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


@pytest.mark.parametrize("module", ["memreason_hf", "memreason_hf.data", "data_scripts.build_multi_hop"])
def test_what_is_imported_without_torch(module):
    """Importing torch takes a second, for which `--help` and the builders of data sets should not wait."""
    check = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


def test_the_model_imports_nothing_around_it():
    check = "import sys, modeling_recurrent; sys.exit(any(n.startswith('memreason_hf') for n in sys.modules))"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
