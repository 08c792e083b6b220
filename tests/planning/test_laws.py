"""Laws of every plan: more context never needs less, fewer bits never need more, JSON loses nothing."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeforge.hardware import Target
from edgeforge.model.architecture import LlamaArchitecture
from edgeforge.planning import PlanDoesNotFit, draft_plan, make_plan, max_context, plan_from_json, plan_to_json
from edgeforge.planning.overrides import with_scheme
from tests.planning.shapes import architectures, targets


@settings(deadline=None)
@given(architectures(), targets(), st.integers(0, 100_000), st.integers(0, 8))
def test_more_context_or_batch_never_needs_less_memory(
    architecture: LlamaArchitecture, target: Target, context: int, batch: int
) -> None:
    more = replace(target, context=target.context + context, batch=target.batch + batch)
    before, after = draft_plan(architecture, target), draft_plan(architecture, more)
    assert after.memory.total_bytes >= before.memory.total_bytes
    assert after.memory.kv_cache_bytes >= before.memory.kv_cache_bytes
    assert after.disk_bytes >= before.disk_bytes


@settings(deadline=None)
@given(architectures(), targets())
def test_fewer_bits_never_take_more_bytes(architecture: LlamaArchitecture, target: Target) -> None:
    plans = [draft_plan(architecture, with_scheme(target, scheme)) for scheme in ("w4a16", "w8a16", "f16", "f32")]
    weights = [plan.memory.weights_bytes for plan in plans]
    assert weights[0] <= weights[1]
    assert weights[2] <= weights[3]
    assert plans[0].memory.total_bytes <= plans[1].memory.total_bytes
    assert plans[2].memory.total_bytes <= plans[3].memory.total_bytes
    assert plans[0].decode_tokens_per_s >= plans[1].decode_tokens_per_s
    assert plans[2].decode_tokens_per_s >= plans[3].decode_tokens_per_s
    if target.activations == "f16":  # else the integers' scales and what surrounds them are twice as wide as f16's
        assert weights[1] <= weights[2]
        assert plans[1].disk_bytes <= plans[2].disk_bytes


@settings(deadline=None)
@given(architectures(), targets())
def test_a_plan_survives_json(architecture: LlamaArchitecture, target: Target) -> None:
    plan = draft_plan(architecture, target)
    text = json.dumps(plan_to_json(plan))
    again = plan_from_json(json.loads(text))
    assert again == plan
    assert json.dumps(plan_to_json(again)) == text
    assert list(again.schemes) == list(plan.schemes)


@settings(deadline=None)
@given(architectures(), targets())
def test_a_plan_is_made_or_what_would_fit_does_fit(architecture: LlamaArchitecture, target: Target) -> None:
    draft = draft_plan(architecture, target)
    if draft.memory.fits:
        assert make_plan(architecture, target) == draft
        return
    with pytest.raises(PlanDoesNotFit) as refused:
        make_plan(architecture, target)
    assert refused.value.exit_code == 4
    assert refused.value.plan == draft
    assert all(option.plan.memory.fits for option in refused.value.alternatives)


@settings(deadline=None)
@given(architectures(), targets())
def test_the_longest_context_fits_and_the_next_step_does_not(architecture: LlamaArchitecture, target: Target) -> None:
    plan = draft_plan(architecture, target)
    longest, limit = max_context(plan), architecture.max_position_embeddings
    if longest is None:
        assert not draft_plan(architecture, replace(target, context=256)).memory.fits
        return
    assert longest <= limit
    assert draft_plan(architecture, replace(target, context=longest)).memory.fits
    if longest < limit:
        assert not draft_plan(architecture, replace(target, context=longest + 256)).memory.fits
