"""The contracts of the kinds of method, and finding a method by the name of its file."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from lilliput.core.errors import MethodError, NotInstalled, NotWorthwhile

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lilliput.core.packed import Packed

# The folders that hold methods. A folder is a family; a file in it is a method. New families are new rooms of the
# house, new methods only new files.
FAMILIES = (
    "prune",
    "quantize",
    "quantize/activations",
    "quantize/solvers",
    "quantize/passes",
    "share",
    "factorize",
    "distill",
    "nets",
    "train/gradients",
    "train/low_precision",
    "graph",
    "coding",
    "convolution",
    "run",
)

NAME = re.compile("[a-z][a-z0-9_]{0,63}")
"""What a method may be called."""

# A kind is known by what its methods can do; the first that fits counts.
KINDS: dict[str, tuple[str, ...]] = {
    "criterion": ("score", "pack", "unpack"),
    "weight method": ("pack", "unpack"),
    "constant": ("make", "unpack"),
    "pattern": ("select",),
    "schedule": ("advance",),
    "penalty": ("penalty",),
    "activation quantizer": ("observe", "forward"),
    "loss": ("loss",),
    "feature loss": ("between",),
    "gradient hook": ("hook",),
    "gradient rule": ("sparsify",),
    "precision": ("value", "error", "slope", "weight"),
    "graph pass": ("rewrite",),
    "coding": ("encode", "decode"),
    "convolution": ("prepare", "run", "cost"),
    "range solver": ("span",),
    "rounding solver": ("settle",),
    "engine": ("load",),
    "network": ("build",),
}


class WeightMethod(Protocol):
    """weight -> Packed -> weight, the contract of `quantize/`, `share/`, `factorize/` and (by `Sparse`) `prune/`.

    A weight method is a frozen dataclass of its own settings in the file of its name. Only `pack` and `unpack` must
    be written; the rest says how the method composes and trains.

    Attributes:
        into: names of the floating-point parts that a later step of the rule may pack again.
        keeps_zeros: an exact zero gets a code of its own and comes back as an exact zero, so that a pruned weight can
            be handed over in its dense shape.
        training: `"straight"`: the weight is packed anew in each forward pass and `gradient` says what reaches it;
            the parts named in `trained` (step sizes) are parameters beside it. `"through"`: pack and unpack are
            themselves differentiable. `"parts"`: the parts named in `trained` are parameters in the weight's place.
        trained: see `training`; `prior` hands them to `pack`.
        frozen: parts that stay as they were first packed while the weight is trained (a mask, cluster indices).
        needs: what `Stats` must hold for this method to pack.
        updates: packing also changes the weights that it keeps, to make up for those removed; training starts there.
        exact: the method minimises the squared error of its setting exactly, so that a finer setting is never worse.
        scratch: frozen parts that only training needs; a file doesn't hold them.
        searched: whether a search tries its `choices()`; not where they are only of use if training follows.
    """

    into: ClassVar[tuple[str, ...]] = ()
    keeps_zeros: ClassVar[bool] = False
    training: ClassVar[Literal["straight", "through", "parts"]] = "straight"
    trained: ClassVar[tuple[str, ...]] = ()
    frozen: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[frozenset[str]] = frozenset()
    updates: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    scratch: ClassVar[tuple[str, ...]] = ()
    searched: ClassVar[bool] = True

    def pack(self, weight: Tensor, stats: Any = None, prior: Packed | None = None) -> Packed:
        """Packs a floating-point tensor; doesn't change it.

        Args:
            weight: any shape, any floating-point dtype.
            stats: what one calibration pass collected for this layer, or None.
            prior: the same weight packed before by this method: its `frozen` parts are kept.

        Raises:
            MethodError: if the method can't take this weight (its shape, a NaN in it).
        """
        ...

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Makes the weight again from parts that are tensors; checks them, since they may come from a stranger."""
        ...

    def draw(self, weight: Tensor, stats: Any = None, prior: Packed | None = None) -> Packed:
        """Packs as a forward pass in training mode sees it, for `straight`: by default what `pack` gives.

        Methods that train with random rounding draw here, from torch's global generator; `pack` is what the file and
        eval mode hold.
        """
        return self.pack(weight, stats, prior)

    def gradient(self, weight: Tensor, packed: Packed, grad: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the gradients of the weight and of the parts in `trained`, for `straight`.

        By default the gradient passes straight through to the weight (Bengio, Leonard and Courville 2013, arXiv
        1308.3432).

        Args:
            weight: the latent weight.
            packed: what this step packed it to in the forward pass.
            grad: of the unpacked value, of the weight's shape and dtype.
        """
        return grad, {}

    def confined(self, weight: Tensor) -> Tensor:
        """Returns the latent weight as it should be after a step of the optimizer, by default as it is.

        `advance`, which `fit` calls between steps, sees to it: some methods clip latent weights.
        """
        return weight

    def dense(self, packed: Packed) -> Packed:
        """Returns the form that a next step that keeps zeros should meet; by default the same."""
        return packed

    @staticmethod
    def take(packed: Packed, axis: int, kept: Tensor) -> Packed:
        """Keeps some indices along one axis, without packing anew: `unpack` gives exactly the values that it gave.

        Args:
            packed: its parts may be `Packed` again; see `core.packed.take`.
            axis: of the weight.
            kept: indices, int64, ascending.

        Raises:
            NotWorthwhile: if this form can't be cut; the channel is then kept.
        """
        raise NotWorthwhile(f"{packed.method} can't be cut")

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """Settings worth trying in a search, from the coarsest to the finest."""
        return ()

    @property
    def together(self) -> bool:
        """Whether the settings for the weights of one rule are found together, by `allot`."""
        return False

    def allot(self, weights: Mapping[str, Tensor], stats: Mapping[str, Any]) -> dict[str, WeightMethod]:
        """Returns the setting for each of the weights that a rule takes, where one depends on the others.

        Args:
            weights: by name, in the order of the model.
            stats: what calibration collected, by name.
        """
        return dict.fromkeys(weights, self)

    def at(self, progress: float) -> WeightMethod:
        """Returns the setting at this point of the training, for a method with a course of its own.

        Args:
            progress: the part of the training that is over, from 0 to 1; at 1 it is the method itself.
        """
        return self


class Pattern(Protocol):
    """Which weights stay, given a score for each; a file in `prune/` with `select`, its settings, if any, integers.

    A recipe spells it by its name, or by name and settings in their order: `block`, `block:16x1`, `n_m:0:8`; `2:4` is
    short for `n_m:2:4`. A pattern whose settings fix how much it removes says so by a property `sparsity`. For a
    ranking across layers it needs `units(scores) -> Tensor`, the score of each group of weights that goes or stays.

    `fits` need not be written: this is what holds without it, and one of its own only has to be faster, since it is
    asked in each forward pass.
    """

    def select(self, scores: Tensor, sparsity: float) -> Tensor:
        """Returns the mask of the weights to keep, bool of the scores' shape; doesn't change the scores.

        Args:
            scores: any shape (outputs, inputs, window); what scores higher is kept, of equals the first. -inf marks
                what an earlier mask removed: it stays the last choice, and in a group it must not hide the scores of
                what is alive.
            sparsity: part of the weights to be removed, 0 <= sparsity < 1; what one sparsity removes, a larger one
                removes too.

        Raises:
            MethodError: if a weight of this shape can't have the pattern.
        """
        ...

    def fits(self, mask: Tensor, sparsity: float) -> bool:
        """Whether a mask, perhaps another pattern's, has this structure already, at this sparsity or more.

        It has if the pattern, given the mask for scores, would remove nothing that is alive.
        """
        return bool((self.select(mask.float(), sparsity) | ~mask).all())


class Penalty(Protocol):
    """A term of the loss that pulls weights to zero: strength * R(w); a frozen dataclass, `penalty` in a rule.

    `lilliput.penalty(model)` sums the terms, to be added to a loss; `lilliput.shrink(model, rate)` takes the proximal
    step after the optimizer's instead, which gives exact zeros. `fit` does the latter.
    """

    def penalty(self, weight: Tensor) -> Tensor:
        """Returns strength * R(weight), a scalar with a finite gradient everywhere, also where groups are zero.

        Raises:
            MethodError: if the penalty makes no sense for a weight of this shape.
        """
        ...

    def shrink(self, weight: Tensor, rate: float) -> Tensor:
        """Returns the proximal step: argmin over x of |x - weight|^2 / 2 + rate * strength * R(x); a new tensor.

        Args:
            weight: any shape.
            rate: the learning rate of the step before.
        """
        ...


class Schedule(Protocol):
    """What happens between training steps; a file in the folder of the methods that it drives."""

    def advance(self, method: WeightMethod, progress: float) -> WeightMethod:
        """Returns the method's setting at this point of the training.

        Args:
            method: the step as the recipe has it, that is as it should be in the end.
            progress: the part of the training that is over, from 0 to 1.
        """
        ...


class ActivationQuantizer(Protocol):
    """What goes into a layer -> the same on few levels, the contract of `quantize/activations/`.

    An activation quantizer is a frozen dataclass of its settings in the file of its name. What calibration or training
    finds are plain numbers by name (`scale`, `zero`): the graph holds them as literals, the file's manifest by layer,
    and training as buffers or parameters. `levels`, `observe` and `forward` must be written; the rest has
    defaults.

    """

    @property
    def needs(self) -> frozenset[str]:
        """What `Stats` must hold for `observe`; nothing for quantizers with fixed levels."""
        return frozenset()

    @property
    def trained(self) -> tuple[str, ...]:
        """Numbers that training moves, by `gradient`."""
        return ()

    @property
    def levels(self) -> int:
        """The most values that x can take."""
        ...

    def observe(self, stats: Any) -> dict[str, float]:
        """Returns the numbers that `forward` needs, finite ones, from what calibration collected for this layer.

        Raises:
            MethodError: the stats don't hold what is needed, or nothing that a scale can be found for.
        """
        ...

    def forward(self, x: Tensor, numbers: Mapping[str, float]) -> Tensor:
        """Returns x on its levels, of the same shape and dtype, by operators that a graph may hold.

        Args:
            x: what goes into the layer, floating-point, batch first.
            numbers: what `observe` returned, or training made of it.
        """
        ...

    def draw(self, x: Tensor, numbers: Mapping[str, float]) -> Tensor:
        """Returns x on its levels as a forward pass in training mode sees it; by default what `forward` gives."""
        return self.forward(x, numbers)

    def gradient(
        self, x: Tensor, numbers: Mapping[str, float], grad: Tensor
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Returns the gradients of x and of the numbers in `trained`; by default it goes straight through."""
        return grad, {}

    def unsuited(self, layer: nn.Module) -> str | None:
        """Says why it can't stand in front of this layer; None if it can, as it can everywhere by default."""
        return None

    def factor(self, x: Tensor, layer: nn.Module) -> Tensor | None:
        """Returns what the layer's output, less its bias, is multiplied by, or None; differentiable."""
        return None

    def at(self, progress: float) -> ActivationQuantizer:
        """Returns the setting at this point of the training, 0 to 1; at 1 it is the quantizer itself."""
        return self

    def describe(self, numbers: Mapping[str, float]) -> str:
        """Returns a word on levels and numbers for reports, such as `8 bits, scale 0.012, zero 3`."""
        return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())

    @classmethod
    def choices(cls) -> tuple[ActivationQuantizer, ...]:
        """Settings from the coarsest to the finest, for tests and tables."""
        return ()


