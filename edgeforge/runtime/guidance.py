"""Answers that must have a form: JSON that satisfies a schema, a regular expression, a grammar. By llguidance.

    guide = guidance.json_schema(model, {"type": "object", "properties": {"city": {"type": "string"}}})
    for chunk in model.chat(messages, constraint=guide):
        ...

A guide satisfies `constraint.Constraint`: before each token it says which ones may follow. It is made for one answer;
`clone` gives a second one that goes on from where the first stands. Rule out nothing (a grammar of any text), and the
answer is the one that the model gives without it. A limit of tokens may cut JSON off; an `ending.EndingGuide` over the
guide brings it to an end before. Needs llguidance, which is imported when the first guide is made.
"""

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import MissingRequirement, UnusableBundle

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from .model import Model

# White space between JSON's tokens is never needed, and a small model can spend its whole answer on it.
JSON_WHITESPACE = "[ ]?"
# Depth of references in a schema costs llguidance stack, at most about 40 MB before it says that a schema is too large.
COMPILER_STACK_BYTES = 128 << 20
STACK_SIZE = threading.Lock()  # it is one setting for all threads that start


class Guide:
    """Which tokens may come next, given those accepted so far. Satisfies `constraint.Constraint`."""

    def __init__(self, matcher: "LLMatcher", vocabulary: "LLTokenizer") -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self.vocab_size = vocabulary.vocab_size
        self._words = np.zeros((self.vocab_size + 31) // 32, np.int32)

    def mask(self) -> NDArray[np.bool_]:
        """bool [V], True for ids that may come next; end-of-text is one where the answer may end.

        UnusableBundle where the form became too complex to follow.
        """
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        if self._matcher.is_error():
            raise UnusableBundle(f"the form of the answer cannot be followed: {_sentence(self._matcher.get_error())}")
        bits = np.unpackbits(self._words.view(np.uint8), bitorder="little", count=self.vocab_size)
        return bits.view(np.bool_)

    def accept(self, token: int) -> None:
        """`token` was chosen; UnusableBundle where the mask did not allow it."""
        if not self._matcher.consume_token(token):
            raise UnusableBundle(f"token {token} is not among those that the form of the answer allows")

    @property
    def finished(self) -> bool:
        """Whether the answer is complete, so that nothing but end-of-text may follow."""
        return self._matcher.is_stopped()

    def clone(self) -> "Guide":
        """A guide of its own that stands where this one does."""
        return Guide(self._matcher.deep_copy(), self._vocabulary)

    @property
    def may_end(self) -> bool:
        """Whether the answer is complete as it stands, though more may follow."""
        return self._matcher.is_accepting()

    @property
    def end_of_text(self) -> int:
        """A token that ends the answer, where it may end."""
        return self._vocabulary.eos_token

    def forced(self) -> list[int]:
        """The next tokens, where the form leaves no choice; none where it does."""
        return self._matcher.compute_ff_tokens()

    def tokens_of(self, text: str) -> list[int]:
        """Few tokens that spell `text`, the longest first at each place."""
        return self._vocabulary.greedy_tokenize(text)

    def bytes_of(self, token: int) -> bytes:
        """What the token adds to the answer."""
        return self._vocabulary.decode_bytes([token])


def json_schema(model: "Model", schema: str | Mapping[str, object]) -> Guide:
    """A guide to JSON on one line that satisfies `schema` (a JSON text or what it says).

    UnusableBundle for a schema that is not valid, that nothing satisfies, or with a keyword that cannot be followed.
    """
    text = schema if isinstance(schema, str) else json.dumps(schema)
    if not text.lstrip().startswith("{"):
        raise _not_valid("JSON Schema", "it must be an object")
    return _guide(
        model,
        "JSON Schema",
        lambda matcher: matcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": JSON_WHITESPACE}),
    )


def json_object(model: "Model") -> Guide:
    """A guide to any JSON object."""
    return json_schema(model, {"type": "object"})


def regex(model: "Model", pattern: str) -> Guide:
    """A guide to answers that match the whole of `pattern`, in the syntax of Rust's crate regex (no look-around).

    UnusableBundle for a pattern that is not valid.
    """
    return _guide(model, "regular expression", lambda matcher: matcher.grammar_from_regex(pattern))


def grammar(model: "Model", lark: str) -> Guide:
    """A guide to what the Lark grammar `lark` (llguidance's dialect) makes of its rule `start`.

    UnusableBundle for a grammar that is not valid.
    """
    return _guide(model, "grammar", lambda matcher: matcher.grammar_from_lark(lark))


def _guide(model: "Model", what: str, translate: "Callable[[type[LLMatcher]], str]") -> Guide:
    try:
        from llguidance import LLMatcher, LLParserLimits
    except ImportError:
        raise MissingRequirement(
            "constrained answers need the package llguidance", hint="pip install llguidance"
        ) from None
    vocabulary = _vocabulary(model)
    limits = LLParserLimits(verbose_errors=False)
    try:
        text = translate(LLMatcher)
    except ValueError as error:
        raise _not_valid(what, str(error)) from None
    matcher = _on_a_deep_stack(lambda: LLMatcher(vocabulary, text, log_level=0, limits=limits))
    if not matcher.is_error():
        matcher.compute_bitmask()  # what nothing satisfies is told by the first mask
    if matcher.is_error():
        raise _not_valid(what, matcher.get_error())
    return Guide(matcher, vocabulary)


def _vocabulary(model: "Model") -> "LLTokenizer":
    record = model.manifest.model
    if not record.eos_token_ids:
        raise UnusableBundle("this bundle names no end-of-text token, with which a constrained answer ends")
    digest = model.manifest.files[record.tokenizer].sha256
    return _read_vocabulary(model.bundle / record.tokenizer, digest, record.vocab_size, record.eos_token_ids)


@lru_cache(maxsize=4)
def _read_vocabulary(path: Path, digest: str, vocab_size: int, eos_token_ids: tuple[int, ...]) -> "LLTokenizer":
    """Half a second for 49,152 tokens; `digest` tells a bundle from an older one in its place."""
    from llguidance import LLTokenizer

    try:
        return LLTokenizer(path.read_text(encoding="utf-8"), n_vocab=vocab_size, eos_token=list(eos_token_ids))
    except ValueError as error:
        raise UnusableBundle(f"llguidance cannot read the bundle's tokenizer: {_sentence(str(error))}") from None


def _on_a_deep_stack(build: "Callable[[], LLMatcher]") -> "LLMatcher":
    """A chain of 2,000 references in a schema would overrun the stack of this thread, and end the process."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        with STACK_SIZE:
            before = threading.stack_size(COMPILER_STACK_BYTES)
            built = pool.submit(build)
            threading.stack_size(before)
        return built.result()


def _not_valid(what: str, error: str) -> UnusableBundle:
    if error.startswith("NoExtension"):
        return UnusableBundle(f"nothing satisfies the {what}")
    return UnusableBundle(f"the {what} cannot be used: {_sentence(error)}")


def _sentence(error: str) -> str:
    """Of a compiler's lines with a caret under the place, what is wrong there."""
    *_, said = error.split("\nerror: ")
    return said.partition("\n")[0].strip()
