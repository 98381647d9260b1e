"""The command line: the parser, the flags that verbs share, and error messages."""

import sys
from pathlib import Path

from memreason_hf.command_line.signals import stop_while_loading


_script = Path(next(iter(sys.argv), ""))
if _script.parent.name == "data_scripts":
    # The script has just begun to import what it needs. Its `user_errors` replaces the handlers.
    stop_while_loading(_script.name)
