"""Does the bundle read text as the original does: its tokenizer and its chat template beside the checkpoint's own.

The texts and chats are those of parity.json (`edgeforge.model.parity`); the tokenizer also reads the package's texts
in eight languages. A single difference fails: ids and prompts are right or wrong, there is nothing to estimate.
"""

from edgeforge.model.parity import CHATS, NOW, TEXTS, make_parity, talker_of
from edgeforge.runtime.errors import BundleError
from edgeforge.runtime.manifest import read_manifest
from edgeforge.runtime.parity import PARITY_NAME, Parity, Talker, differences, open_talker, quoted, read_parity
from edgeforge.validation.data import default_texts
from edgeforge.validation.findings import ProbeFigure
from edgeforge.validation.probes.common import Found, Subject, Tell, skipped
from edgeforge.validation.probes.languages import LANGUAGES, text_of


def probe_tokenizer(subject: Subject, tell: Tell) -> Found:
    """The same ids and the same text again, as the checkpoint's tokenizer and as the vectors in the bundle."""
    original = make_parity(subject.checkpoint.tokenizer)
    parity = Parity(now=NOW, texts=original.texts, chats=())
    ours, theirs = _talkers(subject)
    if isinstance(ours, str):
        return Found(verdict="fail", summary=ours)
    problems = list(differences(parity, ours))
    prose = [*default_texts(), *(text_of(code) for code in LANGUAGES)]
    differing = [text for text in prose if ours.encode(text) != theirs.encode(text)]
    problems += [f"{quoted(text)} becomes other ids than the original's" for text in differing]
    stored = _stored(subject)
    problems += [] if stored is None else [f"{problem} (parity.json)" for problem in _apart(stored, original)]
    count = len(TEXTS) + len(prose)
    agreeing = count - min(len(problems), count)
    figures = (ProbeFigure(name="texts that become the same ids", reference=count, candidate=agreeing, unit="texts"),)
    if problems:
        return Found(
            verdict="fail", summary=f"Text is not read as the original reads it: {problems[0]}.", figures=figures
        )
    kept = "" if stored is None else ", and so do the vectors that the bundle carries"
    return Found(
        verdict="pass",
        summary=f"{count} texts in many scripts become the original's ids, token by token{kept}.",
        figures=figures,
    )


def probe_chat_template(subject: Subject, tell: Tell) -> Found:
    """The same prompts of the same chats."""
    original = make_parity(subject.checkpoint.tokenizer)
    ours, theirs = _talkers(subject)
    if isinstance(ours, str):
        return skipped(f"There was no tokenizer to go with a chat template: {ours}")
    if theirs.chat_template is None and ours.chat_template is None:
        return skipped("Neither the original nor the bundle has a chat template.")
    if theirs.chat_template is None:
        return Found(verdict="fail", summary="The bundle has a chat template and the original has none.")
    if ours.chat_template is None:
        return Found(verdict="fail", summary="The original has a chat template and the bundle has none.")
    problems = list(differences(Parity(now=NOW, texts=(), chats=original.chats), ours))
    figures = (
        ProbeFigure(
            name="chats that become the same prompt",
            reference=len(CHATS),
            candidate=len(CHATS) - len(problems),
            unit="chats",
        ),
    )
    if problems:
        return Found(verdict="fail", summary=f"Chats become other prompts: {problems[0]}.", figures=figures)
    return Found(
        verdict="pass", summary=f"{len(CHATS)} chats become the original's prompts, letter by letter.", figures=figures
    )


def _talkers(subject: Subject) -> tuple[Talker | str, Talker]:
    """The bundle's (or why there is none) and the original's."""
    theirs = talker_of(subject.checkpoint.tokenizer)
    try:
        return open_talker(subject.bundle, read_manifest(subject.bundle)), theirs
    except BundleError as error:
        return f"The bundle's tokenizer cannot be opened: {error.message}.", theirs


def _stored(subject: Subject) -> Parity | None:
    """The bundle's own vectors; None in bundles from before there were any."""
    if PARITY_NAME not in read_manifest(subject.bundle).files:
        return None
    return read_parity(subject.bundle / PARITY_NAME)


def _apart(stored: Parity, original: Parity) -> list[str]:
    """Vectors that somebody else's tokenizer made. Of texts that other releases of EdgeForge chose nothing is said."""
    known = {vector.text: vector.ids for vector in original.texts}
    return [
        f"{quoted(vector.text)} has other ids than the original's"
        for vector in stored.texts
        if vector.text in known and vector.ids != known[vector.text]
    ]
