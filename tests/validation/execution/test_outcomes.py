"""A program passes when it ran past its last line, and in no simpler way."""

import pytest

from edgeforge.validation.execution import STATUSES, Limits, isolation, run_program, run_programs
from edgeforge.validation.execution.layers import ALWAYS, PHRASES, layers_here

from .contained import here, run

FORGERIES = {
    "exit": "import sys\nsys.exit(0)\nassert False",
    "_exit": "import os\nos._exit(0)\nassert False",
    "SystemExit": "raise SystemExit",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\nassert False",
    "patched exit": "import os\nos._exit = lambda code: None\nos.write = lambda fd, data: len(data)\nassert False",
    "trace": "import sys\nsys.settrace(lambda *a: None)\nassert False",
    "thread": "import os, threading\nthreading.Thread(target=os._exit, args=(0,)).start()\nassert False",
    "marker": """
import os
print("passed")
for fd in range(64):
    try:
        os.write(fd, b"passed")
    except OSError:
        pass
os._exit(0)
""",
    "replay": """
import os
for fd in range(64):
    try:
        os.write(4, os.pread(fd, 32, 0))
    except OSError:
        pass
os._exit(0)
""",
    "frames": """
import os, sys
frame = sys._getframe()
while frame:
    for space in (frame.f_locals, frame.f_globals):
        for value in list(space.values()):
            if isinstance(value, bytes):
                os.write(4, value[:32])
    frame = frame.f_back
os._exit(0)
""",
    "constants": """
import os, sys
for value in sys._getframe(1).f_code.co_consts:
    if isinstance(value, bytes):
        os.write(4, value)
os._exit(0)
""",
    "gc": """
import gc, os, sys
for value in gc.get_referents(sys._getframe(1)):
    if isinstance(value, bytes):
        os.write(4, value)
os._exit(0)
""",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_does_not_pass(name: str) -> None:
    assert run(FORGERIES[name]).status == "failed"


def test_how_a_program_ended_is_told() -> None:
    here(frozenset())
    assert run_program("x = 1").status == "passed"
    assert run_program("").passed
    assert run_program("1 / 0").detail == "ZeroDivisionError: division by zero (line 1: 1 / 0)"
    assert run_program("x =").detail.startswith("SyntaxError")
    assert run_program("x = '\0'").status == "failed"
    assert run_program("def check(f):\n    assert f(1) == 2\ncheck(lambda x: x)").detail.startswith(
        "AssertionError (line 2: "
    )
    assert run_program("raise ValueError('two\\nlines\\x1b[31m')").detail.startswith("ValueError: two (line 1")
    assert run_program("import sys\nsys.exit(3)").detail.startswith("SystemExit: 3")
    assert run_program("input()").detail.startswith("EOFError")
    assert run_program("class E(Exception):\n    def __str__(self): raise E\nraise E").status == "failed"
    assert run_program("x = '\ud800'").passed  # what cannot be encoded is replaced


def test_a_program_starts_like_every_other() -> None:
    """As in human-eval: an empty namespace; and a hash seed, a folder and descriptors that do not depend on the run."""
    here(frozenset())
    assert run_program("assert __name__ != '__main__' and set(globals()) <= {'__builtins__'}").passed
    assert run_program(
        "import os\nassert os.listdir('.') == []\nopen('x', 'w').write('x')\nassert os.path.exists('x')"
    ).passed
    assert run_program("import sys\nassert not any('site-packages' in p for p in sys.path) and sys.argv == ['']").passed
    seed = run_program("raise Exception(hash('seed'))").detail
    assert run_program("raise Exception(hash('seed'))").detail == seed


def test_outcomes_come_in_the_order_of_the_sources() -> None:
    here(frozenset())
    calls: list[tuple[int, int]] = []
    sources = ["import time\ntime.sleep(0.3)", "1 / 0", "pass", "raise KeyError(3)"]
    outcomes = run_programs(sources, Limits(), workers=3, progress=lambda done, of: calls.append((done, of)))
    assert [outcome.status for outcome in outcomes] == ["passed", "failed", "passed", "failed"]
    assert "KeyError: 3" in outcomes[3].detail
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert run_programs([], Limits(), workers=2) == ()
    assert {outcome.status for outcome in outcomes} <= set(STATUSES)


def test_isolation_says_what_holds_and_what_does_not() -> None:
    here(frozenset())
    phrases = isolation()
    assert ALWAYS in phrases
    for name, (held, missing) in PHRASES.items():
        assert (held in phrases) == (name in layers_here())
        assert not (held in phrases and f"not in force: {missing}" in phrases)
