"""Each example runs as its first lines say, answers what the bundle's runtime answers, and leaves the bundle whole."""

import http.client
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgeforge import runtime
from examples.conftest import EXAMPLES, QUESTION, Asked

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
        timeout=300,
    )


def test_the_script_answers_and_leaves_the_bundle_as_it_was(asked: Asked) -> None:
    done = run(sys.executable, EXAMPLES / "ask.py", asked.bundle, QUESTION)
    assert done.stdout == asked.answer + "\n", done.stderr
    assert runtime.verify(asked.bundle)
    assert len((EXAMPLES / "ask.py").read_text().splitlines()) <= 15


def test_a_zipapp_beside_its_bundle_answers(asked: Asked, tmp_path: Path) -> None:
    program = tmp_path / "ask.pyz"
    built = run("bash", EXAMPLES / "executable" / "build", "zipapp", asked.bundle, program, PYTHON=sys.executable)
    assert built.returncode == 0, built.stderr
    assert program.stat().st_size < 150_000
    (tmp_path / "bundle").symlink_to(asked.bundle)
    done = run(sys.executable, "-I", program, *QUESTION.split())
    assert done.stdout == asked.answer + "\n", done.stderr


def test_a_kind_of_executable_that_there_is_not_is_refused(asked: Asked, tmp_path: Path) -> None:
    done = run("bash", EXAMPLES / "executable" / "build", "exe", asked.bundle, tmp_path / "ask")
    assert done.returncode == 2
    assert "there is no kind 'exe'" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("PyInstaller") is None, reason="PyInstaller is not installed")
def test_one_file_needs_no_python(asked: Asked, tmp_path: Path) -> None:
    program = tmp_path / "ask"
    built = run("bash", EXAMPLES / "executable" / "build", "pyinstaller", asked.bundle, program, PYTHON=sys.executable)
    assert built.returncode == 0, built.stderr
    (tmp_path / "bundle").symlink_to(asked.bundle)
    alone = subprocess.run([program, *QUESTION.split()], capture_output=True, text=True, env={}, check=False)
    assert alone.stdout == asked.answer + "\n", alone.stderr


def test_node_answers_the_same_through_onnxruntimes_own_interface(asked: Asked, node: Path) -> None:
    done = run("node", node / "ask.mjs", asked.bundle, QUESTION, THREADS="2")
    assert done.stdout == asked.answer + "\n", done.stderr


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.skipif(sys.platform != "linux", reason="the wheels' libraries have other names elsewhere")
def test_cpp_answers_the_same_through_onnxruntime_genai(asked: Asked, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    built = run("bash", EXAMPLES / "cpp" / "build", tmp_path, PYTHON=sys.executable)
    assert built.returncode == 0, built.stderr
    assert built.stderr == "", "it compiles without warnings"
    done = run(tmp_path / "ask", asked.bundle / "model", QUESTION)
    assert done.stdout == asked.answer + "\n", done.stderr
    wrong = run(tmp_path / "ask", tmp_path, QUESTION)
    assert wrong.returncode == 3
    assert wrong.stderr.startswith("error: ")


@contextmanager
def served(bundle: Path) -> Iterator[http.client.HTTPConnection]:
    """The FastAPI app in uvicorn, on a port that is free."""
    command = [sys.executable, "-m", "uvicorn", "fastapi_app:app", "--port", "0", "--app-dir", str(EXAMPLES)]
    environment = {**os.environ, "BUNDLE": str(bundle)}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert server.stderr is not None
    try:
        seen = ""
        for line in server.stderr:
            seen += line
            if port := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
                yield http.client.HTTPConnection("127.0.0.1", int(port[1]), timeout=120)
                return
        raise AssertionError(f"uvicorn did not start: {seen}")
    finally:
        server.terminate()
        server.wait(timeout=60)
        server.stderr.close()


def ask(connection: http.client.HTTPConnection, question: str, **more: int) -> http.client.HTTPResponse:
    body = json.dumps({"question": question, **more})
    connection.request("POST", "/ask", body, {"Content-Type": "application/json"})
    return connection.getresponse()


def test_the_fastapi_app_survives_clients_that_leave_streams_and_refuses(asked: Asked) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    with served(asked.bundle) as connection:
        leaving = ask(connection, "Tell me a long story.", max_new_tokens=1024)
        assert leaving.read1(16)
        connection.close()

        response = ask(connection, QUESTION)
        pieces = list(iter(lambda: response.read1(4096), b""))
        assert b"".join(pieces).decode() == asked.answer
        assert len(pieces) > 2, "it came in pieces"

        too_long = ask(connection, "word " * 5000)
        assert too_long.status == 422
        assert "more than the bundle's context" in json.loads(too_long.read())["error"]
        none = ask(connection, QUESTION, max_new_tokens=0)
        assert none.status == 422
        none.read()
        connection.close()
