"""Hardware profiles and build targets: facts as TOML, one file each, every figure with its source."""

from edgeforge.hardware.algorithms import ALGORITHMS, AlgorithmFacts, reads_text, with_algorithm
from edgeforge.hardware.capabilities import (
    BACKENDS,
    ENGINES,
    SCHEMES,
    BackendFacts,
    EngineFacts,
    SchemeFacts,
    engine_for,
    runnable_schemes,
)
from edgeforge.hardware.conflicts import PLANNED, find_conflict
from edgeforge.hardware.library import available_profiles, available_targets, load_profile, load_target
from edgeforge.hardware.parse import profile_from_json, profile_to_json, target_from_json, target_to_json
from edgeforge.hardware.types import FloatName, Gate, HardwareProfile, KvCacheName, Target

__all__ = [
    "ALGORITHMS",
    "BACKENDS",
    "ENGINES",
    "PLANNED",
    "SCHEMES",
    "AlgorithmFacts",
    "BackendFacts",
    "EngineFacts",
    "FloatName",
    "Gate",
    "HardwareProfile",
    "KvCacheName",
    "SchemeFacts",
    "Target",
    "available_profiles",
    "available_targets",
    "engine_for",
    "find_conflict",
    "load_profile",
    "load_target",
    "profile_from_json",
    "profile_to_json",
    "reads_text",
    "runnable_schemes",
    "target_from_json",
    "target_to_json",
    "with_algorithm",
]
