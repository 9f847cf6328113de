"""The recipe that the card of a retrained export claims is the search's: both paths step one optimizer."""

from __future__ import annotations

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from trainings import LAYOUT, settings, stripes

from mambavision.model import MambaVision
from mvsearch.config.sections import StudyConfig
from mvsearch.evaluate import proxy
from mvsearch.evaluate.retrain import retrain


@pytest.fixture
def stepped():
    """Name of a path to what the optimizer that it really stepped held and was set to; filled by calling it."""
    models, optimizers = [], []
    handles = [
        register_module_forward_pre_hook(lambda module, _: models.append(module)),
        register_optimizer_step_pre_hook(lambda optimizer, *_: optimizers.append(optimizer)),
    ]

    def of(run):
        models.clear()
        optimizers.clear()
        run()
        (optimizer,) = {id(one): one for one in optimizers}.values()
        names = {
            id(param): name
            for model in models
            if isinstance(model, MambaVision)
            for name, param in model.named_parameters()
        }
        groups = [
            ({names[id(param)] for param in group["params"]}, group["weight_decay"], group["betas"])
            for group in optimizer.param_groups
        ]
        return type(optimizer), optimizer.defaults, groups

    yield of
    for handle in handles:
        handle.remove()


def test_a_retraining_steps_the_optimizer_of_the_search(stepped, tmp_path):
    config = StudyConfig.model_validate(
        {
            "name": "x",
            "layout": {"stem_stride": 2, "width": 16, "stages": [{"blocks": "MA", "depth": 2, "dim": 1}]},
            "proxy": settings(epochs=1, learning_rate=0.003, weight_decay=0.07).model_dump(),
        }
    )
    on_device = proxy.DeviceData(stripes(), torch.device("cpu"))
    searched = stepped(lambda: list(proxy.train(LAYOUT, on_device, config.proxy, seed=0, to_epoch=1)))
    retrained = stepped(lambda: retrain(LAYOUT, config, stripes(), 1, tmp_path))
    assert retrained == searched
    kind, defaults, groups = searched
    assert kind is torch.optim.AdamW
    assert (defaults["lr"], defaults["betas"], defaults["fused"]) == (0.003, (0.9, 0.98), True)
    decays = {name: decay for names, decay, _ in groups for name in names}
    model = MambaVision(LAYOUT, num_classes=2, in_chans=1)
    assert decays.keys() == dict(model.named_parameters()).keys()
    spared = {name for name, decay in decays.items() if decay == 0}
    assert {decays[name] for name in decays.keys() - spared} == {0.07}
    for ending in ("A_log", ".D", "bias", "norm.weight"):
        assert {name for name in decays if name.endswith(ending)} <= spared, ending
    assert any(name.endswith("A_log") for name in spared)
