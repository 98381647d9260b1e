"""
The private methods and attributes of other libraries that the package uses: each of them is listed here, and exists.

They may change with any release, so setup.py caps the libraries at the releases that were tried.
"""

import ast
import importlib
import inspect
import re
import textwrap

import pytest
from huggingface_hub import AsyncInferenceClient
from paths import ROOT
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, Trainer
from transformers.utils import PushToHubMixin


# By owner: for a method, the parameters that it is called or overridden with; None for an attribute.
HOOKS = {
    Trainer: {
        # Overridden.
        "_save_checkpoint": ("model", "trial"),
        "_clip_grad_norm": ("model",),
        "_get_grad_norm": ("model", "grad_norm"),
        "_issue_warnings_after_load": ("load_result",),
        "_save": ("output_dir", "state_dict"),
        "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
        "_load_optimizer_and_scheduler": ("checkpoint",),
        "_load_rng_state": ("checkpoint",),
        # Called.
        "_save_optimizer_and_scheduler": ("output_dir",),
        "_save_scaler": ("output_dir",),
        "_save_rng_state": ("output_dir",),
        "_push_from_checkpoint": ("checkpoint_folder",),
        "_finish_current_push": (),
        "_evaluate": ("trial", "ignore_keys_for_eval"),
        "_determine_best_metric": ("metrics", "trial"),
    },
    PushToHubMixin: {"_upload_modified_files": ("working_dir", "repo_id", "files_timestamps")},
    BaseTunerLayer: {"_get_embed_scale": ()},
    GenerationMixin: {"_validate_generation_mode": ("generation_mode", "generation_config")},
    PreTrainedModel: {"_is_stateful": None},
    PreTrainedConfig: {"_attn_implementation": None},
    AsyncInferenceClient: {"_get_async_client": ()},
}
# Private parameters of public methods.
KEYWORDS = {(Trainer.save_model, "_internal_call")}
FOLDERS = ("training", "adapters", "steps")
FILES = [
    ROOT / "memreason_hf" / "patches.py",
    ROOT / "memreason_hf" / "chat" / "endpoint.py",
    ROOT / "modeling_recurrent" / "card_recurrent.py",
    *(path for folder in FOLDERS for path in sorted((ROOT / "memreason_hf" / folder).rglob("*.py"))),
]


# The methods of `generate` that the model overrides or calls, with all their parameters but `self`.
GENERATION = {
    "_get_candidate_generator": "generation_config input_ids inputs_tensor logits_processor model_kwargs "
    "assistant_model target_tokenizer assistant_tokenizer",
    "_get_logits_processor": "generation_config input_ids_seq_length encoder_input_ids prefix_allowed_tokens_fn "
    "logits_processor device model_kwargs negative_prompt_ids negative_prompt_attention_mask",
    "_prefill": "input_ids generation_config model_kwargs is_first_iteration",
    "_prepare_cache_for_generation": "generation_config model_kwargs generation_mode batch_size max_cache_length",
    "_prepare_generation_config": "generation_config kwargs",
    "_sample": "input_ids logits_processor stopping_criteria generation_config synced_gpus streamer model_kwargs",
    "_update_model_kwargs_for_generation": "outputs model_kwargs is_encoder_decoder num_new_tokens",
    "_validate_generated_length": "generation_config input_ids_length has_default_max_length",
    "_validate_generation_mode": "generation_mode generation_config generation_mode_kwargs",
    "_validate_model_kwargs": "model_kwargs",
}


# ---- What is listed exists ----


@pytest.mark.parametrize(
    "owner, name, parameters",
    [(owner, name, parameters) for owner, hooks in HOOKS.items() for name, parameters in hooks.items()],
    ids=lambda value: value.__name__ if isinstance(value, type) else value if isinstance(value, str) else "",
)
def test_a_hook_exists_with_the_parameters_that_are_used(owner, name, parameters):
    assert hasattr(owner, name)
    if parameters is not None:
        _, *present = inspect.signature(getattr(owner, name)).parameters.values()
        assert tuple(item.name for item in present[: len(parameters)]) == parameters
        # What comes after them can be left out, but for arguments that the library passes itself.
        rest = [item.name for item in present[len(parameters) :] if item.default is item.empty]
        assert rest == (["generation_mode_kwargs"] if name == "_validate_generation_mode" else [])


def test_private_parameters_exist():
    for method, name in KEYWORDS:
        assert name in inspect.signature(method).parameters


# ---- What is used is listed ----


def is_private(name):
    # Python itself gives every abstract class an `_abc_impl`; `_replace` is a public method of named tuples.
    return name.startswith("_") and not name.endswith("__") and name not in ("_", "_abc_impl", "_replace")


def is_own(cls):
    return cls.__module__.split(".")[0] in ("memreason_hf", "modeling_recurrent")


def own_private_names(cls):
    """What the package's classes of this hierarchy define, or assign to `self`, under private names."""
    names = set()
    for parent in filter(is_own, cls.__mro__):
        names |= {name for name in vars(parent) if is_private(name)}
        names |= assigned_private_names(parent)
    return names


def assigned_private_names(cls):
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and ast.unparse(node.value) == "self"
        and is_private(node.attr)
    }


def foreign_owner(cls, name):
    """The library's class of this hierarchy that defines a name."""
    return next((parent for parent in cls.__mro__ if not is_own(parent) and name in vars(parent)), None)


