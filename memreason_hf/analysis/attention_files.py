"""The files of attention over one solution: the numbers, the maps, a heat map for each map, a grid of all."""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from memreason_hf.analysis.attention_figures import attention_figure
from memreason_hf.analysis.attention_maps import AttentionMap
from memreason_hf.analysis.depth_figures import save_figure
from memreason_hf.analysis.shown_tokens import ShownTokens
from memreason_hf.analysis.solution_tokens import SolutionTokens
from memreason_hf.evaluation.results import write_results
from memreason_hf.file_sets import reserved, writing_together
from memreason_hf.files import check_places, whole_file


_STEM = "attention"
_SUFFIXES = (".json", ".npz", ".png", ".pdf")
_FIGURE = re.compile(rf"{_STEM}(_recurrence_\d+|_grid)?\.(png|pdf)")


@dataclass(frozen=True)
class Pictures:
    """
    What the pictures show.

    Attributes:
        shown: the words or tokens, from `show_tokens`.
        title: a line above each picture.
        marks_apart: whether the marks of steps have a colour of their own.
        grid: a picture of several maps, from `attention_grid`; None for no such picture.
    """

    shown: ShownTokens
    title: str
    marks_apart: bool = False
    grid: Figure | None = None


class AttentionFiles:
    """
    `attention.json`, `attention_weights.npz` (arrays `weights`, `recurrences`, `ids`), for each map `attention` or
    `attention_recurrence_N` as PNG and PDF, and `attention_grid`. Numbers and arrays are of all tokens, whatever the
    pictures show.

    Args:
        folder: where the files go; it is made when they are written.
        overwrite: replace files of an earlier run.

    Raises:
        FileExistsError: the folder holds such files and `overwrite` is false.
    """

    def __init__(self, folder: Path, *, overwrite: bool = False):
        self.folder, self.overwrite = folder, overwrite
        # How many maps there will be is not known yet, so any figure counts.
        self._existing = [path for suffix in _SUFFIXES for path in sorted(folder.glob(f"{_STEM}*{suffix}"))]
        check_places([*self._existing, folder / f"{_STEM}.json"], overwrite=overwrite)

    def reserved(self) -> AbstractContextManager:
        """
        A context in which no other process writes such files to the folder.

        Raises:
            InUseError: another process is computing or writing them.
        """
        return reserved([self.folder / f"{_STEM}.json", *self._existing], overwrite=self.overwrite)

    def write(
        self, solution: SolutionTokens, maps: Sequence[AttentionMap], document: dict, pictures: Pictures
    ) -> list[Path]:
        """
        Writes the figures, the maps, then the document: a folder with a document is complete. Figures of an earlier
        run, of recurrences that these maps do not have, are removed.

        Args:
            document: from `attention_document`.
            pictures: what the figures show.

        Returns:
            The files, in the order in which they were written.
        """
        paths = [path for entry in maps for path in self._figure_paths(entry)]
        paths += self._grid_paths() if pictures.grid is not None else []
        paths = [self.folder / f"{_STEM}.json", self.folder / f"{_STEM}_weights.npz", *paths]
        with writing_together(paths, overwrite=self.overwrite):
            return self._write(solution, maps, document, pictures)

    def _write(self, solution, maps, document, pictures):
        written, shown = [], pictures.shown
        for entry in maps:
            line = pictures.title
            if entry.recurrence is not None:
                line = f"{line}, recurrence {entry.recurrence} of {document['settings']['num_recurrences']}"
            paths = self._figure_paths(entry)
            figure = attention_figure(
                shown.solution,
                shown.reduce(entry),
                title=line,
                marks_apart=pictures.marks_apart,
                text_length=shown.text_length,
            )
            save_figure(figure, paths, overwrite=self.overwrite)
            written += paths
        if pictures.grid is not None:
            save_figure(pictures.grid, self._grid_paths(), overwrite=self.overwrite)
            written += self._grid_paths()
        written += [self.folder / f"{_STEM}_weights.npz", self.folder / f"{_STEM}.json"]
        with whole_file(written[-2], overwrite=self.overwrite) as temporary:
            np.savez_compressed(
                temporary,
                weights=np.stack([entry.weights for entry in maps]),
                recurrences=np.array([entry.recurrence or 0 for entry in maps]),
                ids=np.array(solution.ids),
            )
        write_results(written[-1], document, overwrite=self.overwrite)
        for path in set(self._existing) - set(written):
            if _FIGURE.fullmatch(path.name):
                path.unlink()
        return written

    def _figure_paths(self, entry):
        stem = _STEM if entry.recurrence is None else f"{_STEM}_recurrence_{entry.recurrence}"
        return [self.folder / f"{stem}{suffix}" for suffix in (".png", ".pdf")]

    def _grid_paths(self):
        return [self.folder / f"{_STEM}_grid{suffix}" for suffix in (".png", ".pdf")]
