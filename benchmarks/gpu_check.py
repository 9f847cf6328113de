"""The first day with a card: does everything here work on a GPU, and how fast is it there?

Usage: python benchmarks/gpu_check.py [--out FOLDER] [--only SECTION ...] [--pretend]

Each section runs in a process of its own with a time limit, writes FOLDER/SECTION.json at once, and ends no other. It
needs torch, timm, PyYAML and pydantic; no Ray, no Optuna. `--pretend` runs the same code with tiny sizes on a CPU: it
finds mistakes of this script, and its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

ROOT = Path(__file__).resolve().parent.parent
Result = dict[str, Any]


class Card:
    """The device of a section, and how large its work is.

    Attributes:
        device: ``cuda:0``, or ``cpu`` when pretending.
        pretend: tiny sizes, on a CPU.
    """

    def __init__(self, pretend: bool) -> None:
        self.pretend = pretend
        self.device = torch.device("cpu" if pretend else "cuda:0")

    def pick(self, real: Any, tiny: Any) -> Any:
        """The size of the real check, or of the pretended one."""
        return tiny if self.pretend else real

    def synchronise(self) -> None:
        """Wait for all that is queued."""
        if not self.pretend:
            torch.cuda.synchronize()

    def milliseconds(self, run: Callable[[], object], seconds: float = 0.3, rounds: int = 5) -> dict[str, float]:
        """Median and interquartile range over rounds of the time of one run; a round is `seconds` long, waited for."""
        seconds = self.pick(seconds, 0.0)
        for _ in range(3):
            run()
        self.synchronise()
        began = time.perf_counter()
        run()
        self.synchronise()
        repeats = max(1, int(seconds / (time.perf_counter() - began)))
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            for _ in range(repeats):
                run()
            self.synchronise()
            times.append((time.perf_counter() - began) / repeats * 1e3)
        low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
        return {"ms": middle, "iqr_ms": high - low}

    def captured(self, run: Callable[[], object]) -> Callable[[], object]:
        """Replay of a CUDA graph of `run`; `run` itself when pretending."""
        if self.pretend:
            return run
        from scan_cuda import captured

        return captured(run)


def conditions(card: Card) -> Result:
    """What the numbers depend on."""
    said: Result = {"torch": torch.__version__, "python": sys.version.split()[0], "pretended": card.pretend}
    if not card.pretend:
        properties = torch.cuda.get_device_properties(0)
        said |= {"device": properties.name, "multiprocessors": properties.multi_processor_count}
        said |= {"memory_GiB": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda}
        try:
            import triton

            said["triton"] = triton.__version__
        except ImportError:
            said["triton"] = None
    return said


def short_layouts() -> dict[str, Any]:
    """Layouts of the shipped space `stagewise`, by name."""
    from mambavision.layout import HybridLayout

    def layout(stage2: str, stage3: str) -> HybridLayout:
        more = {"state": 8, "mlp_ratio": 2.0}
        return HybridLayout.from_dict(
            {
                "in_dim": 16,
                "stem_stride": 2,
                "stages": [
                    {"blocks": "C", "dim": 20},
                    {"blocks": stage2, "dim": 40, "heads": 5, **more},
                    {"blocks": stage3, "dim": 80, "heads": 10, **more},
                ],
            }
        )

    return {"all Mamba": layout("MMM", "MM"), "half": layout("MMA", "MA"), "all attention": layout("AAA", "AA")}


# -- 1 ---------------------------------------------------------------------------------------------------------------


def kernels(card: Card) -> Result:
    """The scan's tests that need a card, and a race check of both passes."""
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", "-o", "addopts="]
    tests += ["tests/mambavision/scan/test_triton.py", "-k", "on_a_gpu"]
    done = subprocess.run(tests, cwd=ROOT, capture_output=True, text=True, check=False)
    result: Result = {"tests": done.stdout.splitlines()[-12:], "exit_code": done.returncode}
    if card.pretend:
        return result
    code = (
        "import torch; from mambavision.scan import selective_scan\n"
        "for b, d, l, n in [(2, 16, 49, 8), (1, 16, 512, 16)]:\n"
        "    leaves = [torch.randn(b, d, l), torch.rand(b, d, l), -torch.rand(d, n), torch.randn(b, n, l)]\n"
        "    leaves = [x.cuda().requires_grad_() for x in [*leaves, torch.randn(b, n, l)]]\n"
        "    selective_scan(*leaves, delta_softplus=True).sum().backward()\n"
        "torch.cuda.synchronize(); print('ran')\n"
    )
    for tool in ("racecheck", "memcheck"):
        command = ["compute-sanitizer", "--tool", tool, sys.executable, "-c", code]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
            result[tool] = done.stdout.splitlines()[-6:]
        except (OSError, subprocess.TimeoutExpired) as error:
            result[tool] = f"{type(error).__name__}: {error}"[:200]
    return result


