"""Who may enter, how much they may send, and what the log says of them."""

import base64
import hashlib
import logging

import pytest
from served import client_of, settings
from starlette.testclient import TestClient

from edgeforge.runtime.errors import UnusableBundle
from edgeforge.runtime.model import Model
from edgeforge.runtime.stream import Chunk, Stream
from edgeforge.serving.app import make_app, make_service
from edgeforge.serving.endpoint import Limits
from edgeforge.serving.page_files import page_files, policy_of

HELLO = {"messages": [{"role": "user", "content": "a secret of mine"}], "max_tokens": 2, "temperature": 0}
CHAT = "/v1/chat/completions"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def keyed(model: Model) -> TestClient:
    return client_of(model, api_keys=("first", "second"), hosts=())


@pytest.mark.parametrize("headers", [{}, bearer("wrong"), bearer(""), bearer("firs"), {"Authorization": "first"}])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/nothing"])
def test_without_the_key_there_is_no_answer(keyed: TestClient, path: str, headers: dict[str, str]) -> None:
    answer = keyed.get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_every_key_opens_and_health_needs_none(keyed: TestClient) -> None:
    for key in ("first", "second"):
        assert keyed.post(CHAT, json=HELLO, headers=bearer(key)).status_code == 200
    for path in ("/health", "/ready", "/openapi.json", "/"):
        assert keyed.get(path).status_code == 200
    assert keyed.get("/openapi.json").json()["components"]["securitySchemes"]


def test_a_page_of_another_site_cannot_reach_a_server_of_this_machine(model: Model) -> None:
    client = client_of(model, hosts=("127.0.0.1", "localhost", "::1"))
    assert client.get("/health").status_code == 200
    assert client.get("/health", headers={"Host": "localhost:8000"}).status_code == 200
    assert client.get("/health", headers={"Host": "[::1]:8000"}).status_code == 200
    assert client.get("/health", headers={"Host": "elsewhere.example"}).status_code == 421
    plain = client.post(CHAT, content=b'{"messages": []}', headers={"Content-Type": "text/plain"})
    assert plain.status_code == 415


