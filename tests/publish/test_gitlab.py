"""GitLab's jobs run here as written, up to a registry with TLS and a password; a failed gate publishes nothing."""

from pathlib import Path

import pytest
from published import Run, document, refused
from registries import ROOT, running
from workflows import Outcome, Service, load, make_workspace, run_gitlab, signing_key

WORKFLOW = ROOT / "ci" / "gitlab" / "bundles.yml"
ROBOT = "robot:$2b$04$ZJDFlAvpuItJO.BUx2aZ1.rgg/ZjHjcgAe5s4LIlbX6SQ0GKGx3Pe\n"  # bcrypt of `right`


@pytest.fixture(scope="module")
def workspace(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("gitlab") / "workspace", stories)


def run_jobs(workspace: Path, scratch: Path, targets: list[str], **variables: str) -> Outcome:
    (scratch / "home").mkdir(parents=True)
    service = Service(scratch=scratch, workspace=workspace, environment={"HOME": str(scratch / "home")})
    return run_gitlab(WORKFLOW, service, {"MODEL": "./model", **variables}, [{"TARGET": each} for each in targets])


@pytest.mark.slow
@pytest.mark.timeout(1800)  # several builds
def test_a_tag_publishes_every_target_signed_to_a_registry_with_a_password(
    registry_program: str, certificate: tuple[Path, Path], workspace: Path, run: Run, tmp_path: Path
) -> None:
    private, public = signing_key(tmp_path)
    (tmp_path / "key.pem").write_text(private)
    with running(registry_program, tmp_path / "registry", tls=certificate, users=ROBOT) as secure:
        host = f"localhost:{secure.host.rpartition(':')[2]}"
        trusted = {"REQUESTS_CA_BUNDLE": str(certificate[0])}
        outcome = run_jobs(
            workspace,
            tmp_path / "scratch",
            ["first.toml", "second.toml"],
            CI_COMMIT_TAG="v1",
            CI_REGISTRY=host,
            CI_REGISTRY_USER="robot",
            CI_REGISTRY_PASSWORD="right",
            REFERENCE=f"oci://{host}/group/model",
            SIGNING_KEY=str(tmp_path / "key.pem"),
            **trusted,
        )
        assert outcome.done == {"build-bundle", "publish-bundles"}, outcome.said
        pull = ["pull", f"oci://{host}/group/model:v1", tmp_path / "got", "--key", public, "--json"]
        assert "asks for credentials" in refused(run(*pull, "--platform", "second", **trusted), 3)
        login = {"DOCKER_CONFIG": str(tmp_path / "scratch" / "home" / ".docker"), **trusted}
        for target in ("first", "second"):
            assert document(run(*pull, "--platform", target, **login))["target"] == target
    assert (tmp_path / "scratch" / "home" / ".docker" / "config.json").stat().st_mode & 0o077 == 0
    assert {path.name for path in (tmp_path / "scratch" / "artifacts" / "bundles").iterdir()} == {"first", "second"}


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a build
def test_a_gate_failure_stops_the_publication_and_keeps_its_report(workspace: Path, tmp_path: Path) -> None:
    published = (tmp_path / "published").as_uri()
    outcome = run_jobs(workspace, tmp_path / "scratch", ["strict.toml"], CI_COMMIT_TAG="v1", REFERENCE=published)
    assert outcome.statuses == {"build-bundle strict.toml": 5}
    assert not (tmp_path / "published").exists()
    assert (tmp_path / "scratch" / "artifacts" / "bundles" / "strict" / "reports" / "validation.html").is_file()
    (junit,) = load(WORKFLOW)["build-bundle"]["artifacts"]["reports"].values()
    assert "<failure " in (tmp_path / "scratch" / "build-bundle-strict-toml" / junit).read_text()
