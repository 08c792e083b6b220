"""A checkpoint is names and shapes; bytes are read by row range when somebody asks.

`open_checkpoint` takes what the user typed (a directory, a `.gguf` file, a URL, a hub id, `demo`) and returns a
`Checkpoint`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit, urlunsplit
from urllib.request import url2pathname

import numpy as np
from numpy.typing import NDArray

from edgeforge.errors import UnusableInput
from edgeforge.model.folder import Folder, LocalFolder

if TYPE_CHECKING:
    from edgeforge.model.architecture import LlamaArchitecture
    from edgeforge.model.tokenizer import TokenizerFiles

# owner/name as the hub spells it; a name alone (gpt2) is from before owners and never a Llama.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
GGUF_SUFFIX = ".gguf"
COMMIT = re.compile(r"[0-9a-f]{40}")
URL = re.compile(r"[a-z][a-z0-9+.-]*://.+", re.IGNORECASE)
HUB_URL = re.compile(rf"hf://({HUB_ID.pattern})(?:@(.+))?/?")
REFERENCES = (
    "give a Hugging Face directory, a .gguf file, a URL of either such as s3://bucket/model, a hub id such as"
    " meta-llama/Llama-3.1-8B-Instruct, or demo"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCodes:
    """Rows of a weight that the checkpoint already holds as integers: `w = codes * scales + offsets`.

    codes int8 [N, K] signed (4 bits: -8..7); scales float32 [N, G]; offsets float32 [N, G] or None (symmetric).
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    offsets: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGrid:
    """The integer grid a stored tensor lies on (Q4_0: 4 bits, 32, no offset; Q4_1: offset; Q8_0: 8 bits)."""

    bits: int
    group_size: int
    offset: bool


class LazyTensor(Protocol):
    """A tensor whose bytes are still in the file. Reading is thread-safe (positional reads, no shared cursor)."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str:
        """As the file calls it: F32, F16, BF16, Q4_1, Q6_K, ..."""
        ...

    @property
    def grid(self) -> StoredGrid | None:
        """The integer grid the weights already lie on, if EdgeForge has a scheme for it."""
        ...

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """float32 [stop - start, *shape[1:]], a fresh array."""
        ...

    def announce(self, start: int, stop: int) -> None:
        """The same rows will be read soon: the system may fetch them meanwhile."""
        ...

    def magnitude(self, start: int, stop: int) -> np.float32:
        """max |w| of the same rows; NaN or infinity where there is one."""
        ...

    def stored_codes(self, start: int, stop: int) -> StoredCodes | None:
        """The stored integers of the same rows, where `grid` is not None."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a checkpoint came from, without any path of this machine."""

    kind: str  # directory | gguf | hub | demo
    name: str | None = None  # hub id, or "demo"; None for local files
    revision: str | None = None  # hub commit
    precision: str = ""  # dtypes of its linears, commonest first, e.g. "BF16" or "Q4_1"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """generation_config.json's sampling fields; None where the file does not say."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None


class TensorRows(Protocol):
    """A weight whose rows can be read, which is all that a forward pass asks."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """float32 [stop - start, *shape[1:]], a fresh array."""
        ...


class Weights(Protocol):
    """A model that can be run: its architecture and its tensors under Hugging Face's names. A Checkpoint is one."""

    @property
    def architecture(self) -> "LlamaArchitecture": ...
    def tensor(self, name: str) -> TensorRows: ...


class Checkpoint(Protocol):
    """The weights as their authors published them, under Hugging Face's tensor names."""

    @property
    def architecture(self) -> "LlamaArchitecture": ...
    @property
    def config(self) -> Mapping[str, object]:
        """config.json as its authors wrote it; of a file that has none, the equivalent."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names in file order."""
        ...

    @property
    def fingerprint(self) -> str:
        """sha256:hex over config, headers and file sizes: cheap, tells checkpoints apart, independent of paths."""
        ...

    @property
    def source(self) -> Source: ...
    @property
    def tokenizer(self) -> "TokenizerFiles": ...
    @property
    def generation(self) -> GenerationDefaults: ...
    @property
    def notices(self) -> Mapping[str, bytes]:
        """Licence texts that came with the model (LICENSE, NOTICE, USE_POLICY...), by file name."""
        ...

    def tensor(self, name: str) -> LazyTensor: ...


