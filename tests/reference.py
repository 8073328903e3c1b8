"""Certificates once more, slowly and plainly: what docs/certificates.md says, in whole numbers, sharing no code with srs.

Votes are lists of classes, UNDECIDED where there is none. What is returned has the names of a certificate's fields.
"""

from fractions import Fraction
from functools import cache
from math import ceil, comb, erfc, sqrt

UNDECIDED = ABSTAIN = -1
STEPS = 1 << 60  # of a probability


def named(selection):
    """The class with most votes, the lowest of a tie; ABSTAIN where there are none."""
    decided = [vote for vote in selection if vote != UNDECIDED]
    return min(decided, key=lambda c: (-decided.count(c), c)) if decided else ABSTAIN


@cache
def clopper_pearson(k, n, alpha):
    """The largest p, by bisection, at which k or more of n successes have probability at most alpha."""
    low, high, most = 0, STEPS, Fraction(alpha) * STEPS**n
    while high - low > 1 and k:
        p = (low + high) // 2
        tail, power = 0, p**k
        for i in range(k, n + 1):  # Horner's scheme: the sum of C(n, i) p^i (1 - p)^(n - i), times STEPS^n
            tail, power = tail * (STEPS - p) + comb(n, i) * power, power * p
        low, high = (p, high) if tail <= most else (low, p)
    return Fraction(low, STEPS)


@cache
def most_marked(seen, sample, population, alpha):
    """The largest M, counted down, with P(X <= seen) >= alpha for X marked ones in a sample, M of the population marked."""
    for m in range(population, -1, -1):
        ways = sum(comb(m, x) * comb(population - m, sample - x) for x in range(min(seen, sample) + 1))
        if ways >= Fraction(alpha) * comb(population, sample):
            return m
    raise AssertionError("no number of marked ones is possible")


def normal_quantile(p):
    """Phi^-1(p) of a p > 1/2, by bisection on erfc."""
    low, high = 0.0, 40.0
    for _ in range(100):
        z = (low + high) / 2
        low, high = (z, high) if erfc(z / sqrt(2)) / 2 > float(1 - p) else (low, z)
    return low


def _at_level(top, p, sigma):
    sure = p > Fraction(1, 2)
    return {"prediction": top if sure else ABSTAIN, "radius": sigma * normal_quantile(p) if sure else 0.0, "p_a_lower": p}


def standard(votes, n0, alpha, sigma, clean=None):
    """CERTIFY from independent votes; with a ``clean`` vote no others name the class, and all are counted."""
    top, counted = (named(votes[:n0]), votes[n0:]) if clean is None else (clean, votes)
    n_a = counted.count(top) if top != ABSTAIN else 0
    found = _at_level(top, clopper_pearson(n_a, len(counted), alpha), sigma)
    return found | {"n_a": n_a, "undecided": counted.count(UNDECIDED)}


def serialized(votes, truth, n0, order, audit, alpha, sigma, split=0.5, census=(), clean=None):
    """CERTIFY from serialized votes: Theorems 1 and 2; with a ``clean`` vote n0 is 0. ``truth``: the reference's votes, looked
    at on audited draws and on the ``census`` alone; the audit takes the first ``audit`` draws of the ``order`` outside of the
    census."""
    top, counted = named(votes[:n0]) if clean is None else clean, range(n0, len(votes))
    census = set(census) if top != ABSTAIN else set()
    sample = [draw for draw in order if draw not in census][: audit if top != ABSTAIN else 0]
    for_a = [draw for draw in counted if votes[draw] == top != ABSTAIN]
    suspects = [draw for draw in sample if draw in for_a]
    n1, n2 = sum(truth[draw] == top for draw in suspects), len(suspects)
    known, outside = sum(truth[draw] == top for draw in census), len(set(for_a) - census)
    marked = most_marked(n2 - n1, n2, outside, split * alpha)
    found = _at_level(top, clopper_pearson(known + outside - marked, len(counted), (1 - split) * alpha), sigma)
    found |= {"n_a": len(for_a), "undecided": sum(votes[draw] == UNDECIDED for draw in counted)}
    return found | {"k": len(sample), "n1": n1, "n2": n2, "census": len(census), "known": known}


