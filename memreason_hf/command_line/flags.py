"""The command lines of verbs without a recipe: the fields of one dataclass are the flags."""

import argparse
import difflib

from transformers import HfArgumentParser


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside the flags that have one; description and examples as they were written."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def flag_parser(arguments: type, *, prog: str, usage: str, description: str, epilog: str) -> HfArgumentParser:
    """A parser whose flags are the fields of the dataclass `arguments`; flags are written out in full."""
    return HfArgumentParser(
        arguments,
        prog=prog,
        usage=usage,
        description=description,
        epilog=epilog,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )


def parse_flags(parser: HfArgumentParser, argv: list[str]):
    """
    The dataclass that a command line fills.

    Raises:
        ValueError: an unknown flag; names the closest one.
    """
    arguments, unknown = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        close = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1)
        hint = f" Did you mean {close[0]}?" if close else " --help lists all flags."
        raise ValueError(f"unknown argument {' '.join(unknown)!r}.{hint}")
    return arguments


__all__ = ["HelpFormatter", "flag_parser", "parse_flags"]
