"""What the Hub reads from the metadata of a card, and what it refuses there."""

import re

import yaml


def read_metadata(text: str) -> dict | None:
    """The YAML at the beginning of a card; None where there is none."""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(\r?\n|$)", text, re.DOTALL)
    return yaml.safe_load(match[1]) if match else None


def check_metadata(metadata: dict, repo_type: str) -> list[str]:
    """What the Hub refuses in the metadata of a card."""
    errors = []
    lists = ("tags", "datasets", "metrics", "language", "license", "base_model", "task_categories")
    errors += [
        f'"{key}" must be a string or a list of strings'
        for key in lists
        if key in metadata and not _is_text_or_texts(metadata[key])
    ]
    errors += [
        f'"{key}" must be a string'
        for key in ("library_name", "pipeline_tag", "license_name")
        if key in metadata and not isinstance(metadata[key], str)
    ]
    if repo_type == "space":
        if metadata.get("sdk") not in ("gradio", "streamlit", "docker", "static"):
            errors.append('"sdk" must be one of [gradio, streamlit, docker, static]')
        colors = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
        errors += [
            f'"{key}" must be one of [{", ".join(colors)}]'
            for key in ("colorFrom", "colorTo")
            if metadata.get(key, "red") not in colors
        ]
        if len(str(metadata.get("short_description", ""))) > 60:
            errors.append('"short_description" length must be less than or equal to 60 characters long')
    for index, model in enumerate(metadata.get("model-index") or []):
        errors += [f'"model-index[{index}]{text}' for text in _check_results(model)]
    return errors


def _check_results(model):
    if not isinstance(model, dict) or not isinstance(model.get("name"), str):
        return ['.name" is required']
    errors = []
    for number, result in enumerate(model.get("results") or []):
        place = f".results[{number}]"
        if not isinstance((result.get("task") or {}).get("type"), str):
            errors.append(f'{place}.task.type" is required')
        dataset = result.get("dataset") or {}
        errors += [
            f'{place}.dataset.{key}" is required' for key in ("name", "type") if not isinstance(dataset.get(key), str)
        ]
        if not result.get("metrics"):
            errors.append(f'{place}.metrics" is required')
        for metric in result.get("metrics") or []:
            if not isinstance(metric.get("type"), str) or metric.get("value") is None:
                errors.append(f'{place}.metrics" need a type and a value')
    return errors


def _is_text_or_texts(value):
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
