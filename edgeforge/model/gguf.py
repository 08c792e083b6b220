"""llama.cpp's file format as a Checkpoint: Hugging Face names and row order, dequantized by row range.

Two things differ from the published weights. Names are ggml's (the table below maps them), and the rows of q and k
are interleaved for ggml's rotary embedding, which pairs neighbours (2i, 2i + 1) where Hugging Face's pairs halves (i,
i + head_dim / 2); reading undoes it.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeforge.errors import UnusableInput
from edgeforge.model import ggml
from edgeforge.model.architecture import LlamaArchitecture, hf_config
from edgeforge.model.checkpoint import GenerationDefaults, LazyTensor, Source, StoredCodes, StoredGrid
from edgeforge.model.folder import Folder, LocalFolder, ReadableFile, largest_part
from edgeforge.model.gguf_architecture import (
    architecture_from_metadata,
    generation_defaults,
    refuse_other_architectures,
)
from edgeforge.model.gguf_header import Header, StoredTensor, header_of
from edgeforge.model.magnitude import largest
from edgeforge.model.tokenizer import TokenizerFiles
from edgeforge.model.tokenizer_gguf import tokenizer_from_gguf

_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_ROPE_FACTORS = "rope_freqs.weight"
_MAX_LISTED = 4  # names in one error sentence


def open_gguf(
    path: Path, *, source: Source | None = None, notices: Mapping[str, bytes] | None = None
) -> "GgufCheckpoint":
    """Open `path`; every name, shape, type and byte range is checked before this returns.

    `source` says where the file came from (its precision is filled in here); `notices` are licence texts that came
    along. Raises UnusableInput with one sentence that names the file, the key or the tensor.
    """
    folder = LocalFolder(path.parent)
    return open_gguf_in(folder, path.name, source=source or Source(kind="gguf"), notices=notices or {})


def open_gguf_in(folder: Folder, name: str, *, source: Source, notices: Mapping[str, bytes]) -> "GgufCheckpoint":
    """The same wherever the file lies."""
    file = folder.open(name)
    header = header_of(file, name)
    refuse_other_architectures(header.metadata)
    stored = {tensor.name: tensor for tensor in header.tensors}
    _refuse_unreadable(name, header)
    folder.keep(largest_part({_hugging_face_name(key): tensor.size_bytes for key, tensor in stored.items()}))
    factors = stored.get(_ROPE_FACTORS)
    embedding = stored.get("token_embd.weight")
    architecture = architecture_from_metadata(
        header.metadata,
        vocab_size=embedding.shape[0] if embedding else 0,
        tied="output.weight" not in stored,
        rope_factors=None
        if factors is None
        else _RowReader(file=file, stored=factors, rotated=None).rows(0, factors.shape[0]),
    )
    _check_depth(architecture.num_hidden_layers, stored, name)
    tensors = {
        tensor.name: tensor
        for tensor in (_lazy(file, entry, architecture) for key, entry in stored.items() if key != _ROPE_FACTORS)
    }
    _check_against(architecture, tensors, name)
    return GgufCheckpoint(
        architecture=architecture,
        header=header,
        tensors=tensors,
        source=replace(source, precision=_precision(architecture, tensors)),
        notices=dict(notices),
    )


class GgufCheckpoint:
    """A Checkpoint over one GGUF file. The tokenizer is rebuilt on first use: planning needs none."""

    def __init__(
        self,
        *,
        architecture: LlamaArchitecture,
        header: Header,
        tensors: Mapping[str, "GgufTensor"],
        source: Source,
        notices: Mapping[str, bytes],
    ) -> None:
        self.architecture = architecture
        self.names = tuple(tensors)
        self.fingerprint = header.fingerprint
        self.source = source
        self.notices = notices
        self.generation: GenerationDefaults = generation_defaults(header.metadata)
        self._metadata = header.metadata
        self._tensors = tensors
        self._tokenizer: TokenizerFiles | None = None

    @property
    def config(self) -> Mapping[str, object]:
        """What config.json would say; 16 bits is what its authors quantized from."""
        return hf_config(self.architecture, dtype="float16")

    @property
    def tokenizer(self) -> TokenizerFiles:
        """Raises UnusableInput where the vocabulary is of a kind EdgeForge cannot rebuild."""
        if self._tokenizer is None:
            self._tokenizer = tokenizer_from_gguf(self._metadata)
        return self._tokenizer

    def tensor(self, name: str) -> LazyTensor:
        return self._tensors[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """One weight under its Hugging Face name; reads are positional, so threads may share it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    grid: StoredGrid | None
    reader: "_RowReader"

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """float32 [stop - start, *shape[1:]], a fresh array."""
        return self.reader.rows(start, stop)

    def announce(self, start: int, stop: int) -> None:
        """The same rows, give or take a head's, will be read soon."""
        self.reader.announce(start, stop)

    def magnitude(self, start: int, stop: int) -> np.float32:
        """max |w| of the same rows; NaN or infinity where there is one."""
        return largest(self.rows(start, stop))

    def stored_codes(self, start: int, stop: int) -> StoredCodes | None:
        """The integers of the same rows in the same order, where `grid` is not None."""
        return None if self.grid is None else ggml.to_codes(self.reader.raw(start, stop), self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class _RowReader:
    """Rows of one stored tensor. `rotated` is head_dim where ggml interleaved the rows of each head (q and k), else
    None.
    """

    file: ReadableFile
    stored: StoredTensor
    rotated: int | None

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return ggml.to_float(self.raw(start, stop), self.stored.dtype).reshape(stop - start, *self.stored.shape[1:])

    def raw(self, start: int, stop: int) -> NDArray[np.uint8]:
        """uint8 [stop - start, bytes of a row], in Hugging Face's row order."""
        if not 0 <= start <= stop <= self.stored.shape[0]:
            raise IndexError(f"rows {start}..{stop} of {self.stored.name} {list(self.stored.shape)}")
        if self.rotated is None:
            return self._contiguous(start, stop)
        wanted = _interleaved(np.arange(start, stop), self.rotated)
        first = start // self.rotated * self.rotated
        last = -(-stop // self.rotated) * self.rotated
        return self._contiguous(first, last)[wanted - first]

    def announce(self, start: int, stop: int) -> None:
        self.file.announce(self.stored.offset + start * self._row_bytes, (stop - start) * self._row_bytes)

    def _contiguous(self, start: int, stop: int) -> NDArray[np.uint8]:
        buffer = np.empty((stop - start, self._row_bytes), np.uint8)
        self.file.read_into(buffer, self.stored.offset + start * self._row_bytes)
        return buffer

    @property
    def _row_bytes(self) -> int:
        return ggml.row_bytes(self.stored.dtype, self.stored.shape[1] if len(self.stored.shape) > 1 else 1)


def _interleaved(rows: NDArray[np.int64], head_dim: int) -> NDArray[np.int64]:
    """Where ggml keeps Hugging Face's `rows`: row (head, half j, i) lies at (head, i, j) (llama.cpp,
    convert_hf_to_gguf, `permute`).
    """
    head, within = np.divmod(rows, head_dim)
    half, i = np.divmod(within, head_dim // 2)
    order: NDArray[np.int64] = head * head_dim + 2 * i + half
    return order


def _lazy(file: ReadableFile, stored: StoredTensor, architecture: LlamaArchitecture) -> GgufTensor:
    name = _hugging_face_name(stored.name)
    rotated = architecture.head_dim if name.endswith(("q_proj.weight", "k_proj.weight")) else None
    return GgufTensor(
        name=name,
        shape=stored.shape,
        dtype=stored.dtype,
        grid=ggml.GRIDS.get(stored.dtype),
        reader=_RowReader(file=file, stored=stored, rotated=rotated),
    )


def _hugging_face_name(name: str) -> str:
    """ggml's name translated; a name that is no Llama weight stays as it is, and is reported by `_check_against`."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    prefix, _, rest = name.partition(".")
    layer, _, weight = rest.partition(".")
    if prefix == "blk" and len(layer) < 6 and layer.isdecimal() and weight in _LAYER_NAMES:
        return f"model.layers.{int(layer)}.{_LAYER_NAMES[weight]}"
    return name


def _refuse_unreadable(file_name: str, header: Header) -> None:
    others = [tensor for tensor in header.tensors if tensor.dtype not in ggml.READABLE]
    if others:
        kinds = ", ".join(sorted({tensor.dtype for tensor in others}))
        raise UnusableInput(
            f"{file_name} stores {len(others)} tensors as {kinds}; EdgeForge reads {', '.join(ggml.READABLE)}",
            hint="take the model in one of those types, best the unquantized one (F16 or BF16)",
        )


def _check_depth(layers: int, stored: Mapping[str, StoredTensor], file_name: str) -> None:
    """Before names are compared one by one: a damaged count may promise billions of layers."""
    found = len({name.split(".")[1] for name in stored if name.startswith("blk.")})
    if found != layers:
        raise UnusableInput(
            f"{file_name} does not hold the model its metadata describes: llama.block_count = {layers},"
            f" and there are weights of {found} layers"
        )


def _check_against(architecture: LlamaArchitecture, tensors: Mapping[str, GgufTensor], file_name: str) -> None:
    """Every tensor the architecture asks for is there with its shape, and none besides; all faults in one sentence."""
    expected = dict(architecture.tensors())
    faults = [f"{name} is missing" for name in expected if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            faults.append(f"{name} is not a weight of a Llama decoder")
        elif tensor.shape != expected[name]:
            faults.append(f"{name} is {list(tensor.shape)} instead of {list(expected[name])}")
    if faults:
        more = f"; and {len(faults) - _MAX_LISTED} more" if len(faults) > _MAX_LISTED else ""
        raise UnusableInput(
            f"{file_name} does not hold the model its metadata describes: {'; '.join(faults[:_MAX_LISTED])}{more}"
        )


def _precision(architecture: LlamaArchitecture, tensors: Mapping[str, GgufTensor]) -> str:
    """The dtypes of the linears, commonest first: "Q4_K, Q6_K"."""
    counts = Counter(tensors[linear.name].dtype for linear in architecture.linears())
    return ", ".join(dtype for dtype, _ in counts.most_common())
