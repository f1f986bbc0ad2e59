"""How much earlier layers' gates say of a later one's, by random forests (Algorithm 1 of the DIA paper)."""

from __future__ import annotations

import torch
from torch import Tensor


def gini_row(h: Tensor, t: int, *, trees: int = 10, seed: int = 0) -> Tensor:
    """Return how much each layer before layer t, counted from 0, says of its gates: a forest learns ``h_t`` from all
    channels of ``h_0 .. h_{t-1}``, and its importances are summed over the channels of each and divided by the largest.

    h: [T, B, C]; a sample is a row to learn from.
    trees: of the forest; sums over more of them vary less.
    seed: of the forest. The result does not depend on the number of threads.
    Returns [T], zero from t on; all zero for the first layer, and where ``h_t`` is the same for all samples.
    """
    if h.dim() != 3 or not 0 <= t < len(h) or h.shape[1] < 2:
        raise ValueError(f"h, t: expected [T, B, C] of at least 2 samples and t < T, got {list(h.shape)} and {t}")
    if not h.isfinite().all():
        raise ValueError("h: expected finite numbers, got others; the network that they come from has diverged")
    row = torch.zeros(len(h), dtype=torch.float64)
    if t == 0:
        return row
    try:
        from sklearn.ensemble import RandomForestRegressor
    except ImportError as error:
        raise ImportError("gini: expected scikit-learn, which is not installed; pip install scikit-learn") from error
    known = h[:t].detach().double().cpu().transpose(0, 1).flatten(1).numpy()  # [B, t C]
    wanted = h[t].detach().double().cpu().squeeze(-1).numpy()
    forest = RandomForestRegressor(trees, random_state=seed, n_jobs=torch.get_num_threads()).fit(known, wanted)
    of_sources = torch.from_numpy(forest.feature_importances_).view(t, -1).sum(1)
    row[:t] = of_sources / of_sources.max() if of_sources.max() > 0 else 0.0
    return row


def gini(h: Tensor, *, trees: int = 10, seed: int = 0) -> Tensor:
    """Return ``gini_row`` of all layers of a stage, [T, T]: row t is layer t, column m what layer m says of it."""
    return torch.stack([gini_row(h, t, trees=trees, seed=seed) for t in range(len(h))])
