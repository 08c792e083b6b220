"""The bit budget against every choice there is, tried one by one, and its laws on items like a model's."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgeforge.quantization import allocation
from edgeforge.quantization.allocation import Option, within_bytes, within_loss

Items = list[list[Option]]

options = st.builds(Option, bytes=st.integers(1, 60), loss=st.integers(0, 60).map(lambda n: n / 7))
small_items = st.lists(st.lists(options, min_size=1, max_size=4), min_size=1, max_size=5)


def every_choice(items: Items) -> list[tuple[int, float]]:
    """(bytes, loss) of each."""
    return [(sum(o.bytes for o in chosen), sum(o.loss for o in chosen)) for chosen in itertools.product(*items)]


def assert_adds_up(items: Sequence[Sequence[Option]], found: allocation.Allocation) -> None:
    chosen = [item[choice] for item, choice in zip(items, found.choices, strict=True)]
    assert found.bytes == sum(o.bytes for o in chosen)
    assert found.loss == pytest.approx(sum(o.loss for o in chosen))


@given(small_items, st.integers(0, 300))
def test_no_choice_within_the_budget_loses_less(items: Items, budget: int) -> None:
    affordable = [loss for size, loss in every_choice(items) if size <= budget]
    assume(affordable)
    found = within_bytes(items, budget)
    assert_adds_up(items, found)
    assert found.bytes <= budget
    assert found.loss == pytest.approx(min(affordable), abs=1e-9)
    assert found.bound == pytest.approx(found.loss, abs=1e-9)


@given(small_items, st.floats(0, 50))
def test_no_choice_as_accurate_is_smaller(items: Items, bound: float) -> None:
    accurate = [size for size, loss in every_choice(items) if loss <= bound]
    assume(accurate)
    assume(all(abs(loss - bound) > 1e-9 for _, loss in every_choice(items)))
    found = within_loss(items, bound)
    assert_adds_up(items, found)
    assert found.loss <= bound
    assert found.bytes == min(accurate)


def model(layers: int = 30, seed: int = 0) -> Items:
    """A model's linears: 4 or 8 bits in groups of 16 to 128, losses that fall fourfold a bit, and differ by layer."""
    rng = np.random.default_rng(seed)
    items = []
    for _ in range(layers):
        for weights in (576 * 576, 192 * 576, 192 * 576, 576 * 576, 1536 * 576, 1536 * 576, 576 * 1536):
            sensitivity = np.exp(rng.normal() * 1.5)
            item = []
            for bits, size, symmetric in itertools.product((4, 8), (16, 32, 64, 128), (True, False)):
                each = bits + (16 + (0 if symmetric else bits)) / size
                loss = sensitivity * 4.0**-bits * size**0.3 * (1.2 if symmetric else 1) * np.exp(rng.normal() * 0.05)
                item.append(Option(bytes=int(weights * each / 8), loss=float(loss)))
            items.append(item)
    return items


@pytest.mark.parametrize("bits_a_weight", [4.2, 4.6, 5.5, 7.0])
def test_a_models_bit_budget_is_exact_or_its_bound_is_close(bits_a_weight: float) -> None:
    items = model()
    budget = int(30 * 3_538_944 * bits_a_weight / 8)
    found = within_bytes(items, budget)
    assert_adds_up(items, found)
    assert found.bytes <= budget
    assert found.bound <= found.loss <= found.bound * (1 + 1e-4)
    back = within_loss(items, found.loss * (1 + 1e-12))
    assert back.bytes <= found.bytes
    assert back.bound <= back.bytes <= back.bound * (1 + 1e-4)


def test_thinned_lists_still_tell_how_far_the_optimum_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    items, budget = model(4), int(4 * 3_538_944 * 4.7 / 8)
    exact = within_bytes(items, budget)
    monkeypatch.setattr(allocation, "MOST_STATES", 2)
    rough = within_bytes(items, budget)
    assert rough.bound <= exact.loss <= rough.loss
    assert rough.loss < 1.05 * exact.loss


def test_more_bytes_never_lose_more() -> None:
    items = model(3)
    found = [within_bytes(items, int(3 * 3_538_944 * bits / 8)).loss for bits in np.arange(4.15, 10, 0.35)]
    assert found == sorted(found, reverse=True)
    assert found[-1] == pytest.approx(sum(min(o.loss for o in item) for item in items))


def test_an_impossible_budget_names_the_smallest_possible() -> None:
    items = [[Option(bytes=1000, loss=0.5), Option(bytes=2000, loss=0.1)]] * 3
    with pytest.raises(ValueError, match="3,000"):
        within_bytes(items, 2999)
    with pytest.raises(ValueError, match=r"0\.3"):
        within_loss(items, 0.2)
    assert within_bytes(items, 3000).choices == (0, 0, 0)
    assert within_loss(items, 0.7).bytes == 5000


@pytest.mark.parametrize("broken", [[[]], [[Option(bytes=1, loss=float("nan"))]]])
def test_items_that_cannot_be_weighed_are_refused(broken: Items) -> None:
    with pytest.raises(ValueError, match="no options"):
        within_bytes(broken, 10**9)


def test_nothing_to_choose_is_no_bytes() -> None:
    assert within_bytes([], 0).choices == ()
