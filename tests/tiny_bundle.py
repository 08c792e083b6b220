"""A bundle small enough to make in a test: a random decoder of a few thousand weights behind the graph contract of the
runtime.

The graph is attention only (no MLP, no norms), so that its numpy twin `reference_logits` fits on a page. Also a bundle
without a graph, for engines that are not onnxruntime: its checkpoint is not one, since no test loads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edgeforge.bundle import assemble
from edgeforge.runtime.manifest import (
    Determinism,
    EngineName,
    EngineRecord,
    EngineState,
    GenerationRecord,
    ModelRecord,
    Requirements,
    SourceRecord,
)

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|im_start|>", "<|im_end|>")
SOURCE = SourceRecord(kind="directory", name=None, revision=None, precision="F32", fingerprint="sha256:00")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    layers: int = 2
    hidden: int = 32
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    vocab: int = 260
    context: int = 64
    dtype: type[np.float32] | type[np.float16] = np.float32


def weights(shape: Shape, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Every initializer, float32 [in, out]."""
    random = np.random.default_rng(seed)
    qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    sizes = {"embed": (shape.vocab, shape.hidden), "head": (shape.hidden, shape.vocab)}
    for layer in range(shape.layers):
        sizes |= {f"qkv{layer}": (shape.hidden, qkv), f"o{layer}": (shape.heads * shape.head_dim, shape.hidden)}
    # Large enough that the next token depends on all tokens before, and that ties do not happen.
    return {name: (random.standard_normal(size) * 0.3).astype(np.float32) for name, size in sizes.items()}