def used_in_class(node, cls):
    """(owner, name) of the private members of other libraries that a class of the package overrides or calls."""
    own = own_private_names(cls)
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and is_private(item.name) and foreign_owner(cls, item.name):
            yield foreign_owner(cls, item.name), item.name
    for item in ast.walk(node):
        if isinstance(item, ast.Attribute) and is_private(item.attr):
            base = ast.unparse(item.value)
            if base == "super()" or (base == "self" and item.attr not in own):
                owner = foreign_owner(cls, item.attr)
                if base == "self" or owner:
                    yield owner, item.attr


def used_in(path):
    """(owner or None, name) of everything private in a file that the file, or its class, does not define."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = {item.name for item in ast.walk(tree) if isinstance(item, ast.FunctionDef | ast.ClassDef)}
    defined |= {item.id for item in ast.walk(tree) if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store)}
    classes = [item for item in tree.body if isinstance(item, ast.ClassDef)]
    for item in classes:
        yield from used_in_class(item, getattr(module, item.name))
    for item in ast.walk(tree):
        if isinstance(item, ast.Attribute) and is_private(item.attr):
            base = ast.unparse(item.value)
            if base not in ("self", "super()", "cls") and item.attr not in defined:
                yield None, item.attr
        elif isinstance(item, ast.keyword) and item.arg and is_private(item.arg):
            yield None, item.arg
        elif isinstance(item, ast.Call) and ast.unparse(item.func) in ("override", "remove_override"):
            name = ast.unparse(item.args[1]).strip("'\"")
            if is_private(name):
                yield None, name
        elif isinstance(item, ast.ImportFrom):
            for alias in item.names:
                if is_private(alias.name) or re.search(r"\._", item.module or ""):
                    yield None, f"{item.module}.{alias.name}"


def test_every_private_member_that_is_used_is_listed_and_no_other():
    used = {pair for path in FILES for pair in used_in(path)}
    listed = {(owner, name) for owner, hooks in HOOKS.items() for name in hooks}
    names = {name for _, name in listed} | {name for _, name in KEYWORDS}
    assert {(owner, name) for owner, name in used if (owner, name) not in listed and name not in names} == set()
    assert names - {name for _, name in used} == set(), "listed, but not used any more"
    # A name of the Trainer is one of the Trainer's, not just one that another class has.
    assert {name for owner, name in used if owner is Trainer} == set(HOOKS[Trainer])


def test_the_methods_of_generate_that_the_model_uses_are_listed_and_unchanged():
    """Other private names of the model's classes, such as `_supports_sdpa`, are what every model declares."""
    files = sorted((ROOT / "modeling_recurrent").glob("*.py"))
    used = {name for path in files for _, name in used_in(path) if name in vars(GenerationMixin)}
    assert used == set(GENERATION)
    for name, parameters in GENERATION.items():
        _, *present = inspect.signature(getattr(GenerationMixin, name)).parameters
        assert present == parameters.split(), name


def own_subclasses():
    found = []
    for path in FILES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        module = importlib.import_module(name)
        classes = [cls for cls in vars(module).values() if isinstance(cls, type) and cls.__module__ == name]
        found += [cls for cls in classes if not all(is_own(parent) for parent in cls.__mro__[:-1])]
    return found


@pytest.mark.parametrize("cls", own_subclasses(), ids=lambda cls: cls.__name__)
def test_no_private_name_of_ours_hides_one_of_a_parent(cls):
    """Instance attributes count, too: they stand in the source of the parent alone."""
    listed = {name for hooks in HOOKS.values() for name in hooks}
    for parent in cls.__mro__:
        if not is_own(parent) and parent.__module__.split(".")[0] in ("transformers", "peft", "accelerate", "torch"):
            names = {name for name in vars(parent) if is_private(name)} | assigned_private_names(parent)
            assert own_private_names(cls) & names <= listed


@pytest.mark.parametrize("cls", own_subclasses(), ids=lambda cls: cls.__name__)
def test_overridden_methods_take_the_parameters_of_the_parent(cls):
    for name, method in vars(cls).items():
        parent = foreign_owner(cls, name)
        if parent is None or not inspect.isfunction(method) or name.startswith("__"):
            continue
        expected = list(inspect.signature(getattr(parent, name)).parameters.values())
        present = inspect.signature(method).parameters
        kinds = {item.kind for item in present.values()}
        for item in expected:
            taken = item.name in present or inspect.Parameter.VAR_KEYWORD in kinds
            assert taken or item.kind in (item.VAR_KEYWORD, item.VAR_POSITIONAL), f"{cls.__name__}.{name}: {item}"


def test_the_parent_plans_a_run_by_seven_numbers():
    """What `ScheduledTrainer.set_initial_training_values` returns."""
    source = ast.parse(textwrap.dedent(inspect.getsource(Trainer.set_initial_training_values)))
    returned = [node.value for node in ast.walk(source) if isinstance(node, ast.Return)]
    assert [len(value.elts) for value in returned] == [7]
    assert ast.unparse(returned[0].elts[0]) == "num_train_epochs" and ast.unparse(returned[0].elts[-1]) == "max_steps"


def test_the_search_sees_hooks(tmp_path):
    """A control."""
    source = """
class Sample(Trainer):
    def _save(self): return super()._load_rng_state() or self._own or self._wrap_model or self._nowhere
"""
    namespace = {"Trainer": Trainer, "__name__": "memreason_hf.sample"}
    path = tmp_path / "sample.py"
    path.write_text(source)
    exec(compile(source, str(path), "exec"), namespace)
    cls = namespace["Sample"]
    cls._own = 1
    own = {"_own", "_save"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "own_private_names", lambda cls: own)
        found = set(used_in_class(ast.parse(source).body[0], cls))
    assert found == {(Trainer, "_save"), (Trainer, "_load_rng_state"), (Trainer, "_wrap_model"), (None, "_nowhere")}
