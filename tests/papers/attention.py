"""The attention methods, written slowly in their papers' letters: A or P attention, R relevance, h heads, i a token."""

import math

import numpy as np

from papers.twins import replicates


def product(A, B):
    return np.array([[sum(A[i, k] * B[k, j] for k in range(len(B))) for j in range(B.shape[1])] for i in range(len(A))])


def mean_of_heads(A):
    return sum(A[h] for h in range(len(A))) / len(A)


@replicates("rollout")
def abnar_and_zuidema(P, reading):
    """``P`` lists the blocks' attention, heads x tokens x tokens; ``reading`` says how much of each final token is read."""
    joint = np.eye(P[0].shape[1])
    for A in P:
        mixed = mean_of_heads(A) + np.eye(A.shape[1])
        mixed = np.array([row / sum(row) for row in mixed])
        joint = product(mixed, joint)
    return sum(reading[i] * joint[i] for i in range(len(joint)))


def hadamard_and_mean(A, G):
    """Equation 5: the mean over heads of the positive part of the gradient times the attention."""
    H, Q, K = A.shape
    return np.array(
        [[sum(max(G[h, i, j] * A[h, i, j], 0.0) for h in range(H)) / H for j in range(K)] for i in range(Q)]
    )


def normalised(R):
    """Equations 8 and 9."""
    identity = np.eye(len(R))
    hat = R - identity
    return np.array([row / sum(row) if sum(row) else 0 * row for row in hat]) + identity


@replicates("gae")
def chefer_self_attention_alone(P, G, reading):
    R = np.eye(P[0].shape[1])
    for A, gradient in zip(P, G, strict=True):
        R = R + product(hadamard_and_mean(A, gradient), R)
    return sum(reading[i] * (R - np.eye(len(R)))[i] for i in range(len(R)))


def chefer_encoder_and_decoder(encoder, decoder, reading):
    """``encoder`` lists pairs of attention and gradient, ``decoder`` such pairs with "self" or "cross" before them."""
    Rii = np.eye(encoder[0][0].shape[1])
    for A, G in encoder:
        Rii = Rii + product(hadamard_and_mean(A, G), Rii)
    queries = decoder[0][1].shape[1]
    Rqq, Rqi = np.eye(queries), np.zeros((queries, len(Rii)))
    for kind, A, G in decoder:
        bar = hadamard_and_mean(A, G)
        if kind == "self":
            Rqq, Rqi = Rqq + product(bar, Rqq), Rqi + product(bar, Rqi)
        else:
            Rqi = Rqi + product(normalised(Rqq).T, product(bar, normalised(Rii)))
    return sum(reading[i] * Rqi[i] for i in range(queries))


def chefer_co_attention(layers, reading):
    """Each layer is a list of steps; a step, of attentions that are taken at once: (of, over, attention, gradient)."""
    counts = {}
    for step in (step for layer in layers for step in layer):
        for s, q, A, _ in step:
            counts[s], counts[q] = A.shape[1:]
    R = {(s, q): np.eye(counts[s]) if s == q else np.zeros((counts[s], counts[q])) for s in counts for q in counts}
    for step in (step for layer in layers for step in layer):
        before = {key: value.copy() for key, value in R.items()}
        for s, q, A, G in step:
            bar = hadamard_and_mean(A, G)
            if s == q:
                for other in counts:
                    R[s, other] = R[s, other] + product(bar, before[s, other])
            else:
                R[s, q] = R[s, q] + product(normalised(before[s, s]).T, product(bar, normalised(before[q, q])))
                R[s, s] = R[s, s] + product(bar, before[q, s])
    return sum(reading[i] * R["text", "image"][i] for i in range(counts["text"]))


@replicates("legrad")
def bousselham(own):
    """``own`` lists, for each block, the gradient of its own score by its own attention: heads x queries x keys."""
    E = 0
    for G in own:
        H, Q, K = G.shape
        E = E + np.array([sum(max(G[h, i, j], 0.0) for h in range(H) for i in range(Q)) / (H * Q) for j in range(K)])
    return E


@replicates("grad_eclip")
def zhao(w, q, k, v, patches):
    """For each token that is read: ``w`` the gradient at its output, ``q`` its query, ``k`` and ``v`` those of all tokens."""
    H = np.zeros(len(patches))
    for wr, qr in zip(w, q, strict=True):
        cos = [sum(qr * k[i]) / math.sqrt(sum(qr**2)) / math.sqrt(sum(k[i] ** 2)) for i in patches]
        lam = [(c - min(cos)) / (max(cos) - min(cos)) for c in cos]
        for n, i in enumerate(patches):
            H[n] += sum(wr[c] * v[i, c] * lam[n] for c in range(len(wr)))
    return H


@replicates("vit_cx")
def xie(A, x, score, noise_of, enlarge, delta=0.1, sigma=0.1):
    """``noise_of`` draws the noise of mask i out of N; ``enlarge`` brings a mask to the image's size."""

    def minmax(M):
        return (M - M.min()) / (M.max() - M.min())

    M = [minmax(one) for one in A]
    groups = [[i] for i in range(len(M))]

    def apart(one, other):
        def cosine(a, b):
            return sum(a.ravel() * b.ravel()) / math.sqrt(sum(a.ravel() ** 2)) / math.sqrt(sum(b.ravel() ** 2))

        return max(1 - cosine(M[a], M[b]) for a in one for b in other)

    while len(groups) > 1:
        pairs = [(apart(a, b), i, j) for i, a in enumerate(groups) for j, b in enumerate(groups) if i < j]
        nearest, i, j = min(pairs)
        if nearest >= delta:
            break
        groups[i] = sorted(groups[i] + groups.pop(j))
    groups.sort()
    masks = [minmax(sum(M[i] for i in group)) for group in groups]
    N = len(masks)
    S = np.zeros(A.shape[1:])
    for i, mask in enumerate(masks):
        large = enlarge(mask)
        Z = sigma * noise_of(i, N)
        s = score(x * large + Z * (1 - large)) - score(x + Z * (1 - large)) + score(x)
        S = S + s * mask / sum(masks) / N
    return S - S.min(), N
