"""The documentation holds: links resolve, commands parse, generated parts are fresh, figures are well-formed."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
import yaml

from bevkd_deploy.cli.main import app
from bevkd_deploy.contracts.errors import BevkdError, GateFailed
from bevkd_deploy.contracts.recipe import GateConfig
from bevkd_deploy.contracts.recipe_loader import load_recipe, shipped_recipes
from bevkd_deploy.contracts.target import list_targets, load_target

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(bevkd [^`]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands_of(text: str) -> list[str]:
    """`bevkd` commands in fenced blocks and in backticks; comments are cut off. A bare name in prose is no command."""
    lines = [line for _, block in FENCE.findall(text) for line in block.splitlines()]
    lines += [line for line in INLINE.findall(FENCE.sub("", text)) if len(line.split()) > 2 or "--" in line]
    return [line.removeprefix("$ ").split("  #")[0] for line in lines if re.match(r"(\$ )?bevkd ", line)]


@functools.cache
def root_command() -> Any:
    return typer.main.get_command(app)


def check_command(line: str) -> None:
    """Every word of a command is one that the real parser knows: subcommand, options, count of arguments."""
    command = root_command()
    words = shlex.split(line)[1:]
    while hasattr(command, "commands") and words:
        if words[0].startswith("-"):
            name = words.pop(0)
            assert any(name in option.opts for option in command.params) or name in ("--help", "-h"), f"{line}: {name}"
            continue
        if words[0] not in command.commands:
            # A group that also runs by itself, or a placeholder in prose (`bevkd COMMAND`).
            assert words[0].isupper() or words[0] == "...", f"{line}: no command {words[0]}"
            return
        command = command.commands[words.pop(0)]
    options = {name: option for option in command.params for name in option.opts if name.startswith("-")}
    positional = []
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            positional.append(word)
            continue
        name = word.split("=")[0]
        if name in ("--help", "-h"):
            return
        assert name in options, f"{line}: bevkd has no option {name}"
        if not (options[name].is_flag or "=" in word):
            assert words, f"{line}: {name} needs a value"
            words.pop(0)
    arguments = [option for option in command.params if option.param_type_name == "argument"]
    least = sum(argument.required for argument in arguments)
    most = 99 if any(argument.nargs != 1 for argument in arguments) else len(arguments)
    assert least <= len(positional) <= most, f"{line}: {len(positional)} arguments"


def test_the_pages_are_found() -> None:
    assert {"README.md", "docs/index.md", "docs/recipes.md", "CONTRIBUTING.md"} <= {page_id(page) for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_resolve(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for link in LINK.findall(text):
        if re.match(r"(https?|mailto):", link):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page_id(page)} links to {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page_id(page)} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_parse(page: Path) -> None:
    for line in commands_of(page.read_text()):
        check_command(line)


def test_recipe_headers_hold_commands_that_parse() -> None:
    for path in shipped_recipes().values():
        comments = [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")]
        header = [line.split("  #")[0].strip() for line in comments]
        commands = [line for line in header if line.startswith("bevkd ")]
        assert commands, f"{path.name} does not say how to run it"
        for line in commands:
            check_command(line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bevkd distil recipes/a.yaml", "no command distil"),
        ("bevkd distill", "0 arguments"),
        ("bevkd export --precision fp16", "no option --precision"),
        ("bevkd export --trt", "--trt needs a value"),
        ("bevkd show a b", "2 arguments"),
        ("bevkd --fast doctor", "--fast"),
    ],
)
def test_the_command_check_sees_mistakes(line: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_command(line)


def test_the_demo_is_the_quickstart() -> None:
    """`make demo` runs commands that parse, on the very dataset that the recipe describes."""
    done = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, check=True)
    commands = [line[line.index("bevkd ") :] for line in done.stdout.splitlines() if "/bevkd " in line]
    for line in commands:
        check_command(line)
    assert [line.split()[1:3] for line in commands[:2]] == [["data", "synth"], ["data", "check"]]
    assert [line.split()[1] for line in commands[2:]] == ["distill", "export", "benchmark"]
    recipe = load_recipe("quickstart").recipe
    world = recipe.data.synthetic
    assert world is not None
    assert commands[0] == (
        f"bevkd data synth {recipe.data.root} --scenes {world.train_scenes} --val-scenes {world.val_scenes} "
        f"--seed {world.seed} --profile {world.profile} --workers 2"
    )


def test_every_command_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text()
    for name in root_command().commands:
        assert f"| `bevkd {name}" in index


def test_the_exit_codes_are_documented() -> None:
    index = (DOCS / "index.md").read_text()
    codes = {GateFailed.exit_code, 0}
    pending: list[type[BevkdError]] = [BevkdError]
    while pending:
        error = pending.pop()
        codes.add(error.exit_code)
        pending.extend(error.__subclasses__())
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", index, re.MULTILINE)}
    assert documented == codes


def test_the_recipe_reference_is_fresh() -> None:
    sys.path.insert(0, str(DOCS))
    try:
        import recipe_table
    finally:
        sys.path.remove(str(DOCS))
    page = (DOCS / "recipes.md").read_text()
    generated = page.split(recipe_table.BEGIN)[1].split(recipe_table.END)[0].strip("\n") + "\n"
    assert generated == recipe_table.recipe_table(), "run: python docs/recipe_table.py"


def test_every_target_is_in_the_table() -> None:
    page = (DOCS / "export.md").read_text()
    rows = [f"| `{name}` | {load_target(name).gpu} | {load_target(name).sm} |" for name in list_targets()]
    assert "\n".join(rows) in page


def test_the_gates_of_the_benchmark_page_are_valid() -> None:
    blocks = [block for kind, block in FENCE.findall((DOCS / "benchmark.md").read_text()) if kind == "yaml"]
    gates = [gate for block in blocks for gate in yaml.safe_load(block)["gates"]]
    assert len(gates) == 3
    for gate in gates:
        GateConfig.model_validate(gate)


@pytest.mark.parametrize("figure", sorted(DOCS.rglob("*.svg")), ids=page_id)
def test_figures_are_well_formed_and_described(figure: Path) -> None:
    root = ElementTree.parse(figure).getroot()
    assert root.get("aria-label")
    names = {element.get("id") for element in root.iter() if element.get("id")}
    assert set(re.findall(r"url\(#([\w-]+)\)", figure.read_text())) <= names


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    pytest.importorskip("material")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "recipes.html").is_file()