class Loss(Protocol):
    """A distillation loss."""

    def loss(self, student: Tensor, teacher: Tensor, target: Tensor | None) -> Tensor:
        """Returns a scalar to be minimised."""
        ...


@dataclass(frozen=True)
class Listing:
    """One line of `lilliput list`: a method that can be found.

    Attributes:
        path: family and name, such as `"share/kmeans"`.
        kind: one of `KINDS`.
        summary: first sentence of the file's docstring.
    """

    path: str
    kind: str
    summary: str


def find(family: str, name: str) -> Any:
    """Returns the class of a method: the one in `<family>/<name>.py` that bears the file's name.

    Only that file is imported. Methods of other packages are found by the entry-point group `lilliput.<family>`.

    Raises:
        MethodError: if there is no such family.
        NotInstalled: if there is no such method; names the nearest ones.

    >>> find("share", "kmeans").__name__
    'KMeans'
    """
    if family not in FAMILIES:
        raise MethodError(f"no family '{family}'; there are {', '.join(FAMILIES)}")
    return _found(family, name)


def find_path(path: str) -> Any:
    """Returns the class of a method by its path, such as `"quantize/uniform"`; see `find`."""
    family, _, name = path.rpartition("/")
    if not family:
        raise MethodError(f"'{path}' names no family; write it as in 'quantize/{path or 'uniform'}'")
    return find(family, name)


