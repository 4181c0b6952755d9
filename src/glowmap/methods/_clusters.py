"""Clusters of things that lie close together: merging by complete linkage."""

import torch
from torch import Tensor


def clusters(distances: Tensor, below: float) -> list[list[int]]:
    """Merge the two nearest clusters again and again, as long as their furthest members lie less than ``below`` apart.

    ``distances`` is symmetric, things x things. The answer lists each cluster's members, the one with the first member first.
    Of equal distances the first in reading order goes first.
    """
    apart = distances.detach().to("cpu", torch.float64).clone()
    apart = torch.maximum(apart, apart.T).fill_diagonal_(torch.inf)
    members = [[thing] for thing in range(len(apart))]
    while True:
        nearest = int(apart.argmin())
        one, other = sorted(divmod(nearest, len(apart)))
        if not float(apart[one, other]) < below:
            return sorted(group for group in members if group)
        members[one] = sorted(members[one] + members[other])
        members[other] = []
        furthest = torch.maximum(apart[one], apart[other])
        apart[one], apart[:, one] = furthest, furthest
        apart[other], apart[:, other] = torch.inf, torch.inf
