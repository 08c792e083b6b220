"""onnxruntime-genai runs a bundle's model folder as it stands, and continues prompts with the same tokens."""

from pathlib import Path

import pytest
from built import Build, greedy, prompts, tiny_stories

from edgeforge.validation.data import concatenate, default_texts

genai = pytest.importorskip("onnxruntime_genai")


def their_greedy(folder: Path, starts: list[list[int]], count: int) -> list[list[int]]:
    model = genai.Model(str(folder))
    answers = []
    for ids in starts:
        options = genai.GeneratorParams(model)
        # max_length bounds prompt and answer; an end-of-text token would stop it early, min_length keeps it going.
        options.set_search_options(do_sample=False, max_length=len(ids) + count, min_length=len(ids) + count)
        generator = genai.Generator(model, options)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        answers.append(list(generator.get_sequence(0))[len(ids) :])
    return answers


def assert_same_continuations(build: Build, text: str) -> None:
    model = build.load()
    starts = prompts(model, text)
    theirs = their_greedy(build.bundle / "model", starts, 64)
    for ids, their_answer in zip(starts, theirs, strict=True):
        assert greedy(model, ids, 64) == their_answer
        assert len(their_answer) == 64


@pytest.mark.parametrize("build", ["stories_f32", "stories_int4"])
def test_the_fp32_model(build: str, request: pytest.FixtureRequest, test_data: Path) -> None:
    assert_same_continuations(request.getfixturevalue(build), tiny_stories(test_data)[:8000])


@pytest.mark.slow
def test_the_demo_in_int4(demo_int4: Build) -> None:
    assert_same_continuations(demo_int4, concatenate(default_texts()))


def test_its_tokenizer_reads_the_bundles_files(demo_int4: Build) -> None:
    """The same ids and the same text, special tokens and several scripts included."""
    tokenizer = genai.Tokenizer(genai.Model(str(demo_int4.bundle / "model")))
    ours = demo_int4.load()
    for text in ("What is the capital of France?", "<|im_start|>user\nHi<|im_end|>\n", "naïve – 東京 🗼\n\n\tx = 1"):
        ids = ours.encode(text)
        assert list(tokenizer.encode(text)) == ids
        assert tokenizer.decode(ids) == ours.decode(ids)
