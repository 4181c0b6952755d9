"""Tiny transformers whose every step is written out, so that a test can take the attention from them without any tool."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Attend(nn.Module):
    """Multi-head attention, computed eagerly, by torch's fused function, or by einsum; keeps what a test may want."""

    def __init__(self, channels=8, heads=2, how="eager"):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(channels, channels) for _ in range(4))
        self.heads, self.how = heads, how

    def split(self, tokens):
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def forward(self, asking, asked=None):
        asked = asking if asked is None else asked
        q, k, v = self.split(self.q(asking)), self.split(self.k(asked)), self.split(self.v(asked))
        if self.how == "fused":
            mixed = F.scaled_dot_product_attention(q, k, v)
        elif self.how == "einsum":
            weights = (torch.einsum("b h i d, b h j d -> b h i j", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
            mixed = torch.einsum("b h i j, b h j d -> b h i d", weights, v)
        else:
            weights = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
            self.weights = F.dropout(torch.softmax(weights, dim=-1), 0.5, self.training)
            mixed = self.weights @ v
        self.kept = (q, k, v, mixed)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, channels=8, heads=2, how="eager"):
        super().__init__()
        self.norm1, self.attend, self.norm2 = (
            nn.LayerNorm(channels),
            Attend(channels, heads, how),
            nn.LayerNorm(channels),
        )
        self.mlp = nn.Sequential(nn.Linear(channels, 12), nn.GELU(), nn.Linear(12, channels))

    def forward(self, tokens):
        tokens = tokens + self.attend(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class Patches(nn.Module):
    """Patches of 4 pixels a side, in one, two or three dimensions, and tokens before them."""

    def __init__(self, cells, channels=8, before=1, axes=2):
        super().__init__()
        self.conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes](3, channels, 4, 4)
        self.before = nn.Parameter(torch.randn(1, before, channels))
        self.places = nn.Parameter(torch.randn(1, before + cells, channels))

    def forward(self, images):
        patches = self.conv(images).flatten(2).transpose(1, 2)
        return torch.cat([self.before.expand(len(images), -1, -1), patches], 1) + self.places


class Transformer(nn.Module):
    """A vision transformer that reads its first token, or the mean of all."""

    def __init__(self, how="eager", read="class", before=1, depth=3, grid=(3, 4), classes=4):
        super().__init__()
        self.patches = Patches(math.prod(grid), before=before, axes=len(grid))
        self.blocks = nn.ModuleList(Block(how=how) for _ in range(depth))
        self.norm, self.head, self.read = nn.LayerNorm(8), nn.Linear(8, classes), read

    def forward(self, images):
        tokens = self.patches(images)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return self.head(tokens[:, 0] if self.read == "class" else tokens.mean(1))


class Layer(nn.Module):
    """A decoder's layer: queries look at themselves and then at the memory."""

    def __init__(self, how):
        super().__init__()
        self.itself, self.cross, self.norm = Attend(how=how), Attend(how=how), nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))

    def forward(self, queries, memory):
        queries = queries + self.itself(self.norm(queries))
        queries = queries + self.cross(queries, memory)
        return queries + self.mlp(queries)


class Detector(nn.Module):
    """An encoder and a decoder with learned queries, each of which answers: images x queries x classes."""

    def __init__(self, how="eager", queries=5, grid=(3, 4)):
        super().__init__()
        self.patches = Patches(math.prod(grid), before=0)
        self.encoder = nn.ModuleList(Block(how=how) for _ in range(2))
        self.queries = nn.Parameter(torch.randn(1, queries, 8))
        self.decoder = nn.ModuleList(Layer(how) for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        memory = self.patches(images)
        for block in self.encoder:
            memory = block(memory)
        queries = self.queries.expand(len(images), -1, -1)
        for layer in self.decoder:
            queries = layer(queries, memory)
        return self.head(queries)


class Couple(nn.Module):
    """Words and a picture that look at each other, at once or one after the other; the first word answers."""

    def __init__(self, at_once=True, words=5, how="eager"):
        super().__init__()
        self.patches, self.words = Patches(12, before=0), nn.Parameter(torch.randn(1, words, 8))
        self.text, self.image = Block(how=how), Block(how=how)
        self.to_image, self.to_text = Attend(how=how), Attend(how=how)
        self.text2, self.image2 = Block(how=how), Block(how=how)
        self.last = Attend(how=how)
        self.head, self.at_once = nn.Linear(8, 4), at_once

    def forward(self, images):
        words, picture = self.text(self.words.expand(len(images), -1, -1)), self.image(self.patches(images))
        asked = words + self.to_image(words, picture)
        picture = picture + self.to_text(picture, words if self.at_once else asked)
        words, picture = self.text2(asked), self.image2(picture)
        words = words + self.last(words, picture)
        return self.head(words[:, 0])


def made(kind, *arguments, seed=0, **keywords):
    """Build a model in double precision from a seed, and leave the global generator alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(*arguments, **keywords).double().eval()


def pictures(*sides, batch=2, seed=1):
    return torch.randn(batch, 3, *(sides or (12, 16)), generator=torch.Generator().manual_seed(seed)).double()
