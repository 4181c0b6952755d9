"""The activation methods, written slowly in their papers' letters: A activations, k channels, i and j cells."""

import math

import numpy as np

from papers.twins import replicates


@replicates("cam")
def zhou_equation_2(A, w):
    K, U, V = A.shape
    return np.array([[sum(w[k] * A[k, i, j] for k in range(K)) for j in range(V)] for i in range(U)])


def first_principal_component(A):
    """Project the centred cells on the leading right singular vector; the sign is the solver's."""
    K, U, V = A.shape
    O = np.array([[A[k, i, j] for k in range(K)] for i in range(U) for j in range(V)])  # noqa: E741 - the paper's letter
    O = O - np.array([sum(O[:, k]) / (U * V) for k in range(K)])  # noqa: E741
    _, _, VT = np.linalg.svd(O, full_matrices=False)
    return np.array([sum(row[k] * VT[0, k] for k in range(K)) for row in O]).reshape(U, V)


def turned_to_the_mean(L, A):
    """Turn a map so that its inner product with the mean over channels is not negative."""
    K, U, V = A.shape
    agreement = sum(L[i, j] * sum(A[k, i, j] for k in range(K)) / K for i in range(U) for j in range(V))
    return L if agreement >= 0 else -L


@replicates("eigen_cam")
def bany_muhammad_and_yeasin_on_centred_cells(A):
    return turned_to_the_mean(first_principal_component(A), A)


@replicates("kpca_cam")
def karmani(A, kernel="sigmoid", gamma=None):
    K, U, V = A.shape
    N = U * V
    gamma = 1 / K if gamma is None else gamma
    x = A.reshape(K, N).T - np.array([sum(A[k].ravel()) / N for k in range(K)])
    of = {
        "sigmoid": lambda a, b: math.tanh(gamma * sum(a * b) + 1),
        "rbf": lambda a, b: math.exp(-gamma * sum((a - b) ** 2)),
    }[kernel]
    products = np.array([[of(x[n], x[m]) for m in range(N)] for n in range(N)])
    ones = np.full((N, N), 1 / N)  # Schoelkopf, Smola and Mueller 1998, eq. 20: the kernel of centred points
    centred = products - ones @ products - products @ ones + ones @ products @ ones
    values, vectors = np.linalg.eigh(centred)
    leading = np.argmax(values)
    return turned_to_the_mean((vectors[:, leading] * math.sqrt(values[leading])).reshape(U, V), A)


@replicates("fem")
def fuad_as_pytorch_grad_cam_has_it(A, sigmas=2.0):
    K, U, V = A.shape
    cells = [(i, j) for i in range(U) for j in range(V)]
    w = []
    for k in range(K):
        mu = sum(A[k, i, j] for i, j in cells) / (U * V)
        sigma = math.sqrt(sum((A[k, i, j] - mu) ** 2 for i, j in cells) / (U * V))
        w.append(sum(A[k, i, j] > mu + sigmas * sigma for i, j in cells) / (U * V))
    return np.array([[sum(w[k] * A[k, i, j] for k in range(K)) for j in range(V)] for i in range(U)])


@replicates("lafam")
def karjauv_and_albayrak_before_min_and_max(A):
    K, U, V = A.shape
    return np.array([[sum(A[k, i, j] for k in range(K)) / K for j in range(V)] for i in range(U)])
