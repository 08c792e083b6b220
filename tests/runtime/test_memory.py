"""Memory grows with the tokens that are in the cache, not with those that could be."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_bundle import Shape, make_bundle

from edgeforge import runtime
from edgeforge.validation.benching.memory import resident_memory_bytes

LONG = Shape(context=1 << 16)
ONE_CONTEXT_BYTES = 2 * LONG.layers * LONG.kv_heads * LONG.head_dim * LONG.context * 4


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell what is resident now")
def test_short_answers_side_by_side_take_no_whole_context_each(tmp_path: Path) -> None:
    model = runtime.load(make_bundle(tmp_path / "long", LONG), threads=1, batch=4)

    def answer(first: int) -> int:
        *_, last = model.generate([first, 2, 3], max_new_tokens=16, temperature=0, ignore_eos=True)
        assert last.usage is not None
        return last.usage.completion_tokens

    assert answer(0) == 16
    before = resident_memory_bytes()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answer, range(10, 14))) == [16] * 4
    grown = resident_memory_bytes() - before
    assert grown < ONE_CONTEXT_BYTES / 2, "four contexts of 34 MB, of which 76 tokens are used"
