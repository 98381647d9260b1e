"""`memreason VERB`: finds the module of the verb and runs it with the rest of the command line."""

import difflib
import gc
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from memreason_hf.command_line.signals import restore, stop_while_loading


# Verbs are modules of memreason_hf.commands. They are imported when they run, because they import torch, which takes
# seconds, and this help does not need it.
VERBS = {
    "quickstart": "Build a data set, train, halt adaptively, sweep the depth, save and load: minutes on a CPU.",
    "convert": "Turn a pretrained decoder into a recurrent-depth model, exactly; or read a published loop.",
    "unroll": "Write the loop of a converted model out as a plain decoder of its family.",
    "train": "Train a recurrent-depth model by a recipe, or resume a run that was killed.",
    "finetune": "Teach any causal language model to solve questions in memory and reason steps.",
    "merge": "Merge an adapter into its base model, and save one whole model.",
    "evaluate": "Let a model decide its depth: accuracy and recurrences by group.",
    "sweep": "Read accuracy and logit margins after every recurrence, by group, in one pass.",
    "calibrate": "Choose a halting threshold that keeps a promised loss with a promised confidence.",
    "fit-gate": "Fit a gate that says where to leave the loop to a frozen model, and write a copy that has it.",
    "perplexity": "Read loss and perplexity on text after every recurrence, in one pass.",
    "lm-eval": "Score a model on lm-eval's tasks after several numbers of recurrences, in one table.",
    "generate": "Continue prompts, and show how many recurrences each token took.",
    "demo": "Open a page for a model: its answers, the depth of every token, and what it says at other depths.",
    "serve": "Serve a model over HTTP, with the endpoints of OpenAI's API, batched by depth.",
    "annotate": "Let a language model write the memory and reason steps of questions that have none.",
    "evaluate-steps": "Let a model solve annotated questions in memory and reason steps, and judge the solutions.",
    "score": "Judge generated texts of any origin: a verdict on each, accuracy, steps, where errors come from.",
    "attention": "Show where a model looks while it writes a solution: maps over its steps, shares by kind.",
    "lens": "Show what a model would say at every position after each recurrence.",
    "trajectories": "Follow the state over recurrences: steps, principal components, spectral radius of the loop.",
    "patch": "Patch activations between two chains: at which recurrence and position the answer hangs.",
    "testbed": "Train four small models on one world whose truth is known, to see where errors come from.",
    "publish": "Send a model, an adapter, a data set, a metric or a page to the Hub.",
    "reproduce": "Run an experiment whose numbers the README gives, from its data to its tables.",
}


def main(argv: list[str] | None = None) -> int:
    """
    Runs `memreason`; returns the exit code.

    Args:
        argv: the arguments, by default those of the process.
    """
    verb, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if verb in ("-V", "--version"):
        print(f"memreason {_version()}")
        return 0
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        print(f"memreason: error: unknown verb {verb!r}. Choose one of {', '.join(VERBS)}.{hint}", file=sys.stderr)
        return 2
    handlers = stop_while_loading(f"memreason {verb}")
    try:
        return _import_verb(verb).main(rest) or 0
    finally:
        # Otherwise it is the process of the command, in which a signal may still arrive while Python ends.
        if argv is not None:
            restore(handlers)


def help_text() -> str:
    """The text of `memreason --help`."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {help_line}" for verb, help_line in VERBS.items())
    return f"""\
usage: memreason VERB [arguments]

Language models that think in depth: train them, analyse them, and let them decide when to stop.

verbs:
{verbs}

memreason VERB --help explains the verb; memreason --version prints the version.
Start with: memreason quickstart"""


def _import_verb(verb):
    # Thousands of modules and hardly any garbage: without the collector, imports take about a tenth less time.
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        return import_module(f"memreason_hf.commands.{verb.replace('-', '_')}")
    finally:
        if is_enabled:
            gc.enable()


def _version():
    try:
        return version("memreason-hf")
    except PackageNotFoundError:
        return "(not installed: run pip install -e . in the clone)"


if __name__ == "__main__":
    sys.exit(main())
