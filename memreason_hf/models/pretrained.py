"""Reading a saved model by the name that a flag or recipe gives, with errors that name the field."""

import time
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from memreason_hf.adapters.base_files import weight_files
from memreason_hf.checks import check_choice
from memreason_hf.messages import first_line
from memreason_hf.models.json_files import check_json_files
from memreason_hf.repositories import check_downloads, check_source, hub_errors, remote_code_error


__all__ = ["check_source", "first_line", "read_model", "reading_error", "torch_dtype"]

# What the library raises for weights that are damaged, and for values of config.json or of an index of shards that it
# does not check.
_ODD_WEIGHTS = (EOFError, RuntimeError)
_ODD_FILES = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, TypeError)


def torch_dtype(name: str) -> torch.dtype | str:
    """
    The dtype that a flag names; `"auto"` is returned as it is.

    Raises:
        ValueError: no dtype of weights has the name.
    """
    check_choice("dtype", name, ("auto", "float32", "bfloat16", "float16", "float64"))
    return name if name == "auto" else getattr(torch, name)


def read_model(
    name: str, field: str, *, trust_remote_code: bool = False, revision: str | None = None, **kwargs
) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    """
    A causal language model, and the problems that `from_pretrained` reports with its weights.

    The library initialises missing weights at random and goes on, so callers must look at the problems.

    Args:
        name: a folder, or a name on the Hub.
        field: what messages call `name`, for example `"model.path"`.
        trust_remote_code: run Python code that comes with the model. Without it such a model is refused; the library
            is never left to ask on standard input.
        revision: a branch, tag or commit on the Hub.
        kwargs: for `from_pretrained`.

    Returns:
        The model, and the names of weights by kind of problem, sorted: `{"missing_keys": ["lm_head.weight"]}`.

    Raises:
        ValueError: the weights cannot be read, the model needs remote code, or it is not a causal language model.
        OSError: it cannot be downloaded, or there are no weights.
    """
    check_json_files(name, field)
    begun = time.time()
    try:
        with hub_errors(name, field, revision):
            model, info = _read(name, field, trust_remote_code=trust_remote_code, revision=revision, **kwargs)
    finally:
        # A file that was damaged on the way is often the reason why the weights cannot be read.
        check_downloads(weight_files(name, revision).values(), begun, f"{field}={name!r}")
    return model, {kind: sorted(map(str, names)) for kind, names in info.items() if names}


def _read(name, field, **kwargs):
    try:
        return AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **kwargs)
    except SafetensorError as error:
        raise ValueError(
            f"{field}={name!r}: the weights cannot be read, the file may be cut off ({error})."
        ) from error
    except RecursionError as error:  # a RuntimeError
        raise reading_error(name, field, error) from error
    except UnpicklingError as error:
        raise ValueError(
            f"{field}={name!r}: its weights hold Python objects other than tensors, or are damaged. Reading such "
            "objects could run code of others, so they are refused. Use a copy with safetensors."
        ) from error
    except torch.OutOfMemoryError:
        raise
    except _ODD_WEIGHTS as error:
        if "ignore_mismatched_sizes" in str(error):
            raise ValueError(
                f"{field}={name!r}: the weights do not belong to config.json: some have other sizes than it says. The "
                "report above lists both."
            ) from error
        raise ValueError(
            f"{field}={name!r}: the weights cannot be read, a file is cut off or does not belong to config.json "
            f"({first_line(error)})."
        ) from error
    except _ODD_FILES as error:
        kind = type(error).__name__
        raise ValueError(
            f"{field}={name!r}: the library cannot make a model of its config and weights ({kind}: "
            f"{first_line(error)}). A file is damaged, or a value of config.json cannot be used here."
        ) from error
    except ValueError as error:
        raise reading_error(name, field, error) from error


def reading_error(name: str, field: str, error: BaseException) -> ValueError:
    """A one-line error for an exception of the library while it reads a config, a tokenizer or a model."""
    if "trust_remote_code" in str(error):
        return remote_code_error(name, field)
    if isinstance(error, RecursionError):
        return ValueError(f"{field}={name!r}: its JSON files are nested too deeply to be read.")
    return ValueError(f"{field}={name!r} cannot be read ({first_line(error)}).")
