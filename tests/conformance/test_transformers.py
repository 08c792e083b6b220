"""The unquantized bundle of both real models answers like transformers' LlamaForCausalLM in float32."""

from pathlib import Path

import numpy as np
import pytest
from built import Build, greedy, prompts, tiny_stories, transformers_twin, twin_logits

from edgeforge.validation.data import concatenate, default_texts

pytest.importorskip("transformers")


def assert_same_answers(build: Build, text: str) -> None:
    """4 prompts of 200 tokens: logits of every token within 1e-3, the next 64 tokens the same.

    The continuation is checked in one pass: transformers is given prompt and continuation, and at each place its most
    likely token must be the one that the bundle chose, which is to say that its own greedy search goes the same way.
    """
    model = build.load()
    starts = prompts(model, text)
    continued = [ids + greedy(model, ids, 64) for ids in starts]
    assert {len(ids) for ids in continued} == {264}
    theirs = twin_logits(transformers_twin(build.checkpoint), np.array(continued))
    for ids, logits in zip(continued, theirs, strict=True):
        assert np.abs(model.score(ids[:200]) - logits[:200]).max() < 1e-3
        assert logits[199:263].argmax(-1).tolist() == ids[200:]


def test_the_fp32_model(stories_f32: Build, test_data: Path) -> None:
    assert_same_answers(stories_f32, tiny_stories(test_data)[:8000])


@pytest.mark.slow
def test_the_demo(demo_f32: Build) -> None:
    assert_same_answers(demo_f32, concatenate(default_texts()))


def test_the_fp32_model_has_its_published_perplexity(stories_f32: Build, test_data: Path) -> None:
    """The protocol of the data's README: one BOS, windows of 512, all tokens scored."""
    model = stories_f32.load()
    ids = np.array(model.encode(tiny_stories(test_data)[:40_000]))
    assert ids[0] == stories_f32.checkpoint.architecture.bos_token_id
    windows = ids[: len(ids) // 512 * 512].reshape(-1, 512)
    losses = []
    for window in windows:
        logits = model.score(window.tolist())[:-1].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        losses.append(np.log(np.exp(logits).sum(-1)) - logits[np.arange(511), window[1:]])
    assert np.size(losses) == 18_907
    assert np.exp(np.mean(losses)) == pytest.approx(7.919, abs=0.001)
