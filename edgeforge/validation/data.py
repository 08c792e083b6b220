"""The text that is scored: what the user points at, or the package's own prose."""

import gzip
import zlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from edgeforge.errors import UnusableInput

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from edgeforge.model.checkpoint import Checkpoint

SUFFIXES = (".txt", ".raw", ".txt.gz", ".raw.gz")


def default_texts() -> tuple[str, ...]:
    """The package's own texts (edgeforge/validation/text, Apache-2.0), by file name: some 4,500 tokens."""
    folder = resources.files("edgeforge.validation") / "text"
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".txt")), key=lambda item: item.name)
    return tuple(item.read_text(encoding="utf-8") for item in files)


def load_texts(path: Path, option: str = "--data") -> tuple[str, ...]:
    """The texts of a file, or of a folder's *.txt, *.raw, *.txt.gz and *.raw.gz files in the order of their names.

    `option` is what the user named it with. Raises UnusableInput when there is nothing, or a file is not UTF-8 text.
    """
    if path.is_dir():
        files = sorted(item for item in path.iterdir() if item.name.endswith(SUFFIXES) and item.is_file())
        if not files:
            raise UnusableInput(
                f"{path} holds no text files",
                hint=f"{option} takes a text file, or a folder of *{', *'.join(SUFFIXES)}",
            )
        return tuple(read_text(item) for item in files)
    if not path.exists():
        raise UnusableInput(
            f"there is no text at {path}",
            hint=f"{option} takes a text file or a folder of them; without it a built-in text is used",
        )
    return (read_text(path),)


def read_text(path: Path) -> str:
    """A file's text, gzip undone. Raises UnusableInput where it is missing, empty, or not UTF-8."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise UnusableInput(f"{path} is not UTF-8 text", hint="give plain text, or text compressed with gzip") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise UnusableInput(f"{path} is not a whole gzip file", hint="fetch the file again") from None
    except FileNotFoundError:
        raise UnusableInput(f"there is no text at {path}", hint="check the spelling of the path") from None
    except OSError as error:
        raise UnusableInput(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from None
    if not text.strip():
        raise UnusableInput(f"{path} is empty", hint="give plain text, or text compressed with gzip")
    return text


def concatenate(texts: Sequence[str]) -> str:
    """One text, each part on a line of its own; the very last line break is dropped, as llama.cpp's --file does."""
    joined = "".join(text if text.endswith("\n") else text + "\n" for text in texts)
    return joined[:-1]


def encode_plain(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Token ids of the text alone: no BOS or EOS, no truncation or padding; special tokens in it are plain text.

    (The latter as llama.cpp's common_tokenize does with parse_special false.) Changes the tokenizer's settings.
    """
    return encode(tokenizer, text, special=False)


def encode(tokenizer: "Tokenizer", text: str, *, special: bool) -> list[int]:
    """The same; `special` says whether special tokens in the text are what they say."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = not special
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def start_token_id(checkpoint: "Checkpoint", tokenizer: "Tokenizer") -> int | None:
    """The BOS that encoding puts before a text; None where it puts none."""
    files = checkpoint.tokenizer
    if not files.add_bos:
        return None
    named: int | None = None if files.bos_token is None else tokenizer.token_to_id(files.bos_token)
    return checkpoint.architecture.bos_token_id if named is None else named
