"""How many bytes a deployed model takes, on the disk and in memory, from shapes alone.

A matrix is [rows, columns] = [out_features, in_features]; each row has `groups` groups that share a scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from edgeforge.hardware import Target
from edgeforge.model.architecture import LlamaArchitecture
from edgeforge.planning.schemes import EMBEDDING, block_name, fused_blocks, scale_copies
from edgeforge.quantization.scheme import HIGH_BITS, LOW_BITS, SPLIT_BITS, QuantizationScheme

MIB = 1024 * 1024
FLOAT_BYTES: Mapping[str, int] = {"f32": 4, "f16": 2, "bf16": 2}
KV_BYTES: Mapping[str, int] = {**FLOAT_BYTES, "fp8": 1, "int8": 1}

# Prompts are read in pieces of at most this many tokens, so activations do not grow with the context beyond it.
PREFILL_TOKENS = 512
# All sequences together: TensorRT-LLM's and vLLM's default (max_num_tokens of tensorrt_llm.LLM, vLLM's
# max_num_batched_tokens).
SERVER_PREFILL_TOKENS = 8192

# Resident memory of Python 3.11 with numpy, onnxruntime 1.32, tokenizers and jinja2 imported and one session open:
# 67 MB measured after the imports, the rest for the session's threads and graph.
PROCESS_BYTES = 80 * MIB
# Reading Llama 3's tokenizer.json (128,256 entries) took 92 MB at its peak, measured with tokenizers 0.22.
TOKENIZER_BYTES_PER_ENTRY = 750
# llama.cpp keeps this much of a card free (common/common.h, fit_params_target). It has to cover the CUDA context (426
# MiB on an RTX 6000 Ada, github unslothai/unsloth-zoo pull 1053; 555 MiB on an RTX PRO 6000, ggml-org/llama.cpp pull
# 23604), cuBLAS's workspace (32 MiB on Hopper, cuBLAS documentation) and the allocator's rounding.
CUDA_BYTES = 1024 * MIB
# onnxruntime's CPU MatMulNBits keeps, beside codes and scales, a packed copy of the scales and the sums of each group,
# in float32 (measured on 1.32: 28,672 x 4,096 takes 100 MB at group 32, 68 MB at 128; the file holds 70 and 60 MB).
CPU_EXTRA_BYTES_PER_GROUP = 8
# For more than one token, onnxruntime's CUDA MatMulNBits dequantizes the whole matrix to a scratch buffer; past 256 MiB
# and 65,536 rows it does so in pieces of 32,768 rows (contrib_ops/cuda/quantization/matmul_nbits.cc).
CUDA_SCRATCH_LIMIT_BYTES = 256 * MIB
CUDA_SCRATCH_ROWS = 32_768

# Bundle files beside the weights. Llama 3's tokenizer.json is 9.1 MB for 128,256 entries.
TOKENIZER_FILE_BYTES_PER_ENTRY = 72
GRAPH_FILE_BYTES_PER_LAYER = 21 * 1024  # three graphs, measured on a bundle of 30 layers
BUNDLE_FILE_BYTES = 256 * 1024  # runtime, manifest, licence, checksums


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudget:
    """What one card (or machine) must hold at the same time, against what it has for it. All in bytes."""

    weights_bytes: int
    kv_cache_bytes: int
    activations_bytes: int
    overhead_bytes: int
    available_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.activations_bytes + self.overhead_bytes

    @property
    def free_bytes(self) -> int:
        """What is left; negative where the model does not fit."""
        return self.available_bytes - self.total_bytes

    @property
    def fits(self) -> bool:
        return self.free_bytes >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBytes:
    """The weights file by what its parts are for. All in bytes."""

    embedding: int
    linears: int  # with an untied output head
    others: int  # norms, rotary tables
    cpu_extra: int  # what the CPU kernels add when they pack the matrices

    @property
    def file(self) -> int:
        return self.embedding + self.linears + self.others


def matrix_bytes(scheme: QuantizationScheme, rows: int, columns: int, *, scale_copies: int = 1) -> int:
    """One [rows, columns] matrix as a backend stores it, with its scales and offsets."""
    if scheme.is_float:
        return rows * columns * scheme.bits // 8
    if scheme.granularity == "tensor":
        return rows * columns * scheme.bits // 8 + 8  # the weight's scale and the input's
    groups = scheme.groups(columns)
    codes = rows * groups * (scheme.group_size or columns) * scheme.bits // 8
    if scheme.code_format == "e2m1":
        return codes + rows * groups + 8  # e4m3 scales, their own scale and the input's
    width = FLOAT_BYTES[scheme.scale_dtype]
    scales = rows * groups * scale_copies * width
    if scheme.offset:
        return codes + scales + rows * groups * width
    widths: tuple[int, ...] = () if scheme.symmetric else (scheme.bits,)
    if scheme.bits == SPLIT_BITS:  # the zero points of the low bits are there even where they say nothing
        widths = (LOW_BITS,) if scheme.symmetric else (HIGH_BITS, LOW_BITS)
    zero_points = rows * sum(-(-groups * scale_copies * bits // 8) for bits in widths)
    return codes + scales + zero_points


def weight_bytes(
    architecture: LlamaArchitecture, target: Target, schemes: Mapping[str, QuantizationScheme]
) -> WeightBytes:
    """Bytes of every stored weight under `schemes`; a tied head is stored once, as the embedding."""
    a, width = architecture, FLOAT_BYTES[target.activations]
    embedding = matrix_bytes(schemes[EMBEDDING], a.vocab_size, a.hidden_size)
    groups = schemes[EMBEDDING].groups(a.hidden_size) * a.vocab_size if a.tie_word_embeddings else 0
    linears = 0
    for linear in a.linears():
        scheme = schemes[linear.name]
        rows, columns = linear.out_features, linear.in_features
        copies = scale_copies(block_name(linear.role), scheme, columns, target)
        linears += matrix_bytes(scheme, rows, columns, scale_copies=copies)
        groups += scheme.groups(columns) * copies * rows * (2 if scheme.bits == SPLIT_BITS else 1)
    norms = (2 * a.num_hidden_layers + 1) * a.hidden_size
    rotary_tables = 2 * target.context * (a.head_dim // 2) if target.engine == "onnxruntime" else 0
    return WeightBytes(
        embedding=embedding,
        linears=linears,
        others=(norms + rotary_tables) * width,
        cpu_extra=groups * CPU_EXTRA_BYTES_PER_GROUP if target.profile.kind == "cpu" else 0,
    )


def kv_cache_bytes(architecture: LlamaArchitecture, target: Target, tokens: int) -> int:
    """Keys and values of `tokens` tokens of one sequence, on one card (which holds at least one KV head)."""
    heads = -(-architecture.num_key_value_heads // target.tensor_parallel)
    layers = -(-architecture.num_hidden_layers // target.pipeline_parallel)
    return 2 * layers * heads * architecture.head_dim * tokens * KV_BYTES[target.kv_cache]


def activations_bytes(
    architecture: LlamaArchitecture, target: Target, schemes: Mapping[str, QuantizationScheme]
) -> int:
    """The most that flows between linears at one moment while a piece of the prompt is read, and one row of logits.

    Attention scores take none: both providers compute them in tiles (CPU: measured on onnxruntime 1.32).
    """
    a = architecture
    if target.engine == "onnxruntime":
        tokens = target.batch * min(PREFILL_TOKENS, target.context)
    else:
        tokens = min(SERVER_PREFILL_TOKENS, target.batch * target.context)
    query, key_value = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    attention = 2 * a.hidden_size + 2 * query + 2 * key_value
    mlp = 2 * a.hidden_size + 5 * a.intermediate_size  # gate and up fused, then split, then the product
    width = FLOAT_BYTES[target.activations]
    flowing = (max(attention, mlp) * tokens + a.vocab_size * target.batch) * width
    return flowing + _cuda_scratch_bytes(a, target, schemes)


def overhead_bytes(architecture: LlamaArchitecture, target: Target) -> int:
    """What the runtime takes before any weight: the process, the tokenizer, the CUDA context."""
    process = PROCESS_BYTES + architecture.vocab_size * TOKENIZER_BYTES_PER_ENTRY
    return {"cpu": process, "gpu": CUDA_BYTES, "soc": process + CUDA_BYTES}[target.profile.kind]


def budget(
    architecture: LlamaArchitecture, target: Target, schemes: Mapping[str, QuantizationScheme], weights: WeightBytes
) -> MemoryBudget:
    """Per card: matrices are split over all cards, norms and the runtime are on each."""
    cards = target.tensor_parallel
    split = -(-(weights.embedding + weights.linears + weights.cpu_extra) // target.cards)
    return MemoryBudget(
        weights_bytes=split + weights.others,
        kv_cache_bytes=target.batch * kv_cache_bytes(architecture, target, target.context),
        activations_bytes=-(-activations_bytes(architecture, target, schemes) // cards),
        overhead_bytes=overhead_bytes(architecture, target),
        available_bytes=target.profile.available_bytes,
    )


def bundle_bytes(architecture: LlamaArchitecture, weights: WeightBytes) -> int:
    """The whole bundle on the disk: the weights to the byte, the small files about right."""
    tokenizer = architecture.vocab_size * TOKENIZER_FILE_BYTES_PER_ENTRY
    graphs = architecture.num_hidden_layers * GRAPH_FILE_BYTES_PER_LAYER
    return weights.file + tokenizer + graphs + BUNDLE_FILE_BYTES


def _cuda_scratch_bytes(
    architecture: LlamaArchitecture, target: Target, schemes: Mapping[str, QuantizationScheme]
) -> int:
    if target.profile.kind == "cpu" or target.engine != "onnxruntime":
        return 0
    width = FLOAT_BYTES[target.activations]
    largest = 0
    for block in fused_blocks(architecture):
        last = block[-1]
        if not schemes[last.name].is_float and (last.role != "lm_head" or target.batch > 1):
            rows = sum(linear.out_features for linear in block)
            largest = max(largest, _scratch(rows, last.in_features, width))
    if architecture.tie_word_embeddings and target.batch > 1 and not schemes[EMBEDDING].is_float:
        largest = max(largest, _scratch(architecture.vocab_size, architecture.hidden_size, width))
    return largest


def _scratch(rows: int, columns: int, width: int) -> int:
    in_pieces = rows * columns * width > CUDA_SCRATCH_LIMIT_BYTES and rows > 2 * CUDA_SCRATCH_ROWS
    return (CUDA_SCRATCH_ROWS if in_pieces else rows) * columns * width
