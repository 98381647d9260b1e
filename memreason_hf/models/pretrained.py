"""Reading a saved model by the name that a flag or recipe gives, with errors that name the field."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from memreason_hf.checks import check_choice


# What the library raises for weights that are damaged, and for values of config.json or of an index of shards that it
# does not check.
_ODD_WEIGHTS = (EOFError, RuntimeError)
_ODD_FILES = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, TypeError)


def check_source(name: str, field: str) -> None:
    """
    Refuses a name that can be neither a folder nor a repository of the Hub, before the library looks for it there.

    Raises:
        FileNotFoundError: with `field`, as the user knows it.
    """
    folder = Path(name)
    # A name of the form owner/name is looked for on the Hub, unless a folder `owner` exists here.
    on_the_hub = name.count("/") == 1 and not name.startswith((".", "~", "/")) and not folder.parent.exists()
    if not folder.is_dir() and not on_the_hub:
        raise FileNotFoundError(f"{field}={name!r}: no such folder. Pass a folder, or a name on the Hub (owner/name).")


def torch_dtype(name: str) -> torch.dtype | str:
    """
    The dtype that a flag names; `"auto"` is returned as it is.

    Raises:
        ValueError: no dtype of weights has the name.
    """
    check_choice("dtype", name, ("auto", "float32", "bfloat16", "float16", "float64"))
    return name if name == "auto" else getattr(torch, name)


def read_model(
    name: str, field: str, *, trust_remote_code: bool = False, **kwargs
) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    """
    A causal language model, and the problems that `from_pretrained` reports with its weights.

    The library initialises missing weights at random and goes on, so callers must look at the problems.

    Args:
        name: a folder, or a name on the Hub.
        field: what messages call `name`, for example `"model.path"`.
        trust_remote_code: run Python code that comes with the model. Without it such a model is refused; the library
            is never left to ask on standard input.
        kwargs: for `from_pretrained`.

    Returns:
        The model, and the names of weights by kind of problem, sorted: `{"missing_keys": ["lm_head.weight"]}`.

    Raises:
        ValueError: the weights cannot be read, the model needs remote code, or it is not a causal language model.
    """
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            name, output_loading_info=True, trust_remote_code=trust_remote_code, **kwargs
        )
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
    except OSError as error:
        raise OSError(f"{field}={name!r} cannot be read ({first_line(error)}).") from error
    return model, {kind: sorted(map(str, names)) for kind, names in info.items() if names}


def reading_error(name: str, field: str, error: BaseException) -> ValueError:
    """A one-line error for an exception of the library while it reads a config, a tokenizer or a model."""
    if "trust_remote_code" in str(error):
        return ValueError(
            f"{field}={name!r} needs Python code that comes with it. Read that code, and pass --trust_remote_code "
            "only if you trust its authors."
        )
    if isinstance(error, RecursionError):
        return ValueError(f"{field}={name!r}: its JSON files are nested too deeply to be read.")
    return ValueError(f"{field}={name!r} cannot be read ({first_line(error)}).")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without its final stop; the type of an error without a message."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().removesuffix(".") if lines else type(error).__name__
