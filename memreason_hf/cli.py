"""`memreason VERB`: finds the verb and hands the rest of the command line to its module."""

import difflib
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version


# Verbs are modules of memreason_hf.commands, imported when they are called: they bring torch with them, and help
# should not wait for it.
VERBS = {
    "quickstart": "Build a data set, train, sweep the depth, halt adaptively, save and load: minutes on a CPU.",
    "train": "Train a recurrent-depth model by a recipe; resume a run that was killed.",
    "finetune": "Teach any causal language model to solve questions in memory and reason steps.",
    "evaluate": "Let a model decide its depth: accuracy and recurrences used, by group.",
    "sweep": "Accuracy and logit margins after every recurrence, by group, in one pass.",
    "generate": "Go on with a prompt, and show how many recurrences each token took.",
    "evaluate-steps": "Let a model solve annotated questions in memory and reason steps; keep every solution.",
    "attention": "Where a model looks while it writes a solution: maps over its steps, shares between kinds.",
    "testbed": "Train four small models on one world whose truth is known: where do errors come from?",
}


def main(argv: list[str] | None = None) -> int:
    """Runs `memreason` with these arguments, those of the process by default; returns the exit code."""
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
        print(f"memreason: error: unknown verb {verb!r}; there are {', '.join(VERBS)}.{hint}", file=sys.stderr)
        return 2
    return import_module(f"memreason_hf.commands.{verb.replace('-', '_')}").main(rest) or 0


def help_text() -> str:
    """What `memreason --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {help_line}" for verb, help_line in VERBS.items())
    return f"""\
usage: memreason VERB [arguments]

Language models that think in depth: train them, look into them, let them decide when to stop.

verbs:
{verbs}

memreason VERB --help explains the verb; memreason --version prints the version.
Start with: memreason quickstart"""


def _version():
    try:
        return version("memreason-hf")
    except PackageNotFoundError:
        return "(not installed: run pip install -e . in the clone)"


if __name__ == "__main__":
    sys.exit(main())
