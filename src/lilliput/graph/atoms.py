"""Channel indices as atoms: which of them must go together, and which must stay and why."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Label = NDArray[np.int64]
"""One atom for each index along a dimension; atom 0 stands for an index that can't go."""

FIXED = 0
# More equations than any real network needs; beyond, what they join is kept whole.
_MOST_EDGES = 20_000_000


@dataclass
class Atoms:
    """Collects equations between atoms, and reasons to keep some; `solve` makes classes of them.

    Example:
        >>> atoms = Atoms()
        >>> one, two = atoms.new(3), atoms.new(3)
        >>> atoms.join(one, two[::-1].copy(), "add")
        >>> atoms.block(one[:1], "an output")
        >>> classes = atoms.solve()
        >>> bool(classes.root[one[1]] == classes.root[two[1]]), classes.why(int(two[2]))
        (True, 'an output')
    """

    count: int = 1
    reasons: list[str] = field(default_factory=list)
    _soft: list[tuple[int, int]] = field(default_factory=list)
    _edges: list[tuple[Label, Label]] = field(default_factory=list)
    _total: int = 0
    _blocks: list[tuple[Label, int]] = field(default_factory=list)
    _known: dict[str, int] = field(default_factory=dict)

    def new(self, size: int, soft: bool = False) -> Label:
        """Makes atoms.

        Args:
            size: how many.
            soft: of a dimension that any size would suit, as of zeros or of an expanded dimension.
        """
        label = np.arange(self.count, self.count + size)
        self.count += size
        if soft:
            self._soft.append((int(label[0]), self.count))
        return label

    def block(self, label: Label | None, reason: str) -> None:
        """Says that atoms, and all that are joined with them, must stay.

        Args:
            label: the atoms; None for none.
            reason: completes "kept whole because ...".
        """
        if label is None or not label.size:
            return
        place = self._known.setdefault(reason, len(self.reasons))
        if place == len(self.reasons):
            self.reasons.append(reason)
        self._blocks.append((label.ravel(), place))

    def join(self, one: Label, two: Label, reason: str) -> None:
        """Says that atoms go together, one by one; an atom joined with a fixed index is blocked.

        Args:
            one: atoms.
            two: as many.
            reason: why those must stay that meet a fixed index.
        """
        one, two = one.ravel(), two.ravel()
        free = (one != FIXED) & (two != FIXED)
        if not free.all():
            stuck = np.maximum(one, two)[~free]
            self.block(stuck[stuck != FIXED], reason)
            one, two = one[free], two[free]
        apart = one != two
        one, two = one[apart], two[apart]
        self._total += one.size
        if self._total > _MOST_EDGES:
            self.block(one, "the network is too entangled there")
            self.block(two, "the network is too entangled there")
        elif one.size:
            self._edges.append((one, two))

    def is_soft(self, label: Label) -> bool:
        """Whether a label's atoms are all soft ones.

        Args:
            label: the atoms.
        """
        first = int(label.flat[0])
        place = bisect_right(self._soft, (first, self.count)) - 1
        return place >= 0 and first < self._soft[place][1]

    def solve(self) -> Classes:
        """Returns the classes of atoms that go together."""
        root = np.arange(self.count)
        if self._edges:
            one = np.concatenate([edge[0] for edge in self._edges])
            two = np.concatenate([edge[1] for edge in self._edges])
            while True:
                here, there = root[one], root[two]
                least = np.minimum(here, there)
                following = root.copy()
                np.minimum.at(following, here, least)
                np.minimum.at(following, there, least)
                while not np.array_equal(following, following[following]):
                    following = following[following]
                if np.array_equal(following, root):
                    break
                root = following
        reason = np.full(self.count, len(self.reasons), np.int64)
        for label, place in self._blocks:
            np.minimum.at(reason, root[label], place)
        return Classes(root, reason[root], self.reasons)


@dataclass(frozen=True)
class Classes:
    """Atoms in classes that go together.

    Args:
        root: for each atom the one that stands for its class.
        reason: for each atom which of `reasons` keeps it; their number if none does.
        reasons: texts.
    """

    root: Label
    reason: Label
    reasons: Sequence[str]

    @property
    def stuck(self) -> NDArray[np.bool_]:
        """For each atom whether it must stay."""
        result: NDArray[np.bool_] = self.reason < len(self.reasons)
        result[FIXED] = True
        return result

    def first_reason(self, atoms: Label) -> str | None:
        """Returns why the first of some atoms that must stay must stay, None if all may go.

        Args:
            atoms: any.
        """
        places = self.reason[atoms]
        known = places[places < len(self.reasons)]
        return self.reasons[int(known[0])] if known.size else None

    def why(self, atom: int) -> str | None:
        """Returns why an atom must stay, None if it may go.

        Args:
            atom: any.
        """
        place = int(self.reason[atom])
        return self.reasons[place] if place < len(self.reasons) else None
