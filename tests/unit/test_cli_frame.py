# SPDX-License-Identifier: MIT
"""The command has global options, errors, exit codes and formats; the tests run it as a user does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import ghostbox

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(ghostbox.__file__).resolve().parent.parent)}
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code that changes the command's internals, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=60
    )


def test_version(quick_cli: Cli) -> None:
    done = quick_cli("--version")
    assert (done.returncode, done.stdout) == (0, f"ghostbox {ghostbox.__version__}\n")


def test_help_lists_commands_and_aliases_without_importing_them(quick_cli: Cli) -> None:
    done = quick_cli("--help")
    assert done.returncode == 0
    for word in ("up", "memserver", "doctor", "rm = delete", "Examples:"):
        assert word in done.stdout
    heavy = "import sys; from ghostbox.cli.main import run; run(['--help']); print([m for m in ('fastapi', 'numpy',"
    code = heavy + " 'libvirt', 'paramiko', 'httpx') if m in sys.modules])"
    shown = run_python(code)
    assert shown.stdout.splitlines()[-1] == "[]"


def test_an_unknown_command_is_a_usage_error_with_the_nearest_name(quick_cli: Cli) -> None:
    done = quick_cli("docter")
    assert done.returncode == 2
    assert done.stderr == "error: No such command 'docter'. Did you mean 'doctor'?\nfix: ghostbox --help\n"
    assert done.stdout == ""


def test_an_unknown_option_is_a_usage_error(quick_cli: Cli) -> None:
    done = quick_cli("config", "show", "--origan")
    assert done.returncode == 2
    assert done.stderr.startswith("error: No such option '--origan'.")
    assert "fix: ghostbox config show --help" in done.stderr


def test_an_error_has_cause_and_remedy_and_its_exit_code(quick_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "ghostbox.yaml").write_text("vm: {memroy: 1G}\n")
    done = quick_cli("config", "show", cwd=tmp_path)
    assert done.returncode == 2
    expected = f"error: {tmp_path}/ghostbox.yaml:1: unknown key 'vm.memroy'\nfix: did you mean 'vm.memory'?\n"
    assert done.stderr == expected


@pytest.mark.parametrize("words", [["--json"], ["-o", "json"], ["--output=json"]])
def test_with_json_an_error_is_json_too(quick_cli: Cli, words: list[str]) -> None:
    done = quick_cli("config", "validate", "nowhere.yaml", *words)
    assert (done.returncode, done.stdout) == (4, "")
    assert json.loads(done.stderr)["error"] == {
        "kind": "NotFound",
        "message": "no configuration file nowhere.yaml",
        "why": None,
        "hint": None,
        "exit_code": 4,
    }


def test_a_wrong_command_line_with_json_is_json_too(quick_cli: Cli) -> None:
    done = quick_cli("config", "show", "--json", "--nonsense")
    assert done.returncode == 2
    assert json.loads(done.stderr)["error"]["exit_code"] == 2


def test_a_traceback_is_shown_only_with_vv(quick_cli: Cli) -> None:
    quiet = quick_cli("config", "validate", "nowhere.yaml")
    loud = quick_cli("-vv", "config", "validate", "nowhere.yaml")
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in loud.stderr
    assert "error: no configuration file nowhere.yaml" in loud.stderr


@pytest.mark.parametrize("place", ["before", "behind"])
def test_global_options_stand_before_or_behind_the_command(quick_cli: Cli, tmp_path: Path, place: str) -> None:
    given = tmp_path / "c.yaml"
    given.write_text("vm: {cpus: 7}\n")
    options = ["-c", str(given), "--verbose", "--quiet", "--no-color"]
    words = ["config", "show", "--json"]
    done = quick_cli(*options, *words) if place == "before" else quick_cli(*words, *options)
    assert json.loads(done.stdout)["vm.cpus"] == 7


def test_config_option_names_a_file_that_must_exist(quick_cli: Cli) -> None:
    done = quick_cli("--config", "nowhere.yaml", "config", "show")
    assert (done.returncode, done.stderr) == (4, "error: no configuration file nowhere.yaml\n")


def test_every_option_can_be_given_in_the_environment(quick_cli: Cli, tmp_path: Path) -> None:
    given = tmp_path / "c.yaml"
    given.write_text("vm: {cpus: 7}\n")
    done = quick_cli("config", "show", env={"GHOSTBOX_CONFIG": str(given), "GHOSTBOX_OUTPUT": "json"})
    assert json.loads(done.stdout)["vm.cpus"] == 7


def test_show_says_where_each_value_comes_from(quick_cli: Cli) -> None:
    env = {"GHOSTBOX_VM_MEMORY": "3GiB"}
    shown = json.loads(quick_cli("config", "show", "--origin", "--json", env=env).stdout)
    assert shown["vm.memory"] == {"value": "3GiB", "origin": "environment GHOSTBOX_VM_MEMORY"}
    assert shown["vm.cpus"] == {"value": 2, "origin": "default"}
    table = quick_cli("config", "show", "--origin", env=env).stdout
    assert "environment GHOSTBOX_VM_MEMORY" in table


def test_what_show_prints_is_a_configuration_again(quick_cli: Cli, tmp_path: Path) -> None:
    env = {"GHOSTBOX_POOL_CACHE": "1000MiB", "GHOSTBOX_VM_PORTS": "8080:80"}
    shown = yaml.safe_load(quick_cli("config", "show", "-o", "yaml", env=env).stdout)
    nested: dict[str, dict[str, object]] = {}
    for name, value in shown.items():
        section, _, key = name.partition(".")
        nested.setdefault(section, {})[key] = value
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(nested))
    again = quick_cli("config", "show", "-o", "yaml", "-c", str(tmp_path / "again.yaml"))
    assert yaml.safe_load(again.stdout) == shown


def test_validate_counts_the_keys_that_are_set(quick_cli: Cli, tmp_path: Path) -> None:
    given = tmp_path / "c.yaml"
    given.write_text("vm: {cpus: 7, name: x}\n")
    assert quick_cli("config", "validate", given).stdout == f"{given} is valid: 2 keys set\n"
    assert json.loads(quick_cli("config", "validate", given, "--json").stdout)["keys_set"] == ["vm.name", "vm.cpus"]
    assert "the configuration is valid: 0 keys set" in quick_cli("config", "validate").stdout


def test_path_lists_the_files_that_are_looked_for(quick_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "ghostbox.yaml").write_text("vm: {cpus: 7}\n")
    rows = json.loads(quick_cli("config", "path", "--json", cwd=tmp_path).stdout)
    assert [row["role"] for row in rows] == ["project", "user", "system"]
    assert rows[0] == {"role": "project", "path": str(tmp_path / "ghostbox.yaml"), "exists": True}


def test_paths_names_the_programs_and_the_directories(quick_cli: Cli, tmp_path: Path) -> None:
    found = json.loads(quick_cli("paths", "--json", env={"GHOSTBOX_NATIVE_DIR": "/opt/native"}).stdout)
    assert found["memserver"] == "/opt/native/ghostbox-memserver"
    assert found["pager"] == "/opt/native/ghostbox-pager"
    assert found["shim"] == "/opt/native/libghostbox-shim.so"
    assert found["state"] == os.environ["GHOSTBOX_STATE_DIR"]
    assert set(found) >= {"runtime", "cache", "images", "config"}


@pytest.mark.parametrize(("shell", "mark"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete --no")])
def test_completion_prints_a_script(quick_cli: Cli, shell: str, mark: str) -> None:
    done = quick_cli("completion", shell)
    assert done.returncode == 0
    assert mark in done.stdout
    assert "_GHOSTBOX_COMPLETE" in done.stdout


def test_completion_completes_commands(quick_cli: Cli) -> None:
    env = {"_GHOSTBOX_COMPLETE": "bash_complete", "COMP_WORDS": "ghostbox mem", "COMP_CWORD": "1"}
    assert "plain,memserver" in quick_cli(env=env).stdout


def test_a_command_whose_module_is_broken_breaks_alone(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from ghostbox.cli import main\n"
        "main.GROUPS['Donors']['donor'] = main.Command('ghostbox.cli.not_there', '')\n"
        "print(main.run(['donor', 'list']), main.run(['config', 'path', '-q']))\n"
    )
    done = run_python(code)
    assert done.stdout.splitlines()[-1] == "1 0"
    assert "error: cannot load the command 'donor' from ghostbox.cli.not_there" in done.stderr
    assert "fix: install GhostBox again: ./bootstrap install" in done.stderr


@pytest.mark.parametrize(
    ("raised", "exit_code", "text"),
    [
        ("KeyboardInterrupt()", 130, "error: interrupted"),
        ("ZeroDivisionError('x')", 1, "error: internal error: ZeroDivisionError: x\nfix: run it again with -vv"),
        (
            "errors.NotRunning('VM a does not run', why='it ended', hint='ghostbox up a')",
            3,
            "why: it ended\nfix: ghostbox",
        ),
        ("errors.PoolDegraded('one donor is missing')", 6, "error: one donor is missing"),
        ("errors.DeadlineExceeded('too long')", 124, "error: too long"),
    ],
)
def test_every_way_to_end_has_its_exit_code_and_text(raised: str, exit_code: int, text: str) -> None:
    code = (
        "import click\n"
        "from ghostbox import errors\n"
        "from ghostbox.cli import config, main\n"
        "def path(**_): raise " + raised + "\n"
        "config.path.callback = path\n"
        "main.sys.exit(main.run(['config', 'path']))\n"
    )
    done = run_python(code)
    assert done.returncode == exit_code
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_traceback() -> None:
    argv = [sys.executable, "-m", "ghostbox", "config", "show"]
    read_end, write_end = os.pipe()
    os.close(read_end)
    with subprocess.Popen(argv, stdout=write_end, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        os.close(write_end)
        _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    assert process.returncode != -signal.SIGSEGV
