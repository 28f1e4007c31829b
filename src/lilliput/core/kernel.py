"""Compiled kernels: which variant this CPU runs, how tensors reach it, and operators of `torch.library` around it."""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lilliput.core import native
from lilliput.core.errors import LilliputWarning, MethodError

VARIANTS = ("reference", "generic", "avx2", "avx512")
"""Slowest first; `reference` is plain torch. LILLIPUT_CPU names one: the best up to there that the CPU has is used."""

_DTYPES = {
    "B": (torch.uint8, torch.bool),
    "b": (torch.int8,),
    "H": (torch.int16, torch.uint16, torch.bfloat16, torch.float16),
    "h": (torch.int16,),
    "I": (torch.int32, torch.uint32),
    "i": (torch.int32,),
    "Q": (torch.int64, torch.uint64),
    "q": (torch.int64,),
    "f": (torch.float32,),
    "d": (torch.float64,),
}

F = TypeVar("F", bound=Callable[..., Any])
Found = tuple[Any, tuple[tuple[torch.dtype, ...] | None, ...]]

_state: dict[str, str] = {}
_found: dict[str, Found | None] = {}
_operators: dict[str, Callable[..., Any]] = {}
_functions: dict[Any, Callable[..., Any]] = {}
_local = threading.local()
_library: Any = torch.library.Library("lilliput", "FRAGMENT")  # type: ignore[no-untyped-call]


def variants() -> tuple[str, ...]:
    """Returns what can run here, slowest first; only `reference` where no extension was built.

    >>> variants()[0]
    'reference'
    """
    module = native.extension(native.LARGE, "running compressed layers")
    if module is None:
        return VARIANTS[:1]
    built = {isa for _, isa, _ in module.kernels()}
    return tuple(v for v in VARIANTS if v == "reference" or (v in built and module.has_isa(v)))


def variant() -> str:
    """Returns the variant that is used: the best, or the best up to what LILLIPUT_CPU names."""
    if "variant" not in _state:
        asked = os.environ.get("LILLIPUT_CPU", "") or VARIANTS[-1]
        if asked not in VARIANTS:
            warnings.warn(f"LILLIPUT_CPU={asked} is none of {', '.join(VARIANTS)}", LilliputWarning, stacklevel=2)
            asked = VARIANTS[-1]
        _state["variant"] = [v for v in variants() if VARIANTS.index(v) <= VARIANTS.index(asked)][-1]
    return _state["variant"]


@contextmanager
def using(name: str) -> Iterator[None]:
    """Uses one variant for a while, in all threads: for tests and benchmarks.

    Raises:
        MethodError: it can't run here.
    """
    if name not in variants():
        raise MethodError(f"kernels for {name} can't run here, only {', '.join(variants())}")
    before = variant()
    _state["variant"] = name
    _found.clear()
    try:
        yield
    finally:
        _state["variant"] = before
        _found.clear()


def run(name: str, *arguments: Tensor | int | float | None) -> bool:
    """Runs a compiled kernel, if there is one for this CPU; its threads are those of `torch.set_num_threads`.

    Args:
        name: of the function that LILLIPUT_KERNEL registered.
        arguments: in the function's order: tensors for pointers (contiguous, on the CPU, of the pointer's type; what is
            written may have its channels last; None for a null pointer), numbers for numbers. Shapes are the caller's
            to check.

    Returns:
        Whether it ran; False where the caller's reference has to do it.

    Raises:
        MethodError: a tensor of another type, not contiguous or on another device.
    """
    own = _found[name] if name in _found else _find(name)
    if own is None:
        return False
    kernel, types = own
    passed: list[Any] = []
    for dtypes, value in zip(types, arguments):
        if not isinstance(value, Tensor):
            passed.append(value)
            continue
        if dtypes is None or value.dtype not in dtypes or not value.is_contiguous() or not value.is_cpu:
            _check_layout(name, len(passed), value, dtypes, kernel.signature[2 * len(passed)] == "&")
        passed.append(value.data_ptr())
    kernel(torch.get_num_threads(), *passed)
    watch: _Watch | None = getattr(_local, "watch", None)
    if watch is not None:
        watch.note(name, arguments, kernel.signature)
    return True


def _check_layout(name: str, place: int, value: Tensor, dtypes: Any, written: bool) -> None:
    """Raises MethodError unless the kernel writes the value and its channels are last: all else was refused before."""
    last = written and value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
    if last and dtypes is not None and value.dtype in dtypes and value.is_cpu:
        return
    raise MethodError(
        f"{name}: argument {place} is {value.dtype} on {value.device}, "
        f"{'' if value.is_contiguous() else 'not '}contiguous; needs {dtypes or 'a number'}, contiguous on CPU"
    )


