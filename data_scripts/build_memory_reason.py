r"""
Builds a data set of annotated questions (seconds):

    python data_scripts/build_memory_reason.py --name strategy_qa --output_dir data/strategy_qa

From a folder with the study's JSON files instead of the authors' repository:

    python data_scripts/build_memory_reason.py --name truthful_qa --source FOLDER --output_dir data/truthful_qa
"""

from argparse import RawDescriptionHelpFormatter
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from memreason_hf.data.questions.memory_reason import (
    NAMES,
    build_memory_reason,
    check_output_folder,
    save_memory_reason,
)


EXPLANATION = """
strategy_qa, commonsense_qa and truthful_qa are the questions of "Disentangling Memory and Reasoning Ability in Large
Language Models", whose steps recall knowledge ([rag]) or reason over it ([reason]). gsm8k and aqua_rat have the lines
of their rationales as steps, without kinds. What is dropped is counted, printed and written to report.json; the rules
are in data_scripts/README.md. The result is read with datasets.load_from_disk(DIR).
"""


@dataclass
class BuildArguments:
    name: str = field(metadata={"help": f"The data set: {', '.join(NAMES)}.", "choices": list(NAMES)})
    output_dir: str = field(metadata={"help": "Folder for the data set; made if it is not there."})
    source: str | None = field(
        default=None,
        metadata={
            "help": "A folder or URL with the JSON files; for gsm8k and aqua_rat a folder or a name on the Hub. "
            "Default: the authors' repository, or the Hub."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the data set that the folder holds."})


def make_parser() -> HfArgumentParser:
    return HfArgumentParser(
        BuildArguments, description=__doc__ + EXPLANATION, formatter_class=RawDescriptionHelpFormatter
    )


def main(arguments: list[str] | None = None):
    parser = make_parser()
    try:
        (options,) = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
        check_output_folder(Path(options.output_dir), options.overwrite)
        data = build_memory_reason(options.name, options.source)
        save_memory_reason(data, options.output_dir, overwrite=options.overwrite)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(data.report.describe())
    print(f"written to {options.output_dir}")


if __name__ == "__main__":
    main()
