"""The proxy training, the timing and the worker around them, on a data set that a small model can learn."""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext

import pytest
import torch
from safetensors.torch import load
from trainings import LAYOUT, settings, stripes

from mambavision.layout import HybridLayout, StageLayout
from mambavision.model import MambaVision
from mvsearch.config.sections import TimingConfig
from mvsearch.evaluate import proxy, throughput
from mvsearch.evaluate.make_worker import MakeWorker
from mvsearch.evaluate.memory import peak_memory, reset_peak_memory
from mvsearch.pool.job import DeviceBroken, Done, Job, Progress


def trained(layout=LAYOUT, *, seed=0, config=None, data=None, **fields):
    config = config or settings()
    data = proxy.DeviceData(data or stripes(), torch.device("cpu"))
    fields.setdefault("to_epoch", config.epochs)
    *epochs, result = proxy.train(layout, data, config, seed=seed, **fields)
    return epochs, result


def test_a_training_learns_and_its_weights_give_the_recorded_values():
    data = stripes()
    epochs, result = trained()
    assert [event.epoch for event in epochs] == [1, 2, 3, 4]
    assert result.values["top1"] > 0.9
    assert result.values["nll"] < math.log(2) / 2
    assert result.values["images_seen"] == 4 * 128
    assert result.values["val_images"] == 64
    assert result.values["train_seconds"] > 0
    model = MambaVision(LAYOUT, num_classes=2, in_chans=1)
    model.load_state_dict(load(result.weights))
    on_device = proxy.DeviceData(data, torch.device("cpu"))
    nll, top1 = proxy.evaluate(model, on_device.normalise, data.val.images, data.val.labels)
    assert (nll, top1) == (result.values["nll"], result.values["top1"])


def test_the_same_seed_gives_the_same_values_and_another_seed_others():
    torch.manual_seed(5)
    first = trained(seed=1)[1]
    torch.manual_seed(6)
    expected = torch.rand(3)
    torch.manual_seed(6)
    again = trained(seed=1)[1]
    assert torch.equal(torch.rand(3), expected), "a training must not disturb the process's generator"
    other = trained(seed=2)[1]
    assert first.values["nll"] == again.values["nll"]
    assert first.weights == again.weights
    assert first.values["nll"] != other.values["nll"]


def test_layouts_start_from_the_same_weights_wherever_they_are_alike():
    config = settings(learning_rate=1e-9, epochs=1)
    other = HybridLayout(
        stages=(StageLayout(blocks="C", dim=8), StageLayout(blocks="AA", dim=16, heads=2)), stem_stride=2, in_dim=8
    )
    first, second = (load(trained(layout, config=config)[1].weights) for layout in (LAYOUT, other))
    model = MambaVision(LAYOUT, num_classes=2, in_chans=1)
    alike = [name for name, _ in model.named_parameters() if not name.startswith("levels.1.blocks.0.")]
    assert len(alike) > 10
    for name in alike:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-6, msg=name)


def test_a_training_goes_on_from_a_checkpoint_as_if_it_had_never_stopped():
    config = settings(drop_path=0.2)
    whole = trained(config=config)[1]
    half = trained(config=config, to_epoch=2, keep_checkpoint=True)[1]
    rest = trained(config=config, from_epoch=2, checkpoint=half.checkpoint)[1]
    assert rest.values["nll"] == whole.values["nll"]
    assert rest.weights == whole.weights
    assert half.values["images_seen"] + rest.values["images_seen"] == whole.values["images_seen"]
    with pytest.raises(ValueError, match="checkpoint"):
        trained(config=config, from_epoch=2)


def test_a_loss_that_is_no_number_ends_the_training_with_its_reason():
    with pytest.raises(proxy.TrainingDiverged, match=r"loss became (nan|inf) in epoch \d \(learning rate"):
        trained(config=settings(learning_rate=10, clip_norm=None, warmup_epochs=0, epochs=30))


