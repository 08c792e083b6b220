"""Guides rule out exactly what would leave the form; what they cannot follow is a sentence before any computing."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from tiny_bundle import make_bundle

from edgeforge import runtime
from edgeforge.runtime import guidance
from edgeforge.runtime.errors import MissingRequirement, UnusableBundle
from edgeforge.runtime.guidance import Guide
from edgeforge.runtime.model import Model
from edgeforge.runtime.sampling import Sampler, Sampling

END = 257  # the tiny bundle's end-of-text
SCHEMAS = {
    "nested": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "home": {
                "type": "object",
                "properties": {"street": {"type": "string", "maxLength": 8}, "number": {"type": "integer"}},
                "required": ["street"],
                "additionalProperties": False,
            },
        },
        "required": ["name", "home"],
        "additionalProperties": False,
    },
    "enum": {"enum": ["red", "green", 3, None]},
    "array": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 5},
    "range": {"type": "integer", "minimum": 17, "maximum": 200},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    "date": {"type": "string", "format": "date"},
    "either": {"anyOf": [{"const": "yes"}, {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3}]},
    "reference": {"$defs": {"bit": {"enum": [0, 1]}}, "type": "array", "items": {"$ref": "#/$defs/bit"}, "maxItems": 4},
}


def written(model: Model, guide: Guide, seed: int, *, limit: int = 400) -> str:
    """What a model that knows nothing (random logits) writes under the guide, up to end-of-text."""
    sampler = Sampler(Sampling(temperature=1.0, seed=seed), [0], model.manifest.model.vocab_size)
    random = np.random.default_rng(seed)
    ids: list[int] = []
    while len(ids) < limit:
        token = sampler.choose(random.standard_normal(260).astype(np.float32) * 3, guide.mask())
        guide.accept(token)
        if token == END:
            return model.decode(ids)
        ids.append(token)
    raise AssertionError(f"no end after {model.decode(ids)!r}")


@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_the_model_wants_the_answer_satisfies_the_schema(model: Model, name: str) -> None:
    for seed in range(10):
        text = written(model, guidance.json_schema(model, SCHEMAS[name]), seed)
        Draft202012Validator(SCHEMAS[name], format_checker=Draft202012Validator.FORMAT_CHECKER).validate(
            json.loads(text)
        )


def test_a_schema_may_come_as_text(model: Model) -> None:
    assert written(model, guidance.json_schema(model, '{"const": [1, 2]}'), 0).replace(" ", "") == "[1,2]"


def test_a_json_object_is_one(model: Model) -> None:
    guide = guidance.json_object(model)
    assert model.decode(np.flatnonzero(guide.mask()).tolist()) == "{"
    for byte in b'{"a": [1, {"b": null}]':
        guide.accept(model.encode(chr(byte))[0])
        assert not guide.finished
    guide.accept(model.encode("}")[0])
    assert guide.finished
    assert np.flatnonzero(guide.mask()).tolist() == [END]


def test_white_space_cannot_fill_an_answer(model: Model) -> None:
    guide = guidance.json_object(model)
    for character in '{ "a": ':
        guide.accept(model.encode(character)[0])
    blank = [model.encode(character)[0] for character in " \n\t\r"]
    assert not guide.mask()[blank].any()


def test_a_regular_expression_is_matched_whole(model: Model) -> None:
    for seed in range(10):
        text = written(model, guidance.regex(model, "(yes|no), [a-c]{2,5}[.!]"), seed)
        assert re.fullmatch("(yes|no), [a-c]{2,5}[.!]", text)


def test_a_grammar_is_followed(model: Model) -> None:
    sums = 'start: NUMBER ("+" NUMBER)~1..3\nNUMBER: /[1-9][0-9]?/\n'
    for seed in range(10):
        text = written(model, guidance.grammar(model, sums), seed)
        assert re.fullmatch(r"[1-9][0-9]?(\+[1-9][0-9]?){1,3}", text)


@pytest.mark.parametrize(
    "make", [lambda model: guidance.grammar(model, "start: /(?s:.*)/"), lambda model: guidance.regex(model, "(?s).*")]
)
def test_a_form_of_any_text_leaves_every_token_of_text_and_the_end(
    model: Model, make: Callable[[Model], Guide]
) -> None:
    guide = make(model)
    ascii_ids = [model.encode(chr(code))[0] for code in range(128)]
    for token in model.encode("Zwölf 🙂!"):
        allowed = guide.mask()
        assert allowed[token]
        if allowed[END]:  # between two characters
            assert allowed[ascii_ids].all()
        assert not allowed[[256, 258, 259]].any()  # a special token, and ids without one
        guide.accept(token)
    assert guide.mask()[END]
    assert not guide.finished


def test_a_clone_goes_its_own_way_from_where_it_was_made(model: Model) -> None:
    first = guidance.regex(model, "ab|ac|bd")
    first.accept(model.encode("a")[0])
    second = first.clone()
    first.accept(model.encode("b")[0])
    assert first.finished
    assert not second.finished
    assert model.decode(np.flatnonzero(second.mask()).tolist()) == "bc"


def test_a_token_that_the_mask_rules_out_is_not_accepted(model: Model) -> None:
    guide = guidance.regex(model, "ab")
    with pytest.raises(UnusableBundle, match=f"token {END} is not among those"):
        guide.accept(END)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda model: guidance.json_schema(model, "{"), "the JSON Schema cannot be used: EOF while parsing"),
        (lambda model: guidance.json_schema(model, "[]"), "the JSON Schema cannot be used: it must be an object"),
        (lambda model: guidance.json_schema(model, {"type": "text"}), "Invalid type: text"),
        (lambda model: guidance.json_schema(model, {"not": {"type": "null"}}), r'Unimplemented keys: \["not"\]'),
        (lambda model: guidance.json_schema(model, {"pattern": "[", "type": "string"}), "unclosed character class$"),
        (lambda model: guidance.json_schema(model, {"$ref": "#/nowhere"}), "Pointer '/nowhere' does not exist"),
        (lambda model: guidance.json_schema(model, {"allOf": [{"type": "null"}, {"const": 1}]}), "Unsatisfiable"),
        (
            lambda model: guidance.json_schema(
                model, {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
            ),
            "^nothing satisfies the JSON Schema$",
        ),
        (lambda model: guidance.json_schema(model, '{"items":' * 500 + "{}" + "}" * 500), "recursion limit"),
        (lambda model: guidance.regex(model, "(a"), "the regular expression cannot be used: unclosed group"),
        (lambda model: guidance.regex(model, "(?=a)b"), "look-around"),
        (lambda model: guidance.grammar(model, 'begin: "a"'), "the grammar cannot be used: no start rule found"),
        (lambda model: guidance.grammar(model, "start: ["), "Expected token"),
    ],
)
def test_a_form_that_cannot_be_followed_is_one_sentence(
    model: Model, make: Callable[[Model], Guide], sentence: str
) -> None:
    with pytest.raises(UnusableBundle, match=sentence) as caught:
        make(model)
    assert "\n" not in caught.value.message


def test_a_chain_of_references_that_overran_the_stack_does_not_end_the_process(tiny: Path) -> None:
    script = """
import sys
from edgeforge import runtime
from edgeforge.runtime import guidance
links = {f"a{i}": {"type": "array", "items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(5000)}
guide = guidance.json_schema(runtime.load(sys.argv[1]), {"$defs": links | {"a5000": {}}, "$ref": "#/$defs/a0"})
print(guide.mask().sum())
"""
    result = subprocess.run([sys.executable, "-c", script, str(tiny)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "1\n"), result.stderr


def test_a_bundle_without_an_end_of_text_is_a_sentence(tmp_path: Path) -> None:
    endless = runtime.load(make_bundle(tmp_path / "b", eos=()), threads=1)
    with pytest.raises(UnusableBundle, match="no end-of-text token"):
        guidance.json_object(endless)


def test_without_llguidance_the_cure_is_named(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingRequirement, match="llguidance") as caught:
        guidance.json_object(model)
    assert caught.value.exit_code == 7
    assert caught.value.hint == "pip install llguidance"
