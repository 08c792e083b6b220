"""Options and fixtures of the benchmarks; the tables come at the very end."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import big_model
import builds
import pytest
from report import Report

REPORT = pytest.StashKey[Report]()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What the command line asked for, and where things are."""

    size: str  # full or small
    rounds: int
    threads: int
    peers: builds.Peers
    scratch: Path
    built: Path

    @property
    def logs(self) -> Path:
        return self.built / "logs"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("edgeforge benchmarks")
    group.addoption("--bench-size", choices=["full", "small"], default="full", help="small: to try the benchmarks out")
    group.addoption("--bench-rounds", type=int, default=7, help="alternations of the speed benchmarks")
    group.addoption("--bench-threads", type=int, default=2)
    group.addoption("--soft-targets", action="store_true", help="fail where a target of the README is missed")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = Report()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    report = config.stash[REPORT]
    if report.tables:
        terminalreporter.section("EdgeForge benchmarks, as markdown")
        terminalreporter.write_line(report.markdown())


@pytest.fixture
def report(pytestconfig: pytest.Config) -> Iterator[Report]:
    """Collects rows; with --soft-targets a test fails for the targets that it missed itself."""
    report = pytestconfig.stash[REPORT]
    before = len(report.missed)
    yield report
    if pytestconfig.getoption("--soft-targets"):
        assert not report.missed[before:], "targets missed"


@pytest.fixture(scope="session")
def bench(pytestconfig: pytest.Config, test_data: Path) -> Iterator[Bench]:
    """`scratch` lies in the benchmarks' cache folder, on the models' own disk, and is emptied at the end."""
    cache = big_model.cache_folder()
    scratch = cache / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    peers = builds.find_peers()
    for reason in peers.missing:
        pytestconfig.stash[REPORT].row("Not measured", {"peer": reason})
    yield Bench(
        size=pytestconfig.getoption("--bench-size"),
        rounds=pytestconfig.getoption("--bench-rounds"),
        threads=pytestconfig.getoption("--bench-threads"),
        peers=peers,
        scratch=scratch,
        built=cache / "built",
    )
    shutil.rmtree(scratch, ignore_errors=True)
