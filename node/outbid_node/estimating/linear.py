"""A few unknowns, none of them negative: the normal equations of least squares, without a library for matrices."""

from __future__ import annotations

from collections.abc import Sequence


def non_negative(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Solve a symmetric, positive definite system; as long as there is a negative unknown, without the most negative.

    That is nearly always the best non-negative solution (Lawson and Hanson 1974 would also let one come back).
    """
    chosen = list(range(len(right)))
    while chosen:
        values = _solve([[matrix[n][m] for m in chosen] for n in chosen], [right[n] for n in chosen])
        least = min(values)
        if least >= 0:
            found = [0.0] * len(right)
            for n, value in zip(chosen, values, strict=True):
                found[n] = value
            return found
        del chosen[values.index(least)]
    return [0.0] * len(right)


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gauss-Jordan, the largest diagonal first. What the rows say nothing about is 0."""
    open_rows = list(range(len(right)))
    found = [0.0] * len(right)
    order = []
    largest = max(matrix[n][n] for n in open_rows)
    while open_rows:
        pivot = max(open_rows, key=lambda n: matrix[n][n])
        if not matrix[pivot][pivot] > 1e-13 * largest:
            break
        open_rows.remove(pivot)
        order.append(pivot)
        for n in open_rows:
            factor = matrix[n][pivot] / matrix[pivot][pivot]
            matrix[n] = [value - factor * above for value, above in zip(matrix[n], matrix[pivot], strict=True)]
            right[n] -= factor * right[pivot]
    for n in reversed(order):
        rest = sum(matrix[n][m] * found[m] for m in order[order.index(n) + 1 :])
        found[n] = (right[n] - rest) / matrix[n][n]
    return found
