"""Reading a study: what is accepted, and the one message that each mistake gets."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from mvsearch.config.reading import config_keys, load_config, shipped
from mvsearch.config.sections import DATA_SETS, StudyConfig
from mvsearch.config.template import write_template
from mvsearch.config.values import ConfigError
from mvsearch.driver.settings import check_settings
from mvsearch.study.files import StudyError
from mvsearch.study.folder import StudyFolder

STUDY = """\
layout:
  stem_stride: 2
  width: [16, 24]
  stages:
    - {blocks: C, depth: 1, dim: 1}
    - {blocks: MA, depth: [3, 4], dim: 2, state: [4, 8]}
    - {blocks: M, depth: 2, dim: 4}
proxy: {learning_rate: 1e-3, train_images: 2.5e3}
search:
  trials: 26
"""


COLUMNAR = """\
layout:
  stem: patch
  patch: 4
  width: [32, 48]
  stages:
    - {blocks: AG, depth: [3, 4], dim: 1, state: [4, 8], conv_kernel: 4, expand: [1, 2]}
"""


@pytest.fixture
def columnar(tmp_path: Path) -> Path:
    path = tmp_path / "columnar_study.yaml"
    path.write_text(COLUMNAR)
    return path


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def refused(source: Path | str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(source, overrides)
    message = str(error.value)
    assert "\n" not in message
    assert "pydantic" not in message
    return message


def test_reads_values_and_defaults(study: Path) -> None:
    config = load_config(study)
    assert config.name == "study"
    assert config.layout.width == (16, 24)
    assert config.layout.stages[1].depth == (3, 4)
    assert config.layout.stages[1].state == (4, 8)
    assert config.layout.stages[1].window == (None,)
    assert config.layout.stages[1].attention.allowed(3) == (0, 1, 2, 3)
    assert config.proxy.learning_rate == 0.001
    assert config.proxy.train_images == 2500
    assert type(config.proxy.train_images) is int
    assert config.deployed_image_size == 32
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"  # type: ignore[misc]


def test_every_field_is_documented() -> None:
    def undocumented(section: type, prefix: str = "") -> list[str]:
        found = []
        for name, field in section.model_fields.items():  # type: ignore[attr-defined]
            if not field.description:
                found.append(prefix + name)
            for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if hasattr(inner, "model_fields"):
                    found += undocumented(inner, f"{prefix}{name}.")
        return found

    assert undocumented(StudyConfig) == []


def test_the_reference_names_every_key() -> None:
    text = (Path(__file__).parents[3] / "docs" / "yaml.md").read_text()
    missing = [key for key in config_keys() if f"`{key.rpartition('.')[2]}`" not in text]
    assert missing == []


@pytest.mark.parametrize("name", shipped())
def test_resolved_yaml_reads_back(name: str, tmp_path: Path) -> None:
    config = load_config(name, ["layout.stages.0.depth=[1, 2]"])
    copy = tmp_path / "resolved.yaml"
    copy.write_text(config.resolved_yaml())
    assert load_config(copy) == config
    assert yaml.safe_load(copy.read_text()) == config.resolved()


def test_reads_a_columnar_study(columnar: Path, tmp_path: Path) -> None:
    config = load_config(columnar)
    [stage] = config.layout.stages
    assert (config.layout.stem, config.layout.patch) == ("patch", 4)
    assert (stage.blocks, stage.base, stage.placed, stage.mixed, stage.expand) == ("GA", "G", "A", True, (1, 2))
    resolved = config.resolved()["layout"]
    assert resolved.keys() == {"stages", "width", "stem", "patch", "qk_norm"}
    assert resolved["stages"][0]["expand"] == [1, 2]
    copy = tmp_path / "resolved.yaml"
    copy.write_text(config.resolved_yaml())
    assert load_config(copy, ["name=columnar_study"]) == config


@pytest.mark.parametrize(("blocks", "mamba"), [("C", ""), ("M", "M"), ("G", "G"), ("A", ""), ("AM", "M"), ("GA", "G")])
def test_the_letters_of_a_stage(study: Path, blocks: str, mamba: str) -> None:
    stage = load_config(study, [f"layout.stages.2={{blocks: {blocks}, depth: 2, dim: 4}}"]).layout.stages[2]
    assert (stage.base, stage.placed) == (mamba, "A" if "A" in blocks else "")
    assert stage.hybrid == (blocks != "C")
    assert stage.mixed == (len(blocks) == 2)
    assert [stage.has(key) for key in ("state", "expand", "attention", "head_dim", "window", "depth")] == [
        bool(mamba),
        mamba == "G",
        len(blocks) == 2,
        "A" in blocks,
        blocks != "C",
        True,
    ]


@pytest.mark.parametrize(("blocks", "read"), [("P", "P"), ("MP", "MP"), ("PM", "MP"), ("GP", "GP")])
def test_parallel_blocks_take_the_part_of_attention(study: Path, blocks: str, read: str) -> None:
    stage = load_config(study, [f"layout.stages.2={{blocks: {blocks}, depth: 2, dim: 4}}"]).layout.stages[2]
    assert (stage.blocks, stage.base, stage.placed, stage.mixed) == (read, read[:-1], "P", len(read) == 2)
    assert all(stage.has(key) for key in ("state", "conv_kernel", "head_dim", "window", "mlp_ratio"))
    assert stage.has("expand") == ("G" in read)
    assert stage.has("attention") == (len(read) == 2)


def test_a_study_from_before_some_keys_goes_on(tmp_path: Path) -> None:
    stored = Path(__file__).with_name("study_before_some_keys.yaml")
    now, then = load_config(stored).resolved(), yaml.safe_load(stored.read_text())
    assert "stem" not in now["layout"]
    assert now["layout"] == then["layout"]
    # Keys that came later stand at their defaults, and the study takes them for its own.
    assert all(now[section] == now[section] | values for section, values in then.items() if isinstance(values, dict))
    folder = StudyFolder(tmp_path)
    shutil.copy(stored, folder.config)
    folder.ledger.write_text("a line\n")
    check_settings(folder, load_config(stored))
    assert not folder.is_new
    with pytest.raises(StudyError, match=r"started with timing.latency = False, and now it is True"):
        check_settings(folder, load_config(stored, ["timing.latency=true"]))


@pytest.mark.parametrize(
    ("form", "counts"),
    [
        ("{min: 1, max: 2}", (1, 2)),
        ("{min: 1}", (1, 2, 3, 4)),
        ("[0, 2]", (0, 2)),
        ("2", (2,)),
        ("{max: 9}", (0, 1, 2, 3, 4)),
    ],
)
def test_forms_of_attention(study: Path, tmp_path: Path, form: str, counts: tuple[int, ...]) -> None:
    config = load_config(study, [f"layout.stages.1.attention={form}"])
    assert config.layout.stages[1].attention.allowed(4) == counts
    copy = tmp_path / "copy.yaml"
    copy.write_text(config.resolved_yaml())
    assert load_config(copy).layout == config.layout


@pytest.mark.parametrize(
    ("text", "value"),
    [("64MB", 64e6), ("64 MiB", 64 * 2**20), ("1.5M", 1.5e6), ("1e6", 1e6), ("1.5e6", 1.5e6), ("100", 100)],
)
def test_units_of_budgets(study: Path, text: str, value: float) -> None:
    assert load_config(study, [f"budgets.memory.max={text}"]).budgets.memory.max == value


def test_overrides(study: Path) -> None:
    config = load_config(
        study,
        [
            "search.trials=12",
            "layout.stages.1.depth=[2, 3]",
            "timing.image_size=64",
            "budgets.params.max=1M",
            "name=other",
        ],
    )
    assert config.search.trials == 12
    assert config.layout.stages[1].depth == (2, 3)
    assert config.layout.stages[1].state == (4, 8)
    assert config.deployed_image_size == 64
    assert config.budgets.params.max == 1e6
    assert config.name == "other"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("search.trails=3", ["search.trails", "Did you mean 'trials'?"]),
        ("trials=3", ["unknown key trials", "Did you mean 'search.trials'?"]),
        ("layout.stages.1.sate=3", ["layout.stages.1.sate (stage 2)", "Did you mean 'state'?"]),
        ("layout.stages.1.attention.mx=3", ["layout.stages.1.attention.mx", "Did you mean 'max'?"]),
        ("search.trials=0", ["search.trials: 0 is not allowed; a whole number, 1 or more"]),
        ("search.trials=many", ["search.trials: 'many'", "a whole number"]),
        ("search.trials=true", ["search.trials: true", "a whole number"]),
        ("search.trials=1.5", ["search.trials: 1.5", "a whole number"]),
        ("search.trials=[1, 2]", ["search.trials: [1, 2]", "a whole number"]),
        ("search.hours=0", ["search.hours: 0", "null or a number above 0"]),
        ("search.job_minutes=0", ["search.job_minutes: 0", "null or a number above 0"]),
        ("timing.cuda_graph=true", ["timing.cuda_graph: true", "auto or false"]),
        ("timing.latency=1", ["timing.latency: 1", "true or false"]),
        ("throughput=table.csv", ["throughput: 'table.csv'", "a mapping"]),
        ("throughput.file=3", ["throughput.file: 3", "null or a path"]),
        ("throughput.others=drop", ["throughput.others: 'drop'", "measure, skip"]),
        ("search=5", ["search: 5", "sampler, trials, hours"]),
        ("search.device_hours=0", ["search.device_hours: 0", "null or a number above 0"]),
        ("storage=postgres", ["storage: 'postgres'", "a database URL such as postgresql://HOST/NAME"]),
        ("storage=postgresql://me:secret@host/x", ["storage: 'a URL with a password'", "~/.pgpass or PGPASSWORD"]),
        ("search.plateau=5", ["search.plateau: 5", "a mapping such as {trials: 20, gain: 0.01}"]),
        ("search.plateau.gain=1", ["search.plateau.gain: 1", "below 1"]),
        ("search.plateau.trials=0", ["search.plateau.trials: 0", "1 or more"]),
        ("search.sampler=tpr", ["search.sampler: 'tpr'", "known_cost, tpe, nsga2, gp, random", "Did you mean 'tpe'?"]),
        ("search.seed=-1", ["search.seed: -1", "0 to"]),
        ("objectives.quality=accuracy", ["objectives.quality: 'accuracy'", "nll, top1"]),
        ("proxy.learning_rate=.nan", ["proxy.learning_rate", "a number above 0"]),
        ("proxy.ema=1", ["proxy.ema: 1", "below 1"]),
        ("proxy.data=fashion-mnist", ["proxy.data: 'fashion-mnist'", "Did you mean 'fashion_mnist'?"]),
        ("proxy.data=folder", ["proxy.root: null", "folder"]),
        ("proxy.warmup_epochs=9", ["proxy.warmup_epochs: 9", "proxy.epochs, 6"]),
        ("timing.dtype=bf16", ["timing.dtype: 'bf16'", "bfloat16"]),
        ("layout.width=[]", ["layout.width: []", "at least one"]),
        ("layout.width=[16, 16]", ["layout.width: [16, 16]", "repeated"]),
        ("layout.width=[16, wide]", ["layout.width: 'wide'", "1 to 8192"]),
        ("layout.stem_stride=3", ["layout.stem_stride: 3", "4, 2, 1"]),
        ("layout.stem=patches", ["layout.stem: 'patches'", "conv, patch", "Did you mean 'patch'?"]),
        ("layout.patch=16", ["layout.patch: 16", "only the patch stem has it", "layout is conv; remove it"]),
        ("layout.stages.1.expand=1", ["layout.stages.1.expand (stage 2): 1", "a stage with G has it", "are MA"]),
        ("layout.downsample=[2]", ["layout.downsample: [2]", "2 strides"]),
        ("layout.stages=[]", ["layout.stages: []", "one to four"]),
        ("layout.stages.0.dim=2", ["layout.stages.0.dim (stage 1): 2", "layout.width"]),
        ("layout.stages.0.state=8", ["layout.stages.0.state (stage 1): 8", "remove it"]),
        ("layout.stages.2.flips=1", ["layout.stages.2.flips (stage 3): 1", "MA"]),
        ("layout.stages.1.blocks=MX", ["'MX'", "C (residual conv)"]),
        ("layout.stages.1.blocks=MG", ["'MG'", "MA, GA, MP or GP"]),
        ("layout.stages.1.blocks=AP", ["'AP'", "P (Mamba and attention in parallel)"]),
        ("layout.stages.1.depth=21", ["layout.stages.1.depth (stage 2): 21", "at most 20"]),
        ("layout.stages.1.attention={min: 3, max: 2}", ["layout.stages.1.attention", "empty"]),
        ("layout.stages.1.attention={min: 4}", ["layout.stages.1.attention", "at most 3, the shortest depth"]),
        ("layout.stages.1.placement=lst", ["'lst'", "Did you mean 'last'?"]),
        ("budgets.params={min: 3, max: 2}", ["budgets.params", "empty"]),
        ("budgets.memory.max=64XB", ["budgets.memory.max: '64XB'", "64MB"]),
        ("name=../escape", ["name: '../escape'", "letters"]),
        ("name=..", ["name: '..'"]),
        ("name=a/b", ["name: 'a/b'"]),
        ("name=.hidden", ["name: '.hidden'"]),
        (f"name={'x' * 65}", ["64 letters"]),
        ("search.trials", ["KEY=VALUE"]),
        ("search..trials=1", ["KEY=VALUE"]),
        ("layout.stages.7.depth=1", ["layout.stages is a list", "from 0 to 2"]),
        ("layout.stages.x.depth=1", ["layout.stages is a list", "'x'"]),
        ("search.trials.more=1", ["search.trials is 26"]),
        ("search.trials=[1", ["--set search.trials=[1", "not YAML"]),
    ],
)
def test_bad_values(study: Path, override: str, parts: list[str]) -> None:
    message = refused(study, override)
    assert f"--set {override.split('=')[0]}" in message or "proxy.root" in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("layout.stem=conv", ["layout.patch: 4", "only the patch stem has it", "layout is conv; remove it"]),
        ("layout.in_dim=32", ["layout.in_dim: 32", "only the conv stem has it", "layout is patch; remove it"]),
        ("layout.stem_stride=4", ["layout.stem_stride: 4", "only the conv stem has it"]),
        ("layout.downsample=null", ["layout.downsample: null", "only the conv stem has it"]),
        ("layout.patch=0", ["layout.patch: 0", "a whole number from 1 to 1024"]),
        ("layout.patch=[4, 8]", ["layout.patch: [4, 8]", "a whole number"]),
        ("layout.patch=33", ["proxy.image_size: 32 is not allowed; at least layout.patch, 33"]),
        ("timing.image_size=3", ["timing.image_size: 3 is not allowed; at least layout.patch, 4"]),
        ("proxy.stem_stride=2", ["proxy.stem_stride: 2", "only the conv stem has it", "layout.stem is patch"]),
        ("layout.width=[16, 18]", ["layout.width: 18", "a multiple of 4"]),
        (
            "layout.stages=[{blocks: M, depth: 1, dim: 1}, {blocks: M, depth: 1, dim: 2}]",
            ["instead of 2", "exactly one"],
        ),
        ("layout.stages=[{blocks: C, depth: 1, dim: 1}]", ["layout.stages.0.blocks (stage 1): 'C'", "free of C"]),
        ("layout.stages.0.expand=5", ["layout.stages.0.expand (stage 1): 5", "from 1 to 4"]),
        ("layout.stages.0.expnd=2", ["Did you mean 'expand'?"]),
        ("layout.stages.0.blocks=A", ["a stage with M, G or P has it, and the blocks of this one are A"]),
        ("layout.stages.0.depth=21", ["at most 20 blocks where their order is searched"]),
    ],
)
def test_bad_values_of_a_columnar_study(columnar: Path, override: str, parts: list[str]) -> None:
    message = refused(columnar, override)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["empty"]),
        ("- layout", ["mapping"]),
        ("just words", ["mapping"]),
        ("name: x\nlayout: [1\n", ["line 3", "not YAML"]),
        ("name: x\nname: y\n", ["line 2", "'name' stands twice"]),
        ("name: x\nsearch: {trials: 1, trials: 2}\n", ["line 2", "'trials' stands twice"]),
        ("x: !!python/object/apply:os.system [true]\n", ["not YAML"]),
        ("name: x\n", ["layout: missing"]),
        ("layout: {width: 16, stages: [{blocks: M, dim: 1}]}\n", ["layout.stages.0.depth (stage 1): missing"]),
        ("layuot: {}\n", ["unknown key layuot", "Did you mean 'layout'?"]),
        ("layout: {width: 0, stages: []}\nsearch: {trails: 3}\n", ["unknown key search.trails", "and 2 more problems"]),
        ("name: 5\nlayout: {width: 16, stages: [{blocks: M, dim: 1, depth: 1}]}\n", ["name: 5"]),
    ],
)
def test_bad_files(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    message = refused(path)
    assert message.startswith(str(path))
    for part in parts:
        assert part in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "Did you mean 'stagewise'?" in refused("stagwise")
    assert "no such file" in refused(tmp_path / "none.yaml")
    assert "folder" in refused(tmp_path)
    binary = tmp_path / "weights.yaml"
    binary.write_bytes(b"\xff\xfe\x80")
    assert "not a text file" in refused(binary)


def test_a_file_named_like_a_shipped_space_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("stagewise").layout.width == (12, 16, 20, 24)
    Path("stagewise").write_text(STUDY)
    assert load_config("stagewise").layout.width == (16, 24)


def test_names_of_data_sets_are_those_of_the_library() -> None:
    from mambavision.data import DATA_SETS as library

    assert sorted(DATA_SETS) == sorted(library)


def image_folder(root: Path, *classes: str) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
    return root


def test_template_is_a_study(tmp_path: Path) -> None:
    data = image_folder(tmp_path / 'my "cats": {x} & dogs', "cat", "dog", ".cache")
    path = write_template(data, tmp_path / "mine.yaml")
    config = load_config(path)
    assert config.proxy.data == "folder"
    assert config.proxy.root == str(data)
    assert "2 classes: cat, dog " in path.read_text()
    assert list(tmp_path.glob(".*")) == []


def test_template_of_a_split_folder_with_a_number_for_a_name(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "2024", "train/a", "train/b", "train/c", "val/a")
    path = write_template(data, tmp_path / "new" / "mine.yaml")
    assert load_config(path).name == "2024"
    assert "3 classes: a, b, c" in path.read_text()


def test_template_overwrites_nothing(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", "a", "b")
    out = tmp_path / "mine.yaml"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        write_template(data, out)
    assert out.read_text() == "mine"


def test_template_needs_classes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a folder"):
        write_template(tmp_path / "none", tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match="only 'a'"):
        write_template(image_folder(tmp_path / "data", "a"), tmp_path / "mine.yaml")
    assert not (tmp_path / "mine.yaml").exists()


RUNGS = ["search.sampler=random", "proxy.epochs=27"]


def test_rungs_end_at_the_epochs_of_the_proxy() -> None:
    assert load_config("stagewise").rung_epochs == (2,)
    assert load_config("stagewise", [*RUNGS, "fidelity={eta: 3, rungs: 3}"]).rung_epochs == (3, 9, 27)
    assert load_config("stagewise", [*RUNGS, "fidelity.eta=3"]).rung_epochs == (3, 9, 27)
    assert load_config("stagewise", [*RUNGS, "fidelity={eta: 4, rungs: 2}"]).rung_epochs == (7, 27)
    assert load_config("stagewise", [*RUNGS, "fidelity={eta: 2, rungs: 5}"]).rung_epochs == (2, 3, 7, 14, 27)


def test_the_limit_of_an_epoch_is_that_of_the_longest_training_of_one_job():
    assert load_config("stagewise").epoch_limit_s is None
    assert load_config("stagewise", ["search.job_minutes=3"]).epoch_limit_s == 180 / 2
    rungs = [*RUNGS, "fidelity={eta: 3, rungs: 3}", "search.job_minutes=3"]
    assert load_config("stagewise", rungs).epoch_limit_s == 180 / 18


def test_without_rungs_a_study_reads_as_it_did_before_there_were_any() -> None:
    plain = load_config("stagewise")
    assert "fidelity" not in plain.resolved()
    assert load_config("stagewise", ["fidelity=none"]) == plain == load_config("stagewise", ["fidelity=null"])
    assert load_config("stagewise", ["fidelity=none"]).resolved_yaml() == plain.resolved_yaml()
    rungs = load_config("stagewise", [*RUNGS, "fidelity={eta: 3, rungs: 3}"])
    assert rungs.resolved()["fidelity"] == {"eta": 3, "rungs": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["search.sampler=tpe", "fidelity.eta=3"],
            "search.sampler: 'tpe' is not allowed; known_cost or random where fidelity is not",
        ),
        (
            ["search.sampler=nsga2", "fidelity.eta=3"],
            "search.sampler: 'nsga2' is not allowed; known_cost or random where fidelity",
        ),
        (["fidelity=3"], "fidelity: 3 is not allowed; none (every layout is trained in full), or a mapping"),
        (["fidelity=some"], "fidelity: 'some' is not allowed; none"),
        (["fidelity.eta=1"], "fidelity.eta: 1 is not allowed; a whole number from 2 to 100"),
        (["fidelity.rungs=1"], "fidelity.rungs: 1 is not allowed; a whole number from 2 to 10"),
        (["fidelity.runs=3"], "unknown key fidelity.runs; allowed here are eta, rungs. Did you mean 'rungs'?"),
        (["fidelity.rungs=6"], "fidelity.rungs: 6 is not allowed; fewer rungs, or more than proxy.epochs = 27"),
        (
            ["fidelity.rungs=4", "proxy.warmup_epochs=1.5"],
            "proxy.warmup_epochs: 1.5 is not allowed; at most 1, the epochs",
        ),
    ],
)
def test_rungs_that_mean_nothing_are_refused(changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("stagewise", [*RUNGS, *changes])
    assert message in str(error.value)
