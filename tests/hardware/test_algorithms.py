"""Which algorithm makes which scheme, and what `auto` comes to."""

import re
from dataclasses import replace

import pytest

from edgeforge.errors import UsageError
from edgeforge.hardware import (
    ALGORITHMS,
    available_targets,
    find_conflict,
    load_target,
    target_from_json,
    target_to_json,
    with_algorithm,
)
from edgeforge.planning import apply_overrides, make_plan
from tests.planning.shapes import SMOLLM2

TARGETS = tuple(load_target(name) for name in available_targets())


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_auto_is_searched_scales_for_integers_and_rounding_for_all_else(target) -> None:  # type: ignore[no-untyped-def]
    assert target.algorithm == "auto"
    assert with_algorithm(target).algorithm == ("search" if target.scheme in ("w4a16", "w8a16") else "rtn")


def test_text_makes_four_bits_better_than_searched_and_fp8_better_than_rounded() -> None:
    target = load_target("cpu")
    assert with_algorithm(target, has_text=True).algorithm == "gptq"
    assert with_algorithm(replace(target, algorithm="rtn"), has_text=True).algorithm == "rtn"
    assert with_algorithm(replace(target, scheme="w8a16"), has_text=True).algorithm == "search"
    for scheme, algorithm in (("fp8", "gptq"), ("fp8-dynamic", "gptq"), ("w4a8", "rtn"), ("bf16", "rtn")):
        wanted = apply_overrides(load_target("h100"), backend="modelopt", scheme=scheme)
        assert with_algorithm(wanted, has_text=True).algorithm == algorithm


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_auto_is_never_a_conflict(target) -> None:  # type: ignore[no-untyped-def]
    assert find_conflict(with_algorithm(target)) is None


def test_a_plan_says_the_algorithm_and_not_auto() -> None:
    target = load_target("cpu")
    assert make_plan(SMOLLM2, target).target.algorithm == "search"
    assert make_plan(SMOLLM2, apply_overrides(target, algorithm="rtn")).target.algorithm == "rtn"
    assert make_plan(SMOLLM2, apply_overrides(target, scheme="f32")).target.algorithm == "rtn"


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_the_algorithm_survives_json(algorithm: str) -> None:
    target = replace(load_target("cpu"), algorithm=algorithm)
    assert target_from_json(target_to_json(target)) == target


def test_a_manifest_from_before_there_was_a_choice_is_read() -> None:
    document = target_to_json(load_target("cpu"))
    del document["algorithm"]
    assert target_from_json(document).algorithm == "auto"


@pytest.mark.parametrize(
    ("name", "scheme", "algorithm", "sentence"),
    [
        ("cpu", "w4a16", "gtpq", "algorithm 'gtpq' is unknown; use auto or rtn or search or gptq or awq or awq+gptq"),
        (
            "h100",
            "fp8",
            "search",
            "algorithm search makes w4a16, w6a16 and w8a16, not scheme fp8; use --algorithm rtn or gptq",
        ),
        ("h100", "fp8", "awq+gptq", "not scheme fp8; use --algorithm rtn or gptq"),
        ("h100", "bf16", "gptq", "not scheme bf16; use --algorithm rtn"),
        ("h100", "bf16", "search", "not scheme bf16; use --algorithm rtn"),
    ],
)
def test_what_an_algorithm_cannot_make_is_answered_with_what_can(
    name: str, scheme: str, algorithm: str, sentence: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        apply_overrides(load_target(name), scheme=scheme, algorithm=algorithm)
