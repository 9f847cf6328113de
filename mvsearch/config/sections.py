"""StudyConfig: the YAML of a study, validated before anything starts.

Every field says in its docstring what it means, its unit and its range; `docs/yaml.md` is the same for readers.
In `layout`, a list is searched and a single value is fixed: such fields are tuples here, of one value when fixed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, SerializerFunctionWrapHandler, model_serializer, model_validator

from mambavision.layout import HybridLayout
from mvsearch.config.layout_section import LayoutConfig
from mvsearch.config.seeds import MAX_SEEDS, seeds_for
from mvsearch.config.values import (
    Dtype,
    Section,
    WholeFrom1,
    auto_or_false,
    flag,
    format_number,
    model_names,
    number,
    or_null,
    path_text,
    quantity,
    rule_weights,
    slashed,
    stem_stride_of,
    storage_url,
    study_name,
    whole,
    word,
    wrong,
)
from mvsearch.config.yaml_dialect import StudyDumper
from mvsearch.formats import STUDY_FORMAT

DATA_SETS = ("digit_scenes", "digits", "fashion_mnist", "cifar10", "cifar100", "folder")
"""Names of `mambavision.data.DATA_SETS`, repeated so that a configuration is checked without importing torch."""


SAMPLERS = ("known_cost", "tpe", "nsga2", "gp", "random")
"""Samplers by name; `mvsearch.samplers.registry.make_sampler` says how each is set."""


SAMPLERS_WITH_RUNGS = ("known_cost", "random")
"""Samplers that a study with rungs may use: ours reads what a stopped layout reached, random needs no more than that it
was seen. Optuna's others learn nothing from trials told PRUNED in a study of two objectives."""


class BudgetConfig(Section):
    """Bounds of one cost; numbers, also with a unit (1.5M, 64MB)."""

    min: Annotated[float | None, BeforeValidator(or_null(quantity))] = None
    """Least that is allowed, above 0; null: no bound."""
    max: Annotated[float | None, BeforeValidator(or_null(quantity))] = None
    """Most that is allowed, above 0; null: no bound."""

    @model_validator(mode="after")
    def _not_empty(self) -> BudgetConfig:
        if self.min is not None and self.max is not None and self.max < self.min:
            raise wrong(
                {"min": self.min, "max": self.max}, "a range whose max is not below its min (this one is empty)"
            )
        return self


class BudgetsConfig(Section):
    """What a layout may cost as deployed, at `timing.image_size` and `timing.batch_size`; checked before training."""

    params: BudgetConfig = BudgetConfig()
    """Number of parameters."""
    macs: BudgetConfig = BudgetConfig()
    """Multiply-accumulates an image (convolutions, linear layers, attention products; not the scan)."""
    memory: BudgetConfig = BudgetConfig()
    """Bytes at inference in float32: weights and the peak of the activations at the deployment batch."""