# -- 2 ---------------------------------------------------------------------------------------------------------------


def cold(card: Card) -> Result:
    """Seconds from a new process to its first training step and first pass, with and without Triton's cache."""
    code = (
        "import time; began = time.perf_counter()\n"
        "import sys, torch; sys.path.insert(0, 'benchmarks')\n"
        "from gpu_check import Card, short_layouts\n"
        "from mambavision.model import MambaVision\n"
        f"card = Card({card.pretend}); model = MambaVision(short_layouts()['half'], num_classes=10).to(card.device)\n"
        "ready = time.perf_counter()\n"
        "images = torch.randn(32, 3, 32, 32, device=card.device)\n"
        "model(images).sum().backward(); card.synchronise(); first = time.perf_counter()\n"
        "model(images).sum().backward(); card.synchronise(); second = time.perf_counter()\n"
        "print(ready - began, first - ready, second - first)\n"
    )
    result: Result = {}
    failed = []
    with tempfile.TemporaryDirectory() as cache:
        for name in ("empty cache", "warm cache"):
            done = subprocess.run(
                [sys.executable, "-c", code],
                cwd=ROOT,
                env=os.environ | {"TRITON_CACHE_DIR": cache},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                failed.append(done.stderr[-800:])
                continue
            ready, first, second = map(float, done.stdout.split())
            result[name] = {"import_and_move_s": ready, "first_step_s": first, "second_step_s": second}
    if failed:
        raise RuntimeError(failed[0])
    return result


# -- 3 ---------------------------------------------------------------------------------------------------------------


def windows(card: Card) -> Result:
    """How long `measure` takes, against what its windows say: a queue must not stretch them."""
    from mvsearch.evaluate import throughput

    result: Result = {}
    with torch.inference_mode():
        for name, layout, size, batch, classes in _timed(card):
            reference = throughput.timed_model(short_layouts()["half"], classes, 3, card.device)
            model = throughput.timed_model(layout, classes, 3, card.device)
            images = torch.randn(batch, 3, size, size, device=card.device)
            for graph in (False, "auto"):
                window_s, count = card.pick(0.2, 0.01), 3
                began = time.perf_counter()
                values, said = throughput.measure(
                    model, reference, images, window_s=window_s, windows=count, cuda_graph=graph
                )
                took = time.perf_counter() - began
                meant = (values["repeats"] + 1) * (2 * count + 2) * window_s
                key = f"{name}, {'graph' if graph else 'eager'}"
                result[key] = {"seconds": took, "meant_seconds": meant, **_short(values), **said}
    return result


def _timed(card: Card) -> Iterator[tuple[str, Any, int, int, int]]:
    """Name, layout, image size, batch and classes of what is timed."""
    for name, layout in short_layouts().items():
        yield name, layout, 32, card.pick(64, 2), 10
    if not card.pretend:
        yield "mambavision_t", _published(), 224, 128, 1000


def _published() -> Any:
    from mambavision import create_model

    return create_model("mambavision_t").layout


def _short(values: Result) -> Result:
    return {key: values[key] for key in ("images_per_second", "ratio", "iqr", "drift", "repeats")}


# -- 4 ---------------------------------------------------------------------------------------------------------------


def timing(card: Card) -> Result:
    """Images a second in eager form and as a graph, under autocast and cast once, channels last, and of one image."""
    from mvsearch.evaluate import throughput

    result: Result = {}
    for name, layout, size, batch, classes in _timed(card):
        model = throughput.timed_model(layout, classes, 3, card.device)
        cast = cast_once(model)
        for images_in in (batch, 1):
            images = torch.randn(images_in, 3, size, size, device=card.device)
            forms: dict[str, Callable[[], object]] = {
                "eager, autocast": functools.partial(_autocast, model, images),
                "eager, cast once": functools.partial(cast, images.bfloat16()),
                "eager, cast once, channels last": functools.partial(
                    copy.deepcopy(cast).to(memory_format=torch.channels_last),
                    images.bfloat16().to(memory_format=torch.channels_last),
                ),
                "eager, float32": functools.partial(model, images),
            }
            with torch.inference_mode():
                for form, run in list(forms.items()):
                    if form != "eager, float32":
                        forms[form.replace("eager", "graph")] = _or_reason(functools.partial(card.captured, run))
                for form, run in forms.items():
                    key = f"{name}, {images_in} images, {form}"
                    try:
                        time_ = card.milliseconds(run)
                        result[key] = time_ | {"images_per_second": images_in / time_["ms"] * 1e3}
                    except Exception as error:
                        result[key] = f"{type(error).__name__}: {error}"[:300]
    return result


def cast_once(model: nn.Module) -> nn.Module:
    """A copy in bfloat16, but for what the scan keeps in float32."""
    kept = {name for name, _ in model.named_parameters() if name.endswith(("A_log", ".D", "dt_proj.bias"))}
    cast = copy.deepcopy(model)
    for name, parameter in cast.named_parameters():
        if name not in kept:
            parameter.data = parameter.data.bfloat16()
    for buffer in cast.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.bfloat16()
    return cast


def _autocast(model: nn.Module, images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, dtype=torch.bfloat16):
        return model(images)


def _or_reason(make: Callable[[], Callable[[], object]]) -> Callable[[], object]:
    """What `make` makes, or something that raises its error when it is run."""
    try:
        return make()
    except Exception as error:
        raised = error

        def fail() -> object:
            raise raised

        return fail


# -- 5 ---------------------------------------------------------------------------------------------------------------

FAULTS = {
    "out of memory": "torch.empty(1 << 46, dtype=torch.uint8, device=device)",
    "device assert": "F.embedding(torch.tensor([9], device=device), torch.zeros(3, 2, device=device)).sum().item()",
    "cross entropy of a wrong label": "F.cross_entropy(torch.zeros(1, 3, device=device), "
    "torch.tensor([7], device=device)).item()",
    "wait within a capture": "card.captured(lambda: torch.ones(3, device=device).sum().item())",
}


def faults(card: Card) -> Result:
    """What errors a card raises, how they are read here, and whether it answers afterwards."""
    result: Result = {}
    for name, statement in FAULTS.items():
        code = (
            "import sys, json, torch, torch.nn.functional as F; sys.path.insert(0, 'benchmarks')\n"
            "from gpu_check import Card\nfrom mvsearch.evaluate.memory import is_out_of_memory\n"
            f"card = Card({card.pretend}); device = card.device; said = {{}}\n"
            f"try:\n    {statement}\n    said['raised'] = None\n"
            "except Exception as error:\n"
            "    said |= {'raised': type(error).__name__, 'text': str(error)[:300]}\n"
            "    said |= {'out_of_memory': is_out_of_memory(error)}\n"
            "    said |= {'accelerator_error': isinstance(error, torch.AcceleratorError)}\n"
            "try:\n    torch.ones(1, device=device).add(1).item(); card.synchronise(); said['answers'] = True\n"
            "except Exception as error:\n    said['answers'] = f'{type(error).__name__}: {str(error)[:200]}'\n"
            "print(json.dumps(said))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        result[name] = json.loads(lines[-1]) if lines else f"exit code {done.returncode}: {done.stderr[-300:]}"
    return result


# -- 6 ---------------------------------------------------------------------------------------------------------------


def scan(card: Card) -> Result:
    """The scan's forms and segments at the shapes of the models, against what must be moved."""
    if card.pretend:
        return {"left out": "needs Triton on a card; benchmarks/scan.py is for a CPU"}
    import scan_cuda

    from mambavision.scan import triton_scan

    result: Result = {}
    bandwidth = scan_cuda.copy_bandwidth()
    result["copy_GB_s"] = bandwidth / 1e9
    mamba = scan_cuda.mamba_scan()
    chosen = triton_scan.choose_tiling
    try:
        for shape in scan_cuda.SHAPES:
            batch, channels, length, states = shape
            processors = torch.cuda.get_device_properties(0).multi_processor_count
            own = chosen(batch, channels, length, states, processors)
            padded = triton_scan.padded_states(states)
            for backward in (False, True):
                forms, leaves = scan_cuda.scan_forms(shape, torch.float32, backward, mamba)
                forms = [form for form in forms if not form[0].startswith("reference")]
                for segments in (1, 2, 4, 8, 16):
                    for wide in (8, 16):
                        tiling = triton_scan.Tiling(4, wide, max(1, padded * wide // 128), segments)
                        if segments * 8 > length or tiling == own or wide * padded > 1024:
                            continue
                        triton_scan.choose_tiling = lambda *_, tiling=tiling: tiling
                        name = f"{wide} channels, {segments} segments"
                        [(_, run), *_rest], _leaves = scan_cuda.scan_forms(shape, torch.float32, backward, None)
                        forms.append((name, run))
                triton_scan.choose_tiling = chosen
                times = scan_cuda.compare([run for _, run in forms], 9)
                floor = scan_cuda.moved_bytes(leaves, backward) / bandwidth * 1e3
                key = f"{shape} {'forward and backward' if backward else 'forward'}"
                rows = {name: {"ms": t, "iqr_ms": s} for (name, _), (t, s) in zip(forms, times, strict=True)}
                result[key] = {"chosen": str(own), "floor_ms": floor, "forms": rows}
    finally:
        triton_scan.choose_tiling = chosen
    return result


# -- 7 ---------------------------------------------------------------------------------------------------------------


def depthwise(card: Card) -> Result:
    """Forms of the short depthwise convolution of a mixer on (B, L, E)."""
    result: Result = {}
    for batch, length, channels in card.pick([(64, 64, 40), (128, 196, 160), (32, 196, 320)], [(2, 16, 8)]):
        x_BLE = torch.randn(batch, length, channels, device=card.device, dtype=torch.bfloat16, requires_grad=True)
        weight_E1K = torch.randn(channels, 1, 3, device=card.device, dtype=torch.bfloat16, requires_grad=True)

        def conv1d(x: Tensor = x_BLE, w: Tensor = weight_E1K, groups: int = channels) -> Tensor:
            return F.conv1d(x.transpose(1, 2), w, padding=1, groups=groups).transpose(1, 2)

        def conv2d(x: Tensor = x_BLE, w: Tensor = weight_E1K, groups: int = channels) -> Tensor:
            image = x.transpose(1, 2).unsqueeze(2)
            return F.conv2d(image, w.unsqueeze(2), padding=(0, 1), groups=groups).squeeze(2).transpose(1, 2)

        def shifted(x: Tensor = x_BLE, w: Tensor = weight_E1K, steps: int = length) -> Tensor:
            padded = F.pad(x, (0, 0, 1, 1))
            taps = [padded[:, k : k + steps] * w[:, 0, k] for k in range(3)]
            return taps[0] + taps[1] + taps[2]

        for form in (conv1d, conv2d, shifted):
            step = functools.partial(_gradient, form, (x_BLE, weight_E1K))
            for passes, run in (("forward", torch.no_grad()(form)), ("forward and backward", step)):
                key = f"{(batch, length, channels)} {form.__name__}, {passes}"
                try:
                    result[key] = card.milliseconds(card.captured(run), 0.1)
                except RuntimeError as error:
                    result[key] = f"{type(error).__name__}: {error}"[:300]
    return result


def _gradient(form: Callable[[], Tensor], leaves: tuple[Tensor, ...]) -> object:
    return torch.autograd.grad(form().float().sum(), leaves)


# -- 8 and 9 ---------------------------------------------------------------------------------------------------------


def worker(card: Card) -> Result:
    """A search's own worker: seconds of a training and of a timing, and the share of it that the GPU works."""
    from torch.profiler import ProfilerActivity, profile

    from mvsearch.pool.job import Done

    made, layouts = make_worker(card), short_layouts()
    result: Result = {}
    for number, (name, layout) in enumerate(layouts.items()):
        for what in ("train", "train", "time"):
            began = time.perf_counter()
            [done] = [e for e in made.run(job(number, what, layout, 0)) if isinstance(e, Done)]
            evaluation = done.evaluation
            said = {"seconds": time.perf_counter() - began, "reason": evaluation.reason}
            said |= {
                k: v for k, v in evaluation.values.items() if k in ("nll", "top1", "ratio", "iqr", "train_seconds")
            }
            result[f"{name}, {what}"] = said | {"conditions": evaluation.conditions}
        if card.pretend:
            continue
        began = time.perf_counter()
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            list(made.run(job(number, "train", layout, 1)))
        took = time.perf_counter() - began
        busy = sum(event.device_time_total for event in profiled.events()) / 1e6
        result[f"{name}, profiled"] = {"seconds": took, "gpu_seconds": busy, "busy": busy / took}
    return result


def job(number: int, what: str, layout: Any, seed: int) -> Any:
    """A job of one epoch."""
    from mvsearch.pool.job import Job

    return Job(id=number, what=what, layout=layout, trial=number, seed=seed, to_epoch=1)


def make_worker(card: Card) -> Any:
    """A worker with the settings of the shipped space, on random images."""
    from mambavision.data import ImageData, Split
    from mvsearch.config.reading import load_config
    from mvsearch.evaluate.make_worker import MakeWorker

    config = load_config("stagewise", ())
    torch.manual_seed(0)

    def split(count: int) -> Split:
        return Split(torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (count,)))

    data = ImageData(
        name="random",
        classes=tuple(map(str, range(10))),
        train=split(card.pick(3200, 64)),
        val=split(card.pick(1000, 32)),
        test=split(0),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        augment="shift",
        fingerprint="random",
        available={"train": 4200, "val": 4200, "test": 0},
        licence="none: random numbers",
    )
    return MakeWorker(config.proxy, config.timing, short_layouts()["half"])("check", str(card.device), 1, data)


def packed(card: Card) -> Result:
    """Trainings an hour with 1, 2, 4 and 8 workers on the card, each in its own process."""
    code = (
        "import sys, time; sys.path.insert(0, 'benchmarks')\n"
        "from gpu_check import Card, job, make_worker, short_layouts\n"
        f"card = Card({card.pretend}); made = make_worker(card); layout = short_layouts()['half']\n"
        "def train(seed):\n    list(made.run(job(0, 'train', layout, seed)))\n"
        "train(0); print('ready', flush=True); sys.stdin.readline(); ended = time.time() + float(sys.argv[1])\n"
        "done = 0\nbegan = time.time()\n"
        "while time.time() < ended:\n    train(done); done += 1\n"
        "print(done / (time.time() - began))\n"
    )
    result: Result = {}
    for workers in card.pick((1, 2, 4, 8), (1, 2)):
        command = [sys.executable, "-c", code, str(card.pick(6, 0.1))]
        started = [
            subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(workers)
        ]
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        rates = [float(process.communicate()[0].split()[-1]) for process in started]
        result[f"{workers} workers"] = {"trainings_per_hour": sum(rates) * 3600}
    return result


# -- 10 --------------------------------------------------------------------------------------------------------------


def step_graph(card: Card) -> Result:
    """A training step of the proxy, eager and as one graph: milliseconds, and whether the losses are the same."""
    result: Result = {}
    for name, layout in short_layouts().items():
        torch.manual_seed(0)
        batches = [(torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))) for _ in range(card.pick(20, 3))]
        batches = [(x.to(card.device), y.to(card.device)) for x, y in batches]
        losses: dict[str, list[float]] = {}
        times: dict[str, Any] = {}
        for form in ("eager", "graph"):
            step, images, labels = _training_step(card, layout, form == "graph" and not card.pretend)
            seen = []
            for x, y in batches:
                images.copy_(x)
                labels.copy_(y)
                seen.append(step().clone())
            losses[form] = [loss.item() for loss in seen]
            times[form] = card.milliseconds(step, 0.3)
        difference = max(abs(a - b) for a, b in zip(losses["eager"], losses["graph"], strict=True))
        result[name] = times | {"largest_difference_of_losses": difference, "losses": losses["graph"][:3]}
        result[name]["speedup"] = times["eager"]["ms"] / times["graph"]["ms"]
    return result


def _training_step(card: Card, layout: Any, graph: bool) -> tuple[Callable[[], Tensor], Tensor, Tensor]:
    from mambavision.model import MambaVision
    from mambavision.training import train_step

    model = MambaVision(layout, num_classes=10)
    model.reset_parameters(0)
    model = model.to(card.device).train()
    optimizer = AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), capturable=graph)
    images = torch.zeros(32, 3, 32, 32, device=card.device)
    labels = torch.zeros(32, dtype=torch.long, device=card.device)
    loss = torch.zeros((), device=card.device)
    # The cache of casts would outlive the step that it was made in.
    lowered = nullcontext() if card.pretend else torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=not graph)

    def step() -> Tensor:
        batch = [(images, labels, 1.0)]
        loss.copy_(train_step(model, batch, F.cross_entropy, optimizer, autocast=lambda: lowered, clip_norm=5.0))
        return loss

    if not graph:
        return step, images, labels
    # The warm-up changes weights and the optimizer's state, so both are put back in place.
    before = copy.deepcopy(model.state_dict())
    replay = card.captured(step)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            value.copy_(before[key])
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()

    def run() -> Tensor:
        replay()
        return loss

    return run, images, labels


