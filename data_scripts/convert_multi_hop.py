r"""
Reads a folder with the study's JSON files and writes it again with an Arrow form and a tokenizer beside them:

    python data_scripts/convert_multi_hop.py --input_dir THEIR_FOLDER --output_dir data/multi_hop
"""

from argparse import RawDescriptionHelpFormatter
from dataclasses import dataclass, field

from transformers import HfArgumentParser

from memreason_hf.data.chains.folder import describe_manifest
from memreason_hf.data.chains.multi_hop import convert_multi_hop


EXPLANATION = """
The input folder holds train.json, valid.json, test.json, test_small.json and vocab.json (with or without <pad>), as in
data_scripts/README.md. Every chain is checked against the atomic facts of train.json. Texts and their order are kept;
the labels of training chains, two hops too low in the study's own files, are counted anew. The input folder may also
be the output folder, with --overwrite.
"""


@dataclass
class ConvertArguments:
    input_dir: str = field(metadata={"help": "Folder with the JSON files."})
    output_dir: str = field(metadata={"help": "Folder for the data set; made if it is not there."})
    overwrite: bool = field(
        default=False,
        metadata={"help": "Replace the data set that the folder holds. Without it another data set is refused."},
    )


def make_parser() -> HfArgumentParser:
    return HfArgumentParser(
        ConvertArguments, description=__doc__ + EXPLANATION, formatter_class=RawDescriptionHelpFormatter
    )


def main(arguments: list[str] | None = None):
    parser = make_parser()
    try:
        (options,) = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
        manifest = convert_multi_hop(options.input_dir, options.output_dir, overwrite=options.overwrite)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(describe_manifest(options.output_dir, manifest))


if __name__ == "__main__":
    main()
