"""The error message of a command, for the tests of all commands."""

import pytest


def refused(capsys, run, *arguments):
    """The last line that `run` with these arguments prints, after which it ends the program with code 2."""
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]
