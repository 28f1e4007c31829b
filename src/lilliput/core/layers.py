"""The one table of layer kinds: which parameters of a model are weights, whose they are, and what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

QUANTIZER = "input_quantizer"
"""Name under which a layer holds the quantizer of what goes into it; its numbers are no weights of the model."""

OUTPUT = "output_quantizer"
"""Name under which a layer, or the BatchNorm behind it, holds the quantizer of what comes out."""

# Which parameters of a module are of which kind: (module class, prefix of the parameter's name, kind).
# Anything with two or more axes that isn't listed is a "matrix"; anything with fewer is a "vector".
TABLE: tuple[tuple[type[nn.Module], str, str], ...] = (
    (nn.Linear, "weight", "linear"),
    (nn.Bilinear, "weight", "linear"),
    (nn.Conv1d, "weight", "conv1d"),
    (nn.Conv2d, "weight", "conv2d"),
    (nn.Conv3d, "weight", "conv3d"),
    (nn.ConvTranspose1d, "weight", "conv_transpose1d"),
    (nn.ConvTranspose2d, "weight", "conv_transpose2d"),
    (nn.ConvTranspose3d, "weight", "conv_transpose3d"),
    (nn.Embedding, "weight", "embedding"),
    (nn.EmbeddingBag, "weight", "embedding"),
    (nn.MultiheadAttention, "", "attention"),
    (nn.RNNBase, "weight", "recurrent"),
    (nn.RNNCellBase, "weight", "recurrent"),
)


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter of a model, once, however many modules share it.

    Attributes:
        name: its first name in `model.named_parameters()`, without what a parametrization adds.
        kind: `linear`, `conv2d`, `embedding`, ... (see `TABLE`), `matrix` or `vector`.
        owners: every (module path, attribute) that holds it; more than one if it is tied.
        parameter: the parameter itself.
        ends: `first` if it is the model's first weight that is no vector, in the order of its parameters, `last` if
            it is the last.
    """

    name: str
    kind: str
    owners: tuple[tuple[str, str], ...]
    parameter: nn.Parameter
    ends: frozenset[str] = frozenset()

    @property
    def aliases(self) -> tuple[str, ...]:
        """All its names but the first."""
        return tuple(join(*owner) for owner in self.owners[1:])


def join(path: str, attribute: str) -> str:
    """Returns `path.attribute`, or the attribute alone for the model itself."""
    return f"{path}.{attribute}" if path else attribute


def kind_of_parameter(module: nn.Module, attribute: str, parameter: nn.Parameter) -> str:
    """Returns the kind of one parameter of one module."""
    if parameter.ndim < 2:
        return "vector"
    for cls, prefix, kind in TABLE:
        if isinstance(module, cls) and attribute.startswith(prefix):
            return kind
    return "matrix"


def weights(model: nn.Module) -> list[Weight]:
    """Lists all parameters of a model, tied ones once, in the order of `named_parameters`.

    A parameter behind a parametrization bears the name that it has without it.

    >>> [(w.name, w.kind) for w in weights(nn.Linear(2, 3))]
    [('weight', 'linear'), ('bias', 'vector')]
    """
    owners: dict[int, list[tuple[str, str]]] = {}
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if not {"parametrizations", QUANTIZER, OUTPUT}.isdisjoint(path.split(".")):
            continue
        for attribute, parameter in _own_parameters(module):
            key = id(parameter)
            owners.setdefault(key, [])
            if (path, attribute) not in owners[key]:
                owners[key].append((path, attribute))
            found.setdefault(key, (kind_of_parameter(module, attribute, parameter), parameter))
    return _with_ends(
        [Weight(join(*owners[key][0]), kind, tuple(owners[key]), parameter) for key, (kind, parameter) in found.items()]
    )


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns all parameters and buffers of a model by name, themselves."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def ends_of(kinds: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Returns which weight is the first and which the last of the model, vectors and buffers not counted.

    Args:
        kinds: of the weights by name, in the order of the model.

    >>> ends_of({"a": "conv2d", "b": "vector", "c": "linear"})["c"]
    frozenset({'last'})
    """
    own = [name for name, kind in kinds.items() if kind not in {"vector", "buffer"}]
    found: dict[str, frozenset[str]] = {}
    for name, end in ((own[0], "first"), (own[-1], "last")) if own else ():
        found[name] = found.get(name, frozenset()) | {end}
    return found


def _with_ends(found: list[Weight]) -> list[Weight]:
    ends = ends_of({weight.name: weight.kind for weight in found})
    return [replace(weight, ends=ends[weight.name]) if weight.name in ends else weight for weight in found]


def _own_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """A module's own parameters, those behind a parametrization by the name that they have without it.

    The order is that of the plain module as far as it is known: parametrized ones come last.
    """
    own = [(name, p) for name, p in module._parameters.items() if p is not None]
    hidden = getattr(module, "parametrizations", None)
    if isinstance(hidden, nn.ModuleDict):
        own += [
            (name, original)
            for name, parametrization in hidden.items()
            if isinstance(original := getattr(parametrization, "original", None), nn.Parameter)
        ]
    return own
