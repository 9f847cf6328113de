"""The optimizer of the search's recipe, for every training that claims it."""

from __future__ import annotations

import torch

from mambavision.model import MambaVision
from mambavision.training import default_optimizer
from mvsearch.config.sections import ProxyConfig


def search_optimizer(model: MambaVision, proxy: ProxyConfig) -> torch.optim.Optimizer:
    """AdamW as the search trains: fused, with betas (0.9, 0.98); see `mambavision.training.parameter_groups` for decay.

    Args:
        model: whose parameters it holds.
        proxy: the ``proxy`` section of the configuration: learning rate and weight decay.
    """
    return default_optimizer(
        model, learning_rate=proxy.learning_rate, weight_decay=proxy.weight_decay, betas=(0.9, 0.98), fused=True
    )
