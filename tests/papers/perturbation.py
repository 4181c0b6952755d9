"""The methods that ask again, written slowly in their papers' letters.

A are one image's maps (k, cells), G the score's gradients, x the image (c, pixels). What asks is a function: f scores an image, F
maps, and slope is df/dx.
All loops run over index tuples, so that a signal, a picture and a volume are one code.
"""

import itertools
import math

import numpy as np

from papers.twins import replicates


def spots(shape):
    return list(np.ndindex(*shape))


def up(A, size, corners=False):
    """Enlarge one map linearly along each axis."""

    def neighbours(pixel, cells, pixels):
        if corners:
            t = pixel * (cells - 1) / (pixels - 1) if pixels > 1 else 0.0
        else:
            t = max((pixel + 0.5) * cells / pixels - 0.5, 0.0)
        low = min(math.floor(t), cells - 1)
        return [(low, 1 - (t - low)), (min(low + 1, cells - 1), t - low)]

    out = np.zeros(size)
    for spot in spots(size):
        for corner in itertools.product(*(neighbours(*axis) for axis in zip(spot, A.shape, size, strict=True))):
            out[spot] += A[tuple(cell for cell, _ in corner)] * math.prod(weight for _, weight in corner)
    return out


def s(A):
    """The papers' normalisation: (A - min) / (max - min)."""
    low, high = min(A.ravel()), max(A.ravel())
    return np.array([(a - low) / (high - low) if high > low else 0.0 for a in A.ravel()]).reshape(A.shape)


def softmax(values):
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def weighed(w, A):
    L = np.zeros(A.shape[1:])
    for ij in spots(L.shape):
        L[ij] = sum(w[k] * A[(k, *ij)] for k in range(len(A)))
    return L


def seen_through(x, M):
    """The Hadamard product of every colour with a mask."""
    masked = np.zeros_like(x)
    for c, *ij in spots(x.shape):
        masked[(c, *ij)] = x[(c, *ij)] * M[tuple(ij)]
    return masked


def mask(Ak, x, corners=False):
    """Algorithm 1 of Score-CAM has s(up(A_k)); torch-cam swaps the two."""
    size = x.shape[1:]
    return s(up(Ak, size, corners=True)) if corners else up(s(Ak), size)


@replicates("score_cam")
def wang_algorithm_1_before_the_relu(A, x, f, corners=False):
    baseline = f(np.zeros_like(x))
    C = [f(seen_through(x, mask(Ak, x, corners))) - baseline for Ak in A]
    return weighed(softmax(C), A)


@replicates("ss_cam")
def wang_smoothed(A, x, f, noises):
    C = [sum(f(seen_through(x, mask(Ak, x) + noise)) for noise in noises) / len(noises) for Ak in A]
    return weighed(softmax(C), A)


@replicates("is_cam")
def naidu_integrated(A, x, f, N):
    C = [sum(f(seen_through(x, i / N * mask(Ak, x))) for i in range(1, N + 1)) / N for Ak in A]
    return weighed(softmax(C), A)


@replicates("gscore_cam")
def chen_on_the_channels_of_largest_mean_gradient(A, x, G, f, K):
    means = [sum(G[(k, *ij)] for ij in spots(G.shape[1:])) / len(spots(G.shape[1:])) for k in range(len(A))]
    best = sorted(range(len(A)), key=lambda k: -means[k])[:K]
    C = [f(seen_through(x, mask(A[k], x))) for k in best]
    return weighed(softmax(C), np.array([A[k] for k in best]))


def percentile(values, share):
    ordered, place = sorted(values), share * (len(values) - 1)
    low = math.floor(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(values) - 1)] - ordered[low])


def blurred(x, radius):
    """A Gaussian of 2 radius + 1 pixels, of deviation 2 radius (the paper: 51 and 50), over the pixels that are there."""
    out = np.zeros_like(x)
    for c, *ij in spots(x.shape):
        total = 0.0
        for uv in spots(x.shape[1:]):
            apart = [a - b for a, b in zip(ij, uv, strict=True)]
            if max(map(abs, apart)) <= radius:
                weight = math.exp(-sum(d * d for d in apart) / (2 * (2 * radius) ** 2))
                out[(c, *ij)] += weight * x[(c, *uv)]
                total += weight
        out[(c, *ij)] /= total
    return out


@replicates("group_cam")
def zhang_before_the_relu(A, G, x, f, members, theta, radius):
    """At the image's size, as in the paper. ``members`` lists the channels of each group."""
    size, cells = x.shape[1:], spots(A.shape[1:])
    w = [sum(G[(k, *ij)] for ij in cells) / len(cells) for k in range(len(A))]
    B, L = blurred(x, radius), np.zeros(size)
    for group in members:
        M = np.zeros(A.shape[1:])
        for ij in cells:
            M[ij] = max(sum(w[k] * A[(k, *ij)] for k in group), 0.0)
        bar = percentile(list(M.ravel()), theta)
        for ij in cells:
            M[ij] = M[ij] if M[ij] > bar else 0.0
        M = s(up(M, size))
        alpha = f(seen_through(x, M) + seen_through(B, 1 - M)) - f(B)
        for ij in spots(size):
            L[ij] += alpha * M[ij]
    return L


