"""Where the system allows less, programs run in what remains, and `isolation` says so."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgeforge.errors import MissingDependency
from edgeforge.validation.execution import layers as layers_module
from edgeforge.validation.execution import supervisor
from edgeforge.validation.execution.layers import PHRASES
from edgeforge.validation.execution.outcome import DEFAULT
from edgeforge.validation.execution.places import Interpreter, interpreter

from . import contained
from .contained import NAMESPACES

NOBODY = 65534

SCRIPT = """
import json
from edgeforge.validation.execution import Limits
from edgeforge.validation.execution.layers import layers_without
from edgeforge.validation.execution.supervisor import _run
layers = layers_without(frozenset(%r))
programs = %r
outcomes = {name: _run(source, Limits(seconds=1.5, processes=8), layers).status for name, source in programs.items()}
print(json.dumps({"layers": layers, "outcomes": outcomes}))
"""
PROGRAMS = {
    "fine": "import math, typing, hashlib\nopen('x', 'w').write('x')\nassert open('x').read() == 'x'",
    "forks": "import os, time\nfor i in range(40):\n    if not os.fork():\n        time.sleep(30)\n",
    "daemon": "import os, time\nif not os.fork():\n    os.setsid()\n    time.sleep(60)\nos._exit(0)",
    "read": "open('/etc/passwd').read()",
    "write": "open('/var/tmp/edgeforge-escaped', 'w').write('x')",
    "socket": "import socket\nsocket.create_connection(('127.0.0.1', 9))",
    "kill": "import os\nos.kill(os.getppid(), 9)",
    "memory": "x = bytearray(10 << 30)",
}
FAILURES = {"memory": "out of memory"}


@pytest.mark.parametrize(
    ("user", "without"),
    [
        pytest.param(NOBODY, {"guard"}, id="nobody-no-hooks"),
        pytest.param(NOBODY, NAMESPACES | {"guard"}, id="nobody-landlock-and-seccomp"),
        pytest.param(NOBODY, NAMESPACES | {"landlock"}, id="nobody-seccomp"),
        pytest.param(NOBODY, NAMESPACES | {"landlock", "seccomp"}, id="nobody-hooks"),
        pytest.param(0, NAMESPACES | {"guard"}, id="root-landlock-and-seccomp"),
        pytest.param(0, NAMESPACES | {"landlock", "seccomp"}, id="root-hooks"),
    ],
)
def test_less_isolation_still_contains(user: int, without: set[str]) -> None:
    contained.here(frozenset())
    answer = json.loads(contained.as_user(user, SCRIPT % (sorted(without), PROGRAMS)))
    assert answer["outcomes"].pop("fine") == "passed"
    for name, status in answer["outcomes"].items():
        assert status == FAILURES.get(name, "failed"), name
    assert not Path("/var/tmp/edgeforge-escaped").exists()
    own = {"user"} if user == 0 else {"userns"}
    assert set(answer["layers"]) == set(PHRASES) - without - ({"user", "userns"} - (own - without))


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_module, "layers_here", lambda: ("userns", "pid", "root", "guard"))
    said = layers_module.isolation()
    assert "not in force: no network namespace" in said
    assert "not in force: no seccomp filter" in said
    assert any("the interpreter's hooks alone" in phrase and "network" in phrase for phrase in said)
    assert not any("runs as the user who validates" in phrase for phrase in said)


def test_a_layer_that_fails_later_refuses_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program never runs in less than what `isolation` told."""
    contained.here(frozenset())
    monkeypatch.setattr(supervisor, "PAUSE_SECONDS", 0.0)
    layers = contained.here(frozenset())
    monkeypatch.setattr(
        "edgeforge.validation.execution.launch.interpreter", lambda: _with_source("/nonexistent/edgeforge")
    )
    outcome = supervisor._run("pass", DEFAULT, layers)
    assert outcome.status == "refused"
    assert "root: " in outcome.detail


def _with_source(path: str) -> Interpreter:
    found = interpreter()
    return replace(found, sources=(*found.sources, path))


def test_no_isolation_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    contained.here(frozenset())
    monkeypatch.setattr("edgeforge.validation.execution.launch.START", "raise SystemExit(1)")
    with pytest.raises(MissingDependency, match="cannot be run contained"):
        layers_module.layers_without(frozenset({"uts"}))
