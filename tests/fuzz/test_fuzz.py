"""Whatever bytes a file holds, its reader answers or refuses: no traceback, no hang, no memory without end.

Few examples here, the same every time; `python tests/fuzz/run.py --minutes N` tries as many as you have time for.
"""

import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent))
from crafted import crafted
from law import Finding, broken, seeds_of
from readers import Reader, make_readers

# The strategies' shrinking calls readers of one file side by side with nobody, and each example is a file of its own.
quick = settings(max_examples=12, derandomize=True, database=None)
NAMES = (
    *("config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json"),
    *("tokenizer_config.json", "a.safetensors", "safetensors", "gguf", "target", "profile", "manifest"),
    *("sealed-manifest", "sums", "parity", "oci-manifest", "oci-index", "upload", "pulled-manifest.json"),
    *("pulled-SHA256SUMS", "scales", "plan", "text", "build-journal"),
)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return make_readers(tmp_path_factory.mktemp("fuzz"))


def test_every_reader_is_tried(readers: dict[str, Reader]) -> None:
    assert set(readers) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_valid_file_is_accepted(readers: dict[str, Reader], name: str) -> None:
    readers[name].read(readers[name].original)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_answered_or_refused(readers: dict[str, Reader], name: str) -> None:
    reader = readers[name]

    @quick
    @given(st.randoms(use_true_random=False))
    def damaged(chance: Random) -> None:
        check(broken(reader, reader.mutate(reader.original, chance)))

    damaged()


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_are_answered_or_refused(readers: dict[str, Reader], name: str) -> None:
    reader = readers[name]

    @quick
    @given(st.binary(max_size=200))
    def anything(data: bytes) -> None:
        check(broken(reader, data))

    anything()


@pytest.mark.parametrize("name", NAMES)
def test_what_was_once_found_stays_mended(readers: dict[str, Reader], name: str) -> None:
    for data in seeds_of(name):
        check(broken(readers[name], data))


def test_counts_that_promise_much_are_refused_soon(readers: dict[str, Reader]) -> None:
    for name, data in crafted(readers):
        check(broken(readers[name], data, measured=False))


def check(finding: Finding | None) -> None:
    assert finding is None, f"{finding.key}: {finding.what}"
