"""The results file and the figures of a command, written whole and only where nothing is lost."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from memreason_hf.analysis import save_figure
from memreason_hf.command_line.parser import Section
from memreason_hf.evaluation import write_results
from memreason_hf.file_sets import reserved, writing_together
from memreason_hf.files import check_places


@dataclass
class OutputArguments:
    """Where results go."""

    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for the results file and the figures. Default: only the table is printed."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace results that exist."})
    trained_hops: int | None = field(
        default=None,
        metadata={
            "help": "Longest chains in training, in hops. Figures mark the groups up to it. Default: the last stage "
            "of the curriculum, if the model's folder names it."
        },
    )


OUTPUT = Section("output", OutputArguments, "results")


class ResultsFolder:
    """
    The files of one command in `output_dir`.

    Args:
        arguments: the output flags. Without `output_dir` nothing is written.
        stem: name of the results file without its suffix.
        figures: stems of the figures; each is written as PNG and PDF.

    Raises:
        FileExistsError: a file exists and `--overwrite` is not given. Raised before any work is done.
    """

    def __init__(self, arguments: OutputArguments, stem: str, figures: list[str]):
        self.overwrite = arguments.overwrite
        self.results_path = None
        self.figure_paths = {}
        if arguments.output_dir is None:
            return
        folder = Path(arguments.output_dir)
        self.results_path = folder / f"{stem}.json"
        self.figure_paths = {name: [folder / f"{name}.png", folder / f"{name}.pdf"] for name in figures}
        check_places(self._paths(), overwrite=self.overwrite)

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """
        Keeps other processes from writing the same files while the block computes and writes them.

        Raises:
            InUseError: another process is computing or writing them.
        """
        # Of several processes of a run, one writes.
        if self.results_path is None or os.environ.get("RANK", "0") != "0":
            yield
            return
        with reserved(self._paths(), overwrite=self.overwrite):
            yield

    def write(self, results: dict, figures: dict[str, Figure]) -> None:
        """Writes the figures, then the results file: a folder with a results file is complete."""
        if self.results_path is None:
            print("Nothing was written. --output_dir DIR keeps the results.")
            return
        with writing_together(self._paths(), overwrite=self.overwrite):
            for name, figure in figures.items():
                save_figure(figure, self.figure_paths[name], overwrite=self.overwrite)
            write_results(self.results_path, results, overwrite=self.overwrite)
        print(f"Wrote {', '.join(map(str, self._paths()))}.")

    def _paths(self):
        return [self.results_path, *(path for paths in self.figure_paths.values() for path in paths)]
