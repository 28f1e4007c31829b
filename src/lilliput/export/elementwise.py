"""Operators that work on each element by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from lilliput.export.rules import Unsupported
from lilliput.export.writer import Arguments, Rule, Writer, rule
from lilliput.graph.ir import InputRef, NodeRef, TensorRef

_PLAIN = {
    "abs": "Abs", "neg": "Neg", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "reciprocal": "Reciprocal", "sign": "Sign",
    "sgn": "Sign", "sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin", "acos": "Acos", "atan": "Atan",
    "sinh": "Sinh", "cosh": "Cosh", "tanh": "Tanh", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh", "erf": "Erf",
    "floor": "Floor", "ceil": "Ceil", "round": "Round", "sigmoid": "Sigmoid", "relu": "Relu", "hardswish": "HardSwish",
    "mish": "Mish", "isnan": "IsNaN",
}  # fmt: skip
_SAME = ("clone", "contiguous", "detach", "alias", "positive")


def _first(arguments: Arguments) -> Any:
    return next(iter(arguments.values()))


def _source(w: Writer, a: Arguments) -> str:
    """The first argument in the result's dtype: functions of integers give floats."""
    wanted = w.result.dtype if w.result.dtype != torch.bool else w.info(_first(a)).dtype
    return w.operand(_first(a), wanted)


def _plain(operator: str) -> Rule:
    return lambda w, a: w(operator, _source(w, a))


for _name, _operator in _PLAIN.items():
    rule(_name)(_plain(_operator))
rule(*_SAME)(lambda w, a: w.x(_first(a)))


def _composed(*names: str) -> Callable[[Callable[[Writer, str, Arguments], Any]], Callable[..., Any]]:
    """A rule that is given the first argument by name."""

    def register(function: Callable[[Writer, str, Arguments], Any]) -> Callable[..., Any]:
        rule(*names)(lambda w, a: function(w, _source(w, a), a))
        return function

    return register


def _number(w: Writer, value: Any) -> str:
    return w.operand(value, w.result.dtype)


@_composed("square")
def _square(w: Writer, x: str, a: Arguments) -> Any:
    return w("Mul", x, x)


@_composed("rsqrt")
def _rsqrt(w: Writer, x: str, a: Arguments) -> Any:
    return w("Reciprocal", w("Sqrt", x))


@_composed("expm1")
def _expm1(w: Writer, x: str, a: Arguments) -> Any:
    return w("Sub", w("Exp", x), _number(w, 1))


@_composed("log1p")
def _log1p(w: Writer, x: str, a: Arguments) -> Any:
    return w("Log", w("Add", x, _number(w, 1)))


def _logarithm(base: float) -> Rule:
    return lambda w, a: w("Div", w("Log", _source(w, a)), _number(w, math.log(base)))


rule("log2")(_logarithm(2))
rule("log10")(_logarithm(10))


@_composed("trunc")
def _trunc(w: Writer, x: str, a: Arguments) -> Any:
    return w("Mul", w("Sign", x), w("Floor", w("Abs", x)))


@_composed("frac")
def _frac(w: Writer, x: str, a: Arguments) -> Any:
    return w("Sub", x, _trunc(w, x, a))


@_composed("relu6")
def _relu6(w: Writer, x: str, a: Arguments) -> Any:
    return w("Clip", x, _number(w, 0), _number(w, 6))


@_composed("hardtanh")
def _hardtanh(w: Writer, x: str, a: Arguments) -> Any:
    return w("Clip", x, _number(w, a["min_val"]), _number(w, a["max_val"]))


@_composed("clamp", "clamp.Tensor", "clip", "clip.Tensor", "clamp_min", "clamp_max", "clamp_min.Tensor")
def _clamp(w: Writer, x: str, a: Arguments) -> Any:
    low, high = a.get("min"), a.get("max")
    if low is not None:
        x = w("Max", x, _number(w, low)) if _is_ref(low) or high is None else x
    if high is not None and not _is_ref(high) and low is not None and not _is_ref(low):
        return w("Clip", x, _number(w, low), _number(w, high))
    return w("Min", x, _number(w, high)) if high is not None else x


def _is_ref(value: Any) -> bool:
    return isinstance(value, NodeRef | InputRef | TensorRef)


@_composed("silu")
def _silu(w: Writer, x: str, a: Arguments) -> Any:
    return w("Mul", x, w("Sigmoid", x))


@_composed("gelu")
def _gelu(w: Writer, x: str, a: Arguments) -> Any:
    return w("Gelu", x, approximate=a["approximate"])


