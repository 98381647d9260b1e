"""Trackers of `report_to`: whether their packages are installed, known before anything is loaded or trained."""

import difflib
from collections.abc import Sequence

from transformers.integrations import integration_utils


# Trackers of the library whose function, or package on PyPI, has another name.
_FUNCTIONS = {"azure_ml": "azureml", "comet_ml": "comet", "flyte": "flytekit"}
_PACKAGES = {"azure_ml": "azureml-mlflow", "comet_ml": "comet-ml", "flyte": "flytekit"}


def check_trackers(report_to: str | Sequence[str] | None) -> None:
    """
    Checks that the packages of trackers are installed.

    Args:
        report_to: as in [`~transformers.TrainingArguments`]: names, `"all"` for those that are installed, or `"none"`.

    Raises:
        ValueError: a tracker that the library does not know, or whose package is missing. The message says what to
            install.
    """
    names = [report_to] if isinstance(report_to, str) else list(report_to or ())
    known = integration_utils.INTEGRATION_TO_CALLBACK
    for name in names:
        if name in ("all", "none"):
            continue
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"report_to={name!r} is no tracker of transformers. Use none, all or some of {', '.join(known)}.{hint}"
            )
        # A tracker without such a function is left to its callback.
        is_available = getattr(integration_utils, f"is_{_FUNCTIONS.get(name, name)}_available", None)
        if is_available is not None and not is_available():
            raise ValueError(
                f"report_to={name!r} needs the package {_PACKAGES.get(name, name)}, which is not installed: pip "
                f"install {_PACKAGES.get(name, name)}. Or leave report_to out."
            )
