"""What a whole file costs: the network traced once, its weights packed by any recipe, written to memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lilliput.core.layers import Weight, weights
from lilliput.core.packed import Packed
from lilliput.core.recipe import Recipe
from lilliput.file import write
from lilliput.file.artifact import Artifact
from lilliput.run.load import fill
from lilliput.train.attach import plain_copy
from lilliput.train.compress import Draft as Making
from lilliput.train.compress import compress, relative_errors


@dataclass(frozen=True, eq=False)
class Frame:
    """A network as `compress` will see it, BatchNorm folded, and everything in its file but the packed weights.

    Attributes:
        model: a copy of the user's model with the folded weights, in eval mode.
        empty: what an empty recipe makes of it: graph, constants and facts.
        example: one input, or None.
    """

    model: nn.Module
    empty: Artifact
    example: Any = None

    @classmethod
    def of(cls, model: nn.Module, example: Any = None) -> Frame:
        """Traces and folds once, as `compress` does.

        Args:
            model: the user's; it is not changed.
            example: one input, or None: the file then holds no graph, and no BatchNorm is folded.
        """
        # Dead channels go once the weights are packed: which are dead depends on the recipe.
        empty = compress(model, Recipe(), example=example, remove_dead=False)
        return cls(fill(plain_copy(model), empty).requires_grad_(False), empty, example)

    @property
    def weights(self) -> list[Weight]:
        """All parameters, with the values that will be packed."""
        return weights(self.model)

    @property
    def original(self) -> int:
        """Bytes of the uncompressed parameters and buffers."""
        return int(self.empty.facts["original"])

    def artifact(self, recipe: Recipe, packed: Mapping[str, Packed | Tensor]) -> Artifact:
        """Returns what `compress` makes by a recipe, dead channels still in it: nothing is traced for that.

        Args:
            recipe: what was done.
            packed: the weights that it packs.
        """
        facts = {**self.empty.facts, "error": relative_errors(self.weights, {**self.empty.weights, **packed})}
        return replace(self.empty, weights={**self.empty.weights, **packed}, recipe=recipe, facts=facts)

    def finished(self, artifact: Artifact) -> Artifact:
        """Returns exactly what `compress` makes by the recipe of an artifact of this frame: traced anew, and cut."""
        facts = {key: value for key, value in artifact.facts.items() if key not in {"error", "notes"}}
        notes = {key: text for key, text in artifact.facts.get("notes", {}).items() if key != "graph"}
        work = plain_copy(self.model)
        making = Making(work, artifact.recipe, dict(artifact.weights), facts, notes, artifact.quantizers)
        return making.finished(self.example, remove_dead=True)

    def compressed(self, artifact: Artifact) -> nn.Module:
        """Returns a copy of the user's model that holds an artifact's weights, cut where the artifact is."""
        return fill(plain_copy(self.model), artifact)


def file_bytes(artifact: Artifact) -> int:
    """Returns the bytes of the whole file, which is written to memory for it."""
    return write.size(artifact)