def open_checkpoint(reference: str, *, revision: str | None = None) -> Checkpoint:
    """Open a directory, a `.gguf` file, a URL of either, a hub id, or `demo`; raises UnusableInput with a cure.

    A directory is a Hugging Face one, or holds a single `.gguf` file. What exists on disk wins over a hub id of that
    name, and `demo` over a directory called so (write `./demo` for it). `revision` is for hub ids. What lies behind a
    URL is read by range requests, `hf://org/name` too, and never downloaded whole.
    """
    if reference == "demo":
        from edgeforge.model.hub import demo_checkpoint

        return demo_checkpoint()
    if URL.fullmatch(reference):
        return _open_url(reference, revision)
    path = Path(reference).expanduser()
    if path.exists():
        return _open_local(path)
    if not HUB_ID.fullmatch(reference):
        raise UnusableInput(f"there is no model at {reference}", hint=REFERENCES)
    from edgeforge.model.hub import snapshot

    return _open_snapshot(snapshot(reference, revision), reference)


def _open_local(path: Path) -> Checkpoint:
    if path.is_dir():
        return _open_in(LocalFolder(path))
    if path.suffix.lower() != GGUF_SUFFIX:
        raise UnusableInput(f"{path} is not a model that EdgeForge reads", hint=REFERENCES)
    return _open_gguf(LocalFolder(path.parent), path.name)


def _open_url(url: str, revision: str | None) -> Checkpoint:
    from edgeforge.model.remote import RemoteFolder

    parts = urlsplit(url)
    if parts.scheme.lower() == "file":
        return _open_local(Path(url2pathname(parts.path)))
    if parts.scheme.lower() == "hf":
        return _open_hub_url(url, revision)
    if parts.path.lower().endswith(GGUF_SUFFIX):
        folder, name = parts.path.rsplit("/", 1)
        return _open_gguf(RemoteFolder(urlunsplit(parts._replace(path=folder))), name)
    return _open_in(RemoteFolder(url))


def _open_hub_url(url: str, revision: str | None) -> Checkpoint:
    """A repository as its snapshot would be opened, but read where it is."""
    from edgeforge.model.hub import commit_of
    from edgeforge.model.remote import RemoteFolder
    from edgeforge.model.safetensors import open_folder

    found = HUB_URL.fullmatch(url)
    if found is None:
        raise UnusableInput(
            f"{url} names no repository of the hub", hint="write hf://org/name, or hf://org/name@branch"
        )
    name, named = found.groups()
    if None not in (named, revision) and named != revision:
        raise UnusableInput(f"{url} and --revision {revision} name two revisions", hint="leave one of them out")
    commit = commit_of(name, named or revision)
    folder = RemoteFolder(f"hf://{name}@{commit}", immutable=True)
    return open_folder(folder, source=Source(kind="hub", name=name, revision=commit))


def _open_in(folder: Folder) -> Checkpoint:
    """A Hugging Face directory, or one with a single `.gguf` file."""
    from edgeforge.model.safetensors import open_folder

    if not folder.has("config.json"):
        files = [name for name in folder.names() if name.endswith(GGUF_SUFFIX)]
        if len(files) == 1:
            return _open_gguf(folder, files[0])
    return open_folder(folder, source=Source(kind="directory"))


def _open_gguf(folder: Folder, name: str) -> Checkpoint:
    from edgeforge.model.gguf import open_gguf_in

    return open_gguf_in(folder, name, source=Source(kind="gguf"), notices={})


def _open_snapshot(folder: Path, reference: str) -> Checkpoint:
    """A downloaded repository; huggingface_hub names the folder after the commit."""
    from edgeforge.model.safetensors import open_directory

    commit = folder.name if COMMIT.fullmatch(folder.name) else None
    return open_directory(folder, source=Source(kind="hub", name=reference, revision=commit))
