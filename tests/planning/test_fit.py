"""What does not fit is refused with what would, each found by planning it."""

from dataclasses import replace

import pytest

from edgeforge.errors import DoesNotFit, UnusableInput, UsageError
from edgeforge.hardware import available_targets, load_target
from edgeforge.planning import PlanDoesNotFit, apply_overrides, draft_plan, make_plan, plan_from_json, plan_to_json
from tests.planning.shapes import LLAMA_8B, LLAMA_70B, LLAMA_405B, STORIES


def refused(*args: object, **overrides: object) -> PlanDoesNotFit:
    architecture, name = args
    with pytest.raises(DoesNotFit) as caught:
        make_plan(architecture, apply_overrides(load_target(name), **overrides))  # type: ignore[arg-type]
    assert isinstance(caught.value, PlanDoesNotFit)
    return caught.value


def test_llama_8b_fits_everywhere() -> None:
    for name in available_targets():
        assert make_plan(LLAMA_8B, load_target(name)).memory.fits


def test_llama_405b_needs_eight_h100_in_fp8() -> None:
    error = refused(LLAMA_405B, "h100")
    (cards,) = error.alternatives
    assert (cards.change, cards.available, cards.plan.target.tensor_parallel) == ("8 x h100", True, 8)
    assert not draft_plan(LLAMA_405B, replace(load_target("h100"), batch=1, tensor_parallel=4)).memory.fits


def test_llama_405b_would_need_four_h100_in_onnx() -> None:
    error = refused(LLAMA_405B, "h100", backend="onnx", symmetric=False, batch=1)
    (cards,) = error.alternatives
    assert (cards.change, cards.available, cards.plan.target.tensor_parallel) == ("4 x h100", False, 4)
    assert "219.3 GB, and h100 has 85.5 GB" in error.message
    assert "w4a16 is the smallest scheme" in (error.hint or "")
    assert not draft_plan(LLAMA_405B, replace(error.plan.target, tensor_parallel=2)).memory.fits


def test_a_float_model_is_offered_the_most_bits_that_fit() -> None:
    # 70B: 141 GB as f16, 72 GB as int8, and an H100 has 85.5.
    error = refused(LLAMA_70B, "h100", backend="onnx", scheme="f16", batch=1)
    assert [option.change for option in error.alternatives] == ["--scheme w8a16", "2 x h100"]


def test_a_long_context_is_offered_the_longest_that_fits() -> None:
    error = refused(LLAMA_8B, "rtx4090", scheme="f16", context=131_072)
    by_change = {option.change.split()[0]: option for option in error.alternatives}
    context = by_change["--context"].plan.target.context
    assert context % 256 == 0
    longer = apply_overrides(load_target("rtx4090"), scheme="f16", context=context + 256)
    assert not draft_plan(LLAMA_8B, longer).memory.fits


def test_a_batch_is_offered_the_largest_that_fits() -> None:
    error = refused(LLAMA_8B, "rtx4090", batch=64)
    batches = [option.plan.target.batch for option in error.alternatives if option.change.startswith("--batch")]
    assert len(batches) == 1
    assert 1 <= batches[0] < 64


def test_changes_are_combined_where_one_is_not_enough() -> None:
    error = refused(LLAMA_8B, "rtx4090", scheme="f32", context=131_072)
    first = error.alternatives[0]
    assert first.change.startswith("--scheme w4a16 --context ")
    assert first.plan.memory.fits


def test_a_machine_is_not_offered_more_cards() -> None:
    error = refused(LLAMA_405B, "cpu")
    assert error.alternatives == ()
    assert "a smaller model or a target with more memory" in (error.hint or "")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"scheme": "fp8"}, "scheme 'fp8' is not for backend onnx; use w4a16"),
        ({"group_size": 48}, "group_size 48 is not one of"),
        ({"context": 0}, "context must be at least 1"),
        ({"batch": -1}, "batch must be at least 1"),
    ],
)
def test_overrides_are_checked_as_a_file_is(overrides: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        apply_overrides(load_target("cpu"), **overrides)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


def test_overrides_left_out_change_nothing() -> None:
    assert apply_overrides(load_target("cpu")) == load_target("cpu")


@pytest.mark.parametrize("scheme", ["f16", "f32"])
def test_an_unquantized_scheme_sets_what_flows(scheme: str) -> None:
    target = apply_overrides(load_target("cpu"), scheme=scheme)
    assert (target.scheme, target.activations, target.kv_cache) == (scheme, scheme, scheme)


@pytest.mark.parametrize("key", ["architecture", "target", "schemes", "tensors", "memory", "disk_bytes"])
def test_a_plan_without_a_key_is_refused(key: str) -> None:
    document = plan_to_json(draft_plan(STORIES, load_target("cpu")))
    del document[key]
    with pytest.raises(UnusableInput):
        plan_from_json(document)
