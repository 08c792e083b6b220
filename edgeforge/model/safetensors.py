"""A Hugging Face directory as a Checkpoint: config.json, one safetensors file or a sharded index, rows read on demand.

Opening reads the headers and checks every name, dtype and shape against the architecture; weights are read by `rows`.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeforge.errors import UnusableInput
from edgeforge.model import fields
from edgeforge.model.architecture import LlamaArchitecture, architecture_from_config
from edgeforge.model.checkpoint import GenerationDefaults, Source, StoredCodes, StoredGrid
from edgeforge.model.folder import Folder, LocalFolder, ReadableFile, largest_part, side_by_side
from edgeforge.model.generation import GENERATION, generation_defaults
from edgeforge.model.magnitude import largest_of_raw
from edgeforge.model.safetensors_header import TensorEntry, header_of
from edgeforge.model.safetensors_writer import write_safetensors

if TYPE_CHECKING:
    from edgeforge.model.tokenizer import TokenizerFiles

__all__ = ["SafetensorsCheckpoint", "SafetensorsTensor", "open_directory", "write_safetensors"]

ITEM_BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2}
CONFIG = "config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NOTICE_PREFIXES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "COPYING")
MAX_NOTICE_BYTES = 1 << 20
MAX_LISTED = 4
SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsTensor:
    """One tensor of a safetensors file (a LazyTensor); `start` is its first byte in `file`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: ReadableFile
    start: int

    @property
    def size_bytes(self) -> int:
        """As it is stored."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def grid(self) -> StoredGrid | None:
        """None: floats lie on no grid."""
        return None

    def stored_codes(self, start: int, stop: int) -> StoredCodes | None:
        """None: floats are not integers."""
        return None

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """float32 [stop - start, *shape[1:]], fresh and writable; from any thread. ValueError outside the tensor."""
        if not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"rows {start}:{stop} of {self.name} {self.shape}")
        values = np.empty((stop - start, *self.shape[1:]), np.float32)
        offset = self.start + start * math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]
        if self.dtype == "F32":
            self.file.read_into(values, offset)
            return values
        flat, begin = values.reshape(-1), 0
        for raw in self.file.stream(offset, 2 * flat.size):
            block = flat[begin : begin + raw.size // 2]
            begin += block.size
            if self.dtype == "F16":
                block[:] = raw.view(np.float16)
            else:  # bfloat16 is the upper half of a float32
                np.left_shift(raw.view(np.uint16), np.uint32(16), out=block.view(np.uint32), dtype=np.uint32)
        return values

    def announce(self, start: int, stop: int) -> None:
        """These rows will be read soon."""
        row_bytes = math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]
        self.file.announce(self.start + start * row_bytes, (stop - start) * row_bytes)

    def magnitude(self, start: int, stop: int) -> np.float32:
        """max |w| of the rows as they are stored, which costs little more than reading them."""
        width = ITEM_BYTES[self.dtype]
        begin, end = (self.start + row * math.prod(self.shape[1:]) * width for row in (start, stop))
        found = [largest_of_raw(raw, self.dtype) for raw in self.file.stream(begin, end - begin)]
        return np.float32(max(found, key=lambda value: (np.isnan(value), value), default=0))


class SafetensorsCheckpoint:
    """A directory whose headers are read and checked; see `edgeforge.model.checkpoint.Checkpoint`."""

    def __init__(
        self,
        *,
        folder: Folder,
        architecture: LlamaArchitecture,
        config: Mapping[str, object],
        tensors: Mapping[str, SafetensorsTensor],
        source: Source,
        generation: GenerationDefaults,
        header_digest: "hashlib._Hash",
    ) -> None:
        self.architecture = architecture
        self.config = config
        self.source = source
        self.generation = generation
        self._folder = folder
        self._tensors = tensors
        self._header_digest = header_digest
        self._fingerprint: str | None = None
        self._tokenizer: TokenizerFiles | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The architecture's tensors in file order, shard after shard."""
        return tuple(self._tensors)

    def tensor(self, name: str) -> SafetensorsTensor:
        """The tensor called `name`; KeyError where the architecture has none."""
        return self._tensors[name]

    @property
    def fingerprint(self) -> str:
        """sha256:hex over config, headers, file sizes and 4 KiB of each tensor, which tells fine-tunes apart."""
        if self._fingerprint is None:
            digest = self._header_digest.copy()
            for sample in side_by_side(_sample, self._tensors.values()):
                digest.update(sample)
            self._fingerprint = f"sha256:{digest.hexdigest()}"
        return self._fingerprint

    @property
    def tokenizer(self) -> "TokenizerFiles":
        """The directory's tokenizer files; UnusableInput where there are none."""
        if self._tokenizer is None:
            from edgeforge.model.tokenizer import tokenizer_from

            self._tokenizer = tokenizer_from(self._folder)
        return self._tokenizer

    @property
    def notices(self) -> Mapping[str, bytes]:
        """Licence texts in the directory, by file name."""
        found = [name for name in self._folder.names() if name.upper().startswith(NOTICE_PREFIXES)]
        return {
            name: self._folder.read(name) for name in found if self._folder.open(name).size_bytes <= MAX_NOTICE_BYTES
        }


