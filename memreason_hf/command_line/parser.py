"""The command line of every verb and data script: flags in sections, and a recipe that gives the same values."""

import argparse
import copy
import dataclasses
import enum
import re
import textwrap
import typing
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from memreason_hf.command_line.values import check_value, closest, is_enum, shown, union_arms
from memreason_hf.recipes import find_recipe, load_recipe, recipe_names


_UNSET = object()
# How messages call the types of flags.
_WANTED = {"int": "a whole number", "float": "a number", "string_to_bool": "true or false"}
_YAML_SUFFIXES = (".yaml", ".yml")
# Lines of help are at most as long as those of the descriptions.
_WIDTH = 119


@dataclasses.dataclass(frozen=True)
class Section:
    """
    Flags with a common title, which are the fields of a dataclass and the keys of a section in a recipe.

    Attributes:
        name: identifies the section in what the parser returns.
        fields_of: the dataclass. `metadata={"help": ...}` describes a field.
        title: the heading in `--help`.
        key: the section's name in a recipe, `name` by default. Several sections may share one.
        shown: fields that `--help` lists, in this order; `--help_all` lists all fields. None: all of them.
        left_out: fields that this command does not have.
        flags: flags that are not spelled like their field, `{field: flag}`.
        prefix: the beginning of all other flags of the section.
        defaults: defaults of this command that differ from those of the dataclass.

    Example:
        >>> @dataclasses.dataclass
        ... class Data:
        ...     path: str = dataclasses.field(default="data", metadata={"help": "Folder of the data set."})
        >>> parser = CommandParser([Section("data", Data, "data")], prog="example")
        >>> parser.parse_sections(["--path", "other"])
        [Data(path='other')]
    """

    name: str
    fields_of: type
    title: str
    key: str = ""
    shown: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    defaults: Mapping[str, object] = dataclasses.field(default_factory=dict)

    @property
    def recipe_key(self) -> str:
        return self.key or self.name

    @cached_property
    def hints(self) -> dict[str, object]:
        """The fields that can be set, with their types, in the order of the help."""
        hints = typing.get_type_hints(self.fields_of)
        names = [f.name for f in dataclasses.fields(self.fields_of) if f.init and f.name not in self.left_out]
        first = [name for name in self.shown or () if name in names]
        return {name: hints[name] for name in dict.fromkeys([*first, *names])}

    def flag(self, field: str) -> str:
        """The flag of a field, without its dashes."""
        return self.flags.get(field, self.prefix + field)


