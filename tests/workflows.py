"""Runs the `run:` steps of a GitHub workflow, or the scripts of a GitLab one, in a folder, as the service would: a step
that fails ends its job, a job that fails stops those that need it.

What others provide (`uses:`) is left out, but for artifacts, which jobs hand on; so is installing EdgeForge, unless
`installs` says that pip may do it.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

Json = dict[str, object]


@dataclass(frozen=True)
class Outcome:
    """Exit status by step (`job: step`), what was printed, and which jobs ran to their end."""

    statuses: dict[str, int] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class Service:
    """Where jobs run: `scratch` holds a folder for each, as each has a machine of its own; `workspace` is the
    repository. `environment` is what a secret store or a host gives to every job. `installs`: pip may.
    """

    scratch: Path
    workspace: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    installs: bool = False

    def checkout(self, job: str) -> Path:
        """A job's folder, with the repository in it."""
        folder = self.scratch / re.sub(r"\W+", "-", job)
        folder.mkdir()
        for file in self.workspace.iterdir():
            (folder / file.name).symlink_to(file)
        return folder


def make_workspace(folder: Path, model: Path) -> Path:
    """A repository with a model, two targets, and one that no bundle can satisfy."""
    folder.mkdir()
    shutil.copytree(model, folder / "model")
    (folder / "model" / "LICENSE").write_text("MIT\n")
    for name, max_divergence in (("first", 9.0), ("second", 9.0), ("strict", 1e-9)):
        # Groups of 32: stories260k's rows divide by no more.
        gate = f"[gate]\nmax_mean_kl_divergence = {max_divergence}\nmax_perplexity_ratio = 9.0\n"
        (folder / f"{name}.toml").write_text(f'extends = "cpu"\ngroup_size = 32\n\n{gate}', encoding="utf-8")
    return folder


def signing_key(folder: Path) -> tuple[str, Path]:
    """A private key as PEM, and the public one's file."""
    private, public = ec.generate_private_key(ec.SECP256R1()), folder / "pub.pem"
    encoding = serialization.Encoding.PEM
    public.write_bytes(private.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo))
    text = private.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return text.decode(), public


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
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **own, **environment}, capture_output=True, text=True, check=False
    )


def run_github(path: Path, service: Service, contexts: Mapping[str, str], targets: list[str]) -> Outcome:
    """Every job, `build` once for each target."""
    outcome = Outcome()
    for name, job in load(path)["jobs"].items():
        needs = [job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", [])
        failed = any(need not in outcome.done for need in needs)
        if not holds(job.get("if"), contexts, failed=failed):
            continue
        matrix = targets if "strategy" in job else [""]
        results = [_run_job(name, job, {**contexts, "matrix.target": row}, service, outcome) for row in matrix]
        if all(results):
            outcome.done.add(name)
    return outcome


def run_action(path: Path, service: Service, inputs: Mapping[str, str]) -> tuple[Outcome, dict[str, str]]:
    """A composite action's steps as a job called `action`; and the action's outputs."""
    document, outcome = load(path), Outcome()
    given = {name: value.get("default", "") for name, value in document["inputs"].items()} | dict(inputs)
    known = {f"inputs.{name}": value for name, value in given.items()} | {"matrix.target": ""}
    if _run_job("action", document["runs"], known, service, outcome):
        outcome.done.add("action")
    said = (service.scratch / "action.GITHUB_OUTPUT").read_text().splitlines()
    known |= {f"steps.build.outputs.{line.partition('=')[0]}": line.partition("=")[2] for line in said}
    return outcome, {name: expand(output["value"], known) for name, output in document["outputs"].items()}


def _run_job(name: str, job: dict, contexts: Mapping[str, str], service: Service, outcome: Outcome) -> bool:
    label = f"{name} {contexts['matrix.target']}".strip()
    folder = service.checkout(label)
    known = {**contexts, "github.workspace": str(folder)}
    files = {each: folder.with_name(f"{folder.name}.{each}") for each in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    environment = {key: expand(value, known) for key, value in job.get("env", {}).items()} | dict(service.environment)
    environment |= {key: str(value) for key, value in files.items()} | {"RUNNER_TEMP": str(service.scratch)}
    failed = False
    for step in job["steps"]:
        if not holds(step.get("if"), known, failed=failed):
            continue
        if "uses" in step:
            _artifacts(step, folder, service.scratch / "artifacts", known)
        elif service.installs or step["name"] != "Install":
            own = {key: expand(value, known) for key, value in step.get("env", {}).items()}
            done = run_script(step["run"], folder, environment | own)
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


def run_gitlab(path: Path, service: Service, variables: Mapping[str, str], matrix: list[dict[str, str]]) -> Outcome:
    """Stage after stage; a job with `parallel:` once for each row of `matrix`, which stands for its own."""
    document, outcome, going = load(path), Outcome(), True
    known = {**document["variables"], **variables}
    jobs = {name: job for name, job in document.items() if isinstance(job, dict) and "script" in job}
    for stage in document["stages"]:
        chosen = {name: job for name, job in jobs.items() if job["stage"] == stage}
        for name, job in chosen.items() if going else ():
            if not _rules_hold(job.get("rules", []), known):
                continue
            rows: list[dict[str, str]] = matrix if "parallel" in job else [{}]
            results = [_run_gitlab_job(name, job, {**known, **row}, service, outcome) for row in rows]
            if all(results):
                outcome.done.add(name)
            else:
                going = False
    return outcome


def _rules_hold(rules: list[dict[str, str]], variables: Mapping[str, str]) -> bool:
    """Whether a rule's `if:` adds the job, of the forms `$A` and `$A != "b"`; a job without rules is there always."""

    def term(text: str) -> bool:
        name, _, other = text.strip().partition(" != ")
        value = variables.get(name.removeprefix("$"), "")
        return value != other.strip('"') if other else value != ""

    return not rules or any(all(map(term, rule["if"].split("&&"))) for rule in rules)


def _run_gitlab_job(name: str, job: dict, variables: Mapping[str, str], service: Service, outcome: Outcome) -> bool:
    """As the runner does it: one shell for before_script and script."""
    label = f"{name} {variables['TARGET'] if 'parallel' in job else ''}".strip()
    folder, store = service.checkout(label), service.scratch / "artifacts"
    if store.exists():
        shutil.copytree(store, folder, dirs_exist_ok=True)
    given = {**variables, **job.get("variables", {}), "CI_PROJECT_DIR": str(folder), **service.environment}
    given |= dict.fromkeys(job.get("id_tokens", {}), "an OpenID token")
    environment = {key: re.sub(r"\$(\w+)", lambda found: given.get(found[1], ""), text) for key, text in given.items()}
    lines = [*job.get("before_script", []), *job["script"]]
    lines = [line for line in lines if service.installs or " -m pip install" not in line]
    done = run_script("\n".join(lines), folder, environment)
    outcome.statuses[label], outcome.said[label] = done.returncode, done.stdout + done.stderr
    artifacts = job.get("artifacts", {})
    if done.returncode == 0 or artifacts.get("when") == "always":
        for kept in artifacts.get("paths", []):
            if (folder / kept).exists():
                shutil.copytree(folder / kept, store / kept, dirs_exist_ok=True)
    return done.returncode == 0
