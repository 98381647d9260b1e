"""How the state moves over recurrences: its steps, the distance to where it ends, and its principal components."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from memreason_hf.analysis.inside.runs import check_run, record_run
from memreason_hf.checks import check_choice, check_int
from memreason_hf.evaluation.mode import evaluation_mode


POSITIONS = ("last", "all")


@dataclass(frozen=True, eq=False)
class Trajectories:
    """
    The states of one group of rows, at P positions of each. Entry t - 1 of the last axis belongs to recurrence t.

    Attributes:
        positions: the index of each position in the rows, shape `(P,)`.
        norm: |s_t|, shape `(rows, P, R)`.
        step: |s_t - s_{t-1}| / |s_t|, which the criterion `state_difference` compares with its threshold.
        to_last: |s_t - s_R| / |s_R|.
        cosine_to_last: the cosine of the angle between s_t and s_R.
        coordinates: s_t in principal components, shape `(rows, P, R, components)`.
    """

    positions: np.ndarray
    norm: np.ndarray
    step: np.ndarray
    to_last: np.ndarray
    cosine_to_last: np.ndarray
    coordinates: np.ndarray


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """
    Directions in which the states of all groups vary most.

    Attributes:
        mean: shape `(hidden,)`.
        directions: orthonormal, shape `(components, hidden)`; the largest entry of each is positive.
        explained: the share of the variance along each direction, shape `(components,)`.
    """

    mean: np.ndarray
    directions: np.ndarray
    explained: np.ndarray

    def project(self, states: np.ndarray) -> np.ndarray:
        """`(…, hidden)` -> `(…, components)`"""
        return (states - self.mean) @ self.directions.T


def principal_components(states: np.ndarray, components: int) -> PrincipalComponents:
    """
    The principal components of states.

    Args:
        states: shape `(…, hidden)`.
        components: how many, at most `hidden`.

    Raises:
        ValueError: `components` is out of range, or states are not finite.

    Example:
        >>> found = principal_components(np.array([[0.0, 0.0], [2.0, 2.0], [4.0, 4.0]]), 1)
        >>> found.directions.round(2).tolist(), found.explained.round(2).tolist()
        ([[0.71, 0.71]], [1.0])
    """
    states = np.asarray(states, dtype=np.float64).reshape(-1, np.shape(states)[-1])
    check_int("components", components, least=1, most=states.shape[1])
    if not np.isfinite(states).all():
        raise ValueError("The states are NaN or infinite. Check the weights, use fewer recurrences, or float32.")
    mean = states.mean(0)
    centred = states - mean
    variances, vectors = np.linalg.eigh(centred.T @ centred)
    directions = vectors[:, ::-1][:, :components].T
    # A direction and its opposite are the same component.
    largest = np.abs(directions).argmax(1)
    directions = directions * np.sign(directions[np.arange(components), largest])[:, None]
    total = variances.clip(0).sum()
    explained = variances[::-1][:components].clip(0) / (total or 1.0)
    return PrincipalComponents(mean, directions, explained)


def read_trajectories(
    model: torch.nn.Module,
    groups: Mapping[object, torch.Tensor],
    *,
    num_recurrences: int,
    positions: str = "last",
    components: int = 2,
    batch_size: int = 16,
    progress: bool = False,
) -> tuple[dict[object, Trajectories], PrincipalComponents]:
    """
    The states of several groups of rows after each of the recurrences 1..`num_recurrences`.

    Args:
        model: a `RecurrentDepthForCausalLM`, on any device; its training mode is restored.
        groups: rows of equal length by group, shape `(rows, n)`; groups may differ in length.
        num_recurrences: R, at least 2.
        positions: `"last"`, where the answer is read, or `"all"`.
        components: how many principal components, fitted to the states of all groups after recurrence 1 to R.
        batch_size: rows of a forward pass.
        progress: whether to show a progress bar.

    Returns:
        The trajectories by group, and the principal components.

    Raises:
        ValueError: there are no groups, a number is out of range, or states are not finite.

    Example:
        >>> from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
        >>> sizes = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2}
        >>> model = RecurrentDepthForCausalLM(RecurrentDepthConfig.llama_style(**sizes))
        >>> found, _ = read_trajectories(model, {"short": torch.tensor([[4, 7, 9]])}, num_recurrences=6)
        >>> found["short"].step.shape
        (1, 1, 6)
    """
    if not groups:
        raise ValueError("groups is empty: there are no rows to follow.")
    check_choice("positions", positions, POSITIONS)
    check_int("num_recurrences", num_recurrences, least=2)
    check_int("batch_size", batch_size, least=1)
    for input_ids in groups.values():
        check_run(model, input_ids, num_recurrences)
    check_int("components", components, least=1, most=model.config.hidden_size)
    states = {}
    with evaluation_mode(model), tqdm(total=sum(map(len, groups.values())), unit="row", disable=not progress) as bar:
        for group, input_ids in groups.items():
            pieces = []
            for rows in input_ids.split(batch_size):
                found = record_run(model, rows.to(model.device), num_recurrences).states
                found = found[:, :, -1:] if positions == "last" else found
                # Float64 on the CPU: differences of close states would be rounded.
                pieces.append(found.double().cpu().numpy().transpose(1, 2, 0, 3))
                bar.update(len(rows))
            states[group] = np.concatenate(pieces)
    every = np.concatenate([found[:, :, 1:].reshape(-1, found.shape[-1]) for found in states.values()])
    fitted = principal_components(every, components)
    return {group: _trajectories(found, groups[group].shape[1], fitted) for group, found in states.items()}, fitted


def _trajectories(states, length, fitted):
    """The numbers of states of shape `(rows, positions, R + 1, hidden)`."""
    after, last = states[:, :, 1:], states[:, :, -1:]
    norm = np.linalg.norm(after, axis=-1)
    # A state of norm 0 is at distance 0 from itself.
    safe = np.maximum(norm, np.finfo(np.float64).tiny)
    return Trajectories(
        positions=np.arange(length - states.shape[1], length),
        norm=norm,
        step=np.linalg.norm(np.diff(states, axis=2), axis=-1) / safe,
        to_last=np.linalg.norm(after - last, axis=-1) / safe[..., -1:],
        cosine_to_last=(after * last).sum(-1) / (safe * safe[..., -1:]),
        coordinates=fitted.project(after),
    )
