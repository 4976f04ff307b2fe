"""The verdicts of the original's two reward functions, so that a run can be compared with the published curve.

Same verdicts, but they always return. The original hands the answer to Python's evaluator, where `9**9**9` stalls a
rank until the collective times out; here the syntax tree is walked with bounded arithmetic.
"""

import ast
import operator
import re
from collections.abc import Callable

from mini_r1.tasks.answer_tags import ANSWER, END_ANSWER

from .parsed_completion import ParsedCompletion

MAX_EQUATION = 1000
"""Characters of a stripped equation; a longer one scores 0. Python's parsers give up far above, each version at another
depth, so the verdict does not depend on the version."""
MAX_BITS = 2**18
"""Bits of an integer result; a larger one scores 0. The original pays no result beyond 1024 bits (float() overflows),
so a larger one matters only as an intermediate. 99**(99*99) has 64,975 bits; 2**18 costs milliseconds at most."""
TOLERANCE = 1e-5
"""The original's largest difference between result and target."""

_INTEGER = re.compile(r"\d+")
_ALLOWED = re.compile(r"[\d+\-*/().\s]+")

_BINARY: dict[type[ast.AST], Callable[..., object]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.AST], Callable[..., int | float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def format_original(completion: ParsedCompletion) -> int:
    r"""Return 1 when `<think>` + completion keeps the original's format, else 0.

    The original's rule, by `re.search`:
    `^<think>([^<]*(?:<(?!/?think>)[^<]*)*)<\/think>\n<answer>([\s\S]*?)<\/answer>$`. So the first think tag is
    `</think>`, a newline and `<answer>` follow, and the text ends with `</answer>`, after which `$` allows one newline.
    Anything may come between, further answer blocks included.
    """
    start = completion.first_block
    return int(start is not None and completion.text.endswith((END_ANSWER, END_ANSWER + "\n"), start))


def equation_original(completion: ParsedCompletion) -> int:
    r"""Return 1 when the original pays the completion's equation, else 0. No text raises, and none stalls.

    The original's rule: the first `<answer>(.*?)</answer>` on one line, stripped; the integers in it (`\d+`) are the
    given numbers as a multiset; it matches `^[\d+\-*/().\s]+$`; Python's arithmetic gives a result closer than
    1e-5 to the target, as floats; any exception is 0.
    """
    answer = _first_answer_on_one_line(completion.text)
    if answer is None:
        return 0
    # strip() leaves no leading blanks, so Python's evaluator, which skips them, sees the text that ast.parse sees.
    equation = answer.strip()
    if len(equation) > MAX_EQUATION:
        return 0
    try:
        used = sorted(int(digits) for digits in _INTEGER.findall(equation))
        if used != sorted(completion.problem.nums) or not _ALLOWED.fullmatch(equation):
            return 0
        result = _evaluate_tree(ast.parse(equation, mode="eval").body)
        return int(abs(float(result) - completion.problem.target) < TOLERANCE)
    except (ArithmeticError, MemoryError, RecursionError, SyntaxError, ValueError):
        # ArithmeticError: division by zero, float overflow. ValueError: int() of text, and `_evaluate_tree`'s.
        return 0


def _first_answer_on_one_line(completion: str) -> str | None:
    """Return the group of the first match of `<answer>(.*?)</answer>`, where `.` stops at a newline only.

    By line, because the regular expression is quadratic on a line full of `<answer>`.
    """
    for line in completion.split("\n"):
        answer, end, _ = line.partition(ANSWER)[2].partition(END_ANSWER)
        if end:
            return answer
    return None


def _evaluate_tree(root: ast.expr) -> int | float:
    """Return Python's value of a tree of constants, `+ - * / // **` and signs; an explicit stack, no recursion.

    Raises:
        ValueError: for any other node, a complex number, or an integer beyond MAX_BITS.
        ArithmeticError: as Python's operators do.
    """
    pending: list[ast.expr | ast.operator | ast.unaryop] = [root]
    values: list[int | float] = []
    while pending:
        node = pending.pop()
        if type(node) in _UNARY:
            values.append(_UNARY[type(node)](values.pop()))
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            values.append(node.value)  # type: ignore[arg-type]
        elif isinstance(node, ast.BinOp):
            pending += [node.op, node.right, node.left]
        elif isinstance(node, ast.UnaryOp):
            pending += [node.op, node.operand]
        elif type(node) in _BINARY:
            right, left = values.pop(), values.pop()
            _bound(node, left, right)
            result = _BINARY[type(node)](left, right)
            # A complex number never turns real again under these operators, and float() of it raises in the original.
            if not isinstance(result, int | float):
                raise ValueError
            values.append(result)
        else:
            raise ValueError
    return values.pop()


def _bound(node: ast.AST, left: int | float, right: int | float) -> None:
    """Refuse an integer product or power that is certain to exceed MAX_BITS, before it is computed."""
    if not (isinstance(left, int) and isinstance(right, int)):
        return
    bits = 0
    if isinstance(node, ast.Mult):
        bits = left.bit_length() + right.bit_length() - 1
    elif isinstance(node, ast.Pow) and right > 0:
        # |left| >= 2**(bit_length - 1); 0, 1 and -1 give a bound of 0, as they should.
        bits = max(left.bit_length() - 1, 0) * right
    if bits > MAX_BITS:
        raise ValueError
