"""Where a bundle goes: nothing is overwritten by chance, and the old bundle stays until the new one is whole."""

from pathlib import Path

import pytest

from edgeforge.cli.output import default_output, destination, model_slug
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
    with pytest.raises(UsageError, match="exists") as caught, destination(out, force=False):
        pass
    assert caught.value.hint is not None
    assert "--force" in caught.value.hint


def test_force_never_deletes_what_is_not_a_bundle(tmp_path: Path) -> None:
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not a bundle"), destination(out, force=True):
        pass
    assert (out / "thesis.txt").exists()


def test_force_does_not_follow_a_link(tmp_path: Path) -> None:
    real = bundle(tmp_path / "real", "old")
    link = tmp_path / "link"
    link.symlink_to(real)
    with pytest.raises(UsageError, match="is a link"), destination(link, force=True):
        pass


def test_force_swaps_the_finished_bundle_in(tmp_path: Path) -> None:
    out = bundle(tmp_path / "out", "old")
    with destination(out, force=True) as fresh:
        assert (out / "manifest.json").read_text() == "old"
        bundle(fresh, "new")
    assert (out / "manifest.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, UsageError])
def test_a_failed_replacement_leaves_the_old_bundle_alone(tmp_path: Path, error: type[BaseException]) -> None:
    out = bundle(tmp_path / "out", "old")

    def fail_half_way() -> None:
        with destination(out, force=True) as fresh:
            bundle(fresh, "half")
            raise error("stop")

    with pytest.raises(error):
        fail_half_way()
    assert (out / "manifest.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
