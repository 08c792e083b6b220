"""A plan's weights in a handful of rows: what is stored how, and what it takes."""

from dataclasses import dataclass

from edgeforge.planning.memory import matrix_bytes
from edgeforge.planning.plan import BuildPlan
from edgeforge.planning.schemes import EMBEDDING, block_name, scale_copies
from edgeforge.quantization.scheme import QuantizationScheme


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRow:
    """All tensors of one role that share a scheme. `stored_bytes` is what they take in the weights file together."""

    role: str
    scheme: QuantizationScheme
    tensors: int
    parameters: int
    stored_bytes: int


def weight_rows(plan: BuildPlan) -> tuple[WeightRow, ...]:
    """Embedding first, then the linears by role in the order of use; roles of a layer with two schemes get two rows."""
    a = plan.architecture
    embedding_role = "embedding + lm_head" if a.tie_word_embeddings else "embedding"
    shapes = [(embedding_role, EMBEDDING, a.vocab_size, a.hidden_size)]
    shapes += [(linear.role, linear.name, linear.out_features, linear.in_features) for linear in a.linears()]
    rows: dict[tuple[str, QuantizationScheme], WeightRow] = {}
    for role, name, out_features, in_features in shapes:
        scheme = plan.schemes[name]
        copies = scale_copies(block_name(role), scheme, in_features, plan.target)
        before = rows.get((role, scheme))
        rows[role, scheme] = WeightRow(
            role=role,
            scheme=scheme,
            tensors=(before.tensors if before else 0) + 1,
            parameters=(before.parameters if before else 0) + out_features * in_features,
            stored_bytes=(before.stored_bytes if before else 0)
            + matrix_bytes(scheme, out_features, in_features, scale_copies=copies),
        )
    return tuple(rows.values())
