"""The parser of the commands that run a trained model."""

import sys

from memreason_hf.command_line.flags import HelpFormatter
from memreason_hf.command_line.recipe_parser import RecipeParser, RecipeSection


class ModelParser(RecipeParser):
    """`RecipeParser` for `COMMAND [RECIPE.yaml] [MODEL] [--flag value ...]`; MODEL is short for `--model MODEL`."""

    def __init__(self, sections: list[RecipeSection], **kwargs):
        super().__init__(
            sections,
            recipe_required=False,
            usage="%(prog)s [RECIPE.yaml] [MODEL] [--flag value ...]",
            formatter_class=HelpFormatter,
            **kwargs,
        )
        positional = next(action for action in self._actions if action.dest == "recipe")
        positional.metavar = "RECIPE.yaml, MODEL"
        positional.help = "A YAML file with these flags under the names of their sections; a model, short for --model."

    def parse_recipe(self, argv: list[str] | None = None):
        argv = list(sys.argv[1:] if argv is None else argv)
        count = next((index for index, argument in enumerate(argv) if argument.startswith("-")), len(argv))
        recipe = [argument for argument in argv[:count] if argument.endswith((".yaml", ".yml"))]
        model = [argument for argument in argv[:count] if argument not in recipe]
        if len(recipe) > 1 or len(model) > 1:
            raise ValueError(
                f"{' '.join(argv[:count])!r}: at most one RECIPE.yaml and one MODEL come before the flags."
            )
        return super().parse_recipe([*recipe, *(f"--model={name}" for name in model), *argv[count:]])

    def parse_sections(self, argv: list[str] | None = None) -> list:
        """One instance of its dataclass for each section, in their order."""
        _, values = self.parse_recipe(argv)
        return [section.fields_of(**values[name]) for name, section in self.sections.items()]
