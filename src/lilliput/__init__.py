"""Lilliput: a trained PyTorch network in, one small, safe and fast file out, and a report of what it cost."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lilliput.core.budget import Budget
    from lilliput.core.cut import CutRule
    from lilliput.core.errors import LilliputError, LilliputWarning
    from lilliput.core.method import find, methods
    from lilliput.core.packed import Packed, unpack
    from lilliput.core.recipe import Recipe, Rule, presets
    from lilliput.file.artifact import Artifact
    from lilliput.graph.blocks import cut_blocks
    from lilliput.graph.narrow import cut
    from lilliput.run.load import load
    from lilliput.run.measure import bench
    from lilliput.search.plan import plan
    from lilliput.search.scan import sensitivity
    from lilliput.train.attach import advance, attach, detach, new_parameters
    from lilliput.train.compress import compress, pack
    from lilliput.train.fit import fit
    from lilliput.train.in_turn import in_turn
    from lilliput.train.lesson import Lesson
    from lilliput.train.penalty import penalty, shrink
    from lilliput.train.teacher import CachedLogits

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "Budget",
    "CachedLogits",
    "CutRule",
    "Lesson",
    "LilliputError",
    "LilliputWarning",
    "Packed",
    "Recipe",
    "Rule",
    "advance",
    "attach",
    "bench",
    "compress",
    "cut",
    "cut_blocks",
    "detach",
    "find",
    "fit",
    "in_turn",
    "load",
    "methods",
    "new_parameters",
    "pack",
    "penalty",
    "plan",
    "presets",
    "sensitivity",
    "shrink",
    "unpack",
]

# Where each name lives. Nothing is imported before it is used: `import lilliput` costs no torch.
_HOMES = {
    "Artifact": "file.artifact",
    "Budget": "core.budget",
    "CutRule": "core.cut",
    "CachedLogits": "train.teacher",
    "Lesson": "train.lesson",
    "LilliputError": "core.errors",
    "LilliputWarning": "core.errors",
    "Packed": "core.packed",
    "Recipe": "core.recipe",
    "Rule": "core.recipe",
    "advance": "train.attach",
    "attach": "train.attach",
    "bench": "run.measure",
    "compress": "train.compress",
    "cut": "graph.narrow",
    "cut_blocks": "graph.blocks",
    "detach": "train.attach",
    "find": "core.method",
    "fit": "train.fit",
    "in_turn": "train.in_turn",
    "load": "run.load",
    "methods": "core.method",
    "new_parameters": "train.attach",
    "pack": "train.compress",
    "penalty": "train.penalty",
    "plan": "search.plan",
    "presets": "core.recipe",
    "sensitivity": "search.scan",
    "shrink": "train.penalty",
    "unpack": "core.packed",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'lilliput' has no attribute '{name}'")
    return getattr(importlib.import_module(f"lilliput.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
