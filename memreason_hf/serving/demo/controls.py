"""The controls of depth and sampling on the page, and how their values are read back."""

from collections.abc import Sequence
from dataclasses import dataclass

from memreason_hf.serving.demo.answers import Limits, Sampling
from memreason_hf.serving.demo.depth_choice import FIXED, DepthChoice, DepthOptions


_FIXED_LABEL, _MOST_LABEL = "Recurrences", "Most recurrences"
_CRITERION_INFO = "fixed: the same recurrences for every token. A criterion: each token stops when it has settled."


@dataclass(frozen=True)
class DepthControls:
    """
    The criterion, the recurrences, and the thresholds of all criteria, of which those of the chosen one are visible.

    Attributes:
        criterion, recurrences, parameters: Gradio components; empty for a model without recurrences.
        changed: the event after another criterion was chosen and its sliders were shown.
    """

    criterion: object = None
    recurrences: object = None
    parameters: tuple = ()
    changed: object = None

    @classmethod
    def build(cls, gr, options: DepthOptions, fixed: int | None = None) -> "DepthControls":
        """
        Builds the controls inside the current Gradio context.

        Args:
            fixed: recurrences to start from, instead of what the config says.
        """
        if not options.has_depth:
            return cls()
        chosen = options.default if fixed is None else FIXED
        criterion = gr.Dropdown(
            list(options.criteria), value=chosen, label="Depth", info=_CRITERION_INFO, filterable=False
        )
        recurrences = gr.Slider(
            1,
            options.deepest,
            value=options.start(chosen) if fixed is None else fixed,
            step=1,
            label=_FIXED_LABEL if chosen == FIXED else _MOST_LABEL,
        )
        parameters = tuple(
            gr.Slider(
                given.low,
                given.high,
                value=given.position,
                step=given.step,
                label=name if given.scale != "power" else f"{name}, as a power of ten",
                info=given.meaning,
                visible=name in options.parameters_of(chosen),
            )
            for name, given in options.ranges.items()
        )
        changed = criterion.input(
            lambda name: _updates(gr, options, name),
            [criterion],
            [recurrences, *parameters],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
        return cls(criterion, recurrences, parameters, changed)

    @property
    def inputs(self) -> list:
        """All components, in the order in which `read_depth` takes their values."""
        return [] if self.criterion is None else [self.criterion, self.recurrences, *self.parameters]

    @property
    def sliders(self) -> list:
        """The sliders."""
        return [] if self.criterion is None else [self.recurrences, *self.parameters]


def _updates(gr, options, criterion):
    """What changes on the page when another criterion is chosen."""
    own = options.parameters_of(criterion)
    label = _FIXED_LABEL if criterion == FIXED else _MOST_LABEL
    return [
        gr.update(value=options.start(criterion), label=label),
        *(gr.update(visible=name in own) for name in options.ranges),
    ]


def read_depth(options: DepthOptions, values: Sequence) -> tuple[DepthChoice, Sequence]:
    """
    The depth that the controls show, and the values of other controls after theirs.

    Raises:
        ValueError: see `DepthOptions.choose`.
    """
    if not options.has_depth:
        return options.choose(FIXED, 1, {}), values
    end = 2 + len(options.ranges)
    criterion, recurrences, *positions = values[:end]
    return options.choose(criterion, recurrences, dict(zip(options.ranges, positions, strict=True))), values[end:]


@dataclass(frozen=True)
class SamplingControls:
    """The choice of tokens."""

    inputs: tuple

    @classmethod
    def build(cls, gr, limits: Limits, start: Sampling) -> "SamplingControls":
        """Builds the controls inside the current Gradio context; `start` is what they show at first."""
        with gr.Row():
            length = gr.Slider(
                1, limits.max_new_tokens, value=start.max_new_tokens, step=1, label="max_new_tokens", min_width=220
            )
            sample = gr.Checkbox(
                value=start.do_sample, label="do_sample", info="Draw tokens instead of taking the most probable one."
            )
        with gr.Row():
            temperature = gr.Slider(0.05, 2.0, value=start.temperature, step=0.05, label="temperature", min_width=160)
            top_k = gr.Number(start.top_k, label="top_k", info="0: all tokens", precision=0, minimum=0, min_width=120)
            top_p = gr.Slider(0.05, 1.0, value=start.top_p, step=0.01, label="top_p", min_width=160)
            seed = gr.Number(start.seed, label="seed", precision=0, minimum=0, min_width=120)
        return cls((length, sample, temperature, top_k, top_p, seed))


def read_sampling(values: Sequence) -> Sampling:
    """
    The sampling that the controls show.

    Raises:
        ValueError: a value that is empty, no number, or out of range.
    """
    names = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "seed")
    given = dict(zip(names, values, strict=True))
    for name, value in given.items():
        if name != "do_sample" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name}={value!r} must be a number.")
        if name in ("max_new_tokens", "top_k", "seed"):
            if value % 1:
                raise ValueError(f"{name}={value:g} must be a whole number.")
            given[name] = int(value)
    given["do_sample"] = bool(given["do_sample"])
    return Sampling(**given)
