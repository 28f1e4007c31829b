"""Singular values of the layer's outputs rather than of its weight: the best two factors for the inputs at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.core.stats import needed
from lilliput.factorize.rank import RULES, TOGETHER, check_rule, check_smaller, precise, rank_by, shared_ranks
from lilliput.factorize.svd import Svd, as_matrix, packed_factors

NAME = "factorize/whitened"


@dataclass(frozen=True)
class Whitened(WeightMethod):
    """min |(W - U V) X|_F over all U V of rank r: W' = P P^T W, P the first r left singular vectors of W X.

    Those are the first r eigenvectors of W C W^T with C = X X^T, and the squared error is the sum of its other
    eigenvalues. Where C = L L^T can be inverted, this is the truncated SVD of W L times L^-1 (Wang et al. 2024,
    "SVD-LLM", arXiv 2403.07378); this form needs no inverse. It is also the PCA of the responses (Zhang, Zou, He
    and Sun 2015, arXiv 1505.06798), without their means. Inputs as likely in every direction give the plain SVD.

    The packed form is that of `factorize/svd`.

    Attributes:
        rank: of the factors; 0 to go by `rule`.
        energy: part of the squared outputs to be kept, 0 < energy <= 1.
        force: factorize even where the factors hold more numbers than the weight.
        rule: `"energy"`, `"ratio"`, `"evbmf"` or `"budget"`, as in `factorize/svd`, on the singular values of W X.
        ratio: the part of the numbers to be kept, 0 < ratio <= 1.

    >>> from lilliput.core.stats import Stats
    >>> from lilliput.observe.inputs import Gram
    >>> stats = Stats({"gram": Gram(torch.diag(torch.tensor([1.0, 1, 100]))[None], 1)})
    >>> packed = Whitened(rank=1, force=True).pack(torch.tensor([[3.0, 0, 0], [0, 0, 1]]), stats)
    >>> Svd.unpack(packed).abs().round(decimals=5)
    tensor([[0., 0., 0.],
            [0., 0., 1.]])
    """

    rank: int = 0
    energy: float = 0.99
    force: bool = False
    rule: Literal["energy", "ratio", "evbmf", "budget"] = "energy"
    ratio: float = 0.5

    into = ("u", "v")
    training = "parts"
    trained = ("u", "v")
    needs = frozenset({"gram"})

    def __post_init__(self) -> None:
        check_range(NAME, "rank", self.rank, 0, 2**31)
        check_range(NAME, "energy", self.energy, 1e-6, 1)
        check_range(NAME, "ratio", self.ratio, 1e-6, 1)
        check_rule(NAME, self.rule, (*RULES, TOGETHER))

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to `u` (m x r) and `v` (r x n), balanced, in the weight's dtype.

        Raises:
            NotWorthwhile: if the factors would hold more numbers than the weight.
            MethodError: if there are no inputs' Gram matrices, they are of several groups, or the weight isn't finite.
        """
        check_weight(weight, NAME)
        matrix, scale, roots, vectors = _outputs(weight, stats)
        most, columns = len(roots), matrix.shape[1]
        shape = (matrix.shape[0], columns)
        rank = min(self.rank, most) if self.rank else rank_by(self.rule, roots, shape, self.energy, self.ratio)
        check_smaller(NAME, rank * sum(shape), weight, f"rank {rank} of a {shape[0]} x {shape[1]} matrix", self.force)
        basis = vectors.flip(1)[:, :rank]
        left, own, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        root = (own * scale).sqrt()
        return packed_factors(weight, basis @ left * root, root[:, None] * right, "out")

    @property
    def together(self) -> bool:
        """Whether one weight's rank depends on the others'."""
        return self.rule == TOGETHER and not self.rank

    def allot(self, weights: Mapping[str, Tensor], stats: Mapping[str, Any]) -> dict[str, WeightMethod]:
        """Chooses the ranks of all weights at once."""
        spectra = {}
        for name, weight in weights.items():
            matrix, _, roots, _ = _outputs(weight.detach(), stats.get(name))
            spectra[name] = roots, (matrix.shape[0], matrix.shape[1])
        ranks = shared_ranks(NAME, spectra, self.ratio)
        return {name: replace(self, rank=rank, force=False) for name, rank in ranks.items()}

    unpack = staticmethod(Svd.unpack)
    take = staticmethod(Svd.take)
    layers = staticmethod(Svd.layers)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """Energies of the outputs from 90 % to 99.9 %."""
        return tuple(cls(energy=energy) for energy in (0.9, 0.99, 0.999))


def _outputs(weight: Tensor, stats: object) -> tuple[Tensor, float, Tensor, Tensor]:
    """W scaled to a largest entry of 1, the scale, the singular values of W X and its left singular vectors' matrix.

    The vectors are ascending, as `eigh` gives them; the values descend.
    """
    if weight.ndim < 2:
        raise MethodError(f"{NAME}: needs a weight of two or more axes, not of shape {tuple(weight.shape)}")
    gram = needed(stats, "gram", NAME).matrix
    matrix = precise(as_matrix(weight, "out"))
    columns = matrix.shape[1]
    if tuple(gram.shape) != (1, columns, columns):
        raise MethodError(
            f"{NAME}: Gram matrices of shape {tuple(gram.shape)}, where a weight {tuple(weight.shape)} in one "
            f"group needs (1, {columns}, {columns}); use factorize/svd for grouped convolutions"
        )
    scale = float(matrix.abs().max()) or 1.0
    matrix = matrix / scale
    outputs = matrix @ gram[0].to(matrix) @ matrix.T
    values, vectors = torch.linalg.eigh((outputs + outputs.T) / 2)
    return matrix, scale, values.flip(0).clamp(min=0).sqrt()[: min(matrix.shape)], vectors
