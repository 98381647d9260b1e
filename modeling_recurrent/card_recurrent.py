"""
The card of a recurrent-depth model on the Hub, as far as the model itself can say what it is.

`push_to_hub` writes it in place of the library's form, whose blanks nobody has filled in. A card that a person wrote
stays. It says nothing about data, training or results, which a model in memory does not know.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.constants import REPOCARD_NAME
from transformers.utils import PushToHubMixin

from .halting_recurrent import HALTING_CRITERIA, criterion_parameters


# A card with this line may be written again.
CARD_MARK = "<!-- Written by a program. Remove this line, and the card is kept as you leave it. -->"
TAG = "recurrent-depth"
# In cards of transformers' Trainer, which asks to remove it from a card that was completed.
_TRAINER_MARK = "This model card has been generated automatically according to the information the Trainer had access"
_LIBRARY_DESCRIPTION = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been "
    "automatically generated."
)
_PEFT_FOOT = "### Framework versions\n\n- PEFT "

LOOP_PAPER = """\
@misc{loop_think_generalize,
  title = {Loop, Think \\& Generalize},
  year = {2026},
  eprint = {2604.07822},
  archivePrefix = {arXiv},
  url = {https://arxiv.org/abs/2604.07822}
}"""
STEPS_PAPER = """\
@misc{disentangling_memory_and_reasoning,
  title = {Disentangling Memory and Reasoning Ability in Large Language Models},
  year = {2024},
  eprint = {2411.13504},
  archivePrefix = {arXiv},
  url = {https://arxiv.org/abs/2411.13504}
}"""

WHAT_IT_IS = (
    "A decoder with recurrent depth: the layers of its core are applied again and again, with the same weights. How "
    "often can be chosen in every call, for each row or token, or decided by a halting criterion."
)
LIMITS = (
    "The depth in the config is a default. Deeper is not always better: measure how the answers change with "
    "`num_recurrences` on your own data.",
    "Continuous batching and vLLM are exact for one recurrence only; other depths raise an error there.",
)
_TASKS = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
}


def task_of(auto_class: str) -> str | None:
    """The Hub's name of the task of an Auto class; `None` for a model without a head."""
    return _TASKS.get(auto_class)


def is_generated(content: str) -> bool:
    """Whether a program wrote a card and nobody has changed it since: this one, transformers or PEFT."""
    if CARD_MARK in content or _TRAINER_MARK in content:
        return True
    try:
        card = ModelCard(content, ignore_metadata_errors=True)
        forms = [ModelCard.from_template(card.data, model_description=text) for text in (_LIBRARY_DESCRIPTION, None)]
    except Exception:  # front matter that a person broke shows as almost any error of YAML and of the card
        return False
    body = card.text.strip()
    return any(
        body.startswith(form.text.strip()) and _is_foot(body.removeprefix(form.text.strip()).strip()) for form in forms
    )


def _is_foot(text):
    """Whether a text is empty, or what PEFT adds below the form."""
    return not text or (text.startswith(_PEFT_FOOT) and len(text.splitlines()) == 3)


def describe_architecture(config, num_parameters: int | None = None, generation_config=None) -> list[tuple[str, str]]:
    """
    What a model is, as names and values in Markdown.

    Args:
        config ([`RecurrentDepthConfig`]): The config of the model.
        num_parameters (`int`, *optional*): Its parameters. Tied weights count once.
        generation_config (`GenerationConfig`, *optional*): The depth that `generate` uses where it names one.
    """
    lines = [] if num_parameters is None else [("Parameters", f"{num_parameters:,}")]
    lines.append(
        (
            "Layers",
            f"{config.num_prelude_layers} before the loop (prelude), {config.num_recurrent_layers} in it, "
            f"{config.num_coda_layers} after it (coda)",
        )
    )
    lines.append(("Blocks", _blocks(config)))
    lines.append(("Width", f"{config.hidden_size:,}, with {config.num_attention_heads} attention heads"))
    lines.append(("Vocabulary", f"{config.vocab_size:,} rows"))
    lines.append(("Between recurrences", _between(config)))
    lines.append(("Recurrences", _recurrences(config)))
    lines.append(("Halting", describe_halting(config, generation_config)))
    return lines


def _blocks(config):
    if config.block_model_type is not None:
        return f"the layers of `{config.block_model_type}`, as transformers computes them"
    mlp = "gated MLP" if config.gated_mlp else "MLP"
    norm = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}[config.norm_type]
    positions = {
        "rope": "rotary positions",
        "learned": "learned positions",
        "sinusoidal": "sinusoidal positions",
        "none": "no positions",
    }[config.position_embedding_type]
    window = f", a window of {config.sliding_window:,} tokens in the loop" if config.sliding_window else ""
    return f"{norm}, {mlp} with `{config.hidden_act}`, {positions}{window}"


def _between(config):
    injection = {
        "none": "the state goes on as it is",
        "add": "the token embedding is added to the state",
        "gate": "a gate for each channel mixes state and token embedding",
        "concat": "a linear layer joins state and token embedding",
    }[config.input_injection]
    norm = {
        "none": "",
        "layernorm": ", followed by a LayerNorm",
        "rmsnorm": ", followed by an RMSNorm",
        "last": ", followed by the last norm of the model",
    }[config.state_norm]
    lora = ""
    if config.recurrence_lora_rank:
        lora = f"; later recurrences have low-rank updates of rank {config.recurrence_lora_rank} of their own"
    return f"{injection}{norm}{lora}"


def _recurrences(config):
    text = f"{config.num_recurrences} by default"
    if config.recurrence_sampling != "fixed":
        limits = [value for value in (config.recurrence_min, config.recurrence_max) if value is not None]
        between = f", from {limits[0]} to {limits[1]}" if len(limits) == 2 else ""
        text += f"; the config asks for `{config.recurrence_sampling}` draws in training{between}"
    return text


def describe_halting(config, generation_config=None) -> str:
    """How the depth of a call without depth arguments is decided, in Markdown."""

    def value(name):
        own = getattr(generation_config, name, None)
        return getattr(config, name) if own is None else own

    criterion = value("halting_criterion")
    if criterion not in HALTING_CRITERIA:
        return f"fixed depth of {value('num_recurrences')}, unless a call names a criterion"
    names = [name for name in criterion_parameters() if name in HALTING_CRITERIA[criterion].__dataclass_fields__]
    settings = "".join(f", `{name}={value(name):g}`" for name in names)
    unit = "every token" if value("halting_granularity") == "token" else "every sequence"
    return (
        f"`{criterion}`{settings}; {unit} decides for itself, from recurrence {value('min_recurrences')} to "
        f"{value('max_recurrences')}"
    )


def loading_lines(
    name: str, auto_class: str = "AutoModelForCausalLM", *, tokenizer: bool, remote: bool, package: bool = True
) -> str:
    """
    The Python lines that load a model.

    Args:
        name (`str`): Its name on the Hub, or its folder.
        auto_class (`str`): The Auto class of its head.
        tokenizer (`bool`): Whether a tokenizer is saved with it.
        remote (`bool`): Whether the code that is saved with the model is used.
        package (`bool`): Whether the model needs this code at all.
    """
    classes = f"{auto_class}, AutoTokenizer" if tokenizer else auto_class
    trust = ", trust_remote_code=True" if package and remote else ""
    lines = [f"from transformers import {classes}"]
    lines += ["import modeling_recurrent"] if package and not remote else []
    lines += [f'tokenizer = AutoTokenizer.from_pretrained("{name}")'] if tokenizer else []
    lines.append(f'model = {auto_class}.from_pretrained("{name}"{trust})')
    return "\n".join(lines)


def model_card(model, name: str) -> ModelCard:
    """
    The card of a model in memory.

    Args:
        model ([`RecurrentDepthPreTrainedModel`]): The model.
        name (`str`): Its name on the Hub.
    """
    auto_class = getattr(model, "_auto_class", None) or "AutoModelForCausalLM"
    data = ModelCardData(
        library_name="transformers", pipeline_tag=task_of(auto_class), tags=[*(model.model_tags or ()), TAG]
    )
    facts = describe_architecture(model.config, model.num_parameters(), getattr(model, "generation_config", None))
    parts = [
        CARD_MARK,
        f"# {name.rpartition('/')[2]}",
        WHAT_IT_IS,
        "\n".join(f"- {title}: {value}" for title, value in facts),
        "## Use",
        f"```python\n{loading_lines(name, auto_class, tokenizer=False, remote=True)}\n```",
        "With the package memreason-hf installed, `import modeling_recurrent` takes the place of "
        "`trust_remote_code=True`.",
        "## Limits",
        "\n".join(f"- {limit}" for limit in LIMITS),
        "## Citation",
        f"```bibtex\n{LOOP_PAPER}\n```",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


class CardMixin(PushToHubMixin):
    """
    A model whose `push_to_hub` writes `model_card` where the library would write its form.

    Cards that a person wrote, on the Hub or in the folder that is pushed, are kept.
    """

    _own_card: str | None = None

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Saves as the parent does."""
        # The library overwrites the card of the folder before it uploads it.
        self._own_card = read_card(save_directory) if kwargs.get("push_to_hub") else None
        try:
            return super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self._own_card = None

    def make_card(self, folder, repo_id: str) -> Any:
        """The card of the model that was saved in `folder`."""
        return model_card(self, repo_id)

    def _upload_modified_files(self, working_dir, repo_id, files_timestamps, *args, **kwargs):
        written = read_card(working_dir)
        if written is None or is_generated(written):
            own = self._own_card
            content = str(self.make_card(working_dir, repo_id)) if own is None or is_generated(own) else own
            Path(working_dir, REPOCARD_NAME).write_text(content, encoding="utf-8", errors="surrogateescape")
        return super()._upload_modified_files(working_dir, repo_id, files_timestamps, *args, **kwargs)


def keep_card(folder, staged) -> None:
    """Puts the card of a folder into the one that is about to take its place, if a person wrote it."""
    written = read_card(folder)
    if written is not None and not is_generated(written):
        Path(staged, REPOCARD_NAME).write_bytes(Path(folder, REPOCARD_NAME).read_bytes())


def read_card(folder) -> str | None:
    """The card of a folder; `None` if it has none."""
    path = Path(folder) / REPOCARD_NAME
    # A card in another encoding must not keep the model beside it from being saved.
    return path.read_text(encoding="utf-8", errors="surrogateescape") if path.is_file() else None