def open_directory(path: Path, *, source: Source | None = None) -> SafetensorsCheckpoint:
    """Open the Hugging Face directory `path`; `source` says where it came from (its precision is filled in here).

    Raises UnusableInput: not a supported Llama, a damaged file, missing shards, missing or misshapen tensors.
    """
    return open_folder(LocalFolder(path), source=source or Source(kind="directory"))


def open_folder(folder: Folder, *, source: Source) -> SafetensorsCheckpoint:
    """The same wherever the directory lies."""
    if not folder.has(CONFIG):
        raise UnusableInput(f"{folder} has no {CONFIG}, so it is no Hugging Face model", hint=_no_config_hint(folder))
    raw = folder.read(CONFIG)
    config = fields.parse_json(raw, f"{folder}/{CONFIG}")
    generation = fields.parse_json(folder.read(GENERATION), f"{folder}/{GENERATION}") if folder.has(GENERATION) else {}
    architecture = architecture_from_config(config, generation)
    digest = hashlib.sha256(raw)
    found = _read_entries(folder, digest)
    _check_extra(folder, architecture, found)
    tensors = _checked(folder, architecture, found)
    folder.keep(largest_part({name: tensor.size_bytes for name, tensor in tensors.items()}))
    return SafetensorsCheckpoint(
        folder=folder,
        architecture=architecture,
        config=config,
        tensors=tensors,
        source=replace(source, precision=_precision(architecture, tensors)),
        generation=generation_defaults(generation),
        header_digest=digest,
    )


def _no_config_hint(folder: Folder) -> str:
    if folder.has("adapter_config.json"):
        return (
            "this is an adapter: merge it into its base model first (peft's merge_and_unload) and give that directory"
        )
    return "give a directory with config.json and model.safetensors, a .gguf file, a hub id, or demo"


def _read_entries(folder: Folder, digest: "hashlib._Hash") -> dict[str, SafetensorsTensor]:
    """Every tensor of the directory by name, in file order; headers and sizes go into `digest`."""
    weight_map = _weight_map(folder)
    names = sorted(set(weight_map.values())) if weight_map is not None else [SINGLE]
    missing = [name for name, there in zip(names, side_by_side(folder.has, names), strict=True) if not there]
    if missing:
        raise UnusableInput(
            f"{folder} lacks {_listed(missing)}, named by {INDEX}",
            hint="fetch the missing files; a download was interrupted",
        )
    files = side_by_side(folder.open, names)
    headers = side_by_side(lambda pair: header_of(pair[0], f"{folder}/{pair[1]}"), zip(files, names, strict=True))
    tensors: dict[str, SafetensorsTensor] = {}
    for name, file, header in zip(names, files, headers, strict=True):
        digest.update(header.raw)
        digest.update(header.file_bytes.to_bytes(8, "little"))
        for entry in header.entries:
            if weight_map is None or weight_map.get(entry.name) == name:
                tensors[entry.name] = _tensor(entry, file)
    return tensors


