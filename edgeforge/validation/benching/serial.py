"""A bench's report as JSON: every key says its unit, and keys are only ever added."""

from dataclasses import asdict

from edgeforge.validation.benching.records import BenchReport, Figures, Spread

SCHEMA_VERSION = 2


def report_to_json(report: BenchReport) -> dict[str, object]:
    """The first case's figures stand at the top, too, for who asked for one case."""
    first = report.cases[0]
    return {
        "schema_version": SCHEMA_VERSION,
        "edgeforge_version": report.edgeforge_version,
        "manifest_sha256": report.manifest_sha256,
        "target": report.target,
        "device": report.device,
        "new_tokens": report.new_tokens,
        "repeats": report.repeats,
        "load_seconds": report.load_seconds,
        "loaded_memory_bytes": report.loaded_memory_bytes,
        **_figures(first),
        "peak_memory_bytes": report.peak_memory_bytes,
        "weight_bytes_per_step": report.weight_bytes_per_step,
        "kv_bytes_per_token": report.kv_bytes_per_token,
        "limits": None if report.limits is None else asdict(report.limits),
        "surroundings": asdict(report.surroundings),
        "cases": [_figures(figures) for figures in report.cases],
        "warnings": list(report.warnings),
    }


def _figures(figures: Figures) -> dict[str, object]:
    return {
        **asdict(figures.case),
        **_spread("prefill_tokens_per_s", figures.prefill_tokens_per_s),
        **_spread("decode_tokens_per_s", figures.decode_tokens_per_s),
        **_spread("time_to_first_token_ms", figures.time_to_first_token_ms),
        "reused_tokens": figures.reused_tokens,
        "python_share": figures.python_share,
        "peak_memory_bytes": figures.peak_memory_bytes,
        "roofline_prefill_tokens_per_s": figures.roofline_prefill_tokens_per_s,
        "roofline_decode_tokens_per_s": figures.roofline_decode_tokens_per_s,
        "target_roofline_decode_tokens_per_s": figures.target_roofline_decode_tokens_per_s,
    }


def _spread(name: str, spread: Spread) -> dict[str, object]:
    return {name: spread.median, f"{name}_quartiles": [spread.lower_quartile, spread.upper_quartile]}
