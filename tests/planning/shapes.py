"""Architectures for the planning tests: the three Llama 3.1, the two small real ones, and Hypothesis's."""

from dataclasses import replace

from hypothesis import strategies as st

from edgeforge.hardware import SCHEMES, Target, available_targets, load_target
from edgeforge.model.architecture import LlamaArchitecture, Rotary


def llama(
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int = 8,
    *,
    vocab: int = 128_256,
    tied: bool = False,
) -> LlamaArchitecture:
    return LlamaArchitecture(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=vocab,
        rms_norm_eps=1e-5,
        rotary=Rotary(theta=500_000.0),
        max_position_embeddings=131_072,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_ids=(2, 3),
    )


# Hidden, intermediate, layers, heads as in Llama 3.1's config.json files.
LLAMA_8B = llama(4096, 14336, 32, 32)
LLAMA_70B = llama(8192, 28672, 80, 64)
LLAMA_405B = llama(16384, 53248, 126, 128)
SMOLLM2 = llama(576, 1536, 30, 9, 3, vocab=49_152, tied=True)
STORIES = llama(64, 172, 5, 8, 4, vocab=512, tied=True)


@st.composite
def architectures(draw: st.DrawFn) -> LlamaArchitecture:
    """Decoders whose sizes divide by 16, as every published one's do."""
    kv_heads = draw(st.sampled_from([1, 2, 4, 8]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 4]))
    shape = llama(
        heads * draw(st.sampled_from([16, 32, 64, 128])),
        16 * draw(st.integers(1, 1000)),
        draw(st.integers(1, 80)),
        heads,
        kv_heads,
        vocab=draw(st.integers(16, 200_000)),
        tied=draw(st.booleans()),
    )
    return replace(shape, max_position_embeddings=draw(st.sampled_from([512, 8192, 131_072])))


ONNX = [target for target in map(load_target, available_targets()) if target.backend == "onnx"]


@st.composite
def targets(draw: st.DrawFn) -> Target:
    """ONNX targets: the backend with the most settings to vary."""
    target = draw(st.sampled_from(ONNX))
    integers = [name for name in ("w4a16", "w6a16", "w8a16") if target.profile.kind in SCHEMES[name].kinds]
    return replace(
        target,
        scheme=draw(st.sampled_from(integers)),
        lm_head=draw(st.sampled_from(["w4a16", "w8a16"])),
        embedding=draw(st.sampled_from(["w4a16", "w8a16"])),
        group_size=draw(st.sampled_from([16, 32, 64, 128, 256])),
        symmetric=draw(st.booleans()),
        context=draw(st.integers(1, 200_000)),
        batch=draw(st.integers(1, 64)),
    )
