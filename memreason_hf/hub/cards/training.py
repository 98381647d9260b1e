"""How a model was trained: what its run recorded about the data, the recipe and the evaluations on the way."""

import math

from memreason_hf.hub.cards.folders import ModelFolder
from memreason_hf.hub.cards.markdown import LOCAL_FOLDER, code, is_hub_name, last_part, number, plain, table


# Entries of a fingerprint, and what the card calls them. Values that switch something off are left out.
_RECIPE = {
    "training.learning_rate": "learning rate",
    "training.recurrence_learning_rate": "learning rate of what only later recurrences use",
    "training.lr_scheduler_type": "schedule",
    "training.warmup_steps": "warm-up steps",
    "training.optim": "optimizer",
    "training.weight_decay": "weight decay",
    "training.max_grad_norm": "largest gradient norm",
    "training.global_batch_size": "rows of a batch",
    "training.max_tokens": "token budget",
    "training.mixed_precision": "mixed precision",
    "training.seed": "seed",
    "training.supervision": "labels",
    "training.recurrence_loss": "loss at recurrences",
    "training.exit_prior": "prior of the exit gate",
    "training.exit_prior_stop": "probability of leaving of the prior",
    "training.exit_prior_weight": "weight of the distance to the prior",
    "training.recurrence_growth": "growth of the depth",
    "training.first_weight": "weight of the loss after the first recurrence",
    "training.keep_weight": "weight of the term that keeps the first recurrence",
    "training.consistency_weight": "weight of the term for deeper recurrences",
    "model.recurrence_sampling": "depth of a training step",
    "model.recurrence_min": "smallest depth",
    "model.recurrence_max": "largest depth",
    "model.backprop_recurrences": "recurrences with gradients",
    "model.train": "trained part",
    "model.lora_r": "rank of low-rank updates, merged when saved",
    "curriculum.gate": "gate of the curriculum",
    "curriculum.threshold": "accuracy that passes a stage",
    "adapter.mode": "mode of the adapter",
}
_OFF = (None, "none", "no", 0, 0.0, "fixed", "")
_SPEED = ("runtime", "per_second", "epoch", "step", "num_input_tokens_seen", "total_flos")


def describe_data(data: dict, datasets: list[str] | None = None) -> list[str]:
    """
    The training data, as sentences in Markdown.

    Args:
        data (`dict`): What the run recorded.
        datasets (`list[str]`, *optional*): Data sets on the Hub, as the publisher names them.
    """
    lines = []
    if datasets:
        links = ", ".join(f"[{plain(name)}](https://huggingface.co/datasets/{name})" for name in datasets)
        lines.append(f"Data on the Hub: {links}.")
    describe = {"chains": _chains, "text": _text, "questions": _questions}.get(data.get("kind"))
    return lines + ([] if describe is None else describe(data))


def _chains(data):
    lines = [f"Chains of relations from {_folder(data.get('folder'))}."]
    sizes = data.get("config")
    if isinstance(sizes, dict):
        lines.append(
            f"The world has {number(sizes['num_entities'])} entities and {number(sizes['num_relations'])} relations "
            f"(seed {sizes['seed']}). Training chains have {plain(sizes['train_hops'])} hops, test chains "
            f"{plain(sizes['test_hops'])}. All atomic facts are in training."
        )
    return lines + _rows(data.get("rows"))


def _text(data):
    lines = []
    if is_hub_name(data.get("dataset")):
        config = f", configuration {plain(data['dataset_config'])}" if data.get("dataset_config") else ""
        split = f", split {plain(data['split'])}" if data.get("split") else ""
        name = data["dataset"]
        lines.append(f"Text of [{plain(name)}](https://huggingface.co/datasets/{name}){config}{split}.")
    elif data.get("files"):
        names = [last_part(name) for name in data["files"]]
        names = ["local files" if name == LOCAL_FOLDER else name for name in dict.fromkeys(names)]
        more = f" and {len(names) - 5} more files" if len(names) > 5 else ""
        lines.append(f"Text of {', '.join(names[:5])}{more}.")
    if data.get("sequence_length"):
        lines.append(f"Documents are packed into rows of {number(data['sequence_length'])} tokens.")
    return lines + _rows(data.get("rows"))


def _questions(data):
    name = f"{plain(data['name'])}, annotated questions" if data.get("name") else "Annotated questions"
    where = f" from {_folder(data['folder'])}" if data.get("folder") else ""
    lines = [f"{name}{where}: each solution is a list of steps."]
    return lines + _rows(data.get("rows"))


def _folder(name):
    shown = last_part(name) if name else LOCAL_FOLDER
    return shown if shown == LOCAL_FOLDER else f"the folder {shown}"


def _rows(rows):
    if not isinstance(rows, dict) or not rows:
        return []
    counts = ", ".join(f"{number(count)} {plain(split)}" for split, count in rows.items() if isinstance(count, int))
    return [f"Rows: {counts}."] if counts else []


def hub_datasets(data: dict) -> list[str]:
    """The data sets on the Hub that a run recorded."""
    return [data["dataset"]] if is_hub_name(data.get("dataset")) else []


def recipe_table(folder: ModelFolder) -> str | None:
    """The settings of a run as a table; `None` for a model that no run of this package trained."""
    fingerprint, state = folder.fingerprint, folder.state
    rows = [["training steps", number(state["global_step"])]] if state.get("global_step") else []
    if state.get("num_input_tokens_seen"):
        rows.append(["tokens", number(state["num_input_tokens_seen"])])
    for key, title in _RECIPE.items():
        value = fingerprint.get(key)
        if isinstance(value, str | int | float) and not isinstance(value, bool) and value not in _OFF:
            rows.append([title, number(value) if isinstance(value, int | float) else f"{code(value)}"])
    return table(["setting", "value"], rows) if rows else None


def evaluation_lines(folder: ModelFolder) -> str | None:
    """The last evaluation during training, as a table; `None` if there was none."""
    history = [entry for entry in folder.state.get("log_history", []) if any(k.startswith("eval_") for k in entry)]
    if not history:
        return None
    best = folder.state.get("best_global_step")
    loads_best = folder.fingerprint.get("training.load_best_model_at_end") and best
    chosen = next((entry for entry in history if loads_best and entry.get("step") == best), history[-1])
    rows = [
        [plain(name.removeprefix("eval_").replace("_", " ")), number(value)]
        for name, value in chosen.items()
        if name.startswith("eval_") and _is_metric(name, value)
    ]
    title = f"after step {number(chosen['step'])}" if "step" in chosen else "value"
    return table(["held-out rows", title], rows) if rows else None


def _is_metric(name, value):
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and not any(part in name for part in _SPEED)
    )
