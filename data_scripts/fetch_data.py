r"""
Downloads a data set that `memreason publish` put on the Hub, as the folder that was published:

    python data_scripts/fetch_data.py OWNER/NAME --output_dir data/world
    memreason train quickstart --path data/world --output_dir runs/world

A version of it, by branch, tag or commit:

    python data_scripts/fetch_data.py OWNER/NAME --revision v1.0 --output_dir data/world
"""

import sys
from dataclasses import dataclass, field

from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.hub.datasets import fetch_dataset


PROG = "fetch_data.py"
EXPLANATION = """
To read the rows alone, datasets.load_dataset("OWNER/NAME") is enough. The commands of this package take a folder, of a
multi-hop world with its tokenizer: this script writes it, with the same files as in the folder that was published. A
private data set is read with the token of `hf auth login` or HF_TOKEN. HF_ENDPOINT is honoured.
"""


@dataclass
class FetchArguments:
    """The data set, and where it goes."""

    source: str = field(metadata={"help": "Name of the data set on the Hub, OWNER/NAME, or a copy in a folder."})
    output_dir: str = field(metadata={"help": "Folder for the data set. It is created if it does not exist."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit. Default: main."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what is in the folder."})


def make_parser() -> CommandParser:
    sections = [Section("data", FetchArguments, "data set")]
    return CommandParser(sections, recipe=None, places=("source",), prog=PROG, description=__doc__ + EXPLANATION)


def main(argv: list[str] | None = None) -> int:
    """Downloads the data set; returns the exit code. A wrong flag or name ends it with code 2 and one message."""
    with user_errors(PROG):
        (arguments,) = make_parser().parse_sections(argv)
        folder = fetch_dataset(
            arguments.source, arguments.output_dir, revision=arguments.revision, overwrite=arguments.overwrite
        )
        print(f"written to {folder}")
        return 0


if __name__ == "__main__":
    sys.exit(main())
