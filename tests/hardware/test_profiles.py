"""The cards and boards that ship: their data sheet figures, typed a second time, and what their generation implies."""

import pytest

from edgeforge.hardware import HardwareProfile, available_profiles, load_profile

GIB = 2**30
PROFILES = tuple(load_profile(name) for name in available_profiles())
NVIDIA = tuple(profile for profile in PROFILES if profile.kind != "cpu")


def named(profile: HardwareProfile) -> str:
    return profile.name


# Compute capability, memory in GiB, bandwidth in GB/s.
DATA_SHEETS: dict[str, tuple[str | None, int, float]] = {
    "cpu-x86-64": (None, 16, 51.2),
    "cpu-arm64": (None, 16, 17.068),
    "rtx3060-12gb": ("8.6", 12, 360),
    "rtx3090": ("8.6", 24, 936),
    "rtx4060-8gb": ("8.9", 8, 272),
    "rtx4070": ("8.9", 12, 504),
    "rtx4080": ("8.9", 16, 716.8),
    "rtx4090": ("8.9", 24, 1008),
    "rtx5080": ("12.0", 16, 960),
    "rtx5090": ("12.0", 32, 1792),
    "jetson-orin-nano-8gb": ("8.7", 8, 102.4),
    "jetson-orin-nx-16gb": ("8.7", 16, 102.4),
    "jetson-agx-orin-64gb": ("8.7", 64, 204.8),
    "jetson-thor": ("11.0", 128, 273),
    "a100-80gb": ("8.0", 80, 2039),
    "l4": ("8.9", 24, 300),
    "l40s": ("8.9", 48, 864),
    "h100": ("9.0", 80, 3350),
    "h200": ("9.0", 141, 4800),
    "b200": ("10.0", 180, 7700),
}


def test_every_shipped_profile_is_checked_against_its_data_sheet() -> None:
    assert set(DATA_SHEETS) == set(available_profiles())


@pytest.mark.parametrize("profile", PROFILES, ids=named)
def test_data_sheet_figures(profile: HardwareProfile) -> None:
    capability, memory_gib, bandwidth_gb_per_s = DATA_SHEETS[profile.name]
    assert profile.compute_capability == capability
    assert profile.memory_bytes == memory_gib * GIB
    assert profile.bandwidth_bytes_per_s == round(bandwidth_gb_per_s * 1e9)


@pytest.mark.parametrize("profile", PROFILES, ids=named)
def test_what_is_reserved_is_little_and_a_board_keeps_room_for_its_system(profile: HardwareProfile) -> None:
    share = profile.reserved_bytes / profile.memory_bytes
    assert 0 < share <= 0.25
    if profile.kind == "gpu":
        assert share < 0.07
    else:
        assert profile.reserved_bytes > GIB


@pytest.mark.parametrize("profile", NVIDIA, ids=named)
def test_arithmetic_follows_the_gpu_generation(profile: HardwareProfile) -> None:
    assert profile.compute_capability is not None
    generation = float(profile.compute_capability)
    assert ("fp8" in profile.formats) == (generation >= 8.9)
    assert ("nvfp4" in profile.formats) == (generation >= 10)
    assert {"f32", "f16", "bf16", "int8", "int4"} <= set(profile.formats)


@pytest.mark.parametrize("profile", NVIDIA, ids=named)
def test_a_jetson_shares_one_memory_and_nothing_else_does(profile: HardwareProfile) -> None:
    assert (profile.kind == "soc") == profile.name.startswith("jetson-")
