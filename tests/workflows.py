"""Runs the `run:` steps of a GitHub workflow, or the scripts of a GitLab one, in a folder, as the service would: a step
that fails ends its job, a job that fails stops those that need it.

What others provide (`uses:`) is left out, but for artifacts, which jobs hand on; so is the step called Install.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

Json = dict[str, object]


@dataclass(frozen=True)
class Outcome:
    """Exit status by step (`job: step`), what was printed, and which jobs ran to their end."""

    statuses: dict[str, int] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def expand(text: object, contexts: Mapping[str, str]) -> str:
    """`${{ a.b || c }}` by what `contexts` holds; KeyError for what it does not know."""

    def value(match: re.Match[str]) -> str:
        names = [name.strip() for name in match.group(1).split("||")]
        return next((contexts[name] for name in names if contexts[name]), "")

    return re.sub(r"\$\{\{\s*(.*?)\s*\}\}", value, str(text))


def holds(condition: str | None, contexts: Mapping[str, str], *, failed: bool) -> bool:
    """An `if:` in the few forms that these workflows use."""
    if condition is None:
        return not failed
    if condition == "always()":
        return True
    parts = condition.split(" && ")
    for part in parts:
        if part == "startsWith(github.ref, 'refs/tags/')":
            fine = contexts["github.ref"].startswith("refs/tags/")
        elif matched := re.fullmatch(r"([a-z.-]+) != ''", part):
            fine = contexts[matched.group(1)] != ""
        else:
            raise AssertionError(f"this runner does not know {condition!r}")
        if not fine:
            return False
    return not failed


def run_script(script: str, folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def run_github(path: Path, scratch: Path, workspace: Path, contexts: dict[str, str], targets: list[str]) -> Outcome:
    """Every job, `build` once for each target. Each has a folder of its own, as it has a machine of its own."""
    outcome = Outcome()
    for job_name, job in load(path)["jobs"].items():
        needs = [job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", [])
        failed = any(need not in outcome.done for need in needs)
        if not holds(job.get("if"), contexts, failed=failed):
            continue
        matrix = targets if "strategy" in job else [""]
        results = [_run_job(job_name, job, target, scratch, workspace, contexts, outcome) for target in matrix]
        if all(results):
            outcome.done.add(job_name)
    return outcome


def _run_job(
    name: str, job: dict, target: str, scratch: Path, workspace: Path, contexts: dict[str, str], outcome: Outcome
) -> bool:
    label = f"{name} {target}".strip()
    folder = scratch / re.sub(r"\W+", "-", label)
    folder.mkdir()
    for file in workspace.iterdir():
        (folder / file.name).symlink_to(file)
    known = {**contexts, "matrix.target": target, "github.workspace": str(folder)}
    files = {each: folder.with_name(f"{folder.name}.{each}") for each in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    environment = {key: expand(value, known) for key, value in job.get("env", {}).items()}
    environment |= {key: str(value) for key, value in files.items()} | {"RUNNER_TEMP": str(scratch)}
    failed = False
    for step in job["steps"]:
        if not holds(step.get("if"), known, failed=failed):
            continue
        if "uses" in step:
            _artifacts(step, folder, scratch / "artifacts", known)
        elif step["name"] != "Install":
            done = run_script(step["run"], folder, environment)
            outcome.statuses[f"{label}: {step['name']}"] = done.returncode
            outcome.said[f"{label}: {step['name']}"] = done.stdout + done.stderr
            failed = failed or done.returncode != 0
            for line in files["GITHUB_OUTPUT"].read_text().splitlines() if files["GITHUB_OUTPUT"].exists() else []:
                key, _, value = line.partition("=")
                known[f"steps.{step.get('id')}.outputs.{key}"] = value
    return not failed


def _artifacts(step: dict, folder: Path, store: Path, contexts: Mapping[str, str]) -> None:
    if step["uses"].startswith("actions/upload-artifact@"):
        source, name = folder / step["with"]["path"], expand(step["with"]["name"], contexts)
        if source.exists():
            store.mkdir(exist_ok=True)
            (store / name).symlink_to(source)
        else:
            assert step["with"]["if-no-files-found"] == "ignore"
    elif step["uses"].startswith("actions/download-artifact@"):
        destination = folder / step["with"]["path"]
        destination.mkdir()
        for path in store.glob(step["with"]["pattern"]):
            # Copied, since the job changes them.
            subprocess.run(["cp", "-r", f"{path}/.", str(destination / path.name)], check=True)
