"""The hub holds what was published, by branch and commit; what it has is not sent again, what was cut goes on."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub, serving
from published import Run, contents, document, incompressible, refused, with_file

REFERENCE = "hf://example/tiny"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serving() as started:
        yield started


@pytest.fixture
def hub_environment(hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_TOKEN": "tests", "HF_HUB_DISABLE_XET": "1"}


def test_what_comes_back_is_the_same_bundle(
    hub: FakeHub, run: Run, hub_environment: dict[str, str], tiny: Path, tmp_path: Path
) -> None:
    pushed = document(run("publish", tiny, REFERENCE, "--json", **hub_environment))
    assert hub.repositories["example/tiny"].private
    stored = hub.repositories["example/tiny"].commits[str(pushed["digest"])]
    assert {path: content for path, content in stored.items() if path != ".gitattributes"} == contents(tiny)
    pulled = document(run("pull", REFERENCE, tmp_path / "got", "--json", **hub_environment))
    assert pulled["digest"] == pushed["digest"]
    assert contents(tmp_path / "got") == contents(tiny)
    assert run("verify", tmp_path / "got").returncode == 0
    assert not list(tmp_path.glob(".*")), "something hidden was left"


def test_revisions_are_branches_and_commits_and_hold_one_bundle(
    hub: FakeHub, run: Run, hub_environment: dict[str, str], tiny: Path, tmp_path: Path
) -> None:
    first = document(run("publish", tiny, REFERENCE, "--json", **hub_environment))
    other = with_file(shutil.copytree(tiny, tmp_path / "other"), "model/other.data", incompressible(10_000))
    document(run("publish", other, f"{REFERENCE}@next", "--json", **hub_environment))
    document(run("publish", other, REFERENCE, "--json", **hub_environment))
    document(run("publish", tiny, REFERENCE, "--json", **hub_environment))
    for revision, bundle in ((first["digest"], tiny), ("next", other), ("main", tiny)):
        document(run("pull", f"{REFERENCE}@{revision}", tmp_path / "got", "--json", **hub_environment))
        assert contents(tmp_path / "got") == contents(bundle)
    sentence = refused(run("pull", f"{REFERENCE}@absent", tmp_path / "got", **hub_environment), 3)
    assert "has no revision absent" in sentence


def test_what_is_there_is_neither_sent_nor_fetched_again(
    hub: FakeHub, run: Run, hub_environment: dict[str, str], large: Path, tmp_path: Path
) -> None:
    document(run("publish", large, REFERENCE, "--json", **hub_environment))
    document(run("pull", REFERENCE, tmp_path / "got", "--json", **hub_environment))
    update = with_file(shutil.copytree(large, tmp_path / "update"), "model/other.data", incompressible(10_000))
    hub.uploaded.clear()
    hub.served_bytes = 0
    document(run("publish", update, REFERENCE, "--json", **hub_environment))
    assert sum(hub.uploaded) < 60_000
    pulled = document(run("pull", REFERENCE, tmp_path / "got", "--json", **hub_environment))
    assert contents(tmp_path / "got") == contents(update)
    assert hub.served_bytes < 200_000
    assert pulled["reused_bytes"] > 12 << 20


def test_a_download_that_was_cut_goes_on(
    hub: FakeHub, run: Run, hub_environment: dict[str, str], large: Path, tmp_path: Path
) -> None:
    document(run("publish", large, REFERENCE, "--json", **hub_environment))
    hub.cut = 11 << 20  # huggingface_hub writes 10 MB at a time
    first = run("pull", REFERENCE, tmp_path / "got", **hub_environment)
    assert first.returncode == 3, first.stderr
    assert "goes on" in first.stderr
    assert not (tmp_path / "got").exists()
    hub.cut = None
    hub.ranges.clear()
    document(run("pull", REFERENCE, tmp_path / "got", "--json", **hub_environment))
    assert contents(tmp_path / "got") == contents(large)
    assert hub.ranges, "it began anew"
    assert not list(tmp_path.glob(".*")), "something hidden was left"


def test_a_changed_file_is_refused(
    hub: FakeHub, run: Run, hub_environment: dict[str, str], tiny: Path, tmp_path: Path
) -> None:
    pushed = document(run("publish", tiny, REFERENCE, "--json", **hub_environment))
    tree = hub.repositories["example/tiny"].commits[str(pushed["digest"])]
    tree["runtime/chat.py"] = tree["runtime/chat.py"].replace(b"def ", b"dev ")
    assert "runtime/chat.py" in refused(run("pull", REFERENCE, tmp_path / "got", **hub_environment), 6)
    assert not (tmp_path / "got").exists()
    assert not list(tmp_path.glob(".*")), "something hidden was left"


def test_what_the_hub_refuses_is_a_sentence(
    hub: FakeHub, run: Run, hub_environment: dict[str, str], tiny: Path, tmp_path: Path
) -> None:
    assert "there is no hf://example/absent" in refused(
        run("pull", "hf://example/absent", tmp_path / "got", **hub_environment), 3
    )
    hub.deny = 403
    assert "refuses these credentials" in refused(run("publish", tiny, REFERENCE, **hub_environment), 3)
    nobody = hub_environment | {"HF_ENDPOINT": "http://127.0.0.1:1"}
    assert "could not be reached" in refused(run("pull", REFERENCE, tmp_path / "got", **nobody), 3)
    assert not (tmp_path / "got").exists()
    assert not list(tmp_path.glob(".*")), "something hidden was left"
