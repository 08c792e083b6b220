"""Answers that were computed are not computed again, whatever happened to the process that computed them."""

from pathlib import Path

from edgeforge.validation.responses import Responses


def test_answers_survive_their_process(tmp_path: Path) -> None:
    with Responses("a", folder=tmp_path) as kept:
        kept.add("loglikelihood", ["context", " end"], [-1.5, True])
        kept.add("generate_until", ["context", {"until": ["\n"]}], "text\nmore")
    with Responses("a", folder=tmp_path) as again:
        assert again.get("loglikelihood", ["context", " end"]) == [-1.5, True]
        assert again.get("generate_until", ["context", {"until": ["\n"]}]) == "text\nmore"
        assert again.get("generate_until", ["context", {"until": []}]) is None
        assert again.get("loglikelihood", ["context ", "end"]) is None
    with Responses("b", folder=tmp_path) as other:
        assert len(other) == 0


def test_a_torn_line_costs_one_answer(tmp_path: Path) -> None:
    with Responses("a", folder=tmp_path) as kept:
        kept.add("one", ["x"], 1.0)
        kept.add("two", ["x"], 2.0)
    kept.path.write_bytes(kept.path.read_bytes()[:-9])
    with Responses("a", folder=tmp_path) as torn:
        assert torn.get("one", ["x"]) == 1.0 and torn.get("two", ["x"]) is None
        torn.add("three", ["x"], 3.0)
    with Responses("a", folder=tmp_path) as again:
        assert again.get("one", ["x"]) == 1.0 and again.get("three", ["x"]) == 3.0


def test_two_at_once_lose_nothing(tmp_path: Path) -> None:
    with Responses("a", folder=tmp_path) as one, Responses("a", folder=tmp_path) as other:
        for number in range(50):
            one.add("one", [number], float(number))
            other.add("other", [number], float(number))
    with Responses("a", folder=tmp_path) as both:
        assert len(both) == 100
