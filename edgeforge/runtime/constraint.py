"""What an answer's form is, token by token: the seam between generation and whoever knows the form (`guidance`)."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Constraint(Protocol):
    """Which tokens may come next, given those accepted so far. It belongs to one generation."""

    def mask(self) -> NDArray[np.bool_]:
        """bool [V], True for the ids that may come next; end-of-text is one where the answer may end."""
        ...

    def accept(self, token: int) -> None:
        """`token` was chosen."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the answer is complete, so that nothing but end-of-text may follow."""
        ...
