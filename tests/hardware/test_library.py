"""Every shipped profile and target loads and names its sources; every mistake in a file is one sentence about it."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from edgeforge.errors import UnusableInput
from edgeforge.hardware import (
    HardwareProfile,
    available_profiles,
    available_targets,
    load_profile,
    load_target,
    profile_from_json,
    profile_to_json,
    target_from_json,
    target_to_json,
)

FIGURES = ("memory_bytes", "reserved_bytes", "bandwidth_bytes_per_s", "compute_capability", "formats")


@pytest.mark.parametrize("name", available_profiles())
def test_every_figure_of_a_shipped_profile_has_a_source(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    for figure in FIGURES:
        if getattr(profile, figure):
            assert len(profile.sources[figure]) > 20, figure
    assert set(profile.sources) <= set(FIGURES)


@pytest.mark.parametrize("name", available_profiles())
def test_a_profile_survives_json(name: str) -> None:
    profile = load_profile(name)
    assert profile_from_json(profile_to_json(profile)) == profile


@pytest.mark.parametrize("name", available_targets())
def test_a_target_survives_json(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target_from_json(target_to_json(target)) == target


def test_the_promised_targets_ship_and_bases_are_not_listed() -> None:
    assert {"cpu", "rtx4090", "h100", "jetson-orin-nx-16gb"} <= set(available_targets())
    assert not [name for name in (*available_targets(), *available_profiles()) if name.startswith("_")]


def test_an_unknown_target_suggests_the_nearest() -> None:
    with pytest.raises(UnusableInput, match="there is no target 'rtx409'; did you mean 'rtx4090'") as caught:
        load_target("rtx409")
    assert caught.value.exit_code == 3
    assert "jetson-orin-nx-16gb" in (caught.value.hint or "")


def test_a_path_that_is_not_there_is_called_a_file(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="no target file"):
        load_target(tmp_path / "board.toml")


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_extends_a_known_target_and_its_own_keys_win(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.toml", 'extends = "cpu"\ncontext = 1024\n[gate]\nmax_mean_kl_divergence = 0.5\n')
    mine, cpu = load_target(path), load_target("cpu")
    assert (mine.name, mine.context, mine.profile) == ("mine", 1024, cpu.profile)
    assert mine.gate.max_mean_kl_divergence == 0.5
    assert mine.gate.max_perplexity_ratio == cpu.gate.max_perplexity_ratio  # tables merge key by key


def test_a_board_of_ones_own_is_a_single_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "orin-8gb.toml",
        """
        extends = "jetson-orin-nx-16gb"
        [profile]
        extends = "jetson-orin-nx-16gb"
        title = "Half an Orin"
        memory_bytes = 8_589_934_592
        [profile.sources]
        memory_bytes = "my board's label"
        """,
    )
    target = load_target(path)
    assert target.profile.name == "orin-8gb"
    assert target.profile.memory_bytes == 8 * 2**30
    assert target.profile.bandwidth_bytes_per_s == load_profile("jetson-orin-nx-16gb").bandwidth_bytes_per_s


def test_a_base_may_lie_beside_the_file(tmp_path: Path) -> None:
    write(tmp_path, "base.toml", 'extends = "cpu"\ncontext = 77\n')
    assert load_target(write(tmp_path, "mine.toml", 'extends = "base"\n')).context == 77


def test_a_profile_is_not_mistaken_for_the_target_of_its_name(tmp_path: Path) -> None:
    write(tmp_path, "h100.toml", 'extends = "h100"\n')
    assert load_target(write(tmp_path, "fast.toml", 'extends = "h100"\nprofile = "h100"\n')).profile.name == "h100"


@pytest.mark.parametrize(
    ("machine", "profile"), [("x86_64", "cpu-x86-64"), ("AMD64", "cpu-x86-64"), ("arm64", "cpu-arm64")]
)
def test_cpu_is_the_processor_of_this_machine(monkeypatch: pytest.MonkeyPatch, machine: str, profile: str) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    target = load_target("cpu")
    assert (target.name, target.profile.name, load_profile("cpu").name) == ("cpu", profile, profile)


def test_a_file_may_have_the_name_of_what_it_extends(tmp_path: Path) -> None:
    assert load_target(write(tmp_path, "cpu.toml", 'extends = "cpu"\ncontext = 5\n')).context == 5


def test_circles_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "one.toml", 'extends = "two"\n')
    with pytest.raises(UnusableInput, match="circle"):
        load_target(write(tmp_path, "two.toml", 'extends = "one"\n'))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("contxt = 5", r"unknown key 'contxt'"),
        ("context = 0", r"'context' must be a whole number, at least 1, not 0"),
        ("context = true", r"'context' must be a whole number"),
        ('context = "4k"', r"'context' must be a whole number, at least 1, not '4k'"),
        ("symmetric = 1", r"'symmetric' must be true or false"),
        ("description = 3", r"'description' must be a non-empty string"),
        ("group_size = 100", r"group_size 100 is not one of 16, 32"),
        ('activations = "f8"', r"'activations' must be one of f32, f16"),
        ('kv_cache = "f16"', r"kv_cache f16 must be the same as activations f32"),
        ('scheme = "fp8"', r"scheme 'fp8' is not for backend onnx; use w4a16 or w8a16"),
        ('scheme = "q4"', r"scheme 'q4' is unknown with backend onnx; use w4a16"),
        ('lm_head = "nvfp4"', r"lm_head 'nvfp4' is not for backend onnx"),
        ('embedding = "f16"', r"embedding f16 must be an integer scheme or the activations' f32"),
        ('scheme = "f16"', r"scheme f16 must be the same as activations f32"),
        ('backend = "optimum"', r"backend 'optimum' is not there yet; use onnx or modelopt"),
        ('engine = "vllm"', r"engine 'vllm' is not for backend onnx; use onnxruntime"),
        ("tensor_parallel = 2", r"tensor_parallel 2 is not one of \(1,\), which backend onnx can use"),
        ('profile = "h10"', r"there is no profile 'h10'; did you mean 'h100'"),
        ("profile = 3", r"'profile' must be a profile's name or a table"),
        ("gate = 3", r"'gate' must be a table"),
        ("[gate]\nconfidence = 1.5", r"'gate.confidence' must be a number above 0.5 and below 1"),
        ("[gate]\nmax_kl = 1", r"unknown key 'gate.max_kl'"),
        ("[profile]\nextends = 'cpu'\nmemory_bytes = -1", r"'profile.memory_bytes' must be a whole number"),
        ("[profile]\nextends = 'cpu'\nkind = 'tpu'", r"'profile.kind' must be one of cpu, gpu, soc"),
        ("[profile]\nextends = 'cpu'\nformats = ['f64']", r"'formats' must be words of"),
        ("[profile]\nextends = 'cpu'\nreserved_bytes = 99_999_999_999", r"'reserved_bytes' leaves no memory"),
        ("[profile]\nextends = 'cpu'\n[profile.sources]\nmemory_bytes = ''", r"'memory_bytes' has no source"),
        ("context = ", r"is not valid TOML"),
    ],
)
def test_a_mistake_is_one_sentence_naming_the_file(tmp_path: Path, line: str, sentence: str) -> None:
    path = write(tmp_path, "mine.toml", f'extends = "cpu"\n{line}\n')
    with pytest.raises(UnusableInput, match=sentence) as caught:
        load_target(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match=r"mine.toml: the key 'profile' is missing"):
        load_target(write(tmp_path, "mine.toml", 'description = "nothing else"\n'))


def test_what_a_manifest_says_is_checked_as_a_file_is() -> None:
    document: Mapping[str, object] = profile_to_json(load_profile("cpu")) | {"memory_bytes": "much"}
    with pytest.raises(UnusableInput, match="profile: 'memory_bytes'"):
        profile_from_json(document)


def test_figures_without_reserve_need_no_source_for_it() -> None:
    profile = HardwareProfile(
        name="x",
        title="x",
        vendor="x",
        kind="cpu",
        compute_capability=None,
        memory_bytes=1,
        bandwidth_bytes_per_s=1,
        formats=("f32",),
        sources={"memory_bytes": "a", "bandwidth_bytes_per_s": "b", "formats": "c"},
    )
    assert profile_from_json(profile_to_json(profile)) == profile
