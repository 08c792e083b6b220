"""The targets that ship: each can be built as it stands and says why, and its default model fits with real shapes."""

import re
from typing import cast

import pytest

from edgeforge.errors import EdgeForgeError, UnusableInput
from edgeforge.hardware import (
    ENGINES,
    SCHEMES,
    Target,
    available_targets,
    find_conflict,
    load_profile,
    load_target,
    target_from_json,
    target_to_json,
)
from edgeforge.planning import make_plan
from tests.planning.shapes import LLAMA_8B, LLAMA_70B, LLAMA_405B

SHAPES = {"8B": LLAMA_8B, "70B": LLAMA_70B, "405B": LLAMA_405B}
TARGETS = tuple(load_target(name) for name in available_targets())
JETSONS = tuple(target for target in TARGETS if target.profile.kind == "soc")

# Backend, scheme and default model of every target that is promised.
PROMISED: dict[str, tuple[str, str, str]] = {
    "cpu": ("onnx", "w4a16", "8B"),
    "cpu-x86-64": ("onnx", "w4a16", "8B"),
    "cpu-arm64": ("onnx", "w4a16", "8B"),
    "rtx3060-12gb": ("onnx", "w4a16", "8B"),
    "rtx3090": ("onnx", "w4a16", "8B"),
    "rtx4060-8gb": ("onnx", "w4a16", "8B"),
    "rtx4070": ("onnx", "w4a16", "8B"),
    "rtx4080": ("onnx", "w4a16", "8B"),
    "rtx4090": ("onnx", "w4a16", "8B"),
    "rtx5080": ("onnx", "w4a16", "8B"),
    "rtx5090": ("onnx", "w4a16", "8B"),
    "jetson-orin-nano-8gb": ("onnx", "w4a16", "8B"),
    "jetson-orin-nx-16gb": ("onnx", "w4a16", "8B"),
    "jetson-agx-orin-64gb": ("modelopt", "w4a16", "8B"),
    "jetson-thor": ("modelopt", "nvfp4", "8B"),
    "a100-80gb": ("modelopt", "w4a16", "70B"),
    "l4": ("modelopt", "fp8", "8B"),
    "l40s": ("modelopt", "fp8", "8B"),
    "h100": ("modelopt", "fp8", "8B"),
    "h100x2": ("modelopt", "fp8", "70B"),
    "h100x4": ("modelopt", "fp8", "70B"),
    "h100x8": ("modelopt", "fp8", "405B"),
    "h200": ("modelopt", "fp8", "70B"),
    "h200x8": ("modelopt", "fp8", "405B"),
    "b200": ("modelopt", "nvfp4", "70B"),
}


def named(target: Target) -> str:
    return target.name


def size_of(target: Target) -> str:
    found = re.fullmatch(r"meta-llama/Llama-3\.1-(\d+B)-Instruct", target.default_model)
    assert found, target.default_model
    return found[1]


def test_the_promised_targets_ship_and_no_others() -> None:
    assert {target.name: (target.backend, target.scheme, size_of(target)) for target in TARGETS} == PROMISED


@pytest.mark.parametrize("target", TARGETS, ids=named)
def test_a_target_has_no_conflict_and_says_why_in_a_sentence_or_two(target: Target) -> None:
    assert find_conflict(target) is None
    assert 40 < len(target.reason) < 200
    assert target.reason.endswith(".")


@pytest.mark.parametrize("target", TARGETS, ids=named)
def test_the_default_model_fits_as_the_target_stands(target: Target) -> None:
    architecture = SHAPES[size_of(target)]
    assert make_plan(architecture, target).memory.fits
    limit = ENGINES[target.engine].max_parameters
    assert limit is None or architecture.parameter_count <= limit


@pytest.mark.parametrize("target", TARGETS, ids=named)
def test_a_name_is_its_profile_and_how_many_cards_share_the_model(target: Target) -> None:
    found = re.fullmatch(r"(.+?)(?:x(\d))?", target.name)
    assert found
    assert target.profile == load_profile(found[1])
    assert target.tensor_parallel == target.cards == int(found[2] or 1)


@pytest.mark.parametrize("target", JETSONS, ids=named)
def test_a_jetson_refuses_the_large_models(target: Target) -> None:
    for architecture in (LLAMA_70B, LLAMA_405B):
        with pytest.raises(EdgeForgeError):
            make_plan(architecture, target)


@pytest.mark.parametrize("target", TARGETS, ids=named)
def test_four_bits_may_fall_further_behind_than_eight(target: Target) -> None:
    assert target.gate.max_mean_kl_divergence == (0.10 if SCHEMES[target.scheme].bits == 4 else 0.03)
    assert target.gate.max_perplexity_ratio == (1.10 if SCHEMES[target.scheme].bits == 4 else 1.03)
    assert target.gate.max_accuracy_loss == (0.03 if SCHEMES[target.scheme].bits == 4 else 0.015)


def test_a_target_in_an_older_bundle_states_no_accuracy() -> None:
    document = target_to_json(load_target("h100"))
    gate = dict(cast(dict[str, object], document["gate"]))
    assert gate.pop("max_accuracy_loss") == 0.015
    assert target_from_json({**document, "gate": gate}).gate.max_accuracy_loss == 0.05
    assert target_from_json(document) == load_target("h100")


@pytest.mark.parametrize("loss", [0, 1, 3, "little", True])
def test_an_accuracy_loss_that_is_none_is_refused(loss: object) -> None:
    document = target_to_json(load_target("h100"))
    gate = {**cast(dict[str, object], document["gate"]), "max_accuracy_loss": loss}
    with pytest.raises(UnusableInput, match="max_accuracy_loss"):
        target_from_json({**document, "gate": gate})
