"""The decoder's logits are the model's, however the tokens are fed; the scorer's are the same for every token."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import Shape, make_bundle, reference_logits

from edgeforge import runtime
from edgeforge.runtime import session
from edgeforge.runtime.errors import UnusableBundle
from edgeforge.runtime.graph import open_graph
from edgeforge.runtime.growing import GrowingCache
from edgeforge.runtime.model import Model
from edgeforge.runtime.session import Decoder, Scorer, SlotDecoder
from edgeforge.runtime.slots import Slots

SHAPE = Shape()
IDS = [int(id) for id in np.random.default_rng(1).integers(0, 256, SHAPE.context)]
REFERENCE = reference_logits(SHAPE, IDS)


def near(logits: np.ndarray, reference: np.ndarray) -> bool:
    return logits.dtype == np.float32 and bool(np.abs(logits - reference).max() < 1e-5 * np.abs(REFERENCE).max())


def slots(model: Model, file: str = "runtime.onnx", count: int = 1) -> Slots:
    graph = open_graph(model.bundle / "model" / file, device="cpu", threads=1)
    return Slots(graph, model.manifest.model, "cpu", slots=count)


def growing(model: Model) -> GrowingCache:
    graph = open_graph(model.bundle / "model/scoring.onnx", device="cpu", threads=1)
    return GrowingCache(graph, model.manifest.model, "cpu")


@pytest.fixture(params=["runtime.onnx", "model.onnx", "scoring.onnx", "growing"])
def decoder(request: pytest.FixtureRequest, model: Model) -> Decoder:
    """Over the same weights, every kind of graph and of cache."""
    return SlotDecoder(growing(model) if request.param == "growing" else slots(model, request.param))


@pytest.mark.parametrize("cuts", [(64,), (1,) * 64, (10, 1, 1, 30, 22), (63, 1)])
def test_logits_do_not_depend_on_how_tokens_are_fed(decoder: Decoder, cuts: tuple[int, ...]) -> None:
    at = 0
    for count in cuts:
        logits = decoder.append(IDS[at : at + count])
        at += count
        assert near(logits, REFERENCE[at - 1])
    assert list(decoder.cached_ids) == IDS


def test_a_long_prompt_is_fed_in_chunks(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "PREFILL_CHUNK", 7)
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


@pytest.mark.parametrize("kind", ["runtime.onnx", "scoring.onnx", "growing"])
def test_a_scorer_computes_what_it_does_not_know(model: Model, kind: str) -> None:
    scorer = Scorer(growing(model) if kind == "growing" else slots(model, kind))
    for ids, first in ((IDS[:9], 0), (IDS[:9], 0), (IDS[:30], 12), (IDS[:20], 19)):
        assert near(scorer.score(ids, first), REFERENCE[first : len(ids)])


def test_sequences_of_different_lengths_are_each_as_alone(model: Model) -> None:
    caches = slots(model, count=5)
    lengths = (3, 40, 1, 63, 17)
    for slot, length in enumerate(lengths):
        caches.feed(slot, [IDS[:length]])
    logits = caches.feed(0, [[IDS[length]] for length in lengths])
    for row, length in zip(logits, lengths, strict=True):
        assert near(row[0], REFERENCE[length])
    assert [len(ids) for ids in caches.ids] == [length + 1 for length in lengths]


def test_a_slot_without_a_row_of_its_own_stays_as_it_is(model: Model) -> None:
    caches = slots(model, count=3)
    for slot, length in enumerate((5, 30, 9)):
        caches.feed(slot, [IDS[:length]])
    caches.feed(0, [[IDS[5]], [], [IDS[9]]])
    assert caches.ids[1] == IDS[:30]
    assert near(caches.feed(1, [IDS[30:32]])[0, 0], REFERENCE[31])


def test_logits_of_the_last_tokens_are_given_as_asked(model: Model) -> None:
    for caches in (slots(model), slots(model, "scoring.onnx"), growing(model)):
        caches.feed(0, [IDS[:20]])
        assert near(caches.feed(0, [IDS[20:29]], 4)[0], REFERENCE[25:29])


def test_what_was_read_is_written_elsewhere_or_copied(model: Model) -> None:
    caches = slots(model, count=4)
    caches.feed(0, [IDS[:30]])
    values = caches.read(0, 4, 30)
    assert values.shape == (2 * SHAPE.layers, SHAPE.kv_heads, 26, SHAPE.head_dim)
    caches.feed(3, [IDS[:4]])
    caches.write(3, IDS[4:30], values)
    assert near(caches.feed(3, [IDS[30:31]])[0, 0], REFERENCE[30])
    caches.copy(3, 1, 0, 31)
    assert near(caches.feed(1, [IDS[31:32]])[0, 0], REFERENCE[31])


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
        Slots(graph, record, "cpu", slots=1)


def test_models_of_one_bundle_share_its_weights_until_nobody_needs_them(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "shared") / "model/runtime.onnx"
    first = open_graph(path, device="cpu", threads=1)
    assert open_graph(path, device="cpu", threads=1) is first
    assert open_graph(path, device="cpu", threads=2) is not first
    path.touch()
    assert open_graph(path, device="cpu", threads=1) is not first
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None


def test_a_file_that_is_no_graph_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(UnusableBundle, match=r"cannot open model\.onnx") as caught:
        open_graph(tmp_path / "model.onnx", device="cpu", threads=1)
    assert "\n" not in caught.value.message
