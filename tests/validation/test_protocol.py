"""Which tokens are read and which are scored, as perplexity.cpp and data/README.md say."""

import numpy as np
import pytest

from edgeforge.errors import UnusableInput, UsageError
from edgeforge.validation.protocol import make_chunks


def test_llama_cpp_scores_the_second_half_but_its_last_logit() -> None:
    chunks = make_chunks(range(1000, 3000), protocol="llama.cpp", context=512, bos_token_id=None)
    assert chunks.ids.shape == (3, 512)  # 2,000 tokens; the incomplete fourth chunk is dropped
    assert chunks.positions == slice(256, 511)
    assert chunks.scored_per_chunk == 255
    # position p predicts token p + 1: positions 256..510 predict tokens 257..511 of the chunk
    np.testing.assert_array_equal(chunks.targets(1), np.arange(1000 + 512 + 257, 1000 + 1024))


def test_llama_cpp_replaces_the_first_token_of_every_chunk_by_bos() -> None:
    """The text is tokenized with one BOS in front; later chunks lose their own first token to BOS."""
    chunks = make_chunks(range(100, 200), protocol="llama.cpp", context=16, bos_token_id=7)
    assert chunks.ids[0].tolist() == [7, *range(100, 115)]
    assert chunks.ids[1].tolist() == [7, *range(116, 131)]
    assert chunks.targets(1).tolist() == list(range(116 + 8, 131))


def test_windows_have_bos_once_and_score_everything_after_the_first() -> None:
    chunks = make_chunks(range(100, 200), protocol="windows", context=16, bos_token_id=7)
    assert chunks.ids[0].tolist() == [7, *range(100, 115)]
    assert chunks.ids[1].tolist() == list(range(115, 131))
    assert chunks.positions == slice(0, 15)
    assert chunks.targets(0).tolist() == list(range(100, 115))


def test_no_bos_leaves_the_text_alone() -> None:
    chunks = make_chunks(range(64), protocol="llama.cpp", context=32, bos_token_id=None)
    assert chunks.ids.reshape(-1).tolist() == list(range(64))


def test_a_limit_takes_the_first_chunks_and_more_than_there_are_takes_all() -> None:
    assert make_chunks(range(320), protocol="llama.cpp", context=32, bos_token_id=None, limit=3).count == 3
    assert make_chunks(range(320), protocol="llama.cpp", context=32, bos_token_id=None, limit=99).count == 10


def test_an_odd_context_splits_as_integer_division_does() -> None:
    chunks = make_chunks(range(99), protocol="llama.cpp", context=33, bos_token_id=None)
    assert (chunks.first, chunks.scored_per_chunk) == (16, 16)


def test_a_short_text_is_refused_with_its_size() -> None:
    with pytest.raises(UnusableInput, match="1023 tokens") as caught:
        make_chunks(range(1023), protocol="llama.cpp", context=512, bos_token_id=None)
    assert caught.value.hint
    # BOS counts, as in llama.cpp
    assert make_chunks(range(1023), protocol="llama.cpp", context=512, bos_token_id=0).count == 2
    with pytest.raises(UnusableInput):
        make_chunks(range(511), protocol="windows", context=512, bos_token_id=None)


@pytest.mark.parametrize(("context", "limit"), [(3, None), (512, 0)])
def test_senseless_requests_are_usage_errors(context: int, limit: int | None) -> None:
    with pytest.raises(UsageError):
        make_chunks(range(5000), protocol="llama.cpp", context=context, bos_token_id=None, limit=limit)