class ProxyConfig(Section):
    """The short training that stands for the long one."""

    data: Annotated[str, BeforeValidator(word(*DATA_SETS))] = "digit_scenes"
    """Data set: digit_scenes, digits, fashion_mnist, cifar10, cifar100, or folder (images of one's own)."""
    root: Annotated[str | None, BeforeValidator(or_null(path_text))] = None
    """Where the data lies; for folder (needed there): one folder a class in it, or train, val and test of these."""
    image_size: Annotated[int, BeforeValidator(whole(4, 1024))] = 32
    """Side of the training images in pixels, 4 to 1024."""
    train_images: Annotated[int | None, BeforeValidator(or_null(whole(1)))] = None
    """How many training images, balanced over the classes; null: all there are (folder: at most 50,000)."""
    val_images: Annotated[int | None, BeforeValidator(or_null(whole(1)))] = None
    """How many validation images, taken out of the training set; null: a fifth, at most 5,000."""
    epochs: WholeFrom1 = 6
    """Epochs of a training."""
    batch_size: WholeFrom1 = 64
    """Images a training step."""
    seeds: Annotated[int, BeforeValidator(whole(1, MAX_SEEDS))] = 1
    """Trainings a layout, each with a seed of its own; error bars need 2 or more."""
    learning_rate: Annotated[float, BeforeValidator(number(0, 10, above=True))] = 0.002
    """AdamW's learning rate, constant after the warm-up."""
    weight_decay: Annotated[float, BeforeValidator(number(0, 10))] = 0.05
    """AdamW's weight decay."""
    warmup_epochs: Annotated[float, BeforeValidator(number(0))] = 1.0
    """Epochs over which the learning rate rises linearly from 0."""
    ema: Annotated[float, BeforeValidator(number(0, 1, below=True))] = 0.99
    """Decay a step of the moving average of the weights, which is what is validated; 0: none."""
    clip_norm: Annotated[float | None, BeforeValidator(or_null(number(0, above=True)))] = 5.0
    """Largest norm of the gradient; null: no clipping."""
    augment: Annotated[
        Literal["auto", "none", "shift", "shift_flip"], BeforeValidator(word("auto", "none", "shift", "shift_flip"))
    ] = "auto"
    """Augmentation; auto: what keeps the labels of the data set."""
    drop_path: Annotated[float, BeforeValidator(number(0, 1, below=True))] = 0.0
    """Stochastic depth rate of the last block, 0 to below 1; rises linearly over the blocks."""
    dtype: Dtype = "auto"
    """Precision of the training; auto: bfloat16 on CUDA devices that have it, else float32."""
    stem_stride: Annotated[int | None, BeforeValidator(or_null(stem_stride_of))] = None
    """Stride of the conv stem while training, to keep the token count at fewer pixels: 4, 2 or 1; null: the layout's
    own."""

    @model_validator(mode="after")
    def _fits(self) -> ProxyConfig:
        if self.data == "folder" and self.root is None:
            raise wrong(None, "data 'folder' needs the path of the folder that holds one folder a class", "root")
        if self.warmup_epochs > self.epochs:
            raise wrong(self.warmup_epochs, f"at most proxy.epochs, {self.epochs}", "warmup_epochs")
        return self

    def as_trained(self, layout: HybridLayout) -> HybridLayout:
        """A deployed layout as the proxy trains it, with `stem_stride`. Strides have no weights, so those fit both."""
        return layout if self.stem_stride is None else dataclasses.replace(layout, stem_stride=self.stem_stride)


class FidelityConfig(Section):
    """Nested rungs: a layout is trained to the end of one rung, and only the promising go on to the next."""

    eta: Annotated[int, BeforeValidator(whole(2, 100))] = 3
    """How much longer each rung is than the one before it; of eta layouts on a rung, one goes on. 2 to 100."""
    rungs: Annotated[int, BeforeValidator(whole(2, 10))] = 3
    """How many rungs, 2 to 10. The last one ends at proxy.epochs, the one before it at proxy.epochs / eta, and so on,
    rounded."""


def _fidelity(value: object) -> object:
    if value is None or value == "none":
        return None
    if not isinstance(value, (Mapping, FidelityConfig)):
        raise wrong(value, "none (every layout is trained in full), or a mapping such as {eta: 3, rungs: 3}")
    return value


class ObjectivesConfig(Section):
    """What is optimised: this quality, and throughput."""

    quality: Annotated[Literal["nll", "top1"], BeforeValidator(word("nll", "top1"))] = "nll"
    """Quality on the validation split: nll (negative log-likelihood, separates layouts better) or top1 (accuracy)."""


class PlateauConfig(Section):
    """When a search has stopped paying."""

    trials: Annotated[int, BeforeValidator(whole(1))] = 20
    """Over so many layouts trained in full, the last ones, …"""
    gain: Annotated[float, BeforeValidator(number(0, 1, below=True))] = 0.01
    """… the hypervolume has grown by no more than this share of itself, 0 to below 1."""


