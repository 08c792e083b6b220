"""`edgeforge validate`: a bundle against its original, with the target's gate; or two bundles side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeforge.cli import options

if TYPE_CHECKING:
    from edgeforge.pipeline.proving import ProofOptions
    from edgeforge.validation.protocol import Protocol
    from edgeforge.validation.report import ValidationReport
    from edgeforge.validation.tasks import TaskOptions


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE")
@click.option(
    "--reference",
    metavar="REF",
    help="The original: a directory, a .gguf file, a URL, a hub id, or `demo`.  "
    "[default: the bundle's source, where public]",
)
@click.option("--allow-other-reference", is_flag=True, help="Accept an original that the bundle was not built from.")
@click.option(
    "--tasks",
    metavar="A,B",
    help="Benchmarks by lm-eval's names: mmlu, gsm8k, humaneval, lambada_openai, wikitext, hellaswag, arc_challenge...",
)
@click.option(
    "--limit",
    metavar="N",
    help="Items of each task (of each of mmlu's subjects), or of named ones: mmlu=5,gsm8k=20.  [default: all]",
)
@click.option(
    "--num-fewshot",
    "--num_fewshot",
    type=click.IntRange(min=0),
    metavar="N",
    help="Examples before each item.  [default: the task's own]",
)
@click.option("--apply-chat-template", "--apply_chat_template", is_flag=True, help="Ask in the model's chat template.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the items where --limit is given.")
@click.option(
    "--allow-code-execution", is_flag=True, help="Run the programs that humaneval has the models write, contained."
)
@click.option(
    "--probes",
    metavar="A,B",
    help="Behaviour beyond accuracy: tokenizer, chat-template, positions, needle, json, repetition, languages, layers; "
    "or `all`.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="With --tasks: a folder of their data files.  [default: the hub's]  Without: the same as --text.",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Text to score: a file, or a folder of *.txt, *.raw, *.txt.gz, *.raw.gz.  [default: a built-in text]",
)
@click.option("--chunks", type=click.IntRange(min=1), metavar="N", help="Chunks to score.  [default: the whole text]")
@click.option(
    "--context", type=click.IntRange(min=4), metavar="N", help="Tokens of a chunk.  [default: 512, or the bundle's]"
)
@click.option(
    "--protocol",
    type=click.Choice(["llama.cpp", "windows"]),
    default="llama.cpp",
    show_default=True,
    help="Score the second half of each chunk as llama.cpp does, or every token.",
)
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Write the verdicts as JUnit XML, too.")
@click.option("--compare", is_flag=True, help="Put the reports of two bundles side by side; nothing is run.")
@click.option("--page", type=click.Path(path_type=Path), metavar="FILE", help="With --compare: write a page as well.")
@options.threads_option
@options.json_option
@options.quiet_option
def validate(
    bundles: tuple[Path, ...],
    reference: str | None,
    allow_other_reference: bool,
    tasks: str | None,
    limit: str | None,
    num_fewshot: int | None,
    apply_chat_template: bool,
    seed: int,
    allow_code_execution: bool,
    probes: str | None,
    data: Path | None,
    text: Path | None,
    chunks: int | None,
    context: int | None,
    protocol: "Protocol",
    junit: Path | None,
    compare: bool,
    page: Path | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare BUNDLE with the model it was built from: perplexity, KL divergence, the same first choice, and, where
    asked for, benchmark tasks and probes.

    Both models get the same tokens and the same items, the bundle through the runtime that users embed. Where it is
    for another engine than onnxruntime, its stored weights are read back and run in float32, with activations rounded
    as the engine rounds them. The report goes to BUNDLE/reports/, and exit code 5 says that the target's gate failed.
    An interrupted validation goes on where it stopped: give the same command again.

    \b
    Examples:
      edgeforge validate artifacts/demo-cpu
      edgeforge validate artifacts/demo-cpu --text wikitext2_test.raw.gz --chunks 40
      edgeforge validate artifacts/demo-cpu --tasks mmlu,gsm8k,lambada_openai --limit 20 --data benchmarks/
      edgeforge validate artifacts/demo-cpu --probes all --junit validation.xml
      edgeforge validate llama-1b --reference ./Llama-3.2-1B-Instruct --json
      edgeforge validate --compare artifacts/demo-int4 artifacts/demo-int8
    """
    if compare:
        compare_bundles(bundles, page=page, as_json=as_json)
        return
    from edgeforge.errors import UsageError
    from edgeforge.pipeline.proving import ProofOptions
    from edgeforge.validation import load_texts

    if len(bundles) != 1:
        raise UsageError("one bundle is validated at a time", hint="two are put side by side with --compare")
    if page is not None:
        raise UsageError("--page goes with --compare", hint="the report's own page is BUNDLE/reports/validation.html")
    if text is None and tasks is None:
        text = data
    chosen = _task_options(tasks, limit, num_fewshot, apply_chat_template, data, seed, allow_code_execution)
    run_proof(
        ProofOptions(
            bundle=bundles[0],
            reference=reference,
            allow_other_reference=allow_other_reference,
            texts=None if text is None else load_texts(text),
            text_name=None if text is None else text.resolve().name,
            chunks=chunks,
            context=context,
            protocol=protocol,
            tasks=chosen,
            probes=_probe_names(probes),
            threads=threads,
            command=_command(),
        ),
        junit=junit,
        as_json=as_json,
        quiet=quiet,
    )