def rotary(shape: Shape) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    inverse = 1e4 ** (-np.arange(shape.head_dim // 2) * 2 / shape.head_dim)
    angles = np.arange(shape.context)[:, None] * inverse
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def reference_logits(shape: Shape, ids: list[int], seed: int = 0) -> NDArray[np.float32]:
    """float32 [T, V]: the same decoder in numpy, without a cache."""
    w = weights(shape, seed)
    cos, sin = (table[: len(ids), None] for table in rotary(shape))

    def rotate(x: NDArray[np.float32]) -> NDArray[np.float32]:  # [T, heads, head_dim]
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)

    x = w["embed"][ids]
    mask = np.triu(np.full((len(ids), len(ids)), -np.inf, np.float32), 1)
    for layer in range(shape.layers):
        qkv = (x @ w[f"qkv{layer}"]).reshape(len(ids), -1, shape.head_dim)
        q, k, v = np.split(qkv, [shape.heads, shape.heads + shape.kv_heads], axis=1)
        k, v = (np.repeat(part, shape.heads // shape.kv_heads, axis=1) for part in (rotate(k), v))
        scores = np.einsum("qhd,khd->hqk", rotate(q), k) / np.sqrt(shape.head_dim) + mask
        p = np.exp(scores - scores.max(-1, keepdims=True))
        attention = np.einsum("hqk,khd->qhd", p / p.sum(-1, keepdims=True), v)
        x = x + attention.reshape(len(ids), -1) @ w[f"o{layer}"]
    return x @ w["head"]


def graph(shape: Shape, *, rows: Literal["last", "all", "asked"], seed: int = 0) -> onnx.ModelProto:
    """The decoder as ONNX, with logits of the last token, of all, or of as many as logits_from asks for."""
    kind = TensorProto.FLOAT if shape.dtype is np.float32 else TensorProto.FLOAT16
    cos, sin = rotary(shape)
    arrays = {
        name: array.astype(shape.dtype) for name, array in (weights(shape, seed) | {"cos": cos, "sin": sin}).items()
    }
    arrays |= {"one": np.array([1], np.int64), "one32": np.array([1], np.int32), "index1": np.array(1, np.int64)}
    arrays |= {"minus1": np.array([-1], np.int64), "end": np.array([2**31], np.int64)}
    nodes = [
        helper.make_node("ReduceSum", ["attention_mask", "one"], ["length"], keepdims=1),
        helper.make_node("Cast", ["length"], ["length32"], to=TensorProto.INT32),
        helper.make_node("Sub", ["length32", "one32"], ["seqlens_k"]),
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Gather", ["mask_shape", "index1"], ["total64"]),
        helper.make_node("Cast", ["total64"], ["total"], to=TensorProto.INT32),
        helper.make_node("Gather", ["embed", "input_ids"], ["x0"]),
    ]
    caches = []
    for i in range(shape.layers):
        past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        caches += past
        nodes += [
            helper.make_node("MatMul", [f"x{i}", f"qkv{i}"], [f"q{i}"]),
            helper.make_node(
                "GroupQueryAttention",
                [f"q{i}", "", "", *past, "seqlens_k", "total", "cos", "sin"],
                [f"a{i}", *(name.replace("past_key_values", "present") for name in past)],
                domain="com.microsoft",
                num_heads=shape.heads,
                kv_num_heads=shape.kv_heads,
                do_rotary=1,
            ),
            helper.make_node("MatMul", [f"a{i}", f"o{i}"], [f"y{i}"]),
            helper.make_node("Add", [f"x{i}", f"y{i}"], [f"x{i + 1}"]),
        ]
    last = f"x{shape.layers}"
    if rows != "all":
        start = "minus1" if rows == "last" else "logits_from"
        nodes.append(helper.make_node("Slice", [last, start, "end", "one"], ["last"]))
        last = "last"
    nodes.append(helper.make_node("MatMul", [last, "head"], ["logits"]))
    cache_shape = ["B", shape.kv_heads, "S", shape.head_dim]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["B", name]) for name in ("input_ids", "attention_mask")
    ]
    if rows == "asked":
        inputs.append(helper.make_tensor_value_info("logits_from", TensorProto.INT64, [1]))
    outputs = [helper.make_tensor_value_info("logits", kind, ["B", 1 if rows == "last" else "T", shape.vocab])]
    inputs += [helper.make_tensor_value_info(name, kind, cache_shape) for name in caches]
    outputs += [
        helper.make_tensor_value_info(name.replace("past_key_values", "present"), kind, cache_shape) for name in caches
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    body = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    return helper.make_model(body, opset_imports=opsets, ir_version=10)


def byte_tokenizer(vocab: int = 260) -> Tokenizer:
    """Byte-level BPE without merges (one token per byte), then the two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def make_bundle(
    folder: Path,
    shape: Shape = Shape(),
    *,
    seed: int = 0,
    eos: tuple[int, ...] = (257,),
    generation: GenerationRecord = GenerationRecord(),  # noqa: B008  (frozen)
    chat: bool = True,
    runtime_graph: bool = True,
    provider: str = "CPUExecutionProvider",
    source: SourceRecord = SOURCE,
    notices: Mapping[str, bytes] = MappingProxyType({}),
    target: Mapping[str, object] = MappingProxyType({"name": "cpu"}),
    plan: Mapping[str, object] = MappingProxyType({"stages": ["quantize"]}),
) -> Path:
    """A sealed bundle with graphs in `folder`, which is made."""
    model = folder / "model"
    model.mkdir(parents=True)
    onnx.save_model(
        graph(shape, rows="last", seed=seed),
        model / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=256,
    )
    (model / "scoring.onnx").write_bytes(graph(shape, rows="all", seed=seed).SerializeToString())
    write_tokenizer(model, chat=chat)
    record = model_record(
        shape, backend="onnx", graphs=True, weights="model/model.onnx.data", eos=eos, generation=generation, chat=chat
    )
    if runtime_graph:
        (model / "runtime.onnx").write_bytes(graph(shape, rows="asked", seed=seed).SerializeToString())
        record = replace(record, runtime_graph="model/runtime.onnx")
    assemble(
        folder,
        target=dict(target),
        profile={"name": "generic"},
        plan=dict(plan),
        source=source,
        model=record,
        requirements=Requirements(packages={"onnxruntime": ">=1.23", "numpy": ">=1.26"}, provider=provider),
        determinism=Determinism(reproducible=True, note="same inputs, same bytes"),
        notices=notices,
    )
    return folder


def make_engine_bundle(
    folder: Path,
    *,
    backend: str = "modelopt",
    scheme: str = "fp8",
    engine: EngineName = "tensorrt-llm",
    state: EngineState = "ready",
    tensor_parallel: int = 1,
    compute_capability: str | None = None,
    script: str | None = None,
    versions: Mapping[str, str] = MappingProxyType({}),
    packages: Mapping[str, str] = MappingProxyType({}),
    eos: tuple[int, ...] = (257,),
    generation: GenerationRecord = GenerationRecord(),  # noqa: B008  (frozen)
) -> Path:
    """A sealed bundle without a graph in `folder`, which is made; its weights are two bytes."""
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}\n")
    if backend == "trtllm-engine" and state == "ready":
        (model / "engine").mkdir()
        (model / "engine" / "rank0.engine").write_bytes(b"00")
    (model / "model.safetensors").write_bytes(b"00")
    if script is not None:
        (folder / script).write_text("#!/bin/sh\n")
    write_tokenizer(model, chat=True)
    assemble(
        folder,
        target={"name": "h100", "scheme": scheme},
        profile={"name": "h100"},
        plan={},
        source=SOURCE,
        model=model_record(
            Shape(),
            backend=backend,
            graphs=False,
            weights="model/model.safetensors",
            eos=eos,
            generation=generation,
            chat=True,
        ),
        requirements=Requirements(packages={"numpy": ">=1.26", **packages}, provider=None),
        engine=EngineRecord(
            name=engine,
            tensor_parallel=tensor_parallel,
            pipeline_parallel=1,
            compute_capability=compute_capability,
            state=state,
            script=script,
            versions=dict(versions),
        ),
        determinism=Determinism(reproducible=True, note="same inputs, same bytes"),
        notices={},
    )
    return folder


def write_tokenizer(model: Path, *, chat: bool) -> None:
    byte_tokenizer().save(str(model / "tokenizer.json"))
    if chat:
        (model / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def model_record(
    shape: Shape,
    *,
    backend: str,
    graphs: bool,
    weights: str,
    eos: tuple[int, ...],
    generation: GenerationRecord,
    chat: bool,
) -> ModelRecord:
    """What a tiny bundle's manifest says of model/."""
    return ModelRecord(
        backend=backend,
        graph="model/model.onnx" if graphs else None,
        scoring_graph="model/scoring.onnx" if graphs else None,
        weights=weights,
        activations="f32",
        kv_cache="f32",
        context_length=shape.context,
        vocab_size=shape.vocab,
        num_hidden_layers=shape.layers,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        bos_token_id=None,
        eos_token_ids=eos,
        tokenizer="model/tokenizer.json",
        chat_template="model/chat_template.jinja" if chat else None,
        bos_token=None,
        eos_token="<|im_end|>",
        add_bos=False,
        generation=generation,
    )
