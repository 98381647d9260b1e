"""
The numbers of trajectories: as a JSON document, and as a table for the terminal.

Documents of kind `"trajectories"` (`trajectory_document`) have the schema `TrajectoryResults`.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from typing_extensions import TypedDict

from memreason_hf.analysis.inside.rows import InsideData, RowGroup, shown_recurrences
from memreason_hf.analysis.inside.trajectories import PrincipalComponents, Trajectories
from memreason_hf.evaluation.results import Document, Environment, ModelDescription, new_document, register_kind
from memreason_hf.tables import format_table


_QUANTILES = (0.1, 0.9)
_DIGITS = 8


class TrajectorySettings(TypedDict):
    """What was read."""

    num_recurrences: int
    """The last recurrence, R."""
    positions: Literal["last", "all"]
    """The last token of each row, or every token."""
    components: int
    spectral_rows: int
    """The rows of each group whose spectral radius was computed, at most."""
    batch_size: int


class Curve(TypedDict):
    """A number after each recurrence, over the rows and positions of a group; entry t - 1 belongs to recurrence t."""

    mean: list[float]
    low: list[float]
    """The 10 % quantile."""
    high: list[float]
    """The 90 % quantile."""


class SpectralRadius(TypedDict):
    """The spectral radius of ds_{t+1} / ds_t at the last token of some rows; see `loop_eigenvalues`."""

    recurrence: int
    """t."""
    count: int
    """Rows."""
    mean: float
    maximum: float


class StatePath(TypedDict):
    """The states at one position of one row."""

    row: int
    """Index in the group."""
    position: int
    """Index of the token."""
    token: str
    coordinates: list[list[float]]
    """For each recurrence, the principal components of the state."""


class TrajectoryGroup(TypedDict):
    """The trajectories of the rows of one group."""

    group: int | str
    """Hops of the chains, or `text`."""
    count: int
    """Rows."""
    norm: Curve
    """|s_t|, s_t being the state after recurrence t."""
    step: Curve
    """|s_t - s_{t-1}| / |s_t|."""
    to_last: Curve
    """|s_t - s_R| / |s_R|."""
    cosine_to_last: Curve
    """The cosine of the angle between s_t and s_R."""
    mean_path: list[list[float]]
    """For each recurrence, the mean of the principal components."""
    paths: list[StatePath]
    """Of the first rows."""
    spectral_radius: list[SpectralRadius]


class TrajectoryResults(Document):
    """How the state of a model moves over recurrences."""

    kind: Literal["trajectories"]
    model: ModelDescription
    data: InsideData
    settings: TrajectorySettings
    explained: list[float]
    """The share of the variance of all states along each principal component."""
    groups: list[TrajectoryGroup]


register_kind("trajectories", TrajectoryResults)


def trajectory_document(
    found: Mapping[object, Trajectories],
    fitted: PrincipalComponents,
    rows: Mapping[object, RowGroup],
    radii: Mapping[object, Mapping[int, np.ndarray]],
    *,
    model: ModelDescription,
    data: InsideData,
    settings: TrajectorySettings,
    environment: Environment,
    max_paths: int = 8,
) -> dict:
    """
    A document of kind `"trajectories"`.

    Args:
        found, fitted: from `read_trajectories`.
        rows: the rows of each group.
        radii: for each group, the spectral radii of its rows by recurrence.
        model, data, settings, environment: what was read, how and where.
        max_paths: how many single paths of each group are kept.
    """
    groups = []
    for name, group in found.items():
        curves = {key: _curve(getattr(group, key)) for key in ("norm", "step", "to_last", "cosine_to_last")}
        spectral = [_radius(recurrence, values) for recurrence, values in radii.get(name, {}).items()]
        groups.append(
            {
                "group": name,
                "count": len(rows[name]),
                **curves,
                "mean_path": group.coordinates.mean((0, 1)).round(_DIGITS).tolist(),
                "paths": _paths(group, rows[name], max_paths),
                "spectral_radius": spectral,
            }
        )
    return new_document(
        "trajectories",
        model=model,
        data=data,
        settings=settings,
        explained=fitted.explained.tolist(),
        groups=groups,
        environment=environment,
    )


def _curve(values):
    flat = values.reshape(-1, values.shape[-1])
    low, high = np.quantile(flat, _QUANTILES, axis=0)
    return {"mean": flat.mean(0).tolist(), "low": low.tolist(), "high": high.tolist()}


def _radius(recurrence, values):
    return {
        "recurrence": recurrence,
        "count": len(values),
        "mean": float(np.mean(values)),
        "maximum": float(max(values)),
    }


def _paths(group, rows, most):
    places = [(row, at) for row in range(len(rows)) for at in range(len(group.positions))]
    if len(rows) == 1 and len(places) > most:
        # Of one text, positions spread over all of it.
        places = [places[index] for index in np.linspace(0, len(places) - 1, most).round().astype(int)]
    return [
        {
            "row": row,
            "position": int(group.positions[at]),
            "token": rows.tokens[row][int(group.positions[at])],
            "coordinates": group.coordinates[row, at].round(_DIGITS).tolist(),
        }
        for row, at in places[:most]
    ]


def trajectory_table(results: dict) -> str:
    """
    A table of a document of kind `"trajectories"`: three lines for each group, of the mean step, the mean distance to
    the last state, and, where it was computed, the mean spectral radius, after some recurrences.
    """
    shown = shown_recurrences(results["settings"]["num_recurrences"])
    header = ["group", "rows", "", *(f"r={recurrence}" for recurrence in shown)]
    lines = []
    for group in results["groups"]:
        for name, label in (("step", "step"), ("to_last", "to last")):
            values = [f"{group[name]['mean'][recurrence - 1]:.4f}" for recurrence in shown]
            lines.append([group["group"], group["count"], label, *values])
        radii = {entry["recurrence"]: entry["mean"] for entry in group["spectral_radius"]}
        if radii:
            values = [f"{radii[recurrence]:.4f}" if recurrence in radii else "-" for recurrence in shown]
            lines.append([group["group"], group["count"], "radius", *values])
    return format_table(header, lines)