class CommandParser(HfArgumentParser):
    """
    `HfArgumentParser` for `COMMAND [RECIPE] [MODEL] [--flag value ...]`.

    A flag overrides the recipe, and the recipe the default. Flags can be written with `_` or `-`, and must be
    written in full. Every error is a ValueError or OSError of one line: call the parser inside `user_errors`.

    Args:
        sections: the sections of the command. Every field is a key of its section in a recipe and, where a flag can
            express its type, a flag.
        recipe: "required" or "optional" where the command line must or can name a recipe, a file or one of the
            package's; "file" where it can name a file of the flags' values; None for a command without recipes.
        recipe_prefix: prefix of the names of the package's recipes for this command, which users leave out.
        model: whether MODEL can stand for `--model MODEL`. A recipe is then recognised by its suffix, `.yaml`.
        places: fields that can also be given without a flag, in this order. If the last one is a list, it takes all
            that follow.
        prog, description, epilog: as for `argparse.ArgumentParser`; line breaks are kept.
    """

    def __init__(
        self,
        sections: list[Section],
        *,
        recipe: Literal["required", "optional", "file"] | None = "file",
        recipe_prefix: str = "",
        model: bool = False,
        places: tuple[str, ...] = (),
        description: str = "",
        **kwargs,
    ):
        self.sections = {section.name: section for section in sections}
        self.recipe, self.recipe_prefix = recipe, recipe_prefix
        self.places = (*(("model",) if model else ()), *places)
        self._destinations: dict[str, tuple[Section, str]] = {}
        super().__init__(
            [self._flags_of(section) for section in sections],
            usage=f"%(prog)s {self._usage()}[--flag value ...]",
            description=f"{description.rstrip()}\n\n{self._explain()}",
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
            add_help=False,
            **kwargs,
        )
        for action in self._actions:
            if action.type is string_to_bool and action.nargs is None:
                # A flag that is unset by default means true without a value, as other switches do.
                action.nargs, action.const = "?", True
        self._hidden = [action for action in self._actions if self._prepare_help(action)]
        if self._hidden:
            self.add_argument("-h", "--help", action=_HelpAction, shows_all=False, help="Show the usual flags.")
            self.add_argument("--help_all", "--help-all", action=_HelpAction, shows_all=True, help="Show every flag.")
        else:
            self.add_argument(
                *("-h", "--help", "--help_all", "--help-all"),
                action=_HelpAction,
                shows_all=True,
                help="Show this help.",
            )

    def parse_recipe(self, argv: list[str] | None = None) -> tuple[Path | None, dict[str, dict[str, object]]]:
        """
        Reads the recipe and the flags.

        Returns:
            The file of the recipe and, for every section, the values that were given, of the types of their fields.
            A field that was not given has no entry, which differs from a given None.

        Raises:
            FileNotFoundError, ValueError: there is no such recipe; a section, key or flag is unknown; a value is of
                the wrong type.
        """
        # Attributes that exist keep argparse from filling in defaults.
        namespace = argparse.Namespace(**dict.fromkeys(self._destinations, _UNSET))
        namespace, rest = self.parse_known_args(argv, namespace)
        recipe, places = self._recipe_and_places(rest)
        values = {name: {} for name in self.sections}
        path = None
        if recipe is not None:
            path = self._find_recipe(recipe)
            for key, given in load_recipe(path).items():
                for (section, field), value in self._check_section(key, given, path):
                    values[section][field] = value
        for index, field in enumerate(self.places[: len(places)]):
            value = places[index:] if self._is_list(field) else places[index]
            values[self._section_of(field).name][field] = value
        for destination, (section, field) in self._destinations.items():
            value = getattr(namespace, destination)
            if value is not _UNSET:
                values[section.name][field] = value
        return path, values

    def parse_sections(self, argv: list[str] | None = None) -> list:
        """
        The dataclass of every section, in their order.

        Raises:
            FileNotFoundError, ValueError: as `parse_recipe`, and where a field without a default is not given.
        """
        _, values = self.parse_recipe(argv)
        for name, section in self.sections.items():
            for field in dataclasses.fields(section.fields_of):
                if _is_required(field) and values[name].get(field.name) in (None, ""):
                    key = f" or set {section.recipe_key}.{field.name} in the recipe" if self.recipe else ""
                    raise ValueError(f"{field.name} is not given. Pass --{section.flag(field.name)}{key}.")
        return [section.fields_of(**{**section.defaults, **values[name]}) for name, section in self.sections.items()]

    def error(self, message: str) -> typing.NoReturn:
        """Raises an error of argparse, which would print the usage and exit."""
        invalid = re.fullmatch(r"argument --(\w+)\S*: invalid (\w+) value: (.*)", message, re.DOTALL)
        if invalid is not None and invalid[2] in _WANTED:
            raise ValueError(f"{invalid[1]}={invalid[3]} must be {_WANTED[invalid[2]]}.")
        raise ValueError(f"{message.rstrip('.')}.")

    def format_help(self, shows_all: bool = True) -> str:
        """The text of `--help_all`, or that of `--help`."""
        texts = [] if shows_all else [(action, action.help) for action in self._hidden]
        try:
            for action, _ in texts:
                action.help = argparse.SUPPRESS
            return super().format_help()
        finally:
            for action, text in texts:
                action.help = text

    def _usage(self):
        words = {"required": "RECIPE ", "optional": "[RECIPE] ", "file": "[RECIPE.yaml] ", None: ""}
        names = [f"[{name.upper()}]" if name == "model" else name.upper() for name in self.places]
        names = [f"{name}... " if self._is_list(place) else f"{name} " for name, place in zip(names, self.places)]
        return words[self.recipe] + "".join(names)

    def _explain(self):
        """What stands before the flags, and how flags are written."""
        lines = []
        if self.recipe in ("required", "optional"):
            lines.append(f"RECIPE is a YAML file, or the name of a recipe of the package: {self._packaged()}.")
        elif self.recipe == "file":
            lines.append("RECIPE.yaml is a file with these flags as keys, under the names of their sections.")
        if self.places:
            names = [name.upper() for name in self.places]
            flags = " ".join(f"--{name} {name.upper()}" for name in self.places)
            lines.append(f"{' '.join(names)} is short for {flags}.")
        if self.recipe is not None:
            lines.append("A flag overrides the recipe.")
        lines.append("A flag can be written with _ or -: --max_steps, --max-steps.")
        return textwrap.fill(" ".join(lines), _WIDTH)

    def _packaged(self):
        return ", ".join(name.removeprefix(self.recipe_prefix) for name in recipe_names(self.recipe_prefix))

    def _flags_of(self, section):
        """A dataclass of the fields that can be flags, named as the flags, for `HfArgumentParser`."""
        fields = []
        by_name = {field.name: field for field in dataclasses.fields(section.fields_of)}
        for name, hint in section.hints.items():
            flag_type = _flag_type(hint)
            if flag_type is None:
                continue
            field, flag = by_name[name], section.flag(name)
            metadata = {"help": "(see the documentation)", **field.metadata}
            if _is_required(field):
                metadata["help"] += " Required."
            fields.append((flag, flag_type, _flag_field(section.defaults.get(name, _default(field)), metadata)))
            self._destinations[flag] = (section, name)
        where = f" (section {section.recipe_key} of a recipe)" if self.recipe is not None else ""
        namespace = {"_argument_group_name": section.title + where}
        return dataclasses.make_dataclass(section.name, fields, namespace=namespace)

    def _prepare_help(self, action):
        """Whether only `--help_all` shows a flag."""
        if action.const is False:
            action.help = f"Switches --{action.dest} off."
        section, field = self._destinations[action.dest]
        return section.shown is not None and field not in section.shown

    def _recipe_and_places(self, rest):
        """The recipe, and the values of `places`, from the arguments that are not flags or their values."""
        count = next((index for index, argument in enumerate(rest) if argument.startswith("-")), len(rest))
        if rest[count:]:
            flags = [flag for action in self._actions for flag in action.option_strings]
            close = closest(rest[count].split("=")[0], flags)
            hint = f"Did you mean {close}?" if close else "--help_all lists all flags."
            raise ValueError(f"unknown flag {' '.join(rest[count:])!r}. {hint}")
        given = rest[:count]
        recipes = [argument for argument in given if not self.places or argument.endswith(_YAML_SUFFIXES)]
        places = [argument for argument in given if argument not in recipes]
        takes_more = bool(self.places) and self._is_list(self.places[-1])
        if len(recipes) > int(self.recipe is not None) or (len(places) > len(self.places) and not takes_more):
            words = [word.strip("[]") for word in self._usage().split()]
            allowed = f"at most one {' and one '.join(words)}" if words else "flags only"
            raise ValueError(f"{' '.join(given)!r}: the command takes {allowed}.")
        if self.recipe == "required" and not recipes:
            raise ValueError(f"RECIPE is not given: a YAML file, or one of {self._packaged()}.")
        return next(iter(recipes), None), places

    def _find_recipe(self, recipe):
        if self.recipe in ("required", "optional"):
            return find_recipe(recipe, self.recipe_prefix)
        # The recipes of the package are for the commands that need one.
        if not Path(recipe).is_file():
            raise FileNotFoundError(f"{recipe}: no such file. RECIPE.yaml must be a YAML file.")
        return Path(recipe)

    def _is_list(self, field):
        hint = self._section_of(field).hints[field]
        return any(typing.get_origin(arm) is list for arm in union_arms(hint))

    def _section_of(self, field):
        return next(section for section in self.sections.values() if field in section.hints)

    def _check_section(self, key, given, path):
        """`(section, field), value` for what a recipe gives under a key."""
        sections = [section for section in self.sections.values() if section.recipe_key == key]
        known_keys = list(dict.fromkeys(section.recipe_key for section in self.sections.values()))
        if not sections:
            close = closest(key, known_keys)
            hint = f" Did you mean {close!r}?" if close else ""
            raise ValueError(f"{path}: unknown section {shown(key)}. The sections are {', '.join(known_keys)}.{hint}")
        hints = {name: (section, hint) for section in sections for name, hint in section.hints.items()}
        for name, value in given.items():
            if name not in hints:
                raise ValueError(f"{path}: section {key}: unknown key {shown(name)}. {self._suggest_key(key, name)}")
            section, hint = hints[name]
            yield (section.name, name), check_value(f"{path}: {key}.{name}", value, hint)

    def _suggest_key(self, key, name):
        others = sorted(self.sections.values(), key=lambda section: section.recipe_key != key)
        for section in others:
            if close := closest(name, section.hints):
                where = "" if section.recipe_key == key else f" of section {section.recipe_key}"
                return f"Did you mean {close!r}{where}?"
        known = [field for section in others if section.recipe_key == key for field in section.hints]
        return f"The keys of section {key} are {', '.join(known)}."


