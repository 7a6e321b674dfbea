"""Formulas in Python's notation as sympy expressions, built name by name: sympy's own reader evaluates its input."""

import ast
import re
from collections.abc import Callable, Collection

import sympy

from r1train.reward.expression import NotInGrammar, guarded, tree_of

MAX_CHARS = 20_000
MAX_DIGITS = 200
MAX_EXPONENT = 200
# An infinite "constant" has the derivative 0; sin(oo) is an interval.
_ENDLESS = (sympy.zoo, sympy.oo, sympy.nan, sympy.AccumBounds)
_FORMULA = re.compile(r"[0-9A-Za-z_+\-*/().\s]+")
_NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9]|_[0-9])*")
_CONSTANTS = {"E": sympy.E, "I": sympy.I, "pi": sympy.pi}
_FUNCTIONS: dict[str, Callable[[sympy.Expr], sympy.Expr]] = {
    name: vars(sympy)[name]
    for name in (
        *("sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "asec", "acsc", "acot"),
        *("sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "exp", "log", "ln", "sqrt", "Abs", "erf", "erfi"),
    )
}


def formula(text: str, symbols: Collection[str]) -> sympy.Expr:
    """A formula of numbers, names, + - * / **, round brackets and calls of elementary functions of one argument.

    symbols: names of the problem, which win over constants. Besides them, any single letter is a symbol, E, I and pi
    apart. Raises NotInGrammar for everything else, for towers of powers and for what is not finite. Simplifying what
    comes back may still take for ever: run that in a grader.
    """
    if len(text) > MAX_CHARS or "__" in text or not _FORMULA.fullmatch(text):
        raise NotInGrammar("characters that formulas do not have, or too many of them")
    return guarded(lambda: _built(tree_of(text), frozenset(symbols)))


def is_antiderivative(text: str, integrand: str, variable: str) -> bool:
    """Whether the derivative of `text` by the variable is the integrand; any constants may be added.

    Raises ValueError for an integrand that is no formula: the problem's fault, not the answer's.
    """
    expected = formula(integrand, {variable})
    try:
        given = formula(text, {variable})
    except NotInGrammar:
        return False
    return bool(sympy.simplify(sympy.diff(given, sympy.Symbol(variable)) - expected) == 0)


def is_same_polynomial(text: str, reference: str) -> bool:
    """Whether both are the same sum of terms; a product that was not multiplied out is not.

    Raises ValueError for a reference that is no formula.
    """
    names = set(_NAME.findall(reference))
    expected = formula(reference, names)
    try:
        return bool(formula(text, names) == expected)
    except NotInGrammar:
        return False


def _built(node: ast.expr, symbols: frozenset[str]) -> sympy.Expr:
    match node:
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int(number)) if abs(number) < 10**MAX_DIGITS:
            return sympy.Integer(number)
        case ast.Constant(value=float(number)):
            return _finite(sympy.Float(number))
        case ast.Name(id=name):
            return _named(name, symbols)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _built(inner, symbols)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_built(inner, symbols)
        case ast.BinOp(left=left, op=kind, right=right):
            return _combined(_built(left, symbols), kind, _built(right, symbols))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
            return _finite(_FUNCTIONS[name](_built(argument, symbols)))
    raise NotInGrammar(f"{type(node).__name__} is no part of a formula")


def _named(name: str, symbols: frozenset[str]) -> sympy.Expr:
    if name not in symbols and name in _CONSTANTS:
        return _CONSTANTS[name]
    if name in symbols or len(name) == 1:
        return sympy.Symbol(name)
    raise NotInGrammar(f"the name {name} is none of the problem")


def _combined(left: sympy.Expr, kind: ast.operator, right: sympy.Expr) -> sympy.Expr:
    match kind:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return _finite(left / right)
        case ast.Pow() if _is_small_power(left, right):
            return _finite(left**right)
    raise NotInGrammar(f"{type(kind).__name__} is no operator of formulas, or a power is too high")


def _finite(value: sympy.Expr) -> sympy.Expr:
    """The value. Raises NotInGrammar where it is or contains infinity (1/0, log(0), 1e999) or what comes of it."""
    if value.has(*_ENDLESS, -sympy.oo):
        raise NotInGrammar("a part of it is infinite")
    return value


def _is_small_power(base: sympy.Expr, exponent: sympy.Expr) -> bool:
    """Whether sympy can write the power down: exponents are small numbers, or contain a symbol and no other power of a
    number; bases that are numbers are short.
    """
    if exponent.is_number:
        short = not base.is_number or len(str(base)) <= MAX_DIGITS
        return short and bool(exponent.is_real) and bool(abs(exponent) <= MAX_EXPONENT)
    return len(str(base)) + len(str(exponent)) <= MAX_DIGITS
