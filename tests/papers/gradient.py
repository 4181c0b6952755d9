"""The gradient methods, written slowly in their papers' letters: A activations, G = ds/dA, k channels, i and j cells."""

import numpy as np

from papers.activation import first_principal_component, turned_to_the_mean
from papers.twins import replicates


@replicates("grad_cam")
def selvaraju_equations_1_and_2_before_the_relu(A, G):
    K, U, V = A.shape
    alpha = [sum(G[k, i, j] for i in range(U) for j in range(V)) / (U * V) for k in range(K)]
    return np.array([[sum(alpha[k] * A[k, i, j] for k in range(K)) for j in range(V)] for i in range(U)])


@replicates("hires_cam")
def draelos_and_carin(A, G):
    K, U, V = A.shape
    return np.array([[sum(G[k, i, j] * A[k, i, j] for k in range(K)) for j in range(V)] for i in range(U)])


@replicates("layer_cam")
def jiang_before_the_last_relu(A, G):
    K, U, V = A.shape
    return np.array([[sum(max(G[k, i, j], 0.0) * A[k, i, j] for k in range(K)) for j in range(V)] for i in range(U)])


def cells(maps):
    """Every cell's index, whatever the number of axes."""
    return list(np.ndindex(maps.shape[1:]))


@replicates("grad_cam_pp")
def chattopadhyay_equation_19_before_the_last_relu(A, G):
    K, U, V = A.shape
    w = []
    for k in range(K):
        S = sum(A[k, a, b] for a in range(U) for b in range(V))
        alpha = {
            ij: 0.0 if G[k][ij] == 0 else G[k][ij] ** 2 / (2 * G[k][ij] ** 2 + S * G[k][ij] ** 3) for ij in cells(A)
        }
        w.append(sum(alpha[ij] * max(G[k][ij], 0.0) for ij in cells(A)))
    return np.array([[sum(w[k] * A[k, i, j] for k in range(K)) for j in range(V)] for i in range(U)])


@replicates("xgrad_cam")
def fu_before_the_last_relu(A, G):
    K, U, V = A.shape
    w = []
    for k in range(K):
        S = sum(A[k][ij] for ij in cells(A))
        w.append(0.0 if S == 0 else sum(A[k][ij] / S * G[k][ij] for ij in cells(A)))
    return np.array([[sum(w[k] * A[k, i, j] for k in range(K)) for j in range(V)] for i in range(U)])


@replicates("elementwise_grad_cam")
def pytorch_grad_cam_element_wise(A, G):
    K, U, V = A.shape
    return np.array([[sum(max(G[k, i, j] * A[k, i, j], 0.0) for k in range(K)) for j in range(V)] for i in range(U)])


@replicates("eigen_grad_cam")
def pytorch_grad_cam_eigen_grad(A, G):
    return turned_to_the_mean(first_principal_component(G * A), G * A)


@replicates("seg_eigen_cam")
def chung_and_ying(A, G):
    L = first_principal_component(np.abs(G) * A)
    return -L if abs(L.min()) > abs(L.max()) else L


@replicates("seg_xres_cam")
def hasany(A, G, window=2, pooling="mean"):
    """On any number of axes: a cell's window holds the cells whose indices have the same quotients by its length."""
    L = np.zeros(A.shape[1:])
    for ij in cells(A):
        around = [ab for ab in cells(A) if all(a // window == i // window for a, i in zip(ab, ij, strict=True))]
        for k in range(len(A)):
            values = [G[k][ab] for ab in around]
            L[ij] += A[k][ij] * (max(values) if pooling == "max" else sum(values) / len(values))
    return L


@replicates("shapley_cam")
def cai(A, G, H):
    """H is the whole Hessian, indexed by two places of the flattened maps."""
    K, U, V = A.shape
    a, g = A.ravel(), G.ravel()
    values = np.array([g[p] - 0.5 * sum(H[p, q] * a[q] for q in range(len(a))) for p in range(len(a))])
    w = [sum(values.reshape(K, -1)[k]) / (U * V) for k in range(K)]
    return np.array([[sum(w[k] * A[k, i, j] for k in range(K)) for j in range(V)] for i in range(U)])


@replicates("smooth_grad_cam_pp")
def omeiza(A, noisy):
    """``noisy`` holds the gradients at each noisy copy; A is the image's own."""
    K, U, V = A.shape
    n = len(noisy)
    D1, D2, D3 = (sum(G**power for G in noisy) / n for power in (1, 2, 3))
    w = []
    for k in range(K):
        S = sum(A[k][ij] for ij in cells(A))
        alpha = {ij: 0.0 if D2[k][ij] == 0 else D2[k][ij] / (2 * D2[k][ij] + S * D3[k][ij]) for ij in cells(A)}
        w.append(sum(alpha[ij] * max(D1[k][ij], 0.0) for ij in cells(A)))
    return np.array([[sum(w[k] * A[k, i, j] for k in range(K)) for j in range(V)] for i in range(U)])


@replicates("integrated_grad_cam")
def sattarzadeh_in_the_layers_maps(A, gradient_at, steps=16):
    """``gradient_at`` gives the score's gradient at any maps; the baseline is maps of zeros."""
    K, U, V = A.shape
    integral = np.zeros(A.shape)
    for m in range(steps):
        integral += gradient_at((m + 0.5) / steps * A) / steps
    w = [sum(integral[k][ij] for ij in cells(A)) / (U * V) for k in range(K)]
    return np.array([[sum(w[k] * (A[k, i, j] - 0) for k in range(K)) for j in range(V)] for i in range(U)])
