"""`mvsearch init`: a commented study for an image folder of one's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from mambavision.files import write_atomic
from mvsearch.config.values import ConfigError

_TEMPLATE = """\
# A search over hybrid Mamba/attention backbones on the images of
# {data}
# {classes}
#
#   mvsearch space {file}      what this space holds
#   mvsearch launch {file}     search it
#
# In `layout`, a list is searched and a single value is fixed. Any key can be changed from the command line, lists by
# index from 0:  --set search.trials=60   --set "layout.stages.1.depth=[2, 3]"
# Sized to run on CPU cores too. With a GPU, the shipped `image_folder` is a four-stage search space for 224 px:
#   mvsearch launch image_folder --set proxy.root={quoted}

name: {name}                    # results go to studies/{name}

layout:
  # 64 px -> stem, stride 4 -> 16 x 16 -> stage 1 -> 8 x 8 = 64 tokens -> stage 2 -> 4 x 4 = 16 tokens -> stage 3.
  # Where the order of the blocks is searched, at least 16 tokens a window are needed.
  stem_stride: 4                # 4, 2 or 1
  in_dim: 16                    # channels inside the stem
  width: [16, 24, 32, 40]       # channels of stage 1; `dim` of the other stages is a multiple of it
  stages:
    - {{blocks: C, depth: 1, dim: 1}}   # residual convolutions
    - blocks: MA                # each block is Mamba (M) or attention (A); GA takes Mamba's original gated block (G)
      depth: [3, 4, 5]
      dim: 2
      attention: {{min: 0, max: 5}}       # the ratio: how many of the blocks are attention
      placement: [last, first, even, middle, alternate]   # the order: MMAA, AAMM, spread, MAAM, MAMA ...
      flips: 2                  # ... and up to two blocks that break the rule
      state: [4, 8, 16]         # SSM state size of the Mamba blocks
      head_dim: 16              # channels of an attention head
    - blocks: MA
      depth: 3
      dim: 4
      state: [4, 8, 16]

# Layouts above these are never trained. Numbers may have a unit; `min` works too.
budgets:
  params: {{max: 2M}}
  # macs: {{max: 100M}}          # multiply-accumulates an image
  # memory: {{max: 64MB}}        # inference at timing.batch_size

# The short training that ranks the layouts.
proxy:
  data: folder
  root: {quoted}
  image_size: 64                # images are scaled to this side
  train_images: {train}         # balanced over the classes; null: all
  val_images: {val}             # taken out of the training images
  epochs: 6
  batch_size: 64
  seeds: 1                      # 2 or more give error bars
  learning_rate: 0.002
  augment: auto                 # auto, none, shift or shift_flip

objectives:
  quality: nll                  # validation negative log-likelihood; top1 for accuracy

search:
  sampler: known_cost           # known_cost, tpe, nsga2, gp or random
  trials: 26                    # layouts trained in full, five hand-made baselines among them
  hours: null                   # or: stop after this many hours
  seed: 0

# Throughput is measured as you will deploy: set the image and batch size of your application.
timing:
  image_size: 64
  batch_size: 64
"""


def write_template(data_path: str | Path, out_path: str | Path) -> Path:
    """Write a commented study for an image folder.

    Args:
        data_path: a folder with one folder of images a class, or with such a folder called ``train``.
        out_path: the YAML to write; an existing file is never overwritten.

    Returns:
        `out_path`.

    Raises:
        ConfigError: if there are no two classes in `data_path`, or `out_path` exists or cannot be written.
    """
    data, out = Path(data_path).expanduser().resolve(), Path(out_path)
    if not data.is_dir():
        raise ConfigError(
            f"--data {data_path}: not a folder; the folder that holds one folder of images a class is needed"
        )
    images = data / "train" if (data / "train").is_dir() else data
    classes = sorted(folder.name for folder in images.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    if len(classes) < 2:
        held = f"only {classes[0]!r}" if classes else "none"
        raise ConfigError(f"--data {data_path}: a folder a class is needed, two or more; {images} holds {held}")
    if out.exists():
        raise ConfigError(f"{out}: exists; choose another file name, or remove it")
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", data.name).lstrip("._-")[:64] or "images"
    listed = ", ".join(classes[:8]) + (", …" if len(classes) > 8 else "")
    files = sum(path.is_file() for path in images.rglob("*"))
    text = _TEMPLATE.format(
        train="null" if files < 8000 else "5000",
        val="null" if files < 8000 else "1000",
        data=_one_line(str(data)),
        classes=_one_line(
            f"{len(classes)} classes: {listed} (found when this file was written; a search counts them anew)"
        ),
        file=_one_line(str(out)),
        name=name if isinstance(yaml.safe_load(name), str) else json.dumps(name),  # a folder may be called 2024
        quoted=json.dumps(str(data), ensure_ascii=False),  # a JSON string is a YAML string
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, text)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror})") from None
    return out


def _one_line(text: str) -> str:
    """Text that may stand in a comment: a line break in a folder's name would end it."""
    return " ".join(text.split())
