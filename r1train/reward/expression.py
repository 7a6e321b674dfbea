"""Expressions that a model writes, read by a closed grammar: nothing of them is ever evaluated as Python.

ast.parse only builds a tree. What is worked out from it is written here, node by node; any other node is refused.
"""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

MAX_ARITHMETIC_CHARS = 500
_ARITHMETIC = re.compile(r"[0-9+\-*/()\s]+")
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class NotInGrammar(ValueError):
    """A text that is no expression of the grammar: as an answer it is wrong, no more."""


def arithmetic(text: str) -> tuple[Fraction, list[int]]:
    """Exact value of an expression of whole numbers, + - * / and round brackets, and the numbers that it uses.

    Powers are left out, so the work is bounded by the length. Raises NotInGrammar, also for a division by zero.
    """
    if len(text) > MAX_ARITHMETIC_CHARS or not _ARITHMETIC.fullmatch(text):
        raise NotInGrammar("characters that arithmetic does not have, or too many of them")
    numbers: list[int] = []
    return guarded(lambda: _value(tree_of(text), numbers)), numbers


def tree_of(text: str) -> ast.expr:
    """The tree of one expression. Raises NotInGrammar for what is none, too deep or too long for the parser."""
    try:
        return ast.parse(" ".join(text.split()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotInGrammar(f"no expression: {error}") from None


def guarded[Value](work: Callable[[], Value]) -> Value:
    """work(), where a division by zero, too deep a tree, a number too long to be written or values that an operator
    does not take (an interval under a power) mean NotInGrammar.
    """
    try:
        return work()
    except (ArithmeticError, RecursionError, TypeError, ValueError) as error:
        raise NotInGrammar(str(error)) from None


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int(number)):
            numbers.append(number)
            return Fraction(number)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _value(inner, numbers)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, numbers)
        case ast.BinOp(left=left, op=kind, right=right) if type(kind) in _OPERATORS:
            return _OPERATORS[type(kind)](_value(left, numbers), _value(right, numbers))
    raise NotInGrammar(f"{type(node).__name__} is no arithmetic")
