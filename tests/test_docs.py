"""The documentation says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backend import cli
from backend.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def settings_table() -> str:
    """What stands in docs/operations.md; run this file to print it anew."""
    rows = ["| setting | default | what and why |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "empty" if field.is_required() or not str(field.get_default()) else f"`{field.get_default()}`"
        if field.default_factory is not None:
            default = "the user's data folder"
        if default in ("`**********`", "`()`", "`None`"):
            default = "empty"
        rows.append(f"| `FORELABEL_{name.upper()}` | {default} | {' '.join((field.description or '').split())} |")
    return "\n".join(rows)


def test_every_setting_is_documented() -> None:
    assert settings_table() in (ROOT / "docs" / "operations.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_commands_in_the_docs_exist() -> None:
    """Each `forelabel COMMAND --option` that a page shows is one that the command line has."""
    runner = CliRunner()
    helps = {c.name or c.callback.__name__: "" for c in cli.app.registered_commands}  # type: ignore[union-attr]
    for name in helps:
        helps[name] = runner.invoke(cli.app, [name, "--help"], env={"COLUMNS": "200"}).stdout
    for group, names in (("index", ["build"]), ("decoder", ["train", "import", "info"])):
        invoked = (runner.invoke(cli.app, [group, name, "--help"], env={"COLUMNS": "200"}) for name in names)
        helps[group] = "".join(result.stdout for result in invoked)
    shown = 0
    for page in PAGES:
        for command, rest in re.findall(r"^ {4}(?:\S+=\S* )*forelabel (\w+)(.*)$", page.read_text(), re.MULTILINE):
            assert command in helps, f"{page.name}: forelabel {command}"
            for option in re.findall(r"--[a-z-]+", rest.split("#")[0]):
                assert option in helps[command], f"{page.name}: forelabel {command} {option}"
                shown += 1
    assert shown > 10


if __name__ == "__main__":
    print(settings_table())
