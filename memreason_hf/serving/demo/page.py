"""
The page, in Gradio, which is an optional dependency: `pip install "memreason-hf[demo]"`.

    page = build_page(DemoModel.load("runs/quickstart"))
    launch_page(page)
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from memreason_hf.analysis.token_depths import DepthScale
from memreason_hf.serving.demo.answers import DemoModel, Sampling
from memreason_hf.serving.demo.controls import DepthControls, SamplingControls
from memreason_hf.serving.demo.handlers import Handlers
from memreason_hf.serving.demo.prompts import MOST_CHARACTERS, example_prompts, usual_length
from memreason_hf.serving.demo.rendering import heading, legend
from memreason_hf.serving.demo.styles import style_sheet
from memreason_hf.steps import KINDS


# All answers wait in one line: two at once would halve the speed of both.
_LINE = "model"
_MOST_WAITING = 32
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO_FONTS = ("ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "monospace")
# A click on a token chooses its position.
_CHOOSE_TOKEN = """\
element.addEventListener('click', (event) => {
  const token = event.target.closest('[data-pos]');
  if (token) trigger('click', {position: Number(token.dataset.pos)});
});
"""
# A long table shows the recurrence of the answer.
_SHOW_RECURRENCE = """\
watch('value', () => {
  const row = element.querySelector('.mr-halted');
  if (row) row.closest('.mr-scroll').scrollTop = row.offsetTop - 140;
});
"""


def check_gradio() -> None:
    """Raises an `ImportError` that says what to install, if Gradio is not installed."""
    if find_spec("gradio") is None:
        raise ImportError('gradio is not installed: pip install "memreason-hf[demo]"')


@dataclass(frozen=True)
class Page:
    """
    A page that can be launched.

    Attributes:
        blocks: the `gradio.Blocks`.
        theme, head: how it looks, for `launch`.
    """

    blocks: object
    theme: object
    head: str


def build_page(
    model: DemoModel, examples: Sequence[str] | None = None, sampling: Mapping[str, object] | None = None
) -> Page:
    """
    Builds the page of a model.

    Args:
        examples: prompts that a visitor can click on; by default some that the vocabulary allows.
        sampling: fields of `Sampling` that the controls show at first, in place of its defaults.

    Raises:
        ImportError: Gradio is not installed.
        ValueError: `sampling` is out of range, or asks for more than the limits allow.
    """
    check_gradio()
    # Gradio reads this when it is imported: nobody is told that a page runs.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    usual = min(usual_length(model.tokenizer), model.limits.max_new_tokens)
    sampling = Sampling(**{"max_new_tokens": usual, **(sampling or {})})
    model.check(sampling)
    examples = example_prompts(model.tokenizer) if examples is None else list(examples)
    with gr.Blocks(title=model.name, analytics_enabled=False) as blocks:
        _PageBuilder(gr, model).build(examples, sampling)
    blocks.queue(max_size=_MOST_WAITING, default_concurrency_limit=1)
    theme = gr.themes.Default(primary_hue="blue", font=list(_FONTS), font_mono=list(_MONO_FONTS))
    theme = theme.set(block_info_text_color="#5c636b", block_info_text_color_dark="#a2a9b1")
    kinds = KINDS if model.scheme is None else model.scheme.all_kinds
    return Page(blocks, theme, style_sheet(model.options.deepest, kinds))


def launch_page(page: Page, **kwargs) -> tuple:
    """
    Starts the server of a page.

    Args:
        kwargs: for `gradio.Blocks.launch`. By default a page is not shared, and Gradio prints nothing.

    Returns:
        What `launch` returns: the app, and the local and the public address.
    """
    defaults = {"share": False, "quiet": True, "footer_links": [], "ssr_mode": False, "mcp_server": False}
    # Gradio accepts files from everyone, although this page asks for none.
    defaults["max_file_size"] = 1
    return page.blocks.launch(theme=page.theme, head=page.head, **{**defaults, **kwargs})


class _PageBuilder:
    """Puts the components of a page together, inside a `gradio.Blocks`."""

    def __init__(self, gr, model):
        self.gr, self.model, self.handlers = gr, model, Handlers(model)
        self.has_depth = model.options.has_depth
        self.quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        self.waits = {"concurrency_id": _LINE, "show_progress": "hidden", "api_visibility": "private"}

    def build(self, examples, sampling):
        gr, model = self.gr, self.model
        self._html("mr-heading", heading(model.name, self._description()))
        self._prompt_area(examples)
        with gr.Accordion("Choice of tokens", open=False):
            self.sampled = SamplingControls.build(gr, model.limits, sampling)
        kinds = () if model.scheme is None else (*model.scheme.kinds, "answer")
        colours = legend(DepthScale(1, model.options.deepest), kinds, self.has_depth)
        if colours:
            self._html("mr-legend", colours)
        if self.has_depth:
            with gr.Tab("One answer"):
                self._answer_tab()
            with gr.Tab("Two depths"):
                self._comparison_tab()
        else:
            self._html("mr-no-depth", self.handlers.no_depth)
            self._answer_tab()
        gr.context.Context.root_block.unload(_with_request(gr, self.handlers.leave))

    def _description(self):
        count = sum(parameter.numel() for parameter in self.model.model.parameters())
        depth = f"up to {self.model.options.deepest} recurrences" if self.has_depth else "no recurrences"
        return f"{self.model.model.config.model_type} · {count:,} parameters · {depth}"

    def _prompt_area(self, examples):
        is_steps = self.model.scheme is not None
        self.prompt = self.gr.Textbox(
            label="Question" if is_steps else "Prompt",
            placeholder="Type a question" if is_steps else "Type a text to continue",
            value=examples[min(2, len(examples) - 1)] if examples else "",
            lines=2,
            max_lines=8,
            max_length=MOST_CHARACTERS,
            elem_id="mr-prompt-box",
        )
        if examples:
            self.gr.Examples([[example] for example in examples], inputs=[self.prompt], label="Examples")

    def _buttons(self, text, name):
        with self.gr.Row():
            run = self.gr.Button(text, variant="primary", elem_id=f"mr-run{name}", scale=3, min_width=140)
            stop = self.gr.Button(
                "Stop", variant="secondary", elem_id=f"mr-stop{name}", interactive=False, scale=1, min_width=90
            )
        stop.click(_with_request(self.gr, self.handlers.stop), None, None, **self.quick)
        return run, stop

    def _html(self, name, value, **kwargs):
        # Without Gradio's own style for HTML, which sets the colours of all elements.
        kwargs = {"js_on_load": None, "padding": False, "apply_default_css": False, **kwargs}
        return self.gr.HTML(value, elem_id=name, elem_classes="mr-panel", **kwargs)

    def _answer_tab(self):
        gr, handlers = self.gr, self.handlers
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                depth = DepthControls.build(gr, self.model.options)
                run, stop = self._buttons("Answer", "")
            with gr.Column(scale=5, min_width=320):
                shown = self._html("mr-answer", handlers.empty, js_on_load=_CHOOSE_TOKEN)
                if self.has_depth:
                    position = gr.Dropdown(
                        [], label="After each recurrence: the token to look at", elem_id="mr-position"
                    )
                    lens = self._html("mr-lens", handlers.empty_lens, js_on_load=_SHOW_RECURRENCE)
        answer = gr.State(None)
        inputs, outputs = [self.prompt, *depth.inputs, *self.sampled.inputs], [shown, answer, stop]
        calls = [self._run(run.click, handlers.run, inputs, outputs, api_name="answer", api_visibility="public")]
        calls.append(self._run(self.prompt.submit, handlers.run, inputs, outputs))
        # Only the last position of a slider counts.
        moved = {"trigger_mode": "always_last"}
        calls += [self._run(slider.input, handlers.run, inputs, outputs, **moved) for slider in depth.sliders]
        if depth.changed is not None:
            calls.append(self._run(depth.changed.then, handlers.run, inputs, outputs))
        if not self.has_depth:
            return

        def look(answer, place):
            return handlers.look(answer, place)

        def look_first(answer):
            start = handlers.start(answer)
            choices = gr.update(choices=handlers.choices(answer), value=start)
            return choices, *(handlers.look(answer, start) if answer is not None else (gr.skip(), handlers.empty_lens))

        def look_clicked(answer, event: gr.EventData):
            place = event._data.get("position")
            place = place if isinstance(place, int) and answer is not None and place >= 1 else None
            if place is None:
                return gr.skip(), gr.skip(), gr.skip()
            return gr.update(value=place), *handlers.look(answer, place)

        for call in calls:
            call.then(look_first, [answer], [position, shown, lens], **self.waits)
        position.input(look, [answer, position], [shown, lens], **self.waits)
        shown.click(look_clicked, [answer], [position, shown, lens], **self.waits)

    def _run(self, event, handler, inputs, outputs, **kwargs):
        """Connects an event with an answer. The stop button can be pressed while it is written."""
        gr = self.gr
        event(_with_request(gr, self.handlers.press), None, None, **self.quick)

        def answer(request: gr.Request, *values):
            for *shown, is_running in handler(request, *values):
                yield *shown, gr.update(interactive=is_running)

        return event(answer, inputs, outputs, **{**self.waits, **kwargs})

    def _comparison_tab(self):
        gr, handlers, options = self.gr, self.handlers, self.model.options
        run, stop = self._buttons("Answer at both depths", "-both")
        controls, panels = [], []
        note = self._html("mr-difference", "")
        with gr.Row(equal_height=False):
            for side in ("left", "right"):
                with gr.Column(min_width=320):
                    shallow = max(1, options.num_recurrences // 4) if side == "left" else None
                    controls.append(DepthControls.build(gr, options, fixed=shallow))
                    panels.append(self._html(f"mr-{side}", handlers.empty))
        inputs = [self.prompt, *controls[0].inputs, *controls[1].inputs, *self.sampled.inputs]
        outputs = [*panels, note, stop]
        self._run(run.click, handlers.run_both, inputs, outputs, api_name="compare", api_visibility="public")


def _with_request(gr, handler):
    """A handler of Gradio, which passes the request of the visitor."""

    def handle(request: gr.Request):
        handler(request)

    return handle