Calls = list[tuple[str, tuple[Any, ...]]]

_EMPTY = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})


class _Watch(TorchFunctionMode):
    """Looks into this library's operators, and refuses functions of torch that compute with what isn't constant.

    (A mode of the dispatcher would see more, but torch imports its compiler for that, which takes seconds.)
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.calls: Calls = []
        self.alive = {_storage(x) for x in inputs}
        self.filled: dict[int, Tensor] = {}  # kept, so that no other tensor gets their memory

    def note(self, name: str, arguments: tuple[Any, ...], signature: str) -> None:
        """Notes a kernel's call."""
        self.calls.append((name, arguments))
        for mark, value in zip(signature[::2], arguments):
            if mark == "&" and isinstance(value, Tensor):
                if _storage(value) in self.filled:
                    raise MethodError(f"{name} writes to what torch has filled")
                self.alive.add(_storage(value))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _functions:
            with self:
                return _functions[func](*args, **kwargs)
        result, name = func(*args, **kwargs), getattr(func, "__name__", "")
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if not made or name in _EMPTY:
            return result
        held = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        given = held & self.alive
        changes = name == "__setitem__" or name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
        if given and (changes or any(_storage(x) not in given for x in made)):
            raise MethodError(f"torch's {name} computes with what kernels work on")
        if not given:
            self.filled.update((_storage(x), x) for x in made if changes or _storage(x) not in held)
        return result


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


@contextmanager
def recording(*inputs: Tensor) -> Iterator[Calls]:
    """Notes the kernels that this thread runs, with their arguments, which it keeps alive.

    Args:
        inputs: what isn't constant; nor is what kernels write.

    Raises:
        MethodError: within it torch computes something with what isn't constant.
    """
    if getattr(_local, "watch", None) is not None:
        raise MethodError("kernels are noted already")
    watch = _Watch(inputs)
    _local.watch = watch
    try:
        with watch:
            yield watch.calls
    finally:
        _local.watch = None


def found(name: str) -> Found | None:
    """Returns a kernel for this CPU and the dtypes of its arguments (None: a number); None where there is none.

    Args:
        name: of the function that LILLIPUT_KERNEL registered.
    """
    return _found[name] if name in _found else _find(name)


def _find(name: str) -> Found | None:
    own = variant()
    module = native.extension()
    kernel = None if module is None or own == "reference" else module.kernel(name, own)
    if kernel is None:
        _found[name] = None
        return None
    text: str = kernel.signature
    types = tuple(None if text[i] == "." else _DTYPES[text[i + 1]] for i in range(0, len(text), 2))
    _found[name] = (kernel, types)
    return _found[name]


def operator(fake: Callable[..., Any]) -> Callable[[F], F]:
    """Makes a function the operator `torch.ops.lilliput.<name>`, which torch exports and compiles whole.

    The decorated function checks its arguments, runs a kernel with `run` and does the same in plain torch where that
    returns False. It is registered for every device, without gradients: these layers run, they don't train.

    Args:
        fake: takes the same arguments and returns empty tensors of the right shape, dtype and strides.
    """

    def register(function: F) -> F:
        name = function.__name__
        _library.define(name + torch.library.infer_schema(function, mutates_args=()))
        _library.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"lilliput::{name}", fake, lib=_library)
        overload = getattr(torch.ops.lilliput, name).default
        _operators[name] = overload
        _functions[overload] = function

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            # torch.compile takes the first for a constant, and sees the operator only.
            if torch.compiler.is_compiling() or named or not _plain(arguments):
                return overload(*arguments, **named)
            return function(*arguments)

        return cast(F, call)

    return register


def _plain(arguments: Sequence[Any]) -> bool:
    """Whether calling the function itself is all that the dispatcher would do: it takes 5 to 10 microseconds for that.

    Nobody looks on (modes, tracing, vmap, profilers), and there are only tensors of the CPU that want no gradients.
    """
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None or torch._C._autograd._profiler_enabled():
        return False
    return _plain_tensors(arguments, torch.is_grad_enabled())


def _plain_tensors(values: Sequence[Any], graded: bool) -> bool:
    for value in values:
        kind = type(value)
        if kind is Tensor:
            if not value.is_cpu or (graded and value.requires_grad):
                return False
        elif kind is list:
            if value and isinstance(value[0], Tensor) and not _plain_tensors(value, graded):
                return False
        elif isinstance(value, Tensor):
            return False
    return True


def operators() -> dict[str, Callable[..., Any]]:
    """Returns the operators of the modules imported so far, by name."""
    return dict(_operators)
