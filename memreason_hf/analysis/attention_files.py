"""The files of attention over one solution: the numbers, the maps and a heat map for each map."""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from memreason_hf.analysis.attention_figures import attention_figure
from memreason_hf.analysis.attention_maps import AttentionMap
from memreason_hf.analysis.depth_figures import save_figure
from memreason_hf.analysis.solution_tokens import SolutionTokens
from memreason_hf.evaluation.results import write_results
from memreason_hf.file_sets import reserved, writing_together
from memreason_hf.files import check_places, whole_file


_STEM = "attention"
_SUFFIXES = (".json", ".npz", ".png", ".pdf")
_FIGURE = re.compile(rf"{_STEM}(_recurrence_\d+)?\.(png|pdf)")


class AttentionFiles:
    """
    `attention.json`, `attention_weights.npz` (arrays `weights`, `recurrences`, `ids`) and, for each map, `attention`
    or `attention_recurrence_N` as PNG and PDF.

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
        self, solution: SolutionTokens, maps: Sequence[AttentionMap], document: dict, *, title: str
    ) -> list[Path]:
        """
        Writes the figures, the maps, then the document: a folder with a document is complete. Figures of an earlier
        run, of recurrences that these maps do not have, are removed.

        Args:
            document: from `attention_document`.
            title: a line above each figure.

        Returns:
            The files, in the order in which they were written.
        """
        paths = [path for entry in maps for path in self._figure_paths(entry)]
        paths = [self.folder / f"{_STEM}.json", self.folder / f"{_STEM}_weights.npz", *paths]
        with writing_together(paths, overwrite=self.overwrite):
            return self._write(solution, maps, document, title)

    def _write(self, solution, maps, document, title):
        written = []
        for entry in maps:
            line = title
            if entry.recurrence is not None:
                line = f"{title}, recurrence {entry.recurrence} of {document['settings']['num_recurrences']}"
            paths = self._figure_paths(entry)
            save_figure(attention_figure(solution, entry, title=line), paths, overwrite=self.overwrite)
            written += paths
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
