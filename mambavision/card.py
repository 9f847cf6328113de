"""Cards: how an entry is trained further, and the whole card of one that `mambavision train` saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mambavision.layout import HybridLayout
from mambavision.words import percent, plural


def train_further(name: str) -> str:
    """The section of a card that shows how to train the entry further, in Markdown."""
    return f"""## Train further

On a folder of images, `PATH/train/CLASS/*.jpg` and `PATH/val/CLASS/*.jpg`, or `PATH/CLASS/*.jpg`:

```python
from timm.data import Mixup
from mambavision import Trainer, create_image_loaders, create_model
train, val = create_image_loaders("PATH", "{name}", batch_size=64)
model = create_model("{name}", pretrained=True, num_classes=len(train.dataset.classes))
trainer = Trainer(model, train, val, mixup=Mixup(0.2, num_classes=model.num_classes), output="{name}-further")
metrics = trainer.train(num_epochs=20)
```

The same from the command line, with a cosine schedule: `mambavision train {name} --data PATH --epochs 20`
"""


def trained_card(name: str, config: Mapping[str, Any]) -> str:
    """The card of an entry that `mambavision train` saved, Markdown. Its first line says what the weights are.

    Args:
        name: of the entry.
        config: its configuration, with what `mambavision train` puts in ``trained``.
    """
    layout = HybridLayout.from_dict(config["layout"])
    trained = config["trained"]
    channels, height, width = config["input_size"]
    stages = "\n".join(
        f"| {number} | `{stage.blocks}` | {stage.dim} | {stage.state if stage.scans else '–'} | "
        f"{stage.heads if stage.attends else '–'} | {stage.window if stage.window is not None else 'whole map'} |"
        for number, stage in enumerate(layout.stages, start=1)
    )
    best = trained["best"]
    kind = "average (EMA) of the weights" if best["ema"] else "weights"
    return f"""**Trained on images of one's own**: {trained["train_images"]:,} images in \
{plural(config["num_classes"], "class", "classes")} for {plural(trained["epochs"], "epoch")} at {height} × {width} px, \
{trained["from"]}.

# {name}

| stage | blocks | width | state | heads | window |
|--:|---|--:|--:|--:|---|
{stages}

## Numbers

Validation top-1 {percent(best["val_top1"], 2)} (loss {best["val_loss"]:.4f}, n = {trained["val_images"]:,} images, \
one seed, so there is no error bar): the {kind} of the best epoch, {best["epoch"]}, chosen on these same images.

## Use

```python
import torch, mambavision
from mambavision.library import load_entry_config
config = load_entry_config("{name}")
model = mambavision.create_model("{name}", pretrained=True).eval()
mean, std = (torch.tensor(config[part]).view(1, -1, 1, 1) for part in ("mean", "std"))
logits = model((images_uint8.float() / 255 - mean) / std)  # (B, {channels}, {height}, {width})
```

{train_further(name)}
## Reproduce

`{trained["command"]}`
"""
