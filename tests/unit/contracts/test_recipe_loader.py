"""Recipe loading: exact places and words of every kind of problem, overrides, round trip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bevkd_deploy.contracts.errors import RecipeError, UsageError
from bevkd_deploy.contracts.recipe_lines import parse_yaml
from bevkd_deploy.contracts.recipe_loader import (
    dump_resolved,
    find_recipe,
    load_recipe,
    resolve_data_root,
    resolved_path,
    shipped_recipes,
)

TOY = Path(__file__).resolve().parents[2] / "fixtures" / "toy.yaml"

Edit = Callable[..., Path]


@pytest.fixture
def edited(tmp_path: Path) -> Edit:
    """Write the toy recipe with some text replaced; each text must occur."""

    def write(*replacements: tuple[str, str]) -> Path:
        text = TOY.read_text()
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def problems_of(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert caught.value.path == str(path)
    assert caught.value.exit_code == 2
    return caught.value.problems


def test_values_defaults_and_merges() -> None:
    loaded = load_recipe(TOY)
    recipe = loaded.recipe
    assert recipe.name == "toy"
    assert recipe.seed == 3
    assert recipe.teacher.train is not None
    assert recipe.teacher.train.learning_rate == 1e-3  # YAML 1.1 alone would read the text '1e-3'
    assert recipe.student.train.learning_rate == 2e-3
    assert (recipe.student.model.lidar.pillar_size_m, recipe.student.model.lidar.channels) == (0.2, 16)
    assert recipe.teacher.model.lidar.channels == 32
    assert recipe.student_spec().bev_shape_yx == (64, 64)
    assert loaded.path == TOY
    assert loaded.text == TOY.read_text()
    assert loaded.resolved["schema"] == "bevkd.recipe/1"
    assert loaded.resolved["benchmark"]["frames"] == 50


def test_of_several_merged_sections_the_first_wins_and_own_keys_win_over_all() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2, w: 2}\nc: {w: 3, <<: [*a, *b]}\n"
    parsed = parse_yaml(text)
    assert parsed.problems == []
    assert parsed.value["c"] == {"x": 1, "y": 1, "z": 2, "w": 3}
    assert [str(parsed.marks[("c", key)]) for key in "xyzw"] == ["1:8", "1:14", "2:14", "3:5"]


def test_every_problem_is_reported_at_once_in_file_order(edited: Edit) -> None:
    path = edited(
        ("seed: 3", "sede: 3"),
        ("  root: data/toy\n", ""),
        ("max_pillars: 2000", "max_pillars: 0"),
        ("stride: 4", "strid: 4"),
        ("resnet10", "resnet19"),
        ("epochs: 2}", "epochs: yes}"),
        ("max: 30", "max: 30\n    max: 31"),
    )
    assert problems_of(path) == [
        "5:1  sede   unknown key. Did you mean 'seed'?",
        "6:1  data.root   required key is missing",
        "15:7  teacher.model.lidar.max_pillars   must be greater than 0, got 0",
        "15:7  student.model.lidar.max_pillars   must be greater than 0, got 0",  # the same line, merged in by <<
        "17:7  teacher.model.bev.strid   unknown key. Did you mean 'stride'?",
        "28:7  student.model.camera.backbone   must be 'resnet10', 'resnet18' or 'resnet34', got \"resnet19\". "
        "Did you mean 'resnet18'?",
        "33:11  student.train.epochs   must be a valid integer, got true",
        "44:5  gates.1.max   duplicate key, first given on line 43",
    ]


def test_impossible_combinations_of_independent_sections_appear_together(edited: Edit) -> None:
    path = edited(
        ("block_layers: [1, 1]\n    head", "block_layers: [1]\n    head"),
        ("camera:\n      image_size_px: [64, 128]", "camera:\n      image_size_px: [64, 100]"),
        ("min_ratio: 0.9", "max: 0.9"),
        ("synthetic: {", "train_infos: x.pkl\n  # {"),
    )
    assert problems_of(path) == [
        "6:1  data   source 'synthetic' needs a 'synthetic' section (profile, train_scenes, val_scenes, seed)",
        "18:5  teacher.model.bev   block_channels and block_layers must have one length, got 2 and 1",
        "28:5  student.model.camera   image_size_px must be multiples of 32, got [64, 100]",
        "42:5  gates.0   gate 'retention_mAP': 'vs' goes with min_ratio, max_ratio or max_drop, and only with them",
    ]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("student:\n  model:", "student:\n  bev: {stride: 4}\n  model:", "26:3  student.bev   unknown key. "
         "Did you mean 'student.model.bev'?"),
        ("description: A toy", "description: A toy\nzzz: 1", "5:1  zzz   unknown key. A recipe has: schema, name, "),
        ("{top_k: 50}", "{top_k: 501}", "21:12  teacher.model.head.top_k   must be less than or equal to 500, got 501"),
        ("[-25.6, -25.6, -3.0, 25.6, 25.6, 3.0]", "[-25.6, -25.6, -3.0, 25.6, 25.6]", "14:7  "
         "teacher.model.lidar.range_m.5   required list item is missing"),
        ("[-25.6, -25.6, -3.0, 25.6, 25.6, 3.0]", "[1, 2, 3, 4, 5, 6, 7]", "14:7  teacher.model.lidar.range_m   "
         "must have at most 6 items, got 7"),
        ("seed: 3", "seed: .nan", "5:7  seed   must be a finite number, got .nan"),
        ("seed: 3", 'seed: "3"', '5:1  seed   must be a valid integer, got "3"'),
        ("seed: 3", "seed: !!python/name:os.system", "5:7  seed   tag 'python/name:os.system' is not allowed"),
        ("seed: 3", "3: seed", "5:1  keys must be text"),
        ("seed: 3", "seed: &a [*a]", "5:7  seed.0   alias refers to itself (anchor at line 5)"),
        ("seed: 3", "\tseed: 3", "5:1  not valid YAML: while scanning for the next token, found character '\\t' that "
         "cannot start any token (indent with spaces)"),
        ("data:\n", "data: nuscenes\nnothing:\n", "6:1  data   must be a section of 'key: value' lines, "
         'got "nuscenes"'),
        ("schema: bevkd.recipe/1", "schema: bevkd.recipe/2", "2:1  schema   must be 'bevkd.recipe/1', got"),
        ("target: rtx4090", "target: rtx409", "39:10  export.target   unknown target 'rtx409'. Did you mean 'rtx4090'? "
         "Targets: a10, a100,"),
    ],
)  # fmt: skip
def test_one_problem(edited: Edit, old: str, new: str, problem: str) -> None:
    found = problems_of(edited((old, new)))
    assert [line for line in found if line.startswith(problem)], found


def test_a_value_that_is_wrong_twice_is_reported_once(edited: Edit) -> None:
    found = problems_of(edited(("pillar_size_m: 0.2", "pillar_size_m: .inf")))
    assert found == [
        "15:22  teacher.model.lidar.pillar_size_m   must be a finite number, got .inf",
        "15:22  student.model.lidar.pillar_size_m   must be a finite number, got .inf",
    ]


def test_overrides_change_values_and_the_digest() -> None:
    loaded = load_recipe(
        TOY,
        [
            "student.train.epochs=7",
            "student.model.camera.image_size_px.0=96",
            "distill.losses.contrast={weight: 0.3}",
            "distill.losses.feature=null",
            "benchmark.frames=5",
            "gates.0.min_ratio=0.5",
        ],
    )
    recipe = loaded.recipe
    assert recipe.student.train.epochs == 7
    assert recipe.student.model.camera.image_size_px == (96, 128)
    assert recipe.distill.losses.contrast is not None
    assert recipe.distill.losses.contrast.weight.fixed == 0.3
    assert recipe.distill.losses.feature is None
    assert recipe.benchmark.frames == 5  # the section is absent from the file
    assert recipe.gates[0].min_ratio == 0.5
    assert loaded.digest != load_recipe(TOY).digest
    assert loaded.digest == load_recipe(TOY, loaded.overrides[::-1]).digest


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("student.train.epcohs=2", "override student.train.epcohs=2  unknown key. Did you mean 'epochs'?"),
        ("seed=1.5", "override seed=1.5  seed   must be a valid integer, got 1.5"),
        ("epochs", "override epochs  not KEY=VALUE, such as student.train.epochs=2"),
        ("seed=", "override seed=  has no value; write seed=null to leave it out or seed='' for empty text"),
        ("seed=[", "override seed=[  not valid YAML: while parsing a flow node, expected the node content, "
         "but found '<stream end>'"),
        ("gates.2.max=3", "override gates.2.max=3  gates has 2 items in the recipe, so there is no item 2"),
        ("export.precisions.0=fp16", "override export.precisions.0=fp16  export.precisions is no list in the recipe, "
         "so it has no item 0; give the whole list: export.precisions=[...]"),
        ("name.x=1", "override name.x=1  unknown key. 'name' is a value, not a section"),
        ("gates.max=1", "override gates.max=1  gates is no section in the recipe, so it has no key 'max'"),
        ("student.model.camera.image_size_px=[64, 100]", "27:5  student.model.camera   image_size_px must be multiples "
         "of 32, got [64, 100] (with override student.model.camera.image_size_px=[64, 100])"),
        ("gates=[{name: a}]", "override gates=[{name: a}]  gates.0.metric   required key is missing"),
        ("teacher.train=null", "10:1  teacher   teacher needs a 'checkpoint' to load or a 'train' section to make one "
         "(with override teacher.train=null)"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named(override: str, problem: str) -> None:
    assert problems_of(TOY, override) == [problem]


def test_an_override_given_twice_is_refused() -> None:
    assert problems_of(TOY, "seed=1", "seed=2") == ["override seed=2  given twice"]


def test_override_problems_come_with_those_of_the_file(edited: Edit) -> None:
    assert problems_of(edited(("seed: 3", "sede: 3")), "nmae=x") == [
        "5:1  sede   unknown key. Did you mean 'seed'?",
        "override nmae=x  unknown key. Did you mean 'name'?",
    ]


def test_resolved_round_trip(tmp_path: Path) -> None:
    loaded = load_recipe(TOY, ["student.train.epochs=7"])
    again = tmp_path / "recipe.resolved.yaml"
    again.write_text(dump_resolved(loaded))
    assert load_recipe(again).recipe == loaded.recipe
    assert load_recipe(again).digest == loaded.digest


def test_comments_do_not_change_the_digest(edited: Edit) -> None:
    assert load_recipe(edited(("# A small", "# An even smaller"))).digest == load_recipe(TOY).digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "1:1  a recipe is a mapping of schema"),
        (b"- a\n- b\n", "1:1  a recipe is a mapping of schema"),
        (b"a: 1\n---\nb: 2\n", "2:1  not valid YAML: expected a single document"),
        (b"a: {b: 1\n", "not valid YAML: while parsing a flow mapping"),
        (b"a: 1\nb: x\x00y\n", "2:5  not valid YAML: special characters are not allowed"),
        (b"a: \xff\n", "is not UTF-8 text: invalid start byte at byte 3"),
    ],
)
def test_a_text_that_is_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("spelling", ["$BEVKD_TEST_ROOT/nu", "${BEVKD_TEST_ROOT}/nu"])
def test_data_root_variables(edited: Edit, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    monkeypatch.delenv("BEVKD_TEST_ROOT", raising=False)
    recipe = load_recipe(edited(("data/toy", spelling))).recipe  # loading needs no variable
    with pytest.raises(UsageError, match=r"environment variable BEVKD_TEST_ROOT is not set; set it \(export"):
        resolve_data_root(recipe)
    monkeypatch.setenv("BEVKD_TEST_ROOT", "/mnt/set")
    assert resolve_data_root(recipe) == Path("/mnt/set/nu")


def test_paths_relative_to_the_recipe() -> None:
    loaded = load_recipe(TOY)
    assert resolved_path(loaded, "weights/a.safetensors") == TOY.parent / "weights" / "a.safetensors"
    assert resolved_path(loaded, "/abs/a.safetensors") == Path("/abs/a.safetensors")


def test_an_unknown_recipe_lists_what_ships(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"recipe nothing\.yaml not found.*Shipped recipes: "):
        find_recipe("nothing.yaml")
    with pytest.raises(UsageError, match="is a folder, not a recipe"):
        find_recipe(tmp_path)


def test_every_shipped_recipe_loads() -> None:
    shipped = shipped_recipes()
    assert set(shipped) == {"quickstart", "keyframe", "orin_small"}
    for name, path in shipped.items():
        loaded = load_recipe(name)
        assert loaded.path == path
        assert loaded.recipe.name == name