@cache
def _found(family: str, name: str) -> Any:
    if name in _own(family):
        module = importlib.import_module(f"lilliput.{family.replace('/', '.')}.{name}")
        return _class_of(module, name)
    plugins = _plugins(family)
    if name in plugins:
        return plugins[name].load()
    known = sorted({*_own(family), *plugins})
    near = difflib.get_close_matches(name, known, 3, 0.4) or known
    kind = NotInstalled if NAME.fullmatch(name) else MethodError
    raise kind(f"no method '{family}/{name}'; there is {', '.join(f'{family}/{n}' for n in near) or 'none'}")


def _own(family: str) -> tuple[str, ...]:
    """Names of the files of a family, found by listing its folder."""
    try:
        package = importlib.import_module(f"lilliput.{family.replace('/', '.')}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lilliput."):
            return ()
        raise
    return tuple(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_") and not m.ispkg)


def _plugins(family: str) -> dict[str, importlib.metadata.EntryPoint]:
    group = f"lilliput.{family.replace('/', '.')}"
    return {point.name: point for point in importlib.metadata.entry_points(group=group)}


def _class_of(module: Any, name: str) -> Any:
    plain = name.replace("_", "")
    for label, value in vars(module).items():
        if inspect.isclass(value) and value.__module__ == module.__name__ and label.lower() == plain:
            return value
    raise MethodError(f"{module.__name__} holds no class that bears the name '{name}': it is no method")


def path_of(method: Any) -> str:
    """Returns the path under which a method (an instance or a class) is found."""
    cls = method if inspect.isclass(method) else type(method)
    package, _, name = cls.__module__.rpartition(".")
    if package.startswith("lilliput."):
        return f"{package.removeprefix('lilliput.').replace('.', '/')}/{name}"
    for family in FAMILIES:
        for name, point in _plugins(family).items():
            if point.value.partition(":")[0] == cls.__module__ and point.load() is cls:
                return f"{family}/{name}"
    raise MethodError(f"{cls.__qualname__} can't be found by name: give it a file in a family, or an entry point")


def kind_of(method: Any) -> str:
    """Returns which kind of method this class or instance is; MethodError if it is none."""
    for kind, needed in KINDS.items():
        if all(callable(getattr(method, name, None)) for name in needed):
            return kind
    raise MethodError(f"{method!r} fits no kind of method; the kinds are {', '.join(KINDS)}")


def methods(family: str = "") -> Iterator[Listing]:
    """Yields every method that can be found, of one family or of all, in the order of their paths.

    Files of a family that hold no method (help for the others) are passed over; a broken file raises its own error.
    """
    for own in FAMILIES if not family else (family,):
        for name in sorted({*_own(own), *_plugins(own)}):
            try:
                cls = find(own, name)
                kind = kind_of(cls)
            except MethodError:
                continue
            summary = (inspect.getdoc(inspect.getmodule(cls)) or "").partition("\n")[0]
            yield Listing(f"{own}/{name}", kind, re.sub(r"\s+", " ", summary))
