"""`edgeforge targets` lists all targets and shows one with the source of every figure."""

import json

from click.testing import CliRunner

from edgeforge.cli.targets import targets
from edgeforge.errors import UnusableInput
from edgeforge.hardware import available_targets, load_target, target_from_json


def test_every_target_is_listed() -> None:
    result = CliRunner().invoke(targets)
    assert result.exit_code == 0
    for name in available_targets():
        assert f"\n{name} " in result.stdout


def test_show_tells_where_figures_come_from() -> None:
    result = CliRunner().invoke(targets, ["show", "h100"])
    assert result.exit_code == 0
    for source in load_target("h100").profile.sources.values():
        assert source in result.stdout


def test_json_is_the_whole_target() -> None:
    result = CliRunner().invoke(targets, ["show", "rtx4090", "--json"])
    assert target_from_json(json.loads(result.stdout)) == load_target("rtx4090")
    listed = json.loads(CliRunner().invoke(targets, ["--json"]).stdout)["targets"]
    assert [target_from_json(item).name for item in listed] == list(available_targets())


def test_an_unknown_target_reaches_the_boundary() -> None:
    result = CliRunner().invoke(targets, ["show", "cpuu"])
    assert isinstance(result.exception, UnusableInput)
    assert "did you mean 'cpu'" in result.exception.message
