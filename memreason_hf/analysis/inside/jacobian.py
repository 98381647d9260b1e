"""
The spectral radius of the loop: whether one recurrence makes small differences of the state smaller or larger.

Attention is causal, so the Jacobian of a recurrence over a whole text is block triangular: the new state of a token
depends on the states of this token and of earlier ones. Its eigenvalues are those of the blocks on the diagonal, one
of shape `(hidden, hidden)` for each token, and its spectral radius is the largest of theirs. The blocks are computed
whole, and their eigenvalues by LAPACK, so that nothing has to converge.
"""

from collections.abc import Sequence

import torch

from memreason_hf.analysis.inside.runs import check_run, record_run
from memreason_hf.checks import check_int
from memreason_hf.evaluation.mode import evaluation_mode


# Numbers in the states of a batch of copies; more copies at once are hardly faster.
_NUMBERS_AT_ONCE = 2**22


def loop_eigenvalues(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    recurrences: Sequence[int],
    positions: Sequence[int] | None = None,
) -> torch.Tensor:
    """
    The eigenvalues of the diagonal blocks of the Jacobian ds_{t+1} / ds_t, at the states of a run.

    Args:
        model: a `RecurrentDepthForCausalLM` of float32 or float64 weights; its training mode is restored.
        input_ids: one text, shape `(n,)`.
        recurrences: the values of t, from 1: the state after recurrence t is where the recurrence t + 1 is
            linearised.
        positions: indices of tokens, also negative ones; by default the last one.

    Returns:
        Complex, shape `(recurrences, positions, hidden)`. The spectral radius at each place is `.abs().amax(-1)`.

    Raises:
        ValueError: the weights have another dtype, a position is not in the text, or a number is out of range.

    Example:
        >>> from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
        >>> sizes = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2}
        >>> model = RecurrentDepthForCausalLM(RecurrentDepthConfig.llama_style(**sizes))
        >>> loop_eigenvalues(model, torch.tensor([4, 7, 9]), [1, 8]).abs().amax(-1).shape
        torch.Size([2, 1])
    """
    recurrences, positions = list(recurrences), [-1] if positions is None else list(positions)
    if not recurrences or not positions:
        raise ValueError(f"recurrences={recurrences} and positions={positions} must each name at least one.")
    for recurrence in recurrences:
        check_int("recurrences", recurrence, least=1)
    check_run(model, input_ids[None], max(recurrences))
    length = len(input_ids)
    for position in positions:
        check_int("positions", position, least=-length, most=length - 1)
    dtype = next(model.parameters()).dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype={dtype}: derivatives need float32 or float64. Load the model in float32.")
    input_ids = input_ids[None].to(model.device)
    with evaluation_mode(model), _frozen(model):
        states = record_run(model, input_ids, max(recurrences)).states
        blocks = [
            torch.stack([_block(model, input_ids, states[recurrence], recurrence, at % length) for at in positions])
            for recurrence in recurrences
        ]
    return torch.linalg.eigvals(torch.stack(blocks).double().cpu())


class _frozen:
    """Keeps parameters out of the graph, which then begins at the state."""

    def __init__(self, model):
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def __enter__(self):
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def __exit__(self, *_):
        for parameter in self.parameters:
            parameter.requires_grad_(True)


def _block(model, input_ids, state, recurrence, position):
    """ds_{t+1, position} / ds_{t, position}, shape `(hidden, hidden)`."""
    width = state.shape[-1]
    # Only the tokens up to the position matter. Rows stand alone, so that one pass over copies gives many gradients.
    input_ids, state = input_ids[:, : position + 1], state[:, : position + 1]
    at_once = max(1, min(width, _NUMBERS_AT_ONCE // (width * (position + 1))))
    rows = []
    for start in range(0, width, at_once):
        count = min(at_once, width - start)
        with torch.enable_grad():
            leaf = state.expand(count, -1, -1).clone().requires_grad_()
            outputs = model.model(
                input_ids.expand(count, -1),
                resume=(recurrence, leaf),
                num_recurrences=recurrence + 1,
                output_hidden_states=True,
                use_cache=False,
            )
            after = outputs.hidden_states[-1][:, position]
            total = after[torch.arange(count), start + torch.arange(count)].sum()
            rows.append(torch.autograd.grad(total, leaf)[0][:, position])
    return torch.cat(rows)
