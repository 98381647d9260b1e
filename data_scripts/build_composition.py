r"""
Builds the composition data set of the systematicity study (seconds, 65 MB of files):

    python data_scripts/build_composition.py --output_dir data/composition

Another ratio of training compositions to facts, and a small world:

    python data_scripts/build_composition.py --output_dir data/composition_18 --ratio 18
    python data_scripts/build_composition.py --output_dir data/small_composition --num_entities 200 \
        --num_relations 20 --out_degree 10 --ratio 7.2

A folder with the JSON files of the study gets an Arrow form and a tokenizer:

    python data_scripts/build_composition.py --input_dir THEIR_FOLDER --output_dir data/composition
"""

import sys
from dataclasses import dataclass, field

from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.data.chains.folder import describe_manifest
from memreason_hf.data.composition.compositions import CompositionConfig, convert_compositions, prepare_compositions


PROG = "build_composition.py"
EXPLANATION = """
A fact leads from an entity over a relation to another entity: <e_3><r_1> -> <e_8>. A composition of two facts follows
two relations: <e_3><r_1><r_4> -> <e_5>. A small share of the facts is out of distribution (OOD): training holds each
of them, but no composition with one. A model that composes two of them has learned to compose, not to repeat.

The test has at most --num_probes items of five groups:
  id_atomic, ood_atomic       facts, all of which are in training
  train_inferred              compositions that are in training
  test_inferred_iid           compositions of in-distribution facts that are not in training
  test_inferred_ood           compositions of two OOD facts

The folder can be read in three ways:
  datasets.load_from_disk(DIR)               splits train, validation, test, with hops and entities
  AutoTokenizer.from_pretrained(DIR)         one token for each entity and relation
  train.json, valid.json, test.json, vocab.json         the study's own schema, see data_scripts/README.md
"""


@dataclass
class FolderArguments:
    """Where the data set comes from and goes to."""

    output_dir: str = field(metadata={"help": "Folder for the data set. It is created if it does not exist."})
    input_dir: str | None = field(
        default=None,
        metadata={"help": "Folder with the study's JSON files, to read instead of building. The sizes are its own."},
    )
    overwrite: bool = field(
        default=False,
        metadata={"help": "Replace another data set in the folder. Without this flag it is an error."},
    )


def make_parser() -> CommandParser:
    sections = [Section("folders", FolderArguments, "folders"), Section("world", CompositionConfig, "sizes")]
    return CommandParser(sections, recipe=None, prog=PROG, description=__doc__ + EXPLANATION)


def main(argv: list[str] | None = None) -> int:
    """Builds or converts the data set; returns the exit code. A wrong flag ends the program with code 2."""
    with user_errors(PROG):
        folders, config = make_parser().parse_sections(argv)
        if folders.input_dir is None:
            manifest = prepare_compositions(config, folders.output_dir, overwrite=folders.overwrite)
        else:
            if config != CompositionConfig():
                raise ValueError(
                    f"input_dir={folders.input_dir!r} has sizes of its own. Leave out the other sizes and the seed."
                )
            manifest = convert_compositions(folders.input_dir, folders.output_dir, overwrite=folders.overwrite)
        print(describe_manifest(folders.output_dir, manifest))
        return 0


if __name__ == "__main__":
    sys.exit(main())
