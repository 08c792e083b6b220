"""Hardware profiles and build targets: facts as TOML, one file each, every figure with its source."""

from edgeforge.hardware.capabilities import BACKENDS, PLANNED, SCHEMES, BackendFacts, SchemeFacts, find_conflict
from edgeforge.hardware.library import available_profiles, available_targets, load_profile, load_target
from edgeforge.hardware.parse import profile_from_json, profile_to_json, target_from_json, target_to_json
from edgeforge.hardware.types import FloatName, Gate, HardwareProfile, Target

__all__ = [
    "BACKENDS",
    "PLANNED",
    "SCHEMES",
    "BackendFacts",
    "FloatName",
    "Gate",
    "HardwareProfile",
    "SchemeFacts",
    "Target",
    "available_profiles",
    "available_targets",
    "find_conflict",
    "load_profile",
    "load_target",
    "profile_from_json",
    "profile_to_json",
    "target_from_json",
    "target_to_json",
]
