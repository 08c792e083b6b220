"""Many clients at a server for minutes: no error but 429, no lost or mixed answer, memory flat, slots given back.

    python tests/benchmarks/serve_load.py artifacts/demo-cpu [--clients 32] [--seconds 300] [--json FILE]

Each client asks its own question again and again, streamed and whole in turn, greedy; every answer is compared with the
one that it got when it was alone. One that differs counts as tipped (by rounding, which --exact rules out), one that is
nearer to another client's answer as mixed. Every eighth client leaves in the middle of its streams. A full queue
(429) is waited out as Retry-After says. The server's memory is read every second from /proc. Loopback only.
"""

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import openai

LEAVES = 8  # every so many clients one leaves its streams
WARM_UP_SHARE = 0.2  # of the time, in which memory may still grow
TOPICS = ("rivers", "mountains", "bread", "trains", "rain", "stars", "chess", "bees")


@dataclass(slots=True, kw_only=True)
class Seen:
    """What came back."""

    answers: int = 0
    tokens: int = 0
    left: int = 0
    refused: int = 0
    tipped: int = 0
    mixed: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    first_token_s: list[float] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """A client's connection, its question, and the answer that it got alone."""

    client: openai.AsyncOpenAI
    model: str
    number: int
    max_tokens: int

    @property
    def messages(self) -> list[dict[str, str]]:
        topic = TOPICS[self.number % len(TOPICS)]
        return [{"role": "user", "content": f"I am client {self.number}. Tell me something about {topic}."}]

    async def whole(self, seen: Seen) -> str:
        answer = await self.client.chat.completions.create(
            model=self.model, messages=self.messages, max_tokens=self.max_tokens, temperature=0
        )
        seen.tokens += answer.usage.completion_tokens
        return answer.choices[0].message.content

    async def streamed(self, seen: Seen, *, leave_after: int | None = None) -> str | None:
        """None: it left."""
        began_s = time.monotonic()
        text, chunks = "", 0
        async with await self.client.chat.completions.create(
            model=self.model, messages=self.messages, max_tokens=self.max_tokens, temperature=0, stream=True
        ) as stream:
            async for chunk in stream:
                piece = chunk.choices[0].delta.content or ""
                if piece and not chunks:
                    seen.first_token_s.append(time.monotonic() - began_s)
                text, chunks = text + piece, chunks + bool(piece)
                if leave_after is not None and chunks >= leave_after:
                    return None
        seen.tokens += chunks
        return text


async def ask_until(asker: Asker, alone: Sequence[str], deadline_s: float, seen: Seen) -> None:
    leaves = asker.number % LEAVES == LEAVES - 1
    turn = 0
    while time.monotonic() < deadline_s:
        turn += 1
        try:
            if leaves:
                await asker.streamed(seen, leave_after=1 + turn % 5)
                seen.left += 1
                continue
            said = await (asker.streamed(seen) if turn % 2 else asker.whole(seen))
        except openai.RateLimitError as full:
            seen.refused += 1
            await asyncio.sleep(min(int(full.response.headers["retry-after"]), 5))
            continue
        except openai.OpenAIError as error:
            seen.errors[f"{type(error).__name__}: {error}"] += 1
            continue
        seen.answers += 1
        compare(asker.number, said, alone, seen)


def compare(number: int, said: str, alone: Sequence[str], seen: Seen) -> None:
    """Count an answer that is not the one which client `number` got alone, by what it looks like."""

    def shared(text: str) -> int:
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, said, strict=False)))

    if said != alone[number]:
        seen.tipped += 1
        if shared(alone[number]) < max(map(shared, alone)):
            seen.mixed.append(f"client {number}: {said!r} instead of {alone[number]!r}")


async def watch(pid: int, seen: Seen, *, every_s: float = 1.0) -> None:
    while True:
        status = Path(f"/proc/{pid}/status").read_text()
        anonymous = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
        assert anonymous, "Linux 4.5 or newer"
        seen.memory_bytes.append(int(anonymous[1]) * 1024)
        await asyncio.sleep(every_s)


async def load(url: str, pid: int, options: argparse.Namespace) -> Seen:
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)
    model = (await client.models.list()).data[0].id
    askers = [
        Asker(client=client, model=model, number=number, max_tokens=options.max_tokens)
        for number in range(options.clients)
    ]
    seen = Seen()
    alone = [await asker.whole(Seen()) for asker in askers]
    watching = asyncio.create_task(watch(pid, seen))
    deadline_s = time.monotonic() + options.seconds
    await asyncio.gather(*(ask_until(asker, alone, deadline_s, seen) for asker in askers))
    watching.cancel()
    await client.close()
    return seen


def slots_left(url: str) -> dict[str, int]:
    """What still runs and waits, a moment after the last client is gone."""
    import urllib.request

    for _ in range(50):
        with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
            health = json.load(answer)
        if not health["running"] + health["waiting"]:
            break
        time.sleep(0.1)
    return {"running": health["running"], "waiting": health["waiting"]}


def report(seen: Seen, left: dict[str, int], seconds: float) -> dict[str, object]:
    """`memory_growth`: the last fifth's median over that of the fifth after the warm-up, less 1."""
    warm = seen.memory_bytes[int(WARM_UP_SHARE * len(seen.memory_bytes)) :]
    fifth = max(len(warm) // 5, 1)
    first, last = statistics.median(warm[:fifth]), statistics.median(warm[-fifth:])
    return {
        "answers": seen.answers,
        "tipped_answers": seen.tipped,
        "mixed_answers": seen.mixed,
        "errors": dict(seen.errors),
        "refused_429": seen.refused,
        "streams_left": seen.left,
        "tokens_per_s": round(seen.tokens / seconds, 1),
        "median_time_to_first_token_s": round(statistics.median(seen.first_token_s), 3),
        "memory_first_bytes": int(first),
        "memory_last_bytes": int(last),
        "memory_growth": round(last / first - 1, 4),
        "left_behind": left,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--queue", type=int, default=16, help="small enough that it is full at times")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--exact", action="store_true", help="then no answer may differ by a token")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    command = [sys.executable, "-m", "edgeforge.cli", "serve", str(options.bundle), "--port", "0"]
    command += ["--batch", str(options.batch), "--queue", str(options.queue), "--threads", str(options.threads)]
    command += ["--exact"] * options.exact
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        place = re.search(r"http://\S+", server.stderr.readline())
        assert place, "the server does not start"
        log = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
        try:
            seen = asyncio.run(load(place[0], server.pid, options))
            left = slots_left(place[0])
            told = report(seen, left, options.seconds)
        finally:
            server.terminate()
            server.wait(timeout=60)
            log.wait(timeout=60)
    text = json.dumps({**told, "exit_code": server.returncode}, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    wrong = seen.mixed or seen.errors or (options.exact and seen.tipped)
    return int(bool(wrong or any(left.values()) or server.returncode))


if __name__ == "__main__":
    sys.exit(main())