def _plateau(value: object) -> object:
    if value is not None and not isinstance(value, (Mapping, PlateauConfig)):
        raise wrong(value, "null (no such rule), or a mapping such as {trials: 20, gain: 0.01}")
    return value


class SearchConfig(Section):
    """How the search goes."""

    sampler: Annotated[Literal["known_cost", "tpe", "nsga2", "gp", "random"], BeforeValidator(word(*SAMPLERS))] = (
        "known_cost"
    )
    """Which sampler proposes layouts: known_cost (our own), or Optuna's tpe (multivariate), nsga2, gp or random."""
    trials: WholeFrom1 = 26
    """Layouts trained in full, the hand-made baselines among them."""
    hours: Annotated[float | None, BeforeValidator(or_null(number(0, above=True)))] = None
    """Ends the asking after this many hours of one launch, whichever comes first; null: no limit."""
    device_hours: Annotated[float | None, BeforeValidator(or_null(number(0, above=True)))] = None
    """Ends the asking when the workers have worked this many hours, all of them and all launches together; null: no
    limit."""
    plateau: Annotated[PlateauConfig | None, BeforeValidator(_plateau)] = None
    """Ends the asking when the hypervolume has stopped growing: {trials: 20, gain: 0.01}; null: no such rule."""
    job_minutes: Annotated[float | None, BeforeValidator(or_null(number(0, above=True)))] = None
    """Longest that one job (a timing, or one training to the end of its rung) may take; whatever takes longer has
    failed. In calibrate and confirm an epoch may take as long as one of the search's longest training. null: no
    limit."""
    seed: Annotated[int, BeforeValidator(whole(0, 2**31 - 1))] = 0
    """Seed of the search and of the trainings; the data subset is always the same."""
    baselines: Annotated[bool, BeforeValidator(flag)] = True
    """Whether the hand-made layouts (all Mamba, all attention, last half, …) run first."""
    design: Annotated[Literal["placement"] | None, BeforeValidator(or_null(word("placement")))] = None
    """null (search for the front), or placement: train exactly the layouts that tell ratios and placements apart, at
    one width. `mvsearch launch SPACE --design placement` sets it, with the number of trials and at least 3 seeds."""

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A study started before there were designs has no such key, and goes on.
        return {key: value for key, value in handler(self).items() if key != "design" or value is not None}


class TimingConfig(Section):
    """How throughput is measured: as deployed."""

    image_size: Annotated[int | None, BeforeValidator(or_null(whole(1, 4096)))] = None
    """Side of the deployed images in pixels; null: the proxy's."""
    batch_size: WholeFrom1 = 64
    """Images a batch, as deployed."""
    window_s: Annotated[float, BeforeValidator(number(0, 60, above=True))] = 0.5
    """Seconds of one timing window, above 0, at most 60."""
    windows: Annotated[int, BeforeValidator(whole(1, 100))] = 5
    """Timing windows; the median counts."""
    dtype: Dtype = "auto"
    """Precision of the deployed model; auto: bfloat16 on CUDA devices that have it, else float32."""
    threads: Annotated[int, BeforeValidator(whole(1, 4096))] = 1
    """CPU threads of a timing. More than one makes it fragile: a neighbour on one core then stalls all threads."""
    cuda_graph: Annotated[Literal["auto", False], BeforeValidator(auto_or_false)] = "auto"
    """auto: on CUDA models are timed as CUDA graphs, without the time that the CPU takes to launch each kernel, or
    eagerly where that fails; false: always eagerly."""
    latency: Annotated[bool, BeforeValidator(flag)] = False
    """Whether single images are timed as well, for latency_ms in trials.csv."""

    def deployed_image_size(self, proxy: ProxyConfig) -> int:
        """Side in pixels of the images that budgets and timings are about."""
        return self.image_size or proxy.image_size


