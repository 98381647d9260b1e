"""A recipe and the flags that override it: what the subcommands that take a RECIPE share."""

import argparse
import copy
import dataclasses
import difflib
import enum
import types
import typing
from collections.abc import Mapping
from pathlib import Path

from transformers import HfArgumentParser

from memreason_hf.recipes import find_recipe, load_recipe, recipe_names


_UNSET = object()
_CLOSE = 0.6


@dataclasses.dataclass(frozen=True)
class RecipeSection:
    """
    One section of a recipe.

    Attributes:
        name: its key in the file.
        fields_of: the dataclass whose fields are its keys; `metadata={"help": ...}` describes a field.
        title: its heading in `--help`.
        shown: fields that `--help` lists, in this order; the others follow with `--help_all`. `None`: all.
        flags: flags that are not spelled like their field, `{field: flag}`.
        prefix: what all other flags of the section begin with.
        defaults: defaults that `--help` shows in place of the dataclass's own.
    """

    name: str
    fields_of: type
    title: str
    shown: tuple[str, ...] | None = None
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    defaults: Mapping[str, object] = dataclasses.field(default_factory=dict)

    @property
    def hints(self) -> dict[str, object]:
        """The fields that can be set, with their types."""
        hints = typing.get_type_hints(self.fields_of)
        names = [field.name for field in dataclasses.fields(self.fields_of) if field.init]
        shown = [name for name in self.shown or () if name in names]
        return {name: hints[name] for name in [*shown, *(name for name in names if name not in shown)]}

    def flag(self, field: str) -> str:
        return self.flags.get(field, self.prefix + field)


class RecipeParser(HfArgumentParser):
    """
    `HfArgumentParser` for `COMMAND RECIPE [--flag value ...]`: a flag wins over the recipe, that over the default.

    Args:
        sections: the sections that a recipe may have. Each field is a key of its section and, where a flag can
            express its type, a flag.
        recipe_required: whether the command works from flags alone.
        recipe_prefix: what the names of the package's recipes for this command begin with; users leave it out.
        kwargs: as for `argparse.ArgumentParser`.
    """

    def __init__(
        self, sections: list[RecipeSection], *, recipe_required: bool = True, recipe_prefix: str = "", **kwargs
    ):
        kwargs.setdefault("usage", "%(prog)s RECIPE [--flag value ...]")
        kwargs.setdefault("formatter_class", _HelpFormatter)
        super().__init__(allow_abbrev=False, add_help=False, **kwargs)
        self.sections = {section.name: section for section in sections}
        self.recipe_required = recipe_required
        self.recipe_prefix = recipe_prefix
        packaged = ", ".join(name.removeprefix(recipe_prefix) for name in recipe_names(recipe_prefix))
        self._destinations: dict[str, tuple[str, str]] = {}
        self._hidden: list[argparse.Action] = []
        self.add_argument(
            "recipe",
            nargs=None if recipe_required else "?",
            metavar="RECIPE",
            help=f"A YAML file, or the name of a recipe of the package: {packaged}.",
        )
        self.add_argument("-h", "--help", action=_HelpAction, everything=False, help="Show the usual flags and exit.")
        self.add_argument("--help_all", "--help-all", action=_HelpAction, everything=True, help="Show every flag.")
        for section in sections:
            self._add_section(section)

    def parse_recipe(self, argv: list[str] | None = None) -> tuple[Path | None, dict[str, dict[str, object]]]:
        """
        Reads the recipe and the flags.

        Returns:
            The recipe's file and, for every section, the values that were given, of the types of its fields. What was
            not given is not there, so that a default of `None` and a given `None` can be told apart.

        Raises:
            FileNotFoundError, ValueError: no such recipe, an unknown section, key or flag, a value of a wrong type.
        """
        actions = {action.dest for action in self._actions if action.dest != argparse.SUPPRESS}
        # Values that are there already keep argparse from filling in the defaults.
        namespace = argparse.Namespace(**dict.fromkeys(actions, _UNSET))
        namespace, unknown = self.parse_known_args(argv, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            close = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1, cutoff=_CLOSE)
            hint = f" Did you mean {close[0]}?" if close else " --help_all lists every flag."
            raise ValueError(f"unknown flag {' '.join(unknown)!r}.{hint}")
        values = {name: {} for name in self.sections}
        path = None
        if namespace.recipe not in (_UNSET, None):
            path = find_recipe(namespace.recipe, self.recipe_prefix)
            for name, given in load_recipe(path).items():
                section = self._known_section(name, path)
                values[section] = self._checked(section, given, path)
        for destination, (section, field) in self._destinations.items():
            value = getattr(namespace, destination)
            if value is not _UNSET:
                values[section][field] = value
        return path, values

    def format_help(self, everything: bool = True) -> str:
        helps = [(action, action.help) for action in self._hidden]
        try:
            for action, _ in helps if not everything else ():
                action.help = argparse.SUPPRESS
            return super().format_help()
        finally:
            for action, text in helps:
                action.help = text

    def _add_section(self, section: RecipeSection):
        fields = []
        by_name = {field.name: field for field in dataclasses.fields(section.fields_of)}
        for name, hint in section.hints.items():
            flag_type = _flag_type(hint)
            if flag_type is None:
                continue
            default = section.defaults.get(name, by_name[name].default)
            if default is dataclasses.MISSING:
                factory = by_name[name].default_factory
                default = None if factory is dataclasses.MISSING else factory()
            if isinstance(default, enum.Enum):
                default = default.value
            metadata = {"help": "(see the documentation)", **by_name[name].metadata}
            fields.append((section.flag(name), flag_type, _field(default, metadata)))
            self._destinations[section.flag(name)] = (section.name, name)
        before = len(self._actions)
        self._add_dataclass_arguments(
            dataclasses.make_dataclass(section.name, fields, namespace={"_argument_group_name": section.title})
        )
        for action in self._actions[before:]:
            field = self._destinations[action.dest][1]
            if isinstance(action, argparse._StoreFalseAction):
                action.help = f"Switches --{action.dest} off."
            if section.shown is not None and field not in section.shown:
                self._hidden.append(action)

    def _known_section(self, name, path):
        if name in self.sections:
            return name
        close = difflib.get_close_matches(str(name), self.sections, n=1, cutoff=_CLOSE)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{path}: unknown section {name!r}; a recipe may have {', '.join(self.sections)}.{hint}")

    def _checked(self, name, given, path):
        hints = self.sections[name].hints
        checked = {}
        for key, value in given.items():
            if key not in hints:
                raise ValueError(f"{path}, section {name}: unknown key {key!r}.{self._suggestion(name, key)}")
            try:
                checked[key] = convert(value, hints[key])
            except ValueError as error:
                raise ValueError(f"{path}, {name}.{key}: {error}") from None
        return checked

    def _suggestion(self, name, key):
        for other in (name, *self.sections):
            close = difflib.get_close_matches(str(key), self.sections[other].hints, n=1, cutoff=_CLOSE)
            if close:
                return f" Did you mean {close[0]!r}{'' if other == name else f' of section {other}'}?"
        return f" Section {name} knows {', '.join(self.sections[name].hints)}."