def test_other_origins_are_let_in_only_where_they_were_named(client: TestClient, model: Model) -> None:
    asks = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.options(CHAT, headers=asks).headers
    friendly = client_of(model, origins=("https://friend.example",), api_keys=("key",))
    assert friendly.options(CHAT, headers=asks).headers["access-control-allow-origin"] == "https://friend.example"
    refused = friendly.post(CHAT, json=HELLO, headers={"Origin": "https://friend.example"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://friend.example"
    stranger = friendly.options(CHAT, headers={**asks, "Origin": "https://stranger.example"})
    assert "access-control-allow-origin" not in stranger.headers


def test_a_body_over_the_limit_is_refused_whether_it_says_so_or_not(model: Model) -> None:
    client = client_of(model, limits=Limits(body_bytes=100, answer_s=10))
    large = b'{"messages": "' + b"x" * 200 + b'"}'
    said = client.post(CHAT, content=large, headers={"Content-Type": "application/json"})
    chunks = client.post(CHAT, content=iter([large[:50], large[50:]]), headers={"Content-Type": "application/json"})
    assert said.status_code == chunks.status_code == 413


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"text"', b"\xff", b'{"messages": NaN}', b"[" * 50_000, b'"\\ud800"']
)
def test_what_is_no_json_object_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nothing", 404), ("GET", CHAT, 405), ("PUT", "/", 405)]
)
def test_paths_and_methods_that_are_not_there(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_the_page_may_run_nothing_but_itself(client: TestClient) -> None:
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    for path, file in page_files().items():
        assert client.get(path).content == file.content


def test_scripts_within_a_page_are_allowed_by_their_hash() -> None:
    told = policy_of("<style>p {}</style><script src='a.js'></script><script>go()</script>")
    digest = base64.b64encode(hashlib.sha256(b"go()").digest()).decode()
    assert f"script-src 'self' 'sha256-{digest}';" in told
    assert told.count("sha256-") == 2


def test_models_are_listed_and_shown(client: TestClient, model: Model) -> None:
    (listed,) = client.get("/v1/models").json()["data"]
    assert listed == client.get("/v1/models/tiny").json()
    assert listed["context_length"] == model.context_length
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


def test_the_log_has_a_line_for_each_request_and_no_word_of_it(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "edgeforge.serving"):
        answer = client.post(CHAT, json=HELLO)
        client.get("/a%0Aline")
    first, second = caplog.messages
    assert f"POST {CHAT} 200" in first
    assert "new=2 length" in first
    assert answer.headers["x-request-id"] in first
    assert "secret" not in caplog.text
    assert "GET /a%0Aline 404" in second


def test_a_bug_is_a_500_in_the_same_form_and_its_cause_stays_in_the_log(
    model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("of all things")

    monkeypatch.setattr(model, "generate", broken)
    answer = client_of(model).post(CHAT, json=HELLO)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "of all things" not in answer.text
    assert "of all things" in caplog.text


@pytest.mark.parametrize(("asked", "status"), [({}, 500), ({"response_format": {"type": "json_object"}}, 400)])
def test_what_breaks_while_it_is_computed_is_the_servers_fault_unless_a_form_was_asked_for(
    model: Model, monkeypatch: pytest.MonkeyPatch, asked: dict[str, object], status: int
) -> None:
    def fails(stream: Stream) -> Chunk:
        raise UnusableBundle("it cannot be followed")

    monkeypatch.setattr(Stream, "__next__", fails)
    assert client_of(model).post(CHAT, json={**HELLO, **asked}).status_code == status


def test_memory_that_ends_is_told(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(model, "generate", greedy)
    answer = client_of(model).post(CHAT, json=HELLO)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "out_of_memory"


def test_metrics_count_requests_tokens_and_waits(model: Model) -> None:
    client = client_of(model)
    client.post(CHAT, json={**HELLO, "max_tokens": 8})
    client.post(CHAT, json={**HELLO, "max_tokens": 8, "stream": True})
    client.get("/nowhere")
    lines = client.get("/metrics").text.splitlines()

    def value(name: str) -> float:
        return next(float(line.split()[1]) for line in lines if line.startswith(name))

    assert f'edgeforge_requests_total{{path="{CHAT}",status="200"}} 2.0' in lines
    assert 'edgeforge_requests_total{path="other",status="404"} 1.0' in lines
    assert "edgeforge_completion_tokens_total 16.0" in lines
    assert "edgeforge_time_to_first_token_seconds_count 2.0" in lines
    assert value("edgeforge_inter_token_seconds_count") > 2
    assert "edgeforge_answers_running 0.0" in lines
    assert value("edgeforge_prompt_cached_tokens_total") > 0


def test_a_stopping_server_is_not_ready(model: Model) -> None:
    chosen = settings()
    service = make_service(model, chosen)
    client = TestClient(make_app(service, chosen), base_url="http://127.0.0.1")
    assert client.get("/ready").status_code == 200
    service.queue.close()
    assert client.get("/ready").status_code == 503
    assert client.get("/health").json()["status"] == "stopping"
    assert client.post(CHAT, json=HELLO).status_code == 503


def test_an_answer_that_takes_too_long_is_a_504_or_the_streams_last_word(model: Model) -> None:
    client = client_of(model, limits=Limits(body_bytes=10_000, answer_s=0.25))
    long = {"prompt": "Hello", "max_tokens": 4000, "temperature": 0}
    answer = client.post("/v1/completions", json=long)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "timeout"
    streamed = client.post("/v1/completions", json={**long, "stream": True}).text
    *_, error, done = [line for line in streamed.splitlines() if line]
    assert '"code": "timeout"' in error
    assert done == "data: [DONE]"