def predicted(votes, alpha):
    """PREDICT from independent votes: the two-sided binomial test of the first class against the second and the undecided."""
    decided = [vote for vote in votes if vote != UNDECIDED]
    counts = [*sorted((decided.count(c) for c in set(decided)), reverse=True), 0, 0]
    first, rest = counts[0], counts[1] + len(votes) - len(decided)
    tail = 2 * sum(comb(first + rest, i) for i in range(first, first + rest + 1))
    return named(votes) if first > rest and tail <= Fraction(alpha) * 2 ** (first + rest) else ABSTAIN


def evidence(k, t, p_0):
    """E_t: the integral of (q / p_0)^k ((1 - q) / (1 - p_0))^(t - k) over q > p_0, divided by 1 - p_0, by parts k times:
    E(k, m) = (1 + k (1 - p_0) / p_0 E(k - 1, m + 1)) / (m + 1) of k votes for and m against. All terms are positive."""
    found = 1 / (t + 1)
    for j in range(1, k + 1):
        found = (1 + j * (1 - p_0) / p_0 * found) / (t - j + 1)
    return found


def levels(preferred, classes, alpha):
    """Class by class, the part of alpha that it is tested at."""
    if preferred == UNDECIDED:
        return [alpha / classes] * classes
    return [0.9 * alpha if c == preferred else 0.1 * alpha / (classes - 1) for c in range(classes)]


def settled(counts, drawn, n, p_0, at, alpha):
    """What a look at the counts of all classes says: an outcome and, if that is "certified", the class."""
    for c, level in enumerate(at):
        if evidence(counts[c], drawn, p_0) >= 1 / level:
            return "certified", c
    if all(evidence(drawn - k, drawn, 1 - p_0) >= 1 / alpha for k in counts):
        return "refuted", ABSTAIN
    if all(evidence(k + n - drawn, n, p_0) < 1 / level for k, level in zip(counts, at)):
        return "exhausted", ABSTAIN
    return None, ABSTAIN


def likely(votes, n0, clean):
    """The class that n0 votes prefer, or the ``clean`` one; and the counted votes."""
    return (named(votes[:n0]), votes[n0:]) if clean is None else (clean, votes)


def sequential(votes, n0, classes, n, r, alpha, sigma, clean=None):
    """The sequential test at radius r, vote by vote and class by class."""
    p_0, counts = erfc(-r / sigma / sqrt(2)) / 2, [0] * classes
    preferred, votes = likely(votes, n0, clean)
    for drawn, vote in enumerate(votes[:n], 1):
        if vote != UNDECIDED:
            counts[vote] += 1
        outcome, certified = settled(counts, drawn, n, p_0, levels(preferred, classes, alpha), alpha)
        if outcome:
            break
    found = {"top": named(votes[:drawn]), "prediction": certified, "outcome": outcome, "preferred": preferred}
    return found | {"n_a": max(counts), "drawn": drawn}


@cache
def rejected(k, t, level):
    """The largest p_0, by bisection, that k votes of t reject."""
    low, high = 0.0, k / t
    for _ in range(60):
        p = (low + high) / 2
        low, high = (p, high) if p == 0 or evidence(k, t, p) >= 1 / level else (low, p)
    return low


def until(votes, n0, classes, n, gain, alpha, sigma, clean=None):
    """CERTIFY to a precision: a look at as many votes as certify at all, then a tenth more each time."""
    preferred, votes = likely(votes, n0, clean)
    at = levels(preferred, classes, alpha)
    drawn = more = next((t for t in range(1, n) if evidence(t, t, 0.5) >= 1 / (0.9 * alpha)), n)
    while more:
        more = min(n - drawn, ceil(drawn / 10))
        counts = [votes[:drawn].count(c) for c in range(classes)]
        if settled(counts, drawn, n, 0.5, at, alpha)[0] in ("refuted", "exhausted"):
            break
        k, top = max(counts), named(votes[:drawn])
        now, then = (signed_quantile(rejected(times * k, times * drawn, at[top])) for times in (1, 2))
        if k and sigma * (then - now) < gain:
            break
        drawn += more
    p = rejected(max(counts), drawn, at[named(votes[:drawn])])
    found = _at_level(named(votes[:drawn]), Fraction(p), sigma)
    return found | {"n_a": max(counts), "n": drawn, "n0": n0 if clean is None else 0, "undecided": drawn - sum(counts)}


def signed_quantile(p):
    """Phi^-1(p) of any p in (0, 1)."""
    return -normal_quantile(1 - Fraction(p)) if p < 0.5 else normal_quantile(Fraction(p))
