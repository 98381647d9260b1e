r"""
Builds the multi-hop data set of the depth-extrapolation study (some seconds, 0.6 GB of files):

    python data_scripts/build_multi_hop.py --output_dir data/multi_hop

A small world, as in the quickstart (trained on 2 to 8 hops, tested far beyond):

    python data_scripts/build_multi_hop.py --output_dir data/small_world --num_entities 20 --num_relations 4 \
        --train_hops 2-8 --test_hops 1-8,12,16,24,32,40 --cap_to_available
"""

from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from dataclasses import dataclass, field

from transformers import HfArgumentParser

from memreason_hf.data.chains.folder import describe_manifest
from memreason_hf.data.chains.multi_hop import MultiHopConfig, prepare_multi_hop


EXPLANATION = """
A world has entities and relations; every relation is a random permutation of the entities. An entity, a relation
and the entity that it leads to are an atomic fact: <e_3><r_1> -> <e_8>. A chain of several hops follows several
relations: <e_3><r_1><r_4><r_0> -> <e_5>. A model learns the atomic facts and the training chains, and is asked for
test chains that it never saw, also longer ones than any in training.

The folder can be read in three ways:
  datasets.load_from_disk(DIR)               splits train, validation, test, test_small, with hops and entities
  AutoTokenizer.from_pretrained(DIR)         one word an entity or relation
  train.json, valid.json, test.json, ...     the study's own schema, see data_scripts/README.md
"""


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the lines of the explanation, and shows the defaults."""


@dataclass
class OutputArguments:
    output_dir: str = field(metadata={"help": "Folder for the data set; made if it is not there."})
    overwrite: bool = field(
        default=False,
        metadata={"help": "Replace the data set that the folder holds. Without it another data set is refused."},
    )


def make_parser() -> HfArgumentParser:
    return HfArgumentParser(
        [OutputArguments, MultiHopConfig], description=__doc__ + EXPLANATION, formatter_class=HelpFormatter
    )


def main(arguments: list[str] | None = None):
    parser = make_parser()
    try:
        output, config = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
        manifest = prepare_multi_hop(config, output.output_dir, overwrite=output.overwrite)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(describe_manifest(output.output_dir, manifest))


if __name__ == "__main__":
    main()
