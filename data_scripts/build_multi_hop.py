r"""
Builds the multi-hop data set of the depth-extrapolation study (a few seconds, 0.6 GB of files):

    python data_scripts/build_multi_hop.py --output_dir data/multi_hop

A small world, as in the quickstart (trained on 2 to 8 hops, tested far beyond):

    python data_scripts/build_multi_hop.py --output_dir data/small_world --num_entities 20 --num_relations 4 \
        --train_hops 2-8 --test_hops 1-8,12,16,24,32,40 --cap_to_available
"""

import sys
from dataclasses import dataclass, field

from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.data.chains.folder import describe_manifest
from memreason_hf.data.chains.multi_hop import MultiHopConfig, prepare_multi_hop


PROG = "build_multi_hop.py"
EXPLANATION = """
A world has entities and relations; every relation is a random permutation of the entities. An entity, a relation
and the entity that it leads to are an atomic fact: <e_3><r_1> -> <e_8>. A chain of several hops follows several
relations: <e_3><r_1><r_4><r_0> -> <e_5>. A model learns the atomic facts and the training chains. It is tested on
chains that are not in training, which can be longer than all training chains.

The folder can be read in three ways:
  datasets.load_from_disk(DIR)               splits train, validation, test, test_small, with hops and entities
  AutoTokenizer.from_pretrained(DIR)         one token for each entity and relation
  train.json, valid.json, test.json, ...     the study's own schema, see data_scripts/README.md
"""


@dataclass
class OutputArguments:
    """Where the data set goes."""

    output_dir: str = field(metadata={"help": "Folder for the data set. It is created if it does not exist."})
    overwrite: bool = field(
        default=False,
        metadata={"help": "Replace another data set in the folder. Without this flag it is an error."},
    )


def make_parser() -> CommandParser:
    sections = [Section("output", OutputArguments, "output"), Section("world", MultiHopConfig, "sizes")]
    return CommandParser(sections, recipe=None, prog=PROG, description=__doc__ + EXPLANATION)


def main(argv: list[str] | None = None) -> int:
    """Builds the data set; returns the exit code. A wrong flag ends the program with code 2 and one message."""
    with user_errors(PROG):
        output, config = make_parser().parse_sections(argv)
        manifest = prepare_multi_hop(config, output.output_dir, overwrite=output.overwrite)
        print(describe_manifest(output.output_dir, manifest))
        return 0


if __name__ == "__main__":
    sys.exit(main())
