"""Cards of models and adapters: what they are, how they are loaded, made, trained and measured, and their limits."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from memreason_hf.hub.cards.folders import ModelFolder
from memreason_hf.hub.cards.markdown import code, is_hub_name, number, plain
from memreason_hf.hub.cards.origin import Base, describe_adapter, describe_conversion, find_base, find_licence
from memreason_hf.hub.cards.rendering import check_languages, check_licence, licence_sentence, render
from memreason_hf.hub.cards.results import results_sections
from memreason_hf.hub.cards.steps import describe_marks, describe_steps, read_saved_scheme, steps_limit
from memreason_hf.hub.cards.training import describe_data, evaluation_lines, hub_datasets, recipe_table
from modeling_recurrent.card_recurrent import (
    CARD_MARK,
    LIMITS,
    LOOP_PAPER,
    STEPS_PAPER,
    TAG,
    WHAT_IT_IS,
    describe_architecture,
    loading_lines,
    task_of,
)


PACKAGE = "memreason-hf"
STEPS_TAG = "memory-reason-steps"


def make_model_card(
    path: Path,
    name: str,
    *,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    language: str | list[str] | None = None,
    base_model: str | None = None,
    datasets: list[str] | None = None,
    tags: list[str] | None = None,
    is_published: bool = False,
) -> ModelCard:
    """
    The card of a model or of an adapter. `make_card` explains the arguments.

    Args:
        path (`Path`): Its folder.
        name (`str`): Its name on the Hub, or that of its folder.
        is_published (`bool`): Whether it goes to the Hub now, which can be asked about the base.
    """
    folder = ModelFolder(path)
    base = find_base(folder, base_model)
    given = {"license": check_licence(license), "license_name": license_name, "license_link": license_link}
    given = {key: value for key, value in given.items() if value is not None}
    licence = given or find_licence(base, ask_hub=is_published)
    datasets = check_datasets(datasets) or hub_datasets(folder.data)
    sections = results_sections(folder)
    entries = [entry for section in sections for entry in section.entries]
    data = ModelCardData(
        **licence,
        language=check_languages(language),
        library_name="peft" if folder.is_adapter else "transformers",
        pipeline_tag="text-generation" if folder.is_adapter else task_of(folder.auto_class),
        tags=_tags(folder, tags) or None,
        base_model=base.name if base else None,
        base_model_relation=base.relation if base and base.name else None,
        datasets=datasets or None,
        metrics=sorted({entry.metric_type for entry in entries}) or None,
        model_name=name.rpartition("/")[2] if entries else None,
        eval_results=entries or None,
    )
    return render(
        ModelCard,
        data,
        "model",
        mark=CARD_MARK,
        title=plain(name.rpartition("/")[2]),
        summary=_summary(folder),
        facts=_facts(folder),
        remarks=_remarks(folder),
        uses=_uses(folder, name, base),
        base=_base(folder, base),
        data=describe_data(folder.data, datasets if not hub_datasets(folder.data) else None),
        recipe=recipe_table(folder),
        evaluations=evaluation_lines(folder),
        results=sections,
        limits=_limits(folder, base, bool(sections)),
        licence=licence_sentence(licence, of_base=not given),
        citations=_citations(folder),
        versions=_versions(folder),
    )


def check_datasets(names: str | list[str] | None) -> list[str]:
    """
    Names of data sets on the Hub, as a list.

    Raises:
        ValueError: one of them is not the name of a repository.
    """
    names = [names] if isinstance(names, str) else list(names or ())
    for name in names:
        if not is_hub_name(name):
            raise ValueError(f"datasets={name!r} is not the name of a repository. Pass owner/name, as on the Hub.")
    return names


def _tags(folder, more):
    tags = [TAG] if folder.is_recurrent else []
    tags += [STEPS_TAG] if folder.step_scheme else []
    if folder.is_adapter and folder.adapter.get("peft_type") == "LORA":
        tags.append("lora")
    return list(dict.fromkeys([*tags, *(more or ())]))


def _summary(folder):
    if folder.is_adapter:
        kind = "a recurrent-depth model" if folder.is_recurrent else "a causal language model"
        if not folder.is_recurrent and folder.model_type:
            kind = f"a causal language model of type {code(folder.model_type)}"
        return f"An adapter for {kind}.{_steps_of(folder)}"
    if folder.is_recurrent:
        what = WHAT_IT_IS
    else:
        what = f"A language model of type {code(folder.model_type or 'transformers')}, as in transformers."
    return what + _steps_of(folder)


def _steps_of(folder):
    scheme = read_saved_scheme(folder.step_scheme)
    return "" if scheme is None else f" {describe_steps(scheme)}"


def _facts(folder):
    if folder.is_adapter:
        facts = describe_adapter(folder)
    elif folder.recurrent_config is not None:
        facts = describe_architecture(folder.recurrent_config, folder.num_parameters, folder.generation_config)
    else:
        facts = [("Parameters", number(folder.num_parameters))] if folder.num_parameters else []
        names = {"num_hidden_layers": "Layers", "hidden_size": "Width", "vocab_size": "Rows of the vocabulary"}
        facts += [
            (title, number(folder.config[field]))
            for field, title in names.items()
            if isinstance(folder.config.get(field), int)
        ]
    dtype = folder.config.get("dtype")
    if isinstance(dtype, str):
        facts.append(("Weights in", f"{code(dtype)}"))
    scheme = read_saved_scheme(folder.step_scheme)
    if scheme is not None and (marks := describe_marks(scheme)) is not None:
        facts.append(("Marks of steps", marks))
    if folder.step_attention:
        facts.append(("Attention between steps", f"sparse, {code(folder.step_attention)}"))
    return facts


def _remarks(folder):
    quantised = folder.config.get("quantization_config")
    if isinstance(quantised, dict) and quantised.get("quant_method"):
        return [f"The weights are quantised ({plain(quantised['quant_method'])})."]
    return []


def _uses(folder, name, base):
    if folder.is_adapter:
        where = f'"{name}"' if base is None or base.name else f'"{name}", base="{_BASE_FOLDER}"'
        code = f"from memreason_hf.adapters.modes import load_adapter\nmodel, tokenizer = load_adapter({where})"
        said = "" if base is None or base.name else f" `{_BASE_FOLDER}` is the folder of its base."
        return [(f"With the package {PACKAGE}, which extends the base for the new tokens:{said}", code)]
    loads = {"auto_class": folder.auto_class, "tokenizer": folder.has_tokenizer}
    if not folder.is_recurrent:
        return [("With transformers:", loading_lines(name, remote=False, package=False, **loads))]
    return [
        (f"With the package {PACKAGE}:", loading_lines(name, remote=False, **loads)),
        (
            "Without it, by the code that is saved with the weights, which is Apache-2.0:",
            loading_lines(name, remote=True, **loads),
        ),
    ]


_BASE_FOLDER = "base_model"


def _base(folder, base: Base | None):
    if folder.record is not None and not folder.is_adapter:
        return describe_conversion(folder.record, base)
    if base is None:
        return []
    commit = f" at commit {code(base.commit[:12])}" if base.commit and base.name and base.folder is None else ""
    verb = {"adapter": "The adapter was trained on", "quantized": "Quantised from"}.get(
        base.relation, "Trained on from"
    )
    paragraphs = [f"{verb} {base.shown}{commit}."]
    if folder.is_adapter and folder.note.get("base", {}).get("weights"):
        paragraphs.append(
            "Digests of the weight files of the base are saved with the adapter, and another base is refused."
        )
    return paragraphs


def _limits(folder, base, has_results):
    limits = list(LIMITS) if folder.is_recurrent else []
    if folder.record is not None and folder.record["kind"] == "conversion" and not folder.fingerprint:
        limits.append(
            "It was converted and not trained since: recurrences after the first have not been trained to be of use."
        )
    if folder.is_adapter and base is not None and not base.name:
        limits.append("The base is not on the Hub under a name that is known: whoever loads the adapter needs it.")
    if folder.data.get("kind") == "chains":
        limits.append("It knows the entities and relations of its training data only, and no natural language.")
    scheme = read_saved_scheme(folder.step_scheme)
    if scheme is not None and (limit := steps_limit(scheme)) is not None:
        limits.append(limit)
    if not has_results:
        limits.append("It has not been evaluated here: no results are saved with it.")
    return limits


def _citations(folder):
    return [LOOP_PAPER, STEPS_PAPER] if folder.is_recurrent else [STEPS_PAPER, LOOP_PAPER]


def _versions(folder):
    """The libraries that saved the files, where they say so."""
    found = {"transformers": folder.config.get("transformers_version"), "peft": folder.adapter.get("peft_version")}
    return " and ".join(f"{name} {plain(value)}" for name, value in found.items() if isinstance(value, str))
