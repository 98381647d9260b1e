"""What a trainer sends to the Hub, put together in a folder."""

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub.constants import REPOCARD_NAME

from memreason_hf.adapters.base_place import LOCAL_BASE_FILE
from memreason_hf.files import link_files
from memreason_hf.hub.adapter_config import stage_adapter_config
from memreason_hf.hub.cards import is_generated, read_card, result_files, write_card
from memreason_hf.hub.inspection import refuse_private
from memreason_hf.hub.weights import ADAPTER_CONFIG


def stage_model(
    folder: str | Path,
    names: Iterable[str],
    staged: Path,
    repo_id: str | None,
    *,
    run_folder: str | Path,
    base_model: str | None = None,
) -> None:
    """
    Puts a model, its card and its results into a folder.

    Args:
        folder (`str` or `Path`): The output folder of a run, or one of its checkpoints.
        names (`Iterable[str]`): The files of the model in it.
        staged (`Path`): An empty folder.
        repo_id (`str`, *optional*): The repository.
        run_folder (`str` or `Path`): The output folder of the run. Its card is sent if a person wrote it, or if the
            run has finished with this model. Results belong to the finished model only.
        base_model (`str`, *optional*): Name on the Hub of the base of an adapter. Needed if the base is a folder.

    Raises:
        ValueError: as for `make_card` and `stage_adapter_config`, or a file names a path, a user, a machine or a
            token.
    """
    folder, run_folder = Path(folder), Path(run_folder)
    names = [name for name in names if name not in (REPOCARD_NAME, LOCAL_BASE_FILE)]
    link_files(folder, staged, [name for name in names if name != ADAPTER_CONFIG])
    if ADAPTER_CONFIG in names:
        stage_adapter_config(folder, staged, base_model)
    is_finished = folder == run_folder
    written = read_card(run_folder)
    if written is not None and (is_finished or not is_generated(written)):
        (staged / REPOCARD_NAME).write_text(written, encoding="utf-8")
    else:
        write_card(staged, repo_id, described=folder)
    if is_finished:
        link_files(folder, staged, [str(path.relative_to(folder)) for path in result_files(folder)])
    refuse_private([staged])
