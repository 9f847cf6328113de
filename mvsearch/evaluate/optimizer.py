"""The optimizer of the search's recipe, for every training that claims it."""

from __future__ import annotations

import torch
from timm.optim import param_groups_weight_decay

from mambavision.model import MambaVision
from mvsearch.config.sections import ProxyConfig


def search_optimizer(model: MambaVision, proxy: ProxyConfig) -> torch.optim.Optimizer:
    """AdamW as the search trains: fused, with betas (0.9, 0.98), without decay on norms, biases and the scan's own.

    Args:
        model: whose parameters it holds.
        proxy: the ``proxy`` section of the configuration: learning rate and weight decay.
    """
    groups = param_groups_weight_decay(model, proxy.weight_decay, no_weight_decay_list=model.no_weight_decay())
    return torch.optim.AdamW(groups, lr=proxy.learning_rate, betas=(0.9, 0.98), fused=True)
