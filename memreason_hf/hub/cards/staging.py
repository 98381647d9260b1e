"""What a trainer sends to the Hub, put together in a folder."""

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub.constants import REPOCARD_NAME

from memreason_hf.files import link_files
from memreason_hf.hub.cards import is_generated, read_card, result_files, write_card
from memreason_hf.hub.inspection import refuse_private


def stage_model(
    folder: str | Path, names: Iterable[str], staged: Path, repo_id: str | None, *, run_folder: str | Path
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

    Raises:
        ValueError: as for `make_card`, or a file names a path, a user, a machine or a token.
    """
    folder, run_folder = Path(folder), Path(run_folder)
    link_files(folder, staged, [name for name in names if name != REPOCARD_NAME])
    is_finished = folder == run_folder
    written = read_card(run_folder)
    if written is not None and (is_finished or not is_generated(written)):
        (staged / REPOCARD_NAME).write_text(written, encoding="utf-8")
    else:
        write_card(staged, repo_id, described=folder)
    if is_finished:
        link_files(folder, staged, [str(path.relative_to(folder)) for path in result_files(folder)])
    refuse_private([staged])
