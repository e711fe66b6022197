"""Every code block of the documentation that can run here does, and every option in the others exists."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from edge_sel.cli.main import cli
from edge_sel.config.profiles import load_profile
from edge_sel.config.settings import resolve
from tests.docs.folder import make_folder
from tools.doc_commands import ROOT, Block, blocks, commands, executed, pages

LANGUAGES = {"sh", "python", "console", "text", "toml", "ini", "json", "csv", "", "{toctree}", "{eval-rst}"}
NAMES = {page: str(page.relative_to(ROOT)) for page in pages()}
LONGEST_S = 600
"""The tutorial with one's own photos exports a network for 224 pixels and trains it four times."""
every_page = pytest.mark.parametrize("page", pages(), ids=NAMES.get)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("docs") / "folder"
    make_folder(made)
    return made


def script(page: Path) -> str:
    """The page's blocks in their order; all of its Python is one program, at the place of its last block."""
    parts = executed(page)
    last = max((i for i, block in enumerate(parts) if block.language == "python"), default=-1)
    program = "".join(block.text for block in parts if block.language == "python")
    lines = [
        f"python - <<'END_OF_PYTHON'\n{program}END_OF_PYTHON\n" if i == last else block.text
        for i, block in enumerate(parts)
        if i == last or block.language == "sh"
    ]
    return "\n".join(lines)


SHORTER = {"edge-sel export net.onnx ": "edge-sel export net.onnx --rehearsals 0 --plans bn,head,last "}
"""What the README's commands are given by default, where there are eleven plans and nine rehearsals else."""


def test_what_is_made_shorter_is_in_the_readme():
    assert all(command in script(ROOT / "README.md") for command in SHORTER)


@pytest.mark.timeout(LONGEST_S + 20)
@pytest.mark.parametrize(
    ("page", "shorter"),
    [
        pytest.param(ROOT / "README.md", SHORTER, id="README.md in short"),
        *(pytest.param(page, {}, id=NAMES[page], marks=pytest.mark.slow) for page in pages() if executed(page)),
    ],
)
def test_the_commands_of_a_page_work(page, shorter, folder, tmp_path):
    here = tmp_path / "here"
    shutil.copytree(folder, here)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("EDGE_SEL_")}
    environ |= {"PATH": f"{here / 'bin'}{os.pathsep}{environ['PATH']}", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    environ |= {"HOME": str(here), "XDG_CACHE_HOME": str(here / "cache")}
    text = script(page)
    for command, other in shorter.items():
        text = text.replace(command, other)
    given = ["bash", "-euo", "pipefail", "-x", "-c", text]
    result = subprocess.run(
        given, cwd=here, env=environ, capture_output=True, text=True, timeout=LONGEST_S, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]


@every_page
def test_a_block_says_what_it_is(page):
    for block in blocks(page):
        assert block.language in LANGUAGES or block.language.startswith("{generated-table}"), block


TOML = [(page, block) for page in pages() for block in blocks(page) if block.language == "toml"]


@pytest.mark.parametrize(("page", "block"), TOML, ids=[f"{NAMES[page]}:{block.line}" for page, block in TOML])
def test_files_of_settings_and_profiles_are_accepted(page, block, tmp_path):
    """A profile has tables, settings have none."""
    path = tmp_path / "given.toml"
    path.write_text(block.text)
    if re.search(r"^\[", block.text, re.MULTILINE):
        load_profile(path)
    else:
        resolve(toml_file=path)


def parse(command: str) -> None:
    """Raise what click raises for an option or a command that does not exist."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = list(lexer)[1:]
    words = words[: next((i for i, word in enumerate(words) if set(word) <= set("|&;<>")), len(words))]
    command_of, context = cli, click.Context(cli)
    while isinstance(command_of, click.Group) and words and not words[0].startswith("-"):
        found = command_of.get_command(context, words[0])
        assert found is not None, f"no command {words[0]}"
        command_of, context, words = found, click.Context(found), words[1:]
    if words and words[-1] in ("…", "..."):
        words.pop()
    command_of.make_parser(context).parse_args(words)


@every_page
def test_options_exist(page):
    for block in blocks(page):
        for command in commands(block):
            try:
                parse(command)
            except (click.ClickException, AssertionError, ValueError) as error:
                pytest.fail(f"{NAMES[page]}:{block.line}: {command}: {error}")


@pytest.mark.parametrize("command", ["edge-sel finetune --no-such", "edge-sel frobnicate", "edge-sel pack inspekt a"])
def test_what_does_not_exist_is_found(command):
    with pytest.raises((click.ClickException, AssertionError)):
        parse(command)


def test_calls_are_found_in_blocks():
    block = Block("console", "$ A=1 edge-sel finetune \\\n  --out run > log\n# edge-sel doctor\nedge-sel: error\n", 1)
    assert [command.split() for command in commands(block)] == [
        ["edge-sel", "finetune", "--out", "run", ">", "log"],
        ["edge-sel", "doctor"],
    ]
