r"""
Converts a folder with the study's JSON files to a data set that also has an Arrow form and a tokenizer:

    python data_scripts/convert_multi_hop.py --input_dir THEIR_FOLDER --output_dir data/multi_hop
"""

import sys
from dataclasses import dataclass, field

from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.data.chains.folder import describe_manifest
from memreason_hf.data.chains.multi_hop import convert_multi_hop


PROG = "convert_multi_hop.py"
EXPLANATION = """
The input folder holds train.json, valid.json, test.json, test_small.json and vocab.json (with or without <pad>), as in
data_scripts/README.md. Every chain is checked against the atomic facts of train.json. Texts and their order stay the
same. The labels of training chains, which are two hops too low in the study's files, are counted again. With
--overwrite, the input folder can also be the output folder.
"""


@dataclass
class ConvertArguments:
    """Where the data set comes from and goes to."""

    input_dir: str = field(metadata={"help": "Folder with the JSON files."})
    output_dir: str = field(metadata={"help": "Folder for the data set. It is created if it does not exist."})
    overwrite: bool = field(
        default=False,
        metadata={"help": "Replace another data set in the folder. Without this flag it is an error."},
    )


def make_parser() -> CommandParser:
    sections = [Section("folders", ConvertArguments, "folders")]
    return CommandParser(sections, recipe=None, prog=PROG, description=__doc__ + EXPLANATION)


def main(argv: list[str] | None = None) -> int:
    """Converts the data set; returns the exit code. A wrong flag ends the program with code 2 and one message."""
    with user_errors(PROG):
        (folders,) = make_parser().parse_sections(argv)
        manifest = convert_multi_hop(folders.input_dir, folders.output_dir, overwrite=folders.overwrite)
        print(describe_manifest(folders.output_dir, manifest))
        return 0


if __name__ == "__main__":
    sys.exit(main())
