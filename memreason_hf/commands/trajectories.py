"""
`memreason trajectories`: how the state of a model moves over recurrences.

    memreason trajectories runs/quickstart --data runs/quickstart/data --hops 2,4,8,16 --output_dir results
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Literal

from tqdm.auto import tqdm

from memreason_hf.analysis.inside.figures import trajectory_figure
from memreason_hf.analysis.inside.jacobian import loop_eigenvalues
from memreason_hf.analysis.inside.rows import shown_recurrences
from memreason_hf.analysis.inside.trajectories import read_trajectories
from memreason_hf.analysis.inside.trajectory_document import trajectory_document, trajectory_table
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.inside_inputs import InsideArguments, check_depth
from memreason_hf.command_line.model_flags import model_section
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.command_line.results_folder import OUTPUT, ResultsFolder
from memreason_hf.evaluation import describe_environment
from memreason_hf.evaluation.text.results import describe_text_model


PROG = "memreason trajectories"
DESCRIPTION = """\
Follows the state, the vector that the loop updates, over the recurrences 1..max_recurrences: by how much it changes in
each (step), how far it is from where it ends (to last), and its path in principal components, which are fitted to all
states together. The numbers are means over the rows of a hop count, at the last token or at all tokens.

The spectral radius says whether the next recurrence makes small differences of a token's state smaller (below 1) or
larger (above 1). It is the largest absolute eigenvalue of the Jacobian of a recurrence with respect to the state of
the last token, computed from the whole Jacobian: that takes as many backward passes as the model is wide, so it is
done for --spectral_rows rows of each hop count only, and needs float32 weights.
"""
EPILOG = """\
examples:
  memreason trajectories runs/quickstart --data runs/quickstart/data --hops 2,4,8,16 --output_dir results
  memreason trajectories runs/quickstart --data runs/quickstart/data --hops 8 --max_recurrences 64 --spectral_rows 16
  memreason trajectories converted --text "The capital of France is" --positions all --spectral_rows 0

With --output_dir it writes trajectories.json (its schema: memreason_hf/analysis/inside/trajectory_document.py) and the
picture trajectories, as PNG and PDF.
"""


@dataclass
class TrajectoryFlags:
    """What is followed."""

    max_recurrences: int | None = field(
        default=None, metadata={"help": "The last recurrence, at least 2. Default: max_recurrences of the config."}
    )
    positions: Literal["last", "all"] = field(
        default="last", metadata={"help": "The last token of each row, where an answer is read, or all tokens."}
    )
    components: int = field(default=2, metadata={"help": "Principal components; the picture shows the first two."})
    spectral_rows: int = field(
        default=4, metadata={"help": "Rows of each hop count whose spectral radius is computed. 0: none."}
    )


def make_parser() -> CommandParser:
    sections = [
        model_section(),
        Section("rows", InsideArguments, "chains or text", key="inputs"),
        Section("trajectories", TrajectoryFlags, "trajectories"),
        dataclasses.replace(OUTPUT, left_out=("trained_hops",)),
    ]
    return CommandParser(sections, model=True, prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Follows states; returns the exit code. A wrong flag or input ends the program with code 2 and one message."""
    with user_errors(PROG):
        model, rows, flags, output = make_parser().parse_sections(argv)
        folder = ResultsFolder(output, "trajectories", ["trajectories"])
        with folder.reserved():
            return _trajectories(model, rows, flags, folder)


def _trajectories(model, rows, flags, folder):
    model.check()
    rows.check()
    check_depth("spectral_rows", flags.spectral_rows, 0, least=0)
    check_depth("components", flags.components, 1)
    config = model.load_recurrent_config()
    last = check_depth("max_recurrences", flags.max_recurrences, config.max_recurrences, least=2)
    if flags.components > config.hidden_size:
        raise ValueError(f"components={flags.components} must be at most hidden_size={config.hidden_size}.")
    tokenizer = model.load_tokenizer(config)
    groups = {group.name: group for group in rows.load(tokenizer, config)}
    network = model.load_model()
    if flags.spectral_rows and network.dtype.itemsize < 4:
        raise ValueError(
            f"The weights are {str(network.dtype).removeprefix('torch.')}, but derivatives need float32. Pass --dtype "
            "float32, or --spectral_rows 0."
        )
    found, fitted = read_trajectories(
        network,
        {name: group.input_ids for name, group in groups.items()},
        num_recurrences=last,
        positions=flags.positions,
        components=flags.components,
        batch_size=model.batch_size,
        progress=not model.no_progress,
    )
    radii = _spectral_radii(network, groups, flags, last, progress=not model.no_progress)
    results = trajectory_document(
        found,
        fitted,
        groups,
        radii,
        model=describe_text_model(network, model.model),
        data=rows.describe(groups.values()),
        settings={
            "num_recurrences": last,
            "positions": flags.positions,
            "components": flags.components,
            "spectral_rows": flags.spectral_rows,
            "batch_size": model.batch_size,
        },
        environment=describe_environment(network.device),
    )
    where = "at the last token" if flags.positions == "last" else "at all tokens"
    title = f"{model.short_name}: states of {sum(map(len, groups.values()))} rows {where}"
    print(f"{title}, over {last} recurrences\n\n{trajectory_table(results)}\n")
    shares = ", ".join(f"{100 * share:.1f} %" for share in results["explained"])
    print(f"The principal components explain {shares} of the variance.")
    folder.write(results, {"trajectories": trajectory_figure(results, title=title)})
    return 0


def _spectral_radii(network, groups, flags, last, *, progress):
    """For each group, the spectral radii of its first rows at the recurrences of the table, by recurrence."""
    recurrences = shown_recurrences(last)
    radii = {name: {recurrence: [] for recurrence in recurrences} for name in groups} if flags.spectral_rows else {}
    jobs = [(name, ids) for name in radii for ids in groups[name].input_ids[: flags.spectral_rows]]
    for name, ids in tqdm(jobs, desc="spectral radius", unit="row", disable=not progress or not jobs):
        values = loop_eigenvalues(network, ids, recurrences).abs().amax(-1)[:, 0].tolist()
        for recurrence, value in zip(recurrences, values):
            radii[name][recurrence].append(value)
    return radii


if __name__ == "__main__":
    sys.exit(main())