def _default(field):
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _is_required(field):
    return field.init and field.default is field.default_factory is dataclasses.MISSING


def _flag_field(default, metadata):
    if isinstance(default, enum.Enum):
        default = default.value
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _flag_type(hint):
    """The type that one flag can have for a field of type `hint`. None: the field can be set by recipes only."""
    arms = union_arms(hint)
    if len(arms) > 1:
        rest = [arm for arm in arms if arm is not type(None)]
        for preferred in (*filter(is_enum, rest), float, int, bool, str):
            if preferred in rest:
                return preferred | None if len(rest) < len(arms) else preferred
        if len(rest) == 1 and _flag_type(rest[0]) is not None:
            return typing.Optional[rest[0]]  # noqa: UP045 - the parser does not read `Literal[...] | None`
        return None
    if hint in (int, float, bool, str) or is_enum(hint) or typing.get_origin(hint) is Literal:
        return hint
    if typing.get_origin(hint) is list and typing.get_args(hint)[0] in (int, float, str):
        return hint
    return None


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows one spelling of every flag, and the defaults that are values."""

    def _format_action_invocation(self, action):
        one = copy.copy(action)
        twins = {flag.replace("_", "-") for flag in action.option_strings if "_" in flag.strip("-")}
        one.option_strings = [flag for flag in action.option_strings if flag not in twins]
        return super()._format_action_invocation(one)

    def _get_help_string(self, action):
        no_value = action.default is None or action.default is False
        return action.help if no_value else super()._get_help_string(action)


class _HelpAction(argparse.Action):
    def __init__(self, option_strings, dest, shows_all, help=None):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)
        self.shows_all = shows_all

    def __call__(self, parser, namespace, values, option_string=None):
        print(parser.format_help(self.shows_all))
        parser.exit()
