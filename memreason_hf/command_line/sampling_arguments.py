"""How the tokens of a text are chosen: flags, and their combination with the model's generation config."""

from dataclasses import dataclass, field

import torch
from transformers import GenerationConfig

from memreason_hf.evaluation.solutions.generation import check_max_new_tokens


_RANDOM_ONLY = ("temperature", "top_k", "top_p", "seed")


@dataclass
class SamplingArguments:
    """The choice of tokens, with the names of `GenerationConfig`."""

    max_new_tokens: int = field(default=64, metadata={"help": "The maximum number of tokens generated for a prompt."})
    do_sample: bool = field(
        default=False, metadata={"help": "Draw tokens at random. Without it, the most probable token is taken."}
    )
    temperature: float | None = field(
        default=None,
        metadata={"help": "Divides the logits before a draw: above 1 for more variety, below 1 for less."},
    )
    top_k: int | None = field(
        default=None, metadata={"help": "Draw from the k most probable tokens only; 0 for all tokens."}
    )
    top_p: float | None = field(
        default=None,
        metadata={"help": "Draw from the most probable tokens whose probabilities add up to this, above 0 up to 1."},
    )
    seed: int | None = field(
        default=None, metadata={"help": "Seed of the draws, to repeat a text. Default: a random one."}
    )

    def check(self) -> None:
        """
        Refuses impossible values before anything is loaded.

        Raises:
            ValueError: names the field and its value.
        """
        check_max_new_tokens(self.max_new_tokens)
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be above 0. For the limit of 0, omit --do_sample.")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be at least 0. With 0, all tokens can be drawn.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be a probability above 0.")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} must lie between -2**63 and 2**63 - 1.")


def sampling_settings(generation_config: GenerationConfig, sampling: SamplingArguments) -> tuple[dict, dict]:
    """
    The choice of tokens that flags and the model's generation config give together.

    Returns:
        The arguments of `generate`, and the `settings` that decide the texts, `seed` included.

    Raises:
        ValueError: a flag for random draws is given, but tokens are not drawn at random.
    """
    names = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p")
    given = {name: getattr(sampling, name) for name in names if getattr(sampling, name) is not None}
    settings = {name: given.get(name, getattr(generation_config, name)) for name in names}
    if settings["do_sample"]:
        seed = torch.seed() % 2**32 if sampling.seed is None else sampling.seed
        return given, {**settings, "seed": seed}
    for name in _RANDOM_ONLY:
        if getattr(sampling, name) is not None:
            raise ValueError(f"{name}={getattr(sampling, name)} has no effect without --do_sample. Add that flag.")
    return given, {**settings, **dict.fromkeys(_RANDOM_ONLY)}


def describe_sampling(settings: dict) -> str:
    """A few words on how tokens were chosen."""
    if not settings["do_sample"]:
        return "greedy"
    return "sampled, " + ", ".join(f"{name} {settings[name]}" for name in _RANDOM_ONLY if settings[name] is not None)
