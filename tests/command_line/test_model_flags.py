"""One set of flags for the model and one for its depth, whatever the verb."""

import re
from importlib import import_module

import pytest

from memreason_hf.command_line.depth_arguments import DEPTH
from memreason_hf.command_line.model_flags import MODEL


# What a verb does not use of the model flags, and the only depth flags that it uses.
LEFT_OUT = {
    "evaluate": set(),
    "sweep": set(),
    "evaluate_steps": set(),
    "generate": {"no_progress"},
    "attention": {"batch_size", "no_progress"},
}
DEPTH_FLAGS = {"sweep": {"max_recurrences"}, "attention": {"num_recurrences"}}


def parser_of(verb):
    return import_module(f"memreason_hf.commands.{verb}").make_parser()


def help_of(parser, title):
    """`{flag: its help}` of the group of flags that begins with `title`, without defaults."""
    group = parser.format_help().split(f"\n{title}", 1)[1].split("\n\n")[0]
    entries = re.split(r"\n  --", group)[1:]
    return {
        entry.split()[0]: re.sub(r"\(default: [^)]*\)", "", " ".join(entry.split()[1:])).strip() for entry in entries
    }


@pytest.mark.parametrize("verb", LEFT_OUT)
def test_every_verb_has_the_same_model_flags(verb):
    parser = parser_of(verb)
    assert parser.sections["model"].fields_of is MODEL.fields_of
    expected = help_of(parser_of("evaluate"), "model (")
    assert set(expected) == set(MODEL.hints)
    shown = help_of(parser, "model (")
    assert shown == {name: text for name, text in expected.items() if name not in LEFT_OUT[verb]}
    for name in LEFT_OUT[verb]:
        with pytest.raises(ValueError, match=f"unknown flag '--{name} 3'"):
            parser.parse_recipe([f"--{name}", "3"])


@pytest.mark.parametrize("verb", LEFT_OUT)
def test_every_verb_has_the_same_depth_flags(verb):
    parser = parser_of(verb)
    names = DEPTH_FLAGS.get(verb, set(DEPTH.hints))
    expected = help_of(parser_of("generate"), "depth; ")
    assert set(expected) == set(DEPTH.hints) and len(expected) > 8
    assert help_of(parser, "depth; ") == {name: text for name, text in expected.items() if name in names}


@pytest.mark.parametrize("verb", LEFT_OUT)
def test_the_model_of_a_recipe_is_in_section_inputs(verb, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("inputs: {model: m, dtype: bfloat16, device: cpu, trust_remote_code: true}")
    _, values = parser_of(verb).parse_recipe([str(path)])
    assert values["model"] == {"model": "m", "dtype": "bfloat16", "device": "cpu", "trust_remote_code": True}


def test_a_default_of_a_verb_is_shown_and_used():
    for verb, size in (("evaluate", 128), ("sweep", 128), ("generate", 8), ("evaluate_steps", 16)):
        parser = parser_of(verb)
        model = parser.parse_sections(["m", *([] if verb == "generate" else ["--data", "d"])])[0]
        assert model.batch_size == size and f"(default: {size})" in " ".join(parser.format_help().split())
