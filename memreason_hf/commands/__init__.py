"""The verbs of `memreason`, one module each."""

import sys

from memreason_hf.command_line.signals import stop_while_loading


if sys.argv[:1] == ["-m"]:
    # `python -m memreason_hf.commands.VERB` is about to import the verb, as `accelerate launch -m` does. Its
    # `user_errors` replaces the handlers.
    stop_while_loading("memreason")
