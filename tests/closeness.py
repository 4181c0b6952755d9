"""How far two computations of the same numbers may lie apart: by rounding, and by nothing else.

Two models with equal weights need not give equal bits. The library that multiplies their matrices picks its order of
summation by where each operand lies in memory and by how many rows there are. A weight that was mapped from a file,
copied, or met by another batch size may be summed in another order.

The bound follows from how floats are added. A sum of n terms, in whatever order, lies within n * eps * (the sum of their
sizes) of the exact sum (Higham, "Accuracy and Stability of Numerical Algorithms", section 4.2), so two orders lie within
twice that of each other. Along a network the terms of its layers add up.
"""

import torch


def assert_equal_up_to_rounding(found, expected, *, terms=512):
    """Compare two tensors of the same computation on another memory layout.

    ``terms`` counts the terms that are summed one after the other on the longest path through the network and back. The
    default is more than any tiny model has; in single precision it allows 1.2e-4 of the largest value.
    """
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=0, atol=2 * terms * torch.finfo(expected.dtype).eps * scale)
