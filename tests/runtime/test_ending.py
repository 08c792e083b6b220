"""JSON that would be cut off is brought to an end that its schema allows; JSON that fits is left alone."""

import json

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from test_guidance import END, SCHEMAS

from edgeforge.runtime import guidance
from edgeforge.runtime.ending import EndingGuide, Place, short_end
from edgeforge.runtime.model import Model
from edgeforge.runtime.sampling import Sampler, Sampling

ENDLESS = {
    "text": {"type": "string"},
    "long text": {"type": "string", "minLength": 200},
    "anything": {"type": "object"},
    "list": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]+@[a-z]+$"}},
    "number": {"type": "number"},
    "numbers": {"type": "array", "items": {"type": "number", "minimum": 17}, "minItems": 3},
    "tree": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "below": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["name", "below"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    "formats": {
        "type": "object",
        "properties": {
            "mail": {"type": "string", "format": "email"},
            "address": {"type": "string", "format": "ipv4"},
            "id": {"type": "string", "format": "uuid"},
            "code": {"type": "string", "pattern": "^[}\\]]{3}:x{2}$"},
        },
        "required": ["mail", "address", "id", "code"],
        "additionalProperties": False,
    },
}


def written(guide: EndingGuide | guidance.Guide, seed: int, limit: int, *, wants: str = "") -> list[int]:
    """Up to `limit` tokens of a model that knows nothing, but loves the characters of `wants`."""
    sampler = Sampler(Sampling(temperature=1.0, seed=seed), [0], 260)
    random = np.random.default_rng(seed)
    ids: list[int] = []
    while len(ids) < limit:
        logits = random.standard_normal(260).astype(np.float32) * 2
        logits[[ord(character) - 33 for character in wants]] += 8  # the tiny bundle's ids are in the bytes' order
        token = sampler.choose(logits, guide.mask())
        guide.accept(token)
        if token == END:
            break
        ids.append(token)
    return ids


@pytest.mark.parametrize("name", [*SCHEMAS, *ENDLESS])
@pytest.mark.parametrize("wants", ["", "xyz", "[{", "1.e"])
def test_whatever_the_model_wants_the_json_is_whole_within_its_limit(model: Model, name: str, wants: str) -> None:
    schema = (SCHEMAS | ENDLESS)[name]
    for seed in range(3):
        guide = EndingGuide(guidance.json_schema(model, schema), 300)
        text = model.decode(written(guide, seed, 300, wants=wants))
        validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
        validator.validate(json.loads(text))


def test_json_that_fits_is_what_it_is_without_a_limit(model: Model) -> None:
    for seed in range(5):
        free = written(guidance.json_schema(model, SCHEMAS["nested"]), seed, 400)
        ending = written(EndingGuide(guidance.json_schema(model, SCHEMAS["nested"]), 2000), seed, 400)
        assert free == ending


@pytest.mark.parametrize("begun", ["", "{", '{"', '{"a": "b\\', '{"a": [1, {"c": "', '{"a": -', '{"a": t', '{"ä'])
def test_a_short_end_completes_json_wherever_it_was_left(model: Model, begun: str) -> None:
    guide = guidance.json_object(model)
    tokens = model.encode(begun)
    for token in tokens:
        guide.accept(token)
    end = short_end(guide, Place().after(begun.encode()))
    assert end is not None
    assert len(end) < 20
    json.loads(model.decode(tokens + end))


def test_a_short_end_begins_within_a_character_where_the_text_was_cut_there(model: Model) -> None:
    guide = guidance.json_object(model)
    tokens = model.encode('{"ä')[:-1]
    for token in tokens:
        guide.accept(token)
    end = short_end(guide, Place().after(b'{"\xc3'))
    assert end is not None
    json.loads(model.decode(tokens + end))


def test_a_clone_has_the_rest_of_the_limit(model: Model) -> None:
    first = EndingGuide(guidance.json_object(model), 40)
    for token in model.encode('{"a": "'):
        first.accept(token)
    second = first.clone()
    texts = [model.decode(written(guide, 1, 33, wants="x")) for guide in (first, second)]
    assert texts[0] == texts[1]
    json.loads('{"a": "' + texts[1])


def test_what_is_complete_near_the_limit_ends_there(model: Model) -> None:
    guide = EndingGuide(guidance.json_schema(model, {"type": "number"}), 12)
    digits = 0
    while guide.mask().sum() > 1:
        guide.accept(model.encode("1")[0])
        digits += 1
        assert digits < 12
    assert np.flatnonzero(guide.mask()).tolist() == [END]