def run_proof(proof: "ProofOptions", *, junit: Path | None, as_json: bool, quiet: bool) -> None:
    """Validate, write the reports, tell, and hold the gate."""
    from edgeforge.bundle import seal
    from edgeforge.cli.console import emit_json
    from edgeforge.cli.progress import Progress
    from edgeforge.cli.proof import render
    from edgeforge.cli.report import check_gate
    from edgeforge.pipeline.proving import prove
    from edgeforge.validation import report_to_json, write_report

    with Progress(quiet=quiet or as_json) as progress:
        report = prove(proof, progress=progress)
    write_report(report, proof.bundle)
    seal(proof.bundle)
    if junit is not None:
        _write_junit(report, junit)
    if as_json:
        emit_json(report_to_json(report))
    else:
        click.echo(render(report, proof.bundle))
    check_gate(report, proof.bundle)


def compare_bundles(bundles: tuple[Path, ...], *, page: Path | None, as_json: bool) -> None:
    """Two bundles' reports side by side, as text or JSON, and as a page where one is asked for."""
    from edgeforge.cli.comparison import comparison_text
    from edgeforge.cli.console import emit_json
    from edgeforge.errors import UnusableInput, UsageError
    from edgeforge.validation import read_report
    from edgeforge.validation.comparing import compare_reports, comparison_to_json, render_comparison_page

    if len(bundles) != 2:
        raise UsageError("--compare takes two bundles", hint="edgeforge validate --compare A B")
    reports = []
    for bundle in bundles:
        report = read_report(bundle)
        if report is None:
            raise UnusableInput(f"{bundle} has no validation report", hint=f"edgeforge validate {bundle}")
        reports.append(report)
    document = compare_reports(reports[0], reports[1], (str(bundles[0]), str(bundles[1])))
    if page is not None:
        page.write_text(render_comparison_page(document), encoding="utf-8")
    if as_json:
        emit_json(comparison_to_json(document))
    else:
        click.echo(comparison_text(document))


def _task_options(
    tasks: str | None,
    limit: str | None,
    num_fewshot: int | None,
    apply_chat_template: bool,
    data: Path | None,
    seed: int,
    allow_code_execution: bool,
) -> "TaskOptions | None":
    """None where no tasks are asked for; options of tasks are refused then."""
    from edgeforge.errors import UsageError
    from edgeforge.validation.tasks import TaskOptions

    if tasks is None:
        given = {
            "--limit": limit is not None,
            "--num-fewshot": num_fewshot is not None,
            "--apply-chat-template": apply_chat_template,
            "--allow-code-execution": allow_code_execution,
        }
        for name, is_given in given.items():
            if is_given:
                raise UsageError(f"{name} is about tasks, and none are asked for", hint="add --tasks mmlu,gsm8k")
        return None
    everywhere, named = _limits(limit)
    return TaskOptions(
        names=_words(tasks),
        limit=everywhere,
        limits=named,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        data=data,
        seed=seed,
        allow_code_execution=allow_code_execution,
    )


def _limits(text: str | None) -> tuple[int | None, tuple[tuple[str, int], ...]]:
    """`20`, or `mmlu=5,gsm8k=20`: of every task, or of those that are named."""
    from edgeforge.errors import UsageError

    if text is None or text.isdecimal():
        return (None if text is None else int(text)), ()
    named = []
    for word in _words(text):
        name, equals, count = word.partition("=")
        if not (name and equals and count.isdecimal()):
            raise UsageError(f"--limit {text} is no number of items", hint="--limit 20, or --limit mmlu=5,gsm8k=20")
        named.append((name, int(count)))
    return None, tuple(named)


def _words(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(word.strip() for word in text.split(",") if word.strip())


def _probe_names(text: str | None) -> tuple[str, ...]:
    names = _words(text)
    if names != ("all",):
        return names
    from edgeforge.validation.probes import PROBES

    return tuple(PROBES)


def _command() -> str:
    """What was typed, as it can be typed again."""
    import shlex
    import sys

    return shlex.join(["edgeforge", *sys.argv[1:]])


def _write_junit(report: "ValidationReport", path: Path) -> None:
    from edgeforge.errors import UnusableInput
    from edgeforge.validation.junit import render_junit

    try:
        path.write_text(render_junit(report), encoding="utf-8")
    except OSError as error:
        raise UnusableInput(f"{path} cannot be written: {error.strerror}", hint="name another file") from None
