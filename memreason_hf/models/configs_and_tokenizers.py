"""Reading a config or a tokenizer, without the code that may come with it unless that is allowed."""

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from memreason_hf.messages import describe_field_error
from memreason_hf.model_files import TOKENIZER_JSON
from memreason_hf.models.json_files import check_json_files
from memreason_hf.models.pretrained import reading_error
from memreason_hf.repositories import hub_errors


def read_config(
    name: str, field: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """
    The config of a model.

    Args:
        name: a folder, or a name on the Hub.
        field: what messages call `name`, for example `"model.path"`.
        revision: a branch, tag or commit on the Hub.
        trust_remote_code: run Python code that comes with the model. Without it such a model is refused.

    Raises:
        ValueError: the config cannot be read, or needs code of its own.
        OSError: there is none, or it cannot be downloaded.
    """
    check_json_files(name, field)
    try:
        with hub_errors(name, field, revision):
            return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except StrictDataclassError as error:
        raise ValueError(f"{field}={name!r}: config.json: {describe_field_error(error)}") from error
    except (ValueError, RecursionError) as error:
        raise reading_error(name, field, error) from error


def read_tokenizer(
    name: str,
    field: str,
    *,
    folder: Path | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """
    The tokenizer of a model.

    Args:
        name, field, revision, trust_remote_code: as for `read_config`.
        folder: where its files are, if they have been downloaded.

    Raises:
        ValueError: the tokenizer cannot be read, or needs code of its own.
        OSError: the repository cannot be reached.
    """
    place = name if folder is None else str(folder)
    check_json_files(place, field, TOKENIZER_JSON)
    # A folder in the cache of the Hub stands for its commit.
    where = {} if Path(place).is_dir() else {"revision": revision}
    try:
        with hub_errors(name, field, revision):
            return AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code, **where)
    except Exception as error:  # a damaged tokenizer.json raises a bare Exception
        # The errors of the Hub name the field.
        if isinstance(error, OSError) and str(error).startswith(f"{field}="):
            raise
        raise reading_error(name, field, error) from error
