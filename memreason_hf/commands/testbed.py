"""
`memreason testbed`: do memory and reason steps show where errors come from? Four small models, one world.

    memreason testbed
"""

import sys
from pathlib import Path

from memreason_hf.command_line.chat_flags import chat_section
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.judge_flags import SHOWN_FLAGS, chat_judge, given_chat_flags, refuse_unused
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.experiments.testbed.report import report
from memreason_hf.experiments.testbed.run import FIGURE_FILE, TestbedArguments, run_testbed


PROG = "memreason testbed"
DESCRIPTION = """\
Builds a world of 20 entities and 4 relations, and trains four small models on the same chains of 1 to 6 hops. They
answer at once or write memory and reason steps first, at a fixed or at a recurrent depth. Then they are asked about
chains of up to 12 hops that were not in training. Prints the accuracy by hops, the tokens that the models generate,
the recurrences that they take by kind of step, and the kind of step at which wrong solutions go wrong first. The truth
of every step is known. The judge that uses it is measured on correct solutions with inserted errors or harmless
changes, and next to it a judge that compares texts and, with --llm, a language model that is told the facts.

Two models are trained at a time, one thread each: about 6 minutes on 2 CPU cores. The same command again keeps what is
finished.
"""
EPILOG = """\
examples:
  memreason testbed
  memreason testbed --output_dir runs/testbed_seed_1 --seed 1
  memreason testbed --output_dir runs/glimpse --max_steps 100 --num_test_chains 10      # a try; learns little
  memreason testbed --models steps_fixed,steps_recurrent --disorder 1000 --output_dir runs/any_order
  memreason testbed --llm MODEL --endpoint http://127.0.0.1:8000/v1      # how well does this model judge?

a question:   Question: <e_3> <x_5> <r_1> <x_6> <r_0>      let x_5 be the r_1 of e_3, x_6 the r_0 of that
a solution:   <memory> <e_7> <x_6> <r_0> <e_2>             what is recalled, needed or not, in any order
              <memory> <e_3> <x_5> <r_1> <e_7>
              <reason> <e_3> <x_5> <r_1> <e_7>             the fact that is used, and the entity reached
              <reason> <e_7> <x_6> <r_0> <e_2>
              <answer> The answer is: <e_2>

OUTPUT_DIR holds data/, a folder for each model (the model, its log, results.json, and solutions.jsonl with every
text), testbed.json with all numbers, testbed.png, and judge_replies.jsonl with the replies of a language model.
"""


def make_parser() -> CommandParser:
    sections = [
        Section("testbed", TestbedArguments, "test bed"),
        chat_section(title="language model as judge", shown=SHOWN_FLAGS),
    ]
    return CommandParser(sections, prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Runs the test bed; returns the exit code. A wrong flag ends the program with code 2 and one message."""
    with user_errors(PROG):
        arguments, chat = make_parser().parse_sections(argv)
        if chat.llm is None:
            refuse_unused(given_chat_flags(chat), "Name it with --llm")
        results = run_testbed(arguments, None if chat.llm is None else chat_judge(chat, progress=True))
        folder = Path(arguments.output_dir)
        print(report(results))
        print(f"\nThe test bed took {results['seconds']:.0f} s. Every text is in {folder}/*/solutions.jsonl;")
        print(f"the figure is {folder / FIGURE_FILE}.")
        return 0


if __name__ == "__main__":
    sys.exit(main())