@pytest.mark.parametrize("kind", ["none", "shift", "shift_flip"])
def test_augmentation_moves_images_and_invents_nothing(kind):
    images = torch.zeros(64, 2, 16, 16, dtype=torch.uint8)
    images[:, :, 6:10, 5:8] = torch.arange(1, 25).view(2, 4, 3).to(torch.uint8)
    generator = torch.Generator().manual_seed(0)
    moved = proxy.augment(images, kind, generator)
    assert moved.shape == images.shape
    assert moved.dtype == torch.uint8
    assert torch.equal(moved.flatten(1).sort().values, images.flatten(1).sort().values)
    distinct = {image.numpy().tobytes() for image in moved}
    assert len(distinct) == 1 if kind == "none" else len(distinct) > 10
    mirrored = images.flip(3)[0, :, :, 8:11]
    patches = moved.unfold(2, 4, 1).unfold(3, 3, 1)
    has_mirror = (patches == mirrored[:, None, None, 6:10]).all((1, 4, 5)).any().item()
    assert has_mirror == (kind == "shift_flip")


class Clock:
    """Seconds that pass only while a model runs."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(throughput.time, "perf_counter", lambda: self.now)

    def model(self, seconds):
        clock = self

        class Costly(torch.nn.Module):
            def forward(self, images):
                clock.now += seconds() if callable(seconds) else seconds
                return images

        return Costly()


def test_throughput_is_relative_to_the_reference_beside_it(monkeypatch):
    clock = Clock(monkeypatch)
    images = torch.rand(32, 1, 16, 16)
    found, conditions = throughput.measure(clock.model(0.04), clock.model(0.01), images, window_s=0.2, windows=3)
    assert conditions == {"dtype": "float32"}
    assert found["images_per_second"] == pytest.approx(32 / 0.04)
    assert found["windows"] == pytest.approx([32 / 0.04] * 3)
    assert found["reference_windows"] == pytest.approx([32 / 0.01] * 4)
    assert found["ratio"] == pytest.approx(1 / 4)
    assert (found["iqr"], found["drift"], found["repeats"]) == pytest.approx((0, 0, 0))


def test_a_machine_that_slows_down_leaves_the_ratio_and_is_measured_again(monkeypatch):
    clock = Clock(monkeypatch)

    def slower(seconds):  # by half within the first five seconds, then steady
        return lambda: seconds * (1 + min(clock.now, 5) / 10)

    model, reference = clock.model(slower(0.04)), clock.model(slower(0.01))
    found, _ = throughput.measure(model, reference, torch.rand(32, 1, 16, 16), window_s=0.5, windows=5)
    assert found["repeats"] == 1
    assert abs(found["drift"]) < throughput.MAX_DRIFT
    assert found["ratio"] == pytest.approx(1 / 4, rel=0.02)

    def ever_slower():
        return 0.01 * (1 + clock.now / 10)

    found, _ = throughput.measure(
        clock.model(ever_slower), clock.model(ever_slower), torch.rand(32, 1, 16, 16), window_s=0.5, windows=5
    )
    assert found["repeats"] == throughput.MAX_REPEATS
    assert found["drift"] < -throughput.MAX_DRIFT
    assert found["ratio"] == pytest.approx(1, rel=0.02)


def test_a_layout_that_is_disturbed_beside_a_steady_reference_is_measured_again(monkeypatch):
    clock = Clock(monkeypatch)

    def disturbed():  # by turns, within the first seven seconds
        return 0.08 if clock.now < 7 and int(clock.now / 1.1) % 2 else 0.04

    images = torch.rand(32, 1, 16, 16)
    found, _ = throughput.measure(clock.model(disturbed), clock.model(0.01), images, window_s=0.5, windows=5)
    assert found["repeats"] == 1
    assert found["iqr"] < throughput.MAX_IQR
    assert found["ratio"] == pytest.approx(1 / 4, rel=0.01)


def test_the_worker_turns_jobs_into_ledger_lines_and_faults_into_reasons():
    worker = MakeWorker(settings(epochs=2), TimingConfig(batch_size=8, window_s=0.01, windows=2), LAYOUT)(
        "w", "cpu", 1, stripes()
    )
    job = {"layout": LAYOUT, "trial": 5, "cost": {"params": 1}}
    (timed,) = worker.run(Job(id=0, what="time", **job))
    assert (timed.evaluation.what, timed.evaluation.trial, timed.evaluation.device) == ("time", 5, "cpu")
    assert timed.evaluation.conditions["reference"] == LAYOUT.key
    assert timed.evaluation.conditions["scan"] == "loop"
    *progress, done = worker.run(Job(id=1, what="train", seed=3, to_epoch=2, **job))
    assert [type(event) for event in progress] == [Progress, Progress]
    assert isinstance(done, Done)
    assert done.evaluation.seed == 3
    assert done.evaluation.cost == {"params": 1}
    assert done.weights
    # 3 heads do not exist for this width once the stage is changed behind the layout's back: the model cannot be built.
    broken = LAYOUT.override()
    object.__setattr__(broken.stages[1], "heads", 3)
    (failed,) = worker.run(Job(id=2, what="train", seed=0, to_epoch=1, layout=broken, trial=6))
    assert failed.evaluation.what == "fail"
    assert failed.evaluation.reason.startswith("train: ")


COLUMNAR = HybridLayout(stages=(StageLayout(blocks="MA", dim=16, heads=2),), stem="patch", patch=4)


def worker_of(layout=LAYOUT, **changes):
    return MakeWorker(settings(**changes), TimingConfig(batch_size=8, window_s=0.01, windows=2), layout)(
        "w", "cpu", 1, stripes()
    )


def train_job(layout=LAYOUT, **fields):
    return Job(**{"id": 0, "what": "train", "seed": 0, "to_epoch": 2, "layout": layout, "trial": 0} | fields)


def too_large(monkeypatch, above):
    """Steps of more images than this run out of memory; returns the sizes that were tried."""
    sizes = []
    real = proxy.train_step

    def step(model, batches, *args, **options):
        batches = list(batches)
        sizes.append([len(images) for images, _, _ in batches])
        if sizes[-1][0] > above:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(model, batches, *args, **options)

    monkeypatch.setattr(proxy, "train_step", step)
    return sizes


def test_a_batch_that_does_not_fit_is_cut_in_two_once_and_the_steps_stay_the_same(monkeypatch):
    whole = trained(COLUMNAR, to_epoch=2)[1]
    sizes = too_large(monkeypatch, above=8)
    *_, done = worker_of(COLUMNAR).run(train_job(COLUMNAR))
    assert sizes == [[16]] + [[8, 8]] * (2 * 128 // 16)
    assert done.evaluation.what == "train"
    assert done.evaluation.conditions["batch_in_parts"] == 2
    assert done.evaluation.values["images_seen"] == 256
    # Without batch normalisation two halves are the same step, but for rounding.
    losses = [[epoch["train_loss"] for epoch in values["curve"]] for values in (done.evaluation.values, whole.values)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert done.evaluation.values["nll"] == pytest.approx(whole.values["nll"], rel=0.02)


def test_a_batch_that_does_not_fit_in_two_either_fails_with_the_peak(monkeypatch):
    sizes = too_large(monkeypatch, above=4)
    (failed,) = worker_of().run(train_job())
    assert sizes == [[16], [8, 8]]
    assert failed.evaluation.what == "fail"
    assert "out of memory, each batch of 16 in two passes too; the peak was " in failed.evaluation.reason
    assert "iB (CUDA out of memory" in failed.evaluation.reason


def test_a_timing_that_does_not_fit_fails_with_the_peak(monkeypatch):
    def measure(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(throughput, "measure", measure)
    (failed,) = worker_of().run(Job(id=0, what="time", layout=LAYOUT, trial=0))
    assert "time: out of memory; the peak was " in failed.evaluation.reason


def test_a_job_over_its_limit_fails_and_names_it():
    *_, failed = worker_of().run(train_job(limit_s=0.0))
    assert failed.evaluation.what == "fail"
    assert "search.job_minutes, 0" in failed.evaluation.reason
    *_, done = worker_of().run(train_job(limit_s=600.0))
    assert done.evaluation.what == "train"


def test_a_training_that_diverges_fails_and_names_the_epoch():
    diverging = {"learning_rate": 10, "clip_norm": None, "warmup_epochs": 0, "epochs": 30}
    *_, failed = worker_of(**diverging).run(train_job(to_epoch=30))
    assert "train: TrainingDiverged: loss became" in failed.evaluation.reason
    assert "in epoch" in failed.evaluation.reason


def test_a_device_that_is_broken_is_the_workers_fault_and_not_the_layouts(monkeypatch):
    def step(*args, **options):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(proxy, "train_step", step)
    with pytest.raises(DeviceBroken, match=r"takes no more work .*device-side assert"):
        list(worker_of().run(train_job()))


def test_the_peak_of_memory_is_that_of_the_training(monkeypatch):
    cpu = torch.device("cpu")
    reset_peak_memory(cpu)
    before = peak_memory(cpu)
    torch.ones(50_000_000)
    assert peak_memory(cpu) - before > 100e6
    reset_peak_memory(cpu)
    assert peak_memory(cpu) - before < 100e6
    assert trained(to_epoch=1)[1].values["peak_memory"] > 50e6


def test_a_timing_may_ask_for_the_latency_of_one_image_too():
    cpu = torch.device("cpu")
    model = throughput.timed_model(LAYOUT, 2, 1, cpu)
    images = torch.rand(16, 1, 16, 16)
    found, _ = throughput.measure(model, model, images, window_s=0.02, windows=3, latency=True)
    assert 1e3 / found["images_per_second"] < found["latency_ms"] < 1e3
    assert 0.2 < found["latency_ratio"] < 5


class FakeCuda:
    """CUDA graphs as PyTorch offers them, on the CPU: what is captured is run once, and then only replayed."""

    def __init__(self, breaks_at=None):
        self.capturing = False
        self.captured = 0
        self.replays = 0
        self.breaks_at = breaks_at

    def Stream(self, device):
        return self

    def wait_stream(self, stream):
        pass

    def current_stream(self, device):
        return self

    def stream(self, stream):
        return nullcontext()

    def CUDAGraph(self):
        return self

    @contextmanager
    def graph(self, graph):
        self.captured += 1
        if self.captured == self.breaks_at:
            raise torch.AcceleratorError("operation not permitted when stream is capturing")
        self.capturing = True
        yield
        self.capturing = False

    def replay(self):
        self.replays += 1


class Counted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return images


@pytest.mark.parametrize(("setting", "breaks_at"), [("auto", None), ("auto", 2), (False, None)])
def test_on_cuda_both_models_are_replayed_as_graphs_or_both_run_eagerly(monkeypatch, setting, breaks_at):
    cuda = FakeCuda(breaks_at)
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(throughput, "_has_graphs", lambda device: True)
    model, reference = Counted(), Counted()
    images = torch.rand(4, 1, 8, 8)
    found, conditions = throughput.measure(
        model, reference, images, window_s=0.002, windows=2, dtype="float32", cuda_graph=setting
    )
    passes = throughput.GRAPH_WARM_UPS + 1
    if setting and breaks_at is None:
        assert conditions["cuda_graph"] is True
        assert (model.calls, reference.calls) == (passes, passes)
        assert cuda.replays > 5
    else:
        assert cuda.replays == 0
        assert min(model.calls, reference.calls) > passes
        reason = conditions["cuda_graph"]
        assert reason is False if breaks_at is None else reason.startswith("no: operation not permitted")
    assert found["ratio"] > 0


def test_the_proxy_may_train_at_another_stride_and_its_weights_fit_the_deployed_layout():
    deployed = LAYOUT.override(stem_stride=4)
    worker = MakeWorker(settings(epochs=1, stem_stride=2), TimingConfig(), deployed)("w", "cpu", 1, stripes())
    *_, done = worker.run(Job(id=0, what="train", seed=0, to_epoch=1, layout=deployed, trial=0))
    assert done.evaluation.key == deployed.key
    MambaVision(deployed, num_classes=2, in_chans=1).load_state_dict(load(done.weights))
    reported = MambaVision(LAYOUT, num_classes=2, in_chans=1)
    reported.load_state_dict(load(done.weights))
    on_device = proxy.DeviceData(stripes(), torch.device("cpu"))
    nll, _ = proxy.evaluate(reported, on_device.normalise, on_device.val_images, on_device.val_labels)
    assert nll == done.evaluation.values["nll"]
