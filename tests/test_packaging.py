"""What the distribution holds, and that it works where it is installed, away from this folder."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

import lightning_proppo
from lightning_proppo.installed_lightning import pl

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "lightning_proppo": ROOT / "lightning_proppo",
    "proppo_envs": ROOT / "envs" / "proppo_envs",
    "proppo_agents": ROOT / "agents" / "proppo_agents",
}
PROBE = """
import importlib.metadata, json
import lightning_proppo, lightning_proppo.propagators, proppo_agents, proppo_envs
import gymnasium
env = gymnasium.make("proppo_envs:CartPoleSwingUp-v0")
observation, _ = env.reset(seed=0)
env.step(env.action_space.sample())
[command] = importlib.metadata.entry_points(group="console_scripts", name="lightning-proppo")
print(json.dumps({
    "lightning_proppo": lightning_proppo.__file__,
    "proppo_envs": proppo_envs.__file__,
    "proppo_agents": proppo_agents.__file__,
    "version": importlib.metadata.version("lightning-proppo"),
    "main": command.load().__qualname__,
    "shape": observation.shape,
}))
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def probe(python: str | Path, cwd: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(python, "-c", PROBE, cwd=cwd).splitlines()[-1])
    return found


def build_wheel(folder: Path) -> Path:
    # From a copy: a build leaves files behind, and takes up those that an earlier one left.
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs")
    shutil.copytree(ROOT, source, ignore=ignored)
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"),
        *("--no-build-isolation", "--wheel-dir", folder / "wheels", source),
        cwd=folder,
    )
    [built] = (folder / "wheels").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        return build_wheel(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def clean_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and with this one's dependencies."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"),
        *("--no-index", wheel),
        cwd=folder,
    )
    # A folder that a .pth file names is searched, but its own .pth files are not read: the
    # editable installation over there, which works through one, stays out of sight.
    site_packages = run(
        *(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"), cwd=folder
    )
    for name in ("purelib", "platlib"):
        (Path(site_packages.strip()) / f"{name}.pth").write_text(f"{sysconfig.get_path(name)}\n")
    return folder


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert names == expected
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {"lightning_proppo/propagators/tp.py", "lightning_proppo/callbacks/__init__.py"} <= names


def test_another_build_has_the_same_bytes(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert build_wheel(tmp_path).read_bytes() == wheel.read_bytes()


def test_the_sources_have_what_a_user_builds_and_tests_with() -> None:
    grafted = re.findall(r"^graft (\w+)$", (ROOT / "MANIFEST.in").read_text(), re.MULTILINE)
    assert set(grafted) == {"benchmarks", "configs", "docs", "examples", "tests"}


def test_the_version_is_told_alike_everywhere() -> None:
    version = lightning_proppo.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_wheels_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
        licenses = [name for name in archive.namelist() if name.endswith("/LICENSE")]
    assert metadata["Name"] == "lightning-proppo"
    assert metadata["Version"] == lightning_proppo.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert licenses
    needed = metadata.get_all("Requires-Dist") or []
    lightning = [text for text in needed if text.startswith(("lightning>", "lightning!"))]
    lightning += [text for text in needed if text.startswith("pytorch-lightning")]
    assert len(lightning) == 2
    # Two releases of Lightning carried malicious code.
    assert all("!=2.6.2" in text and "!=2.6.3" in text for text in lightning)


def test_the_wheel_works_in_a_clean_environment(clean_environment: Path, tmp_path: Path) -> None:
    found = probe(clean_environment / "bin" / "python", cwd=tmp_path)
    for package in PACKAGES:
        assert Path(found[package]).is_relative_to(clean_environment)
    assert found["version"] == lightning_proppo.__version__
    assert found["main"] == "main"
    assert found["shape"]


def test_the_quick_start_runs_with_the_wheel(clean_environment: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    # As it is called here.
    source = blocks[0].replace("import pytorch_lightning as", f"import {pl.__name__} as")
    (tmp_path / "quick_start.py").write_text(source)
    run(clean_environment / "bin" / "python", "quick_start.py", cwd=tmp_path)


def test_the_command_of_the_wheel_finds_all_subcommands(
    clean_environment: Path, tmp_path: Path
) -> None:
    command = clean_environment / "bin" / "lightning-proppo"
    listed = run(command, "--help", cwd=tmp_path)
    for line in (
        "evaluate +Play",
        "figures +Compute",
        "collect +Collect episodes",
        "render +Film an episode",
    ):
        assert re.search(rf"^  {line}", listed, re.MULTILINE)
    told = run(command, "figures", "8c", "--quick", "--out", "made", cwd=tmp_path)
    assert "figure 8c" in told
    made = {path.name for path in (tmp_path / "made").iterdir()}
    assert made == {"figure-8c-quick.png", "figure-8c-quick.csv"}


def test_the_command_of_the_wheel_collects_episodes(
    clean_environment: Path, tmp_path: Path
) -> None:
    command = clean_environment / "bin" / "lightning-proppo"
    run(command, "collect", "--environment", "Pendulum-v1", "--out", "data", cwd=tmp_path)
    assert len(list((tmp_path / "data").glob("*.npz"))) == 1


def test_the_editable_installation_works_from_elsewhere(tmp_path: Path) -> None:
    # All of them: a build has left the metadata of one in the root of the repository.
    origins = [
        json.loads(found.read_text("direct_url.json") or "{}")
        for found in importlib.metadata.distributions(name="lightning-proppo")
    ]
    editable = [each["url"] for each in origins if each.get("dir_info", {}).get("editable")]
    if ROOT.as_uri() not in editable:
        pytest.skip("this environment has no editable installation of this folder")
    found = probe(sys.executable, cwd=tmp_path)
    for package, folder in PACKAGES.items():
        assert Path(found[package]).is_relative_to(folder)


def test_everything_that_is_installed_for_development_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in pin and "+" not in pin and "@" not in pin for pin in pins)
    names = {pin.partition("==")[0].lower().replace("_", "-") for pin in pins}
    assert len(names) == len(pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = {required_name(text) for text in sum(extras.values(), project["dependencies"])}
    assert needed - {"lightning-proppo"} <= names


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = sum(
        (extras[name] for name in ("lightning", "render", "test")), project["dependencies"]
    )
    bounds = {
        required_name(text): found.group(1)
        for text in needed
        if (found := re.search(r">=([0-9.]+)", text))
    }
    assert set(pins) == {*bounds, "linear_operator"}  # which GPyTorch takes any version of
    # 2.6 is 2.6.0.
    assert [name for name in bounds if not (pins[name] + ".").startswith(bounds[name] + ".")] == []


def required_name(requirement: str) -> str:
    """The distribution's name at the start of a requirement."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return found.group().lower().replace("_", "-")