@replicates("ablation_cam")
def desai_and_ramaswamy_before_the_relu(A, F):
    y, w = F(A), []
    for k in range(len(A)):
        without = A.copy()
        without[k] = 0.0
        w.append((y - F(without)) / y)
    return weighed(w, A)


@replicates("recipro_cam")
def byun_and_lee(A, F, kernel=((1 / 16, 1 / 8, 1 / 16), (1 / 8, 1 / 4, 1 / 8), (1 / 16, 1 / 8, 1 / 16))):
    kernel = np.array(kernel)
    reach = [side // 2 for side in kernel.shape]
    L = np.zeros(A.shape[1:])
    for ij in spots(L.shape):
        new = np.zeros_like(A)
        for k, *uv in spots(A.shape):
            place = tuple(b - a + r for a, b, r in zip(ij, uv, reach, strict=True))
            if all(0 <= p < side for p, side in zip(place, kernel.shape, strict=True)):
                new[(k, *uv)] = A[(k, *uv)] * kernel[place]
        L[ij] = F(new)
    return L - L.min()  # the paper stretches it to [0, 1]


@replicates("opti_cam")
def zhang_by_adam(A, x, slope, steps, eta):
    """The chain rule by hand: from df/dx back through the product, minmax, enlarging (by unit maps), sum and softmax."""
    size, cells, K = x.shape[1:], spots(A.shape[1:]), len(A)
    units = {}
    for ij in cells:
        unit = np.zeros(A.shape[1:])
        unit[ij] = 1.0
        units[ij] = up(unit, size)
    u, m, v = [0.0] * K, [0.0] * K, [0.0] * K
    for t in range(1, steps + 1):
        w = softmax(u)
        S = up(weighed(w, A), size)
        low, high = (min(spots(size), key=lambda ij: S[ij]), max(spots(size), key=lambda ij: S[ij]))
        g = slope(seen_through(x, s(S)))
        dM = {ij: sum(x[(c, *ij)] * g[(c, *ij)] for c in range(len(x))) for ij in spots(size)}
        span = S[high] - S[low]
        dS = {ij: dM[ij] / span for ij in spots(size)}
        dS[low] -= sum(dM[ij] * (1 - s(S)[ij]) for ij in spots(size)) / span
        dS[high] -= sum(dM[ij] * s(S)[ij] for ij in spots(size)) / span
        dw = [sum(A[(k, *ij)] * units[ij][pq] * dS[pq] for ij in cells for pq in spots(size)) for k in range(K)]
        mean = sum(w[k] * dw[k] for k in range(K))
        for k in range(K):
            du = w[k] * (dw[k] - mean)
            m[k] = 0.9 * m[k] + 0.1 * du
            v[k] = 0.999 * v[k] + 0.001 * du * du
            u[k] += eta * (m[k] / (1 - 0.9**t)) / (math.sqrt(v[k] / (1 - 0.999**t)) + 1e-8)
    return weighed(softmax(u), A)


def random_masks(size, grids, shifts):
    """Section 3.2 of RISE: h x w grids, enlarged to (h + 1) C_H x (w + 1) C_W, cut out at a shift of less than a cell."""
    masks = []
    for grid, shift in zip(grids, shifts, strict=True):
        C = [math.ceil(side / cells) for side, cells in zip(size, grid.shape, strict=True)]
        large = up(grid, tuple((cells + 1) * side for cells, side in zip(grid.shape, C, strict=True)))
        masks.append(large[tuple(slice(begin, begin + side) for begin, side in zip(shift, size, strict=True))])
    return masks


@replicates("rise")
def petsiuk(x, f, grids, shifts, p):
    S, masks = np.zeros(x.shape[1:]), random_masks(x.shape[1:], grids, shifts)
    for M in masks:
        score = f(seen_through(x, M))
        for ij in spots(S.shape):
            S[ij] += score * M[ij] / (p * len(masks))
    return S - S.min()  # the paper shows it stretched to [0, 1]


@replicates("d_rise")
def petsiuk_for_detectors(x, similarity, grids, shifts):
    H = np.zeros(x.shape[1:])
    for M in random_masks(x.shape[1:], grids, shifts):
        w = similarity(seen_through(x, M))
        for ij in spots(H.shape):
            H[ij] += w * M[ij]
    return H - H.min()  # the paper shows it stretched to [0, 1]


@replicates("occlusion")
def zeiler_and_fergus(x, f, window, stride, grey):
    y, size = f(x), x.shape[1:]
    drops = {ij: [] for ij in spots(size)}
    begins = []
    for side in size:
        places, width = [0], min(window, side)
        while places[-1] + width < side:
            places.append(min(places[-1] + stride, side - width))
        begins.append(places)
    for corner in itertools.product(*begins):
        inside = [
            ij
            for ij in spots(size)
            if all(a <= i < a + min(window, side) for i, a, side in zip(ij, corner, size, strict=True))
        ]
        hidden = x.copy()
        for ij in inside:
            for c in range(len(x)):
                hidden[(c, *ij)] = grey
        drop = y - f(hidden)
        for ij in inside:
            drops[ij].append(drop)
    L = np.zeros(size)
    for ij in spots(size):
        L[ij] = sum(drops[ij]) / len(drops[ij])
    return L
