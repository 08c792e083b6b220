"""Which probes there are, what they are called, and how they are run."""

from pathlib import Path

import pytest
from built import Build

from edgeforge.errors import UnusableInput
from edgeforge.validation.probes import PROBES, check_names, run_probes
from edgeforge.validation.probes.languages import LANGUAGES, text_of


def test_an_unknown_name_is_refused_with_the_nearest_before_any_model_is_asked() -> None:
    check_names([*PROBES])
    with pytest.raises(UnusableInput, match="there is no probe called chattemplate") as error:
        run_probes(["needle", "chattemplate"], bundle=Path(), checkpoint=None, reference=None, candidate=None)
    assert "did you mean chat-template?" in str(error.value.hint)
    with pytest.raises(UnusableInput) as error:
        check_names(["x"])
    assert all(name in str(error.value.hint) for name in PROBES)


def test_probes_come_in_the_order_asked_for_and_say_one_sentence(stories_f32: Build, stories_int4: Build) -> None:
    steps: list[tuple[int, int]] = []
    names = ["layers", "tokenizer", "chat-template", "needle", "positions"]
    found = run_probes(
        names,
        bundle=stories_int4.bundle,
        checkpoint=stories_int4.checkpoint,
        reference=stories_f32.load(),
        candidate=stories_int4.load(),
        progress=lambda done, total: steps.append((done, total)),
    )
    assert [probe.name for probe in found.probes] == names
    verdicts = {probe.name: probe.verdict for probe in found.probes}
    assert verdicts == {
        "layers": "pass",
        "tokenizer": "pass",
        "chat-template": "skipped",
        "needle": "skipped",
        "positions": "skipped",
    }
    assert all(probe.summary.endswith(".") and "\n" not in probe.summary and probe.title for probe in found.probes)
    assert len(found.layers) == stories_int4.plan.architecture.num_hidden_layers
    assert found.languages == found.positions == ()
    assert steps == sorted(steps) and steps[-1] == (500, 500)


def test_every_language_has_a_text_of_its_own() -> None:
    texts = {text_of(code) for code in LANGUAGES}
    assert len(texts) == len(LANGUAGES) == 8
    assert all(len(text) > 1500 and text.count("\n\n") >= 5 for text in texts)