class ThroughputConfig(Section):
    """Throughputs measured elsewhere."""

    file: Annotated[str | None, BeforeValidator(or_null(path_text))] = None
    """A table of throughputs to take instead of measuring: an evaluations.jsonl, a trials.csv, or what `mvsearch bench
    --format csv` printed."""
    others: Annotated[Literal["measure", "skip"], BeforeValidator(word("measure", "skip"))] = "measure"
    """Layouts that are not in the table: measure (here, so only where the table is of this device), or skip (they are
    never tried; for a table of another device)."""

    @model_validator(mode="after")
    def _fits(self) -> ThroughputConfig:
        if self.others == "skip" and self.file is None:
            raise wrong(self.others, "measure where throughput.file is null: every layout would be skipped", "others")
        return self


class WarmStartConfig(Section):
    """What a search begins with beside its hand-made layouts. In YAML also a study alone: ``warm_start: studies/x``."""

    study: Annotated[str | None, BeforeValidator(or_null(path_text))] = None
    """Name or folder of a study. What it measured under the same conditions is taken over; null: none."""
    layouts: WholeFrom1 = 10
    """How many of its layouts, the best first, are trained again where their trainings cannot be taken over."""
    known: Annotated[tuple[str, ...], BeforeValidator(model_names)] = ()
    """Models of the library whose layouts are scaled into the space: mambavision_t, mambavision_s, one's own."""
    placement: Annotated[dict[str, float] | None, BeforeValidator(or_null(rule_weights))] = None
    """Weights of placement rules, such as {last: 3, first: 1}, with which `draws` layouts are drawn; null: none."""
    draws: WholeFrom1 = 10
    """How many layouts are drawn with the weights of `placement`."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        return {"study": str(data)} if isinstance(data, (str, Path)) else data

    @model_validator(mode="after")
    def _fits(self) -> WarmStartConfig:
        for key, needed in _WARM_NEEDS.items():
            if key in self.model_fields_set and getattr(self, needed) is None:
                raise wrong(getattr(self, key), f"only with {needed}; add it, or remove {key}", key)
        if self.study is None and not self.known and self.placement is None:
            raise wrong({}, "null, a study, or a mapping with at least one of study, known and placement")
        return self

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What has no effect is refused when read, so it is not written either.
        idle = {key for key, needed in _WARM_NEEDS.items() if getattr(self, needed) is None}
        return {key: value for key, value in handler(self).items() if value not in (None, [], ()) and key not in idle}


# Keys of a warm start that mean something only beside another.
_WARM_NEEDS = {"layouts": "study", "draws": "placement"}


def _warm_start(value: object) -> object:
    if value is None or (value and isinstance(value, (str, Path, Mapping, WarmStartConfig))):
        return value
    raise wrong(value, "null, a study (studies/x), or a mapping with study, known or placement")


class StudyConfig(Section):
    """One study: what `mvsearch launch FILE` reads."""

    format: Annotated[int, BeforeValidator(format_number)] = STUDY_FORMAT
    """Which defaults the keys have that are not there: those of this format. Written by mvsearch, not by people."""
    name: Annotated[str, BeforeValidator(study_name)]
    """Names the folder of the results, studies/<name>; default: the name of the file. In study.yaml the folder that it
    lies in counts."""
    layout: LayoutConfig
    """What is searched."""
    budgets: BudgetsConfig = BudgetsConfig()
    """What a layout may cost."""
    proxy: ProxyConfig = ProxyConfig()
    """The short training."""
    fidelity: Annotated[FidelityConfig | None, BeforeValidator(_fidelity)] = None
    """none (every layout is trained in full), or rungs: {eta: 3, rungs: 3}."""
    objectives: ObjectivesConfig = ObjectivesConfig()
    """What is optimised."""
    search: SearchConfig = SearchConfig()
    """How the search goes."""
    timing: TimingConfig = TimingConfig()
    """How throughput is measured."""
    storage: Annotated[str | None, BeforeValidator(storage_url)] = None
    """Where the sampler's memory is kept: null (a journal in the study's folder), or the URL of a database, such as
    postgresql://HOST/NAME."""
    throughput: ThroughputConfig = ThroughputConfig()
    """Where throughputs come from, if they are not measured."""
    warm_start: Annotated[WarmStartConfig | None, BeforeValidator(_warm_start)] = None
    """null, a study (studies/x) or a mapping: what the search begins with beside the hand-made layouts."""

    @model_validator(mode="after")
    def _fits(self) -> StudyConfig:
        if self.layout.stem == "patch":
            if self.proxy.stem_stride is not None:
                allowed = "only the conv stem has it, and layout.stem is patch; remove it"
                raise wrong(self.proxy.stem_stride, allowed, "proxy.stem_stride")
            for section in ("proxy", "timing"):
                size = getattr(self, section).image_size
                if size is not None and size < self.layout.patch:
                    raise wrong(size, f"at least layout.patch, {self.layout.patch}", f"{section}.image_size")
        if self.fidelity is not None:
            self._check_rungs(self.fidelity)
        return self

    def _check_rungs(self, fidelity: FidelityConfig) -> None:
        rungs = self.rung_epochs
        if len(set(rungs)) < len(rungs):
            allowed = (
                f"fewer rungs, or more than proxy.epochs = {self.proxy.epochs}: with fidelity.eta = {fidelity.eta} "
                f"they would end after {slashed(rungs)} epochs, and each must be longer than the one before it"
            )
            raise wrong(fidelity.rungs, allowed, "fidelity.rungs")
        if self.proxy.warmup_epochs > rungs[0]:
            allowed = f"at most {rungs[0]}, the epochs of the first rung of {slashed(rungs)}, so that rungs compare"
            raise wrong(self.proxy.warmup_epochs, allowed, "proxy.warmup_epochs")
        if self.search.sampler not in SAMPLERS_WITH_RUNGS:
            allowed = (
                f"{' or '.join(SAMPLERS_WITH_RUNGS)} where fidelity is not none: Optuna teaches this sampler nothing "
                "from layouts that were stopped early, so it would search worse than random"
            )
            raise wrong(self.search.sampler, allowed, "search.sampler")

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A study started before there were rungs or warm starts has no such key, and goes on.
        later = ("fidelity", "warm_start")
        return {key: value for key, value in handler(self).items() if key not in later or value is not None}

    @property
    def rung_epochs(self) -> tuple[int, ...]:
        """Epochs after which each rung ends, rising; the last is `proxy.epochs`. One rung without `fidelity`."""
        epochs, fidelity = self.proxy.epochs, self.fidelity
        if fidelity is None:
            return (epochs,)
        earlier = (max(1, round(epochs / fidelity.eta**k)) for k in range(fidelity.rungs - 1, 0, -1))
        return (*earlier, epochs)

    @property
    def epoch_limit_s(self) -> float | None:
        """Seconds that `search.job_minutes` leaves for an epoch of the longest training that is one job; None: any."""
        if self.search.job_minutes is None:
            return None
        longest = max(end - start for start, end in itertools.pairwise((0, *self.rung_epochs)))
        return 60 * self.search.job_minutes / longest

    @property
    def training_seeds(self) -> tuple[int, ...]:
        """Seeds of a layout's trainings, the same for every layout."""
        return seeds_for("search", self.search.seed, self.proxy.seeds)

    @property
    def deployed_image_size(self) -> int:
        """Side in pixels of the images that budgets and timings are about."""
        return self.timing.deployed_image_size(self.proxy)

    def resolved(self) -> dict[str, Any]:
        """Plain data with every default filled in."""
        return self.model_dump(mode="json")

    def resolved_yaml(self) -> str:
        """The study as YAML with every default filled in; `load_config` reads it back to an equal value."""
        return yaml.dump(self.resolved(), Dumper=StudyDumper, sort_keys=False, allow_unicode=True, width=120)
