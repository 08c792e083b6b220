"""The packages a bundle needs: found, new enough, or the pip command that cures it. Needs none of them itself."""

import importlib
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Literal

from .errors import MissingRequirement

Device = Literal["cpu", "cuda"]

ONNXRUNTIME: dict[Device, str] = {"cpu": "onnxruntime", "cuda": "onnxruntime-gpu[cuda,cudnn]"}


def device_of(provider: str | None) -> Device:
    """The device behind an onnxruntime provider's name; the engines of bundles without a graph all run on NVIDIA's."""
    return "cpu" if provider == "CPUExecutionProvider" else "cuda"


def check_packages(packages: Mapping[str, str], device: Device) -> None:
    """MissingRequirement unless the runtime's own packages and those asked for are there, and new enough (`>=X.Y`)."""
    for package, least in {"numpy": "", "tokenizers": "", **packages}.items():
        module = import_package(package, device)
        found = str(getattr(module, "__version__", ""))
        if numbers(found) < numbers(least.removeprefix(">=")):
            raise MissingRequirement(
                f"the bundle needs {package} {least}, found {found}",
                hint=f"pip install --upgrade '{pip_name(package, device)}{least}'",
            )


def import_package(package: str, device: Device = "cpu") -> ModuleType:
    """The imported package, or MissingRequirement with the pip command."""
    try:
        # onnxruntime-gpu is imported under the same name.
        return importlib.import_module("onnxruntime" if package.startswith("onnxruntime") else package)
    except ImportError as error:
        raise MissingRequirement(
            f"the package {package} is missing ({error})", hint=f"pip install '{pip_name(package, device)}'"
        ) from None


def pip_name(package: str, device: Device) -> str:
    """What to give pip for a package: onnxruntime comes in one edition per device."""
    return ONNXRUNTIME[device] if package.startswith("onnxruntime") else package


def numbers(version: str) -> tuple[int, ...]:
    """The release numbers of a version, to compare by: 1.2.0rc6 gives (1, 2)."""
    release = re.match(r"[0-9.]*", version)
    parts = [int(part) for part in release.group().split(".") if part] if release else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
