"""A bundle whose text handling is no longer the original's is found, though every hash is right."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from built import Build
from tiny_bundle import make_bundle

from edgeforge.bundle import seal
from edgeforge.cli.console import run_guarded
from edgeforge.cli.group import edgeforge
from edgeforge.model.parity import make_parity, parity_text
from edgeforge.model.tokenizer import tokenizer_from_directory
from edgeforge.runtime import CorruptBundle, UnusableBundle, load, read_manifest
from edgeforge.runtime.integrity import sha256_of, verify
from edgeforge.runtime.parity import PARITY_NAME, check_parity


def resealed(bundle: Path, **added: bytes) -> Path:
    """As somebody would who changes a file and all hashes with it; `added` are new files."""
    for name, content in added.items():
        (bundle / name.replace("_json", ".json")).write_bytes(content)
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in added:
        manifest["files"][name.replace("_json", ".json")] = {"sha256": "", "size": 0, "role": "parity"}
    for name, record in manifest["files"].items():
        record |= {"sha256": sha256_of(bundle / name), "size": (bundle / name).stat().st_size}
    path.write_text(json.dumps(manifest))
    seal(bundle)
    verify(bundle, "full")
    return bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A tiny bundle with a chat template and its vectors."""
    made = make_bundle(tmp_path / "b")
    parity = parity_text(make_parity(tokenizer_from_directory(made / "model")))
    return resealed(made, parity_json=parity.encode())


def change(path: Path, edit: Callable[[str], str]) -> None:
    text = path.read_text(encoding="utf-8")
    assert edit(text) != text
    path.write_text(edit(text), encoding="utf-8")


def test_an_untouched_bundle_agrees(bundle: Path) -> None:
    checked = check_parity(bundle, read_manifest(bundle))
    assert checked is not None
    assert (checked.texts, checked.chats, checked.rendered) == (48, 9, True)
    load(bundle, verify="full")


def test_a_bundle_from_before_there_were_vectors_still_verifies(tmp_path: Path) -> None:
    old = make_bundle(tmp_path / "old")
    assert PARITY_NAME not in read_manifest(old).files
    assert check_parity(old, read_manifest(old)) is None
    load(old, verify="full")


def test_another_tokenizer_is_named_with_the_first_text_that_it_reads_otherwise(bundle: Path) -> None:
    tokenizer = json.loads((bundle / "model/tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["add_prefix_space"] = True
    (bundle / "model/tokenizer.json").write_text(json.dumps(tokenizer))
    resealed(bundle)
    with pytest.raises(CorruptBundle, match=r"'a' becomes 2 ids where the original has 1: at 0 comes \d+ and not \d+"):
        check_parity(bundle, read_manifest(bundle))
    with pytest.raises(CorruptBundle, match="does not read text as the original does"):
        load(bundle, verify="full")
    load(bundle)  # a quick start does not look


def test_another_decoder_is_found_though_the_ids_are_right(bundle: Path) -> None:
    tokenizer = json.loads((bundle / "model/tokenizer.json").read_text())
    tokenizer["decoder"] = None
    (bundle / "model/tokenizer.json").write_text(json.dumps(tokenizer))
    resealed(bundle)
    with pytest.raises(CorruptBundle, match="the ids of ' ' become the text"):
        check_parity(bundle, read_manifest(bundle))


def test_another_template_is_named_with_the_first_chat_and_where_they_part(bundle: Path) -> None:
    change(bundle / "model/chat_template.jinja", lambda text: text.replace("assistant\n", "assistant:"))
    resealed(bundle)
    with pytest.raises(CorruptBundle, match=r"the chat user is rendered '.+assistant:' where the original has"):
        check_parity(bundle, read_manifest(bundle))


def test_verify_ends_with_exit_code_6_and_one_sentence(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded(edgeforge, ["verify", str(bundle)]) == 0
    said = capsys.readouterr()
    assert "48 texts and 9 chats become the original's ids" in said.out
    change(bundle / "model/chat_template.jinja", lambda text: text + "!")
    resealed(bundle)
    assert run_guarded(edgeforge, ["verify", str(bundle)]) == 6
    said = capsys.readouterr()
    error, hint = [line for line in said.err.splitlines() if line.startswith(("error", "hint"))]
    assert error.startswith("error: the bundle does not read text as the original does: the chat user is rendered")
    assert (hint[:6], said.out) == ("hint: ", "")
    assert run_guarded(edgeforge, ["verify", str(bundle), "--quick"]) == 0


def test_without_jinja2_the_tokenizer_is_still_checked_and_it_is_said(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text("import sys\nsys.modules['jinja2'] = None\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import runtime, runtime.parity\n"
        "from pathlib import Path; b = Path(sys.argv[1])\n"
        "runtime.load(b, verify='full')\n"
        "print(runtime.parity.check_parity(b, runtime.read_manifest(b)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-B", "-c", code, str(bundle)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )
    assert (result.stdout, result.stderr) == ("Checked(texts=48, chats=9, rendered=False)\n", "")


@pytest.mark.parametrize(
    ("old", "new", "error", "said"),
    [
        ('"schema_version": 1', '"schema_version": 2', UnusableBundle, "schema_version is 2"),
        ('"now": "2024', '"now": "x2024', UnusableBundle, "now is not a time"),
        ('"texts": [', '"texts": {', CorruptBundle, "is not JSON"),
        ('"ids": [', '"ids": [null], "x": [', UnusableBundle, r"texts\[0\].ids must be a list of integers"),
    ],
)
def test_a_damaged_file_of_vectors_is_refused(
    bundle: Path, old: str, new: str, error: type[Exception], said: str
) -> None:
    change(bundle / PARITY_NAME, lambda text: text.replace(old, new))
    with pytest.raises(error, match=said):
        check_parity(bundle, read_manifest(bundle))


def test_a_build_carries_its_vectors(stories_int4: Build, tmp_path: Path) -> None:
    manifest = read_manifest(stories_int4.bundle)
    assert manifest.files[PARITY_NAME].role == "parity"
    checked = check_parity(stories_int4.bundle, manifest)
    assert checked is not None and (checked.texts, checked.chats) == (48, 0)
    copy = shutil.copytree(stories_int4.bundle, tmp_path / "copy")
    tokenizer = json.loads((copy / "model/tokenizer.json").read_text())
    tokenizer["post_processor"] = None  # no BOS any more
    (copy / "model/tokenizer.json").write_text(json.dumps(tokenizer))
    resealed(copy)
    with pytest.raises(CorruptBundle, match="'' becomes 0 ids where the original has 1: at 0 comes nothing"):
        check_parity(copy, read_manifest(copy))
