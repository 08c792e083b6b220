"""How its authors sample from a model: generation_config.json."""

from collections.abc import Mapping

from edgeforge.model import fields
from edgeforge.model.checkpoint import GenerationDefaults

GENERATION = "generation_config.json"


def generation_defaults(values: Mapping[str, object]) -> GenerationDefaults:
    """The sampling fields of the file's object; UnusableInput for values that are none."""
    where = GENERATION
    temperature, top_p, penalty = (
        None if values.get(name) is None else fields.number(values, name, where, zero=name == "temperature")
        for name in ("temperature", "top_p", "repetition_penalty")
    )
    return GenerationDefaults(
        do_sample=None
        if values.get("do_sample") is None
        else fields.boolean(values, "do_sample", where, default=False),
        temperature=temperature,
        top_k=None if values.get("top_k") is None else fields.integer(values, "top_k", where, least=0),
        top_p=top_p,
        repetition_penalty=penalty,
    )
