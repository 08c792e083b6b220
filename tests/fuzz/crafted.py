"""What chance hardly finds: small files that promise much, and long ones that a quadratic reader never finishes."""

import json
import struct
from collections.abc import Iterator

from readers import Reader

MANY = 50_000


def crafted(readers: dict[str, Reader]) -> Iterator[tuple[str, bytes]]:
    """(reader's name, input)."""
    config = json.loads(readers["config.json"].original)
    for layers in (2**31, 10**30):
        yield "config.json", json.dumps(config | {"num_hidden_layers": layers}).encode()
    yield "config.json", json.dumps(config | {"vocab_size": 2**62, "eos_token_id": list(range(MANY))}).encode()
    yield "plan", readers["plan"].original.replace(b'"num_hidden_layers": 1', b'"num_hidden_layers": 1000000000')
    keys = ", ".join(f'"k{number}": 1' for number in range(MANY))
    yield "safetensors", _header(f'{{{keys}, "k{MANY - 1}": 2}}')
    for dimensions in (1000, MANY):
        tensor = {"dtype": "F32", "shape": [2**62] * dimensions, "data_offsets": [0, 0]}
        yield "safetensors", _header(json.dumps({"a": tensor}))
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    yield "safetensors", _header(json.dumps({str(number): empty for number in range(MANY)}))
    names = [b"a%d" % number for number in range(MANY)]
    yield "gguf", _gguf([*names, names[-1]])
    yield "gguf", _gguf([b"blk." + b"9" * 5000 + b".attn_q.weight"])
    manifest = json.loads(readers["oci-manifest"].original)
    layer = manifest["layers"][0]
    titles = [{"org.opencontainers.image.title": f"a/{number}"} for number in range(MANY)]
    yield "oci-manifest", json.dumps({"layers": [layer | {"annotations": title} for title in titles]}).encode()
    yield "sums", b"".join(b"0" * 64 + b"  a/%d\n" % number for number in range(MANY))


def _header(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _gguf(names: list[bytes]) -> bytes:
    """A file of tensors without elements under these names."""
    tensors = [struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 0, 0, 0) for name in names]
    kind = b"general.architecture"
    text = struct.pack("<Q", len(kind)) + kind + struct.pack("<IQ", 8, 5) + b"llama"
    return b"GGUF" + struct.pack("<IQQ", 3, len(names), 1) + text + b"".join(tensors) + bytes(64)
