"""The depth of one request: of its prompt, and of each new token."""

import torch

from modeling_recurrent.arguments_recurrent import DEPTH_ARGUMENTS
from modeling_recurrent.halting_recurrent import HaltingRule, resolve_depth
from modeling_recurrent.schedule_recurrent import DepthSchedule


class RequestDepth:
    """
    What decides how many recurrences the tokens of a request take.

    Args:
        model (`RecurrentDepthForCausalLM`): The model.
        prompt (`torch.LongTensor` of shape `(1, tokens)`): The prompt.
        arguments (`dict`): The depth arguments as `generate` resolves them.
        schedule (`Callable`, *optional*): See `depth_schedule` of `generate`.

    Attributes:
        limit (`int`): No token of the request takes more recurrences.
        criterion (`HaltingCriterion`, *optional*): Decides about new tokens, if no count does.
        min_recurrences (`int`): The first recurrence at which the criterion may halt a new token.
        whole (`bool`): Whether the prompt has one count, decided at its last token, and so must not be cut.
        by_token (`bool`): Whether the tokens of the prompt may differ in their counts.
        reads_coda (`bool`): Whether the criterion reads logits after the coda.

    Raises:
        `ValueError`, `TypeError`: As `generate`.
    """

    def __init__(self, model, prompt: torch.LongTensor, arguments: dict, schedule=None):
        config, shape = model.config, prompt.shape
        arguments = {name: value for name, value in arguments.items() if name in DEPTH_ARGUMENTS and value is not None}
        counts = arguments.get("num_recurrences")
        if counts is not None and not isinstance(counts, int):
            arguments["num_recurrences"] = _counts_of_prompt(counts, shape[1]).to(prompt.device)
        self._prompt_arguments = arguments
        self._token_arguments = {
            name: value
            for name, value in arguments.items()
            if not (name == "num_recurrences" and isinstance(value, torch.Tensor))
        }
        self.schedule = None if schedule is None else DepthSchedule(schedule)
        if self.schedule is not None:
            self.schedule.check_arguments(arguments)
        rules = (
            resolve_depth(config, shape, prompt.device, **self._prompt_arguments),
            resolve_depth(config, (1, 1), prompt.device, **self._token_arguments),
        )
        for rule in rules:
            _refuse_provisional_logits(config, rule)
        new = rules[1]
        self.criterion = new.criterion if isinstance(new, HaltingRule) else None
        self.min_recurrences = new.min_recurrences if isinstance(new, HaltingRule) else 1
        self._count = None if isinstance(new, HaltingRule) else new
        self._most = new.limit if isinstance(new, HaltingRule) else new
        self.limit = max(rule.limit if isinstance(rule, HaltingRule) else rule for rule in rules)
        self.whole = any(isinstance(rule, HaltingRule) and rule.granularity == "sequence" for rule in rules)
        self.by_token = not self.whole and (schedule is not None or isinstance(rules[0], HaltingRule))
        if self.schedule is not None:
            self.limit = max(self.limit, config.max_recurrences)
        reads = None if self.criterion is None else self.criterion.reads
        self.reads_coda = reads == "log_probs" and config.num_coda_layers > 0

    def of_prompt(self, prompt: torch.LongTensor, start: int, end: int) -> dict:
        """The depth arguments of a forward pass over the tokens from `start` to `end` of the prompt `(1, tokens)`."""
        arguments = dict(self._prompt_arguments)
        counts = arguments.get("num_recurrences")
        if isinstance(counts, torch.Tensor):
            arguments["num_recurrences"] = counts[:, start:end]
        return arguments | self._scheduled(prompt[:, :end], end - start)

    def of_token(self, ids: torch.LongTensor | None) -> tuple[int | None, int]:
        """
        The count of a new token, or `None` where the criterion decides, and the most recurrences that it may take.

        `ids` (`(1, tokens)`) is the text up to this token; it is read if there is a schedule.
        """
        if self.schedule is None:
            return self._count, self._most
        value = self.schedule.of_last(ids)
        self._check_scheduled(value)
        if self.criterion is not None and self.min_recurrences > value:
            raise ValueError(f"min_recurrences={self.min_recurrences} is above max_recurrences={value}.")
        return (None if self.criterion is not None else value), value

    def _scheduled(self, ids, tokens):
        if self.schedule is None:
            return {}
        arguments = self.schedule.arguments(ids, tokens, ids.shape[1] - tokens, self.criterion is not None)
        for value in arguments.values():
            self._check_scheduled(int(torch.as_tensor(value).max()))
        return arguments

    def _check_scheduled(self, value):
        if value > self.limit:
            raise ValueError(
                f"depth_schedule returned {value} recurrences, but the memory of this request was cut for "
                f"{self.limit}, the model's max_recurrences. Return at most this."
            )


def _refuse_provisional_logits(config, rule):
    """The forward of the prompt would refuse this as well, but only when the request runs."""
    if not isinstance(rule, HaltingRule) or rule.granularity != "token" or rule.reads != "log_probs":
        return
    if config.num_coda_layers:
        raise ValueError(
            f"halting_criterion={rule.criterion.name!r} reads logits, which with num_coda_layers="
            f"{config.num_coda_layers} depend on tokens that are still provisional. Choose a criterion on the state "
            "('state_difference', 'acceleration') or halting_granularity='sequence'."
        )


def _counts_of_prompt(counts, length: int) -> torch.LongTensor:
    try:
        counts = torch.as_tensor(counts)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"num_recurrences must be an int or an int for each token of the prompt, got {counts!r}."
        ) from error
    counts = counts.view(1, -1) if counts.ndim < 2 else counts
    if counts.shape != (1, length):
        raise ValueError(
            f"num_recurrences has {counts.numel()} entries, but prompt_ids has {length} tokens: pass an int, or an "
            "int for each token of the prompt."
        )
    return counts


__all__ = ["RequestDepth"]
