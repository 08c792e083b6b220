"""A server that listens: OpenAI's own client, many clients at once, clients that leave."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from pydantic import BaseModel
from served import Live, listening

from edgeforge.runtime.model import Model
from edgeforge.serving.endpoint import Limits

HELLO = [{"role": "user", "content": "Hello"}]


class Person(BaseModel):
    age: int
    likes_tea: bool


@pytest.fixture(scope="module")
def ask(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def eventually(holds: Callable[[], bool], within_s: float = 10) -> bool:
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        if holds():
            return True
        time.sleep(0.01)
    return False


def test_openais_client_chats_and_streams_the_same(ask: openai.OpenAI, model: Model) -> None:
    expected = "".join(chunk.text for chunk in model.chat(HELLO, max_new_tokens=12, temperature=0))
    whole = ask.chat.completions.create(model="tiny", messages=HELLO, max_tokens=12, temperature=0)
    assert whole.choices[0].message.content == expected
    assert whole.usage.prompt_tokens_details.cached_tokens > 0
    stream = ask.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=12, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = stream
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert last.usage.completion_tokens == 12
    text = ask.completions.create(model="tiny", prompt="Once", max_tokens=3, temperature=0)
    assert text.choices[0].text
    assert [each.id for each in ask.models.list()] == ["tiny"]
    assert ask.models.retrieve("tiny").id == "tiny"


def test_openais_client_parses_what_a_schema_made(ask: openai.OpenAI) -> None:
    answer = ask.chat.completions.parse(
        model="tiny", messages=HELLO, response_format=Person, max_tokens=60, temperature=1, seed=3
    )
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_openais_client_gets_tool_calls_whole_and_streamed(ask: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(Person, name="remember")
    fields = {"model": "tiny", "messages": HELLO, "tools": [tool], "tool_choice": "required", "max_tokens": 120}
    whole = ask.chat.completions.create(**fields, temperature=0)
    (call,) = whole.choices[0].message.tool_calls
    assert Person.model_validate_json(call.function.arguments)
    with ask.chat.completions.stream(**fields, temperature=0) as stream:
        final = stream.get_final_completion()
    (told,) = final.choices[0].message.tool_calls
    assert told.function.arguments == call.function.arguments
    assert final.choices[0].finish_reason == "tool_calls"


def test_openais_client_raises_its_own_errors(ask: openai.OpenAI, model: Model) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-9'"):
        ask.chat.completions.create(model="gpt-9", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as refused:
        ask.chat.completions.create(model="tiny", messages=HELLO, presence_penalty=1)
    assert refused.value.param == "presence_penalty"
    with listening(model, api_keys=("right",)) as server:
        wrong = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        assert [each.id for each in wrong.with_options(api_key="right").models.list()] == ["tiny"]
        wrong.close()


def test_a_full_queue_is_a_rate_limit_to_openais_client(model: Model) -> None:
    with listening(model, slots=1, places=0) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(model="tiny", prompt="Hello", max_tokens=2000, temperature=0, stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as full:
            client.completions.create(model="tiny", prompt="Hello")
        assert int(full.value.response.headers["retry-after"]) >= 1
        stream.close()
        assert eventually(lambda: server.service.queue.running == 0)
        assert client.completions.create(model="tiny", prompt="Hello").choices
        client.close()


def test_many_clients_at_once_get_each_their_own_answer(live: Live, ask: openai.OpenAI) -> None:
    def answer(name: str) -> str:
        stream = ask.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": name}], max_tokens=20, temperature=0, stream=True
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    names = [f"This is client {number}" for number in range(12)]
    alone = [answer(name) for name in names]
    with ThreadPoolExecutor(12) as clients:
        together = list(clients.map(answer, names))
    assert together == alone
    assert len(set(alone)) > 6
    assert live.service.queue.running == 0


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_frees_its_slot(model: Model, streamed: bool) -> None:
    body = json.dumps({"prompt": "Hello", "max_tokens": 4000, "temperature": 0, "stream": streamed}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with listening(model, slots=2) as server:
        queue = server.service.queue
        leaving = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
        for connection in leaving:
            connection.sendall(f"{head}\r\n\r\n".encode() + body)
        assert eventually(lambda: (queue.running, queue.waiting) == (2, 2))
        for connection in leaving:
            connection.close()
        assert eventually(lambda: (queue.running, queue.waiting) == (0, 0), within_s=3), "4,000 tokens take longer"


def test_a_cancelled_task_of_the_asynchronous_client_frees_its_slot(live: Live) -> None:
    async def scene() -> None:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none") as client:
            asking = asyncio.create_task(client.completions.create(model="tiny", prompt="Hello", max_tokens=4000))
            while not live.service.queue.running:
                await asyncio.sleep(0.01)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking

    asyncio.run(scene())
    assert eventually(lambda: live.service.queue.running == 0, within_s=3)


def test_a_body_that_does_not_come_is_not_waited_for(model: Model) -> None:
    with (
        listening(model, limits=Limits(body_bytes=1000, answer_s=0.2)) as server,
        socket.create_connection(("127.0.0.1", server.port)) as slow,
    ):
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        slow.sendall(b"Content-Length: 100\r\n\r\n{")
        slow.settimeout(5)
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_key_with_many_requests_does_not_starve_another(model: Model) -> None:
    with listening(model, slots=1, api_keys=("many", "few")) as server, ThreadPoolExecutor(8) as clients:
        queue, ended = server.service.queue, []

        def answer(key: str) -> None:
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
                client.completions.create(model="tiny", prompt="Hello", max_tokens=2, temperature=0)
                ended.append(key)

        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="many", max_retries=0) as client:
            long = client.completions.create(model="tiny", prompt="Hi", max_tokens=4000, temperature=0, stream=True)
            next(iter(long))
            asking = [clients.submit(answer, "many") for _ in range(6)]
            assert eventually(lambda: queue.waiting == 6)
            asking.append(clients.submit(answer, "few"))
            assert eventually(lambda: queue.waiting == 7)
            long.close()
            for each in asking:
                each.result(timeout=30)
        assert ended.index("few") <= 1
