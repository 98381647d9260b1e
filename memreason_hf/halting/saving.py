"""A calibrated threshold in the config of a model: in its folder, or in a copy."""

import json
import shutil
from pathlib import Path

from memreason_hf.evaluation.results import write_results
from memreason_hf.files import check_folder, is_temporary, read_json, whole_file, whole_folder
from modeling_recurrent import RecurrentDepthConfig
from modeling_recurrent.arguments_recurrent import DEPTH_ARGUMENTS
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA


CALIBRATION_FILE = "calibration.json"
CALIBRATION_KEY = "halting_calibration"


def config_fields(results: dict) -> dict:
    """
    The fields of the config that make the model halt as a calibration chose, with how they were found.

    Args:
        results: a document of kind `"calibration"`.

    Raises:
        ValueError: it found no safe threshold.
    """
    chosen, settings, promise = results["chosen"], results["settings"], results["promise"]
    if chosen is None:
        raise ValueError("The calibration found no safe threshold, so there is none to write into a config.")
    criterion = HALTING_CRITERIA[chosen["criterion"]]
    own = set(criterion.__dataclass_fields__)
    threshold = chosen["threshold"]
    fields = {
        "halting_criterion": chosen["criterion"],
        **{name: value for name, value in settings["parameters"].items() if name in own},
        criterion.threshold: int(threshold) if criterion.threshold == "argmax_patience" else threshold,
        **{name: settings[name] for name in ("halting_granularity", "min_recurrences", "max_recurrences")},
    }
    record = {
        **{name: promise[name] for name in ("risk", "unit", "loss", "method", "confidence", "by_group")},
        "reference": results["reference"]["num_recurrences"],
        "task": results["data"]["task"],
        "num_rows": results["data"]["num_rows"],
        "mean_loss": chosen["loss"],
        "mean_recurrences": chosen["recurrences"],
        "created": results["created"],
        "fields": dict(fields),
    }
    return {**fields, CALIBRATION_KEY: record}


def check_calibratable(folder: str | Path, field: str) -> Path:
    """
    Checks, before anything is computed, that the config in a folder can be given a threshold.

    Args:
        field: what messages call the flag that asks for it.

    Raises:
        ValueError: the folder holds no model of this package, or its `generation_config.json` sets a depth, which
            would win over the config's.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(
            f"{field}: model={str(folder)!r} is no folder on this machine. Download the model first, and pass its "
            "folder."
        )
    if not (path / "config.json").is_file():
        raise ValueError(
            f"{field}: model={str(folder)!r} has no config.json to write thresholds into. Merge an adapter into its "
            "base first."
        )
    model_type = read_json(path / "config.json").get("model_type")
    if model_type != RecurrentDepthConfig.model_type:
        raise ValueError(f"{field}: model={str(folder)!r} is of type {model_type!r}, which does not halt.")
    if (path / "generation_config.json").is_file():
        content = read_json(path / "generation_config.json")
        given = [name for name in DEPTH_ARGUMENTS if content.get(name) is not None]
        if given:
            raise ValueError(
                f"{field}: {path / 'generation_config.json'} sets {given[0]}={content[given[0]]!r}, which would win "
                "over the calibrated config in generate. Remove it from that file."
            )
    return path


def write_fields(folder: Path, fields: dict) -> None:
    """
    Sets fields in the `config.json` of a folder. All other entries stay as they are.

    Raises:
        StrictDataclassError: the config refuses a value.
    """
    path = Path(folder) / "config.json"
    content = {**read_json(path), **fields}
    RecurrentDepthConfig.from_dict(dict(content))
    with whole_file(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def calibrate_in_place(folder: Path, results: dict) -> None:
    """Writes the results and then the fields of a calibration into the folder of a model."""
    fields = config_fields(results)
    write_results(Path(folder) / CALIBRATION_FILE, results, overwrite=True)
    write_fields(folder, fields)


def save_calibrated(source: Path, target: Path, results: dict, *, overwrite: bool = False, finish=None) -> None:
    """
    Copies the files of a model, and calibrates the copy, which appears whole or not at all.

    Folders in `source`, such as checkpoints and data, are not copied.

    Args:
        finish: called with the folder before it appears, for example to write its card.

    Raises:
        FileExistsError: `target` is not empty and `overwrite` is false.
        ValueError: the calibration found no safe threshold, or `target` is `source`.
    """
    config_fields(results)
    check_apart(source, target, overwrite=overwrite)
    with whole_folder(target, overwrite=overwrite) as staged:
        for path in sorted(Path(source).iterdir()):
            if path.is_file() and not is_temporary(path.name):
                shutil.copyfile(path, staged / path.name)
        calibrate_in_place(staged, results)
        if finish is not None:
            finish(staged)


def check_apart(source: str | Path, target: str | Path, *, overwrite: bool) -> None:
    """Checks that a copy can be written: see `save_calibrated` for the errors."""
    source, target = Path(source), Path(target)
    if target.absolute().resolve() in (source.resolve(), *source.resolve().parents):
        raise ValueError(
            f"save_to={str(target)!r} is or holds the model's own folder. Pass another one, or --in_place."
        )
    check_folder(target, overwrite=overwrite)


__all__ = [
    "CALIBRATION_FILE",
    "CALIBRATION_KEY",
    "calibrate_in_place",
    "check_apart",
    "check_calibratable",
    "config_fields",
    "save_calibrated",
    "write_fields",
]
