"""Reading a config or a tokenizer without the code that may come with it, with errors of one line."""

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from memreason_hf.messages import describe_field_error
from memreason_hf.models.json_files import check_json_files
from memreason_hf.models.pretrained import reading_error


def read_config(name: str, field: str) -> PreTrainedConfig:
    """
    The config of a model.

    Args:
        name: a folder, or a name on the Hub.
        field: what messages call `name`, for example `"model.path"`.

    Raises:
        ValueError: the config cannot be read, or needs code of its own, which is never run here.
        OSError: there is none.
    """
    check_json_files(name, field)
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except StrictDataclassError as error:
        raise ValueError(f"{field}={name!r}: config.json: {describe_field_error(error)}") from error
    except (ValueError, RecursionError) as error:
        raise reading_error(name, field, error) from error


def read_tokenizer(name: str, field: str) -> PreTrainedTokenizerBase:
    """
    The tokenizer of a model.

    Args:
        name, field: as for `read_config`.

    Raises:
        ValueError: the tokenizer cannot be read, or needs code of its own, which is never run here.
    """
    check_json_files(name, field)
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # a damaged tokenizer.json raises a bare Exception
        raise reading_error(name, field, error) from error