# -- 11 --------------------------------------------------------------------------------------------------------------


def trainer(card: Card) -> Result:
    """The library's Trainer in bfloat16, float16 and float32: does it learn, and how fast is it."""
    from torch.utils.data import DataLoader, TensorDataset

    from mambavision.model import MambaVision
    from mambavision.training import Trainer, default_optimizer

    result: Result = {}
    torch.manual_seed(0)
    count = card.pick(2048, 32)
    labels = torch.randint(0, 4, (count,))
    images = torch.randn(count, 3, 32, 32) * 0.5 + labels.view(-1, 1, 1, 1) * 0.5
    loader = DataLoader(TensorDataset(images, labels), batch_size=card.pick(64, 16))
    for dtype in card.pick(("bfloat16", "float16", "float32"), ("bfloat16",)):
        model = MambaVision(short_layouts()["half"], num_classes=4)
        model.reset_parameters(0)
        began = time.perf_counter()
        training = Trainer(
            model,
            loader,
            loader,
            optimizer=default_optimizer(model, learning_rate=2e-3),
            use_amp=dtype != "float32",
            dtype=dtype if dtype != "float32" else "auto",
            device=str(card.device),
        )
        metrics = training.train(num_epochs=3)
        losses = list(metrics["train_loss"])
        result[dtype] = {"train_loss": losses, "seconds": time.perf_counter() - began}
        result[dtype]["finite"] = all(map(math.isfinite, losses))
    return result


