"""The chat page in headless Chromium, against a server that says what the test wants."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from chromium import PROGRAM, Page, chromium

from edgeforge.serving.page_files import page_files

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium: apt-get install chromium")

CODE = 'Like this:\n\n```python\nprint("<b>hi</b>")\n```\n\nThat is <i>all</i>.'
Script = Callable[["Answering", dict], None]


class Answering(BaseHTTPRequestHandler):
    """Serves the page's files, and answers as the test's script does."""

    script: Script
    requests: ClassVar[list[dict]]
    keys: ClassVar[list[str | None]]
    key: str | None

    def do_GET(self) -> None:
        file = page_files().get(self.path)
        if self.path == "/v1/models":
            if self.key is None or self.headers.get("Authorization") == f"Bearer {self.key}":
                self.refuse(200, {"data": [{"id": "demo-cpu"}]})
            else:
                self.refuse(401, {"error": {"message": "no key"}})
        elif file is not None:
            self.send_response(200)
            for name, value in {**file.headers, "Content-Type": file.media_type}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(file.content)
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(asked)
        self.keys.append(self.headers.get("Authorization"))
        type(self).script(self, asked)

    def refuse(self, status: int, body: dict, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()

    def say(self, text: str, ended: str | None = None) -> None:
        event = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": ended}]}
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def done(self) -> None:
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


def says(*pieces: str, ended: str = "stop") -> Script:
    def script(server: Answering, asked: dict) -> None:
        server.begin()
        for piece in pieces:
            server.say(piece)
        server.say("", ended)
        server.done()

    return script


@pytest.fixture
def server() -> Iterator[tuple[type[Answering], str]]:
    class Handler(Answering):
        script = staticmethod(says("Paris."))
        requests: ClassVar[list[dict]] = []
        keys: ClassVar[list[str | None]] = []
        key = None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Handler, f"http://127.0.0.1:{running.server_port}/"
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page, server: tuple[type[Answering], str]) -> Page:
    browser.console.clear()
    browser.open(server[1])
    browser.wait_for("document.title === 'demo-cpu'")
    return browser


def ask(page: Page, text: str) -> None:
    page.value("document.getElementById('said').focus()")
    page.type(text)
    page.press("Enter")


def answered(page: Page) -> str:
    page.wait_for("!document.querySelector('.waiting') && document.getElementById('stop').hidden")
    return str(page.value("document.querySelector('.message.assistant:last-child > div')?.innerText ?? ''"))


def test_a_conversation_is_sent_whole_and_answers_stream(page: Page, server: tuple[type[Answering], str]) -> None:
    handler, _ = server
    ask(page, "Capital of France?")
    assert answered(page) == "Paris."
    assert page.value("document.getElementById('announcer').textContent") == "Paris."
    handler.script = staticmethod(says("Ro", "me."))
    ask(page, "And Italy?")
    assert answered(page) == "Rome."
    assert handler.requests[1] == {
        "model": "demo-cpu",
        "messages": [
            {"role": "user", "content": "Capital of France?"},
            {"role": "assistant", "content": "Paris."},
            {"role": "user", "content": "And Italy?"},
        ],
        "stream": True,
    }
    assert page.console == []


def test_text_is_never_html_and_code_is_set_apart(page: Page, server: tuple[type[Answering], str]) -> None:
    pieces = [CODE[start : start + 3] for start in range(0, len(CODE), 3)]
    server[0].script = staticmethod(says(*pieces))
    ask(page, "<img src=x onerror=alert(1)>")
    answered(page)
    assert page.value("document.querySelector('.code code').textContent") == 'print("<b>hi</b>")'
    assert page.value("document.querySelector('.code-head span').textContent") == "python"
    assert page.value("[...document.querySelectorAll('.assistant p')].map(p => p.textContent)") == [
        "Like this:",
        "That is <i>all</i>.",
    ]
    assert page.value("document.querySelector('.user p').textContent") == "<img src=x onerror=alert(1)>"
    assert page.value("document.querySelectorAll('#log img, #log b, #log i').length") == 0
    assert page.console == []


def test_copy_gives_the_code(page: Page, server: tuple[type[Answering], str]) -> None:
    server[0].script = staticmethod(says(CODE))
    ask(page, "Code?")
    answered(page)
    page.value("navigator.clipboard.writeText = async text => { window.copied = text }")
    page.click(".code button")
    page.wait_for("document.querySelector('.code button').textContent === 'Copied'")
    assert page.value("window.copied") == 'print("<b>hi</b>")'


def test_escape_stops_an_answer_and_the_server_is_told(page: Page, server: tuple[type[Answering], str]) -> None:
    left = threading.Event()

    def endless(handler: Answering, asked: dict) -> None:
        handler.begin()
        try:
            while True:
                handler.say("on and ")
                time.sleep(0.02)
        except OSError:
            left.set()

    server[0].script = staticmethod(endless)
    ask(page, "Go")
    page.wait_for("document.querySelector('.assistant').innerText.includes('on and')")
    page.press("Escape")
    assert answered(page).startswith("on and")
    assert page.value("document.querySelector('.aside').textContent") == "(stopped)"
    assert left.wait(10)
    server[0].script = staticmethod(says("fine"))
    ask(page, "Still there?")
    assert answered(page) == "fine"
    assert server[0].requests[1]["messages"][1]["content"].startswith("on and")


def test_shift_enter_is_a_new_line(page: Page, server: tuple[type[Answering], str]) -> None:
    page.value("document.getElementById('said').focus()")
    page.type("one")
    page.press("Enter", shift=True)
    page.type("two")
    page.press("Enter")
    answered(page)
    assert server[0].requests[0]["messages"][0]["content"] == "one\ntwo"


def test_an_answer_that_was_cut_off_says_so(page: Page, server: tuple[type[Answering], str]) -> None:
    server[0].script = staticmethod(says("Once upon", ended="length"))
    ask(page, "A story")
    answered(page)
    assert str(page.value("document.querySelector('.aside').textContent")).startswith("(cut off")


def test_a_new_chat_forgets(page: Page, server: tuple[type[Answering], str]) -> None:
    ask(page, "One")
    answered(page)
    page.click("#new")
    assert page.value("document.querySelectorAll('.message').length") == 0
    ask(page, "Two")
    answered(page)
    assert [message["content"] for message in server[0].requests[1]["messages"]] == ["Two"]


def enter(page: Page, field: str, text: str) -> None:
    page.value(f"document.getElementById({json.dumps(field)}).focus()")
    page.type(text)


def test_settings_are_sent_and_kept_but_the_key_only_in_this_tab(
    page: Page, server: tuple[type[Answering], str]
) -> None:
    page.click("#open-settings")
    assert page.value("document.activeElement.id") == "system"
    for field, text in {"system": "Be brief.", "temperature": "0.5", "max-tokens": "20", "key": "secret"}.items():
        enter(page, field, text)
    page.press("Escape")
    assert page.value("document.getElementById('settings').hidden")
    page.value("location.reload()")
    page.wait_for("document.title === 'demo-cpu'")
    ask(page, "Hello")
    answered(page)
    asked = server[0].requests[0]
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (asked["temperature"], asked["max_completion_tokens"]) == (0.5, 20)
    assert server[0].keys == ["Bearer secret"]
    assert page.value("Object.values(localStorage).includes('secret')") is False
    page.value("localStorage.clear(); sessionStorage.clear()")


def problem(page: Page) -> str:
    page.wait_for("document.getElementById('problem').textContent !== ''")
    return str(page.value("document.getElementById('problem').textContent"))


def refuses(status: int, error: dict, **headers: str) -> Script:
    return lambda server, asked: server.refuse(status, {"error": error}, **headers)


def breaks_off(server: Answering, asked: dict) -> None:
    server.begin()
    server.say("I was ab")


def fails_midway(server: Answering, asked: dict) -> None:
    server.begin()
    server.say("I was ab")
    server.wfile.write(b'data: {"error": {"message": "the server is stopping"}}\n\n')


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (refuses(429, {"message": "full"}, Retry_After="7"), "The server is busy: try again in 7 s."),
        (refuses(401, {"message": "no"}), "The server asks for an API key: enter it under Settings."),
        (
            refuses(400, {"message": "too long", "code": "context_length_exceeded"}),
            "The conversation has outgrown the model's context: start a new chat, or ask something shorter.",
        ),
        (refuses(400, {"message": "temperature: too hot"}), "Temperature: too hot."),
        (lambda server, asked: server.send_error(502), "The server answered with status 502."),
    ],
)
def test_a_refusal_is_a_sentence_and_the_question_comes_back(
    page: Page, server: tuple[type[Answering], str], script: Script, sentence: str
) -> None:
    server[0].script = staticmethod(script)
    ask(page, "Hello")
    assert problem(page) == sentence
    assert page.value("document.querySelectorAll('.message').length") == 0
    assert page.value("document.getElementById('said').value") == "Hello"
    server[0].script = staticmethod(says("Hi."))
    page.value("document.getElementById('said').focus()")
    page.press("Enter")
    assert answered(page) == "Hi."
    assert page.value("document.getElementById('problem').textContent") == ""
    assert len(server[0].requests[1]["messages"]) == 1


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (breaks_off, "The answer broke off: the connection to the server ended."),
        (fails_midway, "The server is stopping."),
    ],
)
def test_what_came_before_an_answer_broke_off_stays(
    page: Page, server: tuple[type[Answering], str], script: Script, sentence: str
) -> None:
    server[0].script = staticmethod(script)
    ask(page, "Hello")
    assert problem(page) == sentence
    assert answered(page) == "I was ab"


def test_a_server_with_a_key_is_asked_with_it(browser: Page, server: tuple[type[Answering], str]) -> None:
    server[0].key = "secret"
    browser.open(server[1])
    assert problem(browser) == "The server asks for an API key: enter it under Settings."
    assert browser.value("document.activeElement.id") == "key"
    browser.type("secret")
    browser.press("Tab")
    browser.wait_for("document.title === 'demo-cpu'")
    assert browser.value("document.getElementById('problem').textContent") == ""


def test_a_server_that_is_gone_is_a_sentence(page: Page) -> None:
    page.value("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    ask(page, "Hello")
    assert problem(page) == "The server cannot be reached."


@pytest.mark.parametrize("width", [360, 1000])
def test_nothing_is_wider_than_the_screen(browser: Page, server: tuple[type[Answering], str], width: int) -> None:
    server[0].script = staticmethod(says("w" * 300, "\n```\n", "w" * 300, "\n```"))
    browser.open(server[1], width=width)
    browser.wait_for("document.title === 'demo-cpu'")
    ask(browser, "x" * 200)
    answered(browser)
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    assert browser.value("document.querySelector('main').scrollWidth <= innerWidth")


def test_the_page_asks_nobody_but_its_server(tmp_path: Path) -> None:
    for path, file in page_files().items():
        assert b"http" not in file.content.replace(b"http://www.w3.org/2000/svg", b""), path
