"""
`memreason demo`: a page to look at a model, in the browser.

    memreason demo runs/quickstart
"""

import dataclasses
import sys
import threading
from dataclasses import dataclass, field

from memreason_hf.command_line.depth_arguments import DEPTH, check_has_recurrences, depth_settings, given_depth
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.model_flags import model_section
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.command_line.prompts import PromptArguments, read_prompts
from memreason_hf.command_line.sampling_arguments import SamplingArguments
from memreason_hf.serving.demo.answers import DemoModel, Limits, Sampling
from memreason_hf.serving.demo.page import build_page, check_gradio, launch_page
from modeling_recurrent import RecurrentDepthConfig


PROG = "memreason demo"
DESCRIPTION = """\
Opens a page for a model, an adapter or a converted decoder: type a prompt, and see the answer appear token by token,
each token in the colour of its depth, and memory and reason steps in boxes of their own. Sliders change the number of
recurrences and the halting threshold; the answer and its cost follow. Below the answer: what the model would say at
one position after each recurrence. A second tab answers one prompt at two depths, side by side.

Needs Gradio: pip install "memreason-hf[demo]". The page is on this machine only, unless --host or --share says
otherwise; nothing is loaded from other servers, and nothing is reported to them. Ctrl-C ends it.
"""
EPILOG = """\
examples:
  memreason demo runs/quickstart
  memreason demo runs/finetune/checkpoint-300 --base meta-llama/Llama-3.1-8B --device cuda --dtype bfloat16
  memreason demo user/model --halting_criterion kl --kl_threshold 0.01 --deepest 64
  memreason demo runs/text --prompts examples.txt --max_new_tokens 100     # the lines of a file as examples to click
  memreason demo runs/text --host 0.0.0.0 --port 8000                      # for the machines of this network

Depth and sampling flags set what the controls show at first. Visitors wait in one line; each can stop an answer.
"""


@dataclass
class PageArguments:
    """Where the page is, and what visitors can ask for."""

    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0 for all networks."})
    port: int | None = field(default=None, metadata={"help": "Port. Default: the first free one from 7860 on."})
    share: bool = field(default=False, metadata={"help": "Also open a public address through Gradio's servers."})
    open_browser: bool = field(default=False, metadata={"help": "Open the page in this machine's browser."})
    deepest: int | None = field(
        default=None, metadata={"help": "The most recurrences that a visitor can ask for. Default: max_recurrences."}
    )
    most_new_tokens: int = field(default=256, metadata={"help": "The most tokens of an answer."})
    most_prompt_tokens: int = field(default=2048, metadata={"help": "The most tokens of a prompt."})

    def check(self) -> None:
        """
        Refuses impossible values before anything is loaded.

        Raises:
            ValueError: names the field and its value.
        """
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError(f"port={self.port} must be from 1 to 65535.")
        for name in ("deepest", "most_new_tokens", "most_prompt_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")


_EXAMPLES = Section("prompts", PromptArguments, "examples to click; by default, some that the vocabulary allows")


def make_parser() -> CommandParser:
    sections = [
        model_section(left_out=("batch_size", "no_progress")),
        Section("page", PageArguments, "page"),
        _EXAMPLES,
        DEPTH,
        Section("sampling", SamplingArguments, "choice of tokens, at first", defaults={"max_new_tokens": None}),
    ]
    return CommandParser(sections, model=True, prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Serves the page until Ctrl-C; returns the exit code. Expected errors end the program with code 2."""
    with user_errors(PROG):
        page, arguments = _build(*make_parser().parse_sections(argv))
        _serve(page, arguments)
    return 0


def _build(model, arguments, prompts, depth, sampling):
    arguments.check()
    model.check()
    try:
        check_gradio()
    except ImportError as error:
        raise ValueError(str(error)) from None
    limits = Limits(arguments.most_new_tokens, arguments.most_prompt_tokens)
    start = _start(sampling, limits)
    examples = None if prompts.prompt is None and prompts.prompts is None else read_prompts(prompts)
    config = model.load_config()
    check_has_recurrences(config, model.model, given_depth(depth))
    fields = {}
    if isinstance(config, RecurrentDepthConfig):
        settings, _ = depth_settings(config, depth)
        fields = given_depth(depth) | {"halting_criterion": settings["halting_criterion"]}
    print(f"Loading {model.model} ...", file=sys.stderr, flush=True)
    demo = DemoModel.load(
        model.model,
        name=model.short_name,
        tokenizer=model.tokenizer,
        base=model.base,
        dtype=model.dtype,
        device=model.device,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        depth=fields,
        deepest=arguments.deepest,
        limits=limits,
    )
    demo.warm_up()
    return build_page(demo, examples, start), arguments


def _start(sampling, limits):
    """The fields of `Sampling` that were given."""
    names = [entry.name for entry in dataclasses.fields(Sampling)]
    given = {name: getattr(sampling, name) for name in names if getattr(sampling, name) is not None}
    if given.get("max_new_tokens", 1) > limits.max_new_tokens:
        raise ValueError(
            f"max_new_tokens={given['max_new_tokens']} is above most_new_tokens={limits.max_new_tokens}. Change one."
        )
    Sampling(**given)
    return given


def _serve(page, arguments):
    launched = {"server_name": arguments.host, "server_port": arguments.port, "share": arguments.share}
    _, local, public = launch_page(
        page, **launched, inbrowser=arguments.open_browser, prevent_thread_lock=True, show_error=False
    )
    print(f"The page is at {local}", flush=True)
    if public:
        print(f"and for everyone at {public}", flush=True)
    print("Ctrl-C ends it.", file=sys.stderr, flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
    finally:
        page.blocks.close(verbose=False)


if __name__ == "__main__":
    sys.exit(main())
