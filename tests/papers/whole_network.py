"""The methods of the whole network, written slowly in their papers' letters: x the image, c colours, S or y the score.

A network is a list of steps here: ``(W, b, shape)`` for ``f = W f + b`` on flat values, laid out as ``shape``, or ``"relu"``.
"""

import itertools

import numpy as np

from papers.twins import replicates


def spots(shape):
    return list(np.ndindex(*shape))


@replicates("input_gradient")
def simonyan_section_3_1(w):
    M = np.zeros(w.shape[1:])
    for ij in spots(M.shape):
        M[ij] = max(abs(w[(c, *ij)]) for c in range(len(w)))
    return M


@replicates("integrated_gradients")
def sundararajan_equation_1(x, baseline, gradient, panels=256):
    """The integral by Simpson's rule on very many panels: another rule than the method's, so neither can hide its error."""
    start = np.full_like(x, baseline)
    integral = np.zeros_like(x)
    for k in range(2 * panels + 1):
        weight = 1 if k in (0, 2 * panels) else 4 if k % 2 else 2
        integral += weight * gradient(start + k / (2 * panels) * (x - start)) / (6 * panels)
    M = np.zeros(x.shape[1:])
    for ij in spots(M.shape):
        M[ij] = sum((x[(c, *ij)] - start[(c, *ij)]) * integral[(c, *ij)] for c in range(len(x)))
    return M


@replicates("smooth_grad")
def smilkov(x, spread, noises, gradient):
    values = [x[spot] for spot in spots(x.shape)]
    sigma = spread * (max(values) - min(values))
    mean = np.zeros_like(x)
    for noise in noises:
        mean += gradient(x + sigma * noise) / len(noises)
    return simonyan_section_3_1(mean)


def forward(steps, x):
    """What goes into each step, and the outputs at the end."""
    f, inputs = x.flatten(), []
    for step in steps:
        inputs.append(f)
        if isinstance(step, str):
            f = np.array([max(value, 0.0) for value in f])
        else:
            W, b, _ = step
            f = np.array([sum(row[k] * f[k] for k in range(len(f))) for row in W]) + b
    return inputs, f


def backward(steps, x, target, guided):
    """The gradient (or the guided one) by each step's output, and by the image."""
    inputs, y = forward(steps, x)
    R = np.array([float(k == target) for k in range(len(y))])
    by_output = []
    for step, f in zip(reversed(steps), reversed(inputs), strict=True):
        by_output.insert(0, R)
        if isinstance(step, str):
            R = np.array([r if value > 0 and (r > 0 or not guided) else 0.0 for r, value in zip(R, f, strict=True)])
        else:
            W = step[0]
            R = np.array([sum(W[o, k] * R[o] for o in range(len(R))) for k in range(W.shape[1])])
    return by_output, R.reshape(x.shape)


@replicates("guided_backprop")
def springenberg_section_3_4(steps, x, target):
    _, R = backward(steps, x, target, guided=True)
    M = np.zeros(x.shape[1:])
    for ij in spots(M.shape):
        M[ij] = sum(R[(c, *ij)] for c in range(len(x)))
    return M


def enlarged(m, size, corners):
    """Linear interpolation in any number of axes; the corners' centres lie on each other, or the corners themselves."""
    out = np.zeros(size)
    for spot in spots(size):
        neighbours = []
        for i, old, new in zip(spot, m.shape, size, strict=True):
            at = (i * (old - 1) / (new - 1) if new > 1 else 0.0) if corners else (i + 0.5) * old / new - 0.5
            at = min(max(at, 0.0), old - 1.0)
            low = int(at)
            neighbours.append([(low, 1 - (at - low)), (min(low + 1, old - 1), at - low)])
        for corner in itertools.product(*neighbours):
            weight = 1.0
            for _, share in corner:
                weight *= share
            out[spot] += weight * m[tuple(place for place, _ in corner)]
    return out


@replicates("guided_grad_cam")
def selvaraju_guided(A, G, steps, x, target):
    _, R = backward(steps, x, target, guided=True)
    cells = spots(A.shape[1:])
    alpha = [sum(G[(k, *ij)] for ij in cells) / len(cells) for k in range(len(A))]
    L = np.zeros(A.shape[1:])
    for ij in cells:
        L[ij] = max(sum(alpha[k] * A[(k, *ij)] for k in range(len(A))), 0.0)
    U = enlarged(L, x.shape[1:], corners=False)
    M = np.zeros(x.shape[1:])
    for ij in spots(M.shape):
        M[ij] = sum(R[(c, *ij)] * U[ij] for c in range(len(x)))
    return M


def psi(term, size):
    """As the authors' code has it: rescaled over all channels together, enlarged with corner on corner."""
    values = [abs(term[spot]) for spot in spots(term.shape)]
    low, high = min(values), max(values)
    out = np.zeros(size)
    for channel in term:
        scaled = np.zeros(channel.shape)
        for ij in spots(channel.shape):
            scaled[ij] = (abs(channel[ij]) - low) / (high - low) if high > low else 0.0
        out += enlarged(scaled, size, corners=True)
    return out


@replicates("full_grad")
def srinivas_and_fleuret(steps, x, target):
    by_output, by_image = backward(steps, x, target, guided=False)
    S = psi(x * by_image, x.shape[1:])
    for step, g in zip(steps, by_output, strict=True):
        if not isinstance(step, str) and len(step[2]) == x.ndim and step[1].any():
            S = S + psi((step[1] * g).reshape(step[2]), x.shape[1:])
    return S


@replicates("poly_cam")
def englebert(layers, x, f, kind):
    """PCAM+, PCAM- and PCAM+/- before the last ReLU; ``layers`` are channel x space, from the last layer to the first."""

    def stretched(m):
        return (m - m.min()) / (m.max() - m.min()) if m.max() > m.min() else np.zeros_like(m)

    M = None
    for A in layers:
        P = np.zeros(A.shape[1:])
        for Ak in A:
            mask = enlarged(stretched(Ak), x.shape[1:], corners=False)
            seen = f(np.array([mask * colour for colour in x])) - f(np.zeros_like(x))
            lost = f(x) - f(np.array([(1 - mask) * colour for colour in x]))
            w = {"plus": seen, "minus": max(lost, 0.0), "both": max(seen + lost, 0.0)}[kind]
            P = P + w * Ak
        if M is not None:
            mean = enlarged(enlarged(np.maximum(P, 0), M.shape, corners=False), P.shape, corners=False)
            P = P / np.maximum(mean, 1e-12) * enlarged(M, P.shape, corners=False)
        M = np.maximum(P, 0)
    return P
