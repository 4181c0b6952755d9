"""The gradient methods, written slowly in their papers' letters: A activations, G = ds/dA, k channels, i and j cells."""

import numpy as np

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