@_composed("hardsigmoid")
def _hardsigmoid(w: Writer, x: str, a: Arguments) -> Any:
    return w("HardSigmoid", x, alpha=1 / 6, beta=0.5)


@_composed("elu")
def _elu(w: Writer, x: str, a: Arguments) -> Any:
    if a["scale"] != 1 or a["input_scale"] != 1:
        raise Unsupported("scaled elu")
    return w("Elu", x, alpha=float(a["alpha"]))


@_composed("celu")
def _celu(w: Writer, x: str, a: Arguments) -> Any:
    return w("Celu", x, alpha=float(a["alpha"]))


@_composed("selu")
def _selu(w: Writer, x: str, a: Arguments) -> Any:
    return w("Selu", x)


@_composed("leaky_relu")
def _leaky_relu(w: Writer, x: str, a: Arguments) -> Any:
    return w("LeakyRelu", x, alpha=float(a["negative_slope"]))


@_composed("softplus")
def _softplus(w: Writer, x: str, a: Arguments) -> Any:
    beta = float(a["beta"])
    # Beyond torch's threshold both are equal to the last bit or so, and ONNX's form doesn't overflow.
    return w("Softplus", x) if beta == 1 else w("Div", w("Softplus", w("Mul", x, _number(w, beta))), _number(w, beta))


@_composed("log_sigmoid")
def _log_sigmoid(w: Writer, x: str, a: Arguments) -> Any:
    return w("Neg", w("Softplus", w("Neg", x)))


@_composed("logit")
def _logit(w: Writer, x: str, a: Arguments) -> Any:
    if a["eps"] is not None:
        x = w("Clip", x, _number(w, a["eps"]), _number(w, 1 - a["eps"]))
    return w("Log", w("Div", x, w("Sub", _number(w, 1), x)))


@_composed("threshold")
def _threshold(w: Writer, x: str, a: Arguments) -> Any:
    return w("Where", w("Greater", x, _number(w, a["threshold"])), x, _number(w, a["value"]))


@_composed("hardshrink")
def _hardshrink(w: Writer, x: str, a: Arguments) -> Any:
    return w("Shrink", x, lambd=float(a["lambd"]), bias=0.0)


@rule("softshrink")
def _softshrink(w: Writer, a: Arguments) -> Any:
    return w("Shrink", w.x(a["self"]), lambd=float(a["lambd"]), bias=float(a["lambd"]))


@rule("glu")
def _glu(w: Writer, a: Arguments) -> Any:
    axis = w.axis(a["self"], a["dim"])
    one, two = w("Split", w.x(a["self"]), outputs=2, axis=axis, num_outputs=2)
    return w("Mul", one, w("Sigmoid", two))


@rule("prelu", "_prelu_kernel")
def _prelu(w: Writer, a: Arguments) -> Any:
    rank, weight = w.rank(a["self"]), w.x(a["weight"])
    if w.rank(a["weight"]) == 1 and rank > 2 and w.size(a["weight"], 0) > 1:
        weight = w("Reshape", weight, w.constant([-1] + [1] * (rank - 2)))
    return w("PRelu", w.x(a["self"]), weight)


@rule("logical_not", "bitwise_not")
def _not(w: Writer, a: Arguments) -> Any:
    return w("Not", w.operand(a["self"], torch.bool))


@rule("isinf")
def _isinf(w: Writer, a: Arguments) -> Any:
    return w("IsInf", w.x(a["self"]))


def _both(w: Writer, a: Arguments, dtype: torch.dtype | None = None) -> tuple[str, str]:
    """The two operands in one dtype, by default the result's."""
    one, two = list(a.values())[:2]
    kind = dtype or w.result.dtype
    return w.operand(one, kind), w.operand(two, kind)


def _scaled(w: Writer, a: Arguments) -> tuple[str, str]:
    """The operands of a sum, the second times `alpha`."""
    one, two = _both(w, a)
    return one, two if a.get("alpha", 1) == 1 else w("Mul", two, _number(w, a["alpha"]))


rule("add.Tensor", "add.Scalar")(lambda w, a: w("Add", *_scaled(w, a)))
rule("sub.Tensor", "sub.Scalar")(lambda w, a: w("Sub", *_scaled(w, a)))
rule("rsub.Tensor", "rsub.Scalar")(lambda w, a: w("Sub", *_both(w, {"b": a["other"], "a": a["self"]})))
rule("mul.Tensor", "mul.Scalar")(lambda w, a: w("And" if w.result.dtype == torch.bool else "Mul", *_both(w, a)))
rule("div.Tensor", "div.Scalar", "true_divide.Tensor")(lambda w, a: w("Div", *_both(w, a)))
rule("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")(lambda w, a: w("Pow", *_both(w, a)))
rule("maximum", "max.other")(lambda w, a: w("Max", *_both(w, a)))
rule("minimum", "min.other")(lambda w, a: w("Min", *_both(w, a)))


