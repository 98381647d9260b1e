"""The schemes that are compared: what each of them trains on, with how many tokens, in which mode."""

import pytest

from memreason_hf.experiments.scheme_comparison.schemes import SCHEMES, choose_variants
from memreason_hf.steps import Step, StepScheme, answer_step


STEPS = [Step("memory", "a"), Step("reason", "b"), Step("memory", "c"), answer_step("7")]
P, M, R, A = "<prefix>", "<memory_0><memory_1>", "<reason_0><reason_1>", "<answer_0><answer_1>"
TEXTS = {
    "answer_only": "The answer is: 7\n",
    "plain": "a\nb\nc\nThe answer is: 7\n",
    "words": "Memory: a\nReason: b\nMemory: c\nAnswer: The answer is: 7\n",
    "front": f"{P} a\nb\nc\nThe answer is: 7\n",
    "prefix_only": f"{P} a\n{P} b\n{P} c\n{P} The answer is: 7\n",
    "memory_reason": f"{P}{M} a\n{P}{R} b\n{P}{M} c\n{P}{A} The answer is: 7\n",
    "ordered": f"{P}{M} a\n{P}{M} c\n{P}{R} b\n{P}{A} The answer is: 7\n",
    "plan_first": f"{P}{M}\n{P}{R}\n{P}{M}\n{P}{A}\n{P}{M} a\n{P}{R} b\n{P}{M} c\n{P}{A} The answer is: 7\n",
    "plan_only": f"{P}{M}\n{P}{R}\n{P}{M}\n{P}{A} The answer is: 7\n",
}
BASE = {"num_prefix_tokens": 1, "num_step_tokens": 2}


def test_what_each_of_them_trains_on():
    variants = choose_variants(list(SCHEMES), [], BASE, mode="full")
    assert list(variants) == list(SCHEMES) and len(variants) == 10
    assert set(TEXTS) == set(SCHEMES) - {"random_marks"}
    for name, text in TEXTS.items():
        assert variants[name].scheme.render(STEPS) == text, name
    marked = variants["random_marks"].scheme.render(STEPS).splitlines()
    assert all(line.startswith(f"{P}<random") and "_0><random" in line for line in marked)
    assert len({variant.title for variant in variants.values()}) == len(variants)


def test_the_sweep_leaves_out_what_is_there_already():
    variants = choose_variants(["plain", "memory_reason"], [1, 2, 8], BASE, mode="full")
    assert list(variants) == ["plain", "memory_reason", "memory_reason_1", "memory_reason_8"]
    assert variants["memory_reason_8"].scheme == StepScheme(1, 8)
    assert variants["memory_reason_1"].title == "memory and reason, 1 step token"
    # Without the scheme itself its number of tokens belongs to the sweep.
    assert list(choose_variants(["plain"], [2], BASE, mode="full")) == ["plain", "memory_reason_2"]


def test_modes_where_there_are_no_tokens():
    variants = choose_variants(list(SCHEMES), [], BASE, mode="lora+tokens")
    modes = {name: variant.mode for name, variant in variants.items()}
    assert [name for name, mode in modes.items() if mode == "lora"] == ["answer_only", "plain", "words"]
    assert variants["plain"].title == "plain LoRA: steps without marks"
    assert set(modes.values()) == {"lora", "lora+tokens"}
    for mode in ("full", "lora"):
        chosen = choose_variants(["plain", "front"], [], BASE, mode=mode)
        assert {variant.mode for variant in chosen.values()} == {mode}
    with pytest.raises(ValueError, match=r"mode='tokens' trains .* but the scheme plain has no tokens\. Leave it out"):
        choose_variants(["front", "plain"], [], BASE, mode="tokens")


def test_kinds_of_ones_own():
    variants = choose_variants(["ordered", "words"], [1], {**BASE, "kinds": "look_up,compute"}, mode="full")
    steps = [Step("compute", "b"), Step("look_up", "a")]
    assert variants["ordered"].scheme.render(steps).startswith("<prefix><look_up_0>")
    assert variants["words"].scheme.render(steps) == "Compute: b\nLook up: a\n"
    assert [variant.title for variant in variants.values()] == [
        "look_up first",
        "words as marks",
        "look_up and compute, 1 step token",
    ]


@pytest.mark.parametrize(
    ("names", "steps", "message"),
    [
        (["study"], BASE, "schemes='study' must name some of answer_only, plain"),
        ([], BASE, "schemes='' must name some of"),
        (["plain"], {**BASE, "marks": "words"}, "changes more than kinds and numbers of tokens"),
        (["plain"], {**BASE, "random_marks": True}, "changes more than kinds and numbers of tokens"),
        (["front"], {"num_prefix_tokens": 0}, "Scheme front: layout='front'.*Leave it out of --schemes"),
        (["plan_only"], {"num_step_tokens": 0}, "Scheme plan_only: .*leaves no token for the kinds"),
    ],
)
def test_what_cannot_be_compared_is_refused(names, steps, message):
    with pytest.raises(ValueError, match=message):
        choose_variants(names, [], steps, mode="full")