SECTIONS: dict[str, tuple[Callable[[Card], Result], int]] = {
    "kernels": (kernels, 240),
    "cold": (cold, 120),
    "windows": (windows, 120),
    "timing": (timing, 180),
    "faults": (faults, 120),
    "scan": (scan, 240),
    "depthwise": (depthwise, 90),
    "worker": (worker, 150),
    "packed": (packed, 180),
    "step_graph": (step_graph, 90),
    "trainer": (trainer, 120),
}
"""Each section and the seconds that it may take."""


def run_section(name: str, card: Card, out: Path) -> None:
    """Run one section in this process and write its result."""
    began = time.perf_counter()
    report: Result = {"section": name, "what": (SECTIONS[name][0].__doc__ or "").strip(), **conditions(card)}
    try:
        report["result"] = SECTIONS[name][0](card)
        report["seconds"] = round(time.perf_counter() - began, 1)
    except Exception as error:
        report["failed"] = f"{type(error).__name__}: {error}"[:500]
        report["traceback"] = traceback.format_exc().splitlines()[-8:]
    (out / f"{name}.json").write_text(json.dumps(report, indent=1, default=str) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder for the results")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="these sections alone")
    parser.add_argument("--pretend", action="store_true", help="tiny sizes on a CPU")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # one section, in this process
    args = parser.parse_args()
    if not args.pretend and not torch.cuda.is_available():
        print("gpu_check.py needs a CUDA device, and torch finds none; --pretend runs it on a CPU", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    if args.here:
        run_section(args.only[0], Card(args.pretend), args.out)
        return 0
    failed = 0
    for name in args.only or SECTIONS:
        began = time.perf_counter()
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            "--here",
            "--only",
            name,
            "--out",
            str(args.out.resolve()),
        ]
        try:
            done = subprocess.run(
                [*command, *["--pretend"] * args.pretend],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
                timeout=SECTIONS[name][1],
                check=False,
            )
            file = args.out / f"{name}.json"
            report = json.loads(file.read_text()) if file.exists() and not done.returncode else {"failed": "no result"}
            said = report.get("failed", "done")
        except subprocess.TimeoutExpired:
            said = f"took longer than {SECTIONS[name][1]} s"
        failed += said != "done"
        print(f"{name:12} {time.perf_counter() - began:6.1f} s  {said}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
