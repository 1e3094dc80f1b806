"""mmengine's Runner trains our student and our distillation, and what it saves is a run of bevkd."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from bevkd_deploy.contracts.errors import ArtifactError, UsageError
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.models.checkpoint import load_detector
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.pipelines.runs import open_run

from .conftest import EXAMPLES, Configure, environment

PREFIX = "step.detector."


def trained(config: Any) -> Any:
    from mmengine.runner import Runner

    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def history(runner: Any, name: str) -> Any:
    return runner.message_hub.get_scalar(f"train/{name}").data[0]


def lowered(runner: Any, name: str) -> float:
    """The last epoch's mean (three frames) as a part of the first one's, after the ramp's two steps."""
    values = history(runner, name)
    return float(values[-3:].mean() / values[2:5].mean())


def saved_student(recipe: Path, run_dir: Path) -> dict[str, torch.Tensor]:
    """The run's student, loaded as bevkd export does."""
    run = open_run(run_dir)
    run.require_student()
    loaded = load_recipe(recipe).recipe
    assert run.loaded.digest == load_recipe(recipe).digest
    detector = build_detector(loaded.student.model, loaded.student_spec(), 99)
    load_detector(run.student_weights, detector, loaded.student.model)
    return detector.state_dict()


def test_the_student_learns_and_its_average_becomes_a_run(configure: Configure, recipe: Path, tmp_path: Path) -> None:
    hooks = [{"type": "BevkdRunHook"}, {"type": "EMAHook", "momentum": 0.1}]
    runner = trained(configure("student", epochs=8, custom_hooks=hooks))
    assert lowered(runner, "loss") < 0.7
    for name in ("heatmap_loss", "box_loss"):
        assert lowered(runner, name) < 0.9
    total = history(runner, "heatmap_loss") + history(runner, "box_loss")
    assert history(runner, "loss") == pytest.approx(total, rel=1e-5)
    # EMAHook is before ours: what the checkpoint holds as weights is the average, and so does the run.
    checkpoint = torch.load(tmp_path / "work" / "epoch_8.pth", weights_only=False)
    student = saved_student(recipe, tmp_path / "work" / "bevkd")
    assert {PREFIX + name for name in student} == set(checkpoint["state_dict"])
    for name, tensor in student.items():
        assert torch.equal(tensor, checkpoint["state_dict"][PREFIX + name]), name
    trunk = "pts_neck.deblocks.0.0.weight" if "pts_neck.deblocks.0.0.weight" in student else next(iter(student))
    assert not torch.equal(student[trunk], runner.model.step.detector.state_dict()[trunk])
    assert [stage["name"] for stage in open_run(tmp_path / "work" / "bevkd").manifest()["stages"]] == ["train-student"]


def test_distillation_lowers_its_terms_and_leaves_the_teacher_alone(
    configure: Configure, recipe: Path, tmp_path: Path
) -> None:
    from mmengine.runner import Runner

    runner = Runner.from_cfg(configure("distillation", epochs=8))
    teacher = runner.model.step.teacher.model
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    projectors = {name: tensor.detach().clone() for name, tensor in runner.model.step.terms.named_parameters()}
    assert projectors
    runner.train()
    for name in ("raw_heatmap", "raw_feature", "raw_pair_attention"):
        assert lowered(runner, name) < 0.95, name
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert any(not torch.equal(tensor, projectors[name]) for name, tensor in runner.model.step.terms.named_parameters())
    # Keys with "loss" are summed, what is shown beside them is not; weights ramp up over the first steps.
    names = [f"{name}_kd_loss" for name in ("heatmap", "feature", "pair_attention")]
    total = sum(history(runner, name) for name in ("heatmap_loss", "box_loss", *names))
    assert history(runner, "loss") == pytest.approx(total, rel=1e-5)
    weights = history(runner, "weight_heatmap")
    assert weights[0] == 0.0 and weights[-1] == 10.0
    assert history(runner, "heatmap_kd_loss") == pytest.approx(weights * history(runner, "raw_heatmap"), rel=1e-5)
    assert history(runner, "gradient_norm_feature")[0] > 0
    # A checkpoint is one of the student's with projectors beside it.
    checkpoint = torch.load(tmp_path / "work" / "epoch_8.pth", weights_only=False)["state_dict"]
    student = saved_student(recipe, tmp_path / "work" / "bevkd")
    assert {name for name in checkpoint if name.startswith(PREFIX)} == {PREFIX + name for name in student}
    others = [name for name in checkpoint if not name.startswith(PREFIX)]
    assert others and all(name.startswith(("step.terms.", "step.weights.")) for name in others)
    assert [stage["name"] for stage in open_run(tmp_path / "work" / "bevkd").manifest()["stages"]] == ["distill"]


def test_a_teacher_of_other_inputs_needs_them_in_the_pipeline(configure: Configure) -> None:
    other = "teacher.model.lidar.max_pillars=1200"
    config = configure("distillation")
    config.model.overrides = [other]
    config.train_dataloader.dataset.pipeline[-1].update(overrides=[other], teacher=False)
    with pytest.raises(UsageError, match=r"set BevkdInputs\(teacher=True\)"):
        trained(config)
    config.train_dataloader.dataset.pipeline[-1].teacher = True
    config.experiment_name += "_again"
    assert history(trained(config), "raw_feature").min() > 0


#: Fewer layers than CenterPoint has: what is tested is the way to it, not its strength.
FEWER_LAYERS = "model.pts_backbone.layer_nums"