def convert(value, hint):
    """
    `value`, as YAML gave it, as the type `hint`.

    YAML reads 1e-4 as text and 2.0 as a float: both become what the field wants. Nothing else is converted silently.

    Raises:
        ValueError: it cannot be had without guessing.
    """
    origin, arms = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arms)
    if origin is typing.Literal:
        if value not in arms:
            close = difflib.get_close_matches(str(value), [str(arm) for arm in arms], n=1)
            hint_text = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{value!r} is not one of {', '.join(map(repr, arms))}.{hint_text}")
        return value
    if hint is bool:
        return _accept(value, isinstance(value, bool), "true or false")
    if hint is int:
        if isinstance(value, str | float) and not isinstance(value, bool):
            number = _number(value, "a whole number")
            return int(_accept(number, number == int(number), "a whole number"))
        return _accept(value, isinstance(value, int) and not isinstance(value, bool), "a whole number")
    if hint is float:
        return _number(value, "a number")
    if hint is str:
        why = 'text; YAML reads a bare yes, no, on, off as true or false: put it in "quotes"'
        return _accept(value, isinstance(value, str), why if isinstance(value, bool) else "text")
    if origin is list or hint is list:
        _accept(value, isinstance(value, list), "a list")
        return [convert(item, arms[0]) for item in value] if arms else value
    if origin is dict or hint is dict:
        return _accept(value, isinstance(value, dict), "a mapping")
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return convert(value, typing.Literal[tuple(item.value for item in hint)])
    return _accept(value, isinstance(hint, type) and isinstance(value, hint), getattr(hint, "__name__", str(hint)))


def _convert_union(value, arms):
    if value is None and type(None) in arms:
        return None
    for arm in arms:
        if isinstance(arm, type) and type(value) is arm:
            return value
    # An enum beside str: its values are the only texts that mean something.
    arms = sorted((arm for arm in arms if arm is not type(None)), key=lambda arm: not _is_enum(arm))
    problem = None
    for arm in arms:
        try:
            return convert(value, arm)
        except ValueError as error:
            problem = problem or error
    raise problem


def _is_enum(hint):
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def _accept(value, right, wanted):
    if not right:
        raise ValueError(f"{value!r} is not {wanted}.")
    return value


def _number(value, wanted):
    try:
        return float(_accept(value, not isinstance(value, bool), wanted))
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not {wanted}.") from None


def _field(default, metadata):
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _flag_type(hint):
    """The type that one flag can have for a field of type `hint`; `None`: recipes only."""
    arms = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [arm for arm in arms if arm is not type(None)]
        for preferred in (*filter(_is_enum, rest), float, int, bool, str):
            if preferred in rest:
                return preferred | None if type(None) in arms else preferred
        if len(rest) == 1 and _flag_type(rest[0]) is not None:
            return typing.Optional[rest[0]]  # noqa: UP045 - Literal | None is no type that argparse's parser reads
        return None
    if hint in (int, float, bool, str) or _is_enum(hint) or typing.get_origin(hint) is typing.Literal:
        return hint
    if typing.get_origin(hint) is list and arms and arms[0] in (int, float, str):
        return hint
    return None


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside the flags; description and epilog as they were written; a flag's spelling with `_` only."""

    def _format_action_invocation(self, action):
        shown = copy.copy(action)
        shown.option_strings = [
            flag for flag in action.option_strings if "_" in flag or flag.replace("-", "_") not in self._twins(action)
        ]
        return super()._format_action_invocation(shown)

    def _get_help_string(self, action):
        # What switches a flag off has no default of its own.
        return action.help if isinstance(action, argparse._StoreFalseAction) else super()._get_help_string(action)

    @staticmethod
    def _twins(action):
        return {flag.replace("-", "_") for flag in action.option_strings if "_" in flag}


class _HelpAction(argparse.Action):
    def __init__(self, option_strings, dest, everything, help=None):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)
        self.everything = everything

    def __call__(self, parser, namespace, values, option_string=None):
        print(parser.format_help(everything=self.everything))
        parser.exit()
