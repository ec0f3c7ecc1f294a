"""Noise on text embeddings, so that a decoder trained on them alone can read image embeddings (arXiv 2407.11211)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name


@dataclass(frozen=True)
class Noise:
    """How much of which noise. The defaults are the paper's."""

    gaussian: float = 3.25
    """Norm of the Gaussian noise: each element's standard deviation is this over the root of F."""
    angles: tuple[float, float] = (45.0, 75.0)
    """Degrees between which a rotation's angle is uniform."""
    rotated: float = 0.15
    """Share of embeddings that are rotated; the others get Gaussian noise."""

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Unit vectors [b, F] -> noisy unit vectors [b, F], drawn from torch's global generator."""
        b, dim = embeddings.shape
        direction = torch.randn_like(embeddings)
        shaken = embeddings + direction * (self.gaussian / math.sqrt(dim))
        # A random direction at right angles to the embedding, and a turn towards it.
        along = (direction * embeddings).sum(1, keepdim=True) * embeddings
        aside = F.normalize(direction - along, dim=1)
        low, high = self.angles
        angle = torch.deg2rad(low + (high - low) * torch.rand(b, 1, device=embeddings.device))
        turned = angle.cos() * embeddings + angle.sin() * aside
        turn = torch.rand(b, 1, device=embeddings.device) < self.rotated
        return F.normalize(torch.where(turn, turned, shaken), dim=1)
