"""JSON Schema through OpenAI's client: how many of 100 answers parse and satisfy their schema.

    python tests/benchmarks/serve_json.py URL [--answers 100]

Ten schemas of different kinds take turns, sampled at temperature 1 with another seed each time, in at most 80 tokens.
"""

import argparse
import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import openai
from jsonschema import Draft202012Validator

Schema = dict[str, object]


def an_object(**properties: object) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


TEXT, WHOLE, TRUTH = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
SCHEMAS: dict[str, Schema] = {
    "a person": an_object(name=TEXT, age=WHOLE),
    "a city": an_object(name=TEXT, population=WHOLE, capital=TRUTH),
    "a colour": an_object(colour={"enum": ["red", "green", "blue"]}, strength={"type": "number"}),
    "a shopping list": an_object(items={"type": "array", "items": TEXT, "minItems": 1, "maxItems": 5}),
    "a date": an_object(date={"type": "string", "format": "date"}),
    "a point": an_object(x={"type": "integer", "minimum": -10, "maximum": 10}, y=WHOLE),
    "a book": an_object(
        title=TEXT, author=an_object(first=TEXT, last=TEXT), pages={"anyOf": [WHOLE, {"type": "null"}]}
    ),
    "a code": an_object(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
    "a weather report": an_object(
        city=TEXT, days={"type": "array", "items": an_object(low=WHOLE, high=WHOLE), "maxItems": 3}
    ),
    "a family tree": {
        "$ref": "#/$defs/person",
        "$defs": {"person": an_object(name=TEXT, children={"type": "array", "items": {"$ref": "#/$defs/person"}})},
    },
}


def verdict(client: openai.OpenAI, model: str, number: int) -> str:
    what, schema = list(SCHEMAS.items())[number % len(SCHEMAS)]
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": f"Describe {what} as JSON."}],
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}},
        temperature=1,
        seed=number,
        max_tokens=80,
    )
    said = answer.choices[0].message.content
    try:
        Draft202012Validator(schema).validate(json.loads(said))
    except Exception as error:
        return f"{what}: {type(error).__name__}: {said}"
    return "satisfied"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="such as http://127.0.0.1:8000")
    parser.add_argument("--answers", type=int, default=100)
    options = parser.parse_args()
    with openai.OpenAI(base_url=f"{options.url}/v1", api_key="none") as client, ThreadPoolExecutor(8) as pool:
        model = next(iter(client.models.list())).id
        verdicts = Counter(pool.map(lambda number: verdict(client, model, number), range(options.answers)))
    print(json.dumps({"answers": options.answers, "satisfied": verdicts["satisfied"], "verdicts": verdicts}, indent=2))
    return int(verdicts["satisfied"] != options.answers)


if __name__ == "__main__":
    sys.exit(main())