@pytest.fixture(scope="module")
def centerpoint(mmdet3d: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """mmdet3d's own CenterPoint with pillars, and a checkpoint of it."""
    from bevkd_deploy.contracts.classes import CAMERA_NAMES
    from bevkd_deploy.teachers.mmdet3d_config import Mmdet3dOptions
    from bevkd_deploy.teachers.mmdet3d_model import build_mmdet3d_teacher

    configs = Path(mmdet3d.__file__).parent / ".mim" / "configs" / "centerpoint"
    config = configs / "centerpoint_pillar02_second_secfpn_head-circlenms_8xb4-cyclic-20e_nus-3d.py"
    torch.manual_seed(3)
    network = build_mmdet3d_teacher(
        config, None, CAMERA_NAMES, Mmdet3dOptions(config_options={FEWER_LAYERS: [1, 1, 1]})
    )
    weights = tmp_path_factory.mktemp("centerpoint") / "centerpoint.pth"
    torch.save({"meta": {}, "state_dict": network.state_dict()}, weights)
    return config, weights


def test_a_model_of_mmdet3d_teaches(
    configure: Configure, recipe: Path, centerpoint: tuple[Path, Path], tmp_path: Path
) -> None:
    """A teacher of another family: fed with points, its head drawn by six tasks, tapped by mmdet3d's names."""
    content = yaml.safe_load(recipe.read_text())
    content["teacher"] = {
        "source": "mmdet3d",
        "config": str(centerpoint[0]),
        "checkpoint": str(centerpoint[1]),
        "cfg_options": [f"{FEWER_LAYERS}=[1, 1, 1]"],
    }
    other = tmp_path / "centerpoint.yaml"
    other.write_text(yaml.safe_dump(content))
    config = configure("distillation")
    config.model.recipe = config.train_dataloader.dataset.pipeline[-1].recipe = str(other)
    runner = trained(config)
    teacher = runner.model.step.teacher.model
    stored = torch.load(centerpoint[1], weights_only=True)["state_dict"]
    assert stored.keys() == teacher.state_dict().keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in teacher.state_dict().items())
    for name in ("raw_heatmap", "raw_feature", "raw_pair_attention"):
        values = history(runner, name)
        assert len(values) == 3 and values.min() > 0
        assert history(runner, name.replace("raw", "gradient_norm"))[0] > 0
    saved_student(other, tmp_path / "work" / "bevkd")


def test_without_boxes_there_is_nothing_to_learn(configure: Configure) -> None:
    config = configure("student")
    pipeline = config.train_dataloader.dataset.pipeline
    pipeline[:] = [step for step in pipeline if step.type != "LoadAnnotations3D"]
    config.train_dataloader.dataset.filter_empty_gt = False
    with pytest.raises(UsageError, match="put LoadAnnotations3D before BevkdInputs"):
        trained(config)


def test_labels_that_mean_different_classes_stop_the_runner(configure: Configure) -> None:
    config = configure("student")
    config.train_dataloader.dataset.metainfo.classes = config.class_names[::-1]
    with pytest.raises(UsageError, match=r"dataset's classes are \['barrier'.*BevkdInputs was told \['car'"):
        trained(config)


def test_weights_of_another_model_stop_the_runner(configure: Configure, recipe: Path) -> None:
    config = configure("student")
    config.load_from = f"bevkd:{recipe.parent / 'teacher.safetensors'}"
    with pytest.raises(ArtifactError, match=r"(?s)setting: camera.neck_channels was 12.*shape: "):
        trained(config)
    config.load_from = "bevkd:nowhere.safetensors"
    config.experiment_name += "_again"
    with pytest.raises(ArtifactError, match="checkpoint not found: nowhere.safetensors"):
        trained(config)


def test_a_recipe_that_trains_its_teacher_is_refused(plugin: ModuleType, recipe: Path) -> None:
    overrides = ["teacher.checkpoint=null", "teacher.train={epochs: 1}"]
    with pytest.raises(UsageError, match="no teacher.checkpoint; train the teacher with bevkd train"):
        plugin.BevkdDistillation(recipe=str(recipe), overrides=overrides)


def run_tool(mmdet3d: ModuleType, name: str, *arguments: str, environment: dict[str, str], folder: Path) -> str:
    tool = Path(mmdet3d.__file__).parent / ".mim" / "tools" / name
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(tool), *arguments],
        env=environment, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_mmdet3ds_own_tools_run_the_examples_as_they_are(
    mmdet3d: ModuleType, recipe: Path, converted: Path, tmp_path: Path
) -> None:
    with environment(recipe, converted) as variables:
        options = ["train_cfg.max_epochs=1", "train_cfg.val_interval=2", "param_scheduler.0.total_steps=1"]
        output = run_tool(
            mmdet3d, "train.py", str(EXAMPLES / "distillation.py"), "--work-dir", "work", "--cfg-options", *options,
            environment=variables, folder=tmp_path,
        )  # fmt: skip
        assert "feature_kd_loss: " in output and "Next: bevkd export --run " in output
        assert open_run(tmp_path / "work" / "bevkd").student_weights.is_file()
        # mmengine 0.10 reads its own checkpoints, which hold more than weights, as PyTorch before 2.6 did.
        output = run_tool(
            mmdet3d, "test.py", str(EXAMPLES / "student.py"), "work/epoch_1.pth", "--work-dir", "work",
            environment={**variables, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}, folder=tmp_path,
        )  # fmt: skip
        assert "NuScenes/NDS: " in output
