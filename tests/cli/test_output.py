"""Where a bundle goes: nothing is overwritten by chance."""

from pathlib import Path

import pytest

from edgeforge.cli.output import check_destination, default_output, model_slug
from edgeforge.errors import UsageError


@pytest.mark.parametrize(
    ("model", "slug"),
    [
        ("demo", "demo"),
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B-Instruct"),
        ("/models/SmolLM2 135M.Q4_1.gguf", "SmolLM2-135M.Q4_1"),
        ("./tiny/", "tiny"),
        ("/", "model"),
    ],
)
def test_the_folder_is_named_after_the_model(model: str, slug: str) -> None:
    assert model_slug(model) == slug


def test_a_model_in_this_folder_is_named_after_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama").mkdir()
    monkeypatch.chdir(tmp_path / "llama")
    assert model_slug(".") == "llama"


def test_the_default_folder_tells_model_target_and_chosen_scheme() -> None:
    assert default_output("demo", "cpu") == Path("artifacts/demo-cpu")
    assert default_output("demo", "cpu", scheme="f32") == Path("artifacts/demo-cpu-f32")
    assert default_output("demo", "h100", backend="onnx") == Path("artifacts/demo-h100-onnx")


def bundle(folder: Path, word: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(word)
    return folder


def test_an_existing_folder_is_a_usage_error(tmp_path: Path) -> None:
    out = bundle(tmp_path / "out", "old")
    with pytest.raises(UsageError, match="exists") as caught:
        check_destination(out, force=False)
    assert caught.value.hint is not None
    assert "--force" in caught.value.hint


def test_force_never_deletes_what_is_not_a_bundle(tmp_path: Path) -> None:
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not a bundle"):
        check_destination(out, force=True)
    assert (out / "thesis.txt").exists()


def test_force_does_not_follow_a_link(tmp_path: Path) -> None:
    real = bundle(tmp_path / "real", "old")
    link = tmp_path / "link"
    link.symlink_to(real)
    with pytest.raises(UsageError, match="is a link"):
        check_destination(link, force=True)
