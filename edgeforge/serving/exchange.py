"""One request on its way: who asks, what it cost, how it ended; for its log line and the metrics."""

import secrets
import time
from dataclasses import dataclass, field
from urllib.parse import quote

from edgeforge.runtime.stream import Chunk
from edgeforge.serving.responses import PromptTokensDetails, Usage


@dataclass(slots=True, kw_only=True)
class Tally:
    """Tokens of all answers of a request. A prompt with several answers counts once, as its first answer knew it."""

    answers_per_prompt: int = 1
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def add(self, index: int, chunk: Chunk) -> None:
        """Count the last chunk of answer `index`."""
        if chunk.usage is None:
            return
        self.completion_tokens += chunk.usage.completion_tokens
        if index % self.answers_per_prompt == 0:
            self.prompt_tokens += chunk.usage.prompt_tokens
            self.cached_tokens += chunk.usage.reused_tokens

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.prompt_tokens + self.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self.cached_tokens),
        )


@dataclass(slots=True, kw_only=True)
class Exchange:
    """Times are time.monotonic(), seconds. `status` 0: the client left before there was one."""

    client: str
    method: str
    path: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    began_s: float = field(default_factory=time.monotonic)
    first_token_s: float | None = None
    last_token_s: float | None = None
    status: int = 0
    ended: str = ""
    tally: Tally = field(default_factory=Tally)

    def line(self) -> str:
        """The request in the log: no word of its prompt or answer."""
        took_s = time.monotonic() - self.began_s
        said = f"{self.client} {self.method} {quote(self.path)} {self.status or 'gone'} {took_s:.3f}s id={self.id}"
        if self.first_token_s is not None:
            said += f" first_token={self.first_token_s - self.began_s:.3f}s"
        if self.tally.completion_tokens:
            count = self.tally
            said += f" prompt={count.prompt_tokens} cached={count.cached_tokens} new={count.completion_tokens}"
        return f"{said} {self.ended}".rstrip()
