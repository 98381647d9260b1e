import re
from importlib.util import find_spec

import pytest
from refusals import refused
from transformers.integrations import integration_utils

from memreason_hf.commands.finetune import main
from memreason_hf.training.runs.arguments import ResumableArguments
from memreason_hf.training.runs.trackers import check_trackers


def test_every_tracker_of_the_library_is_checked(monkeypatch):
    """Each of them, as if nothing were installed. The control: as if everything were."""
    names = list(integration_utils.INTEGRATION_TO_CALLBACK)
    functions = [name for name in vars(integration_utils) if re.fullmatch(r"is_\w+_available", name)]
    for name in functions:
        monkeypatch.setattr(integration_utils, name, lambda: False)
    for name in names:
        with pytest.raises(ValueError, match=f"report_to='{name}' needs the package .* pip install "):
            check_trackers([name])
    for name in functions:
        monkeypatch.setattr(integration_utils, name, lambda: True)
    check_trackers(names)
    for value in (None, [], "none", "all", ["none"]):
        check_trackers(value)


def test_unknown_trackers():
    with pytest.raises(ValueError, match=r"report_to='tensorbord' is no tracker .* Did you mean tensorboard\?"):
        check_trackers(["tensorbord"])


def test_a_missing_tracker_is_one_line_before_anything_is_read(tmp_path, capsys):
    missing = next((name for name in ("trackio", "wandb", "mlflow") if find_spec(name) is None), None)
    if missing is None:
        pytest.skip("all trackers are installed")
    with pytest.raises(ValueError, match=f"report_to='{missing}'"):
        ResumableArguments(output_dir=str(tmp_path), report_to=missing)
    # The data do not exist either, but nobody has looked for them yet.
    line = refused(capsys, main, ["tiny", "--data", str(tmp_path / "none"), "--report_to", missing])
    assert f"report_to='{missing}' needs the package {missing}" in line
