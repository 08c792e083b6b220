"""A bundle is passed on with its model's terms or not at all, and a Llama with what Meta's licence asks for."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_bundle import SOURCE, make_bundle

from edgeforge.bundle import check_publishable
from edgeforge.bundle.licences import has_llamas_vocabulary
from edgeforge.errors import UnusableInput
from edgeforge.runtime.manifest import SourceRecord, read_manifest

AGREEMENT = b"LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n"
LLAMA = SourceRecord(
    kind="hub", name="org/Llama-3.1-8B-tuned", revision=None, precision="BF16", fingerprint="sha256:ab"
)


def refusal(bundle: Path, *, without_licence: bool = False) -> str:
    with pytest.raises(UnusableInput) as caught:
        check_publishable(bundle, without_licence=without_licence)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return caught.value.message


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "b", source=LLAMA, notices={"LICENSE": AGREEMENT})


def test_a_llama_with_its_terms_passes(llama: Path) -> None:
    check_publishable(llama)


def test_terms_under_another_name_are_terms(tmp_path: Path) -> None:
    notices = {"LICENSE": b"Apache", "LICENSE-llama.txt": AGREEMENT}
    check_publishable(make_bundle(tmp_path / "b", source=LLAMA, notices=notices))


@pytest.mark.parametrize("notices", [{}, {"LICENSE": b"Apache License"}])
def test_a_llama_by_name_without_metas_licence_is_refused(notices: dict[str, bytes], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", source=LLAMA, notices=notices)
    for without_licence in (False, True):
        assert "lacks Meta's licence" in refusal(bundle, without_licence=without_licence)


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("NOTICE", "Llama 3.1 is licensed under", "the attribution"),
        ("README.md", "Built with Llama", "does not say 'Built with Llama'"),
    ],
)
def test_a_llama_without_its_words_is_refused(name: str, words: str, said: str, llama: Path) -> None:
    text = (llama / name).read_text(encoding="utf-8")
    assert words in text
    (llama / name).write_text(text.replace(words, "..."), encoding="utf-8")
    assert said in refusal(llama)
    (llama / name).unlink()
    assert f"has no {name}" in refusal(llama)


def test_a_model_without_terms_needs_somebody_to_answer_for_it(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    assert "no licence" in refusal(bundle)
    check_publishable(bundle, without_licence=True)
    check_publishable(make_bundle(tmp_path / "own", notices={"LICENSE": b"All mine.\n"}))


def test_a_local_llama_3_is_known_by_its_vocabulary(tmp_path: Path) -> None:
    manifest = read_manifest(make_bundle(tmp_path / "b", source=SOURCE))
    assert not has_llamas_vocabulary(manifest.model)
    assert has_llamas_vocabulary(replace(manifest.model, bos_token="<|begin_of_text|>", vocab_size=128256))
