"""What a share of a device is worth, when devices are cut as well as they can be.

Shares of a device are a cutting-stock problem: items of several sizes, bins of one device. The linear programme of
Gilmore and Gomory ("A linear programming approach to the cutting-stock problem", 1961), solved by column generation,
gives each size its price in devices: 0.5 if two of them fill a device in the best plan, 1.0 if nothing worth having
goes beside it, 0 if there are more gaps for it than it can fill. A gap is worth the best filling of it at these prices.
Putting a share where it loses no more worth than its price keeps to the best plan; where it loses more, it spoils it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd

import numpy as np

from usina.placement.fleet import WHOLE, Floats

ROUNDS = 200
CLOSE = 1e-9


def prices(demand: Mapping[int, float]) -> dict[int, float]:
    """Share in thousandths -> price in devices, for shares wanted in the ratio of `demand`."""
    sizes = sorted(size for size, weight in demand.items() if 0 < size < WHOLE and weight > 0)
    if not sizes:
        return {}
    from scipy.optimize import linprog  # half a second to import, and only sites that share devices need it

    wanted = np.array([demand[size] for size in sizes])
    plans = [np.where(np.array(sizes) == size, WHOLE // size, 0) for size in sizes]
    price = np.ones(len(sizes))
    best = plans[0]
    for _ in range(ROUNDS):
        solved = linprog(np.ones(len(plans)), A_ub=-np.array(plans).T, b_ub=-wanted, method="highs")
        price = np.maximum(-solved.ineqlin.marginals, 0.0)
        best = _best_filling(sizes, price)
        if float(best @ price) <= 1 + CLOSE:
            break
        plans.append(best)
    price /= max(1.0, float(best @ price))  # where rounds ran out: no filling is worth more than the device
    return dict(zip(sizes, price.tolist(), strict=True))


def gap_values(price: Mapping[int, float]) -> Floats:
    """(1001) what a gap of 0 to 1000 thousandths is worth in devices; a whole device is worth at least 1."""
    value = np.zeros(WHOLE + 1)
    for gap in range(1, WHOLE + 1):
        value[gap] = max((worth + value[gap - size] for size, worth in price.items() if size <= gap), default=0.0)
    value[WHOLE] = max(value[WHOLE], 1.0)
    return value


def _best_filling(sizes: list[int], price: Floats) -> Floats:
    """The filling of one device that is worth most: how many of each size."""
    step = gcd(WHOLE, *sizes)
    steps, worth = [size // step for size in sizes], price.tolist()
    best, last = [0.0], [-1]
    for gap in range(1, WHOLE // step + 1):
        options = [(best[gap - size] + worth[n], n) for n, size in enumerate(steps) if size <= gap]
        value, number = max(options, default=(0.0, -1))
        better = value > best[gap - 1] + CLOSE
        best.append(value if better else best[gap - 1])
        last.append(number if better else -1)
    count, gap = np.zeros(len(sizes)), WHOLE // step
    while gap > 0:
        if last[gap] < 0:
            gap -= 1
        else:
            count[last[gap]] += 1
            gap -= steps[last[gap]]
    return count