@rule("div.Tensor_mode", "div.Scalar_mode", "floor_divide", "floor_divide.Scalar")
def _divided(w: Writer, a: Arguments) -> Any:
    mode, kind = a.get("rounding_mode", "floor"), w.result.dtype
    if kind.is_floating_point or mode is None:
        quotient = w("Div", *_both(w, a))
        return quotient if mode is None else w("Floor", quotient) if mode == "floor" else _trunc(w, quotient, a)
    exact = w("Div", *_both(w, a, torch.float64))
    return w.cast(w("Floor", exact) if mode == "floor" else _trunc(w, exact, a), torch.float64, kind)


@rule("remainder.Tensor", "remainder.Scalar")
def _remainder(w: Writer, a: Arguments) -> Any:
    one, two = _both(w, a)
    if not w.result.dtype.is_floating_point:
        return w("Mod", one, two)
    return w("Sub", one, w("Mul", w("Floor", w("Div", one, two)), two))


rule("fmod.Tensor", "fmod.Scalar")(lambda w, a: w("Mod", *_both(w, a), fmod=1))


def _compared(operator: str, negated: bool) -> Rule:
    def compare(w: Writer, a: Arguments) -> Any:
        one, two = list(a.values())[:2]
        kind = _common(w, one, two)
        if kind == torch.bool and operator != "Equal":
            kind = torch.int32
        found = w(operator, w.operand(one, kind), w.operand(two, kind))
        return w("Not", found) if negated else found

    return compare


def _common(w: Writer, one: Any, two: Any) -> torch.dtype:
    kind: torch.dtype = w.info(one).dtype
    if _is_ref(two) and not (isinstance(two, NodeRef) and isinstance(w.infos[two.index], type)):
        return torch.promote_types(kind, w.info(two).dtype)
    return torch.float32 if isinstance(two, float) and not kind.is_floating_point else kind


for _name, _operator, _negated in (
    ("eq", "Equal", False), ("ne", "Equal", True), ("lt", "Less", False), ("le", "LessOrEqual", False),
    ("gt", "Greater", False), ("ge", "GreaterOrEqual", False),
):  # fmt: skip
    rule(f"{_name}.Tensor", f"{_name}.Scalar")(_compared(_operator, _negated))


def _logical(boolean: str, bitwise: str) -> Rule:
    def combine(w: Writer, a: Arguments) -> Any:
        return w(boolean if w.result.dtype == torch.bool else bitwise, *_both(w, a))

    return combine


for _names, _operator in (("and", "And"), ("or", "Or"), ("xor", "Xor")):
    rule(
        f"logical_{_names}", f"bitwise_{_names}.Tensor", f"bitwise_{_names}.Scalar",
        f"__{_names}__.Tensor", f"__{_names}__.Scalar",
    )(_logical(_operator, f"Bitwise{_operator}"))  # fmt: skip


@rule("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(w: Writer, a: Arguments) -> Any:
    kind = w.result.dtype
    return w("Where", w.operand(a["condition"], torch.bool), w.operand(a["self"], kind), w.operand(a["other"], kind))


@rule("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(w: Writer, a: Arguments) -> Any:
    kind = w.result.dtype
    value = a["value"]
    if isinstance(value, float) and math.isinf(value) and not kind.is_floating_point:
        raise Unsupported("infinity in integers")
    return w("Where", w.operand(a["mask"], torch.bool), w.operand(value, kind), w.operand(a["self"], kind))


def _sum_and(operator: str) -> Rule:
    def combine(w: Writer, a: Arguments) -> Any:
        second = w(operator, _number(w, a["tensor1"]), _number(w, a["tensor2"]))
        return w("Add", _number(w, a["self"]), w("Mul", second, _number(w, a["value"])) if a["value"] != 1 else second)

    return combine


rule("addcmul")(_sum_and("Mul"))
rule("addcdiv")(_sum_and("Div"))


@rule("lerp.Scalar", "lerp.Tensor")
def _lerp(w: Writer, a: Arguments) -> Any:
    one, two = w.x(a["self"]), w.x(a["end"])
    return w("Add", one, w("Mul", _number(w, a["weight"]), w("Sub", two, one)))


@rule("to.dtype", "type_as")
def _to(w: Writer, a: Arguments) -> Any:
    return w.operand(a["self"], w.result.dtype)
