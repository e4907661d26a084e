"""Every example of docs/sdk.md is run as it stands, against a real node; those of docs/capabilities.md are the files
that `test_third_party.py` runs.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from outbid.sync import Mesh

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sdk.md").read_text("utf-8"), re.DOTALL)
QUIET = {"courtesy.enabled": False, "limits.calibrate": False, "test.enabled": True}

FIXTURE = next(code for code in EXAMPLES if "@pytest.fixture" in code)
WEB = next(code for code in EXAMPLES if "FastAPI(" in code)

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(300)]
"""Three models are loaded, and a pytest is started in a pytest."""

SCRIPTS = [code for code in EXAMPLES if code not in (FIXTURE, WEB)]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("docs") / "node"
    with Mesh.start_node(state=folder, settings=QUIET):
        yield folder


@pytest.fixture
def _here(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that runs that node."""
    monkeypatch.setenv("OUTBID_STATE", str(state))
    monkeypatch.chdir(tmp_path)


def run(code: str) -> dict[str, Any]:
    """As a cell of a notebook, where `await` may stand outside a function; what it defined."""
    names: dict[str, Any] = {"__name__": "example"}
    compiled = compile(code, "docs/sdk.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if compiled.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(compiled, names))
    else:
        exec(compiled, names)
    return names


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("code", SCRIPTS, ids=range(len(SCRIPTS)))
def test_an_example_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(code)
    assert capsys.readouterr().out.strip()


@pytest.mark.usefixtures("_here")
def test_the_web_application_streams_an_answer() -> None:
    app = run(WEB)["app"]

    async def ask() -> str:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://app")
        async with app.router.lifespan_context(app), client:
            response = await client.get("/ask", params={"question": "Say hello."}, timeout=60)
            assert response.status_code == 200
            return response.text

    assert asyncio.run(ask()).strip()


def test_the_fixture_serves_a_test(tmp_path: Path) -> None:
    (tmp_path / "test_example.py").write_text(FIXTURE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_capability_shown_is_the_one_that_is_tested() -> None:
    shown = (ROOT / "docs" / "capabilities.md").read_text("utf-8")
    for file in ("outbid_wordcount/declaration.py", "outbid_wordcount/runner.py", "pyproject.toml"):
        assert (ROOT / "examples" / "outbid-wordcount" / file).read_text("utf-8") in shown, file