def _tensor(entry: TensorEntry, file: ReadableFile) -> SafetensorsTensor:
    return SafetensorsTensor(name=entry.name, shape=entry.shape, dtype=entry.dtype, file=file, start=entry.start)


def _weight_map(folder: Folder) -> dict[str, str] | None:
    """Tensor name to shard file name, or None where the directory has a single file."""
    if folder.has(SINGLE):
        return None
    if not folder.has(INDEX):
        pickled = any(name.endswith(".bin") or ".pt" in name for name in folder.names())
        hint = "convert its pickled weights once with transformers: save_pretrained(..., safe_serialization=True)"
        raise UnusableInput(f"{folder} has neither {SINGLE} nor {INDEX}", hint=hint if pickled else None)
    index = f"{folder}/{INDEX}"
    weight_map = fields.parse_json(folder.read(INDEX), index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnusableInput(f"{index} has no weight_map")
    for name, shard in weight_map.items():
        # A plain file name: an index from the network must not reach out of its directory.
        if not isinstance(shard, str) or not shard or shard in (".", "..") or any(c in shard for c in "/\\:\0"):
            raise UnusableInput(f"{index} maps {name} to {shard!r}, which is not a plain file name")
    return weight_map


def _check_extra(folder: Folder, architecture: LlamaArchitecture, found: Mapping[str, SafetensorsTensor]) -> None:
    """Refuse tensors that a Llama decoder does not have: a bias or another norm would change the answers."""
    known = {name for name, _ in architecture.tensors()} | {"lm_head.weight"}
    extra = [
        name
        for name in found
        if name.startswith(("model.", "lm_head.")) and name not in known and not name.endswith(".rotary_emb.inv_freq")
    ]
    if extra:
        raise UnusableInput(
            f"{folder} holds tensors that its config.json does not account for: {_listed(extra)}",
            hint="only plain Llama decoders are built; biases, extra norms and quantized weights are not",
        )


def _checked(
    folder: Folder, architecture: LlamaArchitecture, found: Mapping[str, SafetensorsTensor]
) -> dict[str, SafetensorsTensor]:
    """The architecture's tensors in file order; every missing and misshapen one is reported at once."""
    wanted = dict(architecture.tensors())
    faults = []
    missing = [name for name in wanted if name not in found]
    if missing:
        faults.append(f"lacks {_listed(missing)}")
    misshapen = [
        f"{name} {list(found[name].shape)} that should be {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]
    if misshapen:
        faults.append(f"has {_listed(misshapen)}")
    strange = [
        f"{name} in {found[name].dtype}" for name in wanted if name in found and found[name].dtype not in ITEM_BYTES
    ]
    if strange:
        faults.append(f"stores {_listed(strange)}, which is not {', '.join(ITEM_BYTES)}")
    if faults:
        raise UnusableInput(f"{folder} {' and '.join(faults)}", hint="its weights do not belong to its config.json")
    return {name: tensor for name, tensor in found.items() if name in wanted}


def _listed(items: list[str]) -> str:
    shown = ", ".join(items[:MAX_LISTED])
    return shown if len(items) <= MAX_LISTED else f"{shown} and {len(items) - MAX_LISTED} more"


def _precision(architecture: LlamaArchitecture, tensors: Mapping[str, SafetensorsTensor]) -> str:
    counts = Counter(tensors[linear.name].dtype for linear in architecture.linears())
    return ", ".join(dtype for dtype, _ in counts.most_common())


def _sample(tensor: SafetensorsTensor) -> bytes:
    size = min(tensor.size_bytes, SAMPLE_BYTES)
    return tensor.file.read(tensor.start + (tensor.size_bytes - size) // 2, size)
