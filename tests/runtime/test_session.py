"""The decoder's logits are the model's, however the tokens are fed; the scorer's are the same for every token."""

from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import Shape, make_bundle, reference_logits

from edgeforge import runtime
from edgeforge.runtime import session
from edgeforge.runtime.errors import UnusableBundle
from edgeforge.runtime.graph import open_graph
from edgeforge.runtime.growing import GrowingCacheDecoder
from edgeforge.runtime.model import Model
from edgeforge.runtime.session import Decoder

SHAPE = Shape()
IDS = [int(id) for id in np.random.default_rng(1).integers(0, 256, SHAPE.context)]
REFERENCE = reference_logits(SHAPE, IDS)


def near(logits: np.ndarray, reference: np.ndarray) -> bool:
    return logits.dtype == np.float32 and bool(np.abs(logits - reference).max() < 1e-5 * np.abs(REFERENCE).max())


@pytest.fixture(params=["shared", "growing"])
def decoder(request: pytest.FixtureRequest, model: Model) -> Decoder:
    """Both kinds of decoder over the same weights."""
    if request.param == "shared":
        model.decoder.rewind(0)
        return model.decoder
    graph = open_graph(model.bundle / "model/scoring.onnx", device="cpu", threads=1)
    return GrowingCacheDecoder(graph, model.manifest.model, "cpu")


@pytest.mark.parametrize("cuts", [(64,), (1,) * 64, (10, 1, 1, 30, 22), (63, 1)])
def test_logits_do_not_depend_on_how_tokens_are_fed(decoder: Decoder, cuts: tuple[int, ...]) -> None:
    at = 0
    for count in cuts:
        logits = decoder.append(IDS[at : at + count])
        at += count
        assert near(logits, REFERENCE[at - 1])
    assert list(decoder.cached_ids) == IDS


def test_a_long_prompt_is_fed_in_chunks(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (session, __import__("edgeforge.runtime.growing", fromlist=["growing"])):
        monkeypatch.setattr(module, "PREFILL_CHUNK", 7)
    assert near(decoder.append(IDS[:50]), REFERENCE[49])


def test_rewinding_forgets(decoder: Decoder) -> None:
    decoder.append(IDS[:20])
    decoder.append([5, 6, 7])
    decoder.rewind(20)
    assert near(decoder.append(IDS[20:30]), REFERENCE[29])
    decoder.rewind(0)
    assert near(decoder.append(IDS[:3]), REFERENCE[2])


def test_more_than_the_context_is_refused_before_anything_runs(decoder: Decoder) -> None:
    decoder.append(IDS[:60])
    with pytest.raises(UnusableBundle, match="65 tokens do not fit the bundle's context of 64"):
        decoder.append(IDS[:5])
    assert len(decoder.cached_ids) == 60
    decoder.rewind(0)
    with pytest.raises(UnusableBundle, match="no tokens"):
        decoder.append([])


@pytest.mark.parametrize("count", [1, 5, 64, 33])
def test_the_scorer_gives_the_logits_of_every_token(model: Model, count: int) -> None:
    scores = model.score(IDS[:count])
    assert scores.shape == (count, SHAPE.vocab)
    assert near(scores, REFERENCE[:count])


def test_scores_are_the_callers_own(model: Model) -> None:
    first = model.score(IDS[:8])
    kept = first.copy()
    model.score(IDS[8:16])
    assert np.array_equal(first, kept)


def test_optimum_graphs_score_from_an_empty_cache_each_time(model: Model) -> None:
    graph = open_graph(model.bundle / "model/scoring.onnx", device="cpu", threads=1)
    scorer = GrowingCacheDecoder(graph, model.manifest.model, "cpu")
    for _ in range(2):
        assert near(scorer.score(IDS[:9]), REFERENCE[:9])


def test_a_half_precision_graph_runs_on_the_processor(tmp_path: Path) -> None:
    shape = Shape(dtype=np.float16)
    half = runtime.load(make_bundle(tmp_path / "half", shape, provider="CUDAExecutionProvider"), device="cpu")
    for logits, reference in ((half.score(IDS[:20]), REFERENCE[:20]), (half.decoder.append(IDS[:20]), REFERENCE[19])):
        assert logits.dtype == np.float32
        assert np.abs(logits - reference).max() < 0.02 * np.abs(REFERENCE).max()


def test_a_graph_that_is_not_the_manifests_is_refused(tmp_path: Path, model: Model) -> None:
    graph = open_graph(model.bundle / "model/model.onnx", device="cpu", threads=1)
    deeper = make_bundle(tmp_path / "deep", Shape(layers=3))
    record = runtime.read_manifest(deeper).model
    with pytest.raises(UnusableBundle, match=r"past_key_values\.2\.key"):
        session.SharedCacheDecoder(graph, record, "cpu")


def test_a_file_that_is_no_graph_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(UnusableBundle, match=r"cannot open model\.onnx") as caught:
        open_graph(tmp_path / "model.onnx", device="cpu", threads=1)
    assert "\n" not in caught.value.message
