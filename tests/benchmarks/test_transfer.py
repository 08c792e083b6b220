"""What travels: the demo, a second target that shares its tokenizer, and an update in which one file changed.

Judged by what passes a proxy, requests' bodies for a push and responses' for a pull.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from built import Build, build_once
from report import Report

from edgeforge.publish import Wire, publish, pull
from edgeforge.runtime.integrity import tree

TITLE = "Bytes over the wire"
WIRE = Wire(plain_http=True)


@pytest.fixture(scope="module")
def second(demo_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo for TensorRT-LLM on an H100: other weights, the same tokenizer."""
    return build_once(tmp_path_factory.mktemp("second"), "demo", target="h100").bundle


def test_transfer(report: Report, demo_int4: Build, second: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = pytest.importorskip("faults", reason="run with tests/publish on the path")
    registries = pytest.importorskip("registries", reason="run with tests/publish on the path")
    published = pytest.importorskip("published", reason="run with tests/publish on the path")
    program = registries.program()
    if program is None:
        pytest.skip("no docker-registry: ci/registry fetches one")
    with tempfile.TemporaryDirectory(dir=registries.fast_disk()) as name:
        scratch = Path(name)
        monkeypatch.setenv("EDGEFORGE_CACHE", str(scratch / "cache"))
        update = shutil.copytree(demo_int4.bundle, scratch / "update")
        published.with_file(update, "model/chat_template.jinja", b"{{ messages[-1]['content'] }}")
        with registries.running(program, scratch / "registry") as registry, faults.before(registry.host) as proxy:
            place, folder = f"oci://{proxy.host}/bench/demo", scratch / "got"

            def row(what: str, bundle: Path, transfer: Callable[[], object], *, push: bool) -> None:
                proxy.forget()
                transfer()
                passed, whole = proxy.uploaded_bytes if push else proxy.downloaded_bytes, sum(tree(bundle).values())
                cells = {"bytes": f"{passed:,}", "of the bundle's": f"{whole:,}", "share": f"{passed / whole:.2%}"}
                report.row(TITLE, {"what": what, **cells})

            def pushing(*bundles: Path, tag: str) -> Callable[[], object]:
                return lambda: publish(bundles, f"{place}:{tag}", wire=WIRE)

            def pulling(tag: str) -> Callable[[], object]:
                return lambda: pull(f"{place}:{tag}", folder, wire=WIRE, platform="cpu", choose=min)

            demo = demo_int4.bundle
            row("push of the demo for cpu", demo, pushing(demo, tag="1"), push=True)
            row("push of the same for h100, beside it", second, pushing(demo, second, tag="2"), push=True)
            row("push of an update of one file", update, pushing(update, tag="3"), push=True)
            row("pull of the demo", demo, pulling("2"), push=False)
            row("pull of the update over it", update, pulling("3"), push=False)
            row("pull of what is there", update, pulling("3"), push=False)
