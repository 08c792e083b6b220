"""A bundle behind a streaming endpoint, for apps that want their own; `edgeforge serve` is a whole server.

BUNDLE=artifacts/demo-cpu uvicorn fastapi_app:app
curl -N localhost:8000/ask -H 'Content-Type: application/json' -d '{"question": "What is the capital of France?"}'
"""

import os
import sys
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

BUNDLE = os.environ["BUNDLE"]
sys.dont_write_bytecode = True  # a bundle is verified byte by byte: leave no __pycache__ in it
sys.path.insert(0, BUNDLE)

from edgeforge_runtime import Stream, UnusableBundle, load  # noqa: E402

model = load(BUNDLE)
model.warm_up()
app = FastAPI()


class Question(BaseModel):
    question: str
    max_new_tokens: int = Field(256, ge=1, le=1024)


@app.post("/ask")
async def ask(asked: Question) -> StreamingResponse:
    """The answer as plain text, piece by piece. A client that goes away ends it."""
    messages = [{"role": "user", "content": asked.question}]
    # Checked here, while there is still a status to send; computed as the pieces are sent.
    answer = model.chat(messages, max_new_tokens=asked.max_new_tokens, temperature=0, timeout_s=60)
    return StreamingResponse(pieces(answer), media_type="text/plain; charset=utf-8")


async def pieces(answer: Stream) -> AsyncIterator[str]:
    async for chunk in answer:
        yield chunk.text


@app.exception_handler(UnusableBundle)
async def refused(request: Request, error: UnusableBundle) -> JSONResponse:
    """A question longer than the context, for one."""
    return JSONResponse({"error": error.message}, status_code=422)
